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
from recplug.plugins.ssr import module as ssr_module
from recplug.plugins.ssr.module import SsrNodes, SsrTables
from recplug.plugins.ssr.plugin import build
from recplug.plugins.ssr.settings import SsrSettings
from recplug.plugins.step import Batch

USERS, ITEMS, D = 7, 9, 4  # user 0 and item 0 are padding
N = USERS + ITEMS
ALONE_USER, COLD_ITEM, BARE_ITEM = 6, 8, 7  # without edges, without edges but with content, without content
EVERY_SETTING = {
    "graph": "auto",
    "bands": 3,
    "engine": "spectral",
    "every": 1,
    "order": 8,
    "rank": 4,
    "edges": "equal_energy",
    "edge_epochs": 2,
    "modalities": None,
    "content_width": 6,
    "item_layers": 1,
    "item_neighbours": 3,
    "image_weight": 0.3,
    "item_source": "table",
    "item_weight": 0.7,
    "content_blocks": True,
    "user_content": "none",
    "preferences": True,
    "content_scale": 0.5,
    "fusion": "cp",
    "fusion_rank": 2,
    "gate": False,
    "keep_length": False,
    "mask_rate": 0.4,
    "mask_scope": "node",
    "mask_unit": "band",
    "mask_triples": 100,
    "consistency": "repr_mse",
    "lambda_mask": 0.5,
    "lambda_contrast": 0.3,
    "lambda_operator": 0.2,
    "lambda_ridge": 0.7,
    "temperature": 0.4,
    "anchors": 1000,
    "output": "auto",
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
    items = inputs(ssr)[2]
    return SimpleNamespace(
        kind=kind, batch=batch, memory={}, table=lambda side: items, asked=lambda: torch.unique(rows)
    )


@functools.cache
def vectors(users, items):
    return randn(users, D, seed=11), randn(items, D, seed=12), randn(items, D, seed=13)


def inputs(ssr):
    """Users' nodes, items' nodes, and the backbone's item table."""
    return vectors(max(ssr.n_users, 1), ssr.decomposition.n_nodes - ssr.n_users)


def run(ssr, users=None, items=None):
    """``[N, D]``, within the step that is set."""
    if users is None:
        users, items, _ = inputs(ssr)
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


def fused(ssr, s):
    """``[r, M, P, d]`` to ``[r, P, d]``."""
    plain = s.sum(axis=1)
    if ssr.settings.fusion == "sum":
        return plain
    y = plain.copy()
    t = five_way(ssr)
    for m, p, n, q in itertools.product(*map(range, t.shape[:4])):
        y[:, p] += t[m, p, n, q] * s[:, n, q]
    if ssr.settings.keep_length:
        lengths = [np.sqrt((x**2).sum(axis=(1, 2), keepdims=True)) for x in (plain, y)]
        y *= lengths[0] / np.maximum(lengths[1], 1e-12)
    return y


def reference(ssr, modalities):
    """Bands ``[N, M, P, d]``, fused ``[N, P, d]``, content ``[N, P-1, d]`` and what comes out."""
    settings, n_users = ssr.settings, ssr.n_users
    users, items, table = (array(x) for x in inputs(ssr))
    smooth = None  # the content graph's means, where there is one
    if modalities and settings.item_layers and settings.item_weight:
        smooth = np.linalg.matrix_power(content_means(modalities, settings, len(items)), settings.item_layers)
    source = table if isinstance(ssr, SsrNodes) and settings.item_source == "table" else items
    added = 0.0 if smooth is None else settings.item_weight * smooth @ source
    nodes = np.concatenate([users[:n_users], items + added])
    blocks = [nodes]
    for index, modality in enumerate(modalities.values() if settings.content_blocks else ()):
        rows = np.zeros((len(items), modality.width))
        for item in range(ITEMS):
            if modality.present[item]:
                value = modality.values[item].double().numpy()
                rows[item] = value / np.linalg.norm(value)
        of_users = np.zeros((n_users, modality.width))
        if settings.user_content == "profile":
            layer = np.concatenate([of_users, rows])
            total = layer.copy()
            for _ in range(2):
                layer = normalised_graph(ssr) @ layer
                total += layer
            of_users = total[:n_users] / 3
        signal = np.concatenate([of_users, rows if smooth is None else smooth @ rows])
        blocks.append(signal @ array(ssr.content.project[index].weight).T)
    s = np.stack([dense_bands(ssr, block) for block in blocks], axis=2).transpose(1, 0, 2, 3)
    y = fused(ssr, s)
    of_content = y[:, 1:].copy()
    for user in range(n_users):
        for p in range(len(blocks) - 1):
            of_content[user, p] *= float(ssr.balance[user, p].detach())
            if ssr.preferences is not None:
                of_content[user, p] += array(ssr.preferences[user, p])
    if ssr.concat:
        out = np.concatenate([y[:, 0], *(of_content[:, p] for p in range(len(blocks) - 1))], axis=1)
    else:
        out = y[:, 0] + of_content.sum(axis=1)
    return s, y, of_content, out


CASES = [
    ("nodes", ("image", "text"), {}),
    ("nodes", ("image", "text"), {"output": "add", "item_source": "nodes", "item_layers": 2}),
    ("nodes", ("image", "text"), {"preferences": False, "fusion": "sum", "user_content": "profile"}),
    ("nodes", ("image", "text", "audio"), {"bands": 2, "user_content": "profile", "keep_length": True}),
    ("nodes", ("image",), {"item_weight": 0.0}),
    ("nodes", ("text",), {"content_blocks": False}),
    ("nodes", (), {}),
    ("nodes", ("image", "text"), {"modalities": ["text"], "edges": [0.4, 1.3]}),
    ("nodes", ("image", "text"), {"bands": 1, "edges": "equal_width"}),
    ("tables", ("image", "text"), {}),
    ("tables", ("text",), {"bands": 4, "item_layers": 0}),
    ("sequence", ("image", "text"), {}),
    ("sequence", (), {"bands": 2}),
]


@pytest.mark.parametrize(("host", "modalities", "settings"), CASES, ids=str)
def test_all_of_it_is_the_slow_reference(host, modalities, settings):
    ssr = settled(make(host, modalities, **settings))
    assert isinstance(ssr, SsrNodes if host == "nodes" else SsrTables)
    used = {name: each for name, each in content(*modalities).items() if name in settings.get("modalities", modalities)}
    expected = torch.from_numpy(reference(ssr, used)[3]).float()
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

    def draw(rows, bands, blocks, isolated, like):
        seen.append(isolated)
        factors = (torch.rand(rows, bands, 1, 1, generator=torch.Generator().manual_seed(seed)) < 0.6).float() / 0.6
        return factors.masked_fill(isolated[:, None, None, None], 1.0)

    monkeypatch.setattr(ssr.mask, "draw", draw)
    monkeypatch.setattr(ssr.choice, "permutation", lambda n, device: torch.arange(n, device=device).flip(0))
    return draw, seen


@pytest.mark.parametrize(
    ("host", "modalities", "settings"),
    [
        ("nodes", ("image", "text"), {}),
        ("nodes", ("image", "text", "audio"), {"bands": 2, "mask_triples": 4, "output": "add", "keep_length": True}),
        ("nodes", ("image", "text"), {"consistency": "score_mse", "preferences": False}),
        ("nodes", ("image", "text"), {"fusion": "sum"}),
        ("tables", ("image", "text"), {}),
        ("sequence", ("image", "text"), {"mask_triples": 3}),
    ],
    ids=str,
)
@torch.no_grad()
def test_every_loss_is_its_slow_reference(host, modalities, settings, monkeypatch):
    ssr = settled(make(host, modalities, **settings))
    s, y, of_content, _ = reference(ssr, content(*modalities))
    draw, seen = scripted(ssr, monkeypatch)
    ssr.step = step_of(ssr)
    run(ssr)
    losses = ssr.losses(ssr.step)
    mixes = ssr.settings.fusion != "sum"
    assert losses.keys() == {"mask", "contrast", "ridge", *(["operator"] if mixes else [])}

    order = list(range(len(BATCH.positives)))[::-1][: ssr.settings.mask_triples]
    parts = [[int(ids[i]) + offset for i in order] for ids, offset in triples(ssr)]
    degree = normalised_graph(ssr).sum(axis=1)
    alone = torch.tensor([degree[node] == 0 for part in parts for node in part])
    factors = draw(len(alone), ssr.settings.bands, 1, alone, None)
    assert torch.equal(seen[0], alone)
    places = iter(range(len(alone)))
    hidden = [[fused(ssr, (s[node] * array(factors[next(places)]))[None])[0] for node in part] for part in parts]
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
            margins.append((mu * (mi - mj)).sum() - (y[u] * (y[i] - y[j])).sum())
        distance = np.mean(np.square(margins))
    assert float(losses["mask"]) == pytest.approx(ssr.settings.lambda_mask * distance, rel=1e-3)

    nodes = range(ITEMS + 1) if host == "sequence" else batch_nodes().tolist()
    ridge = np.mean([(of_content[node] ** 2).sum() for node in nodes]) / 2
    assert float(losses["ridge"]) == pytest.approx(ssr.settings.lambda_ridge * ridge, rel=1e-3)
    if mixes:
        penalty = (five_way(ssr) ** 2).mean() + ((array(ssr.cross.mix.v) - 1) ** 2).mean()
        assert float(losses["operator"]) == pytest.approx(ssr.settings.lambda_operator * penalty, rel=1e-4)
    pairs = itertools.combinations(range(len(modalities)), 2)
    contrast = np.mean([slow_contrast(ssr, s, content(*modalities), *pair) for pair in pairs])
    assert float(losses["contrast"]) == pytest.approx(ssr.settings.lambda_contrast * contrast, rel=1e-3)


def triples(ssr):
    of_items = [(BATCH.positives, ssr.n_users), (BATCH.negatives, ssr.n_users)]
    return [(BATCH.users, 0), *of_items] if ssr.n_users else of_items


def slow_contrast(ssr, s, modalities, one, other):
    """Anchors are (item, band) with something in both modalities; every other anchor is a negative, in either."""
    first, second = [list(modalities.values())[k].present for k in (one, other)]
    anchors = []
    for item in sorted(set(BATCH.positives.tolist())):
        bands = s[ssr.n_users + item][:, [1 + one, 1 + other]]  # [M, 2, d]
        sizes = np.linalg.norm(bands, axis=-1)
        for m in range(len(bands)):
            if first[item] and second[item] and (sizes[m] > 1e-5 * sizes.max(axis=0)).all():
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
    users, items, table = (x.clone().requires_grad_() for x in inputs(ssr))
    ssr.step = step_of(ssr)
    ssr.step.table = lambda side: table
    out = run(ssr, users, items)
    u, i, j = (out[ids + offset] for ids, offset in triples(ssr))
    loss = -torch.nn.functional.logsigmoid((u * (i - j)).sum(dim=1)).mean()
    if with_losses:
        loss = loss + sum(ssr.losses(ssr.step).values())
    everything = [users, items, *ssr.parameters(), *([table] if ssr.settings.item_source == "table" else [])]
    return out, loss, torch.autograd.grad(loss, everything, allow_unused=True)


VARIANTS = [
    ("nodes", {}),
    ("nodes", {"output": "add", "gate": True}),
    ("nodes", {"fusion": "colsoftmax", "item_source": "nodes"}),
    ("nodes", {"engine": "polynomial", "preferences": False}),
    ("nodes", {"fusion": "sum"}),
    ("tables", {"item_source": "nodes"}),
    ("tables", {"item_source": "nodes", "fusion": "sum", "bands": 1, "edges": "equal_width"}),
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
    monkeypatch.setattr(ssr_module, "distinct", lambda ids: torch.cat([i.reshape(-1) for i in ids]).repeat(2))
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


@pytest.mark.parametrize(("host", "settings"), [*VARIANTS, ("nodes", {"every": 3, "anchors": 4, "mask_triples": 2})])
def test_a_step_waits_for_nothing(host, settings, monkeypatch):
    ssr = settled(make(host, **settings))
    monkeypatch.setattr(ssr_module, "distinct", lambda ids: torch.cat([i.reshape(-1) for i in ids]))
    users, items, _ = inputs(ssr)
    ssr.step = step_of(ssr)
    asked = ssr.step.asked()
    ssr.step.asked = lambda: asked
    with NoWaiting():
        out = run(ssr, users.clone().requires_grad_(), items)
        (out.sum() + sum(ssr.losses(ssr.step).values())).backward()


# -- bands that serve for several steps


def test_bands_that_serve_for_several_steps_add_up_to_the_fresh_signal():
    ssr = settled(make(every=3))
    once = settled(make(every=1))
    generator = torch.Generator().manual_seed(3)
    ssr.on_epoch_start(100)
    for turn in range(7):
        nodes = torch.randn(N, D, generator=generator)
        for rows in (None, torch.tensor([3, 1, USERS + 4])):
            if rows is not None:
                ssr._age -= 1  # the same step again
            ssr.step = once.step = step_of(ssr)
            s, fresh = ssr.bands(nodes, rows), once.bands(nodes, rows)
            torch.testing.assert_close(s.sum(dim=1), fresh.sum(dim=1), **CLOSE)
            if turn % 3 == 0:
                torch.testing.assert_close(s, fresh, **CLOSE)
            else:
                assert not torch.allclose(s[:, :, 0], fresh[:, :, 0], atol=1e-2)


def test_with_the_plain_sum_the_masked_view_is_made_in_one_step_of_several(monkeypatch):
    found = {}
    for every in (1, 3):
        ssr = settled(make(fusion="sum", every=every))
        scripted(ssr, monkeypatch)
        for _ in range(5):
            ssr.step = step_of(ssr)
            run(ssr)
            found.setdefault(every, []).append(ssr.losses(ssr.step).get("mask"))
    assert [mask is None for mask in found[3]] == [False, True, True, False, True]
    torch.testing.assert_close(found[3][0], 3 * found[1][0])


def test_bands_of_an_earlier_step_lose_no_gradient():
    ssr = settled(make(every=2))
    ssr.step = step_of(ssr)
    for _ in range(2):
        nodes = torch.randn(N, D).requires_grad_()
        weight = torch.randn(N, D)
        (found,) = torch.autograd.grad((ssr.bands(nodes, None).sum(dim=1)[:, 0] * weight).sum(), nodes)
        torch.testing.assert_close(found, weight)  # E is the table's, not the nodes'


def test_bands_of_an_earlier_step_do_not_outlive_the_edges():
    ssr = settled(make(every=1000))
    kept = make(every=1000)
    ssr.step = kept.step = step_of(ssr)
    nodes = torch.cat(inputs(ssr)[:2])
    ssr.bands(nodes * 2, None)
    kept.load_state_dict(ssr.state_dict())
    ssr.load_state_dict(ssr.state_dict())
    kept.on_epoch_start(99)
    torch.testing.assert_close(ssr.bands(nodes, None), kept.train().bands(nodes, None))
    ssr.bands(nodes * 3, None)
    ssr.on_epoch_start(100)  # a run that is taken up at this epoch has none either
    kept.on_epoch_start(100)
    torch.testing.assert_close(ssr.bands(nodes / 2, None), kept.bands(nodes / 2, None))


# -- identities


@pytest.mark.parametrize("host", ["nodes", "tables", "sequence"])
@pytest.mark.parametrize("kind", ["training", "evaluation", "call"])
def test_at_identity_the_very_same_tensors_come_back(host, kind):
    ssr = make(host, offered=(), bands=1, fusion="sum", edges="equal_width")
    assert ssr.inert
    ssr.step = step_of(ssr, kind=kind)
    users, items, _ = inputs(ssr)
    found = ssr.propagated(users, items) if host == "nodes" else ssr.tables(users if ssr.n_users else None, items)
    assert found[0] is (users if ssr.n_users else None)
    assert found[1] is items
    assert ssr.losses(ssr.step) == {}


@pytest.mark.parametrize(
    ("modalities", "settings"),
    [
        ((), {"bands": 2, "fusion": "sum"}),
        ((), {"bands": 1, "fusion": "cp", "edges": "equal_width"}),
        (("text",), {"bands": 1, "fusion": "sum", "content_blocks": False, "edges": "equal_width"}),
        (("text",), {"bands": 1, "fusion": "sum", "item_layers": 0, "edges": "equal_width"}),
    ],
    ids=str,
)
def test_nothing_else_counts_as_the_identity(modalities, settings):
    assert not make(offered=modalities, **settings).inert


@pytest.mark.parametrize("modalities", [("text",), ("image", "text")])
@pytest.mark.parametrize("weight", [{"item_weight": 0.0}, {"item_layers": 0}])
def test_a_graph_without_weight_is_not_built(modalities, weight):
    ssr = make(offered=modalities, bands=1, fusion="sum", content_blocks=False, edges="equal_width", **weight)
    assert ssr.item_graph is None
    assert ssr.inert


@pytest.mark.parametrize("host", ["nodes", "tables"])
@pytest.mark.parametrize("bands", [1, 3])
def test_at_the_start_the_operator_does_nothing(host, bands):
    """The backbone's block is H + w S E; content stands beside it."""
    ssr = make(host, start=True, bands=bands, edges="equal_width").eval()
    nodes = torch.cat(inputs(ssr)[:2])
    ssr.step = step_of(ssr, kind="call")
    y = ssr.view(nodes, None)
    torch.testing.assert_close(y[:, 0], ssr.signal(nodes), **CLOSE)
    projected = [linear(x) for linear, x in zip(ssr.content.project, ssr.content.signals(), strict=True)]
    torch.testing.assert_close(y[:, 1:], torch.stack(projected, dim=1), **CLOSE)


# -- epochs, copies, evaluations


def test_edges_move_in_the_first_epochs_and_then_stay():
    ssr = make(edge_epochs=2).train()
    start = ssr.decomposition.edges.clone()
    seen = []
    for epoch in range(4):
        ssr.on_epoch_start(epoch)
        for turn in range(2):
            ssr.step = step_of(ssr)
            users, items, _ = (x * randn(len(x), 1, seed=10 * epoch) ** 3 for x in inputs(ssr))
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
    trained.on_epoch_start(1)
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
@pytest.mark.parametrize("every", [1, 4])
def test_copies_go_on_alike(copied, every):
    ssr = settled(make(every=every, anchors=4, mask_triples=3))
    other = copied(ssr)
    for one in (ssr, other):
        one.step = step_of(one)
        assert sorted(name for name, _ in one.named_parameters()) == sorted(dict(other.named_parameters()))
    assert torch.equal(run(ssr), run(other))
    losses = [{name: float(loss.detach()) for name, loss in one.losses(one.step).items()} for one in (ssr, other)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("host", ["nodes", "tables", "sequence"])
def test_a_model_works_before_training_and_evaluation_changes_nothing(host):
    ssr = make(host, every=2).eval()
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
    assert ssr._kept is None


def test_reset_begins_anew_and_keeps_the_edges():
    ssr = settled(make(start=True))
    edges = ssr.decomposition.edges.clone()
    for parameter in ssr.parameters():
        parameter.data += 1
    ssr.reset_parameters()
    assert torch.equal(ssr.decomposition.edges, edges)
    assert torch.equal(ssr.balance, torch.ones_like(ssr.balance))
    assert not ssr.cross.mix.a.any()
    assert not ssr.preferences.any()  # content begins without a say
    assert "concat=True" in repr(ssr)


# -- oddities


@pytest.mark.parametrize("host", ["nodes", "tables"])
def test_nodes_without_edges_keep_their_vector(host, monkeypatch):
    """All their energy lies in one band; the mask leaves them whole."""
    ssr = settled(make(host, mask_rate=0.9, fusion="sum", item_layers=0, lambda_contrast=0.0, lambda_ridge=0.0))
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
        users, items, _ = (x.clone().requires_grad_() for x in inputs(ssr))
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
        (("image", "text"), {"bands": 1, "edges": "equal_width"}, ("mask",)),
        (("image", "text"), {"fusion": "sum"}, ("operator",)),
        (("image", "text"), {"content_blocks": False}, ("contrast", "ridge")),
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


@pytest.mark.parametrize("form", ["score_mse", "score_kl"])
def test_scores_cannot_be_compared_without_negatives(form):
    """Hosts that learn from labelled pairs have none."""
    ssr = make(consistency=form)
    batch = Batch(users=BATCH.users, positives=BATCH.positives, labels=torch.ones(6))
    ssr.step = step_of(ssr, batch)
    run(ssr.train())
    with pytest.raises(RecplugError, match=f"ssr.consistency {form} needs batches of users, items and negatives"):
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
