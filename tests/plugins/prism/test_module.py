"""PRISM whole: on toy backbones against dense formulas, and in anyone's own training loop."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recplug.plugins import Context, Modality, RecplugError, get
from recplug.plugins.chain import Chain
from recplug.plugins.prism import Prism, PrismSettings
from recplug.plugins.prism.losses import interaction_losses
from recplug.plugins.prism.plugin import likeness
from recplug.plugins.settings import parse_settings
from recplug.plugins.testing import Case, check_plugin, planted_modalities
from recplug.plugins.testing.case import N_ITEMS

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
STILL = {"gate_dropout": 0.0}  # nothing random in the fusion
POOLED = {"fusion": "sequence_pooled", "candidates": "id"}


def host_of(host="mean-ce", **settings):
    plugin = get("prism")
    case = Case(plugin, parse_settings("prism", plugin.settings, {"scale": 0.7, **STILL, **settings}), host)
    built = case.build()
    return built, built.chain.augmentations()["prism"], case.batch()


def gate_weights(prism, e, context):
    """Eq. (10) on the concatenation of all experts and the context."""
    gate = prism.gate
    weight = torch.cat([gate.of_experts.weight, gate.of_context.weight], dim=1)
    hidden = F.gelu(F.linear(torch.cat([e.flatten(-2), context], dim=-1), weight, gate.of_experts.bias))
    return torch.softmax(gate.out(hidden) / prism.settings.temperature, dim=-1)


VARIANTS = [  # the defaults are in tests/plugins/test_every_plugin.py
    {"fusion": "item"},
    {"granularity": "sequence", "residual": True, "mask": "shuffle"},
    {**POOLED, "loss_level": "sequence_pooled", "triplet": "l2", "mask": "gaussian"},
    {"loss_level": "prediction", "prediction_experts": "all", "mask": "mean", "candidates": "id"},
    {"loss_level": "prediction", "mask": "zero", "lambda_unique": {"image": 0.3}},
    {"experts": (), "residual": True},
    {"experts": "unique_text,redundancy", "gate": False},
    {"tune_features": True, "candidates": "fused", "loss_items": 4},
    {"modalities": ["text"]},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_contract_holds(settings):
    check_plugin(get("prism"), settings)


# -- fusion


@pytest.mark.parametrize("residual", [False, True])
def test_item_mode_is_the_formula_on_both_sides(residual):
    host, prism, batch = host_of(fusion="item", candidates="fused", residual=residual)
    raw = host.chain.item_table.raw
    ids = torch.arange(N_ITEMS)
    p = prism.content(ids)
    e = prism.experts(p)
    w = gate_weights(prism, e, raw)
    expected = raw + prism.scale * ((w.unsqueeze(-1) * e).sum(dim=1) + (p.sum(dim=1) if residual else 0))
    expected = torch.where(ids.unsqueeze(1) > 0, expected, raw)
    for whole_table in (True, False):
        with host.chain.step(batch, whole_table=whole_table):
            weight = host.backbone.items.weight
            torch.testing.assert_close(weight, expected, **TOLERANCE)
            torch.testing.assert_close(host.backbone.items(batch.sequence), weight[batch.sequence], **TOLERANCE)
            torch.testing.assert_close(host.backbone.items(batch.positives), weight[batch.positives], **TOLERANCE)


def dense_by_user(prism, raw, sequence, granularity, residual):
    """Every position of every history, padding too, one after the other."""
    rows = raw[sequence].clone()
    for user, items in enumerate(sequence):
        real = [place for place, item in enumerate(items) if item > 0]
        context = raw[items[real]].mean(dim=0)
        e = prism.experts(prism.content(items[real]))  # [n, J, d]
        of_experts = e.flatten(1)
        if granularity == "sequence":  # the gate's first layer is linear: its mean is that of the experts
            of_experts = of_experts.mean(dim=0, keepdim=True).expand(len(real), -1)
        w = gate_weights(prism, of_experts.unflatten(-1, e.shape[1:]), context.expand(len(real), -1))
        added = (w.unsqueeze(-1) * e).sum(dim=1)
        if residual:
            added = added + prism.content(items[real]).sum(dim=1)
        rows[user, real] = raw[items[real]] + prism.scale * added
    return rows


@pytest.mark.parametrize("granularity", ["position", "sequence"])
@pytest.mark.parametrize("residual", [False, True])
def test_user_mode_is_the_dense_formula(granularity, residual):
    host, prism, batch = host_of(granularity=granularity, residual=residual)
    raw = host.chain.item_table.raw
    expected = dense_by_user(prism, raw, batch.sequence, granularity, residual)
    parameters = [raw, *(p for p in prism.parameters() if p.requires_grad)]
    upstream = torch.randn(expected.shape)
    wanted = torch.autograd.grad((expected * upstream).sum(), parameters, allow_unused=True)
    with host.chain.step(batch):
        found = host.backbone.items(batch.sequence)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    # The padding row takes no gradient, as in every nn.Embedding.
    upstream = upstream * (batch.sequence > 0).unsqueeze(-1)
    gradients = torch.autograd.grad((found * upstream).sum(), parameters, allow_unused=True)
    for mine, theirs in zip(gradients[1:], wanted[1:], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradients[0][1:], wanted[0][1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(prism(raw[batch.sequence], batch.sequence), expected, **TOLERANCE)


@pytest.mark.parametrize("residual", [False, True])
def test_pooled_mode_adds_one_vector_to_a_sequence(residual):
    host, prism, batch = host_of(**POOLED, residual=residual)
    raw = host.chain.item_table.raw
    found = host.backbone.items(batch.sequence)
    for user, length in enumerate(batch.lengths):
        items = batch.sequence[user, :length]
        p = prism.content(items)
        e = prism.experts(p.mean(dim=0, keepdim=True))
        w = gate_weights(prism, e, raw[items].mean(dim=0, keepdim=True))
        added = prism.scale * ((w.unsqueeze(-1) * e).sum(dim=1) + (p.sum(dim=1) if residual else 0))
        torch.testing.assert_close(found[user, :length], raw[items] + added, **TOLERANCE)
        assert torch.equal(found[user, length:], raw[batch.sequence[user, length:]])


def test_the_plain_sum_has_no_experts():
    host, prism, batch = host_of(experts=(), residual=True)
    assert prism.experts is None
    assert prism.gate is None
    p = prism.content(batch.sequence.flatten()).unflatten(0, batch.sequence.shape)
    raw = host.chain.item_table.raw
    fused = raw[batch.sequence] + 0.7 * p.sum(dim=-2)
    expected = torch.where((batch.sequence > 0).unsqueeze(-1), fused, raw[batch.sequence])
    torch.testing.assert_close(host.backbone.items(batch.sequence), expected, **TOLERANCE)
    with host.chain.step(batch) as step:
        assert host.chain.total_loss(step) is None


@pytest.mark.parametrize("fusion", ["item", "user", "sequence_pooled"])
def test_without_a_gate_every_expert_counts_alike(fusion):
    host, prism, batch = host_of(fusion=fusion, candidates="id", gate=False)
    assert prism.gate is None
    raw = host.chain.item_table.raw
    found = host.backbone.items(batch.sequence)
    for user, length in enumerate(batch.lengths):
        items = batch.sequence[user, :length]
        p = prism.content(items)
        if fusion == "sequence_pooled":
            p = p.mean(dim=0, keepdim=True)
        expected = raw[items] + prism.scale * prism.experts(p).mean(dim=1)
        torch.testing.assert_close(found[user, :length], expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("experts", "kept"),
    [
        (None, ["unique_image", "unique_text", "synergy", "redundancy"]),
        ("unique,redundancy", ["unique_image", "unique_text", "redundancy"]),
        ("synergy,unique_text", ["unique_text", "synergy"]),
        ("redundancy", ["redundancy"]),
    ],
)
@pytest.mark.parametrize("level", ["item", "prediction"])
def test_a_list_of_experts_has_these_and_their_losses(experts, kept, level):
    """Without expert j (the paper's ablation): its output, its part of the gate and its loss are gone."""
    host, prism, batch = host_of(experts=experts, loss_level=level, prediction_experts="all", mask="zero")
    host.backbone.dropout.p = 0.0
    ids = torch.arange(1, 9)
    e = prism.experts(prism.content(ids))
    assert e.shape == (8, len(kept), 16)
    raw = host.chain.item_table.raw
    w = gate_weights(prism, e, raw[ids])
    fused = raw[ids] + prism.scale * (w.unsqueeze(-1) * e).sum(dim=1)
    torch.testing.assert_close(host.backbone.items.weight[ids], fused, **TOLERANCE)
    found = loss_parts(host, prism, batch)
    assert list(found) == kept
    if level == "prediction":
        for at, name in enumerate(kept):
            torch.testing.assert_close(found[name], 0.1 * by_reencoding(host, prism, batch, at)[name], **TOLERANCE)


def test_candidates_are_the_backbones_own_unless_fused():
    host, *_ = host_of(candidates="id")
    assert host.backbone.items.weight is host.chain.item_table.raw
    host, *_ = host_of(candidates="fused")
    assert not torch.allclose(host.backbone.items.weight, host.chain.item_table.raw)


@pytest.mark.parametrize("granularity", ["position", "sequence"])
def test_a_history_of_padding_alone(granularity):
    host, _, batch = host_of(granularity=granularity)
    empty = torch.zeros_like(batch.sequence)
    assert torch.equal(host.backbone.items(empty), host.chain.item_table.raw[empty])


# -- losses


def loss_parts(host, prism, batch, seed=0):
    torch.manual_seed(seed)
    with host.chain.step(batch, score_is_dot=True) as step:
        step.encoder = lambda: host.backbone.encode(batch)
        step.encoded = step.encoder()
        return prism.losses(step)


def test_item_losses_act_on_the_batchs_complete_items():
    host, prism, batch = host_of(mask="zero", lambda_unique={"image": 0.3, "text": 0.7}, lambda_redundancy=0.0)
    ids = torch.unique(torch.cat(batch.items()))
    complete = prism.content.present[ids].all(dim=-1)
    assert 0 < complete.sum() < len(ids) - 1, "besides padding, items that lack a modality"
    p = prism.content(ids[complete])
    masked = []
    for m in range(2):
        exchanged = p.clone()
        exchanged[:, m] = 0.0
        masked.append(prism.experts(exchanged))
    everything = torch.ones(int(complete.sum()), dtype=torch.bool)
    expected = interaction_losses(
        prism.experts(p),
        torch.stack(masked, dim=2),
        experts=prism.expert_names,
        modalities=prism.names,
        valid=everything,
        triplet="cosine",
        margin=0.2,
    )
    found = loss_parts(host, prism, batch)
    assert set(found) == {"unique_image", "unique_text", "synergy"}
    torch.testing.assert_close(found["unique_image"], 0.3 * expected["unique_image"], **TOLERANCE)
    torch.testing.assert_close(found["unique_text"], 0.7 * expected["unique_text"], **TOLERANCE)
    torch.testing.assert_close(found["synergy"], 0.1 * expected["synergy"], **TOLERANCE)


@pytest.mark.parametrize("mask", ["matched", "shuffle", "mean"])
def test_items_that_lack_a_modality_take_no_part(mask):
    """Their content changes; the losses, gradients included, do not."""
    found = []
    for change in (0.0, 5.0):
        host, prism, batch = host_of(mask=mask)
        with torch.no_grad():
            prism.content.rows(0)[[5, 7]] += change  # item 5 lacks the text, item 7 both
        total = sum(loss_parts(host, prism, batch).values())
        found.append((total, *torch.autograd.grad(total, list(prism.experts.parameters()))))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_cap_keeps_valid_items():
    host, prism, batch = host_of(loss_items=2, mask="zero")
    values = [loss_parts(host, prism, batch)["redundancy"].item() for _ in range(20)]
    assert len(set(values)) > 1, "another choice at every step"
    # A mean over chosen rows that do not count would be zero.
    assert all(value > 0 for value in values)


def by_reencoding(host, prism, batch, expert):
    """Eqs. (2)-(4) literally: the toy's encoder on exchanged tables, and whole score vectors."""
    raw = host.chain.item_table.raw
    ids = torch.arange(N_ITEMS)
    p = prism.content(ids)
    complete = prism.content.present.all(dim=-1).reshape(-1, 1, 1)
    scores = []
    for masked in (None, 0, 1):
        exchanged = p.clone()
        if masked is not None:
            exchanged[:, masked] = 0.0  # mask="zero"
        table = raw + prism.scale * prism.experts(torch.where(complete, exchanged, p))[:, expert]
        table = torch.where(ids.unsqueeze(1) > 0, table, raw)
        real = (batch.sequence > 0).unsqueeze(-1)
        users = host.backbone.out((table[batch.sequence] * real).sum(dim=1) / batch.lengths.unsqueeze(1))
        scores.append(users @ host.backbone.items.weight[1:].detach().T)
    full, without_image, without_text = scores
    cosine = [F.cosine_similarity(full, other, dim=-1) for other in (without_image, without_text)]
    return {
        "unique_image": F.relu(0.2 - cosine[1] + cosine[0]).mean(),
        "unique_text": F.relu(0.2 - cosine[0] + cosine[1]).mean(),
        "synergy": (cosine[0] + cosine[1]).mean() / 2,
        "redundancy": 1 - (cosine[0] + cosine[1]).mean() / 2,
    }


@pytest.mark.parametrize("candidates", ["id", "fused"])
def test_prediction_losses_are_those_of_encoding_again(candidates):
    host, prism, batch = host_of(
        loss_level="prediction", prediction_experts="all", mask="zero", candidates=candidates, lambda_unique=0.5
    )
    host.backbone.dropout.p = 0.0
    found = loss_parts(host, prism, batch)
    lambdas = {"unique_image": 0.5, "unique_text": 0.5, "synergy": 0.1, "redundancy": 0.1}
    for expert, name in enumerate(lambdas):
        expected = lambdas[name] * by_reencoding(host, prism, batch, expert)[name]
        torch.testing.assert_close(found[name], expected, **TOLERANCE)
        parameters = [*prism.experts.parameters(), host.backbone.out.weight]
        mine = torch.autograd.grad(found[name], parameters, retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_one_expert_a_step_is_unbiased():
    """Each expert's part is the whole loss's, four times as large, in a quarter of the steps."""
    options = {"loss_level": "prediction", "mask": "zero"}
    host, prism, batch = host_of(**options, prediction_experts="all")
    host.backbone.dropout.p = 0.0
    wanted = {name: value.item() for name, value in loss_parts(host, prism, batch).items()}
    host, prism, batch = host_of(**options, prediction_experts="one")
    host.backbone.dropout.p = 0.0
    draws = [{n: v.item() for n, v in loss_parts(host, prism, batch).items()} for _ in range(400)]
    assert all(len(draw) == 1 for draw in draws)
    for name, value in wanted.items():
        mine = [draw[name] for draw in draws if name in draw]
        assert mine == pytest.approx([4 * value] * len(mine), rel=1e-3), name
        assert abs(len(mine) / len(draws) - 0.25) < 4 * (0.25 * 0.75 / len(draws)) ** 0.5, name


def test_prediction_losses_are_full_precision_under_autocast():
    """The Gram form squares what it multiplies; in bfloat16 its cosines would be noise."""
    found = []
    for autocast in (False, True):
        host, prism, batch = host_of(loss_level="prediction", prediction_experts="all", mask="zero", candidates="id")
        with host.chain.step(batch, score_is_dot=True) as step:
            outputs = [torch.randn(4, 16, generator=torch.Generator().manual_seed(i)) for i in range(12)]
            step.encoder = iter(outputs).__next__
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                found.append(prism.losses(step))
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-6, atol=1e-6)


def test_pooled_losses_act_on_pooled_histories():
    host, prism, batch = host_of(**POOLED, loss_level="sequence_pooled", mask="zero", lambda_synergy=1.0)
    found = loss_parts(host, prism, batch)
    total = 0.0
    for user, length in enumerate(batch.lengths):
        p = prism.content(batch.sequence[user, :length]).mean(dim=0, keepdim=True)  # [1, M, d]
        full = prism.experts(p)[0, 2]
        for m in range(2):
            exchanged = p.clone()
            exchanged[:, m] = 0.0
            total = total + F.cosine_similarity(full, prism.experts(exchanged)[0, 2], dim=-1) / 2
    torch.testing.assert_close(found["synergy"], total / 4, **TOLERANCE)


def test_with_one_modality_there_are_no_interaction_losses():
    host, prism, batch = host_of(modalities=["text"])
    assert prism.names == ("text",)
    assert loss_parts(host, prism, batch) == {}
    assert prism.interaction_losses(torch.arange(1, 5)) == {}


def test_losses_that_a_backbone_cannot_serve_say_so():
    _, prism, batch = host_of(loss_level="prediction")
    host, *_ = host_of()
    with host.chain.step(batch) as step, pytest.raises(RecplugError, match="dot-product"):
        prism.losses(step)


@pytest.mark.parametrize("level", ["item", "prediction"])
def test_weights_of_zero_turn_a_loss_off(level):
    off = {"lambda_unique": 0.0, "lambda_synergy": 0.0, "lambda_redundancy": 0.0}
    host, prism, batch = host_of(loss_level=level, **off)
    assert loss_parts(host, prism, batch) == {}
    host, prism, batch = host_of(loss_level=level, **{**off, "lambda_synergy": 0.1})
    assert set(loss_parts(host, prism, batch)) == {"synergy"}


# -- settings and construction


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"lambda_unique": -1.0}, "negative"),
        ({"lambda_unique": "image:-1"}, "negative"),
        ({"experts": ()}, "residual=true is the plain sum"),
        ({"fusion": "sequence_pooled", "candidates": "fused"}, "set candidates to 'id'"),
        ({"loss_level": "sequence_pooled"}, "fusion 'sequence_pooled'"),
        ({**POOLED, "loss_level": "prediction"}, "needs fusion"),
        ({"lambda_synergie": 1.0}, "did you mean 'lambda_synergy'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, words):
    with pytest.raises(RecplugError, match=words):
        parse_settings("prism", PrismSettings, settings)


def test_modalities_that_there_are_not():
    with pytest.raises(RecplugError, match=r"'txt'; feature tables: image, text; did you mean 'text'\?"):
        host_of(modalities=["txt"])
    with pytest.raises(RecplugError, match=r"lambda_unique names \['audio'\]"):
        host_of(lambda_unique={"audio": 1.0})
    with pytest.raises(RecplugError, match=r"experts names 'unique_txt'; there are: .*did you mean 'unique_text'"):
        host_of(experts=["unique_txt"])
    with pytest.raises(RecplugError, match="at least one modality"):
        Prism(modalities=[], width=4)


def test_modalities_that_say_the_same_are_warned_of(caplog):
    data = planted_modalities(n_items=60, n_users=20)
    image, text = data.modalities.values()
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0))).Q
    same = Modality("copy", image.values @ rotation, image.present)
    assert likeness(image, same, 0) == pytest.approx(1.0, abs=1e-4)
    assert abs(likeness(image, text, 0)) < 0.9
    context = Context("Toy", "sequential", 21, 61, {"items": 61}, {"items": 8}, torch.empty(2, 0, dtype=torch.long))
    with caplog.at_level(logging.WARNING, "recplug"):
        get("prism").build(PrismSettings(), Context(**{**vars(context), "modalities": {"image": image, "text": text}}))
        assert not caplog.records
        get("prism").build(PrismSettings(), Context(**{**vars(context), "modalities": {"image": image, "copy": same}}))
    assert "order the items alike" in caplog.text


