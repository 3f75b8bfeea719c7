"""
MARS: factors of items, and what they do to a recommender
=========================================================

SASRec with MARS on ``amazon-scientific`` (2,928 users, 1,585 items). Ten factors come with the data set: department,
shelf and brand from the shop's catalogue, and material, form, use and others by the words of the title. No language
model took part; one can, see the guide on factors. This page stops early and looks at what happened; it is no
comparison.

The same from the command line::

    run_recbole --model SASRec --plugin mars --mars.x=ids_content --mars.views=auto --epochs 10
"""

# %%
# Look at the factors
# -------------------
# Left: how many items each factor says something about. What is unknown joins no group. Right: how large the groups
# are. A group of one item passes nothing on, one of nearly all items passes on nearly the mean of everything. ``brand``
# is known for all, and for two items in three it is *other*, a value that joins nobody. ``recplug factors inspect
# --dataset amazon-scientific`` prints this and more.

import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from recplug.adapters.data import bundled
from recplug.adapters.factors import FactorTable
from recplug.adapters.factors.report import report
from recplug.adapters.recbole import run

place = bundled()["amazon-scientific"].directory
table = FactorTable.load(place / "amazon-scientific.factors.json")
looked_at = report(table, ["[PAD]", *table.tokens])
names = [factor.name for factor in looked_at.factors]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
left.barh(names, [100 * factor.coverage for factor in looked_at.factors], color="tab:blue", label="value")
left.barh(names, [100 * factor.other for factor in looked_at.factors], color="lightgrey", label="of it 'other'")
left.set(title="items with a value", xlabel="% of items", xlim=(0, 100))
left.legend(frameon=False, loc="lower right")
for place, factor in enumerate(looked_at.factors):
    sizes = [size for size in factor.sizes.values() if size]
    right.scatter(sizes, [place] * len(sizes), s=18, alpha=0.5, color="tab:blue")
right.set(title="groups, one point each", xlabel="items", xscale="log")
left.invert_yaxis()
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Train
# -----
# ``mars.x`` is what groups average: the backbone's rows alone by default, here these and projected content, so that
# there are several views of an item for the view loss, which is off by default, to compare.

folder = Path(tempfile.mkdtemp()) / "mars"
settings = {"epochs": 10, "show_progress": False, "mars": {"x": "ids_content", "views": "auto"}}
result = run("SASRec", "amazon-scientific", "mars", settings, output_dir=folder)
for metric, value in result.test_result.items():
    print(f"{metric:<12}{value:.4f}")

# %%
# The losses
# ----------
# MARS adds two losses of its own: a head that predicts an item's values from the backbone's row, and the distance
# between the parts of H that come from ids and from contents. The head starts at the base rates of the values, so that
# its whole way down, short as it is at this weight, is knowledge about items. The views' distance *rises* here, as the
# vectors grow from their small start: it is not free of scale.

rows = list(csv.DictReader((folder / "metrics.csv").open()))
epochs = [int(row["epoch"]) for row in rows]
figure, panes = plt.subplots(1, 3, figsize=(9, 3), layout="constrained")
for axes, key, title in zip(
    panes,
    ("loss/backbone", "loss/mars.semantic", "loss/mars.views"),
    ("SASRec's own loss", "semantic head, weighted", "views, weighted"),
    strict=True,
):
    axes.plot(epochs, [float(row[key]) for row in rows], color="black")
    axes.set(title=title, xlabel="epoch")
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Whom the gate hears
# -------------------
# Every item weighs its factors; the weights of those that it knows add up to ``factor_weight``, 0.3, beside the weight
# 1 of the structural graph (items that look or read alike). An even gate, which is where it starts, gives each factor
# that an item knows the same share. What is above that was learned, what is below too.


def show(name: str) -> None:
    """One picture of the run directory."""
    picture = plt.imread(folder / "diagnostics" / f"mars.{name}.png")
    _, axes = plt.subplots(figsize=(8, 8 * picture.shape[0] / picture.shape[1]), layout="constrained")
    axes.imshow(picture)
    axes.axis("off")
    plt.show()


show("gate")

# %%
# How loud each branch is
# -----------------------
# Lengths, relative to the backbone's item, of each branch as the gate weighs it. Structure is a mean over ten items and
# stays long; means of large groups are short.

show("branches")

# %%
# The leak check
# --------------
# A linear probe reads an item's values off its vector, on items that it was not fitted on. H is made of group means, so
# it holds the labels that it was made with: with *shuffled* profiles, where there is nothing to know about items, the
# probe still finds far more in H than the largest class. Only what real labels have above shuffled ones says something
# about items, and the backbone's row is where nothing can leak.

show("probe")

# %%
# Views of one item
# -----------------
# How far apart the parts of H are that come from ids and from each modality, relative to the item's own row. The view
# loss pulls them to 0, and so does anything that makes vectors shorter: compare with a run at ``mars.lambda_view`` 0.

show("views")

# %%
# A factor graph without the graph
# --------------------------------
# A factor joins all items of equal value. Normalised and multiplied, that graph is the mean of each group, which
# ``Groups`` computes without it: the same numbers, at a cost that grows with the items and not with their pairs.

from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.mars.groups import Groups

n, values = 16, 3  # row 0 is padding
label = torch.arange(1, n) % values
profiles = FactorProfiles((Factor("material", ("steel", "wood", "paper")),), torch.arange(1, n), label, n)
groups = Groups(profiles, n_rows=n)
x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
fast = groups.mix(groups.heard(x), torch.ones(n, 1))[1:]  # [15, 4]
equal = (label.unsqueeze(0) == label.unsqueeze(1)).float()  # [15, 15]
half = equal.sum(dim=1).rsqrt()
slow = (half.unsqueeze(1) * equal * half) @ x[1:]  # D^-1/2 A D^-1/2 X
print(f"largest difference: {(fast - slow).abs().max():.1e}")
