"""Pictures against direct formulas: what is drawn is what the module does."""

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from recplug.plugins.contract import Context, Modality, Panel
from recplug.plugins.nn.propagation import lightgcn
from recplug.plugins.ssr import diagnostics
from recplug.plugins.ssr.diagnostics import band_names
from recplug.plugins.ssr.operator import CrossBand
from recplug.plugins.ssr.plugin import build
from recplug.plugins.ssr.settings import SsrSettings
from recplug.plugins.step import Batch

USERS, ITEMS, D = 14, 12, 4
SETTINGS = {
    "bands": 3,
    "engine": "spectral",
    "order": 6,
    "item_neighbours": 3,
    "image_weight": 0.3,
    "item_source": "nodes",
    "fusion": "cp",
    "fusion_rank": 2,
}


def content(names):
    present = torch.arange(ITEMS) > 0
    generator = torch.Generator().manual_seed(1)
    found = {}
    for index, name in enumerate(names):
        have = present & (torch.arange(ITEMS) != 2 + index)
        found[name] = Modality(name, torch.randn(ITEMS, 3 + index, generator=generator) * have.unsqueeze(1), have)
    return found


def make(host="nodes", names=("image", "text"), modalities=None, **settings):
    """In evaluation, with every parameter away from its start, and nodes that the evaluation has seen."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.stack([torch.randint(1, n, (70,), generator=generator) for n in (USERS, ITEMS)])
    width = {"items": D} if host == "sequence" else {"items": D, "users": D}
    context = Context(
        host="Toy",
        family="sequential" if host == "sequence" else "graph",
        n_users=USERS,
        n_items=ITEMS,
        n_rows={"items": ITEMS, "users": USERS},
        width={**width, "propagated": D} if host == "nodes" else width,
        free_width=host == "nodes",
        edges=edges,
        modalities=content(names) if modalities is None else modalities,
        propagate=functools.partial(lightgcn, layers=2),
    )
    torch.manual_seed(0)
    ssr = build(SsrSettings(**(SETTINGS | settings)), context)
    for parameter in ssr.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    ssr.eval()
    users, items = torch.randn(USERS, D, generator=generator), torch.randn(ITEMS, D, generator=generator)

    def table(side):
        both = ssr.tables(users if ssr.n_users else None, items)
        return both[side == "items"]

    ssr.step = SimpleNamespace(kind="evaluation", batch=Batch(), memory={}, table=table)
    nodes = torch.cat([users[: ssr.n_users], items])
    if host == "nodes":
        ssr.propagated(users, items)
    return ssr, nodes


def bands_of(ssr, nodes):
    """``[N, M, P, d]``: of the signal and of every content, one after the other."""
    signals = ssr.beside(ssr.signals(nodes)[1], None).detach().unbind(dim=1)
    return torch.stack([ssr.decomposition(x) for x in signals], dim=2)


HOSTS = ["nodes", "tables", "sequence"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("content", ["vectors", "encoders"])
def test_what_is_shown_is_what_the_scores_were_made_of(host, content, monkeypatch):
    """The bands that the evaluation mixed are drawn, not others that are computed anew."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(CrossBand, "forward", spy(CrossBand.forward, seen))
        ssr, _ = make(host, content=content)
        ssr.evaluated()  # on tables, this asks for them
    (used,) = seen
    shown = []
    monkeypatch.setattr(diagnostics, "energy", lambda s, *_: shown.append(s) or Panel(s, "bars", "", ""))
    monkeypatch.setattr(ssr.decomposition, "forward", None)  # nothing is decomposed again
    ssr.diagnostics()
    assert shown[0] is used


def spy(forward, seen):
    def watched(self, s, context):
        seen.append(s)
        return forward(self, s, context)

    return watched


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("engine", ["spectral", "polynomial"])
def test_energy_and_overlap_are_the_bands(host, engine):
    ssr, nodes = make(host, engine=engine)
    found, s = ssr.diagnostics(), bands_of(ssr, nodes)
    for block in range(3):
        energy = torch.stack([s[:, m, block].square().sum() for m in range(3)])
        torch.testing.assert_close(found["energy"].values[block], energy / energy.sum(), rtol=1e-4, atol=1e-5)
        overlap = 1 - energy.sum() / s[:, :, block].sum(dim=1).square().sum()
        torch.testing.assert_close(found["overlap"][block], overlap, rtol=1e-3, atol=1e-4)
        assert (abs(overlap) < 1e-4) == (engine == "spectral")
    assert found["energy"].rows == ("backbone", "image", "text")
    assert torch.equal(found["edges"], ssr.decomposition.edges)


@pytest.mark.parametrize("host", HOSTS)
@torch.no_grad()
def test_importance_is_what_changes_without_a_band(host, monkeypatch):
    monkeypatch.setattr(diagnostics, "TOP", 5)
    ssr, nodes = make(host)
    panel, s = ssr.diagnostics()["importance"], bands_of(ssr, nodes)
    context = ssr.beside(ssr.signals(nodes)[0], None).flatten(1)
    full = ssr.join(ssr.cross(s, context), None)
    for band in range(3):
        less = s.clone()
        less[:, band] = 0
        without = ssr.join(ssr.cross(less, context), None)
        assert float(panel.values[0, band]) == pytest.approx(float((full - without).norm() / full.norm()), rel=1e-4)
        if host == "sequence":
            continue
        moved = []
        for user in range(1, USERS):
            best, others = [
                sorted(range(1, ITEMS), key=lambda i: -float(x[user] @ x[USERS + i]))[:5] for x in (full, without)
            ]
            moved.append(1 - len(set(best) & set(others)) / 5)
        assert float(panel.values[1, band]) == pytest.approx(sum(moved) / len(moved), abs=1e-5)
    assert len(panel.values) == len(panel.rows) == (1 if host == "sequence" else 2)


