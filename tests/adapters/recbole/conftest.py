"""A tiny data set, and RecBole models on it: what the tests of the adapter share."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from recplug.adapters.factors import ColumnSpec, from_columns, read_item_file
from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole.augment import augment
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.config.host_config import make_config, model_class
from recplug.plugins import Augmentation, Plugin, PluginSettings, Requirements, hookimpl, registry, setting

USERS, ITEMS, WIDTH, LENGTH = 60, 40, 16, 10
GENRES = ("drama", "comedy", "crime", "war")

# RecBole's default for sequential models; for general ones it is at random, by the seed.
BY_TIME = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
# Small everywhere: one dictionary for the models' many names of the same sizes.
SMALL = {
    "embedding_size": WIDTH,
    "kg_embedding_size": WIDTH,
    "hidden_size": WIDTH,
    "inner_size": 2 * WIDTH,
    "MAX_ITEM_LIST_LENGTH": LENGTH,
    "train_batch_size": 64,
    "eval_batch_size": 100_000,
    "epochs": 2,
    "state": "ERROR",
    "show_progress": False,
    "seed": 3,
    "use_gpu": False,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "eval_args": BY_TIME,
}
ITEM_FEATURES = {
    "load_col": {**SMALL["load_col"], "item": ["item_id", "genre", "price"]},
    "selected_features": ["genre", "price"],
    "numerical_features": ["price"],
    "item_attribute": "genre",
}
KNOWLEDGE = {
    "load_col": {
        **SMALL["load_col"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
        "ent": ["ent_id", "ent_vec"],
        "rel": ["rel_id", "rel_vec"],
    },
    "additional_feat_suffix": ["ent", "rel"],
    "alias_of_entity_id": ["ent_id"],
    "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_vec", "rel_id": "rel_vec"},
}
OF_MODEL = {
    "ConvNCF": {"cnn_channels": [1, 4, 4], "cnn_kernels": [4, 4], "cnn_strides": [4, 4]},
    "NeuMF": {"mf_embedding_size": WIDTH, "mlp_embedding_size": WIDTH, "mlp_hidden_size": [WIDTH]},
    "NNCF": {
        "ui_embedding_size": WIDTH,
        "neigh_embedding_size": 8,
        "num_conv_kernel": 4,
        "neigh_num": 12,
        "neigh_info_method": "random",
    },
    "NCL": {"num_clusters": 5, "warm_up_step": 1},
    "NGCF": {"hidden_size_list": [WIDTH, 8]},
    "GCMC": {"gcn_output_dim": 24},
    "MacridVAE": {"encoder_hidden_size": [WIDTH], "kfac": 3},
    "FISM": {"split_to": 2},
    "FDSA": ITEM_FEATURES,
    "SASRecF": ITEM_FEATURES,
    "GRU4RecF": {**ITEM_FEATURES, "selected_features": ["genre"]},
    "S3Rec": {**ITEM_FEATURES, "train_stage": "finetune"},
    "GRU4RecKG": KNOWLEDGE,
    "KSR": KNOWLEDGE,
    "SINE": {"prototype_size": 8},
    "NARM": {"n_layers": 1},
    "SASRecCPR": {"reranker_CAN_NUM": "10"},
    "GRU4RecCPR": {"reranker_CAN_NUM": "10"},
    "BERT4Rec": {"mask_ratio": 0.4},
}


class ProbeSettings(PluginSettings):
    """Off at zero."""

    scale: float = setting(0.5, "How far rows and nodes are moved.")
    penalty: float = setting(0.0, "A loss of this size.")


class Probe(Augmentation):
    """What the probes share: their settings, what they were told, and a loss that is known beforehand."""

    def __init__(self, settings, context):
        super().__init__()
        self.settings, self.told = settings, context
        self.seen = []

    def losses(self, step):
        return {"size": self.mark.sum() * 0 + self.settings.penalty} if self.settings.penalty else {}


class Shift(Probe):
    """Moves propagated nodes by one learned vector for users and one for items."""

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.mark = nn.Parameter(torch.randn(2, context.width["propagated"]))

    def propagated(self, users, items):
        self.seen.append((users.detach(), items.detach()))
        if not self.settings.scale:
            return users, items
        return users + self.settings.scale * self.mark[0], items + self.settings.scale * self.mark[1]


class Widen(Probe):
    """Puts learned columns beside the nodes, which are as wide as the plugins before it made them."""

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.mark = nn.Parameter(torch.randn(context.n_users + context.n_items, 3))

    def propagated(self, users, items):
        beside = self.settings.scale * self.mark
        return torch.cat([users, beside[: len(users)]], dim=1), torch.cat([items, beside[len(users) :]], dim=1)


class People(Probe):
    """Moves every user's row by one learned vector."""

    def __init__(self, settings, context):
        super().__init__(settings, context)
        self.mark = nn.Parameter(torch.randn(context.width["users"]))

    def users(self, rows, ids):
        return rows + self.settings.scale * self.mark if self.settings.scale else rows


