"""
SSR on a graph: what the bands hold
===================================

LightGCN with SSR on a dense cut of Amazon Baby (1,489 users, 890 items, the official split, vectors of images and
texts). SSR cuts the vectors that LightGCN propagates, and the contents, into bands of the graph's spectrum, hides some
of them from a second view in training, and lets them mix. This page stops early and looks at what it did; it is no
comparison.

The same from the command line::

    run_recbole --model LightGCN --plugin ssr --dataset amazon-baby-small --epochs 12 \\
                --ssr.lambda_mask=0.1 --ssr.fusion=cp
"""

# %%
# Train
# -----
# The masked view and the mixing of bands are off by default, because they did not help; here they are what is looked
# at.

import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from recplug.adapters.recbole import run

folder = Path(tempfile.mkdtemp()) / "ssr"
settings = {"epochs": 12, "show_progress": False, "ssr": {"lambda_mask": 0.1, "fusion": "cp"}}
result = run("LightGCN", "amazon-baby-small", "ssr", settings, output_dir=folder)
for metric, value in result.test_result.items():
    print(f"{metric:<12}{value:.4f}")

# %%
# The losses
# ----------
# The backbone's ranking loss, and SSR's own: the masked view, the contrast of modalities, the length of content, and
# the penalty of the mixing.

rows = list(csv.DictReader((folder / "metrics.csv").open()))
epochs = [int(row["epoch"]) for row in rows]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(epochs, [float(row["loss/backbone"]) for row in rows], color="black")
left.set(title="LightGCN's own loss", xlabel="epoch", ylabel="BPR (nats)")
for name in [key for key in rows[0] if key.startswith("loss/ssr.")]:
    right.plot(epochs, [float(row[name]) for row in rows], label=name.removeprefix("loss/ssr."))
right.set(title="SSR's losses, weighted", xlabel="epoch", ylabel="loss", yscale="log")
right.legend(frameon=False)
for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
plt.show()

# %%
# What each band lets through
# ---------------------------
# At every eigenvalue of the Laplacian the curves add up to 1, so that the bands always add up to the signal. They are
# steps here, because the graph is small enough for exact eigenvectors, or soft where a polynomial stands in for them.
# The edges were put where the signals' energy is cut into equal parts, away from the eigenvalue 1.


def show(name: str) -> None:
    """One picture of the run directory."""
    picture = plt.imread(folder / "diagnostics" / f"ssr.{name}.png")
    _, axes = plt.subplots(figsize=(8, 8 * picture.shape[0] / picture.shape[1]), layout="constrained")
    axes.imshow(picture)
    axes.axis("off")
    plt.show()


show("responses")

# %%
# Where the energy lies
# ---------------------
# One row a signal. The backbone's vectors and the contents need not lie in the same bands.

show("energy")

# %%
# What a band is worth
# --------------------
# Leave one band out of the trained model: how far do the vectors move, and how many of a user's best twenty items
# change?

show("importance")

# %%
# The same in plain torch
# -----------------------
# ``Decomposition`` is a module of its own: any symmetric, normalised graph, any signal, differentiable. On a ring of 12
# nodes, one slow wave and one fast one come apart.

from recplug.plugins.nn import Adjacency
from recplug.plugins.ssr import Decomposition

n = 12
step = torch.arange(n)
ring = torch.stack([torch.cat([step, step]), torch.cat([(step + 1) % n, (step - 1) % n])])
graph = Adjacency.of(ring, torch.full((2 * n,), 0.5), (n, n))
bands = Decomposition(graph=graph, split=None, bands=2, engine="spectral", edges=(1.0,))
slow, fast = torch.cos(2 * torch.pi * step / n), torch.cos(torch.pi * step)
parts = bands((slow + 0.5 * fast).unsqueeze(1))  # [12, 2, 1]
figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
axes.plot(step, slow + 0.5 * fast, color="black", label="signal")
axes.plot(step, parts[:, 0, 0], label="low band")
axes.plot(step, parts[:, 1, 0], label="high band")
axes.set(title="a slow and a fast wave on a ring", xlabel="node", ylabel="value")
axes.legend(frameon=False, loc="upper right")
axes.spines[["top", "right"]].set_visible(False)
plt.show()
