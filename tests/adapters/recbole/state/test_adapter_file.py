"""What a training may begin from: another run's adapter file, and checkpoints of plain RecBole."""

import json
import shutil

import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_trainer, init_seed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from recplug.adapters.recbole import load_adapter, run, warm_start
from recplug.adapters.recbole.compat.remedies import recbole_compat
from recplug.adapters.recbole.config.host_config import make_config, model_class
from recplug.adapters.recbole.state import run_directory
from recplug.adapters.recbole.state.run_directory import adapter_tensors
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import get

SMALL = {
    "embedding_size": 8,
    "hidden_size": 8,
    "inner_size": 8,
    "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 6,
    "train_batch_size": 128,
    "epochs": 2,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "seed": 5,
    "use_gpu": False,
    "show_progress": False,
    "state": "ERROR",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "full"},
}


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They take longer than these trainings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_directory, "draw", lambda panel, path: path.touch())
        yield


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A finished SASRec with prism."""
    return run("SASRec", "tiny", "prism", SMALL, data_path=tiny, output_dir=tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def fresh(build):
    """``fresh(plugins, **config)``: an augmented model of the trained one's shape, with other parameters."""

    def make(plugins="prism", settings=None, *, model="SASRec", **more):
        shape = {key: value for key, value in SMALL.items() if key not in ("seed", "load_col", "epochs")}
        return build(model, plugins, settings, **{**shape, "seed": 77, **more})[1]

    return make


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def one_line(match, call, *args, **kwargs):
    with pytest.raises(RecplugError, match=match) as failure:
        call(*args, **kwargs)
    assert "\n" not in str(failure.value)


# -- adapter files


@pytest.mark.parametrize("named", ["run directory", "file"])
def test_an_adapter_goes_into_a_model_of_the_same_shape(named, trained, fresh):
    model, backbone = fresh(), {}
    backbone = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("recplug.")}
    stored = load_file(trained.directory / "adapter.safetensors")
    assert not equal(adapter_tensors(model.recplug), stored)
    file = trained.directory if named == "run directory" else trained.directory / "adapter.safetensors"
    told = load_adapter(model, file)
    assert equal(adapter_tensors(model.recplug), stored)
    assert equal({name: model.state_dict()[name] for name in backbone}, backbone), "the backbone is as it was"
    assert told["file"].endswith("adapter.safetensors")


def test_the_file_is_little_more_than_its_tensors(trained):
    file = trained.directory / "adapter.safetensors"
    with safe_open(file, framework="pt") as opened:
        numbers = sum(opened.get_tensor(name).nbytes for name in opened.keys())  # noqa: SIM118
    # A header of some 100 bytes a tensor; at the width of a real model it is less than 2 %.
    assert file.stat().st_size - numbers < 200 * len(load_file(file)) + 200


def test_the_overhead_at_a_real_width(tiny, tmp_path):
    wide = {**SMALL, "hidden_size": 64, "inner_size": 64, "epochs": 1}
    found = run("SASRec", "tiny", "prism", wide, data_path=tiny, output_dir=tmp_path / "run")
    numbers = sum(tensor.nbytes for tensor in adapter_tensors(found.model.recplug).values())
    files = [found.directory / name for name in ("adapter.safetensors", "adapter.json")]
    assert sum(file.stat().st_size for file in files) <= 1.02 * numbers


@pytest.mark.parametrize(
    ("plugins", "settings", "line"),
    [
        ("", {}, "is the adapter of prism, and this model has none"),
        ("mars", {}, "is the adapter of prism, and this model has mars"),
        ("prism,mars", {}, r"is the adapter of prism, and this model has prism \+ mars"),
        ("prism", {"prism": {"scale": 0.25}}, "was trained with prism.scale=1.0, not 0.25; give it the same value"),
    ],
)
def test_another_adapter_is_refused(plugins, settings, line, trained, fresh):
    model = fresh(plugins, settings)
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    one_line(line, load_adapter, model, trained.directory)
    now = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    assert equal(now, before)


def copied(trained, tmp_path):
    """The adapter without the digests that find accidents."""
    (tmp_path / "run").mkdir()
    shutil.copy(trained.directory / "adapter.safetensors", tmp_path / "run")
    about = json.loads((trained.directory / "adapter.json").read_text())
    del about["sha256"]
    (tmp_path / "run" / "adapter.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"packages": {"prism": "recplug 0.0"}}, "was trained with prism of recplug 0.0, and this is recplug"),
        ({"items": {"count": 40, "sha256": "0"}}, r"was trained on other items \(40, here 40\), or in another order"),
        ({"users": {"count": 7, "sha256": "0"}}, r"was trained on other users \(7, here 60\)"),
    ],
    ids=["version", "items", "users"],
)
def test_an_adapter_of_other_data_or_versions_is_refused(change, line, trained, fresh, tmp_path):
    copied(trained, tmp_path)
    file = tmp_path / "run" / "adapter.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    one_line(line, load_adapter, fresh(), tmp_path / "run")


