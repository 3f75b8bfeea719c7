"""What a run gives away, against its own scores, by programs that read the files without recplug."""

import errno
import json
import resource
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import load, run
from recplug.adapters.recbole.export.plain import check_pure, merged
from recplug.adapters.recbole.export.tower import write_tower
from recplug.adapters.recbole.graft.hosts import HOSTS
from recplug.adapters.recbole.infer.histories import Askers, Ragged
from recplug.adapters.recbole.infer.scores import at_work, host_scores
from recplug.adapters.recbole.infer.vectors import vectors_of
from recplug.plugins.errors import RecplugError

SMALL = {
    "hidden_size": 16,
    "inner_size": 32,
    "embedding_size": 16,
    "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 8,
    "train_batch_size": 64,
    "learning_rate": 0.01,
    "epochs": 2,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "seed": 5,
    "use_gpu": False,
    "show_progress": False,
    "metrics": ["Recall", "NDCG"],
    "topk": [5, 10],
    "valid_metric": "NDCG@10",
}
# Of a run: model, plugins, more settings, what it gives beside items, users and an index.
RUNS = {
    "SASRec": ("SASRec", "", {}, {"tower", "plain"}),
    "SASRec-prism": ("SASRec", "prism", {}, {"tower"}),
    "SASRec-prism-item": ("SASRec", "prism", {"prism": {"fusion": "item"}}, {"tower", "plain"}),
    "GRU4Rec-mars": ("GRU4Rec", "mars", {"loss_type": "BPR"}, {"tower", "plain"}),
    "BERT4Rec-micrec": ("BERT4Rec", "micrec", {}, {"tower", "plain"}),
    "CORE-prism": ("CORE", "prism", {}, {"tower"}),
    "NARM-ssr": ("NARM", "ssr", {}, {"tower", "plain"}),
    "SRGNN": ("SRGNN", "", {"step": 1}, {"plain"}),
    "Caser-mars": ("Caser", "mars", {"loss_type": "BPR"}, {"plain"}),
    "BPR-mars": ("BPR", "mars", {}, {"plain"}),
    "LightGCN": ("LightGCN", "", {}, {"plain"}),
    "LightGCN-prism": ("LightGCN", "prism", {}, {"plain"}),
    "LightGCN-ssr": ("LightGCN", "ssr", {}, set()),
    "NGCF-mars": ("NGCF", "mars", {"hidden_size_list": [16, 8]}, {"plain"}),
    "SGL-micrec": ("SGL", "micrec", {}, set()),
    "SimpleX-prism": ("SimpleX", "prism", {"history_len": 3}, {"plain"}),
    "ENMF": ("ENMF", "", {}, {"plain"}),
}
LATER = {
    "SASRec-prism-item",
    "NARM-ssr",
    "NGCF-mars",
    "LightGCN-prism",
    "ENMF",
    "GRU4Rec-mars",
    "BPR-mars",
    "SimpleX-prism",
}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name in LATER else []) for name in RUNS]
OTHERS = {
    "BPR-magnet": ("BPR", "magnet", {}),
    "NeuMF": ("NeuMF", "", {"mf_embedding_size": 8, "mlp_embedding_size": 8, "mlp_hidden_size": [8]}),
    "ItemKNN": ("ItemKNN", "", {}),
    "SASRecCPR": ("SASRecCPR", "", {"reranker_CAN_NUM": "10", "loss_type": "CE"}),
}
WITHOUT_RECPLUG = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "recplug":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """``trained(name)``: a loaded run; each is trained once."""
    made = {}

    def train(name):
        if name not in made:
            model, plugins, more, *_ = {**RUNS, **OTHERS}[name]
            folder = tmp_path_factory.mktemp("runs") / name
            run(model, "tiny", plugins, {**SMALL, **more}, data_path=tiny, output_dir=folder)
            made[name] = load(folder)
        return made[name]

    return train


def read(path):
    """A table's tokens and rows, by safetensors alone."""
    stored = load_file(path)
    text, ends = stored["item_tokens"].tobytes(), stored["item_token_offsets"].tolist()
    return [text[a:b].decode() for a, b in pairwise(ends)], stored["features"]


