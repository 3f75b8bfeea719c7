"""A second domain beside the target, on real files of two small shops that share some of their customers."""

import copy
import csv
import json
import logging
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import run
from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.config.host_config import make_config, model_class
from recplug.adapters.recbole.data.interactions import interactions
from recplug.adapters.recbole.domains.user_links import pair, read_links
from recplug.adapters.recbole.graft.sequential import whole_histories
from recplug.plugins import (
    Augmentation,
    Plugin,
    PluginSettings,
    RecplugError,
    Requirements,
    hookimpl,
    registry,
    setting,
)

MODELS = ("LightGCN", "BPR", "NGCF", "SASRec", "GRU4Rec")
SHARED = 60  # people in both shops
WIDTH, EPOCHS = 8, 3
MORE = {
    "embedding_size": WIDTH,
    "hidden_size": WIDTH,
    "inner_size": WIDTH,
    "hidden_size_list": [WIDTH, 4],
    "MAX_ITEM_LIST_LENGTH": 6,
    "train_batch_size": 96,
    "epochs": EPOCHS,
    "seed": 4,
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
    "metrics": ["Recall", "NDCG"],
    "topk": [5],
    "valid_metric": "NDCG@5",
}


class TwinSettings(PluginSettings):
    """What a plugin with a second domain has."""

    strength: float = setting(0.5, "How far whole tables are moved.")
    gamma: float = setting(0.0, "Weight of the distance of linked users.")
    source: str | None = setting(None, "A second domain.")
    source_path: str | None = setting(None, "Its folder.")
    links: str | None = setting(None, "Who is who.")


class Twin(Augmentation):
    """Moves both tables by a learned vector; trains a source, and draws linked users together."""

    def __init__(self, settings, context):
        super().__init__()
        self.settings, self.told, self.ended = settings, context, []
        self.mark = nn.Parameter(0.1 * torch.randn(context.width["items"]))
        self.source = context.source
        if self.source is not None:
            self.other = self.source.model
            self.register_buffer("links", self.source.links, persistent=False)

    def tables(self, users, items):
        shift = self.settings.strength * self.mark
        return None if users is None else users + shift, items + shift

    def losses(self, step):
        if self.source is None:
            return {}
        summed = len(step.batch.users) if self.told.loss_reduction == "sum" else 1
        found = {"source": self.source.loss() / summed}
        if self.settings.gamma:
            ours, theirs = self.source.encode_users(self.links[:, 0]), step.vectors_of(self.links[:, 1])
            found["transfer"] = self.settings.gamma * (ours - theirs).square().mean()
        return found

    def on_evaluation_end(self, epoch, score):
        self.ended.append((epoch, score))


class Needing(Augmentation):
    """A bare loss; takes the same settings, but has no use for a second domain, or cannot do without."""

    def __init__(self, settings, context):
        super().__init__()

    def losses(self, step):
        return {}


def plugin(name, augmentation, seams, second_domain):
    return Plugin(
        name=name,
        summary="for the tests",
        paper="",
        settings=TwinSettings,
        requirements=lambda settings: Requirements(seams=frozenset(seams), second_domain=second_domain),
        build=augmentation,
        identity={"strength": 0.0},
    )


class Package:
    def __init__(self, plugin):
        self.plugin = plugin

    @hookimpl
    def recplug_plugin(self):
        return self.plugin


@pytest.fixture(scope="module", autouse=True)
def plugins():
    """``twin``; ``single``, which takes no second domain; ``needy``, which cannot do without one."""
    packages = [
        Package(plugin("twin", Twin, {"tables", "losses"}, "optional")),
        Package(plugin("single", Needing, {"losses"}, "no")),
        Package(plugin("needy", Needing, {"losses"}, "required")),
    ]
    for package in packages:
        registry.manager().register(package)
    yield
    for package in packages:
        registry.manager().unregister(package)


