"""
MICRec: users and items that training has not seen
==================================================

LightGCN with MICRec on ``amazon-baby-small``, of which a fifth of the users and a fifth of the items are held out. The
model never sees them; then it is shown a part of their interactions, and asked for the rest, without a gradient step.
This page trains for a few epochs and looks at what happens; it is no comparison of models.

The same from the command line::

    recplug data holdout amazon-baby-small --to held
    run_recbole --model LightGCN --plugin micrec --dataset amazon-baby-small --data_path held --output_dir run
    recplug evaluate run
"""

# %%
# Hold out, and train on the rest
# -------------------------------
# ``support`` is what a trained model may be shown of new users and items, ``query`` what it is asked for.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from recplug.adapters import data
from recplug.adapters.data.check import read_atomic
from recplug.adapters.recbole import load, run
from recplug.adapters.recbole.finished.new_nodes import evaluate_new

NAME = "amazon-baby-small"
place = Path(tempfile.mkdtemp())
folder, lines = data.holdout(NAME, place / "held", data.Draw(seed=1))
print("\n".join(lines))
settings = {
    "epochs": 25,
    "eval_step": 5,
    "embedding_size": 32,
    "learning_rate": 0.005,
    "show_progress": False,
}
result = run("LightGCN", NAME, "micrec", settings, data_path=place / "held", output_dir=place / "run")


def rows(part):
    """User, item and group of every line of a file."""
    table, _ = read_atomic(folder / f"{NAME}.{part}.inter")
    return list(zip(*(table[name].to_pylist() for name in ("user_id", "item_id", "group")), strict=True))


support, query = rows("support"), rows("query")

# %%
# Someone new
# -----------
# ``load`` rebuilds the run. A history is all that a new user needs: MICRec makes users from the items that they had.
# ``exact`` computes everything anew with the new user in the graph; fold-in leaves what is there as it is, and comes to
# nearly the same list.

loaded = load(place / "run")
histories = {}
for user, item, group in support:
    if group == "new_user":
        histories.setdefault(user, []).append(item)
someone = max(histories, key=lambda user: len(histories[user]))
lists = {
    mode: loaded.recommend(histories={someone: histories[someone]}, k=20, mode=mode).lists()[someone]
    for mode in ("fold_in", "exact")
}
wanted = {item for user, item, group in query if (user, group) == (someone, "new_user")}
found = len(wanted & set(lists["fold_in"]))
print(f"{someone} has had {len(histories[someone])} items; {found} of {len(wanted)} others are among 20 recommended")
print(f"both modes share {len(set(lists['fold_in']) & set(lists['exact']))} of 20")

# %%
# How did that come about?
# ------------------------
# ``explain`` names the route: from interactions (*support*), from content neighbours (*content*), from what is known in
# a second domain (*cross_domain*; there is none here), or *global*, which is the same for everyone of whom nothing is
# known. New items take their vectors from the feature tables beside the data set.

known = loaded.known("items")
cold = next(item for _, item, group in query if group == "cold_item" and item not in known)
loaded.extend_items([cold])
loaded.extend_users([someone, "nobody"], [(someone, item) for item in histories[someone]])
for token in (someone, "nobody", cold):
    told = loaded.explain(token)
    near = ", ".join(f"{other} {like:.2f}" for other, like in told.neighbours)
    print(f"{token:<8}{told.route:<9}{told.templates:>3} templates; near: {near or 'nobody'}")

# %%
# How much has to be shown of someone?
# ------------------------------------
# The same new users with more and more of their interactions. With none, everyone gets the global ranking, which is
# about as good as the most popular items. Those with many interactions are fewer (the numbers above the line), and have
# more to be asked for.

report = evaluate_new(load(place / "run"), support, query)
shots = {int(shown): row for shown, row in report["support"].items()}
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, style in (("model", "o-"), ("popularity", "s--"), ("global", ":")):
    axes.plot(range(len(shots)), [row["ranked"][name]["recall"] for row in shots.values()], style, label=name)
for at, row in enumerate(shots.values()):
    height = row["ranked"]["model"]["recall"]
    axes.annotate(f"{row['users']}", (at, height), (0, 6), textcoords="offset points", ha="center")
axes.set_xticks(range(len(shots)), [str(shown) for shown in shots])
axes.set(xlabel="interactions shown of a new user", ylabel="recall@20", title="new users")
axes.margins(y=0.15)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %%
# Which items are found?
# ----------------------
# Among all items, hardly any with few interactions reaches the first 20, whoever asks: they stand behind all that
# everybody buys. Within their own kind, right, the model tells more of them apart than the global ranking does. A new
# item is better shown on a shelf of new ones, ``recommend(candidates=...)``.

figure, panes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=False)
degrees = report["degree"]
for axes, title in zip(panes, ("among all items", "among items of the same bucket"), strict=True):
    for shift, name in ((-0.2, "model"), (0.2, "global")):
        found = [(row["ranked"] if axes is panes[0] else row["within"])[name]["recall"] for row in degrees.values()]
        axes.bar([at + shift for at in range(len(found))], found, width=0.38, label=name)
    axes.set_xticks(range(len(degrees)), list(degrees))
    axes.set(xlabel="interactions of the item", ylabel="recall@20", title=title)
    axes.spines[["top", "right"]].set_visible(False)
panes[0].legend(frameon=False)
plt.show()

for group, row in report["groups"].items():
    recalls = "  ".join(f"{name} {found['recall']:.3f}" for name, found in row["ranked"].items())
    print(f"{group:<10} recall@20 {recalls}")