def without_recplug(script, *arguments):
    """Run a script in a process that cannot import recplug."""
    words = [sys.executable, "-c", WITHOUT_RECPLUG + textwrap.dedent(script), *map(str, arguments)]
    ended = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_two_files_hold_every_score(trained, tmp_path, name):
    loaded = trained(name)
    loaded.export_items(tmp_path / "items.safetensors")
    loaded.export_users(tmp_path / "users.safetensors")
    items, rows = read(tmp_path / "items.safetensors")
    users, people = read(tmp_path / "users.safetensors")
    assert items == loaded.item_tokens[1:].tolist()
    assert users == loaded.user_tokens[1:].tolist()
    same(people @ rows.T, loaded.scores(users)[:, 1:].numpy())
    tables = [FeatureTable.load(tmp_path / f"{side}.safetensors") for side in ("items", "users")]
    assert tables[0].metadata == tables[1].metadata
    assert tables[0].metadata["encoder"] == "+".join(filter(None, RUNS[name][:2]))


@pytest.mark.parametrize("name", NAMES)
def test_an_index_finds_what_a_full_ranking_finds(trained, tmp_path, name):
    loaded = trained(name)
    loaded.export_index(tmp_path / "items.faiss")
    loaded.export_users(tmp_path / "users.safetensors")
    index = faiss.read_index(str(tmp_path / "items.faiss"))
    tokens = json.loads((tmp_path / "items.faiss.tokens.json").read_text(encoding="utf-8"))
    users, people = read(tmp_path / "users.safetensors")
    ranked = loaded.recommend(users, k=20, mask_history=False).lists()
    scores = loaded.scores(users).numpy()
    columns = loaded.known("items")
    tied, wrong = 0, 0
    for row, (user, found) in enumerate(zip(users, index.search(people, 20)[1].tolist(), strict=True)):
        others = {tokens[at] for at in found} ^ set(ranked[user])
        if others:
            last = scores[row, columns[ranked[user][-1]]]
            apart = max(abs(scores[row, columns[item]] - last) for item in others)
            tied, wrong = (tied + 1, wrong) if apart <= 1e-6 * np.abs(scores).max() else (tied, wrong + 1)
    assert wrong == 0
    assert tied <= 1  # of 60


def test_another_kind_of_index_says_how_far_it_is_exact(trained, tmp_path, caplog):
    loaded = trained("SASRec")
    with caplog.at_level("INFO", logger="recplug"):
        loaded.export_index(tmp_path / "items.faiss", factory="HNSW8")
    assert "HNSW8: the first 20 share" in caplog.text
    assert faiss.read_index(str(tmp_path / "items.faiss")).ntotal == len(loaded.item_tokens) - 1
    for word in ("Nonsense", "", "PQ7"):
        with pytest.raises(RecplugError, match=f"faiss makes no index '{word}' of 40 items of width 16") as error:
            loaded.export_index(tmp_path / "other.faiss", factory=word)
        assert ".cpp" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["items.faiss", "items.faiss.tokens.json"]


def test_items_as_scored_are_content_of_another_run(trained, tiny, tmp_path):
    trained("SASRec").export_items(tmp_path / "items.safetensors")
    given = {**SMALL, "epochs": 1, "features": {"scored": str(tmp_path / "items.safetensors")}}
    second = run("BPR", "tiny", "prism", given, data_path=tiny, output_dir=tmp_path / "second")
    assert "scored" in second.result["features"]
    moved = tmp_path / "moved.safetensors"
    (tmp_path / "items.safetensors").rename(moved)
    with pytest.raises(RecplugError, match="no feature table at"):
        load(tmp_path / "second")
    again = load(tmp_path / "second", features={"scored": moved})
    users = again.dataset.inter_feat["user_id"][:3]
    with torch.no_grad():
        expected = second.model.eval().full_sort_predict({"user_id": users}).view(3, -1)
    assert torch.equal(again.scores(again.user_tokens[users.numpy()].tolist()), expected)


