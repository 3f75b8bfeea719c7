import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from recplug.adapters.features import FeatureTable
from recplug.adapters.torch import attach
from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import get

ITEMS, WIDTH = 25, 8
TOKENS = ["[PAD]", *(f"i{i}" for i in range(1, ITEMS))]
QUIET = {"mask": "mean", "gate_dropout": 0.0}  # PRISM without a random draw


class Toy(nn.Module):
    """A recurrent recommender, with dropout, whose table lies one level down."""

    def __init__(self):
        super().__init__()
        self.table = nn.Module()
        self.table.items = nn.Embedding(ITEMS, WIDTH, padding_idx=0)
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.drop = nn.Dropout(0.3)

    @property
    def items(self):
        return self.table.items

    def encode(self, sequence):
        states, _ = self.gru(self.drop(self.items(sequence)))
        return states[:, -1]

    def loss(self, sequence, target):
        return F.cross_entropy(self.encode(sequence) @ self.items.weight.T, target)


def toy(seed=0):
    torch.manual_seed(seed)
    return Toy()


def content():
    draw = torch.Generator().manual_seed(4)
    return {
        name: (TOKENS[1:], torch.randn(ITEMS - 1, width, generator=draw)) for name, width in (("image", 5), ("text", 3))
    }


def batch():
    draw = torch.Generator().manual_seed(5)
    sequence = torch.randint(1, ITEMS, (6, 4), generator=draw)
    sequence[0, 2:] = 0
    return sequence, torch.randint(1, ITEMS, (6,), generator=draw)


def grafted(model=None, **more):
    model = model if model is not None else toy()
    given = {"plugins": "prism", "features": content(), "item_tokens": TOKENS, "item_table": "table.items", **more}
    return model, attach(model, **given)


def stepped(model, attachment, seed=9):
    """Loss and gradients of one step."""
    sequence, target = batch()
    torch.manual_seed(seed)
    with attachment.step(sequence=sequence, positives=target):
        loss = model.loss(sequence, target) + attachment.loss()
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("plugins", [[], ["prism"]])
def test_off_means_off_to_the_bit(plugins):
    bare, sequence, target = toy(), *batch()
    torch.manual_seed(9)
    truth = bare.loss(sequence, target)
    truth.backward()
    settings = {"prism": dict(get("prism").identity)} if plugins else None
    model, attachment = grafted(plugins=plugins, settings=settings)
    loss, gradients = stepped(model, attachment)
    assert torch.equal(loss, truth.detach())
    for name, parameter in bare.named_parameters():
        assert torch.equal(gradients[name], parameter.grad), name
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.encode(sequence), bare.eval().encode(sequence))


def test_the_global_random_state_stays():
    model = toy()
    before = torch.get_rng_state()
    grafted(model)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("candidates", ["id", "fused"])
@pytest.mark.parametrize("negatives", [None, torch.tensor([1, 1, 2, 3, 4, 5])])
def test_the_loss_is_that_of_the_items_that_the_step_works_on(candidates, negatives):
    _, attachment = grafted(settings={"prism": {**QUIET, "candidates": candidates}})
    sequence, target = batch()
    with attachment.step(sequence=sequence, positives=target, negatives=negatives):
        loss = attachment.loss()
    prism = attachment.chain.augmentations()["prism"]
    ids = torch.cat([sequence.flatten(), target, *([] if negatives is None else [negatives])]).unique()
    if negatives is None and candidates == "fused":
        ids = torch.arange(ITEMS)  # a softmax over all items fuses them all
    parts = prism.interaction_losses(ids)
    assert {name.removeprefix("prism."): value.item() for name, value in attachment.losses.items()} == pytest.approx(
        {name: value.item() for name, value in parts.items()}, rel=1e-5, abs=1e-7
    )
    assert loss.item() == pytest.approx(sum(parts.values()).item(), rel=1e-5)
    assert loss.requires_grad
    assert not any(value.requires_grad for value in attachment.losses.values())


def test_content_reaches_histories_and_with_fused_candidates_the_table():
    sequence, _ = batch()
    real = (sequence != 0).unsqueeze(-1)
    for candidates in ("id", "fused"):
        model, attachment = grafted(settings={"prism": {**QUIET, "candidates": candidates}})
        raw = attachment.chain.item_table.raw
        moved = model.items(sequence) - F.embedding(sequence, raw)
        assert ((moved.abs().sum(-1, keepdim=True) > 0) == real).all(), "padding stays, every item moves"
        changed = (model.items.weight != raw).any(dim=1)
        assert changed.tolist() == [False] + [candidates == "fused"] * (ITEMS - 1)


