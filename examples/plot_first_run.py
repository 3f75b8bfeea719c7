"""
A first run: SASRec with PRISM
==============================

One call trains RecBole's SASRec with PRISM on the bundled Amazon data (2,928 users, 1,585 items, real CLIP vectors of
product images and texts) and leaves a run directory. This page stops after 16 epochs, to be quick: it is a look at
what comes out, no comparison.

The same from the command line::

    run_recbole --model SASRec --plugin prism --epochs 16
"""

# %%
# Train
# -----
# The data set's own settings (sequence length 20, batch 512, early stopping on the validation's ``NDCG@10``) apply;
# anything can be overridden, with RecBole's keys for the backbone and with ``prism.`` keys for the plugin.

import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from recplug.adapters.recbole import run

folder = Path(tempfile.mkdtemp()) / "first-run"
settings = {"epochs": 16, "show_progress": False}
result = run("SASRec", plugins="prism", config_dict=settings, output_dir=folder)
for metric, value in result.test_result.items():
    print(f"{metric:<12}{value:.4f}")

# %%
# What is in the run directory
# ----------------------------
# ``config.yaml`` has every value with its origin, ``metrics.csv`` one row an epoch with every part of the loss,
# ``adapter.safetensors`` only what PRISM added to the backbone.

for path in sorted(folder.rglob("*")):
    if path.is_file() and "tensorboard" not in path.parts:
        print(f"{path.relative_to(folder)!s:45}{path.stat().st_size:>12,} bytes")

# %%
# The loss, part by part
# ----------------------
# Look for PRISM's losses falling as the experts learn to keep to their parts. The one for what only the image tells
# takes longest here: it stays near its margin (0.2, times its weight of 0.1) before it gives way.

rows = list(csv.DictReader((folder / "metrics.csv").open()))
epochs = [int(row["epoch"]) for row in rows]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(epochs, [float(row["loss/backbone"]) for row in rows], color="black")
left.set(title="the backbone's own loss", xlabel="epoch", ylabel="cross-entropy (nats)")
for name in [key for key in rows[0] if key.startswith("loss/prism.")]:
    label = name.removeprefix("loss/prism.")
    right.plot(epochs, [float(row[name]) for row in rows], label=label)
right.set(title="PRISM's losses, weighted", xlabel="epoch", ylabel="loss")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# Do the experts play their parts?
# --------------------------------
# For every expert: how much does its answer for an item stay the same when only the image, or only the text, is left?
# The expert for what only the image tells should be near 1 in the first column and lower in the second; the expert for
# synergy low in both; the one for redundancy high in both. What replaces the missing modality here (other items'
# vectors) was not used in training, so an expert cannot pass by recognising noise.

picture = plt.imread(folder / "diagnostics" / "prism.responses.png")
height = 8 * picture.shape[0] / picture.shape[1]
figure, axes = plt.subplots(figsize=(8, height), layout="constrained")
axes.imshow(picture)
axes.axis("off")
plt.show()

# %%
# Whom does the gate listen to?
# -----------------------------
# ``diagnostics/prism.npz`` holds the numbers behind every picture, for example the weights of the four experts for
# every history of the test, as the model used them. Each dot is a history; the spread says how much they differ.

weights = np.load(folder / "diagnostics" / "prism.npz")["gate_histories"]
names = ["unique image", "unique text", "synergy", "redundancy"]
rng = np.random.default_rng(0)
figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
for place, column in enumerate(weights.T):
    jitter = rng.uniform(-0.3, 0.3, len(column))
    axes.scatter(place + jitter, column, s=3, alpha=0.25)
    axes.hlines(column.mean(), place - 0.35, place + 0.35, color="black")
axes.set(title="weight of each expert, history by history (line: mean)", ylabel="weight", ylim=(0, 1))
axes.set_xticks(range(4), names)
axes.spines[["top", "right"]].set_visible(False)
plt.show()
