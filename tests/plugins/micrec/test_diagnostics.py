import pytest
import torch

from recplug.plugins.contract import Modality, Panel
from recplug.plugins.micrec.diagnostics import ROUTES, skewness
from recplug.plugins.testing.case import COLD_ITEM, LONELY_USER, step_loss, trained

HOSTS = ["mean-ce", "graph-bpr", "nodes-bpr"]


def seen(host):
    host.eval()
    with torch.no_grad(), host.chain.asking() as step, host.chain.serving(step):
        if hasattr(host.backbone, "adjacency"):
            host.backbone()
        (micrec,) = host.chain.augmentations().values()
        return micrec.diagnostics()


def vectors_of(host, module_of):
    """What each side is ranked by."""
    host.eval()
    with torch.no_grad(), host.chain.asking() as step, host.chain.serving(step):
        if hasattr(host.backbone, "adjacency"):
            host.backbone()
        return module_of(host).final_vectors()


def test_skewness_by_hand():
    assert skewness(torch.tensor([1, 1, 1, 1])) == 0
    # mean 1, deviations -1 -1 -1 3: third moment 6, second 3
    assert skewness(torch.tensor([0, 0, 0, 4])) == pytest.approx(6 / 3**1.5)
    assert skewness(torch.tensor([1, 2, 3])) == pytest.approx(0)


@pytest.mark.parametrize("host", HOSTS)
def test_panels_of_one_domain(make, host):
    case = make(host)
    found = seen(trained(case.build(), case.batch()))
    expected = {"routes", "exponent", "hubs_items", "lengths"} | ({"hubs_users"} if host != "mean-ce" else set())
    assert set(found) == expected
    assert found["exponent"].item() == pytest.approx(1 - 0.99 / 2)
    for panel in found.values():
        if isinstance(panel, Panel):
            assert panel.values.isfinite().any()
            assert panel.caption
            assert "\n" not in panel.caption
    assert torch.allclose(found["routes"].values.sum(dim=1), torch.ones(2))


@pytest.mark.parametrize("host", HOSTS)
def test_panels_of_two_domains(make, host):
    case = make(host, source=True)
    found = seen(trained(case.build(), case.batch()))
    people = found["people"]
    assert people.rows == ("used", "held out")
    values = dict(zip(people.columns, people.values.T.tolist(), strict=True))
    assert all(0 <= share <= 1 for share in values["match"])
    assert all(0 <= distance <= 4 for distance in values["alignment"])
    assert all(0 <= share <= 1 for share in values["place"])
    assert found["cka"].shape == (2,)
    assert ((found["cka"] >= 0) & (found["cka"] <= 1 + 1e-6)).all()


def test_links_that_are_used_are_aligned_by_training(make):
    """What the contrast is for, on people used in it; an untrained model is the control."""
    case = make("graph-bpr", source=True, warm_up=0, temperature=0.1)
    host = case.build()
    before = seen(host)["people"].values[0]
    optimiser = torch.optim.Adam(host.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        step_loss(host, case.batch()).backward()
        optimiser.step()
    after = dict(zip(seen(host)["people"].columns, seen(host)["people"].values[0].tolist(), strict=True))
    assert after["match"] == 1
    assert after["alignment"] < 0.5 * before[0]


@pytest.mark.parametrize("host", ["mean-ce", "graph-bpr", "nodes-bpr", "decoder-sum"])
@pytest.mark.parametrize("isolated", ["borrow", "keep"])
def test_routes_are_those_by_which_vectors_came(make, module_of, host, isolated):
    """Seen from outside: other content moves exactly those that are said to have theirs from it, of those without any
    interactions."""
    case = make(host, isolated=isolated)
    edges = case.edges()
    edges = edges[:, edges[1] != 11]
    built = case.build(edges=edges)
    built.scores(case.batch())
    shown = module_of(built).routes()
    assert seen(built)["routes"].rows == tuple(shown)
    items = shown["items"]
    assert ROUTES[items[11]] == "content"
    assert ROUTES[items[COLD_ITEM]] == "global"
    assert ROUTES[items[edges[1, 0]]] == "warm"
    if "users" in shown:
        assert ROUTES[shown["users"][LONELY_USER]] == "global"
    other = {name: Modality(name, each.values.flip(1), each.present) for name, each in case.modalities().items()}
    changed = case.build(edges=edges, modalities=other)
    changed.scores(case.batch())
    for side in shown:
        before, after = (vectors_of(each, module_of)[side] for each in (built, changed))
        moved = (before[1 : len(after)] != after[1:]).any(dim=1)
        unknown = ~module_of(built).known[side][1 : len(after)]
        assert torch.equal(moved[unknown], (shown[side][1 : len(after)] == ROUTES.index("content"))[unknown])


def test_lengths_by_degree_are_medians(make, module_of):
    case = make("graph-bpr")
    host = case.build()
    panel = seen(host)["lengths"]
    micrec = module_of(host)
    with torch.no_grad(), host.eval().chain.asking() as step:
        length = step.table("items").norm(dim=1)
    some = (micrec.degrees["items"] >= 1) & (micrec.degrees["items"] <= 2)
    assert panel.values[panel.rows.index("items"), panel.columns.index("1-2")] == pytest.approx(length[some].median())
