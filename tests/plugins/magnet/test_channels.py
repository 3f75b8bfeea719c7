import logging

import pytest
import torch

from recplug.plugins.magnet.channels import Channels, telling
from recplug.plugins.nn.knn import item_graph, kneighbours

N_USERS, N_ITEMS = 601, 361


def world(told):
    """Items in six groups by their content; people have items of one group, or any."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(N_ITEMS) % 6
    users = torch.arange(1, N_USERS).repeat_interleave(20)
    items = torch.randint(1, N_ITEMS, (len(users),), generator=generator)
    if told:
        items = (items - group[items] + users % 6).clamp(1, N_ITEMS - 1)
    return torch.stack([users, items]), group


def made(modalities, group=None):
    content = modalities(N_ITEMS)
    if group is not None:
        values = torch.nn.functional.one_hot(group, 6).float() + 0.01 * torch.randn(N_ITEMS, 6)
        content[0] = type(content[0])("image", values * content[0].present.unsqueeze(1), content[0].present)
    graphs = {}
    for m in content:
        found = kneighbours(m.values, m.present, 4, include_self=True)
        graphs[m.name] = item_graph({m.name: found}, {m.name: 1.0}, n_rows=N_ITEMS)
    return content, graphs


def test_channels_are_means_over_neighbours(modalities):
    content, graphs = made(modalities)
    channels, table = Channels(list(graphs.values())), torch.randn(N_ITEMS, 5)
    found = channels(table)
    for m, modality in enumerate(content):
        near = kneighbours(modality.values, modality.present, 4, include_self=True)
        for i in range(N_ITEMS):
            own = near.index[i][near.valid[i]]
            expected = table[own].mean(dim=0) if len(own) else torch.zeros(5)
            assert torch.allclose(found[i, m], expected, atol=1e-6)
            assert bool(channels.present[i, m]) == (len(own) > 0)


def test_content_that_tells_nothing_is_left_out_and_named(modalities, caplog):
    edges, group = world(told=True)
    content, graphs = made(modalities, group)
    with caplog.at_level(logging.INFO, "recplug"):
        found = telling(content, graphs, edges, n_users=N_USERS)
    assert [m.name for m in found] == ["image"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("magnet: text is left out")
    share = float(line.split(" together ")[1].split(" times")[0])
    assert share == pytest.approx(slow_ratio(graphs["text"], edges), abs=0.006)
    assert telling(content, graphs, world(told=False)[0], n_users=N_USERS) == []


def slow_ratio(graph, edges):
    has = torch.zeros(N_USERS, N_ITEMS, dtype=torch.float64)
    has[edges[0], edges[1]] = 1.0
    together, degree = has.T @ has, has.sum(dim=0)
    off = 1.0 - torch.eye(N_ITEMS, dtype=torch.float64)
    near, chance = (graph.dense() > 0) * off, degree[:, None] * degree
    return float((together * near).sum() / (chance * near).sum() / ((together * off).sum() / (chance * off).sum()))


def test_few_interactions_are_no_evidence_against_content(modalities):
    content, graphs = made(modalities)
    edges = world(told=False)[0][:, :60]
    assert telling(content, graphs, edges, n_users=N_USERS) == content


def test_where_nothing_tells_the_backbone_stands(make, module_of, monkeypatch, caplog):
    monkeypatch.setattr("recplug.plugins.magnet.plugin.telling", lambda *args, **kwargs: [])
    case = make("nodes-bpr", mode="pair")
    with caplog.at_level(logging.INFO, "recplug"):
        host = case.build().eval()
    assert module_of(host).settings.inert
    assert "content says nothing of who has what here; nodes-bpr's own scores stand" in caplog.text
    batch = case.batch()
    assert torch.equal(host.scores(batch), case.backbone().eval().scores(batch))
