"""``load``: a run again from its files; recommendations against the host's own scores and against RecBole's metrics."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.loss import BPRLoss
from recbole.utils import InputType
from torch import nn

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import load, run
from recplug.adapters.recbole.finished.load import _changed_content
from recplug.adapters.recbole.infer.histories import Ragged
from recplug.adapters.recbole.infer.scores import best
from recplug.adapters.recbole.infer.top_k import Recommendations, check_output
from recplug.plugins.errors import RecplugError

SMALL = {
    "hidden_size": 16,
    "inner_size": 32,
    "embedding_size": 16,
    "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 8,
    "train_batch_size": 64,
    "epochs": 1,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "seed": 5,
    "use_gpu": False,
    "show_progress": False,
    "metrics": ["Recall", "NDCG"],
    "topk": [5, 10],
    "valid_metric": "NDCG@10",
}
BY_TIME = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"}
RUNS = {
    "SASRec": ("SASRec", "", {}),
    "SASRec-prism-masked": ("SASRec", "prism", {"mask_history": True}),
    "GRU4Rec-mars": ("GRU4Rec", "mars", {}),
    "BERT4Rec": ("BERT4Rec", "", {}),
    "LightGCN-ssr": ("LightGCN", "ssr", {"n_layers": 2}),
    "NGCF": ("NGCF", "", {"hidden_size_list": [16, 8]}),
    "BPR-magnet": ("BPR", "magnet", {"eval_args": BY_TIME}),
    "ItemKNN": ("ItemKNN", "", {}),
    "SimpleX": ("SimpleX", "", {"history_len": 3}),
    "FPMC": ("FPMC", "", {"loss_type": "BPR"}),
    "NeuMF": ("NeuMF", "", {"mf_embedding_size": 8, "mlp_embedding_size": 8, "mlp_hidden_size": [8]}),
}


class Averages(SequentialRecommender):
    """A user's own model."""

    input_type = InputType.PAIRWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.things = nn.Embedding(self.n_items, 8, padding_idx=0)
        self.loss = BPRLoss()

    def forward(self, seq, lengths):
        return self.things(seq).sum(dim=1) / lengths.unsqueeze(1)

    def calculate_loss(self, interaction):
        users = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
        good, bad = (self.things(interaction[name]) for name in (self.POS_ITEM_ID, self.NEG_ITEM_ID))
        return self.loss((users * good).sum(dim=1), (users * bad).sum(dim=1))

    def full_sort_predict(self, interaction):
        return self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]) @ self.things.weight.T


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """``trained(name)``: (result, loaded run); each is trained once."""
    made = {}

    def train(name):
        if name not in made:
            model, plugins, more = RUNS[name]
            folder = tmp_path_factory.mktemp("runs") / name
            result = run(model, "tiny", plugins, {**SMALL, **more}, data_path=tiny, output_dir=folder)
            made[name] = result, load(folder)
        return made[name]

    return train


@pytest.fixture(scope="module")
def own(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "run"
    run(Averages, "tiny", "", {**SMALL, "loss_type": "BPR"}, data_path=tiny, output_dir=folder, table="things")
    return folder


def test_ragged_lists_are_lists():
    lists = [[3, 1, 2], [], [7], [5, 6, 7, 8, 9]]
    ragged = Ragged.of(lists)
    assert ragged.take(torch.tensor([3, 0, 1, 3])).padded(4)[0].tolist() == [
        [6, 7, 8, 9], [3, 1, 2, 0], [0, 0, 0, 0], [6, 7, 8, 9],
    ]  # fmt: skip
    assert ragged.padded(2)[1].tolist() == [2, 0, 1, 2]
    shorter = ragged.without_last(torch.tensor([1, 1, 1, 2]))
    assert [shorter.items[a:b].tolist() for a, b in zip(shorter.start, shorter.start[1:], strict=False)] == [
        [3, 1], [], [], [5, 6, 7],
    ]  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_the_past_is_what_the_files_say(trained, past, name):
    _, loaded = trained(name)
    for user, items in past.items():
        at = loaded.user_tokens.tolist().index(user)
        now = loaded.past.now.take(torch.tensor([at])).items.numpy()
        assert loaded.item_tokens[now].tolist() == items


@pytest.mark.parametrize("name", RUNS)
def test_the_model_is_the_one_that_was_tested(trained, name):
    """Metrics by hand from what is recommended are RecBole's test metrics."""
    result, loaded = trained(name)
    recommended = loaded.recommend(until="test", k=100, mask_history=False).lists()
    test = loaded.loaders[2]._dataset
    users, targets = test.inter_feat[test.uid_field].tolist(), test.inter_feat[test.iid_field].tolist()
    wanted, recalls = {}, []
    for user, target in zip(users, targets, strict=True):
        wanted.setdefault(user, set()).add(str(loaded.item_tokens[target]))
    for user, items in wanted.items():
        had = loaded.item_tokens[loaded.past.before_test.take(torch.tensor([user])).items.numpy()]
        hidden = set(had) if loaded.result["mask_history"] else set()
        if loaded.model.recplug_host.family == "graph":
            hidden -= items  # RecBole does not leave out what is tested, even if a user has had it before
        ranked = [item for item in recommended[str(loaded.user_tokens[user])] if item not in hidden]
        recalls.append(len(items & set(ranked[:10])) / len(items))
    assert np.mean(recalls) == pytest.approx(result.test_result["recall@10"], abs=6e-5)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("NeuMF",)])
