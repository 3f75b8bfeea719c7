"""
MAGNET on a graph: who is routed where
======================================

LightGCN with MAGNET on a dense cut of Amazon Baby (1,489 users, 890 items, the official split, vectors of images and
texts). Every pair of a user and an item is scored by a few of nine experts, each of which reads a fixed mix of
behaviour, image and text; a router chooses them. Training has two stages: keep all experts in use, then decide. This
page stops early and looks at what the router did; it is no comparison.

The same from the command line::

    run_recbole --model LightGCN --plugin magnet --dataset amazon-baby-small --epochs 7 --eval_step 7
"""

# %%
# Train, twice
# ------------
# Once as it comes, and once without the losses of the routing, so that it can be seen what they do. A pair router ranks
# more slowly than a dot product; ``eval_step`` validates after the last epoch only.

import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from safetensors.torch import load_file

from recplug.adapters.recbole import run

place = Path(tempfile.mkdtemp())
settings = {"epochs": 7, "eval_step": 7, "train_batch_size": 512, "learning_rate": 0.002, "show_progress": False}
runs = {"routing losses": {}, "no routing losses": {"lambda_route": 0.0}}
for name, own in runs.items():
    result = run("LightGCN", "amazon-baby-small", "magnet", {**settings, "magnet": own}, output_dir=place / name)
    print(f"{name:<20}" + "  ".join(f"{metric} {value:.4f}" for metric, value in result.test_result.items()))

# %%
# The losses
# ----------
# The backbone's ranking loss is of the joined scores. Coverage, stage 1's loss, is nearly nothing: a fresh router uses
# all experts evenly, and then its weight is 0. Confidence takes over in stage 2, is not small, and is gone once every
# routing is decided. The contrast of views pulls each node's two vectors together: of the training graph, and of
# the graph with edges to items which look or read like what the user had. Its weight is so small that its line lies on
# coverage's; a larger one would rule the training.

rows = list(csv.DictReader((place / "routing losses" / "metrics.csv").open()))
epochs = [int(row["epoch"]) for row in rows]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(epochs, [float(row["loss/backbone"]) for row in rows], color="black")
left.set(title="LightGCN's own loss", xlabel="epoch", ylabel="BPR (nats)")
for key in [key for key in rows[0] if key.startswith("loss/magnet.")]:
    right.plot(epochs, [float(row[key]) for row in rows], label=key.removeprefix("loss/magnet."))
right.set(title="MAGNET's losses, weighted", xlabel="epoch", ylabel="loss")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# The trigger
# -----------
# The entropy of the *mean* routing says whether all experts work, that of *single* routings whether the router
# decides. Both start at 1; the curves are means of epochs. The dashed line is where stage 2 began: with ``armed``,
# three steps into epoch 3, since the routing is still even then. The rule as printed would have fired in step 3 of the
# whole training.
#
# Left: after the switch both curves fall together. The router decides, and decides nearly the same for everyone, so
# that one or two experts are left. That is the paper's second stage as it is printed; nothing in it asks different
# pairs to choose different experts. The gap between the curves is what the router knows about pairs. Right: without
# the routing's losses it decides later, all experts stay, and the gap is what is left of their decision. In between
# are smaller values of ``magnet.lambda_route``.

figure, panes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
for axes, name in zip(panes, runs, strict=True):
    state = load_file(place / name / "adapter.safetensors")
    curve = state["magnet.trigger.curve"]
    curve = curve[curve[:, 0] > 0]  # [epochs, 6]
    middle = [epoch + 0.5 for epoch in range(len(curve))]
    axes.plot(middle, curve[:, 1] / curve[:, 0], drawstyle="steps-mid", label="of the mean routing")
    axes.plot(middle, curve[:, 2] / curve[:, 0], drawstyle="steps-mid", label="of single routings")
    axes.axhline(0.9, color="grey", linewidth=0.8, label="threshold")
    switch = int(state["magnet.trigger.switch_step"])
    axes.axvline(switch / float(curve[0, 0]), color="black", linestyle="--", label=f"stage 2, step {switch}")
    axes.set(title=name, xlabel="epochs", ylim=(0, 1.05))
    axes.spines[["top", "right"]].set_visible(False)
panes[0].set_ylabel("entropy / that of an even routing")
panes[1].legend(frameon=False, loc="lower left")
plt.show()

# %%
# Which experts are used
# ----------------------
# Rows are the source that an expert is built around, columns how much it leans on it. First with the routing's losses,
# then without. The name of an expert says little about what it reads: *behaviour complementary* is nine tenths content.


def show(run_name: str, picture_name: str) -> None:
    """One picture of a run directory."""
    picture = plt.imread(place / run_name / "diagnostics" / f"magnet.{picture_name}.png")
    _, axes = plt.subplots(figsize=(8, 8 * picture.shape[0] / picture.shape[1]), layout="constrained")
    axes.imshow(picture)
    axes.axis("off")
    plt.show()


show("routing losses", "utilisation")
show("no routing losses", "utilisation")

# %%
# Who is routed where
# -------------------
# Rows are groups of training pairs: how much the user did, and how popular the item is. Where rows are alike, the
# router does not tell these groups apart. The paper reports groups of users only.

show("routing losses", "routing")
show("no routing losses", "routing")

# %%
# What the experts' inputs are made of
# ------------------------------------
# Behaviour, image and text, weighed by how much each expert is kept: the honest count of the sources.

show("no routing losses", "sources")

# %%
# Nine fixed mixes
# ----------------
# The pool needs no training and no data: three anchors times three kinds. The balanced mixes are nearly the same.

from recplug.plugins.magnet.experts import templates

pool = templates(("behaviour", "image", "text"), alpha=0.6, beta=0.2, delta=0.5)
for expert, mix in zip(pool.names, pool.weights, strict=True):
    print(f"{expert:<24}" + "  ".join(f"{weight:.2f}" for weight in mix))
