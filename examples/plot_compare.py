"""
Compare honestly
================

A small grid with its controls: LightGCN on ``amazon-baby-small``, bare, with SSR, and with SSR told other items'
content, two seeds each. Few epochs keep the page quick: it shows how to read the tables, not who wins.

The same from the command line::

    recplug compare --models LightGCN --plugins ssr --datasets amazon-baby-small --seeds 2 --controls shuffled \\
        --set epochs=5 --set learning_rate=0.005 --set train_batch_size=512 --output grid
"""

# %%
# Train the grid
# --------------
# Every cell is a process of its own. Stop it at any time: the same call goes on with what is left. ``controls`` has
# also ``mlp`` (a plain MLP on the same content, of equal size) and ``no_losses``; all three are the default.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from recplug.adapters.compare import compare

folder = Path(tempfile.mkdtemp()) / "grid"
found = compare(
    "LightGCN",
    "ssr",
    "amazon-baby-small",
    output=folder,
    seeds=2,
    controls="shuffled",
    settings={"epochs": 5, "learning_rate": 0.005, "train_batch_size": 512},
    groups=False,
)
print(found.to_markdown())

# %%
# What is more than luck?
# -----------------------
# A bar is the 95 % interval of the relative gain of SSR, paired over users; where it leaves out 0, p is below 0.05. The
# upper one is what most papers print. The lower one asks whether it is this content that does it: what is left of a
# gain with other items' content is none of it.

tests = found.tests
figure, axes = plt.subplots(figsize=(7, 2.2), layout="constrained")
for place, test in enumerate(tests):
    gain, low, high = (100 * value for value in (test.pairs.gain, test.pairs.low, test.pairs.high))
    axes.plot([low, high], [place, place], color="black", linewidth=2)
    axes.plot(gain, place, "o", color="black")
axes.axvline(0, color="grey", linestyle=":")
axes.set_yticks(range(len(tests)), [f"against {test.against}" for test in tests])
axes.set(xlabel="SSR's gain in recall@20 (%), 95 % interval", ylim=(len(tests) - 0.5, -0.5))
axes.spines[["top", "right", "left"]].set_visible(False)
plt.show()

# %%
# Seeds are no users
# ------------------
# The test above knows how users differ, and nothing of how trainings do. Each dot is a whole training: where the dots
# of two rows overlap, more seeds are needed, whatever p says.

table = found.table().to_pylist()
figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
names = {("none", ""): "bare", ("ssr", ""): "SSR", ("ssr", "shuffled"): "SSR, shuffled"}
for place, kind in enumerate(names):
    values = [row["test/recall@20"] for row in table if (row["plugins"], row["control"] or "") == kind]
    axes.plot(values, np.full(len(values), place), "o", color="black", alpha=0.6)
axes.set_yticks(range(len(names)), names.values())
axes.set(xlabel="recall@20 of the test set, a dot a seed", ylim=(len(names) - 0.5, -0.5))
axes.spines[["top", "right", "left"]].set_visible(False)
plt.show()

# %%
# The folder has the same as a page to look at, for LaTeX, and as a row a cell.

print(*sorted(path.name for path in folder.iterdir() if path.is_file()))