def probe_plugin(augmentation, seam):
    return Plugin(
        name=augmentation.__name__.lower(),
        summary="for the tests",
        paper="",
        settings=ProbeSettings,
        requirements=lambda settings: Requirements(seams=frozenset({seam, "losses"})),
        build=augmentation,
        identity={"scale": 0.0, "penalty": 0.0},
    )


class Package:
    """Stands in for an installed package."""

    def __init__(self, plugin):
        self.plugin = plugin

    @hookimpl
    def recplug_plugin(self):
        return self.plugin


@pytest.fixture(scope="module")
def probes():
    """The plugins ``shift``, ``widen`` and ``people``, as if they were installed."""
    seams = {Shift: "propagated", Widen: "propagated", People: "users"}
    packages = [Package(probe_plugin(augmentation, seam)) for augmentation, seam in seams.items()]
    for package in packages:
        registry.manager().register(package)
    yield
    for package in packages:
        registry.manager().unregister(package)


def histories():
    """A user's items in time order: 3 to 13 of them, some twice; items that are near each other go together."""
    draw = random.Random(11)
    found = []
    for user in range(USERS):
        item, items = draw.randrange(ITEMS), []
        for _ in range(3 + (user * 7) % 11):
            items.append(item)
            item = (item + draw.choice((1, 1, 2, 3, -1))) % ITEMS
        found.append(items)
    return found


def write_table(path, lines):
    path.write_text("\n".join("\t".join(map(str, line)) for line in lines) + "\n")


@pytest.fixture(scope="session", autouse=True)
def no_anomaly_detection():
    """RecBole's SINE module turns it on for the whole process when imported, and everything is slow from then on."""
    import recbole.model.sequential_recommender  # noqa: F401

    torch.autograd.set_detect_anomaly(False)


@pytest.fixture(scope="session", autouse=True)
def clusters_without_faiss():
    """NCL asks faiss for clusters on a GPU; what it clusters does not matter here."""
    from recbole.model.general_recommender.ncl import NCL

    def clusters(self, x):
        centroids = torch.nn.functional.normalize(torch.as_tensor(x[1 : 1 + self.k]), dim=1)
        return centroids.to(self.device), (torch.arange(len(x)) % self.k).to(self.device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NCL, "run_kmeans", clusters)
        yield