TOWERS = [name for name, (*_, gives) in RUNS.items() if "tower" in gives]


@pytest.mark.parametrize(
    ("ending", "names"),
    [
        ("pt2", ["SASRec-prism"]),
        ("onnx", ["BERT4Rec-micrec"]),
        pytest.param("pt2", TOWERS, marks=pytest.mark.slow),
        pytest.param("onnx", TOWERS, marks=pytest.mark.slow),
    ],
    ids=["pt2", "onnx", "pt2-all", "onnx-all"],
)
def test_towers_run_without_recplug(trained, tmp_path, ending, names):
    """Any batch of histories, in another process, gives the vectors of the users' file."""
    for name in names:
        loaded = trained(name)
        loaded.export_tower(tmp_path / f"{name}.{ending}")
        loaded.export_users(tmp_path / f"{name}.safetensors")
        people = loaded._known(None, "now")
        sequence, lengths = people.past.padded(8)
        np.savez(tmp_path / f"{name}.npz", items=sequence.numpy(), lengths=lengths.numpy())
    script = """
        import numpy as np, torch
        folder, ending, *names = sys.argv[1:]
        for name in names:
            given = np.load(f"{folder}/{name}.npz")
            items, lengths = given["items"], given["lengths"]
            if ending == "pt2":
                program = torch.export.load(f"{folder}/{name}.pt2").module()
                tower = lambda *parts: program(*map(torch.from_numpy, parts)).detach().numpy()
            else:
                import onnxruntime
                session = onnxruntime.InferenceSession(f"{folder}/{name}.onnx")
                tower = lambda i, l: session.run(None, {"items": i, "lengths": l})[0]
            cuts = [0, 1, 8, len(items)]
            blocks = [tower(items[a:b], lengths[a:b]) for a, b in zip(cuts, cuts[1:])]
            np.save(f"{folder}/{name}.npy", np.concatenate(blocks))
        assert not any(name.partition(".")[0] in ("recplug", "recbole") for name in sys.modules)
    """
    without_recplug(script, tmp_path, ending, *names)
    for name in names:
        same(np.load(tmp_path / f"{name}.npy") / 10, read(tmp_path / f"{name}.safetensors")[1] / 10)


PLAIN = [name for name, (*_, gives) in RUNS.items() if "plain" in gives]
# What RecBole reads from numpy, scipy and pandas of its own time.
OLD_TIMES = """
import numpy as np, scipy.sparse, torch
np.float_, np.complex_, np.unicode_, np.float, np.long = np.float64, np.complex128, np.str_, np.float64, np.int_
if not hasattr(scipy.sparse.dok_matrix, "_update"):
    def _update(self, entries):
        for place, value in entries.items():
            self[place] = value
    scipy.sparse.dok_matrix._update = _update
"""


