"""The run directory itself: whose it is, and what its ``config.yaml`` says."""

import pytest
import yaml

from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.plugins.errors import RecplugError


def test_runs_of_the_same_second_lie_beside_each_other(tmp_path):
    wanted = tmp_path / "runs" / "SASRec"
    taken = [RunDirectory.create(wanted, beside=True).path.name for _ in range(3)]
    assert taken == ["SASRec", "SASRec-2", "SASRec-3"]
    (tmp_path / "empty").mkdir()
    assert RunDirectory.create(tmp_path / "empty").path == tmp_path / "empty", "one that was asked for may exist, empty"
    with pytest.raises(RecplugError, match="not empty"):
        RunDirectory.create(tmp_path / "empty")


@pytest.mark.parametrize("beside", [True, False])
def test_where_no_directory_can_be_made(tmp_path, beside):
    (tmp_path / "file").touch()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere" / "else")
    for parent in ("file", "lost"):
        with pytest.raises(RecplugError, match="choose another --output_dir"):
            RunDirectory.create(tmp_path / parent / "run", beside=beside)


def test_a_mapping_is_a_block_where_its_names_have_origins(tmp_path):
    directory = RunDirectory.create(tmp_path / "run")
    values = {"prism": {"scale": 0.5, "modalities": ()}, "eval_args": {"mode": "full"}, "seed": 1}
    directory.write_config(values, {"prism.scale": "given", "prism.modalities": "default", "seed": "a.yaml"})
    text = (directory.path / "config.yaml").read_text()
    assert "  scale: 0.5  # given\n  modalities: []  # default\n" in text
    assert yaml.safe_load(text) == {**values, "prism": {"scale": 0.5, "modalities": []}}
