"""The kit can fail: for every check an augmentation that breaks its rule, and one that breaks none."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recplug.plugins import Augmentation, Plugin, PluginSettings, RecplugError, Requirements, setting
from recplug.plugins.nn import Noise
from recplug.plugins.testing import CHECKS, HOSTS, BrokenContract, cases, check_plugin


class Settings(PluginSettings):
    scale: float = setting(0.5, "Weight of the content.")
    penalty: float = setting(0.1, "Weight of the loss.")


class Sound(Augmentation):
    """Adds projected content to every row, with noise of its own, and a penalty on its projection."""

    by_item = frozenset({"candidate"})

    def __init__(self, settings, context):
        super().__init__()
        self.settings = settings
        modality = context.modalities["image"]
        self.register_buffer("values", modality.values * modality.present.unsqueeze(-1), persistent=False)
        self.project = nn.Linear(modality.width, context.width["items"], bias=False)
        self.noise = Noise(context.seed)

    def content(self, ids):
        return self.project(self.values[ids.clamp(max=len(self.values) - 1)])

    def items(self, rows, ids, *, role, sequence):
        return rows + self.settings.scale * self.noise.dropout(self.content(ids), 0.5).to(rows.dtype)

    def losses(self, step):
        return {"penalty": self.settings.penalty * self.content(step.asked()).square().mean()}


class WrongShape(Sound):
    def items(self, rows, ids, *, role, sequence):
        return super().items(rows, ids, role=role, sequence=sequence).double()


class ReadsHistory(Sound):
    by_item = frozenset({"input"})

    def items(self, rows, ids, *, role, sequence):
        return rows if sequence is None else rows + 0.1 * rows[:, :1]


class InPlace(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows.add_(1.0)


class CountsIds(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows + 0.01 * ids.unsqueeze(-1)


class ReadsAbsent(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.values = context.modalities["image"].values


class AlwaysOn(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows + 1e-6 * self.content(ids)


class KeepsGraph(Sound):
    def items(self, rows, ids, *, role, sequence):
        self.last = super().items(rows, ids, role=role, sequence=sequence)
        return self.last


class Forgetful(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.calls = 0

    def items(self, rows, ids, *, role, sequence):
        self.calls += self.training
        return rows * (1.0 + 0.01 * self.calls)


class Unpicklable(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.activation = lambda x: x


class MixesTypes(Sound):
    def items(self, rows, ids, *, role, sequence):
        content = self.content(ids).reshape(-1, rows.shape[-1])
        return rows + torch.zeros_like(rows).reshape(content.shape).index_add(
            0, torch.arange(len(content), device=rows.device), content
        ).reshape(rows.shape)


class BatchStatistics(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.norm = nn.BatchNorm1d(context.width["items"])

    def items(self, rows, ids, *, role, sequence):
        return self.norm(rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)


class NoisyEvaluation(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows + 0.1 * self.noise.normal(rows)


class UnseededStart(Sound):
    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.scale = nn.Parameter(torch.tensor(random.random()))


class HostsRandomness(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows + F.dropout(self.content(ids), 0.5, self.training)


class ReadsTarget(Sound):
    def items(self, rows, ids, *, role, sequence):
        target = None if self.step is None else self.step.batch.positives
        if role == "candidate" or target is None:
            return rows
        return rows + 0.1 * self.step.table("items")[target].unsqueeze(1)


class ReadsFuture(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows if sequence is None else rows + rows.mean(dim=(0, 1))


class MakesTensors(Sound):
    def items(self, rows, ids, *, role, sequence):
        return rows * torch.full((rows.shape[-1],), 2.0)


BREAKS = {
    "seams": Sound,  # with a declaration that is wrong
    "shapes": WrongShape,
    "by_item": ReadsHistory,
    "padding": InPlace,
    "permutation": CountsIds,
    "missing": ReadsAbsent,
    "identity": AlwaysOn,
    "deepcopy": KeepsGraph,
    "state_dict": Forgetful,
    "pickle": Unpicklable,
    "autocast": MixesTypes,
    "batch_of_one": BatchStatistics,
    "evaluation": NoisyEvaluation,
    "construction": UnseededStart,
    "host_dropout": HostsRandomness,
    "no_target": ReadsTarget,
    "no_future": ReadsFuture,
    "device": MakesTensors,
}


def plugin_of(augmentation, seams=("items", "losses")):
    return Plugin(
        name="mine",
        summary="",
        paper="",
        settings=Settings,
        requirements=lambda settings: Requirements(seams=frozenset(seams), modalities=1),
        build=augmentation,
        identity={"scale": 0.0, "penalty": 0.0},
    )


def test_every_check_has_a_plugin_that_breaks_it():
    assert set(BREAKS) == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("host", HOSTS)
def test_a_sound_plugin_passes(name, host):
    (case,) = cases(plugin_of(Sound), hosts=[host])
    CHECKS[name](case)


@pytest.mark.parametrize("name", CHECKS)
def test_a_broken_plugin_is_caught(name):
    seams = ("items",) if name == "seams" else ("items", "losses")
    (case,) = cases(plugin_of(BREAKS[name], seams), hosts=["mean-ce"])
    with pytest.raises(BrokenContract, match=r"^mine on mean-ce: .+; .+$") as caught:
        CHECKS[name](case)
    assert "\n" not in str(caught.value)


def test_all_broken_rules_are_listed():
    with pytest.raises(BrokenContract) as caught:
        check_plugin(plugin_of(MakesTensors), hosts=["mean-ce", "gru-bpr"])
    lines = str(caught.value).splitlines()
    assert any(line.startswith("mine on mean-ce: every tensor made inside a step") for line in lines)
    assert any(line.startswith("mine on gru-bpr: every tensor made inside a step") for line in lines)


def test_the_callers_random_state_is_left_alone():
    before = torch.get_rng_state()
    check_plugin(plugin_of(Sound), hosts=["mean-ce"])
    assert torch.equal(before, torch.get_rng_state())


def test_what_the_toys_cannot_offer_is_said():
    with pytest.raises(RecplugError, match=r"do not offer \['score'\]"):
        check_plugin(plugin_of(Sound, ("score",)))
    with pytest.raises(RecplugError, match=r"scael.*did you mean 'scale'"):
        check_plugin(plugin_of(Sound), {"scael": 1.0})
