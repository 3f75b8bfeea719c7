"""SSR as a whole against slow loops, on a small graph with every oddity: cold and isolated nodes, missing content."""

import copy
import functools
import io
import itertools
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recplug.plugins.contract import Context, Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.knn import cooccurrence
from recplug.plugins.nn.propagation import lightgcn
from recplug.plugins.ssr import hosts as ssr_hosts
from recplug.plugins.ssr import module as ssr_module
from recplug.plugins.ssr.hosts import SsrNodes, SsrTables
from recplug.plugins.ssr.plugin import build
from recplug.plugins.ssr.settings import SsrSettings
from recplug.plugins.step import Batch

USERS, ITEMS, D = 7, 9, 4  # user 0 and item 0 are padding
N = USERS + ITEMS
ALONE_USER, COLD_ITEM, BARE_ITEM = 6, 8, 7  # without edges, without edges but with content, without content
EVERY_SETTING = {
    "bands": 3,
    "engine": "spectral",
    "order": 8,
    "modalities": None,
    "content": "vectors",
    "item_layers": 1,
    "item_neighbours": 3,
    "image_weight": 0.3,
    "item_source": "table",
    "fusion": "cp",
    "fusion_rank": 2,
    "gate": False,
    "mask_rate": 0.4,
    "consistency": "repr_mse",
    "lambda_mask": 0.5,
    "lambda_contrast": 0.3,
    "lambda_operator": 0.2,
    "lambda_ridge": 0.7,
    "temperature": 0.4,
    "anchors": 1000,
}
BATCH = Batch(
    users=torch.tensor([1, 2, 2, 5, ALONE_USER, 1]),
    positives=torch.tensor([3, 1, 4, BARE_ITEM, COLD_ITEM, 3]),
    negatives=torch.tensor([0, 5, 3, 1, 2, COLD_ITEM]),
)
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edges():
    """Some come twice."""
    found = (torch.rand(USERS, ITEMS, generator=torch.Generator().manual_seed(1)) < 0.4).nonzero().T
    found = found[:, (found > 0).all(dim=0) & (found[0] != ALONE_USER) & (found[1] != COLD_ITEM)]
    return torch.cat([found, found[:, :3]], dim=1)


def content(*names):
    found = {}
    for index, name in enumerate(names):
        present = torch.ones(ITEMS, dtype=torch.bool)
        present[[0, BARE_ITEM, 3 + index]] = False
        found[name] = Modality(name, randn(ITEMS, 3 + index, seed=2 + index) * present.unsqueeze(1), present)
    return found


def context_of(host, modalities=("image", "text"), **changes):
    given = {
        "host": "Toy",
        "family": "sequential" if host == "sequence" else "graph",
        "n_users": USERS,
        "n_items": ITEMS,
        "n_rows": {"items": ITEMS, "users": USERS},
        "width": {"items": D, "users": D},
        "edges": edges(),
        "modalities": modalities if isinstance(modalities, dict) else content(*modalities),
        "seed": 5,
    }
    if host == "sequence":
        given |= {"n_rows": {"items": ITEMS + 1}, "width": {"items": D}, "mask_id": ITEMS}
    if host == "nodes":
        propagate = functools.partial(lightgcn, layers=2)
        given |= {"width": {"items": D, "users": D, "propagated": D}, "free_width": True, "propagate": propagate}
    return Context(**(given | changes))


def make(host="nodes", offered=("image", "text"), start=False, context=None, **settings):
    """Built by the plugin; unless at its start, with every parameter away from it. Edges are estimated in epoch 0."""
    torch.manual_seed(0)
    ssr = build(
        SsrSettings(**(EVERY_SETTING | settings)), context_of(host, **{"modalities": offered, **(context or {})})
    )
    if not start:
        for parameter in ssr.parameters():
            parameter.data += 0.4 * torch.randn_like(parameter)
    return ssr


def step_of(ssr, batch=BATCH, kind="training"):
    """What a step offers, without a chain; the table is the backbone's own."""
    rows = torch.cat([i.reshape(-1) for i in batch.items()]) if batch.items() else torch.zeros(0, dtype=torch.long)
    tables = {"items": inputs(ssr)[2], "users": inputs(ssr)[3]}
    return SimpleNamespace(kind=kind, batch=batch, memory={}, table=tables.get, asked=lambda: torch.unique(rows))


@functools.cache
def vectors(users, items):
    return randn(users, D, seed=11), randn(items, D, seed=12), randn(items, D, seed=13), randn(users, D, seed=14)


def inputs(ssr):
    """Users' nodes, items' nodes, and the backbone's tables of items and of users."""
    return vectors(max(ssr.n_users, 1), ssr.decomposition.n_nodes - ssr.n_users)


