import ast
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.compat.remedies import (
    NUMPY_ALIASES,
    REMEDIES,
    dok_update,
    gloo_without_cuda,
    numpy_aliases,
    one_connection,
    quiet_scaler,
    recbole_compat,
)
from recplug.adapters.recbole.config.host_config import make_config

RECBOLE = Path(importlib.util.find_spec("recbole").origin).parent


class Custom:
    """Something that only a full unpickling can bring back."""


def everything():
    return dict(vars(np)), vars(scipy.sparse.dok_matrix).get("_update"), torch.load, torch.save, list(warnings.filters)


def sources():
    return [file for file in RECBOLE.rglob("*.py") if "quick_start" not in file.parts]


def write_ring(root, users=12, items=9):
    """Users who each step through all but one of the items, from different starting points."""
    folder = root / "ring"
    folder.mkdir()
    rows = [(u, (u + step) % items, step) for u in range(users) for step in range(items - 2)]
    lines = ["user_id:token\titem_id:token\ttimestamp:float"] + [f"u{u}\ti{i}\t{t}" for u, i, t in rows]
    (folder / "ring.inter").write_text("\n".join(lines) + "\n")
    loaded = {"inter": ["user_id", "item_id", "timestamp"]}
    return {
        "data_path": str(root),
        "load_col": loaded,
        "epochs": 1,
        "state": "ERROR",
        "show_progress": False,
        "seed": 3,
    }


def host(model, root, **settings):
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    config = make_config(model, "ring", [], write_ring(root) | settings)
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    return config, config.model_class(config, train.dataset), train, valid, test


def test_everything_is_put_back_also_after_an_error_and_from_nested_blocks():
    before = everything()
    with recbole_compat(), recbole_compat():
        inside = everything()
    assert everything() == before
    with pytest.raises(ZeroDivisionError), recbole_compat():
        raise ZeroDivisionError
    assert everything() == before
    assert inside != before


def test_the_outer_block_still_works_after_an_inner_one(tmp_path):
    with recbole_compat():
        torch.save(Custom(), tmp_path / "outer.pth")
        with recbole_compat():
            torch.save(Custom(), tmp_path / "inner.pth")
        assert all(hasattr(np, name) for name in NUMPY_ALIASES)
        assert hasattr(scipy.sparse.dok_matrix, "_update")
        assert isinstance(torch.load(tmp_path / "outer.pth"), Custom)
        assert isinstance(torch.load(tmp_path / "inner.pth"), Custom)


def test_replaced_forgets_an_attribute_that_was_not_there():
    class Owner:
        kept = 1

    with replaced(Owner, kept=2, new=3):
        assert (Owner.kept, Owner.new) == (2, 3)
    assert Owner.kept == 1
    assert not hasattr(Owner, "new")


def test_every_remedy_names_its_thread():
    for remedy in REMEDIES:
        assert re.search(r"RecBole#\d+|no thread yet", remedy.why), remedy.name
        assert re.search(r"RecBole#\d+|[Nn]o thread yet|No upstream thread", remedy.scope.__doc__ or "") or (
            "No upstream thread" in sys.modules[remedy.scope.__module__].__doc__
        ), remedy.name


def test_every_numpy_name_in_recboles_source_is_there():
    used = set()
    for file in sources():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np":
                used.add(node.attr)
    assert {"float_", "complex_", "unicode_", "float", "bool", "long"} <= used
    with warnings.catch_warnings(), numpy_aliases():
        warnings.simplefilter("error")
        assert [name for name in sorted(used) if not hasattr(np, name)] == []


def test_recboles_own_lasting_aliases_go_as_well():
    from recbole.config import Config

    before = dict(vars(np))
    with recbole_compat():
        Config.compatibility_settings(None)
        assert np.float is np.float64
    assert dict(vars(np)) == before


def test_dok_update_writes_what_it_is_given():
    entries = {(0, 1): 1, (3, 2): 2.5, (3, 0): -1}
    expected = np.zeros((4, 3), dtype=np.float32)
    for place, value in entries.items():
        expected[place] = value
    with dok_update():
        matrix = scipy.sparse.dok_matrix((4, 3), dtype=np.float32)
        matrix._update({})
        matrix._update(entries)
    assert np.array_equal(matrix.toarray(), expected)
    assert matrix.dtype == np.float32
    with dok_update(), pytest.raises(IndexError):
        scipy.sparse.dok_matrix((2, 2))._update({(2, 0): 1})


def test_seven_models_build_their_adjacency_by_it():
    users = {file.stem for file in sources() if "A._update(" in file.read_text(encoding="utf-8")}
    assert users == {"lightgcn", "ngcf", "ncl", "gcmc", "spectralcf", "kgin", "mcclk"}


def test_lightgcns_adjacency_is_the_normalised_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with recbole_compat():
        _, model, train, _, _ = host("LightGCN", tmp_path)
    n_users, n = model.n_users, model.n_users + model.n_items
    links = np.zeros((n, n))
    feat = train.dataset.inter_feat
    for user, item in zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True):
        links[user, n_users + item] = links[n_users + item, user] = 1
    scale = (links.sum(1) + 1e-7) ** -0.5
    slow = scale[:, None] * links * scale[None, :]
    assert np.allclose(model.norm_adj_matrix.to_dense().numpy(), slow, atol=1e-6)
    assert model.norm_adj_matrix._nnz() == 2 * len(feat)