@pytest.mark.parametrize(
    "names",
    [[name for name in PLAIN if name not in LATER], pytest.param(PLAIN, marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_plain_checkpoints_load_in_recbole_without_recplug(trained, tmp_path, names):
    """RecBole's own path: configuration from the checkpoint, data, model, parameters; then its evaluation."""
    for name in names:
        trained(name).export_plain(tmp_path / f"{name}.pth")
    script = """
        import json, logging
        from recbole.data import create_dataset, data_preparation
        from recbole.utils import get_model, get_trainer, init_seed
        logging.disable(logging.CRITICAL)
        folder, *names = sys.argv[1:]
        metrics = {}
        for name in names:
            checkpoint = torch.load(f"{folder}/{name}.pth", weights_only=False)
            config = checkpoint["config"]
            init_seed(config["seed"], config["reproducibility"])
            dataset = create_dataset(config)
            train, valid, test = data_preparation(config, dataset)
            init_seed(config["seed"], config["reproducibility"])
            model = get_model(config["model"])(config, train._dataset).to(config["device"])
            model.load_state_dict(checkpoint["state_dict"])
            model.load_other_parameter(checkpoint.get("other_parameter"))
            model.eval()
            found = next(iter(test))[0]
            with torch.no_grad():
                scores = model.full_sort_predict(found).view(len(found), -1).numpy()
            users = [str(dataset.field2id_token["user_id"][row]) for row in found["user_id"]]
            items = [str(token) for token in dataset.field2id_token["item_id"]]
            np.savez(f"{folder}/{name}.npz", scores=scores, users=users, items=items)
            trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
            metrics[name] = dict(trainer.evaluate(test, load_best_model=False))
        assert not any(name.partition(".")[0] == "recplug" for name in sys.modules)
        print("METRICS" + json.dumps(metrics))
    """
    out = without_recplug(OLD_TIMES + textwrap.dedent(script), tmp_path, *names)
    metrics = json.loads(out.rpartition("METRICS")[2])
    for name in names:
        loaded, found = trained(name), np.load(tmp_path / f"{name}.npz")
        assert found["items"].tolist() == loaded.item_tokens.tolist()
        same(found["scores"], loaded.scores(found["users"].tolist(), until="test").numpy())
        assert metrics[name] == pytest.approx(loaded.result["test_result"], abs=1e-4)


def test_what_cannot_be_given_is_told_in_one_line(trained, tmp_path):
    cases = [
        ("BPR-magnet", "items", "magnet changes BPR's scores pair by pair"),
        ("BPR-magnet", "plain", "no plain BPR: magnet changes scores"),
        ("NeuMF", "users", "NeuMF does not score by the dot product"),
        ("ItemKNN", "index", "ItemKNN does not score by the dot product"),
        ("SASRecCPR", "items", "SASRecCPR (does not score|reads)"),
        ("SASRec-prism", "plain", "no plain SASRec: prism gives an item another row in a history"),
        ("CORE-prism", "plain", "no plain CORE: prism gives an item another row in a history"),
        ("LightGCN-ssr", "plain", "no plain LightGCN: ssr changes nodes after the host has propagated"),
        ("SGL-micrec", "plain", "no plain SGL: micrec changes nodes after"),
        ("Caser-mars", "tower", "Caser has no tower: it scores by a row of each user"),
        ("LightGCN", "tower", "LightGCN has no tower"),
        ("SRGNN", "tower", "SRGNN cannot be traced"),
    ]
    ending = {"items": "safetensors", "users": "safetensors", "index": "faiss", "tower": "pt2", "plain": "pth"}
    for name, what, message in cases:
        with pytest.raises(RecplugError, match=message) as error:
            getattr(trained(name), f"export_{what}")(tmp_path / f"out.{ending[what]}")
        assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


KINDS = {"items": "x.safetensors", "users": "x.safetensors", "index": "x.faiss", "tower": "x.pt2", "plain": "x.pth"}


@pytest.mark.parametrize("what", KINDS)
def test_no_file_is_lost(trained, tmp_path, what):
    loaded, path = trained("SASRec"), tmp_path / KINDS[what]
    export = getattr(loaded, f"export_{what}")
    path.write_text("mine")
    with pytest.raises(RecplugError, match="is there already"):
        export(path)
    for wrong in ("x.txt", "no/" + path.name):
        with pytest.raises(RecplugError, match=r"cannot write|no folder"):
            export(tmp_path / wrong)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as a full disk: the file cannot grow
    try:
        with pytest.raises(RecplugError, match=f"cannot write .*{path.name}.* choose another place") as error:
            export(path, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert path.read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    export(path, overwrite=True)
    assert path.stat().st_size > 1000


def test_an_index_is_never_without_its_own_tokens(trained, tmp_path, monkeypatch):
    loaded = trained("SASRec")
    loaded.export_index(tmp_path / "items.faiss")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    whole = Path.write_text

    def full(path, *words, **more):
        whole(path, "[", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RecplugError, match=r"cannot write .*items\.faiss: No space left on device"):
        loaded.export_index(tmp_path / "items.faiss", factory="HNSW8", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_new_items_are_in_no_file(tiny, tmp_path):
    run("BPR", "tiny", "micrec", {**SMALL, "epochs": 1}, data_path=tiny, output_dir=tmp_path / "run")
    loaded = load(tmp_path / "run")
    loaded.export_items(tmp_path / "before.safetensors")
    loaded.extend_items(["new"], support=[("u1", "new")])
    with pytest.raises(RecplugError, match="from a run that was not extended"):
        loaded.export_items(tmp_path / "after.safetensors")


def test_a_run_of_a_gpu_loads_where_there_is_none(trained, tmp_path):
    directory = trained("SASRec-prism").directory
    config = (directory / "config.yaml").read_text()
    assert "use_gpu: false" in config
    copy = tmp_path / "run"
    copy.mkdir()
    for file in directory.glob("*.*"):
        if file.is_file():
            (copy / file.name).write_bytes(file.read_bytes())
    (copy / "config.yaml").write_text(config.replace("use_gpu: false", "use_gpu: true"))
    told = json.loads((copy / "result.json").read_text())
    del told["files"], told["sha256"]
    (copy / "result.json").write_text(json.dumps(told))
    assert torch.equal(load(copy, use_gpu=False).scores(["u1"]), trained("SASRec-prism").scores(["u1"]))


PAGE = Path(__file__).parents[4] / "docs" / "export.md"


def told():
    """The page's table: by backbone, whether it gives vectors, and its towers."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 3 and cells[1] == "yes":
            towers = {kind for kind in ("torch", "onnx") if kind in cells[2].partition(";")[0].split(", ")}
            found |= {name.strip(): towers for name in cells[0].split(",")}
    return found


def test_the_page_tells_of_models_that_there_are():
    assert len(told()) == 31
    assert set(told()) <= set(HOSTS)
    assert {name for name, towers in told().items() if towers} >= {"SASRec", "GRU4Rec", "BERT4Rec"}


# The page's second table; of prism at its defaults.
MERGES = {
    "SASRec": {"mars", "ssr", "micrec", "magnet"},
    "BPR": {"mars", "prism", "ssr", "micrec"},
    "LightGCN": {"prism"},
    "NGCF": {"mars", "prism"},
    "SGL": {"prism"},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "SGL")) for n in MERGES])
def test_the_page_tells_which_plugins_merge(build, name):
    found = set()
    for plugin in ("mars", "prism", "ssr", "micrec", "magnet"):
        config, model, train, *_ = build(name, [plugin])
        people = Askers([""] * 16, torch.arange(1, 17), Ragged.of([[1 + user, 2 + user] for user in range(16)]))
        with at_work(model.eval()):
            try:
                check_pure(model)
            except RecplugError:
                continue
            bare = merged(model, config, train.dataset)
            with at_work(bare):
                scores = host_scores(bare, people, train.dataset.item_num)
            same(scores.numpy(), host_scores(model, people, train.dataset.item_num).numpy())
        found.add(plugin)
    assert found == MERGES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [host.name for host in HOSTS.values() if host.name not in ("DIN", "DIEN")])
def test_every_model_gives_what_the_page_says(build, tmp_path, name):
    host = HOSTS[name]
    more = {"loss_type": host.losses[0]} if host.losses and host.family == "sequential" else {}
    _, model, train, *_ = build(name, [], **more)
    n_items = train.dataset.item_num
    model.eval()
    past = Ragged.of([[1 + (7 * user + 3 * at) % (n_items - 1) for at in range(1 + user % 6)] for user in range(16)])
    people, gives = Askers([""] * 16, torch.arange(1, 17), past), set()
    with at_work(model):
        try:
            vectors = vectors_of(model, people, n_items)
        except RecplugError:
            assert name not in told()
            return
        if vectors.tower is not None:
            kinds = {"torch": "pt2", "onnx": "onnx"}
            gives = {kind for kind, ending in kinds.items() if _writes(tmp_path, model, vectors, past, ending)}
    assert gives == told()[name]


def _writes(folder, model, vectors, past, ending):
    try:
        write_tower(folder / f"tower.{ending}", model, vectors.tower, *past.padded(model.max_seq_length))
    except RecplugError:
        return False
    return True
