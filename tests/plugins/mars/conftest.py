"""MARS on the toy data, whose items lack profiles, values, content or interactions, with what a slow loop needs."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from recplug.plugins import get
from recplug.plugins.nn.content import directions
from recplug.plugins.settings import parse_settings
from recplug.plugins.testing.case import Case


def settings_of(**values):
    plugin = get("mars")
    return parse_settings("mars", plugin.settings, values)


def make(host="graph-bpr", *, moved=True, factors=None, content=None, **values):
    """A toy with MARS, every parameter away from its start unless ``moved`` is False; its case; MARS."""
    case = Case(get("mars"), settings_of(**values), host)
    built = case.build(factors=factors, modalities=content)
    mars = built.chain.augmentations()["mars"]
    if moved:
        generator = torch.Generator().manual_seed(9)
        with torch.no_grad():
            for parameter in mars.parameters():
                parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return SimpleNamespace(host=built, mars=mars, case=case, batch=case.batch(), edges=case.edges())


def held(profiles, k, item):
    """The values of factor k that an item has, numbered through all factors."""
    low, high = profiles.offsets[k], profiles.offsets[k + 1]
    pairs = zip(profiles.items.tolist(), profiles.values.tolist(), strict=True)
    return [v for i, v in pairs if i == item and low <= v < high]


def slow_x(toy, ids):
    """X, row by row, and its blocks (ids first), in float64."""
    content, settings = toy.mars.fusion.content, toy.mars.settings
    blocks = [ids.double() if content.of_ids is None else ids.double() @ content.of_ids.weight.double().T]
    for index, name in enumerate(content.names):
        modality = toy.case.modalities()[name]
        along = None if settings.content_width is None else directions(modality, settings.content_width)
        block = torch.zeros_like(blocks[0])
        for item in range(len(modality.values)):
            if modality.present[item]:
                vector = modality.values[item].double()
                vector = vector if settings.content_scale is None else F.normalize(vector, dim=0)
                vector = vector if along is None else vector @ along.double()
                block[item] = content.project[index].weight.double() @ vector
        blocks.append(block)
    return sum(blocks), blocks


def slow_branches(toy, x, item):
    """``[K + 1, d]`` of one item, structure first, and which there are; loops over neighbours, values and items."""
    mars, profiles = toy.mars, toy.mars.profiles
    settings, fusion = mars.settings, mars.fusion
    found = torch.zeros(len(profiles.factors) + 1, x.shape[1], dtype=torch.float64)
    have = torch.zeros(len(found), dtype=torch.bool)
    if fusion.structure is not None:
        for near, weight in enumerate(fusion.structure.dense()[item].tolist()):
            found[0] += weight * x[near]
            have[0] |= weight > 0
    for k, factor in enumerate(profiles.factors):
        means = []
        for value in held(profiles, k, item):
            if settings.other == "isolate" and factor.other is not None and value == profiles.offsets[k] + factor.other:
                continue
            group = [i for i in range(profiles.n_items) if value in held(profiles, k, i)]
            loud = len(group) ** 0.5 if settings.strength == "root" else 1.0
            free = None if fusion.free is None else fusion.free[value].double()
            means.append(loud * x[group].mean(dim=0) if free is None else free)
        if means and settings.pool != "none":
            found[k + 1] = torch.stack(means).mean(dim=0)
            have[k + 1] = True
    return found, have


def slow_weights(toy, x, have):
    """The gate of one item ``[K + 1]``."""
    gate, beside = toy.mars.fusion.gate, []
    if toy.mars.settings.factor_weight is not None:
        beside, have = [have[:1].double()], have[1:]
    logits = torch.zeros(len(have), dtype=torch.float64) if gate.weight is None else gate.weight.double() @ x
    powers = torch.stack([torch.exp(logit) * there for logit, there in zip(logits, have, strict=True)])
    share = toy.mars.settings.factor_weight if beside else 1.0
    return torch.cat([*beside, share * powers / sum(powers).clamp(min=1e-30)])


@torch.no_grad()
def slow(toy, ids):
    """Everything, item by item: X, branches ``[n, K + 1, d]``, weights and H."""
    x, blocks = slow_x(toy, ids)
    branches, weights = [], []
    for item in range(len(x)):
        found, have = slow_branches(toy, x, item)
        branches.append(found)
        weights.append(slow_weights(toy, x[item], have))
    branches, weights = torch.stack(branches), torch.stack(weights)
    h = x if toy.mars.settings.h == "x" else torch.einsum("ik,ikd->id", weights, branches)
    return SimpleNamespace(x=x, blocks=blocks, branches=branches, weights=weights, h=h)


@pytest.fixture(scope="session")
def mars():
    """``make``, ``settings`` and the slow loops."""
    return SimpleNamespace(
        make=make,
        settings=settings_of,
        slow=slow,
        slow_x=slow_x,
        slow_branches=slow_branches,
        slow_weights=slow_weights,
        held=held,
    )