BLOCKED = """
    import importlib.abc, sys

    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] in {"ray", "pkg_resources", "hyperopt", "kmeans_pytorch", "lightgbm", "xgboost"}:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Blocker())
    import recplug.adapters.recbole.compat.remedies
    import recplug.adapters.recbole.config.host_config
    import recbole.config, recbole.data, recbole.utils, recbole.trainer, recbole.evaluator, recbole.model
    import recbole.model.general_recommender, recbole.model.sequential_recommender
    import recbole.model.context_aware_recommender, recbole.model.knowledge_aware_recommender
    from thop.profile import register_hooks
    assert "recbole.quick_start" not in sys.modules
    try:
        import recbole.quick_start
    except ModuleNotFoundError as error:
        print(error.name)
"""


def test_recbole_imports_without_ray_hyperopt_and_pkg_resources():
    script = textwrap.dedent(BLOCKED)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ray"]  # the blocker blocks


def test_nccl_becomes_gloo_and_no_cuda_device_is_set(tmp_path, monkeypatch):
    from recbole.trainer import trainer

    asked = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **given: asked.append(backend))
    with gloo_without_cuda():
        torch.distributed.init_process_group(backend="nccl", rank=0)
        torch.distributed.init_process_group("mpi")
        torch.cuda.set_device(1)
    assert asked == ["gloo", "mpi"]
    torch.distributed.init_process_group("nccl")
    assert asked[-1] == "nccl"
    monkeypatch.setattr(trainer, "DistributedDataParallel", lambda module, **given: (module, given))
    with gloo_without_cuda():
        assert trainer.DistributedDataParallel("model", device_ids=[1]) == ("model", {})


def test_a_process_connects_once_and_constants_are_not_sent(monkeypatch):
    from recbole.trainer import trainer

    connected = []
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *given, **named: connected.append(given))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: bool(connected))
    monkeypatch.setattr(trainer, "DistributedDataParallel", lambda module, **given: module)
    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("constant", torch.zeros(2), persistent=False)
    with one_connection():
        torch.distributed.init_process_group("nccl")
        torch.distributed.init_process_group("nccl")
        assert trainer.DistributedDataParallel(module) is module
    assert connected == [("nccl",)]
    assert module._ddp_params_and_buffers_to_ignore == ["constant"]  # not the running statistics


def test_only_the_scalers_own_warning_is_quiet():
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        torch.cuda.amp.GradScaler(enabled=False)
        unscoped = len(heard)
        with quiet_scaler():
            torch.cuda.amp.GradScaler(enabled=False)
        assert len(heard) == unscoped == 1
    with quiet_scaler(), pytest.warns(FutureWarning, match="another"):
        warnings.warn("another", FutureWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("BPR", {}),
        ("LightGCN", {"n_layers": 2}),
        ("SASRec", {"hidden_size": 8, "inner_size": 8, "n_layers": 1}),
        ("SASRec", {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "loss_type": "BPR"}),
    ],
)
def test_a_run_trains_saves_and_tests(tmp_path, monkeypatch, model, settings):
    from recbole.utils import get_trainer

    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as heard, recbole_compat():
        config, bare, train, valid, test = host(model, tmp_path, topk=[3], valid_metric="MRR@3", **settings)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, bare)
        before = {name: value.clone() for name, value in bare.state_dict().items()}
        trainer.fit(train, valid, saved=True, show_progress=False)
        result = trainer.evaluate(test, load_best_model=True, show_progress=False)
    assert [str(warning.message) for warning in heard if "GradScaler" in str(warning.message)] == []
    assert set(result) >= {"recall@3", "ndcg@3"}
    assert all(0 <= value <= 1 for value in result.values())
    assert any(not torch.equal(before[name], value) for name, value in bare.state_dict().items())
    saved = torch.load(trainer.saved_model_file, weights_only=True)
    assert saved["config"]["model"] == model
    assert os.path.dirname(trainer.saved_model_file).endswith("saved")


ANOMALY = """
import torch
from recplug.adapters.recbole.compat.remedies import recbole_compat
torch.autograd.set_detect_anomaly({before})
with recbole_compat():
    import recbole.model.sequential_recommender.sasrec
    inside = torch.is_anomaly_enabled()
print(inside, torch.is_anomaly_enabled())
"""


@pytest.mark.parametrize("before", [False, True])
def test_importing_sine_does_not_switch_anomaly_detection_on(before):
    """A fresh process, where SINE is not imported yet: what the caller had stays, inside and after."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ANOMALY.format(before=before)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == [str(before), str(before)]


def test_sine_does_switch_it_on_without_the_remedy():
    code = "import torch, recbole.model.sequential_recommender.sasrec; print(torch.is_anomaly_enabled())"
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True"]


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "model.pth"

    class Unpicklable:
        def __reduce__(self):
            raise RuntimeError("full disk")

    with recbole_compat():
        torch.save({"epoch": 1}, file)
        with pytest.raises(RuntimeError, match="full disk"):
            torch.save({"epoch": 2, "broken": Unpicklable()}, file)
        assert torch.load(file)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