def test_reset_draws_every_layer_anew():
    _, prism, _ = host_of()
    before = {name: parameter.clone() for name, parameter in prism.named_parameters()}
    with torch.no_grad():
        prism.scale.fill_(9.0)
    prism.reset_parameters()
    unchanged = {name for name, parameter in prism.named_parameters() if torch.equal(before[name], parameter)}
    assert unchanged == {"scale", "content.norm.0.weight", "content.norm.0.bias", "content.norm.1.weight",
                         "content.norm.1.bias"}  # fmt: skip


# -- three modalities, a plain loop, diagnostics


@pytest.mark.parametrize("n", [1, 2, 3])
def test_any_number_of_modalities_in_a_plain_loop(n):
    """No adapter: an embedding, PRISM, and fifteen lines."""
    names = ("image", "text", "audio")
    data = planted_modalities(names=names, n_items=60, n_users=80)
    modalities = [data.modalities[name] for name in names[:n]]
    torch.manual_seed(0)
    table = nn.Embedding(data.n_items, 16, padding_idx=0)
    prism = Prism(modalities=modalities, width=16, settings=PrismSettings(scale=0.5))
    optimiser = torch.optim.Adam([*table.parameters(), *prism.parameters()], lr=0.01)
    history = []
    for _ in range(6):
        for batch in data.batches(128, generator=torch.Generator().manual_seed(1)):
            rows = prism(table(batch.sequence), batch.sequence)  # [B, L, d]
            users = rows.sum(dim=1) / batch.lengths.unsqueeze(1)
            parts = prism.interaction_losses(torch.unique(batch.sequence))
            backbone = F.cross_entropy(users @ table.weight.T, batch.positives)
            optimiser.zero_grad()
            (backbone + sum(parts.values())).backward()
            optimiser.step()
            history.append(float(backbone.detach()))
    assert sum(history[-3:]) < 0.95 * sum(history[:3])
    assert prism.experts.n_experts == n + 2
    assert set(parts) == (set() if n == 1 else {*(f"unique_{m}" for m in names[:n]), "synergy", "redundancy"})
    assert all(p.grad is not None for p in prism.parameters())


def test_the_chain_holds_no_copy_of_the_content():
    host, prism, _ = host_of()
    assert isinstance(host.chain, Chain)
    assert not any("rows_" in name or "present" in name for name in host.state_dict())
    assert "modalities=['image', 'text']" in prism.extra_repr()
    assert "scale=0.7" in prism.extra_repr()