@pytest.fixture(scope="session")
def small():
    """RecBole's keys for a training of seconds."""
    return copy.deepcopy(SMALL)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder that holds ``tiny/tiny.inter``, item and knowledge files, two feature tables and factor profiles."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "tiny"
    folder.mkdir()
    draw = random.Random(5)
    write_table(
        folder / "tiny.inter",
        [("user_id:token", "item_id:token", "timestamp:float")]
        + [(f"u{u}", f"i{i}", 100 * u + t) for u, items in enumerate(histories()) for t, i in enumerate(items)],
    )
    genres = [" ".join(draw.sample(GENRES, 1 + i % 2)) for i in range(ITEMS)]
    write_table(
        folder / "tiny.item",
        [("item_id:token", "genre:token_seq", "price:float")]
        + [(f"i{i}", genre, draw.randrange(100) / 10) for i, genre in enumerate(genres)],
    )
    write_table(
        folder / "tiny.link",
        [("item_id:token", "entity_id:token")] + [(f"i{i}", f"e{i}") for i in range(ITEMS)],
    )
    write_table(
        folder / "tiny.kg",
        [("head_id:token", "relation_id:token", "tail_id:token")]
        + [(f"e{i}", f"r{i % 3}", f"e{(i * 3 + 1) % ITEMS}") for i in range(ITEMS)],
    )
    for kind, count in (("ent", ITEMS), ("rel", 3)):
        vectors = [" ".join(f"{draw.gauss(0, 1):.3f}" for _ in range(WIDTH)) for _ in range(count)]
        write_table(
            folder / f"tiny.{kind}",
            [(f"{kind}_id:token", f"{kind}_vec:float_seq")]
            + [(f"{kind[0]}{i}", vector) for i, vector in enumerate(vectors)],
        )
    generator = torch.Generator().manual_seed(7)
    for modality, width, kept in (("image", 12, range(ITEMS)), ("text", 6, range(0, ITEMS - 6))):
        features = torch.randn(len(kept), width, generator=generator)
        FeatureTable(features, tuple(f"i{i}" for i in kept), modality, {}).save(folder / f"tiny.{modality}.safetensors")
    rows, _ = read_item_file(folder / "tiny.item")
    columns = {
        "genre": ColumnSpec("genre", kind="token_seq", separator=" "),
        "price": ColumnSpec("price", kind="float", bins=4),
    }
    from_columns(dict(list(rows.items())[:-3]), columns).save(folder / "tiny.factors.json")  # three without a profile
    return root


@pytest.fixture(scope="session")
def data(tiny, tmp_path_factory):
    """``data(model, **config)``: (config, train, valid, test), as RecBole's quick start makes them; made once."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    made, pretrained = {}, []

    def prepare(model, **more):
        name = model if isinstance(model, str) else model.__name__
        overrides = {**SMALL, "data_path": str(tiny), **OF_MODEL.get(name, {}), **more}
        if name == "S3Rec" and overrides["train_stage"] == "finetune":
            if not pretrained:
                pretrained.append(tmp_path_factory.mktemp("s3rec") / "pretrained.pth")
                config, train, *_ = prepare("S3Rec", train_stage="pretrain", train_neg_sample_args=None)
                init_seed(config["seed"], True)
                weights = config.model_class(config, train.dataset).state_dict()
                torch.save({"state_dict": weights}, pretrained[0])
            overrides["pre_model_path"] = str(pretrained[0])
        key = (model, repr(sorted(overrides.items(), key=lambda item: item[0])))
        if key not in made:
            with recbole_compat():
                config = make_config(model, "tiny", [], overrides)
                init_seed(config["seed"], config["reproducibility"])
                dataset = create_dataset(config)
                made[key] = (config, *data_preparation(config, dataset))
        return made[key]

    return prepare


@pytest.fixture(scope="session")
def build(data):
    """``build(model, plugins, settings, **config)``: (config, model, train, valid, test), seeded as RecBole's start is.

    ``plugins=None`` is RecBole's own class.
    """
    from recbole.utils import init_seed

    def make(model, plugins=None, settings=None, *, table=None, users=None, **more):
        config, train, valid, test = data(model, **more)
        host = model_class(model) if isinstance(model, str) else model
        if plugins is not None:
            host = augment(host, plugins, settings, table=table, users=users)
        init_seed(config["seed"], config["reproducibility"])
        with recbole_compat():
            model_ = host(config, train.dataset)
        if hasattr(model_, "e_step"):
            model_.e_step()
        return config, model_, train, valid, test

    return make


@pytest.fixture(scope="session")
def batch_of():
    """``batch_of(loader)``: a copy of its first batch (some models write into theirs), the same on every call."""
    from recbole.utils import init_seed

    first = {}

    def batch(loader):
        if id(loader) not in first:
            states = random.getstate(), np.random.get_state()
            with torch.random.fork_rng():
                init_seed(5, True)
                found = next(iter(loader))
            random.setstate(states[0]), np.random.set_state(states[1])
            first[id(loader)] = loader, found[0] if isinstance(found, tuple) else found
        return copy.deepcopy(first[id(loader)][1])

    return batch


@pytest.fixture(scope="session")
def past():
    """Every user's items, by token, in time order."""
    return {f"u{user}": [f"i{item}" for item in items] for user, items in enumerate(histories())}