def test_known_users_get_the_hosts_scores_to_the_last_bit(trained, name):
    result, loaded = trained(name)
    interaction = next(iter(loaded.loaders[2]))[0]
    model = result.model.eval()
    if getattr(model, "recplug_history", None) is not None:
        model.recplug_history = None
    with torch.no_grad():
        expected = model.full_sort_predict(interaction).view(len(interaction), -1)
    users = loaded.user_tokens[interaction[loaded.dataset.uid_field].numpy()].tolist()
    assert torch.equal(loaded.scores(users, until="test"), expected)

    table = loaded.recommend(users, until="test", k=5, mask_history=False, batch=len(users)).table()
    rows = expected.clone()
    rows[:, 0] = -torch.inf
    assert torch.equal(torch.tensor(table["score"].to_numpy()).view(-1, 5), rows.topk(5).values)
    items = [loaded.item_tokens.tolist().index(item) for item in table["item"].to_pylist()]
    assert torch.equal(rows.gather(1, torch.tensor(items).view(-1, 5)), rows.topk(5).values)
    assert table["user"].to_pylist() == [user for user in users for _ in range(5)]
    assert table["rank"].to_pylist() == [1, 2, 3, 4, 5] * len(users)


@pytest.mark.parametrize("name", ["SASRec-prism-masked", "BPR-magnet", "NeuMF"])
def test_history_is_masked_and_candidates_are_kept_to(trained, past, name):
    _, loaded = trained(name)
    recommended = loaded.recommend(k=100).lists()
    for user, items in past.items():
        assert len(recommended[user]) == len(set(loaded.item_tokens[1:]) - set(items))
        assert not set(recommended[user]) & set(items)
    few = ["i3", "i1", "i20"]
    among = loaded.recommend(["u4", "u9"], k=100, candidates=few, mask_history=False).lists()
    assert {user: sorted(items) for user, items in among.items()} == {"u4": sorted(few), "u9": sorted(few)}
    everything = loaded.recommend(["u4"], k=100, mask_history=False).lists()["u4"]
    assert among["u4"] == [item for item in everything if item in few]


@pytest.mark.parametrize("name", ["SASRec", "SASRec-prism-masked", "GRU4Rec-mars", "BERT4Rec"])
def test_anyone_with_a_history_is_recommended_to(trained, past, name):
    _, loaded = trained(name)
    known = loaded.recommend(["u1", "u2"], k=7, batch=2).table()
    new = loaded.recommend(histories={"Ann": past["u1"], "Bob": past["u2"]}, k=7, batch=2).table()
    assert new["user"].to_pylist() == ["Ann"] * 7 + ["Bob"] * 7
    assert new.drop_columns("user").equals(known.drop_columns("user"))
    both = loaded.recommend(["u1"], histories=[past["u2"], ["i1"]], k=7).lists()
    assert list(both) == ["u1", "0", "1"]
    mixed = loaded.recommend(histories={"u1": past["u1"], "Bob": past["u2"]}, k=7).lists()
    assert list(mixed) == ["u1", "Bob"]


def test_a_batch_changes_nothing(trained):
    _, loaded = trained("GRU4Rec-mars")
    whole, one = (loaded.recommend(k=4, batch=size).table() for size in (64, 1))
    assert whole.drop_columns("score").equals(one.drop_columns("score"))
    np.testing.assert_allclose(whole["score"], one["score"], rtol=1e-5)