def test_the_models_optimiser_trains_the_plugin():
    model, attachment = grafted()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(attachment.state_dict())
    stepped(model, attachment)
    optimiser.step()
    moved = {name for name, value in attachment.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, p in attachment.chain.plugins.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == trained
    assert {"prism.scale"} < moved


def test_without_a_plugin_the_loss_is_a_zero_on_the_models_device():
    _, attachment = grafted(toy().to("meta"), plugins=[], features=None)
    with attachment.step(sequence=torch.zeros(1, 1, dtype=torch.long, device="meta")):
        loss = attachment.loss()
    assert (loss.device.type, loss.shape, attachment.losses) == ("meta", (), {})


def test_evaluation_is_the_same_twice_and_notices_a_new_state():
    model, attachment = grafted()
    sequence, _ = batch()
    model.eval()
    with torch.no_grad():
        first = model.encode(sequence)
        assert torch.equal(model.encode(sequence), first)
        attachment.chain.augmentations()["prism"].scale.add_(1.0)
        assert not torch.equal(model.encode(sequence), first)


def test_save_and_load_only_what_was_added(tmp_path):
    model, attachment = grafted()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for seed in range(3):
        stepped(model, attachment, seed)
        optimiser.step()
    attachment.save(tmp_path / "prism.safetensors")
    found = load_file(tmp_path / "prism.safetensors")
    assert found.keys() == attachment.state_dict().keys()
    assert all(name.startswith("prism.") for name in found)
    widths = {5, 3}
    assert not any(
        value.shape[0] == ITEMS and value.shape[-1] in widths for value in found.values() if value.dim() == 2
    )

    other = toy(seed=1)
    other.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("recplug")})
    _, loaded = grafted(other, seed=7)
    sequence, _ = batch()
    with torch.no_grad():
        assert not torch.equal(other.eval().encode(sequence), model.eval().encode(sequence))
        loaded.load(tmp_path / "prism.safetensors")
        assert torch.equal(other.encode(sequence), model.encode(sequence))


@pytest.mark.parametrize("fusion", ["item", "user"])
def test_prediction_level_losses_run_the_encoder_again(fusion):
    model = toy()
    settings = {"prism": {**QUIET, "loss_level": "prediction", "prediction_experts": "all", "fusion": fusion}}
    calls = []

    def encode(batch):
        calls.append(batch.sequence)
        return model.encode(batch.sequence)

    with pytest.raises(RecplugError, match="does not offer; choose another loss level"):
        grafted(model, settings=settings)
    _, attachment = grafted(model, settings=settings, encode=encode, score_is_dot=True)
    _, gradients = stepped(model, attachment)
    assert len(calls) == 4 * 3, "four experts, each with both modalities and with either masked"
    assert {"prism.unique_image", "prism.unique_text", "prism.synergy", "prism.redundancy"} == set(attachment.losses)
    assert gradients["gru.weight_ih_l0"].abs().sum() > 0


def test_matrix_factorisation():
    class Factors(nn.Module):
        def __init__(self):
            super().__init__()
            self.users, self.items = nn.Embedding(7, WIDTH), nn.Embedding(ITEMS, WIDTH)

    torch.manual_seed(0)
    model = Factors()
    edges = torch.stack([torch.arange(7), torch.arange(1, 8)])
    _, attachment = grafted(model, item_table="items", family="graph", edges=edges,
                            settings={"prism": {"candidates": "fused", "fusion": "item"}})  # fmt: skip
    users, positives, negatives = torch.arange(7), torch.arange(1, 8), torch.arange(11, 18)
    with attachment.step(users=users, positives=positives, negatives=negatives):
        rows = model.users(users)
        difference = (rows * (model.items(positives) - model.items(negatives))).sum(-1)
        loss = -F.logsigmoid(difference).mean() + attachment.loss()
    loss.backward()
    assert attachment.chain.augmentations()["prism"].scale.grad != 0
    touched = attachment.chain.item_table.raw.grad.any(dim=1).nonzero().flatten().tolist()
    assert touched == [*range(1, 8), *range(11, 18)]


def test_features_as_a_file_a_table_or_aligned_rows_are_one_and_the_same(tmp_path):
    table = FeatureTable(content()["image"][1], tuple(TOKENS[1:]), "image")
    table.save(tmp_path / "x.safetensors")
    aligned = table.align(TOKENS)
    outputs = []
    for given in (tmp_path / "x.safetensors", str(tmp_path / "x.safetensors"), table, aligned, content()["image"]):
        model, _ = grafted(features={"image": given}, settings={"prism": QUIET})
        outputs.append(model.eval().encode(batch()[0]).detach())
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])