def write_shop(root, name, *, people, items, seed, user="user_id", columns=True, least=4):
    """``people``: tokens; each buys ``least`` to ``least + 5`` things, one a day."""
    draw = random.Random(seed)
    folder = root / name
    folder.mkdir()
    lines = [f"{user}:token\titem_id:token\ttimestamp:float"]
    for number, person in enumerate(people):
        for day in range(least + number % 6):
            lines.append(f"{person}\t{name[0]}{draw.randrange(items)}\t{day}")
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
    yaml = [f"USER_ID_FIELD: {user}", f"load_col: {{inter: [{user}, item_id, timestamp]}}"]
    if columns:
        yaml.append("eval_args: {split: {LS: valid_and_test}, order: TO, group_by: user, mode: full}")
    (folder / f"{name}.yaml").write_text("\n".join(yaml) + "\n")


@pytest.fixture(scope="module")
def shops(tmp_path_factory):
    """``bread`` and ``pots``: 60 people in both, 30 in bread alone, 40 in pots alone; another name for people."""
    root = tmp_path_factory.mktemp("shops")
    shared = [f"p{i}" for i in range(SHARED)]
    write_shop(root, "bread", people=[*shared, *(f"f{i}" for i in range(30))], items=35, seed=1)
    write_shop(root, "pots", people=[*(f"k{i}" for i in range(40)), *shared], items=25, seed=2, user="buyer")
    vectors = torch.randn(25, 5, generator=torch.Generator().manual_seed(3))
    FeatureTable(vectors, tuple(f"p{i}" for i in range(25)), "text", {}).save(root / "pots" / "pots.text.safetensors")
    return root


def prepared(root, name, model, **more):
    """(config, train, valid, test), seeded as RecBole's quick start seeds them."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    folder = root / name
    with recbole_compat():
        config = make_config(model, name, [folder / f"{name}.yaml"], {**MORE, "data_path": str(root), **more})
        init_seed(config["seed"], True)
        loaders = data_preparation(config, create_dataset(config))
        init_seed(config["seed"], True)
    return config, *loaders


def built(root, name, model, plugins=(), settings=None, **more):
    """(config, augmented model, train, valid, test)."""
    config, train, valid, test = prepared(root, name, model, **more)
    with recbole_compat():
        host = augment(model_class(model), plugins, settings)(config, train._dataset)
    return config, host, train, valid, test


def twins(root, model, gamma=0.0, **more):
    return built(root, "bread", model, ["twin"], {"twin": {"source": "pots", "gamma": gamma}}, **more)


def train(model, loader, steps, lr=0.01):
    """``steps`` steps in epochs of the loader, as RecBole's trainer takes them."""
    optimiser = torch.optim.Adam(model.parameters(), lr=lr)
    done = 0
    while done < steps:
        model.train()
        for batch in loader:
            optimiser.zero_grad()
            found = model.calculate_loss(batch)
            (sum(found) if isinstance(found, tuple) else found).backward()
            optimiser.step()
            done += 1
            if done == steps:
                break
        model.eval()
    return model


def same(one, other, prefix=""):
    """Whether two models' host rows and the plugin's mark are bit-equal."""
    ours, theirs = one.state_dict(), other.state_dict()
    keys = [key for key, value in theirs.items() if "other." not in key and isinstance(value, torch.Tensor)]
    assert len(keys) >= 2
    return all(torch.equal(ours[key], theirs[key]) for key in keys)


# -- what it is made of


def test_the_source_has_its_own_data_and_the_targets_choices(shops):
    config, model, *_ = twins(shops, "LightGCN", n_layers=1, learning_rate=0.007)
    source = model.recplug_source
    assert source.name == "pots"
    assert source.model.n_layers == 1
    assert source.config["learning_rate"] == 0.007
    assert source.config["USER_ID_FIELD"] == "buyer"
    assert config["USER_ID_FIELD"] == "user_id"
    assert source.model.n_users == 1 + SHARED + 40
    assert model.n_users == 1 + SHARED + 30
    assert source.model.recplug_base is model.recplug_base is model_class("LightGCN")
    (twin,) = source.model.recplug.augmentations().values()
    assert twin.source is None
    assert twin.settings.source is None
    assert twin.told.modalities.keys() == {"text"}, "of its own folder"
    assert model.recplug.augmentations()["twin"].told.modalities == {}


