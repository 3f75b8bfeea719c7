"""What PRISM's pictures show is what the latest evaluation used, on every family of backbone."""

import copy

import pytest
import torch

from recplug.plugins import Panel, get
from recplug.plugins.settings import parse_settings
from recplug.plugins.testing import HOSTS, Case
from recplug.plugins.testing.case import N_ITEMS, trained

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
POOLED = {"fusion": "sequence_pooled", "candidates": "id"}
SETTINGS = [{}, {"granularity": "sequence"}, {"fusion": "item"}, {"candidates": "id"}, POOLED, {"gate": False}]


def evaluated(host, settings):
    """A host after two steps, PRISM, the batch that it was evaluated on, and what is shown."""
    plugin = get("prism")
    case = Case(plugin, parse_settings("prism", plugin.settings, {"scale": 0.7, **settings}), host)
    built, batch = case.build(), case.batch()
    trained(built, batch)
    built.scores(batch)
    prism = built.chain.augmentations()["prism"]
    with torch.no_grad(), built.eval().chain.serving():  # as a run does when it ends: what the step kept is gone
        found = prism.diagnostics()
    return built, prism, batch, found


def fits(host, settings):
    plugin = get("prism")
    needs = plugin.requirements(parse_settings("prism", plugin.settings, settings))
    return Case(plugin, None, host).backbone().family in needs.families


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_weights_shown_are_those_that_made_the_rows(host, settings):
    if not fits(host, settings):
        pytest.skip("these settings are refused on graph backbones")
    built, prism, batch, found = evaluated(host, settings)
    table = built.backbone.items
    with torch.no_grad(), built.chain.serving():
        raw, e = table.raw, prism.experts(prism.content(torch.arange(len(table.raw))))  # [n, J, d]
        if prism.gate is None:
            assert not any("gate" in name for name in found)
            return
        if "candidate" in prism.roles:
            w = found["gate_items"]
            real = prism.real(torch.arange(len(raw)))
            expected = raw + prism.scale * torch.einsum("nj,njd->nd", w, e) * real.unsqueeze(1)
            torch.testing.assert_close(table.weight, expected, **TOLERANCE)
            assert torch.equal(found["gate_by_item"].values, w.T)
        by_history = built.backbone.family == "sequential" and "input" not in prism.by_item
        assert ("gate_histories" in found) == by_history
        if by_history:
            w, ids = found["gate_histories"], batch.sequence
            assert torch.equal(found["gate_by_history"].values, w.T)
            assert len(w) == len(ids)
            added = (table(ids) - raw[ids]) / prism.scale  # [B, L, d]
            for row, length in enumerate(batch.lengths):
                mine, items = added[row, :length], ids[row, :length]
                if settings == POOLED:
                    pooled = prism.experts(prism.content(items).mean(dim=0, keepdim=True))[0]  # [J, d]
                    torch.testing.assert_close(mine, (w[row] @ pooled).expand_as(mine), **TOLERANCE)
                elif prism.settings.granularity == "sequence":
                    torch.testing.assert_close(mine, torch.einsum("j,ljd->ld", w[row], e[items]), **TOLERANCE)
                else:  # J unknown weights a position from d equations each
                    solved = torch.linalg.lstsq(e[items].transpose(1, 2), mine.unsqueeze(-1)).solution.squeeze(-1)
                    torch.testing.assert_close(solved.mean(dim=0), w[row], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"modalities": ["text"]}, {"experts": "unique,synergy"}, {"gate": False}])
def test_pictures_have_labels_and_finite_numbers(settings):
    *_, prism, _, found = evaluated("mean-ce", settings)
    panels = {name: panel for name, panel in found.items() if isinstance(panel, Panel)}
    wanted = {"experts", "spread", "size"} | ({"responses"} if len(prism.names) > 1 else set())
    assert set(panels) == wanted | ({"gate_by_history", "gate_by_item"} if prism.gate else set())
    for panel in panels.values():
        assert panel.values.isfinite().all()
        assert len(panel.rows) == len(panel.values) == len(prism.expert_names)
        assert panel.title
        assert panel.caption
    torch.testing.assert_close(panels["experts"].values.diagonal(), torch.ones(len(prism.expert_names)))


def test_the_plain_sum_shows_its_weight_alone():
    *_, found = evaluated("mean-ce", {"experts": (), "residual": True})
    assert set(found) == {"scale"}


def test_a_record_is_of_one_evaluation_and_goes_nowhere():
    built, prism, batch, found = evaluated("mean-ce", {})
    again = trained(built, batch)
    again.scores(batch)
    assert len(prism.recorder.found["gate_histories"]) == len(batch.sequence)
    with torch.no_grad():
        again.eval()
        for _ in range(3):
            again.backbone.scores(batch)
    assert len(prism.recorder.found["gate_histories"]) == 3 * len(batch.sequence)
    assert not torch.equal(prism.recorder.found["gate_items"], found["gate_items"])
    assert copy.deepcopy(prism).recorder.found == {}
    assert not any("gate_items" in name for name in prism.state_dict())
    assert found["gate_items"].shape == (N_ITEMS, 4)