def run(ssr, users=None, items=None):
    """``[N, D]``, within the step that is set."""
    if users is None:
        users, items, *_ = inputs(ssr)
    if isinstance(ssr, SsrNodes):
        return torch.cat(ssr.propagated(users, items))
    users, items = ssr.tables(users if ssr.n_users else None, items)
    return items if users is None else torch.cat([users, items])


def settled(ssr):
    """After a first step, which estimated the edges; it estimates no more."""
    ssr.step = step_of(ssr)
    run(ssr.train())
    ssr.on_epoch_start(99)
    return ssr


# -- the slow reference, in float64


def normalised_graph(ssr):
    """A_hat, dense."""
    if not ssr.n_users:
        return cooccurrence(edges(), ITEMS + 1, ssr.settings.item_neighbours).dense().double().numpy()
    a = np.zeros((N, N))
    for user, item in edges().T.tolist():
        a[user, USERS + item] = a[USERS + item, user] = 1.0
    degree = np.maximum(a.sum(axis=1), 1e-300)
    return a / np.sqrt(degree)[:, None] / np.sqrt(degree)[None]


def content_means(modalities, settings, rows):
    """S, dense: of each modality the k nearest by cosine, the item itself included."""
    names = list(modalities)
    weight = {name: settings.image_weight if name == "image" else 1 - settings.image_weight for name in names}
    if "image" in names and len(names) > 2:
        weight = {n: w if n == "image" else w / (len(names) - 1) for n, w in weight.items()}
    if names == ["image"] or "image" not in names:
        weight = dict.fromkeys(names, 1.0)
    s = np.zeros((rows, rows))
    for item in range(ITEMS):
        have = [name for name in names if modalities[name].present[item]]
        for name in have:
            values = modalities[name].values.double().numpy()
            others = [i for i in range(ITEMS) if modalities[name].present[i]]
            cosine = {
                i: values[i] @ values[item] / np.linalg.norm(values[i]) / np.linalg.norm(values[item]) for i in others
            }
            near = sorted(others, key=lambda i: -cosine[i])[: settings.item_neighbours]
            for i in near:
                s[item, i] += weight[name] / sum(weight[n] for n in have) / len(near)
    return s


def dense_bands(ssr, x):
    """``[M, N, F]`` by eigenvectors, with the module's own edges."""
    values, vectors = np.linalg.eigh(np.eye(len(x)) - normalised_graph(ssr))
    band = np.searchsorted(ssr.decomposition.edges.double().numpy(), values, side="right")
    found = []
    for m in range(ssr.settings.bands):
        v = vectors[:, band == m]
        found.append(v @ (v.T @ x))
    return np.stack(found)


def array(tensor):
    return tensor.detach().double().numpy()


def five_way(ssr):
    """T[m, p, n, q, :]."""
    mix = {name: array(getattr(ssr.cross.mix, name)) for name in "acbev"}
    bands, blocks, rank = ssr.settings.bands, len(ssr.blocks), ssr.settings.fusion_rank
    t = np.zeros((bands, blocks, bands, blocks, D))
    for m, p, n, q, r in itertools.product(range(bands), range(blocks), range(bands), range(blocks), range(rank)):
        t[m, p, n, q] += mix["a"][m, r] * mix["c"][p, r] * mix["b"][n, r] * mix["e"][q, r] * mix["v"][r]
    return t


def fused(ssr, s, context):
    """``[r, M, P, d]`` to ``[r, P, d]``."""
    plain = s.sum(axis=1)
    if ssr.settings.fusion == "sum":
        return plain
    if ssr.settings.fusion == "colsoftmax":
        return softmaxed(ssr, s, context)
    mixed = s.copy()
    t = five_way(ssr)
    for m, p, n, q in itertools.product(*map(range, t.shape[:4])):
        mixed[:, m, p] += t[m, p, n, q] * s[:, n, q]
    y = gated(ssr, mixed, context).sum(axis=1) if ssr.settings.gate else mixed.sum(axis=1)
    lengths = [np.sqrt((x**2).sum(axis=(1, 2), keepdims=True)) for x in (plain, y)]
    return y * lengths[0] / np.maximum(lengths[1], 1e-12)


def gated(ssr, mixed, context):
    """Bands times their weights, 1 + beta tanh(W4 relu(W3 [context; mean of the bands]))."""
    gate = {name: array(value) for name, value in ssr.cross.gate.named_parameters()}
    seen = np.concatenate([context, mixed.mean(axis=1).reshape(len(mixed), -1)], axis=1)
    hidden = np.maximum(seen @ gate["w3.weight"].T, 0)
    return mixed * (1 + gate["beta"] * np.tanh(hidden @ gate["w4.weight"].T))[:, :, None, None]