def test_only_plugins_that_take_a_second_domain_act_in_it(shops):
    settings = {"twin": {"source": "pots", "strength": 0.25}}
    _, model, *_ = built(shops, "bread", "BPR", ["single", "twin"], settings)
    assert list(model.recplug.augmentations()) == ["single", "twin"]
    (twin,) = model.recplug_source.model.recplug.augmentations().values()
    assert twin.settings.strength == 0.25
    _, model, *_ = built(shops, "bread", "BPR", ["needy"], {"needy": {"source": "pots"}})
    assert model.recplug_source.model.recplug.augmentations() == {}


# -- who is who


def truth(root, model):
    """Pairs of tokens of the people that train in both, by reading the files."""

    def trains(name):
        rows = [line.split("\t") for line in (root / name / f"{name}.inter").read_text().splitlines()[1:]]
        counts = {}
        for person, _, _ in rows:
            counts[person] = counts.get(person, 0) + 1
        # The last two are validated and tested; a sequential model needs another item before its first target.
        least = 4 if model in ("SASRec", "GRU4Rec") else 3
        return {person for person, n in counts.items() if n >= least}

    return trains("bread") & trains("pots")


@pytest.mark.parametrize("model", ["LightGCN", "SASRec"])
def test_links_are_of_people_who_train_in_both(shops, model):
    _, host, bread, *_ = twins(shops, model)
    source = host.recplug_source
    links = torch.cat([source.links, source.held_out])
    pots = source.loaders["train"]._dataset
    names = pots.field2id_token["buyer"], bread._dataset.field2id_token["user_id"]
    found = [(names[0][one], names[1][other]) for one, other in links.tolist()]
    assert all(one == other for one, other in found)
    assert {one for one, _ in found} == truth(shops, model)
    assert len(source.held_out) == round(0.1 * len(links))
    assert (links != 0).all()
    assert len(links.unique(dim=0)) == len(links)


def small_shops(root, model="BPR", ours=("a", "b", "c"), theirs=("b", "c", "d"), least=4):
    for name, people, seed in (("bread", ours, 1), ("pots", theirs, 2)):
        write_shop(root, name, people=people, items=9, seed=seed, least=least)
    return [prepared(root, name, model)[1]._dataset for name in ("pots", "bread")]


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_who_is_only_validated_or_tested_is_nobody(tmp_path, model):
    pots, bread = small_shops(tmp_path, model, ours=[f"p{i}" for i in range(12)], theirs=[f"p{i}" for i in range(12)])
    everyone = pair(pots, bread, file=None, seed=0)
    assert everyone.total == 12
    # Someone whose first interactions leave the training split, but whose token both data sets still know.
    user = int(pots.field2token_id[pots.uid_field]["p3"])
    pots.inter_feat = pots.inter_feat[pots.inter_feat[pots.uid_field] != user]
    assert "p3" in pots.field2id_token[pots.uid_field]
    left = pair(pots, bread, file=None, seed=0)
    assert left.total == 11
    assert user not in torch.cat([left.links, left.held_out])[:, 0]


def test_padding_is_nobody(tmp_path):
    pots, bread = small_shops(tmp_path)
    found = pair(pots, bread, file=None, seed=0)
    assert found.total == 2
    for data in (pots, bread):  # an interaction of the padding's does not make it someone
        data.inter_feat[data.uid_field][0] = 0
    assert (pair(pots, bread, file=None, seed=0).links != 0).all()
    file = tmp_path / "links.tsv"
    file.write_text("pots\tbread\n[PAD]\t[PAD]\nb\tb\n")
    assert pair(pots, bread, file=file, seed=0).total == 1