def test_an_adapter_of_another_size_is_refused(trained, fresh):
    model = fresh(hidden_size=16)
    one_line("does not fit the adapter of this model: .* there and .* here", load_adapter, model, trained.directory)


@pytest.mark.parametrize("how", ["no file", "no description", "truncated", "too few", "too many", "nan", "whole"])
def test_a_damaged_adapter_is_one_line(how, trained, fresh, tmp_path):
    copied(trained, tmp_path)
    file = tmp_path / "run" / "adapter.safetensors"
    stored, line = load_file(file), "cannot read the adapter .*adapter.safetensors"
    if how == "no file":
        file.unlink()
    elif how == "no description":
        (tmp_path / "run" / "adapter.json").unlink()
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-8])
    elif how == "too few":
        stored.pop(sorted(stored)[0])
        save_file(stored, file)
        line = "it lacks prism."
    elif how in ("nan", "whole"):
        name = next(name for name in sorted(stored) if stored[name].is_floating_point())
        broken = stored[name] * torch.nan if how == "nan" else stored[name].long()
        save_file({**stored, name: broken}, file)
        line = f"is damaged: {name} holds no finite numbers of its kind"
    else:
        save_file({**stored, "prism.more": torch.zeros(2)}, file)
        line = "it has prism.more"
    one_line(line, load_adapter, fresh(), tmp_path / "run")


# -- checkpoints


@pytest.fixture(scope="module")
def vanilla(tiny, tmp_path_factory):
    """``vanilla(model)``: RecBole's own model, trained by its own trainer: checkpoint, model and loaders."""
    made = {}

    def train(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("vanilla")
            with recbole_compat(), torch.enable_grad():
                overrides = {**SMALL, "data_path": str(tiny), "checkpoint_dir": str(folder)}
                config = make_config(name, "tiny", [], overrides)
                init_seed(config["seed"], True)
                loaders = data_preparation(config, create_dataset(config))
                model = model_class(name)(config, loaders[0]._dataset)
                trainer = get_trainer(config["MODEL_TYPE"], name)(config, model)
                trainer.fit(loaders[0], loaders[1], verbose=False)
                trainer.evaluate(loaders[2], load_best_model=True)
            made[name] = trainer.saved_model_file, model.eval(), loaders
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("working"))  # where RecBole's trainer puts its TensorBoard log
        yield train


@pytest.mark.parametrize("name", ["SASRec", "LightGCN"])
@torch.no_grad()
def test_a_checkpoint_of_plain_recbole_gives_its_scores(name, vanilla, fresh, tmp_path):
    file, plain, loaders = vanilla(name)
    with_objects = {**torch.load(file, weights_only=True), "config": loaders[0]._dataset.config}  # as RecBole saves it
    file = str(tmp_path / "vanilla.pth")
    torch.save(with_objects, file)
    model = fresh("prism", {"prism": dict(get("prism").identity)}, model=name).eval()
    batch = next(iter(loaders[2]))[0]
    wanted = plain.full_sort_predict(batch)
    assert not torch.allclose(model.full_sort_predict(batch), wanted)
    one_line("holds more than numbers.* --trust_checkpoint true", warm_start, model, file)
    told = warm_start(model, file, trust=True)
    assert torch.equal(model.full_sort_predict(batch), wanted)
    assert told["file"] == file


def test_a_checkpoint_of_a_run_with_plugins_gives_its_backbone(trained, fresh):
    model = fresh()
    adapter = {name: value.clone() for name, value in adapter_tensors(model.recplug).items()}
    warm_start(model, trained.directory)
    assert torch.equal(model.item_embedding.raw, trained.model.item_embedding.raw)
    assert equal(adapter_tensors(model.recplug), adapter), "the plugin is as it was"