def softmaxed(ssr, s, context):
    """The authors' code: column softmax, filter, context scale; then the gate, and the length from before it."""
    mix = {name: array(value) for name, value in ssr.cross.mix.named_parameters()}
    kappa = np.exp(mix["q"] @ mix["k"].T / math.sqrt(ssr.settings.fusion_rank))
    pi = kappa / kappa.sum(axis=0, keepdims=True)
    alpha = np.exp(mix["alpha"]) / np.exp(mix["alpha"]).sum()
    z = 1 / (1 + np.exp(-np.maximum(context @ mix["w1.weight"].T, 0) @ mix["w2.weight"].T))
    scale = (z * (alpha @ np.exp(0.1 * np.tanh(mix["g"])))).reshape(len(s), 1, *s.shape[2:])
    mixed = np.einsum("mn,rnpd->rmpd", pi, s) * scale
    if not ssr.settings.gate:
        return mixed.sum(axis=1)
    y = gated(ssr, mixed, context).sum(axis=1)
    lengths = [np.sqrt((x**2).sum(axis=(1, 2), keepdims=True)) for x in (mixed.sum(axis=1), y)]
    return y * lengths[0] / np.maximum(lengths[1], 1e-12)


def encoded(ssr, nodes, modalities):
    """The authors' encoders, one block a modality beside the backbone's: ``[N, P, d]``, and users' raw preferences."""
    content, n = ssr.content, ssr.n_users
    blocks = [nodes]
    for index, modality in enumerate(modalities.values()):
        rows = np.zeros((len(nodes) - n, modality.width))
        rows[:ITEMS] = array(content.features[index])[:ITEMS]
        hidden = rows @ array(content.first[index].weight).T
        x = np.where(hidden > 0, hidden, 0.01 * hidden) @ array(content.second[index].weight).T
        have = np.zeros(len(x), dtype=bool)
        have[:ITEMS] = modality.present.numpy()
        x = np.concatenate([array(content.preferences)[:, index], x * have[:, None]])
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
        total = x
        for _ in range(2 if n else 0):
            x = normalised_graph(ssr) @ x
            total = total + x
        blocks.append(total)
    rep = np.stack(blocks, axis=1)
    rep[:n] *= array(content.balance)[:, :, None]
    return rep


def reference(ssr, modalities):
    """Bands ``[N, M, P, d]``, context ``[N, P*d]``, fused ``[N, P, d]``, content ``[N, P-1, d]``, what comes out."""
    settings, n = ssr.settings, ssr.n_users
    users, items, table, user_table = (array(x) for x in inputs(ssr))
    users, nodes = users[:n], np.concatenate([users[:n], items])
    smooth = None  # the content graph's means, where there is one
    if modalities and settings.item_layers:
        smooth = np.linalg.matrix_power(content_means(modalities, settings, len(items)), settings.item_layers)
    source = table if isinstance(ssr, SsrNodes) and settings.item_source == "table" else items
    if settings.content == "encoders" and modalities:
        rep = encoded(ssr, nodes, modalities)
        x = rep.copy()
        if smooth is not None:
            x[n:, 0] += smooth @ source
            x[n:, 1:] += np.einsum("ij,jpd->ipd", smooth, rep[n:, 1:])
            x[:n, 0] += (user_table if isinstance(ssr, SsrNodes) else users)[:n]
            x[:n, 1:] += array(ssr.content.preferences)
        blocks, context = list(x.transpose(1, 0, 2)), rep
    else:
        x = nodes.copy()
        x[n:] += 0.0 if smooth is None else smooth @ source
        blocks, plain = [x], [nodes]
        for index, modality in enumerate(modalities.values() if settings.content == "vectors" else ()):
            rows = np.zeros((len(items), modality.width))
            for item in range(ITEMS):
                if modality.present[item]:
                    value = modality.values[item].double().numpy()
                    rows[item] = value / np.linalg.norm(value)
            signal = np.concatenate([np.zeros((n, modality.width)), rows if smooth is None else smooth @ rows])
            blocks.append(signal @ array(ssr.content.project[index].weight).T)
            plain.append(blocks[-1])
        context = np.stack(plain, axis=1)
    s = np.stack([dense_bands(ssr, block) for block in blocks], axis=2).transpose(1, 0, 2, 3)
    context = context.reshape(len(nodes), -1)
    y = fused(ssr, s, context)
    of_content = y[:, 1:].copy()
    if ssr.preferences is not None:
        of_content[:n] += array(ssr.preferences)
    if ssr.concat:
        out = np.concatenate([y[:, 0], *(of_content[:, p] for p in range(len(blocks) - 1))], axis=1)
    else:
        out = y[:, 0] + of_content.sum(axis=1)
    return s, context, y, of_content, out