def test_loading_leaves_everything_else_as_it_was(trained, tmp_path, monkeypatch):
    result, _ = trained("LightGCN-ssr")
    before = sorted((path, path.stat().st_mtime_ns) for path in result.directory.rglob("*"))
    monkeypatch.chdir(tmp_path)
    flags = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    loaded = load(result.directory)
    first = loaded.recommend(k=3).table()
    assert loaded.recommend(k=3).table().equals(first)
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    assert flags == (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in result.directory.rglob("*"))
    assert not list(tmp_path.iterdir())
    assert not loaded.model.training
    assert all(parameter.grad is None for parameter in loaded.model.parameters())


def test_a_model_of_ones_own_needs_its_class(own):
    with pytest.raises(RecplugError, match=r"Averages is a model of your own; pass its class"):
        load(own)
    with pytest.raises(RecplugError, match="the run's model is Averages, not Linear"):
        load(own, model=nn.Linear)
    assert load(own, model=Averages, table="things").recommend(["u1"], k=2).table().num_rows == 2


def test_what_is_no_run_is_said_in_one_line(trained, tiny, tmp_path, monkeypatch):
    directory = trained("SASRec")[0].directory

    def copy(name):
        return change(shutil.copytree(directory, tmp_path / name))

    def change(run_dir, **more):
        file = run_dir / "result.json"
        told = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("files", "sha256")}
        file.write_text(json.dumps({**told, **more}))  # digests find accidents, and not who leaves them out
        return run_dir

    def without_checkpoint():
        run_dir = change(copy("unfinished"), error="boom")
        (run_dir / "checkpoint.pth").unlink()
        return run_dir

    def cut():
        run_dir = copy("cut")
        (run_dir / "checkpoint.pth").write_bytes((directory / "checkpoint.pth").read_bytes()[:5000])
        return run_dir

    def stored(name, content):
        run_dir = copy(name)
        torch.save(content, run_dir / "checkpoint.pth")
        return run_dir

    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "nowhere": "no run at",
        tmp_path / "empty": "is no run",
        without_checkpoint(): r"has no checkpoint \(it ended with: boom\)",
        change(copy("foreign"), plugins=["whiten"]): "uses the plugin 'whiten', which is not installed",
        change(copy("other"), model="GRU4Rec"): "does not fit this version of GRU4Rec",
        cut(): "cannot read the checkpoint",
        stored("other_file", {"weights": 1}): r"cannot read the checkpoint .*state_dict",
        stored("a_list", [1]): "cannot read the checkpoint",
    }
    for path, message in cases.items():
        with pytest.raises(RecplugError, match=message) as error:
            load(path)
        assert "\n" not in str(error.value)

    data = shutil.copytree(tiny, tmp_path / "data")
    lines = (data / "tiny" / "tiny.inter").read_text().splitlines()
    (data / "tiny" / "tiny.inter").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(RecplugError, match=r"are not those that .* was trained on"):
        load(directory, data_path=data)
    for text in ("", lines[0] + "\n", "\n".join(lines).replace("item_id", "thing", 1) + "\n"):
        (data / "tiny" / "tiny.inter").write_text(text)
        with pytest.raises(RecplugError, match=r"tiny cannot be read .*recplug data check") as error:
            load(directory, data_path=data)
        assert "\n" not in str(error.value)


def test_the_data_may_have_moved(trained, tiny, tmp_path, monkeypatch):
    run_dir = shutil.copytree(trained("SASRec")[0].directory, tmp_path / "run")
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(config.replace(str(tiny), str(tmp_path / "gone")))
    with pytest.raises(RecplugError, match=r"config\.yaml is not what the run has written"):
        load(run_dir)
    told = json.loads((run_dir / "result.json").read_text())
    del told["files"], told["sha256"]
    (run_dir / "result.json").write_text(json.dumps(told))
    with pytest.raises(RecplugError):
        load(run_dir)
    assert load(run_dir, data_path=tiny).scores(["u1"]).shape == (1, 41)
    with monkeypatch.context() as patch:  # what was named is not there, and would be found elsewhere
        (tmp_path / "here").mkdir()
        patch.chdir(tmp_path / "here")
        shutil.copytree(tiny, "dataset")
        with pytest.raises(RecplugError, match=r"no tiny in nowhere; name the folder that holds tiny/tiny\.inter"):
            load(run_dir, data_path="nowhere")
        assert load(run_dir).scores(["u1"]).shape == (1, 41)


