"""Checkpoints of plain values: what is written, what is unpickled, and what is not."""

import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from recplug.adapters.recbole.compat.checkpoints import arrays_without_objects, own_checkpoints, pretrained, trusted
from recplug.adapters.recbole.config.host_config import make_config
from recplug.plugins.errors import RecplugError


class Custom:
    """Something that only a full unpickling can bring back."""


@pytest.fixture
def strict_load(monkeypatch):
    """torch.load with the default of torch 2.6 and newer, whatever torch this is."""
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda f, **given: load(f, **({"weights_only": True} | given)))


@pytest.mark.usefixtures("strict_load")
def test_only_files_that_this_run_wrote_are_unpickled(tmp_path, monkeypatch):
    torch.save(Custom(), tmp_path / "foreign.pth")
    monkeypatch.chdir(tmp_path)
    with own_checkpoints():
        torch.save(Custom(), "own.pth")
        assert isinstance(torch.load("own.pth"), Custom)
        assert isinstance(torch.load(str(tmp_path / "own.pth"), map_location="cpu"), Custom)
        with pytest.raises(pickle.UnpicklingError):
            torch.load("foreign.pth")
        with pytest.raises(pickle.UnpicklingError):
            torch.load("own.pth", weights_only=True)
    with pytest.raises(pickle.UnpicklingError):
        torch.load("own.pth")


def test_one_file_is_trusted_and_no_other(tmp_path):
    for name in ("mine.pth", "other.pth"):
        torch.save(Custom(), tmp_path / name)
    with own_checkpoints(), trusted(tmp_path / "mine.pth"):
        assert isinstance(torch.load(tmp_path / "mine.pth"), Custom)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "other.pth")


def test_a_trainers_checkpoint_is_read_as_weights_only_and_gives_the_host_what_it_kept(tmp_path):
    beside = {
        "csr": scipy.sparse.csr_matrix(np.eye(3)),
        "lil": scipy.sparse.lil_matrix(np.eye(2)),
        "array": np.arange(4.0),
        "nested": [torch.ones(2), None],
        "layer": nn.Linear(2, 2),
    }
    state = {"config": make_config("BPR", "toy", [], {"epochs": 7}), "state_dict": {"w": torch.ones(1)}}
    with own_checkpoints():
        torch.save({**state, "best_valid_score": np.float64(0.5), "other_parameter": beside}, tmp_path / "c.pth")
        found = torch.load(tmp_path / "c.pth")["other_parameter"]
    stored = torch.load(tmp_path / "c.pth", weights_only=True)
    assert (stored["config"]["model"], stored["config"]["epochs"], stored["best_valid_score"]) == ("BPR", 7, 0.5)
    assert "layer" not in found, "its parameters are in the state_dict"
    for key in ("csr", "lil"):
        assert type(found[key]) is type(beside[key])
        assert np.array_equal(found[key].toarray(), beside[key].toarray())
    assert np.array_equal(found["array"], beside["array"])
    assert torch.equal(found["nested"][0], torch.ones(2))


def test_what_a_host_begins_from_is_unpickled_by_a_flag_alone(tmp_path):
    torch.save(Custom(), tmp_path / "pre.pth")
    config = make_config("BPR", "toy", [], {"pre_model_path": str(tmp_path / "pre.pth")})
    with own_checkpoints():
        with (
            pytest.raises(RecplugError, match=r"pre_model_path .* --trust_checkpoint"),
            pretrained(config, trust=False),
        ):
            torch.load(config["pre_model_path"])
        with pretrained(config, trust=True):
            assert isinstance(torch.load(config["pre_model_path"]), Custom)


def test_arrays_are_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with arrays_without_objects(), pytest.raises(ValueError, match="allow_pickle"):
        np.load(tmp_path / "a.npy", allow_pickle=True)