FIXED = {"context": {"free_width": False}}  # a host whose width must stay
CASES = [
    ("nodes", ("image", "text"), {}),
    ("nodes", ("image", "text"), {"item_source": "nodes", "item_layers": 2} | FIXED),
    ("nodes", ("image", "text"), {"fusion": "sum"}),
    ("nodes", ("image", "text", "audio"), {"bands": 2, "gate": True}),
    ("nodes", ("image",), {"item_layers": 0}),
    ("nodes", ("text",), {"content": "graph"}),
    ("nodes", (), {}),
    ("nodes", ("image", "text"), {"modalities": ["text"]}),
    ("nodes", ("image", "text"), {"bands": 1}),
    ("nodes", ("image", "text"), {"content": "encoders"}),
    ("nodes", ("image", "text"), {"content": "encoders", "item_layers": 0, "fusion": "sum"}),
    ("nodes", ("image", "text"), {"content": "encoders", "fusion": "colsoftmax", "gate": True, "item_source": "nodes"}),
    ("tables", ("image", "text"), {}),
    ("tables", ("text",), {"bands": 4, "item_layers": 0}),
    ("tables", ("image", "text"), {"content": "encoders", "gate": True}),
    ("sequence", ("image", "text"), {}),
    ("sequence", (), {"bands": 2}),
    ("sequence", ("image", "text"), {"content": "encoders"}),
]


@pytest.mark.parametrize(("host", "modalities", "settings"), CASES, ids=str)
def test_all_of_it_is_the_slow_reference(host, modalities, settings):
    ssr = settled(make(host, modalities, **settings))
    assert isinstance(ssr, SsrNodes if host == "nodes" else SsrTables)
    used = {name: each for name, each in content(*modalities).items() if name in settings.get("modalities", modalities)}
    expected = torch.from_numpy(reference(ssr, used)[-1]).float()
    ssr.step = step_of(ssr, kind="evaluation")
    torch.testing.assert_close(run(ssr.eval()), expected, **CLOSE)
    ssr.step = step_of(ssr)
    found = run(ssr.train())
    rows = torch.arange(len(expected)) if host == "sequence" else batch_nodes()
    torch.testing.assert_close(found[rows], expected[rows], **CLOSE)


def batch_nodes():
    return torch.unique(torch.cat([BATCH.users, BATCH.positives + USERS, BATCH.negatives + USERS]))


def scripted(ssr, monkeypatch, seed=21):
    """Draws that a reference can repeat: the batch in its order, and masks from a table."""
    seen = []

    def draw(s, isolated):
        seen.append(isolated)
        factors = (torch.rand(*s.shape[:2], 1, 1, generator=torch.Generator().manual_seed(seed)) < 0.6).float() / 0.6
        return factors.masked_fill(isolated[:, None, None, None], 1.0)

    monkeypatch.setattr(ssr.mask, "draw", draw)
    monkeypatch.setattr(ssr.choice, "permutation", lambda n, device: torch.arange(n, device=device).flip(0))
    return draw, seen


@pytest.mark.parametrize(
    ("host", "modalities", "settings"),
    [
        ("nodes", ("image", "text"), {}),
        ("nodes", ("image", "text", "audio"), {"bands": 2} | FIXED),
        ("nodes", ("image", "text"), {"consistency": "score_kl"}),
        ("nodes", ("image", "text"), {"fusion": "sum"}),
        ("nodes", ("image", "text"), {"content": "encoders", "fusion": "colsoftmax", "gate": True}),
        ("nodes", ("image", "text"), {"content": "encoders", "fusion": "sum"}),
        ("tables", ("image", "text"), {}),
        ("sequence", ("image", "text"), {}),
    ],
    ids=str,
)
@torch.no_grad()
def test_every_loss_is_its_slow_reference(host, modalities, settings, monkeypatch):
    ssr = settled(make(host, modalities, **settings))
    s, context, y, of_content, _ = reference(ssr, content(*modalities))
    draw, seen = scripted(ssr, monkeypatch)
    ssr.step = step_of(ssr)
    run(ssr)
    losses = ssr.losses(ssr.step)
    mixes = ssr.settings.fusion != "sum"
    assert losses.keys() == {"mask", "contrast", "ridge", *(["operator"] if mixes else [])}

    parts = [[int(i) + offset for i in ids] for ids, offset in triples(ssr)]
    degree = normalised_graph(ssr).sum(axis=1)
    alone = torch.tensor([degree[node] == 0 for part in parts for node in part])
    factors = draw(torch.empty(len(alone), ssr.settings.bands), alone)
    assert torch.equal(seen[0], alone)
    places = iter(range(len(alone)))
    hidden = [
        [fused(ssr, (s[node] * array(factors[next(places)]))[None], context[node][None])[0] for node in part]
        for part in parts
    ]
    if ssr.settings.consistency == "repr_mse":
        distance = np.mean(
            [
                (h - y[node]) ** 2
                for part, hs in zip(parts, hidden, strict=True)
                for node, h in zip(part, hs, strict=True)
            ]
        )
    else:
        margins = []
        for (u, mu), (i, mi), (j, mj) in zip(
            *[list(zip(p, h, strict=True)) for p, h in zip(parts, hidden, strict=True)], strict=True
        ):
            p, q = (1 / (1 + math.exp(-x)) for x in ((y[u] * (y[i] - y[j])).sum(), (mu * (mi - mj)).sum()))
            margins.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
        distance = np.mean(margins)
    assert float(losses["mask"]) == pytest.approx(ssr.settings.lambda_mask * distance, rel=1e-3)

    nodes = range(ITEMS + 1) if host == "sequence" else batch_nodes().tolist()
    ridge = np.mean([(of_content[node] ** 2).sum() for node in nodes]) / 2
    assert float(losses["ridge"]) == pytest.approx(ssr.settings.lambda_ridge * ridge, rel=1e-3)
    if ssr.settings.fusion == "cp":
        penalty = (five_way(ssr) ** 2).mean() + ((array(ssr.cross.mix.v) - 1) ** 2).mean()
        assert float(losses["operator"]) == pytest.approx(ssr.settings.lambda_operator * penalty, rel=1e-4)
    pairs = itertools.combinations(range(len(modalities)), 2)
    groups = [[ssr.n_users + item for item in sorted(set(BATCH.positives.tolist()))]]
    if ssr.settings.content == "encoders":
        groups.append(sorted(set(BATCH.users.tolist())))  # users have content of their own
    pairs = list(pairs)
    contrast = sum(
        np.mean([slow_contrast(ssr, s, content(*modalities), group, *pair) for pair in pairs]) for group in groups
    )
    assert float(losses["contrast"]) == pytest.approx(ssr.settings.lambda_contrast * contrast, rel=1e-3)


