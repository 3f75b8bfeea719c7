"""A preset of a plugin in a run: its values for the backbone and the trainer, their origin, and what is said."""

import copy
import logging

import pytest
import yaml

from recplug.adapters.recbole import run
from recplug.plugins import Augmentation, Plugin, PluginSettings, Preset, Requirements, hookimpl, registry, setting


class Settings(PluginSettings):
    scale: float = setting(0.0, "Of the rows.")
    power: float = setting(1.0, "Of the scale.", when={"scale": (1.0, 2.0)})


class Scaled(Augmentation):
    roles = by_item = frozenset({"input", "candidate"})

    def __init__(self, settings, context):
        super().__init__()
        self.scale = settings.scale

    def items(self, rows, ids, *, role, sequence):
        return rows * (1 + self.scale)


class Package:
    def __init__(self, name, host):
        self.plugin = Plugin(
            name=name,
            summary="rows, scaled",
            paper="none",
            settings=Settings,
            requirements=lambda settings: Requirements(seams=frozenset({"items"})),
            build=Scaled,
            identity={"scale": 0.0},
            presets={"paper": Preset("As printed.", {"scale": 1.0}, host)},
        )

    @hookimpl
    def recplug_plugin(self):
        return self.plugin


@pytest.fixture(scope="module", autouse=True)
def packages():
    found = [Package("printed", {"n_layers": 1, "learning_rate": 0.01}), Package("other", {"n_layers": 2})]
    for package in found:
        registry.manager().register(package)
    yield
    for package in found:
        registry.manager().unregister(package)


@pytest.fixture(scope="module")
def finished(tiny, small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets")
    handler = logging.FileHandler(folder / "said.txt")
    logging.getLogger("recplug").addHandler(handler)
    values = {**small, "epochs": 1, "learning_rate": 0.005, "printed.preset": "paper", "printed.power": 2.0}
    result = run("SASRec", "tiny", "printed", values, data_path=tiny, output_dir=folder / "run", baseline=True)
    logging.getLogger("recplug").removeHandler(handler)
    return result, (folder / "said.txt").read_text()


def test_the_preset_sets_the_backbone_and_the_user_wins(finished):
    result, said = finished
    assert result.model.n_layers == 1
    config = yaml.safe_load((result.directory / "config.yaml").read_text())
    assert config["learning_rate"] == 0.005
    assert config["printed"] == {"scale": 1.0, "power": 2.0}
    text = (result.directory / "config.yaml").read_text()
    assert "n_layers: 1  # preset" in text
    assert "scale: 1.0  # preset paper" in text
    assert "preset: n_layers 1" in said
    assert "learning_rate" not in said


def test_the_bare_backbone_beside_it_has_the_same_values(finished):
    result, _ = finished
    config = yaml.safe_load((result.directory / "baseline" / "config.yaml").read_text())
    assert config["n_layers"] == 1


def test_a_given_setting_that_nothing_reads_is_one_line(finished, tiny, small, tmp_path, caplog):
    assert "not read" not in finished[1]  # with scale 1.0 it is read
    caplog.set_level(logging.INFO)
    values = {**small, "epochs": 1, "printed.power": 2.0}
    run("SASRec", "tiny", "printed", values, data_path=tiny, output_dir=tmp_path / "run", test=False)
    assert "note: printed.power is not read; it acts where scale is 1.0 or 2.0" in caplog.text


def test_two_presets_that_disagree_are_refused(tiny, small, tmp_path):
    values = {**copy.deepcopy(small), "printed.preset": "paper", "other.preset": "paper"}
    with pytest.raises(Exception, match="n_layers 1 and 2; give --n_layers yourself"):
        run("SASRec", "tiny", "printed,other", values, data_path=tiny, output_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()
