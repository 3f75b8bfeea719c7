"""Files that people pass around run nothing: not in a data set's folder, not in a run's, not as a checkpoint."""

import pickle

import pytest
import torch

from recplug.adapters.recbole.config.host_config import read_yaml
from recplug.plugins.errors import RecplugError

CACHES = ("tiny-SequentialDataset.pth", "tiny-Dataset.pth", "tiny-for-SASRec-dataloader.pth")


@pytest.mark.parametrize(
    "line",
    [
        "dataset_save_path: {evil}",
        "dataloaders_save_path: {evil}",
        "warm_start: {evil}",
        "adapter: {evil}",
        "pre_model_path: {evil}",
        "teacher: __import__('os').mkdir('{trace}')",
        "checkpoint_dir: {folder}",
        "output_dir: {folder}",
        "trust_checkpoint: true",
        "log_wandb: true",
        "x: !!python/object/apply:os.mkdir ['{trace}']",
    ],
    ids=lambda line: line.partition(":")[0],
)
def test_a_data_sets_own_file_names_no_code(line, data, train, payload, trace, refused, tmp_path):
    evil = data / "evil.pth"
    evil.write_bytes(pickle.dumps(payload))
    with (data / "tiny.yaml").open("a") as file:
        file.write(line.format(evil=evil, trace=trace, folder=data) + "\n")
    refused(train("--output_dir", "out"), "tiny.yaml", line.partition(":")[0] if line[0] != "x" else "not valid YAML")
    assert not (tmp_path / "out").exists()


def test_pickles_in_a_runs_folder_and_in_the_data_sets_are_not_read(data, train, ask, payload, tmp_path):
    for name in CACHES:
        (data / name).write_bytes(pickle.dumps(payload))
    assert train("--output_dir", "out").code == 0
    for name in CACHES:
        (tmp_path / "out" / name).write_bytes(pickle.dumps(payload))
    ended = ask("recommend", "out", "--users", "u1")
    assert ended.code == 0, ended
    torch.load(tmp_path / "out" / "checkpoint.pth", weights_only=True)  # nothing in it needs more

    # A run whose files were replaced: its checkpoint by a pickle, its settings by a path to one, its name by a path.
    config = (tmp_path / "out" / "config.yaml").read_text()
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(payload))
    torch.save({"state_dict": {}, "other_parameter": payload}, tmp_path / "out" / "checkpoint.pth")
    assert ask("recommend", "out", "--users", "u1").code == 2
    assert ask("export", "out", "--items", "i.safetensors").code == 2
    for key in ("dataset_save_path", "dataloaders_save_path"):
        lines = [line for line in config.splitlines() if not line.startswith(key)]
        (tmp_path / "out" / "config.yaml").write_text("\n".join([*lines, f"{key}: {tmp_path / 'evil.pth'}"]) + "\n")
        assert ask("recommend", "out", "--users", "u1").code == 2


def test_a_foreign_checkpoint_is_unpickled_by_a_flag_alone(train, payload, refused, tmp_path):
    torch.save({"state_dict": {}, "config": payload}, tmp_path / "evil.pth")
    refused(train("--output_dir", "out", "--warm_start", "evil.pth"), "holds more than numbers", "--trust_checkpoint")
    (tmp_path / "mine.yaml").write_text("trust_checkpoint: true\n")
    words = ("--output_dir", "out", "--warm_start", "evil.pth", "--config_files", "mine.yaml")
    refused(train(*words), "trust_checkpoint is no word of a file's")


@pytest.mark.parametrize("words", [("--save_dataset", "true"), ("--dataset_save_path", "x.pth")])
def test_the_hosts_pickles_of_data_are_not_for_us(words, train, refused):
    refused(train("--output_dir", "out", *words), "RecBole keeps data as pickles")


def test_a_word_is_no_expression(train, trace, refused):
    words = ("--teacher", f"__import__('os').mkdir('{trace}')", "--output_dir", "out")
    refused(train(*words), "is none of KD_DAGFM's")


def test_yaml_that_has_no_end_is_refused_at_once(tmp_path):
    bombs = {
        "aliases": "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 20)),
        "itself": "a: &a [*a]\n",
        "deep": "a: " + "[" * 3000,
        "long": "a: " + "x" * 2_000_000,
    }
    for name, text in bombs.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(RecplugError, match="correct the file"):
            read_yaml(tmp_path / name)