def triples(ssr):
    of_items = [(BATCH.positives, ssr.n_users), (BATCH.negatives, ssr.n_users)]
    return [(BATCH.users, 0), *of_items] if ssr.n_users else of_items


def slow_contrast(ssr, s, modalities, nodes, one, other):
    """Anchors are (node, band) with something in both modalities; every other anchor is a negative, in either."""
    first, second = [list(modalities.values())[k].present for k in (one, other)]
    anchors = []
    for node in nodes:
        bands = s[node][:, [1 + one, 1 + other]]  # [M, 2, d]
        sizes = np.linalg.norm(bands, axis=-1)
        item = node - ssr.n_users
        own = item < 0 or (first[item] and second[item])
        for m in range(len(bands)):
            if own and (sizes[m] > 1e-5 * sizes.max(axis=0)).all():
                anchors.append(bands[m] / sizes[m][:, None])
    losses = []
    for i, own in enumerate(anchors):
        for side in (0, 1):
            positive = own[0] @ own[1] / ssr.settings.temperature
            others = [own[side] @ a[k] for j, a in enumerate(anchors) if j != i for k in (0, 1)]
            bank = [positive, *(cosine / ssr.settings.temperature for cosine in others)]
            losses.append(math.log(sum(map(math.exp, bank))) - positive)
    return np.mean(losses)


# -- a step works on its batch alone


def gradients(ssr, with_losses=True):
    """Of a host's loss that reads the batch, and the plugin's: the loss, and the gradient of everything."""
    users, items, table, user_table = (x.clone().requires_grad_() for x in inputs(ssr))
    ssr.step = step_of(ssr)
    ssr.step.table = {"items": table, "users": user_table}.get
    out = run(ssr, users, items)
    u, i, j = (out[ids + offset] for ids, offset in triples(ssr))
    loss = -torch.nn.functional.logsigmoid((u * (i - j)).sum(dim=1)).mean()
    if with_losses:
        loss = loss + sum(ssr.losses(ssr.step).values())
    everything = [users, items, *ssr.parameters(), *([table] if ssr.settings.item_source == "table" else [])]
    return out, loss, torch.autograd.grad(loss, everything, allow_unused=True)


VARIANTS = [
    ("nodes", {}),
    ("nodes", {"gate": True} | FIXED),
    ("nodes", {"fusion": "colsoftmax", "item_source": "nodes"}),
    ("nodes", {"content": "encoders", "fusion": "colsoftmax", "gate": True}),
    ("nodes", {"engine": "polynomial"}),
    ("nodes", {"fusion": "sum"}),
    ("tables", {"item_source": "nodes"}),
    ("tables", {"item_source": "nodes", "fusion": "sum", "bands": 1}),
]


@pytest.mark.parametrize(("host", "settings"), VARIANTS, ids=str)
def test_a_batch_of_rows_is_the_whole_table_at_these_rows(host, settings, monkeypatch):
    ssr = settled(make(host, **settings))
    scripted(ssr, monkeypatch)
    out, loss, found = gradients(ssr, with_losses=False)
    ssr.every_node = True
    whole, expected_loss, expected = gradients(ssr, with_losses=False)
    assert len(batch_nodes()) < N  # or nothing is left out
    torch.testing.assert_close(out[batch_nodes()], whole[batch_nodes()], **CLOSE)
    torch.testing.assert_close(loss, expected_loss)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)
    others = torch.tensor([n for n in range(N) if n not in batch_nodes().tolist()])
    left = torch.zeros(len(others), out.shape[1]) if ssr.concat else torch.cat(inputs(ssr)[:2])[others]
    assert torch.equal(out[others], left)


