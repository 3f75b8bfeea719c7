"""Whitened content beside every item's row (after WhitenRec, arXiv 2402.10602): a whole plugin in one module."""

import torch
from torch import nn

from recplug.plugins import Augmentation, Plugin, PluginSettings, Requirements, hookimpl, setting


class WhitenSettings(PluginSettings):
    scale: float = setting(1.0, "Weight of the content beside the item's own row.", search=[0.1, 1.0])
    epsilon: float = setting(1e-3, "Added to the covariance's eigenvalues.", gt=0)


class Whiten(Augmentation):
    """Adds a projection of every modality's vectors, made uncorrelated and of equal variance."""

    by_item = frozenset({"input", "candidate"})  # a row depends on the item alone: the chain computes it once a step

    def __init__(self, settings, context):
        super().__init__()
        self.scale = settings.scale
        parts = [whitened(m.values.float(), m.present, settings.epsilon) for m in context.modalities.values()]
        rows = torch.zeros(context.n_rows["items"], sum(part.shape[1] for part in parts))
        rows[: context.n_items] = torch.cat(parts, dim=1)
        self.register_buffer("rows", rows, persistent=False)  # made from the data, so not saved
        self.project = nn.Linear(rows.shape[1], context.width["items"], bias=False)

    def items(self, rows, ids, *, role, sequence):
        return rows + self.scale * self.project(self.rows[ids]).to(rows.dtype)


def whitened(values, present, epsilon):
    """``values [n, d]`` with unit covariance over the items that have a vector, zero for the others."""
    centred = values - values[present].mean(dim=0)
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(values[present].T))
    return centred @ (vectors / (eigenvalues + epsilon).sqrt()) * present.unsqueeze(1)


@hookimpl
def recplug_plugin():
    return Plugin(
        name="whiten",
        summary="whitened content beside every item's row",
        paper="after WhitenRec, arXiv 2402.10602",
        settings=WhitenSettings,
        requirements=lambda settings: Requirements(seams=frozenset({"items"}), modalities=1),
        build=Whiten,
        identity={"scale": 0.0},
    )
