"""
Write a plugin
==============

A plugin is settings, a module, and one hook: forty lines. The one on this page adds to every item a projection of its
content, times a gate that it learns from how often training has seen the item: what is known well may need less of it.
It draws one picture, and checks of its own come with the package.

To share it, put the same lines into a package with one entry point: :doc:`../plugins` has one.
"""

# %%
# The plugin
# ----------
# ``setting`` describes a key of the command line (``--gated.scale``) with its limits; a typing mistake there is an
# error before anything is trained. ``by_item`` says that a row depends on the item alone, so that it is computed once a
# step. ``identity`` are the settings at which nothing is added: the tests hold the plugin to it, to the bit.

import tempfile
import types
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import nn

from recplug.adapters.recbole import run
from recplug.plugins import Augmentation, Panel, Plugin, PluginSettings, Requirements, hookimpl, setting


class GatedSettings(PluginSettings):
    scale: float = setting(1.0, "Weight of the content beside the item's own row.", ge=0, search=[0.1, 1.0])


class Gated(Augmentation):
    by_item = frozenset({"input", "candidate"})

    def __init__(self, settings, context):
        super().__init__()
        self.scale = settings.scale
        parts = [m.values.float() * m.present.unsqueeze(1) for m in context.modalities.values()]
        content = torch.zeros(context.n_rows["items"], sum(part.shape[1] for part in parts))
        content[: context.n_items] = torch.cat(parts, dim=1)
        seen = torch.bincount(context.edges[1].cpu(), minlength=context.n_rows["items"]).float().log1p()
        self.register_buffer("content", content, persistent=False)  # made from the data, so not saved
        self.register_buffer("seen", seen, persistent=False)
        self.project = nn.Linear(content.shape[1], context.width["items"], bias=False)
        self.slope, self.level = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def gate(self, ids):  # [...] -> [...]
        return torch.sigmoid(self.slope * self.seen[ids] + self.level)

    def items(self, rows, ids, *, role, sequence):  # rows [..., d], ids [...]
        added = self.gate(ids).unsqueeze(-1) * self.project(self.content[ids])
        return rows + self.scale * added.to(rows.dtype)

    def diagnostics(self):
        times = torch.arange(0, 101, 5)
        gate = torch.sigmoid(self.slope.cpu() * times.float().log1p() + self.level.cpu()).detach()
        caption = "The share of an item's content that is used. A line that falls says: what is known well needs less."
        x, y = "training interactions of the item", "gate"
        title = "How much content an item gets"
        columns = tuple(map(str, times.tolist()))
        return {"gate": Panel(gate[None], "curves", title, caption, ("gate",), columns, x, y, limits=(0.0, 1.0))}


@hookimpl
def recplug_plugin():
    return Plugin(
        name="gated",
        summary="content beside every item's row, through a gate",
        paper="none; an example",
        settings=GatedSettings,
        requirements=lambda settings: Requirements(seams=frozenset({"items"}), modalities=1),
        build=Gated,
        identity={"scale": 0.0},
    )


# %%
# Make it known
# -------------
# An installed package is found by its entry point. Within a script, a module is made known by hand; this one is empty
# but for the hook.

from recplug.plugins import get
from recplug.plugins.registry import manager

module = types.ModuleType("gated")
module.recplug_plugin = recplug_plugin
manager().register(module)
print(get("gated").summary)

# %%
# Does it keep the contract?
# --------------------------
# Shapes, the padding row, identity, missing vectors, another order of items, copies and checkpoints, autocast, a batch
# of one, no leaks: every rule, on toy backbones of each kind. It says nothing where all is well.

from recplug.plugins.testing import check_plugin

check_plugin(get("gated"))

# %%
# Train with it
# -------------
# From here on it is a plugin like any other: with ``--plugin prism,gated`` it would act after PRISM.

folder = Path(tempfile.mkdtemp()) / "gated"
settings = {"epochs": 8, "train_batch_size": 1024, "show_progress": False, "gated": {"scale": 1.0}}
result = run("SASRec", plugins="gated", config_dict=settings, output_dir=folder)
added = sum(result.result["parameters"]["plugins"].values())
print(f"ndcg@10 {result.test_result['ndcg@10']:.4f} after 8 epochs; {added:,} parameters of its own")

# %%
# What it learned
# ---------------
# The run directory has the picture, with its caption, and its numbers. It starts as a level line at one half; where it
# ends after 8 epochs says more about the time than about the data.

picture = plt.imread(folder / "diagnostics" / "gated.gate.png")
figure, axes = plt.subplots(figsize=(8, 8 * picture.shape[0] / picture.shape[1]), layout="constrained")
axes.imshow(picture)
axes.axis("off")
plt.show()