def test_a_file_says_who_is_who(tmp_path):
    pots, bread = small_shops(tmp_path)
    file = tmp_path / "links.tsv"
    file.write_text("pots user\tbread user\nd\ta\nb\tc\nstranger\tb\n")
    found = pair(pots, bread, file=file, seed=0)
    names = pots.field2id_token[pots.uid_field], bread.field2id_token[bread.uid_field]
    links = torch.cat([found.links, found.held_out]).tolist()
    assert {(names[0][one], names[1][other]) for one, other in links} == {("d", "a"), ("b", "c")}
    assert found.by_file
    assert found.shares == (2 / 3, 2 / 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("one\ttwo\nb\n", "line 2: expected a source user, a tab and a target user, found 'b'"),
        ("b,b\n", "line 1: expected a source user, a tab"),
        ("one\ttwo\nb\tb\nb\tc\n", "line 3: the source user 'b' is linked already, in line 2"),
        ("one\ttwo\nb\tb\nc\tb\n", "line 3: the target user 'b' is linked already, in line 2"),
        ("one\ttwo\n", "holds no links"),
        ("one\ttwo\nx\ty\n", "links no users that pots and bread both train on"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (None, "No such file or directory"),
    ],
    ids=["one column", "commas", "source twice", "target twice", "empty", "strangers", "not text", "missing"],
)
def test_a_wrong_link_file_is_one_line(tmp_path, text, says):
    pots, bread = small_shops(tmp_path)
    file = tmp_path / "links.tsv"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecplugError) as error:
        pair(pots, bread, file=file, seed=0)
    assert says in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_link_file_may_have_the_windows_line_ends(tmp_path):
    file = tmp_path / "links.tsv"
    file.write_bytes(b"one\ttwo\r\nb\tc\r\n")
    assert read_links(file) == [("b", "c")]


def test_numbers_as_tokens_are_linked_only_with_a_warning(tmp_path, caplog):
    """Baby and Beauty number their own users: equal numbers are different people, and nothing but the user knows."""
    pots, bread = small_shops(tmp_path, ours=range(1, 80), theirs=range(20, 99))
    with caplog.at_level(logging.INFO, "recplug"):
        found = pair(pots, bread, file=None, seed=0)
        found.report("pots", "bread")
    assert found.total == 60
    text = caplog.text
    assert "plain numbers" in text
    assert "60 users are taken for the same person, because their user tokens are equal" in text
    assert "75.9 % of the training users of pots" in text
    assert "6 links are held out" in text


def test_names_as_tokens_are_linked_without_one(shops, caplog):
    with caplog.at_level(logging.INFO, "recplug"):
        twins(shops, "BPR")
    assert "60 users are taken for the same person" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("shared", "says"),
    [(1, "nothing can be transferred"), (0, "nothing can be transferred"), (20, "only 20 training users in common")],
)
def test_few_links_are_a_warning(tmp_path, caplog, shared, says):
    people = [f"p{i}" for i in range(30)]
    others = [*people[:shared], *(f"q{i}" for i in range(10))]
    pots, bread = small_shops(tmp_path, ours=people, theirs=others)
    found = pair(pots, bread, file=None, seed=0)
    found.report("pots", "bread")
    assert found.links.shape == (shared - len(found.held_out), 2)
    assert found.links.dtype == torch.int64
    assert says in caplog.text


