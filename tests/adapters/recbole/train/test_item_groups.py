"""Warm and cold items apart: against RecBole's own metrics where all are in one group, and against loops."""

import json
import math
from collections import Counter, defaultdict

import pyarrow.parquet as pq
import pytest
import torch

from recplug.adapters.recbole import run
from recplug.adapters.recbole.train.item_groups import _hits
from recplug.plugins.errors import RecplugError

CONFIG = {
    "epochs": 2,
    "train_batch_size": 64,
    "topk": [3, 10],
    "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision", "MAP", "GAUC", "ShannonEntropy"],
    "valid_metric": "NDCG@10",
    "use_gpu": False,
    "state": "ERROR",
    "show_progress": False,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
}
# A sequential model with one target a user, and a general one with several.
LAST = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
SHARES = {"split": {"RS": [0.6, 0.2, 0.2]}, "order": "RO", "group_by": "user", "mode": "full"}
MODELS = {
    "SASRec": {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "eval_args": LAST},
    "LightGCN": {"embedding_size": 16, "eval_args": SHARES},
}
OF_TARGETS = ("recall", "mrr", "ndcg", "hit", "precision", "map")


@pytest.fixture(scope="module")
def ended(tiny, tmp_path_factory):
    """``ended(model, below)``: the result, the ranks, and how often each item is in the training data."""
    done = {}

    def train(model, below):
        if (model, below) not in done:
            folder = tmp_path_factory.mktemp("groups") / "run"
            config = {**CONFIG, **MODELS[model], "cold_below": below}
            run(model, "tiny", "", config, data_path=tiny, output_dir=folder)
            ranks = pq.read_table(folder / "ranks.parquet").to_pylist()
            done[model, below] = json.loads((folder / "result.json").read_text()), ranks
        return done[model, below]

    return train


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("below", "full", "empty"), [(10**6, "cold", "warm"), (1, "warm", "cold")], ids=["all cold", "warm"]
)
def test_one_group_of_all_has_the_tests_own_metrics(model, below, full, empty, ended):
    result, ranks = ended(model, below)
    groups = result["item_groups"]
    if below == 1 and groups["cold"]["targets"]:
        pytest.skip("some targets are in no training interaction")
    assert groups[empty] == {"items": groups[empty]["items"], "targets": 0, "users": 0}
    assert groups[full]["targets"] == len(ranks)
    assert groups[full]["users"] == len({row["user"] for row in ranks})
    ours = {key: value for key, value in groups[full].items() if key not in ("items", "targets", "users")}
    theirs = {k: v for k, v in result["test_result"].items() if k.partition("@")[0] in OF_TARGETS}
    assert len(theirs) == 12
    assert ours == theirs


def trained_on(model, tiny):
    """Users by item in the training data, counted from RecBole's split."""
    from recplug.adapters.recbole.compat.remedies import recbole_compat
    from recplug.adapters.recbole.config.host_config import make_config
    from recplug.adapters.recbole.data.loaders import make_loaders

    with recbole_compat():
        config = make_config(model, "tiny", [], {**CONFIG, **MODELS[model], "data_path": str(tiny)})
        from recbole.utils import init_seed

        init_seed(config["seed"], config["reproducibility"])
        family = "sequential" if model == "SASRec" else "graph"
        train, *_ = make_loaders(config, config.model_class, family, keep_batch=True)
    dataset = train._dataset
    tokens = dataset.field2id_token[dataset.iid_field]
    pairs = set()
    for row in range(len(dataset)):
        inter = dataset.inter_feat[row]
        user = int(inter[dataset.uid_field])
        history = inter["item_id_list"].tolist() if model == "SASRec" else []
        pairs |= {(user, item) for item in (int(inter[dataset.iid_field]), *history) if item}
    return Counter(str(tokens[item]) for _, item in pairs)


@pytest.mark.parametrize("model", MODELS)
def test_two_groups_are_those_of_a_loop(model, ended, tiny):
    result, ranks = ended(model, 7)
    counts = trained_on(model, tiny)
    by_user = {"warm": defaultdict(list), "cold": defaultdict(list)}
    for row in ranks:
        by_user["cold" if counts[row["item"]] < 7 else "warm"][row["user"]].append(row["rank"])
    for name, users in by_user.items():
        found = result["item_groups"][name]
        assert found["targets"] == sum(map(len, users.values())) > 0
        assert found["users"] == len(users)
        for k in CONFIG["topk"]:
            recall = [sum(r <= k for r in mine) / len(mine) for mine in users.values()]
            best = [sum(1 / math.log2(i + 2) for i in range(min(k, len(mine)))) for mine in users.values()]
            gain = [sum(1 / math.log2(r + 1) for r in mine if r <= k) for mine in users.values()]
            ndcg = [g / b for g, b in zip(gain, best, strict=True)]
            assert found[f"recall@{k}"] == pytest.approx(sum(recall) / len(recall), abs=6e-5)
            assert found[f"ndcg@{k}"] == pytest.approx(sum(ndcg) / len(ndcg), abs=6e-5)
    assert result["item_groups"]["warm"]["items"] + result["item_groups"]["cold"]["items"] == 40


def test_without_the_key_there_are_no_groups(ended):
    assert "item_groups" not in ended("SASRec", None)[0]


def test_targets_of_one_score_have_places_one_after_the_other():
    # Case 5 has three targets at rank 2 and one at 4, which they push on; case 1 has one beyond the list.
    case = torch.tensor([5, 5, 1, 5, 5, 1])
    rank = torch.tensor([2, 4, 9, 2, 2, 1])
    assert _hits(case, rank, 5).tolist() == [[1, 0, 0, 0, 0, 2], [0, 1, 1, 1, 1, 4]]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cold_below": 0}, "cold_below=0 is no number"),
        ({"cold_below": 2.5}, "cold_below=2.5 is no number"),
        ({"cold_below": True}, "cold_below=True is no number"),
        ({"cold_below": 3, "eval_args": {**LAST, "mode": "uni20"}}, "set eval_args' mode to full"),
    ],
    ids=["nothing", "a part", "a switch", "sampled"],
)
def test_what_cannot_be_told_apart_is_refused_in_one_line(more, words, tiny, tmp_path):
    metrics = {"metrics": ["Recall", "NDCG"]}
    with pytest.raises(RecplugError) as caught:
        run(
            "SASRec",
            "tiny",
            "",
            {**CONFIG, **MODELS["SASRec"], **metrics, **more},
            data_path=tiny,
            output_dir=tmp_path / "r",
        )
    assert words in str(caught.value)
    assert not (tmp_path / "r").exists()