def test_changed_content_is_a_warning(trained, tiny, tmp_path, caplog):
    """Items may have been added to a feature table, which is how new ones get content."""
    directory = trained("SASRec-prism-masked")[0].directory
    data = shutil.copytree(tiny, tmp_path / "data")
    load(directory, data_path=data)
    assert not caplog.records
    file = data / "tiny" / "tiny.text.safetensors"
    table = FeatureTable.load(file)
    FeatureTable(torch.cat([table.features, torch.ones(1, 6)]), (*table.tokens, "later"), "text").save(file)
    loaded = load(directory, data_path=data)
    assert "the feature table text has changed since the run" in caplog.text
    assert torch.equal(loaded.scores(["u1"]), load(directory).scores(["u1"]))


def test_missing_content_is_an_error(trained, tiny, tmp_path):
    """Some plugins do without: a run would recommend other things, and nobody would know."""
    directory = trained("LightGCN-ssr")[0].directory
    data = shutil.copytree(tiny, tmp_path / "data")
    (data / "tiny" / "tiny.image.safetensors").unlink()
    with pytest.raises(RecplugError, match="the feature table image that the run was trained with is not in"):
        load(directory, data_path=data)


def test_missing_factors_are_an_error(tmp_path):
    result = {"dataset": "tiny", "factors": {"sha256": ""}}
    with pytest.raises(RecplugError, match="the factors that the run was trained with are not in"):
        _changed_content({"data_path": tmp_path, "factors": None}, result)