@pytest.mark.parametrize(("host", "settings"), VARIANTS, ids=str)
def test_rows_that_come_twice_change_nothing(host, settings, monkeypatch):
    """As on an accelerator, where nobody counts distinct rows; plugin's losses included."""
    ssr = settled(make(host, **settings))
    scripted(ssr, monkeypatch)
    out, loss, expected = gradients(ssr)
    monkeypatch.setattr(ssr_hosts, "distinct", lambda ids: torch.cat([i.reshape(-1) for i in ids]).repeat(2))
    twice, same, found = gradients(ssr)
    torch.testing.assert_close(twice, out, **CLOSE)
    torch.testing.assert_close(same, loss)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **CLOSE)


def test_on_sequential_hosts_every_item_is_augmented_in_a_step():
    """A full softmax reads items that the batch does not name."""
    ssr = settled(make("sequence"))
    ssr.step = step_of(ssr)
    trained = run(ssr)
    ssr.step = None
    torch.testing.assert_close(trained, run(ssr.eval()))


class NoWaiting(TorchDispatchMode):
    """Refuses what makes an accelerator's host wait: values read back, and sizes that depend on them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select"), name
        if name in ("index", "index_put", "index_put_"):
            assert not any(i is not None and i.dtype == torch.bool for i in args[1]), "indexing with a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("host", "settings"), [*VARIANTS, ("nodes", {"anchors": 4})])
def test_a_step_waits_for_nothing(host, settings, monkeypatch):
    ssr = settled(make(host, **settings))
    monkeypatch.setattr(ssr_hosts, "distinct", lambda ids: torch.cat([i.reshape(-1) for i in ids]))
    users, items, *_ = inputs(ssr)
    ssr.step = step_of(ssr)
    asked = ssr.step.asked()
    ssr.step.asked = lambda: asked
    with NoWaiting():
        out = run(ssr, users.clone().requires_grad_(), items)
        (out.sum() + sum(ssr.losses(ssr.step).values())).backward()


# -- identities


@pytest.mark.parametrize("host", ["nodes", "tables", "sequence"])
@pytest.mark.parametrize("kind", ["training", "evaluation", "call"])
def test_at_identity_the_very_same_tensors_come_back(host, kind):
    ssr = make(host, offered=(), bands=1, fusion="sum")
    assert ssr.inert
    ssr.step = step_of(ssr, kind=kind)
    users, items, *_ = inputs(ssr)
    found = ssr.propagated(users, items) if host == "nodes" else ssr.tables(users if ssr.n_users else None, items)
    assert found[0] is (users if ssr.n_users else None)
    assert found[1] is items
    assert ssr.losses(ssr.step) == {}


@pytest.mark.parametrize(
    ("modalities", "settings"),
    [
        ((), {"bands": 2, "fusion": "sum"}),
        ((), {"bands": 1, "fusion": "cp"}),
        (("text",), {"bands": 1, "fusion": "sum", "content": "graph"}),
        (("text",), {"bands": 1, "fusion": "sum", "item_layers": 0}),
    ],
    ids=str,
)
def test_nothing_else_counts_as_the_identity(modalities, settings):
    assert not make(offered=modalities, **settings).inert


@pytest.mark.parametrize("modalities", [("text",), ("image", "text")])
def test_a_graph_without_layers_is_not_built(modalities):
    ssr = make(offered=modalities, bands=1, fusion="sum", content="graph", item_layers=0)
    assert ssr.item_graph is None
    assert ssr.inert


@pytest.mark.parametrize("host", ["nodes", "tables"])
@pytest.mark.parametrize("bands", [1, 3])
def test_at_the_start_the_operator_does_nothing(host, bands):
    """The backbone's block is H + S E; content stands beside it."""
    ssr = make(host, start=True, bands=bands).eval()
    nodes = torch.cat(inputs(ssr)[:2])
    ssr.step = step_of(ssr, kind="call")
    y = ssr.view(nodes, None)
    torch.testing.assert_close(y[:, :1], ssr.signals(nodes)[1], **CLOSE)
    projected = [linear(x) for linear, x in zip(ssr.content.project, ssr.content.signals(), strict=True)]
    torch.testing.assert_close(y[:, 1:], torch.stack(projected, dim=1), **CLOSE)


# -- epochs, copies, evaluations


