"""
Your own backbone in plain torch
================================

PRISM in a plain PyTorch training loop, twice: attached to a model, and as an ``nn.Module`` in the model's own code. No
RecBole: the model, the batches and the loop are this page's own, as they would be yours.

As a script it takes options::

    python plot_plain_torch.py --epochs 3 --users 1500

Data: a cut of the bundled ``amazon-scientific`` (research only; see ``recplug data list``).
"""

# %%
# The data
# --------
# Histories of items by user, the item tokens, and content vectors in the order of the items.

import argparse
import csv
from collections import defaultdict

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from recplug.adapters.data import bundled
from recplug.adapters.features import FeatureTable
from recplug.adapters.torch import attach
from recplug.plugins.prism import Prism, PrismSettings

WIDTH, LENGTH, BATCH = 64, 20, 128


def read(users):
    folder = bundled()["amazon-scientific"].directory
    with open(folder / "amazon-scientific.inter", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    rows.sort(key=lambda row: float(row["order:float"]))
    tokens = ["[PAD]", *sorted({row["item_id:token"] for row in rows})]
    number = {token: index for index, token in enumerate(tokens)}
    histories = defaultdict(list)
    for row in rows:
        histories[row["user_id:token"]].append(number[row["item_id:token"]])
    files = {name: folder / f"amazon-scientific.{name}.safetensors" for name in ("image", "text")}
    return tokens, [histories[user] for user in sorted(histories)[:users]], files


def pad(sequences):
    lasts = [sequence[-LENGTH:] for sequence in sequences]
    return torch.tensor([items + [0] * (LENGTH - len(items)) for items in lasts])


# %%
# The model
# ---------
# Anybody's. All that matters is an ``nn.Embedding`` of items.


class GRU(nn.Module):
    def __init__(self, n_items):
        super().__init__()
        self.items = nn.Embedding(n_items, WIDTH, padding_idx=0)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.drop = nn.Dropout(0.2)
        nn.init.normal_(self.items.weight, std=0.05)

    def encode(self, sequence):  # [B, L] -> [B, d]
        return self.read(self.items(sequence), sequence)

    def read(self, rows, sequence):  # [B, L, d], [B, L] -> [B, d]
        states, _ = self.gru(self.drop(rows))
        last = (sequence != 0).sum(dim=1) - 1
        return states[torch.arange(len(states)), last]

    def scores(self, users):  # [B, d] -> [B, n_items]
        return users @ self.items.weight.T


@torch.no_grad()
def hit_rate(model, encode, histories):
    """HR@10 of every user's last item among all items."""
    model.eval()
    scores = model.scores(encode(pad([items[:-1] for items in histories])))
    scores[:, 0] = -torch.inf
    best = scores.topk(10).indices
    return (best == torch.tensor([items[-1] for items in histories]).unsqueeze(1)).any(dim=1).float().mean().item()


def batches(histories):
    """Every prefix of a history and the item after it; the last item of each is kept for the test."""
    pairs = [(items[:t], items[t]) for items in histories for t in range(1, len(items) - 1)]
    for chosen in torch.randperm(len(pairs)).split(BATCH):
        yield pad([pairs[i][0] for i in chosen]), torch.tensor([pairs[i][1] for i in chosen])


# %%
# Attach a plugin
# ---------------
# The model stays as it is, its table gives augmented rows, and the loss gets one more term. With no plugins it is the
# bare model.


def attached(tokens, histories, files, epochs, plugins):
    torch.manual_seed(0)
    model = GRU(len(tokens))
    attachment = attach(model, plugins=plugins, features=files, item_tokens=tokens)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)  # after attach, so that it trains the plugin too
    curve = []
    for epoch in range(epochs):
        model.train()
        total = 0.0
        for sequence, target in batches(histories):
            with attachment.step(sequence=sequence, positives=target):
                loss = F.cross_entropy(model.scores(model.encode(sequence)), target) + attachment.loss()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
        parts = "  ".join(f"{name} {value.item():.3f}" for name, value in attachment.losses.items())
        hits = hit_rate(model, model.encode, histories)
        curve.append(hits)
        print(f"{'+'.join(['GRU', *plugins]):<16} epoch {epoch}  loss {total:8.2f}  HR@10 {hits:.4f}  {parts}".rstrip())
    return curve


# %%
# Or call it yourself
# -------------------
# PRISM as a plain module, where the model's own code wants it: here for histories alone, and not for what is scored.


def by_hand(tokens, histories, files, epochs):
    torch.manual_seed(0)
    model = GRU(len(tokens))
    modalities = [FeatureTable.load(file).align(tokens) for file in files.values()]
    settings = PrismSettings(candidates="id")  # histories are fused, and scored against the model's own rows
    model.prism = Prism(modalities=modalities, width=WIDTH, settings=settings)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    curve = []

    def encode(sequence):
        return model.read(model.prism(model.items(sequence), sequence), sequence)

    for epoch in range(epochs):
        model.train()
        total = 0.0
        for sequence, target in batches(histories):
            loss = F.cross_entropy(model.scores(encode(sequence)), target)
            loss = loss + sum(model.prism.interaction_losses(sequence.unique()).values())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item()
        hits = hit_rate(model, encode, histories)
        curve.append(hits)
        print(f"GRU with Prism() epoch {epoch}  loss {total:8.2f}  HR@10 {hits:.4f}")
    return curve


# %%
# Train all three
# ---------------

options = argparse.ArgumentParser(description="PRISM in a plain PyTorch training loop.")
options.add_argument("--epochs", type=int, default=3)
options.add_argument("--users", type=int, default=1500)
given = options.parse_args()
data = read(given.users)
curves = {
    "GRU": attached(*data, given.epochs, []),
    "GRU with PRISM attached": attached(*data, given.epochs, ["prism"]),
    "GRU that calls Prism()": by_hand(*data, given.epochs),
}

# %%
# What came of it
# ---------------
# Hits among the first ten of all items, for each user's last item. The attached one scores against augmented rows, the
# third against the model's own. One seed and a few epochs: a look, no comparison.

figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
for (name, hits), style in zip(curves.items(), ("s--", "o-", "^:"), strict=True):
    axes.plot(hits, style, label=name)
axes.set(xlabel="epoch", ylabel="HR@10", title="one model, without and with PRISM", ylim=(0, None))
axes.xaxis.get_major_locator().set_params(integer=True)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
