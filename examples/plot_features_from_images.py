"""
Features from images
====================

From pictures of items to a feature table to training, without a download: this page **draws** a picture for each item
of the bundled ``amazon-scientific``, and its encoder counts colours. The colour is one that the item's title names, the
shape stands for its department; they are no photographs, and nothing here says how good real ones are.

With real pictures and a real encoder it is one command::

    recplug features extract --dataset mine --data_path data --modality image --images pictures \\
        --encoder open_clip:ViT-B-32/laion2b_s34b_b79k
"""

# %%
# A data set with pictures
# ------------------------
# Files are named by item token, ``TOKEN.png``. Two of three titles name no colour: these items get no picture, and so
# no row in the table.

import csv
import shutil
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image, ImageDraw

from recplug.adapters.data import bundled
from recplug.adapters.features import FeatureTable
from recplug.adapters.features.extraction import extract, image_items
from recplug.adapters.recbole import run

PAINT = {
    "black": "#202020",
    "white": "#f4f4f4",
    "grey or silver": "#a0a0a0",
    "red": "#d03030",
    "orange": "#f08020",
    "yellow or gold": "#e8c020",
    "green": "#309040",
    "blue": "#3060c0",
    "purple or pink": "#b050b0",
    "brown or natural": "#8a5a30",
}
NAME = "amazon-scientific"
place = Path(tempfile.mkdtemp())
folder, pictures = place / NAME, place / "pictures"
pictures.mkdir()
shutil.copytree(bundled()[NAME].directory, folder, ignore=shutil.ignore_patterns("*.image.*", "*.text.*"))
labels = pq.read_table(folder / f"{NAME}.factors.parquet").to_pylist()
departments = sorted({row["department"] for row in labels if row["department"]})
painted = {}
for row in labels:
    colours = [name for name in row["colour"] or () if name in PAINT]
    if colours:
        sides = 3 + departments.index(row["department"]) % 6 if row["department"] else 12
        picture = Image.new("RGB", (48, 48), "#c8d8e0")
        ImageDraw.Draw(picture).regular_polygon((24, 24, 19), sides, fill=PAINT[colours[0]])
        picture.save(pictures / f"{row['item_id']}.png")
        painted[row["item_id"]] = colours[0]
print(f"{len(painted)} of {len(labels)} items have a picture")

# %%
# An encoder
# ----------
# ``open_encoder`` opens models of open_clip, transformers and sentence-transformers. Anything with these attributes and
# two methods will do in its place: ``prepare`` takes one picture, ``encode`` a batch of what it gives. This one tells
# how much of a picture has which colour, on a grid of four levels of red, green and blue.


class Colours:
    name, modality, revision, pooling, precision = "colours", "image", "1", "mean", "fp32"
    normalised, device, width = False, "cpu", 64

    @staticmethod
    def prepare(picture):  # one PIL image to [3, 24, 24]
        return torch.from_numpy(np.array(picture.resize((24, 24)))).permute(2, 0, 1)

    @staticmethod
    def encode(batch):  # [b, 3, 24, 24] -> [b, 64]
        levels = batch.flatten(2).long() // 64  # [b, 3, 576]
        cells = levels[:, 0] * 16 + levels[:, 1] * 4 + levels[:, 2]  # [b, 576]
        return torch.nn.functional.one_hot(cells, 64).float().mean(dim=1)


table = folder / f"{NAME}.image.safetensors"
report = extract(Colours(), image_items(folder, NAME, pictures), table, workers=0)
print(f"{report.encoded} encoded, {len(report.missing)} without a picture")
features = FeatureTable.load(table)
print(f"{features.features.shape[0]} vectors, {features.features.shape[1]} wide, of modality {features.modality}")

# %%
# Look at it before training
# --------------------------
# Left, an item; beside it those whose vectors are nearest. Rows should look alike from left to right. A table that was
# shifted by one row, or belongs to other items, gives itself away here, where no metric does.

values = torch.nn.functional.normalize(torch.as_tensor(features.features).float(), dim=1)
colours = ("black", "red", "green", "blue", "yellow or gold")
chosen = torch.tensor([[painted[token] for token in features.tokens].index(colour) for colour in colours])
nearest = (values[chosen] @ values.T).topk(6).indices  # [5, 6]
figure, panes = plt.subplots(len(chosen), 7, figsize=(8, 5.6), layout="constrained")
for line, (item, row) in enumerate(zip(chosen.tolist(), nearest.tolist(), strict=True)):
    for column, other in enumerate([item, *[each for each in row if each != item][:5]]):
        pane = panes[line, column + (column > 0)]
        pane.imshow(Image.open(pictures / f"{features.tokens[other]}.png"))
        pane.set_title(features.tokens[other], fontsize=7)
for pane in panes.flat:
    pane.axis("off")
panes[0, 3].annotate("nearest by vector", (0.5, 1.35), xycoords="axes fraction", ha="center", fontsize=9)
panes[0, 0].annotate("item", (0.5, 1.35), xycoords="axes fraction", ha="center", fontsize=9)
plt.show()

# %%
# Train with it
# -------------
# ``run`` finds the table beside the data set. Items without a picture are masked: PRISM gives them a learned default.
# Three epochs show that it trains, and no more.

settings = {"epochs": 3, "train_batch_size": 2048, "show_progress": False}
result = run("SASRec", NAME, "prism", settings, data_path=place, output_dir=place / "run")
with open(place / "run" / "metrics.csv", encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
for row in rows:
    print(f"epoch {row['epoch']}: loss {float(row['loss/backbone']):.3f}")