@pytest.mark.parametrize("host", HOSTS)
def test_coherence_is_the_mean_cosine_of_items_that_have_both(host):
    ssr, nodes = make(host)
    panel, s = ssr.diagnostics()["coherence"], bands_of(ssr, nodes)
    both = [ssr.n_users + i for i in range(1, ITEMS) if i not in (2, 3)]
    for m in range(3):
        own = [F.cosine_similarity(s[i, m, 1], s[i, m, 2], dim=0) for i in both]
        torch.testing.assert_close(panel.values[0, m], torch.stack(own).mean(), rtol=1e-4, atol=1e-4)
        other = [
            F.cosine_similarity(s[i, m, 1], s[j, m, 2], dim=0) for i, j in zip(both, [both[-1], *both], strict=False)
        ]
        torch.testing.assert_close(panel.values[1, m], torch.stack(other).mean(), rtol=1e-4, atol=1e-4)


def test_coupling_is_the_operator_s():
    ssr, _ = make(bands=2)
    panel = ssr.diagnostics()["coupling"]
    mix = ssr.cross.mix
    t = torch.einsum("mr,pr,nr,qr,rd->mpnqd", mix.a, mix.c, mix.b, mix.e, mix.v).detach()
    torch.testing.assert_close(panel.values, t.square().mean(dim=-1).sqrt().flatten(0, 1).flatten(1))
    strength = float((t.square().mean(dim=-1).sum() / 6).sqrt())
    assert f"{strength:.3f} times the identity" in panel.caption
    assert panel.rows == panel.columns
    assert panel.rows[1] == "band 1 (low), image"


@pytest.mark.parametrize("engine", ["spectral", "polynomial", "legacy_cheb"])
def test_responses_are_the_curves_that_are_applied(engine):
    """At the eigenvalues that stand below them."""
    ssr, _ = make(engine=engine)
    panel = ssr.diagnostics()["responses"]
    torch.testing.assert_close(panel.values.sum(dim=0), torch.ones(diagnostics.POINTS), rtol=1e-4, atol=1e-4)
    grid = torch.tensor([float(x) for x in panel.columns])
    torch.testing.assert_close(panel.values, ssr.decomposition.responses(grid), rtol=1e-3, atol=1e-3)
    if engine != "legacy_cheb":
        assert panel.limits[0] <= panel.values.min() <= panel.values.max() <= panel.limits[1]


def test_bands_have_names():
    assert band_names(1) == ("band 1",)
    assert band_names(2) == ("band 1 (low)", "band 2 (high)")
    assert band_names(3) == ("band 1 (low)", "band 2", "band 3 (high)")


EVERYTHING = {"edges", "responses", "energy", "overlap", "importance", "coherence", "coupling"}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("names", "settings", "missing"),
    [
        (("image", "text"), {}, ()),
        (("image", "text", "audio"), {"gate": True}, ()),
        (("text",), {}, ("coherence",)),
        ((), {"bands": 2}, ("coherence",)),
        (("image", "text"), {"fusion": "sum"}, ("coupling",)),
        (("image", "text"), {"fusion": "colsoftmax"}, ()),
        (("image", "text"), {"bands": 1}, ("responses", "importance", "coherence")),
        ((), {"bands": 1, "fusion": "sum"}, ("responses", "energy", "overlap", "importance", "coherence", "coupling")),
    ],
    ids=str,
)
def test_there_is_a_picture_of_everything_that_there_is(host, names, settings, missing):
    ssr, _ = make(host, names, **settings)
    state = torch.get_rng_state()
    found = ssr.diagnostics()
    assert found.keys() == EVERYTHING - set(missing)
    assert torch.equal(torch.get_rng_state(), state)
    assert ssr.noise._generator is ssr.choice._generator is None
    for each in found.values():
        values = each.values if isinstance(each, Panel) else each
        assert values.isfinite().all()
        assert not values.requires_grad
        if isinstance(each, Panel):
            assert each.caption.endswith(".")
            assert len(each.rows) == len(values)
            assert len(each.columns) == values.shape[1]
            assert each.title
    again = ssr.diagnostics()
    assert all(
        torch.equal(*((x.values if isinstance(x, Panel) else x) for x in (found[name], again[name]))) for name in found
    )


@pytest.mark.parametrize("host", HOSTS)
def test_without_an_evaluation_there_are_the_curves_alone(host):
    ssr, _ = make(host)
    ssr.step = None
    assert ssr.diagnostics().keys() == {"edges", "responses"}


def test_modalities_that_share_no_item_are_not_compared():
    apart = content(("image", "text"))
    halves = {}
    for index, (name, each) in enumerate(apart.items()):
        have = each.present & (torch.arange(ITEMS) % 2 == index)
        halves[name] = Modality(name, each.values * have.unsqueeze(1), have)
    ssr, _ = make(modalities=halves)
    assert "coherence" not in ssr.diagnostics()
