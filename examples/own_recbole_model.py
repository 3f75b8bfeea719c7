"""A RecBole model of your own, in one file, trained with PRISM.

Run it as it stands (about half a minute on one core)::

    python examples/own_recbole_model.py --epochs 2

``run`` takes the class itself. The plugins find its items in ``self.item_embedding``; where yours are called otherwise,
pass ``augment(MyModel, "prism", table="my_items")`` in place of the class and the plugins.
"""

from __future__ import annotations

import argparse

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from torch import nn

from recplug.adapters.recbole import run


class MeanOfHistory(SequentialRecommender):
    """A user is a linear map of the mean of their items, with the last item counted once more."""

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


def main():
    options = argparse.ArgumentParser(description="A RecBole model of your own with PRISM.")
    options.add_argument("--epochs", type=int, default=2)
    options.add_argument("--output_dir", default=None)
    given = options.parse_args()
    result = run(
        MeanOfHistory,
        plugins="prism",
        config_dict={"epochs": given.epochs, "embedding_size": 64, "loss_type": "CE", "prism.scale": 0.5},
        output_dir=given.output_dir,
    )
    print("test result of the best epoch:", {name: round(float(v), 4) for name, v in result.test_result.items()})
    print(f"everything else is in {result.directory}")


if __name__ == "__main__":
    main()