@pytest.mark.parametrize("k", [1, 20, 300, 500])
@pytest.mark.parametrize("n", [100, 500])
def test_equal_scores_are_in_the_order_of_columns(n, k):
    scores = torch.randint(0, 4, (9, n), generator=torch.Generator().manual_seed(n + k)).float()
    scores[0] = 0.0
    scores[1, : n // 2] = -torch.inf
    truth = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
    found, columns = best(scores, k, None)
    assert np.array_equal(columns.numpy(), truth)
    assert torch.equal(found, scores.gather(1, columns))
    odd = torch.arange(1, n, 2)
    assert torch.equal(best(scores, k, odd)[1], odd[best(scores[:, odd], k, None)[1]])


def test_wrong_questions_are_answered_in_one_line(trained):
    seq, graph, pairs = (trained(name)[1] for name in ("SASRec", "LightGCN-ssr", "FPMC"))
    cases = [
        (seq, {"users": ["u1", "u999", "x"]}, "the run does not know the user 'u999' and 1 more"),
        (seq, {"users": "u1"}, "a list of tokens"),
        (seq, {"histories": [["i1", "i77"]]}, "the run does not know the item 'i77'"),
        (seq, {"histories": {"Ann": []}}, "'Ann' has no history"),
        (seq, {"candidates": ["nothing"]}, "the run does not know the item 'nothing'"),
        (seq, {"candidates": []}, "candidates is empty"),
        (seq, {"k": 0}, "^k=0 must be 1 or more"),
        (seq, {"batch": 0}, "^batch=0 must be 1 or more"),
        (seq, {"until": "then"}, "is not 'now' or 'test'"),
        (seq, {"unknown_items": "drop"}, "unknown_items='drop' is not 'error' or 'skip'"),
        (seq, {"histories": {"Ann": "i1"}}, "the history of 'Ann' is a list of items, not the text 'i1'"),
        (graph, {"histories": {"Ann": ["i1"]}}, "LightGCN scores by a row of each user, and 'Ann' has none"),
    ]
    for loaded, question, message in cases:
        with pytest.raises(RecplugError, match=message):
            loaded.recommend(**question)
    with pytest.raises(RecplugError, match="FPMC scores by a row of each user"):
        pairs.recommend(histories={"Ann": ["i1"]}).table()
    assert len(seq.recommend(histories={"Ann": ["i1", "i77"]}, unknown_items="skip", k=3).lists()["Ann"]) == 3


def test_nobody_is_an_empty_table_and_a_name_may_be_a_number(trained):
    seq = trained("SASRec")[1]
    for nobody in ({"users": []}, {"histories": {}}, {"histories": []}):
        found = seq.recommend(**nobody)
        assert (found.users, found.table().num_rows) == (0, 0)
        assert found.table().schema.names == ["user", "item", "score", "rank"]
    assert seq.recommend(histories={7: ["i1"]}, k=2).lists().keys() == {"7"}


def test_whoever_has_nothing_that_is_known_is_left_out_where_items_are(trained, caplog):
    seq, had = trained("SASRec")[1], {"Ann": ["i77"], "Bob": ["i77", "i1"], "Eve": []}
    assert seq.recommend(histories=had, unknown_items="skip", k=2).lists().keys() == {"Bob"}
    assert "left out, because the run knows nothing that they have had: 2" in caplog.text


def test_everyone_is_who_has_a_history_where_histories_are_read(tiny, tmp_path):
    data = shutil.copytree(tiny, tmp_path / "data")
    ages = "".join(f"{user}\t30\n" for user in [*(f"u{at}" for at in range(60)), "late"])
    (data / "tiny" / "tiny.user").write_text(f"user_id:token\tage:float\n{ages}")
    columns = {"inter": ["user_id", "item_id", "timestamp"], "user": ["user_id", "age"]}
    settings = {**SMALL, "epochs": 1, "load_col": columns}
    run("SASRec", "tiny", "", settings, data_path=data, output_dir=tmp_path / "run")
    loaded = load(tmp_path / "run")
    assert "late" in loaded.known("users")
    users = loaded.recommend(k=1).table().column("user").to_pylist()
    assert len(users) == 60
    assert "late" not in users
    with pytest.raises(RecplugError, match="'late' has no history"):
        loaded.recommend(["late"])


def test_tables_are_the_same_in_every_format(trained, tmp_path):
    _, loaded = trained("LightGCN-ssr")
    found = loaded.recommend(k=3, batch=7)
    for ending in ("parquet", "csv", "jsonl"):
        found.save(tmp_path / f"out.{ending}")
    table = found.table()
    assert table.num_rows == 3 * found.users
    assert pa.parquet.read_table(tmp_path / "out.parquet").equals(table)
    assert pa.csv.read_csv(tmp_path / "out.csv").select(["user", "item"]).equals(table.select(["user", "item"]))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows == table.to_pylist()
    (tmp_path / "folder.csv").mkdir()
    wrong = {"out.txt": "cannot tell the format", "no/o.csv": "no folder", "folder.csv": "it is a folder"}
    for name, message in wrong.items():
        with pytest.raises(RecplugError, match=message):
            found.save(tmp_path / name)


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_what_cannot_be_written_is_told_before_and_in_one_line(tmp_path, monkeypatch, ending):
    """Root may write anywhere, so that rights are taken away in the test alone."""
    nothing = Recommendations(lambda: iter(()), 0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        with pytest.raises(RecplugError, match="the folder is not yours to write to"):
            check_output(tmp_path / f"best.{ending}")
    full = OSError(errno.ENOSPC, "Failed to write .best.part. Detail: [errno 28] No space left on device")
    monkeypatch.setattr(nothing, "batches", lambda: (_ for _ in ()).throw(full))
    with pytest.raises(RecplugError, match=f"best.{ending}: No space left on device; choose another place$"):
        nothing.save(tmp_path / f"best.{ending}")
    assert not list(tmp_path.iterdir())


def test_writing_holds_one_block_at_a_time(trained, tmp_path):
    """No later block is made before the earlier one is written."""
    _, loaded = trained("LightGCN-ssr")
    found = loaded.recommend(k=2, batch=10)
    make, alive = found._make, []

    def counted():
        for batch in make():
            alive.append(batch.num_rows)
            yield batch
            assert (tmp_path / f".out.jsonl.{os.getpid()}.part").exists()

    found._make = counted
    found.to_jsonl(tmp_path / "out.jsonl")
    assert alive == [20] * 6
    assert found._table is None


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    targets = [tmp_path / f"out.{ending}" for ending in ("parquet", "csv", "jsonl")]
    for target in targets:
        target.write_text("old")
    script = f"""
        import os, signal
        import pyarrow as pa
        from recplug.adapters.recbole.infer.top_k import SCHEMA, Recommendations
        def make():
            for number in range(100):
                if number == 50:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield pa.RecordBatch.from_arrays(
                    [pa.array(["u"] * 9), pa.array(["i"] * 9), pa.array([0.5] * 9, pa.float32()),
                     pa.array([1] * 9, pa.int32())], schema=SCHEMA)
        for target in {[str(target) for target in targets]!r}:
            child = os.fork()
            if not child:
                Recommendations(make, 100).save(target)
                os._exit(0)
            assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)
    assert [target.read_text() for target in targets] == ["old"] * 3