def test_held_out_links_follow_the_seed(shops):
    pots, bread = (prepared(shops, name, "BPR")[1]._dataset for name in ("pots", "bread"))
    found = [pair(pots, bread, file=None, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(found[0].held_out, found[1].held_out)
    assert not torch.equal(found[0].held_out, found[2].held_out)
    both = torch.cat([found[0].links, found[0].held_out])
    assert len(both.unique(dim=0)) == len(both) == SHARED


# -- what it leaves as it is


@pytest.mark.parametrize("model", MODELS)
def test_without_transfer_both_domains_are_those_of_their_own_runs(shops, model):
    """Bit for bit, after several epochs: order, negatives, dropout and annealing of neither shift the other's."""
    _, pair_, loader, *_ = twins(shops, model)
    steps = EPOCHS * len(loader)
    train(pair_, loader, steps)
    assert pair_.recplug_source.model.recplug.epoch == pair_.recplug.epoch == EPOCHS - 1
    _, alone, loader, *_ = built(shops, "bread", model, ["twin"])
    train(alone, loader, steps)
    assert same(pair_, alone)
    _, source, loader, *_ = built(shops, "pots", model, ["twin"])
    train(source, loader, steps)
    assert same(pair_.recplug_source.model, source)


def test_a_host_that_draws_as_it_begins_an_epoch_draws_apart(shops):
    """SGL leaves edges out anew in train(), which the target passes on to its children."""
    _, pair_, loader, *_ = twins(shops, "SGL", train_batch_size=64)
    train(pair_, loader, 2 * len(loader))
    _, alone, loader, *_ = built(shops, "bread", "SGL", ["twin"], train_batch_size=64)
    train(alone, loader, 2 * len(loader))
    assert same(pair_, alone)


def test_the_process_draws_on_as_if_nothing_had_been(shops):
    def states():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()

    built(shops, "bread", "SASRec", ["twin"])
    after = states()
    _, model, *_ = twins(shops, "SASRec")
    assert states() == after
    source = model.recplug_source
    model.train()
    before = states()
    source.next_batch()
    source.loss().backward()
    source.encode_users(source.links[:, 0])
    with recbole_compat():
        source.evaluate("valid")
    assert states() == before


@pytest.mark.parametrize("model", MODELS)
def test_transfer_reaches_both_backbones(shops, model):
    _, pair_, loader, *_ = twins(shops, model, gamma=1.0)
    pair_.train()
    twin, source = pair_.recplug.augmentations()["twin"], pair_.recplug_source
    batch = next(iter(loader))
    parts = pair_.calculate_loss(batch)
    assert pair_.recplug.read_parts().keys() == {"backbone", "twin.source", "twin.transfer"}
    sum(parts).backward()
    for host, linked in ((source.model, twin.links[:, 0]), (pair_, twin.links[:, 1])):
        side = "items" if model in ("SASRec", "GRU4Rec") else "users"
        gradient = host.recplug.table(side).raw.grad
        assert gradient.isfinite().all()
        if side == "users":
            assert (gradient[linked].abs().sum(dim=1) > 0).all(), "those outside of the batch too"
        assert twin.mark.grad.abs().sum() > 0


@pytest.mark.parametrize("model", MODELS)
def test_users_vectors_are_the_hosts_own(shops, model):
    _, host, *_ = twins(shops, model)
    host.eval()
    source = host.recplug_source
    ids = source.links[:7, 0]
    with torch.no_grad():
        found = source.encode_users(ids)
        if model in ("SASRec", "GRU4Rec"):
            history, lengths = whole_histories(source.loaders["train"]._dataset)
            truth = source.model.recplug_base.forward(source.model, history[ids], lengths[ids])
        elif model == "BPR":
            truth = source.model.user_embedding.weight[ids]
        else:
            truth = source.model.recplug_base.forward(source.model)[0][ids]
    assert torch.allclose(found, truth, atol=1e-6)


def test_whole_histories_are_those_of_the_file(shops):
    *_, bread, _, _ = prepared(shops, "bread", "SASRec")
    data = bread._dataset
    sequences, lengths = whole_histories(data)
    people, items = data.field2id_token["user_id"], data.field2id_token["item_id"]
    bought = {}
    for line in (shops / "bread" / "bread.inter").read_text().splitlines()[1:]:
        person, item, _ = line.split("\t")
        bought.setdefault(person, []).append(item)
    for user in range(1, data.user_num):
        wanted = bought[people[user]][:-2][-6:]  # the last two are for validation and test; six fit
        found = [items[i] for i in sequences[user].tolist() if i]
        if len(bought[people[user]]) < 4:
            assert found == []
        else:
            assert found == wanted
            assert lengths[user] == len(wanted)


# -- batches


def test_a_source_begins_anew_in_another_order(shops):
    _, host, *_ = twins(shops, "BPR", train_batch_size=64)
    host.train()
    source = host.recplug_source
    n = len(source.loaders["train"])
    assert n > 2
    passes = []
    for _ in range(2):
        batches = [source.next_batch() for _ in range(n)]
        passes.append([torch.stack([b["buyer"], b["item_id"]]) for b in batches])
    first, second = (torch.cat(batches, dim=1) for batches in passes)
    rows = torch.stack(interactions(source.loaders["train"]._dataset))
    for found in (first, second):
        assert torch.equal(found.unique(dim=1), rows.unique(dim=1)), "a pass has every interaction"
    assert not torch.equal(first, second)


def test_the_share_of_the_source_that_an_epoch_saw(shops):
    _, host, *_ = twins(shops, "BPR", train_batch_size=64)
    source = host.recplug_source
    n = len(source.loaders["train"])
    host.train()
    for step in range(n + 1):
        source.loss()
        assert source.share_seen() == pytest.approx((step + 1) / n)
    host.eval()
    host.train()
    source.loss()
    assert source.share_seen() == pytest.approx(1 / n)


@pytest.mark.parametrize("model", ["LightGCN", "SASRec"])
def test_what_was_computed_for_a_loss_serves_the_users_until_parameters_change(shops, model, monkeypatch):
    _, host, *_ = twins(shops, model)
    host.train()
    source = host.recplug_source
    asked, tables = [], Twin.tables

    def counted(self, users, items):
        asked.append(1)
        return tables(self, users, items)

    monkeypatch.setattr(Twin, "tables", counted)
    ids = source.links[:5, 0]
    loss = source.loss()
    first = source.encode_users(ids)
    assert len(asked) == 1
    (loss + first.sum()).backward()
    with torch.no_grad():
        for parameter in source.model.parameters():
            parameter.add_(0.1)
    again = source.encode_users(ids)
    again.sum().backward()  # no second time through a graph that is gone
    assert len(asked) == 2
    assert not torch.allclose(first, again)


# -- copies, devices, modes


@pytest.mark.parametrize("model", ["LightGCN", "SASRec"])
def test_a_copy_has_a_source_of_its_own(shops, model):
    _, host, loader, *_ = twins(shops, model, gamma=0.5)
    train(host, loader, 2)
    other = copy.deepcopy(host)
    assert other.recplug_source is not host.recplug_source
    assert other.recplug_source.model is other.recplug.augmentations()["twin"].other
    assert other.recplug.augmentations()["twin"].source is other.recplug_source
    before = copy.deepcopy(host.state_dict())
    train(other, loader, 2)
    assert all(torch.equal(value, host.state_dict()[key]) for key, value in before.items())
    assert not torch.equal(other.recplug_source.model.recplug.table("items").raw, before_items(before))


def before_items(state):
    return state["recplug.plugins.twin.other.item_embedding.weight"]


def test_copies_draw_alike_and_apart(shops):
    _, host, *_ = twins(shops, "BPR")
    host.train()
    host.recplug_source.loss()
    one, other = copy.deepcopy(host), copy.deepcopy(host)
    for host_ in (one, other):
        host_.train()
    losses = [one.recplug_source.loss() for _ in range(3)]
    assert torch.equal(torch.stack(losses), torch.stack([other.recplug_source.loss() for _ in range(3)]))


def test_modes_and_devices_follow(shops):
    _, host, *_ = twins(shops, "SASRec")
    source = host.recplug_source.model
    assert host.eval() is host
    assert not source.training
    assert not source.recplug.training
    host.train()
    assert source.training
    assert host.to("meta").recplug_source.model.recplug.table("items").raw.device.type == "meta"


def test_flops_are_counted(shops):
    from recbole.data.transform import construct_transform
    from recbole.utils import get_flops

    config, host, train_, *_ = twins(shops, "SASRec")
    with recbole_compat():
        assert get_flops(host, train_._dataset, "cpu", logging.getLogger(), construct_transform(config)) > 0


def test_a_checkpoint_brings_both_back(shops, tmp_path):
    _, host, loader, *_ = twins(shops, "LightGCN")
    train(host, loader, 3)
    _, other, *_ = twins(shops, "LightGCN")
    with recbole_compat():
        before = host.recplug_source.evaluate("valid")
        untrained = other.recplug_source.evaluate("valid")
        torch.save({"state_dict": host.state_dict(), "other": host.other_parameter()}, tmp_path / "c.pth")
        found = torch.load(tmp_path / "c.pth", weights_only=True)
        other.load_state_dict(found["state_dict"])
        other.load_other_parameter(found["other"])
        other.eval()
        assert other.recplug_source.evaluate("valid") == before != untrained


# -- evaluation


@pytest.mark.parametrize("model", ["LightGCN", "SASRec"])
@pytest.mark.parametrize("part", ["valid", "test"])
def test_the_source_is_evaluated_as_recbole_evaluates_it_alone(shops, model, part):
    from recbole.trainer import Trainer

    _, host, loader, *_ = twins(shops, model)
    train(host, loader, 2)
    config, alone, train_, valid, test = built(shops, "pots", model, ["twin"])
    alone.load_state_dict(host.recplug_source.model.state_dict())
    with recbole_compat():
        trainer = Trainer(config, alone)
        trainer.eval_collector.data_collect(train_)
        truth_ = trainer.evaluate({"valid": valid, "test": test}[part], load_best_model=False)
        found = host.recplug_source.evaluate(part)
    assert found == dict(truth_)
    assert found.keys() == {"recall@5", "ndcg@5"}


# -- what is refused


@pytest.mark.parametrize(
    ("plugins_", "settings", "says"),
    [
        (["twin"], {"twin": {"source": "bread"}}, "bread is the target itself; give --twin.source another data set"),
        (["twin"], {"twin": {"source": "potss"}}, "no potss.inter in"),
        (["twin"], {"twin": {"source": "pots", "source_path": "nowhere"}}, "its folder with --twin.source_path"),
        (["single"], {"single": {"source": "pots"}}, "single takes no second domain; leave --single.source out"),
        (
            ["twin", "needy"],
            {"twin": {"source": "pots"}, "needy": {"source": "pots"}},
            "twin and needy each name a source",
        ),
        (["needy"], {}, "needy needs a second domain; set --needy.source=DATASET"),
        (["twin"], {"twin": {"source": "pots", "links": "nofile"}}, "cannot read the link file nofile"),
    ],
    ids=["itself", "unknown", "elsewhere", "not taken", "two", "needed", "links"],
)
def test_a_wrong_source_is_one_line(shops, tmp_path, monkeypatch, plugins_, settings, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecplugError) as error:
        run("BPR", "bread", plugins_, {**MORE, **settings}, data_path=shops, output_dir=tmp_path / "out")
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("as_source", [True, False])
def test_pairs_without_histories_are_no_data_of_a_sequential_host(shops, tmp_path, as_source):
    """A ready-made split of single interactions, as general models read it, is told as such."""
    folder = tmp_path / "split"
    folder.mkdir()
    shutil.copytree(shops / "bread", tmp_path / "bread")
    for part in ("train", "valid", "test"):
        (folder / f"split.{part}.inter").write_text("user_id:token\titem_id:token\nann\tp1\nbob\tp2\n")
    (folder / "split.yaml").write_text("benchmark_filename: [train, valid, test]\n")
    plugins_, given = (["twin"], {"twin": {"source": "split"}}) if as_source else ([], {})
    target = "bread" if as_source else "split"
    with pytest.raises(RecplugError, match="split is a ready-made split of single interactions, and SASRec reads"):
        run("SASRec", target, plugins_, {**MORE, **given}, data_path=tmp_path, output_dir=tmp_path / "out")


def test_a_host_with_a_trainer_of_its_own_has_no_second_domain(shops):
    with pytest.raises(RecplugError, match="NCL trains in a trainer of its own"):
        twins(shops, "NCL")


def test_the_same_files_under_one_folder(shops, tmp_path):
    """Both data sets in one folder, as --data_path may say."""
    for name in ("bread", "pots"):
        for file in (shops / name).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    found = run("BPR", "bread", "twin", {**MORE, "epochs": 1, "twin.source": "pots"}, data_path=tmp_path,
                output_dir=tmp_path / "out")  # fmt: skip
    assert found.result["source"]["links"] == SHARED


# -- a whole run


@pytest.fixture(scope="module")
def finished(shops, tmp_path_factory):
    """A run of the pair from the command line's own entry."""
    from recplug.adapters.cli.run_recbole import main

    out = tmp_path_factory.mktemp("run") / "out"
    foreign = ("hidden_size", "inner_size", "hidden_size_list", "MAX_ITEM_LIST_LENGTH")  # keys of other models
    values = {**MORE, "metrics": "['Recall','NDCG']", "topk": "[5]"}
    values = {key: value for key, value in values.items() if key not in foreign}
    words = [f"--{key}={value}" for key, value in values.items()]
    words += ["--model", "LightGCN", "--plugin", "twin", "--dataset", "bread", "--twin.source=pots",
              "--twin.gamma=0.5", "--data_path", str(shops), "--output_dir", str(out)]  # fmt: skip
    main(words)
    return out


def test_a_run_says_what_the_source_did(finished):
    result = json.loads((finished / "result.json").read_text())
    source = result["source"]
    assert source["dataset"] == "pots"
    assert source["links"] == SHARED
    assert source["links_held_out"] == 6
    assert source["linked_by"] == "token"
    assert source["valid_result"].keys() == source["test_result"].keys() == {"recall@5", "ndcg@5"}
    assert source["share_seen"] > 0
    rows = list(csv.DictReader((finished / "metrics.csv").open()))
    assert len(rows) == EPOCHS
    best = max(rows, key=lambda row: (float(row["valid/ndcg@5"]), int(row["epoch"])))
    assert float(best["source/valid/ndcg@5"]) == source["valid_result"]["ndcg@5"]
    assert {"source/share_seen", "source/loss/backbone", "loss/twin.source", "loss/twin.transfer"} <= rows[0].keys()
    assert float(rows[0]["loss/twin.source"]) == pytest.approx(float(rows[0]["source/loss/backbone"]), rel=1e-4)
    log = (finished / "run.log").read_text()
    assert log.count("source pots  recall@5") == EPOCHS
    assert log.count("source pots in the best epoch") == 1


def test_a_run_keeps_the_sources_rows_out_of_what_plugins_added(finished, shops):
    tensors = load_file(finished / "adapter.safetensors")
    assert tensors.keys() == {"twin.mark", "twin.other.recplug.plugins.twin.mark"}
    result = json.loads((finished / "result.json").read_text())
    rows = 1 + 40 + SHARED, 1 + 25
    assert result["parameters"]["source"] == sum(rows) * WIDTH
    assert result["parameters"]["plugins"] == {"twin": 2 * WIDTH}
    assert result["parameters"]["backbone"] == (1 + 30 + SHARED + 1 + 35) * WIDTH


def test_one_domain_says_so(shops, tmp_path):
    found = run("BPR", "bread", "twin", {**MORE, "epochs": 1}, data_path=shops, output_dir=tmp_path / "one")
    assert "source" not in found.result
    log = (tmp_path / "one" / "run.log").read_text()
    assert "one domain: twin without a second one; --twin.source=DATASET adds it" in log


@pytest.mark.parametrize("model", MODELS)
def test_micrec_trains_on_a_pair(shops, tmp_path, model):
    settings = {"micrec": {"source": "pots", "anchors": 16, "warm_up": 0}}
    more = {**MORE, "epochs": 2, "mask_history": True}
    found = run(model, "bread", "micrec", {**more, **settings}, data_path=shops, output_dir=tmp_path / "out")
    assert found.result["source"]["links"] == len(truth(shops, model))
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    assert all(float(row[f"loss/micrec.{part}"]) > 0 for row in rows for part in ("source", "transfer"))
    host = "item_embedding", "user_embedding"
    assert not [key for key in load_file(tmp_path / "out" / "adapter.safetensors") if any(name in key for name in host)]
