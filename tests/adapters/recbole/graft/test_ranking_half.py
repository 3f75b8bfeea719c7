"""The score seam's ranking half: on every kind of host, a user and an item have one score, however it is asked for."""

import json

import pytest
import torch
from recbole.data.interaction import Interaction

from recplug.adapters.recbole import load, run
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.train.resume import resume

FILTER = {"filter": {"weight": 1.5}}
SEQUENTIAL = ["SASRec", "BERT4Rec", "CORE", "HGN", "RepeatNet"]
GENERAL = ["LightGCN", "SGL", "GCMC", "NeuMF", "FISM", "MacridVAE"]
BY_TIME = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
SETTINGS = {
    "embedding_size": 16,
    "hidden_size": 16,
    "inner_size": 32,
    "n_layers": 1,
    "n_heads": 1,
    "train_batch_size": 64,
    "train_neg_sample_args": None,
    "MAX_ITEM_LIST_LENGTH": 10,
    "epochs": 2,
    "topk": [5, 10],
    "metrics": ["Recall", "NDCG"],
    "valid_metric": "NDCG@10",
    "metric_decimal_place": 6,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "seed": 5,
    "use_gpu": False,
    "show_progress": False,
}
GRAPH = {**SETTINGS, "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1}}


@torch.no_grad()
def all_scores(model, batch, n_items):
    """``[B, n_items]`` by full_sort_predict, and pair by pair."""
    model.eval()
    with recbole_compat():
        ranked = model.full_sort_predict(batch).reshape(len(batch), n_items)
        pairs = batch.repeat_interleave(n_items)
        pairs.update(Interaction({model.ITEM_ID: torch.arange(n_items).repeat(len(batch))}))
        return ranked, model.predict(pairs).reshape(len(batch), n_items)


@pytest.mark.parametrize("name", [*SEQUENTIAL, *GENERAL])
def test_a_pair_has_the_score_that_it_is_ranked_by(name, build, batch_of):
    _, model, _, valid, _ = build(name, "filter", FILTER)
    _, bare, *_ = build(name, "filter", {"filter": {"weight": 0.0}})
    bare.load_state_dict({**model.state_dict(), "recplug.plugins.filter.weight": torch.zeros(())})
    batch = batch_of(valid)[:5]
    ranked, pairs = all_scores(model, batch, 41)
    torch.testing.assert_close(ranked, pairs, rtol=1e-4, atol=1e-5)
    base, _ = all_scores(bare, batch, 41)
    form, recency = model.recplug.plugins["filter"].form, 0.6
    if name in SEQUENTIAL:
        history = torch.zeros(5, 41)
        for row, (items, length) in enumerate(zip(batch[model.ITEM_SEQ], batch[model.ITEM_SEQ_LEN], strict=True)):
            for back, item in enumerate(items[: int(length)].flip(0).tolist()):
                history[row, item] += recency**back
    else:
        history = form.users.dense()[batch[model.USER_ID]]
    f = form.scores(history.T.contiguous(), model.recplug.plugins["filter"].settings.exponents).T
    f[:, 0] = 0
    z = (f - f[:, 1:].mean(1, keepdim=True)) / f[:, 1:].std(1, correction=0, keepdim=True)
    spread = base[:, 1:].std(1, correction=0, keepdim=True)
    wanted = base + 1.5 * torch.where(spread > 0, spread, 1.0) * torch.where(history > 0, 0.0, z)
    torch.testing.assert_close(ranked[:, 1:], wanted[:, 1:], rtol=1e-4, atol=1e-4)


def test_one_user_with_two_histories_has_two_rankings(build, batch_of):
    _, model, _, valid, _ = build("SASRec", "filter", FILTER)
    batch = batch_of(valid)[:2]
    batch.update(Interaction({model.USER_ID: torch.tensor([3, 3])}))
    ranked, pairs = all_scores(model, batch, 41)
    assert not torch.allclose(ranked[0], ranked[1])
    torch.testing.assert_close(ranked, pairs, rtol=1e-4, atol=1e-5)


def test_what_is_masked_is_masked_after_the_plugins(build, batch_of):
    _, model, _, valid, _ = build("SASRec", "filter", FILTER, mask_history=True)
    _, plain, *_ = build("SASRec", "filter", FILTER)
    batch = batch_of(valid)[:4]
    model.eval(), plain.eval()
    with torch.no_grad():
        masked, whole = (each.full_sort_predict(batch).reshape(4, -1) for each in (model, plain))
    had = masked == -torch.inf
    assert torch.equal(masked[~had], whole[~had])
    assert had.sum() >= 4


# -- whole runs


def test_the_weight_is_fitted_on_the_best_checkpoint_saved_and_loaded(tiny, tmp_path):
    found = run("SASRec", "tiny", "filter", SETTINGS, data_path=tiny, output_dir=tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    weight = result["fitted"]["filter"]["weight"]
    assert float(found.model.recplug.plugins["filter"].weight) == weight
    checkpoint = torch.load(tmp_path / "run" / "checkpoint.pth", weights_only=False)
    assert float(checkpoint["state_dict"]["recplug.plugins.filter.weight"]) == weight
    loaded = load(tmp_path / "run")
    assert float(loaded.model.recplug.plugins["filter"].weight) == weight
    bare = run("SASRec", "tiny", (), SETTINGS, data_path=tiny, output_dir=tmp_path / "bare")
    assert result["best_valid_score"] >= bare.result["best_valid_score"]
    rows = [(tmp_path / name / "metrics.csv").read_text().count("\n") for name in ("run", "bare")]
    assert rows[0] == rows[1]  # the filter has no say in when training ends
    more = resume(tmp_path / "run", epochs=3)  # the state and the checkpoint that was written again belong together
    whole = run("SASRec", "tiny", "filter", {**SETTINGS, "epochs": 3}, data_path=tiny, output_dir=tmp_path / "whole")
    assert more.test_result == whole.test_result
    assert more.result["fitted"] == whole.result["fitted"]


def test_a_history_is_recommended_for_as_its_user_is(tiny, tmp_path, past):
    run("SASRec", "tiny", "filter", {**SETTINGS, "filter.weight": 2.0}, data_path=tiny, output_dir=tmp_path / "run")
    loaded = load(tmp_path / "run")
    known = loaded.recommend(["u4"], k=5).table()
    stranger = loaded.recommend(histories={"someone": past["u4"]}, k=5).table()
    assert known["item"] == stranger["item"]
    torch.testing.assert_close(*(torch.tensor(each["score"].to_pylist()) for each in (known, stranger)))


@pytest.mark.parametrize(("name", "settings"), [("SASRec", SETTINGS), ("LightGCN", GRAPH), ("NeuMF", GRAPH)])
def test_alone_no_epoch_is_run(name, settings, tiny, tmp_path):
    given = {**settings, "filter.alone": True}
    found = run(name, "tiny", "filter", given, data_path=tiny, output_dir=tmp_path / "run")
    assert found.result["status"] == "finished"
    assert found.result["epochs"] == 0
    assert found.result["best_valid_result"]["ndcg@10"] == pytest.approx(found.result["best_valid_score"])
    assert set(found.test_result) == {"recall@5", "recall@10", "ndcg@5", "ndcg@10"}
    other = run(name, "tiny", "filter", {**given, "seed": 6}, data_path=tiny, output_dir=tmp_path / "other")
    if name == "SASRec":  # the general models' split is by the seed
        assert other.test_result == found.test_result
    assert load(tmp_path / "run").recommend(["u4"], k=5).lists()["u4"]


def test_candidates_that_are_sampled_are_scored(tiny, tmp_path):
    given = {**SETTINGS, "filter.weight": 1.0, "eval_args": {**BY_TIME, "mode": "uni20"}}
    found = run("SASRec", "tiny", "filter", given, data_path=tiny, output_dir=tmp_path / "run")
    assert found.result["status"] == "finished"


# -- what the filter knows


def scores_at(folder, tmp_path, name, part, model, settings):
    """Scores of everyone, in the order of tokens, as RecBole ranks ``part`` of the files in ``folder``."""
    found = run(model, "tiny", "filter", settings, data_path=folder, output_dir=tmp_path / name)
    loaded = load(tmp_path / name)
    rows = {}
    for interaction, *_ in loaded.loaders[part]:
        with torch.no_grad():
            scores = found.model.eval().full_sort_predict(interaction).reshape(len(interaction), -1)
        for user, row in zip(interaction["user_id"].tolist(), scores, strict=True):
            rows[str(loaded.dataset.field2id_token["user_id"][user])] = dict(
                zip(map(str, loaded.item_tokens), row.tolist(), strict=True)
            )
    return rows


@pytest.mark.parametrize("model", ["SASRec", "LightGCN"])
def test_no_later_interaction_changes_an_earlier_ranking(model, tiny, tmp_path):
    """Every user's last item (test), or last but one (validation), is another user's."""
    settings = {**(SETTINGS if model == "SASRec" else GRAPH), "filter.alone": True, "eval_args": BY_TIME}
    found = {}
    for name, back in (("as it is", None), ("test", 1), ("valid", 2)):
        folder = tmp_path / name
        (folder / "tiny").mkdir(parents=True)
        for file in (tiny / "tiny").iterdir():
            if file.suffix != ".inter":
                (folder / "tiny" / file.name).symlink_to(file)
        (folder / "tiny" / "tiny.inter").write_text(changed((tiny / "tiny" / "tiny.inter").read_text(), back))
        for at, part in ((1, "valid"), (2, "test")):
            found[name, part] = scores_at(folder, tmp_path, f"{name}-{part}", at, model, settings)
    assert same(found["as it is", "valid"], found["test", "valid"])
    assert same(found["as it is", "test"], found["test", "test"])
    assert same(found["as it is", "valid"], found["valid", "valid"])
    assert same(found["as it is", "test"], found["valid", "test"]) == (model == "LightGCN")


def changed(text, back):
    """The interactions, with the item that comes ``back`` from each user's end that of the next user."""
    head, *lines = text.splitlines()
    rows = [line.split("\t") for line in lines]
    users = {}
    for row in rows:
        users.setdefault(row[0], []).append(row)
    if back is not None:  # the data's items stay the same
        ends = [own[-back] for own in users.values() if len(own) > 3]  # of three items the second is for training
        for row, item in zip(ends, [row[1] for row in (*ends[1:], ends[0])], strict=True):
            row[1] = item
    return "\n".join([head, *("\t".join(row) for row in rows)]) + "\n"


def same(one, other):
    return all(
        row[item] == pytest.approx(other[user][item], rel=1e-4, abs=1e-6)
        for user, row in one.items()
        for item in row.keys() & other[user].keys()
    )