def test_a_copied_model_is_whole():
    model, _ = grafted(settings={"prism": QUIET})
    twin = copy.deepcopy(model)
    sequence, _ = batch()
    assert torch.equal(twin.eval().encode(sequence), model.eval().encode(sequence))
    with torch.no_grad():
        twin.recplug.augmentations()["prism"].scale.add_(1.0)
        assert not torch.equal(twin.encode(sequence), model.encode(sequence))


def short(name):
    return {name: (TOKENS[1:3], torch.randn(2, 3))}


WRONG = {
    "unknown plugin": ({"plugins": "prsm"}, "did you mean 'prism'"),
    "plugin twice": ({"plugins": ["prism", "prism"]}, "named twice"),
    "unknown setting": ({"settings": {"prism": {"scal": 1}}}, "did you mean 'scale'"),
    "settings of another": ({"settings": {"mars": {}}}, "not among the plugins"),
    "no such table": ({"item_table": "table.item"}, "did you mean 'table.items'"),
    "no embedding": ({"item_table": "gru"}, "its embeddings: table.items"),
    "no features": ({"features": {}}, "needs 1 feature table"),
    "no tokens": ({"item_tokens": None}, "pass item_tokens"),
    "too many tokens": ({"item_tokens": [*TOKENS, "more"]}, "26 item_tokens, but the item table has 25 rows"),
    "no padding token": ({"item_tokens": TOKENS[1:]}, "start with '[PAD]'"),
    "nothing shared": ({"features": {"image": (["x"], torch.ones(1, 2))}}, "none of the dataset's 24 items"),
    "tokens and rows differ": ({"features": {"image": (["x"], torch.ones(2, 2))}}, "2 rows but 1 item tokens"),
    "NaN": ({"features": {"image": (["i1"], torch.full((1, 2), torch.nan))}}, "hold NaN"),
    "no file": ({"features": {"image": "none.safetensors"}}, "no feature table at none.safetensors"),
    "rows of another table": (
        {"features": {"image": Modality("image", torch.ones(40, 2), torch.ones(40, dtype=torch.bool))}},
        "have 40 rows, the item table has 25",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_leaves_the_model_as_it_was(case):
    more, told = WRONG[case]
    model = toy()
    with pytest.raises(RecplugError) as caught:
        grafted(model, **more)
    assert told in str(caught.value)
    assert type(model.items) is nn.Embedding
    assert not hasattr(model, "recplug")


def test_plugins_are_attached_once():
    model, _ = grafted()
    with pytest.raises(RecplugError, match="attached already"):
        grafted(model)


def test_a_loss_outside_of_a_step():
    _, attachment = grafted()
    with pytest.raises(RecplugError, match=r"inside 'with attachment\.step"):
        attachment.loss()


def test_load_refuses_other_tensors(tmp_path):
    _, attachment = grafted()
    attachment.save(tmp_path / "a.safetensors")
    _, other = grafted(settings={"prism": {"hidden": 3}})
    with pytest.raises(RecplugError, match=r"does not fit: 'prism\."):
        other.load(tmp_path / "a.safetensors")
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(RecplugError, match="cannot read"):
            other.load(path)
    with pytest.raises(RecplugError, match="cannot write"):
        attachment.save(tmp_path / "none" / "a.safetensors")


def test_recbole_is_not_needed():
    code = "import sys, recplug.adapters.torch; sys.exit('recbole' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_losses_may_ask_for_users_outside_of_the_batch():
    model, (sequence, target) = toy(), batch()
    histories = torch.randint(1, ITEMS, (9, 4), generator=torch.Generator().manual_seed(6))
    attachment = attach(
        model, item_table="items", plugins=[], user_vectors=lambda users: model.encode(histories[users])
    )
    model.train()
    users = torch.tensor([8, 2, 8])
    negatives = torch.randint(1, ITEMS, (6,))
    with attachment.step(sequence=sequence, positives=target, negatives=negatives) as step:
        found = step.vectors_of(users)
        found.sum().backward()
    assert found.shape == (3, WIDTH)
    assert (model.items.raw.grad[histories[users]].abs().sum(dim=-1) > 0).all()
    model.eval()
    with torch.no_grad():
        assert torch.allclose(attachment.chain.current().vectors_of(users), model.encode(histories[users]))