def test_edges_move_in_the_first_epochs_and_then_stay(monkeypatch):
    monkeypatch.setattr(ssr_module, "EDGE_EPOCHS", 2)
    ssr = make().train()
    start = ssr.decomposition.edges.clone()
    seen = []
    for epoch in range(4):
        ssr.on_epoch_start(epoch)
        for turn in range(2):
            ssr.step = step_of(ssr)
            users, items, *_ = (x * randn(len(x), 1, seed=10 * epoch) ** 3 for x in inputs(ssr))
            run(ssr, users, items)
            seen.append(ssr.decomposition.edges.clone())
            if turn:
                assert torch.equal(seen[-1], seen[-2])  # once an epoch
        wanted = [ssr.decomposition(c).transpose(0, 1) for c in ssr.content.signals()]
        torch.testing.assert_close(ssr.content.bands_0, wanted[0])
        torch.testing.assert_close(ssr.content.bands_1, wanted[1])
    assert not torch.equal(seen[0], start)
    assert int(ssr.decomposition._observed) == 2
    assert ssr.decomposition.frozen
    assert torch.equal(seen[-1], seen[2])


def test_a_state_dict_brings_the_edges_and_their_content():
    trained, fresh = settled(make()), make(start=True)
    nodes = [randn(USERS, D, seed=31) * 3, randn(ITEMS, D, seed=32)]
    trained.on_epoch_start(4)  # the last in which edges are looked at
    trained.step = step_of(trained)
    run(trained, *nodes)
    assert not torch.equal(trained.decomposition.edges, fresh.decomposition.edges)
    saved = io.BytesIO()
    torch.save(trained.state_dict(), saved)
    saved.seek(0)
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    assert torch.equal(fresh.decomposition.edges, trained.decomposition.edges)
    assert fresh.decomposition.frozen
    assert torch.equal(fresh.content.bands_1, trained.content.bands_1)
    fresh.step = trained.step = None
    assert torch.equal(run(fresh.eval()), run(trained.eval()))
    fresh.train().on_epoch_start(1)
    run(fresh)
    assert torch.equal(fresh.decomposition.edges, trained.decomposition.edges)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda ssr: pickle.loads(pickle.dumps(ssr))], ids=["copy", "pickle"])
