"""
Your own RecBole model
======================

A RecBole model of your own, in one file, trained with PRISM beside itself without. ``run`` takes the class; the plugins
find its items in ``self.item_embedding``. Where yours are called otherwise, say ``run(MyModel, table="my_items",
...)``.

As a script it takes options::

    python plot_own_recbole_model.py --epochs 2 --output_dir out
"""

# %%
# The model
# ---------
# What RecBole asks of a sequential model, and nothing for recplug. A user is a linear map of the mean of their items,
# with the last item counted once more.

import argparse
import csv
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from torch import nn

from recplug.adapters.recbole import run


class MeanOfHistory(SequentialRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = nn.Embedding(self.n_items, config["embedding_size"], padding_idx=0)
        self.mix = nn.Linear(2 * config["embedding_size"], config["embedding_size"])
        self.loss_type = config["loss_type"]
        self.loss = BPRLoss() if self.loss_type == "BPR" else nn.CrossEntropyLoss()
        nn.init.normal_(self.item_embedding.weight, std=0.05)

    def forward(self, item_seq, item_seq_len):  # [B, L], [B] -> [B, d]
        rows = self.item_embedding(item_seq)  # [B, L, d]
        real = (item_seq != 0).unsqueeze(-1)
        mean = (rows * real).sum(dim=1) / item_seq_len.unsqueeze(-1)
        return self.mix(torch.cat([mean, self.gather_indexes(rows, item_seq_len - 1)], dim=-1))

    def calculate_loss(self, interaction):
        users = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        if self.loss_type == "BPR":
            positive, negative = (self.item_embedding(interaction[f]) for f in (self.POS_ITEM_ID, self.NEG_ITEM_ID))
            return self.loss((users * positive).sum(-1), (users * negative).sum(-1))
        return self.loss(users @ self.item_embedding.weight.T, interaction[self.POS_ITEM_ID])

    def predict(self, interaction):
        users = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return (users * self.item_embedding(interaction[self.ITEM_ID])).sum(-1)

    def full_sort_predict(self, interaction):
        users = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return users @ self.item_embedding.weight.T


# %%
# Train it, with PRISM and bare
# -----------------------------
# ``baseline=True`` trains the bare class first, with the same budget and seed, into a folder within the run directory.

options = argparse.ArgumentParser(description="A RecBole model of your own with PRISM.")
options.add_argument("--epochs", type=int, default=4)
options.add_argument("--output_dir", type=Path, default=None)
given = options.parse_args()
settings = {
    "epochs": given.epochs,
    "train_batch_size": 2048,
    "learning_rate": 0.003,
    "embedding_size": 64,
    "loss_type": "CE",
    "show_progress": False,
    "prism.scale": 0.5,
}
folder = given.output_dir or Path(tempfile.mkdtemp()) / "run"
result = run(MeanOfHistory, plugins="prism", config_dict=settings, output_dir=folder, baseline=True)
print("test result of the best epoch:", {name: round(float(v), 4) for name, v in result.test_result.items()})

# %%
# Validation, epoch by epoch
# --------------------------
# Look at where the curves part. So few epochs are no comparison: for that see :doc:`plot_compare`.


def validation(place):
    """The validation score of every epoch."""
    with open(place / "metrics.csv", encoding="utf-8") as file:
        return [float(row["valid/ndcg@10"]) for row in csv.DictReader(file)]


figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, place, style in (("with PRISM", folder, "o-"), ("bare", folder / "baseline", "s--")):
    axes.plot(validation(place), style, label=name)
axes.set(xlabel="epoch", ylabel="NDCG@10 of validation", title="a model of one's own", ylim=(0, None))
axes.xaxis.get_major_locator().set_params(integer=True)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
