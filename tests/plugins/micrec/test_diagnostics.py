import pytest
import torch

from recplug.plugins.contract import Panel
from recplug.plugins.micrec.diagnostics import ROUTES, routes, skewness
from recplug.plugins.testing.case import COLD_ITEM, LONELY_USER, step_loss, trained

HOSTS = ["mean-ce", "graph-bpr", "nodes-bpr"]


def seen(host):
    host.eval()
    with torch.no_grad(), host.chain.asking() as step, host.chain.serving(step):
        if hasattr(host.backbone, "adjacency"):
            host.backbone()
        (micrec,) = host.chain.augmentations().values()
        return micrec.diagnostics()


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


def test_routes_are_told_by_node(make, module_of):
    case = make("nodes-bpr")
    edges = case.edges()
    edges = edges[:, edges[1] != 11]
    micrec = module_of(case.build(edges=edges))
    items = routes(micrec, "items")
    assert ROUTES[items[11]] == "content"
    assert ROUTES[items[COLD_ITEM]] == "global"
    assert ROUTES[items[edges[1, 0]]] == "warm"
    assert ROUTES[routes(micrec, "users")[LONELY_USER]] == "global"


def test_lengths_by_degree_are_medians(make, module_of):
    case = make("graph-bpr")
    host = case.build()
    panel = seen(host)["lengths"]
    micrec = module_of(host)
    with torch.no_grad(), host.eval().chain.asking() as step:
        length = step.table("items").norm(dim=1)
    some = (micrec.degrees["items"] >= 1) & (micrec.degrees["items"] <= 2)
    assert panel.values[panel.rows.index("items"), panel.columns.index("1-2")] == pytest.approx(length[some].median())