@pytest.mark.parametrize("content", ["vectors", "encoders"])
def test_copies_go_on_alike(copied, content):
    ssr = settled(make(content=content, anchors=4))
    other = copied(ssr)
    for one in (ssr, other):
        one.step = step_of(one)
        assert sorted(name for name, _ in one.named_parameters()) == sorted(dict(other.named_parameters()))
    assert torch.equal(run(ssr), run(other))
    losses = [{name: float(loss.detach()) for name, loss in one.losses(one.step).items()} for one in (ssr, other)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("host", ["nodes", "tables", "sequence"])
def test_a_model_works_before_training_and_evaluation_changes_nothing(host):
    ssr = make(host).eval()
    state = {name: value.clone() for name, value in ssr.state_dict().items() if isinstance(value, torch.Tensor)}
    for kind in ("evaluation", "call"):
        ssr.step = step_of(ssr, kind=kind)
        first = run(ssr)
        assert first.isfinite().all()
        assert torch.equal(first, run(ssr))
        assert ssr.losses(ssr.step) == {}
    ssr.diagnostics()
    assert all(torch.equal(value, ssr.state_dict()[name]) for name, value in state.items())
    assert ssr.noise._generator is ssr.choice._generator is None  # nothing was drawn
    assert ssr._observe


def test_reset_begins_anew_and_keeps_the_edges():
    ssr = settled(make(start=True))
    edges = ssr.decomposition.edges.clone()
    for parameter in ssr.parameters():
        parameter.data += 1
    ssr.reset_parameters()
    assert torch.equal(ssr.decomposition.edges, edges)
    assert not ssr.cross.mix.a.any()
    assert not ssr.preferences.any()  # content begins without a say
    assert "concat=True" in repr(ssr)


# -- oddities


@pytest.mark.parametrize("host", ["nodes", "tables"])
def test_nodes_without_edges_keep_their_vector(host, monkeypatch):
    """All their energy lies in one band; the mask leaves them whole."""
    ssr = settled(make(host, mask_rate=0.9, fusion="sum", item_layers=0, lambda_ridge=0.0))
    nodes = torch.cat(inputs(ssr)[:2])
    out = run(ssr.eval())
    cold = USERS + COLD_ITEM
    of_content = [linear(x)[cold] for linear, x in zip(ssr.content.project, ssr.content.signals(), strict=True)]
    assert all(vector.abs().max() > 0 for vector in of_content)
    expected = torch.cat([nodes[cold], *of_content]) if ssr.concat else nodes[cold] + sum(of_content)
    torch.testing.assert_close(out[cold], expected, **CLOSE)
    torch.testing.assert_close(out[ALONE_USER, :D] if ssr.concat else nodes[ALONE_USER], nodes[ALONE_USER], **CLOSE)
    alone = Batch(
        users=torch.full((9,), ALONE_USER),
        positives=torch.full((9,), COLD_ITEM),
        negatives=torch.full((9,), COLD_ITEM),
    )
    ssr.train().step = step_of(ssr, batch=alone)
    run(ssr)
    assert float(ssr.losses(ssr.step)["mask"].detach()) < 1e-12


@pytest.mark.parametrize("host", ["nodes", "tables", "sequence"])
@pytest.mark.parametrize(
    "changes",
    [
        {"edges": torch.zeros(2, 0, dtype=torch.long)},
        {"edges": torch.tensor([[1], [1]])},
        {
            "modalities": {
                "image": content("image")["image"],
                "text": Modality("text", torch.zeros(9, 3), torch.zeros(9) > 0),
            }
        },
    ],
    ids=["no edges", "one edge", "an empty modality"],
)
def test_poor_data_give_finite_numbers(host, changes):
    ssr = make(host, context=changes, gate=True)
    for _ in range(2):
        ssr.step = step_of(ssr)
        users, items, *_ = (x.clone().requires_grad_() for x in inputs(ssr))
        loss = run(ssr.train(), users, items).square().mean() + sum(ssr.losses(ssr.step).values())
        loss.backward()
        assert loss.isfinite()
        for tensor in [users, items, *ssr.parameters()]:
            assert tensor.grad is None or tensor.grad.isfinite().all()
    ssr.step = None
    assert run(ssr.eval()).isfinite().all()


def test_one_user_and_one_item():
    given = {"n_users": 2, "n_items": 2, "n_rows": {"users": 2, "items": 2}, "edges": torch.tensor([[1], [1]])}
    text = Modality("text", torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([False, True]))
    ssr = make("nodes", context={**given, "modalities": {"text": text}})
    one = torch.ones(1, dtype=torch.long)
    ssr.step = step_of(ssr, Batch(users=one, positives=one, negatives=one))
    out = run(ssr.train())
    assert out.isfinite().all()
    assert all(loss.isfinite() for loss in ssr.losses(ssr.step).values())


@pytest.mark.parametrize(
    ("modalities", "settings", "missing"),
    [
        ((), {}, ("contrast", "ridge")),
        (("text",), {}, ("contrast",)),
        (("image", "text"), {"mask_rate": 0.0}, ("mask",)),
        (("image", "text"), {"lambda_mask": 0.0, "lambda_ridge": 0.0}, ("mask", "ridge")),
        (("image", "text"), {"bands": 1}, ("mask",)),
        (("image", "text"), {"fusion": "sum"}, ("operator",)),
        (("image", "text"), {"content": "graph"}, ("contrast", "ridge")),
    ],
    ids=str,
)
def test_losses_are_those_that_mean_something(modalities, settings, missing):
    ssr = make(offered=modalities, **settings)
    ssr.step = step_of(ssr)
    run(ssr.train())
    assert ssr.losses(ssr.step).keys() == {"mask", "contrast", "ridge", "operator"} - set(missing)


def test_a_step_in_which_nothing_was_asked_has_no_losses():
    ssr = make()
    assert ssr.losses(step_of(ssr)) == {}


def test_scores_cannot_be_compared_without_negatives():
    """Hosts that learn from labelled pairs have none."""
    ssr = make(consistency="score_kl")
    batch = Batch(users=BATCH.users, positives=BATCH.positives, labels=torch.ones(6))
    ssr.step = step_of(ssr, batch)
    run(ssr.train())
    with pytest.raises(RecplugError, match=r"ssr\.consistency score_kl needs batches of users, items and negatives"):
        ssr.losses(ssr.step)


@pytest.mark.parametrize("host", ["nodes", "tables", "sequence"])
def test_labelled_pairs_and_histories_are_batches_too(host):
    labelled = Batch(users=BATCH.users, positives=BATCH.positives, labels=torch.ones(6))
    histories = Batch(users=BATCH.users, sequence=torch.tensor([[1, 2], [3, 0], [4, 5], [6, 0], [7, 8], [1, 3]]))
    for batch in (labelled, histories):
        ssr = make(host)
        ssr.step = step_of(ssr, batch)
        out = run(ssr.train())
        losses = ssr.losses(ssr.step)
        assert losses.keys() == {"mask", "contrast", "ridge", "operator"}
        (out.mean() + sum(losses.values())).backward()
        assert all(p.grad.isfinite().all() for p in ssr.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_a_step_is_nearly_the_same(dtype, monkeypatch):
    ssr = settled(make())
    scripted(ssr, monkeypatch)
    out, loss, expected = gradients(ssr)
    with torch.autocast("cpu", dtype=dtype):
        half, found_loss, found = gradients(ssr)
    assert half.dtype == out.dtype
    torch.testing.assert_close(half, out, rtol=0.05, atol=0.05)
    torch.testing.assert_close(found_loss, loss, rtol=0.02, atol=0.02)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0.1, atol=0.02)
