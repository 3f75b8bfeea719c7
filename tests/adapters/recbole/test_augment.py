"""What the adapter adds around a backbone: history masks, the loss seam, the epoch clock, models of one's own."""

import pickle

import pytest
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from recbole.model.sequential_recommender import SASRec
from recbole.utils import InputType, get_trainer
from torch import nn

from recplug.adapters.chain_builder import build_chain
from recplug.adapters.recbole import augment
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.plugins.errors import RecplugError

ON = {"prism": {"scale": 0.5}}
IDENTITY_LOSSES = {"lambda_unique": 0.0, "lambda_synergy": 0.0, "lambda_redundancy": 0.0}


class MyModel(SequentialRecommender):
    """A user's own: the mean of a history, in a table that is not called like RecBole's."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.my_items = nn.Embedding(self.n_items, config["embedding_size"], padding_idx=0)
        self.loss = BPRLoss()

    def forward(self, item_seq, item_seq_len):
        return self.my_items(item_seq).sum(dim=1) / item_seq_len.unsqueeze(1)

    def calculate_loss(self, interaction):
        user = self.forward(interaction[self.ITEM_SEQ], item_seq_len=interaction[self.ITEM_SEQ_LEN])
        positive = (user * self.my_items(interaction[self.POS_ITEM_ID])).sum(dim=1)
        negative = (user * self.my_items(interaction[self.NEG_ITEM_ID])).sum(dim=1)
        return self.loss(positive, negative)

    def predict(self, interaction):
        user = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        return (user * self.my_items(interaction[self.ITEM_ID])).sum(dim=1)

    def full_sort_predict(self, interaction):
        return self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]) @ self.my_items.weight.T


class TwoLosses(SASRec):
    """A backbone whose loss has parts of its own."""

    def calculate_loss(self, interaction):
        loss = super().calculate_loss(interaction)
        return loss, 0.5 * loss


def scores_of(model, interaction):
    model.eval()
    with torch.no_grad():
        return model.full_sort_predict(interaction).reshape(len(interaction), -1)


@pytest.mark.parametrize("name", ["SASRec", "BERT4Rec", "S3Rec", "RepeatNet", "TransRec"])
@pytest.mark.parametrize("phase", ["valid", "test"])
def test_history_masks_exactly_what_the_user_has_had(name, phase, build, batch_of, past):
    _, plain, train, *loaders = build(name, "")
    _, masked, *_ = build(name, "", mask_history=True)
    shown = batch_of(loaders[phase == "test"])
    left_out = 1 if phase == "test" else 2
    before, after = scores_of(plain, shown), scores_of(masked, shown)
    dataset = train.dataset
    long = 0
    for row, user in enumerate(shown["user_id"].tolist()):
        items = past[dataset.id2token("user_id", user)]
        seen = dataset.token2id("item_id", items[:-left_out])
        long += len(items) - left_out > shown["item_id_list"].shape[1]
        hidden = (after[row, 1:] == -torch.inf).nonzero().squeeze(1) + 1
        assert set(hidden.tolist()) == set(seen.tolist())
        rest = torch.ones(after.shape[1], dtype=torch.bool)
        rest[0], rest[hidden] = False, False
        assert torch.equal(after[row, rest], before[row, rest])
    assert long > 5  # some had more than a sequence can show


def test_without_the_mask_scores_are_the_hosts_own(build, batch_of):
    _, bare, _, _, test = build("SASRec")
    _, model, *_ = build("SASRec", "", mask_history=False)
    assert torch.equal(scores_of(model, batch_of(test)), scores_of(bare, batch_of(test)))


def test_plugins_are_told_every_training_interaction(build, past, monkeypatch):
    told = []

    def spy(settings, context, **options):
        told.append(context)
        return build_chain(settings, context, **options)

    monkeypatch.setattr("recplug.adapters.recbole.graft.base.build_chain", spy)
    _, _, train, *_ = build("SASRec", "prism")
    dataset = train.dataset
    users, items = told[-1].edges
    names = dataset.id2token("user_id", users.tolist()), dataset.id2token("item_id", items.tolist())
    found = list(zip(*names, strict=True))
    # RecBole leaves a user of three interactions two for training, and none for validation.
    wanted = {(user, item) for user, had in past.items() for item in had[: max(len(had) - 2, 2)]}
    assert len(found) == len(set(found))
    assert set(found) == wanted


def test_the_losses_of_plugins_are_one_more_part(build, batch_of):
    _, model, train, *_ = build("SASRec", "prism", ON)
    _, silent, *_ = build("SASRec", "prism", {"prism": {**ON["prism"], **IDENTITY_LOSSES}})
    torch.manual_seed(1)
    host, total = model.calculate_loss(batch_of(train))
    parts = model.recplug.read_parts()
    assert set(parts) == {
        "backbone",
        "prism.unique_image",
        "prism.unique_text",
        "prism.synergy",
        "prism.redundancy",
    }
    assert parts["backbone"] == pytest.approx(host.item())
    assert sum(value for name, value in parts.items() if name != "backbone") == pytest.approx(total.item(), rel=1e-5)
    torch.manual_seed(1)
    alone = silent.calculate_loss(batch_of(train))
    assert torch.equal(alone, host)


def test_parts_are_means_over_the_epoch(build, batch_of):
    _, model, train, *_ = build("SASRec", "prism", ON)
    model.train()
    values = [model.calculate_loss(batch_of(train)) for _ in range(3)]
    parts = model.recplug.read_parts()
    assert parts["backbone"] == pytest.approx(sum(host.item() for host, _ in values) / 3)
    total = sum(value for name, value in parts.items() if name != "backbone")
    assert total == pytest.approx(sum(total.item() for _, total in values) / 3, rel=1e-5)
    assert model.recplug.read_parts() == {}


def test_a_host_with_several_losses_keeps_them(build, batch_of):
    _, model, train, *_ = build(TwoLosses, "prism", ON, loss_type="CE", **SASREC)
    _, bare, *_ = build(TwoLosses, "", loss_type="CE", **SASREC)
    torch.manual_seed(1)
    first, second, total = model.calculate_loss(batch_of(train))
    assert second.item() == pytest.approx(first.item() / 2)
    assert {"backbone", "backbone.2"} <= set(model.recplug.read_parts())
    assert total.requires_grad
    assert len(bare.calculate_loss(batch_of(train))) == 2


# RecBole reads SASRec's defaults by the class's name.
SASREC = {
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dropout_prob": 0.1,
    "attn_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "train_neg_sample_args": None,
}


@pytest.mark.parametrize("fusion", ["user", "item"])
def test_a_masked_item_leaves_no_trace(fusion, build, batch_of):
    settings = {"prism": {"scale": 0.5, "fusion": fusion, "candidates": "fused"}}
    _, model, train, _, test = build("BERT4Rec", "prism", settings)
    batch = batch_of(test)
    last = batch["item_length"] - 1
    rows = torch.arange(len(last))
    model.eval()
    encoded = []
    for shift in (0, 7):
        sequence = batch["item_id_list"].clone()
        sequence[rows, last] = (sequence[rows, last] + shift - 1) % (train.dataset.item_num - 1) + 1
        sequence[rows, last] = model.mask_token
        with torch.no_grad():
            encoded.append(model.forward(sequence))
    assert torch.equal(*encoded)
    with torch.no_grad():
        mask = model.recplug.item_table(torch.tensor([[model.mask_token]]))
    assert torch.equal(mask[0, 0], model.recplug.item_table.raw[model.mask_token])


@pytest.mark.parametrize("name", ["BERT4Rec", "S3Rec"])
def test_the_mask_row_is_the_hosts_own(name, build):
    _, model, train, *_ = build(name, "prism", {"prism": {"scale": 0.5, "candidates": "fused"}})
    table = model.recplug.item_table
    assert model.recplug.mask_id == model.mask_token == train.dataset.item_num == len(table.raw) - 1
    fused = (table.weight != table.raw).any(dim=1)
    assert fused.nonzero().squeeze(1).tolist() == list(range(1, train.dataset.item_num))


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "NARM", "BERT4Rec"])
def test_the_target_does_not_change_what_a_history_is_encoded_to(name, build, batch_of):
    _, model, train, *_ = build(name, "prism", {"prism": {"scale": 0.5, "fusion": "user"}})
    encoded = []
    for shift in (0, 11):
        batch = batch_of(train)
        batch.interaction["item_id"] = (batch["item_id"] + shift - 1) % (train.dataset.item_num - 1) + 1
        model.eval()
        found = []
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            encode = model.recplug_base.forward
            patch.setattr(model.recplug_base, "forward", lambda *a, e=encode, f=found: f.append(e(*a)) or f[-1])
            model.calculate_loss(batch)
        encoded.append(found)
    assert len(encoded[0]) == len(encoded[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*encoded, strict=True))


DYNAMIC = {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": True, "candidate_num": 2}
SEVERAL = {"distribution": "uniform", "sample_num": 3, "alpha": 1.0, "dynamic": True, "candidate_num": 2}


@pytest.mark.parametrize(
    "more",
    [
        {"loss_type": "CE"},
        {"loss_type": "CE", "eval_step": 2},
        {"loss_type": "BPR"},
        {"loss_type": "BPR", "train_neg_sample_args": DYNAMIC},
        {"loss_type": "BPR", "train_neg_sample_args": SEVERAL, "eval_step": 2},
    ],
    ids=["plain", "eval_step", "negatives", "dynamic", "several dynamic"],
)
def test_epochs_are_counted_once(more, build, tmp_path):
    config, model, train, valid, _ = build("SASRec", "prism", ON, epochs=4, **more)
    told = []
    model.recplug.on_epoch = lambda epoch: told.append(("adapter", epoch))
    prism = model.recplug.plugins["prism"]
    prism.on_epoch_start = lambda epoch: told.append(("plugin", epoch))
    config["checkpoint_dir"] = str(tmp_path)
    with pytest.MonkeyPatch.context() as patch, recbole_compat():
        patch.chdir(tmp_path)
        trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, model)
        trainer.fit(train, valid, saved=False, verbose=False)
    assert told == [(who, epoch) for epoch in range(4) for who in ("plugin", "adapter")]
    assert model.recplug.steps_per_epoch == len(train)


def test_a_resumed_run_counts_on(build, batch_of):
    _, model, train, *_ = build("SASRec", "prism", ON)
    model.recplug.start_epoch = 5
    for _ in range(2):
        model.train()
        for _ in range(model.recplug.steps_per_epoch):
            model.calculate_loss(batch_of(train))
    assert model.recplug.epoch == 6


def test_a_model_of_ones_own(build, batch_of):
    _, bare, train, _, test = build(MyModel)
    _, model, *_ = build(MyModel, ["prism"], ON, table="my_items")
    assert model.my_items is model.recplug.item_table
    assert not torch.equal(scores_of(model, batch_of(test)), scores_of(bare, batch_of(test)))
    host, total = model.calculate_loss(batch_of(train))
    (host + total).backward()
    assert model.recplug.plugins["prism"].scale.grad.abs() > 0


def test_a_model_of_ones_own_may_be_trimmed(build, batch_of):
    _, kept, *_, test = build(MyModel, ["prism"], ON, table="my_items")
    _, model, *_ = build(MyModel, ["prism"], ON, table="my_items", trim_padding=True)
    assert (kept.recplug_trim, model.recplug_trim) == (False, True)
    torch.testing.assert_close(scores_of(model, batch_of(test)), scores_of(kept, batch_of(test)))


def test_the_class_of_ones_own_can_be_pickled():
    found = pickle.loads(pickle.dumps(augment(MyModel, "prism", {"prism": {"scale": 0.25}}, table="my_items")))
    assert found.recplug_base is MyModel
    assert found.recplug_host.table == "my_items"
    assert found.recplug_settings == {"prism": {"scale": 0.25}}


@pytest.mark.parametrize("loss", ["CE", "BPR", "whatever it likes"])
def test_the_loss_of_ones_own_model_is_ones_own(loss, build):
    build(MyModel, ["prism"], table="my_items", loss_type=loss)


@pytest.mark.parametrize("table", [None, "nowhere", "my_items.weight", "loss"])
def test_a_wrong_table_is_one_line(table, build):
    with pytest.raises(RecplugError) as refusal:
        build(MyModel, ["prism"], table=table)
    assert "\n" not in str(refusal.value)
    assert f"no nn.Embedding called '{table or 'item_embedding'}'" in str(refusal.value)


def test_trimming_is_refused_where_it_is_not_exact(build):
    with pytest.raises(RecplugError, match=r"not exact for STAMP.*use one of SASRec, .*BERT4Rec"):
        build("STAMP", "prism", trim_padding=True)


@pytest.mark.parametrize(
    ("plugins", "settings", "line"),
    [
        ("prism,prism", None, "named twice"),
        ("prsm", None, "no plugin 'prsm'; did you mean 'prism'"),
        ("prism", {"mars": {}}, "settings for \\['mars'\\]"),
        ("prism", {"prism": {"scael": 1}}, "scael"),
    ],
)
def test_wrong_plugins_are_one_line(plugins, settings, line):
    with pytest.raises(RecplugError, match=line) as refusal:
        augment(SASRec, plugins, settings)
    assert "\n" not in str(refusal.value)


def test_an_augmented_class_is_not_augmented_again():
    with pytest.raises(RecplugError, match="augmented already; name all plugins at once"):
        augment(augment(SASRec, "prism"), "prism")


def test_a_model_of_another_kind_takes_no_plugin():
    from recbole.model.context_aware_recommender import FM

    with pytest.raises(RecplugError, match="FM is neither a sequential nor a general model of RecBole"):
        augment(FM, "prism")
    assert issubclass(augment(FM, ""), FM)


@pytest.mark.parametrize("name", ["GCSAN", "NextItNet", "Caser"])
def test_a_penalty_on_the_table_reaches_a_plugin_only_through_fused_candidates(name, build, batch_of):
    gradients = {}
    for candidates in ("id", "fused"):
        for weight in (0.1, 10.0):
            settings = {"prism": {"scale": 0.5, "candidates": candidates, "gate_dropout": 0.0, **IDENTITY_LOSSES}}
            _, model, train, *_ = build(name, "prism", settings, reg_weight=weight)
            torch.manual_seed(2)
            model.calculate_loss(batch_of(train)).backward()
            gradients[candidates, weight] = model.recplug.plugins["prism"].scale.grad
    torch.testing.assert_close(gradients["id", 0.1], gradients["id", 10.0])
    assert (gradients["fused", 0.1] - gradients["fused", 10.0]).abs() > 1e-3