@pytest.mark.parametrize("case", ["other model", "other items", "other size", "no file", "truncated", "no checkpoint"])
def test_another_checkpoint_is_refused(case, vanilla, fresh, tmp_path):
    file, _, _ = vanilla("SASRec")
    other, settings = tmp_path / "other.pth", {}
    line = {
        "other model": "is a checkpoint of SASRec, not of GRU4Rec",
        "other items": r"item_embedding.weight is \[31, 8\] there and \[41, 8\] here",
        "other size": "does not fit SASRec here: .* use the same data, filters and settings",
        "no file": "cannot read the checkpoint .*No such file",
        "truncated": "cannot read the checkpoint",
        "no checkpoint": "is no checkpoint of RecBole's trainer",
    }[case]
    if case == "other model":
        settings["model"], other = "GRU4Rec", file
    elif case == "other size":
        settings["hidden_size"], other = 16, file
    elif case == "truncated":
        with open(file, "rb") as whole:
            other.write_bytes(whole.read()[:2000])
    elif case == "no checkpoint":
        torch.save([1, 2], other)
    elif case == "other items":
        stored = torch.load(file, weights_only=False)
        stored["state_dict"]["item_embedding.weight"] = stored["state_dict"]["item_embedding.weight"][:31]
        torch.save(stored, other)
    model = fresh("", None, **settings)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one_line(line, warm_start, model, other)
    assert equal(model.state_dict(), before)


DAMAGED = {
    "a tensor": lambda stored: torch.ones(3),
    "no configuration": lambda stored: {**stored, "config": None},
    "another configuration": lambda stored: {**stored, "config": {}},
    "names that are none": lambda stored: {**stored, "state_dict": {1: torch.ones(2)}},
    "nan": lambda stored: with_item_embedding(stored, lambda values: values * torch.nan),
    "whole numbers": lambda stored: with_item_embedding(stored, torch.Tensor.long),
    "no values": lambda stored: with_item_embedding(stored, lambda values: values.to("meta")),
    "a list": lambda stored: with_item_embedding(stored, lambda values: Shaped(values.shape)),
}


class Shaped:
    def __init__(self, shape):
        self.shape = shape


def with_item_embedding(stored, change):
    state = stored["state_dict"]
    return {**stored, "state_dict": {**state, "item_embedding.weight": change(state["item_embedding.weight"])}}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_checkpoint_is_one_line(case, vanilla, fresh, tmp_path):
    file, _, _ = vanilla("SASRec")
    torch.save(DAMAGED[case](torch.load(file, weights_only=False)), tmp_path / "other.pth")
    model = fresh("", None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    line = "is no checkpoint of RecBole's trainer|is damaged: item_embedding.weight holds no finite numbers of its kind"
    line += "|it holds more than numbers"
    one_line(line, warm_start, model, tmp_path / "other.pth")
    assert equal(model.state_dict(), before)


# -- a run that begins from both


def test_a_run_may_begin_from_both(trained, vanilla, tiny, tmp_path):
    settings = {**SMALL, "epochs": 1, "learning_rate": 0.0, "seed": 9}
    settings |= {"adapter": str(trained.directory), "warm_start": str(trained.directory / "checkpoint.pth")}
    found = run("SASRec", "tiny", "prism", settings, data_path=tiny, output_dir=tmp_path / "run")
    assert found.test_result == trained.test_result, "nothing was learnt, so it is the run that it began from"
    assert set(found.result["begun_from"]) == {"adapter", "warm_start"}
    assert (found.directory / "adapter.safetensors").read_bytes() == (
        trained.directory / "adapter.safetensors"
    ).read_bytes()


def test_a_bare_run_may_begin_from_a_checkpoint(vanilla, tiny, tmp_path):
    file, plain, _ = vanilla("SASRec")
    settings = {**SMALL, "epochs": 1, "learning_rate": 0.0, "warm_start": file}
    found = run("SASRec", "tiny", [], settings, data_path=tiny, output_dir=tmp_path / "run")
    stored = found.model.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in plain.state_dict().items())


def test_another_split_is_said(vanilla, tiny, tmp_path, caplog):
    file = vanilla("LightGCN")[0]
    by_chance = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "full"}
    for number, (eval_args, told) in enumerate(((SMALL["eval_args"], 0), (by_chance, 1))):
        settings = {**SMALL, "epochs": 1, "warm_start": file, "eval_args": eval_args}
        caplog.clear()
        with caplog.at_level("WARNING", logger="recplug"):
            run("LightGCN", "tiny", [], settings, data_path=tiny, output_dir=tmp_path / str(number))
        assert sum("another split of the data" in line for line in caplog.messages) == told


def test_a_wrong_beginning_leaves_nothing(tiny, tmp_path):
    for key in ("adapter", "warm_start"):
        settings = {**SMALL, key: str(tmp_path / "nowhere")}
        one_line(
            "cannot read the", run, "SASRec", "tiny", "prism", settings, data_path=tiny, output_dir=tmp_path / "run"
        )
        assert not (tmp_path / "run").exists()
