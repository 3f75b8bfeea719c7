"""The command ``run_recbole``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recplug.adapters.cli.resume import resume
from recplug.adapters.console import UsageError, command, say, show_log

USAGE = """\
run_recbole --model SASRec --plugin prism [options]

Train a RecBole model, with plugins grafted on, in RecBole's own trainer.

  --model NAME            a RecBole model (required)
  --plugin A,B            plugins, in the order in which they act; see: recplug plugins
  --dataset NAME          default amazon-scientific, which comes with the package; see: recplug data list
  --data_path DIR         folder that holds NAME/NAME.inter
  --config_files "A B"    YAML files; later ones win; the command line wins over all
  --output_dir DIR        a new folder; default runs/<model>-<plugins>-<dataset>-<time>
  --resume DIR            go on with a run that was stopped; "last": the latest in runs/; --epochs N: train longer
  --adapter RUN           begin from another run's adapter.safetensors
  --warm_start FILE       begin from the backbone of a RecBole checkpoint
  --trust_checkpoint true read one that is a pickle, as plain RecBole's is; it can run code
  --resumable false       do not write what --resume needs after every epoch
  --baseline true         train the bare model first, with the same budget and seed, and end with a table
  --PLUGIN.KEY VALUE      a plugin's setting; see: recplug plugins show NAME
  --micrec.source NAME    a second domain that trains beside the first, with common user tokens
  --features.NAME FILE    a feature table that is not called DATASET.NAME.safetensors
  --shuffle_features true control: content vectors dealt out to other items
  --factors FILE          a factor schema that is not called DATASET.factors.json
  --factor_min_group N    values that fewer items have are rolled up; default 0.1 % of them, at least 5; 0: never
  --factor_control KIND   controls: shuffled (other items' profiles), random (groups of equal sizes)
  --trim_padding false    encode padding too (with a plugin it is left out where that is exact)
  --score_block N         users scored at once by a plugin that changes scores; less memory, the same ranking
  --mask_history true     rank without the items that a user has had
  --cold_below N          in result.json, metrics of items with fewer training interactions, and of the others
  --amp_dtype bf16|fp16   what --enable_amp true computes in
  --nproc N               processes on this machine, one a GPU; --world_size W --ip I --port P --group_offset G for
                          several machines, or torchrun
  --ANY_RECBOLE_KEY VALUE any key of RecBole's own, such as --epochs 20
  --debug                 show the traceback of an error

Both "--key value" and "--key=value" work; a value that begins with -- needs the second. The command line wins over
--config_files, these over the data set's own YAML, that over RecBole's defaults; in YAML, a plugin's settings are
nested under its name.
"""
# Keys that the command itself reads, from the command line or a configuration file.
NAMES = ("model", "plugin", "dataset", "data_path", "output_dir")
PROCESSES = ("nproc", "world_size", "ip", "port", "group_offset")
OWN = (*NAMES, *PROCESSES, "config_files", "baseline", "resume", "debug", "help")
PATHS = ("factors", "adapter", "warm_start")


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """``--key value`` and ``--key=value`` to a mapping; a key without a value is ``"true"``.

    Raises:
        UsageError: for anything else, or a key that is given twice.
    """
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise UsageError(f"'{word}' belongs to no key; write --key value, and quote values with spaces")
        key, equals, value = word[2:].partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        elif not equals and (key in NAMES or key == "config_files"):
            raise UsageError(f"--{key} has no value; write --{key} VALUE, or --{key}=VALUE where it begins with --")
        elif not equals:
            value = "true"
        if key in values:
            raise UsageError(f"--{key} is given twice, as '{values[key]}' and '{value}'; give it once")
        values[key] = value
    return values


def check_keys(keys: Iterable[str], model: str, names: Sequence[str]) -> None:
    """Refuse keys of the command line that nothing reads and that look like a slip of the pen.

    Raises:
        RecplugError: naming the nearest valid key.
    """
    from recplug.adapters.recbole.config.host_config import known_keys
    from recplug.plugins.errors import RecplugError, did_you_mean
    from recplug.plugins.registry import get

    known = {*known_keys(model), *OWN}
    for key in keys:
        plugin, dot, _ = key.partition(".")
        if dot and plugin != "features" and plugin not in names:
            get(plugin)
            raise RecplugError(f"--{key}: the plugin '{plugin}' is not in use; add it with --plugin {plugin}")
        if not dot and key not in known:
            if hint := did_you_mean(key, known):
                raise RecplugError(f"no key '{key}'{hint}")
            say(f"note: neither recplug nor RecBole's {model} documents the key '{key}'; it is passed on")


def note_keys(file: str, keys: Iterable[str], model: str) -> None:
    """Say which keys of a configuration file nothing documents; such files are often shared by several models."""
    from recplug.adapters.recbole.config.host_config import known_keys
    from recplug.plugins.errors import did_you_mean
    from recplug.plugins.registry import available

    known = {*known_keys(model), *OWN, *available()}
    for key in keys:
        if key.partition(".")[0] not in known:
            hint = did_you_mean(key, known)
            say(f"note: {file}: neither recplug nor RecBole's {model} documents the key '{key}'{hint}")


@command
def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        say(USAGE)
        return
    values = parse(arguments)
    from recplug.adapters.recbole.config.host_config import literal, model_class, read_yaml
    from recplug.adapters.recbole.processes import is_first
    from recplug.adapters.recbole.train.launch import launch
    from recplug.adapters.recbole.train.run import DEFAULT_DATASET, RunResult, run
    from recplug.plugins.errors import RecplugError
    from recplug.plugins.registry import parse_names

    config = _settings(values)
    files = {file: read_yaml(file) for file in values.get("config_files", "").split()}
    own: dict[str, Any] = {"dataset": DEFAULT_DATASET}
    for source in (*files.values(), values):
        own |= {key: source[key] for key in (*NAMES, "baseline") if source.get(key) is not None}
    if "resume" in values:
        if several := sorted(set(PROCESSES) & set(values)):
            raise UsageError(f"--resume goes on in one process; leave --{several[0]} out")
        merged = {key: value for settings in files.values() for key, value in settings.items()}
        _tell(resume(values, {**merged, **{key: values[key] for key in NAMES if key in values}, **config}))
        return
    if "model" not in own:
        raise RecplugError("no model is named; add --model SASRec")
    baseline = literal(str(own.get("baseline", "false")))
    if not isinstance(baseline, bool):
        raise RecplugError(f"baseline='{baseline}' is not true or false")
    names = parse_names(own.get("plugin"))
    model = model_class(str(own["model"])).__name__
    check_keys(config, model, names)
    for file, settings in files.items():
        note_keys(file, settings, model)
    asked_for: dict[str, Any] = {
        "model": model,
        "dataset": str(own["dataset"]),
        "plugins": names,
        "config_dict": config,
        "config_files": list(files),
        "data_path": own.get("data_path"),
        "output_dir": own.get("output_dir"),
        "baseline": baseline,
    }
    asked: dict[str, Any] = {key: literal(values[key]) for key in PROCESSES if key in values}
    if asked.get("nproc", 1) == 1 and asked.get("world_size", -1) in (-1, 1):
        result: RunResult | None = run(**asked_for)
    else:
        result = launch(asked_for, **asked, first=show_log)
    if is_first():
        _tell(result)


def _settings(values: Mapping[str, str]) -> dict[str, Any]:
    """What the command line says beside the command's own keys, as values; files by their whole paths."""
    from recplug.adapters.recbole.config.host_config import literal

    config: dict[str, Any] = {key: literal(value) for key, value in values.items() if key not in OWN}
    paths = {key.partition(".")[2]: config.pop(key) for key in list(config) if key.startswith("features.")}
    if paths:
        config["features"] = {name: _whole(path) for name, path in paths.items()}
    return config | {key: _whole(config[key]) for key in PATHS if config.get(key) is not None}


def _whole(path: Any) -> str:
    return str(Path(str(path)).expanduser().absolute())


def _tell(result: Any) -> None:
    """The table, and where the run lies; nothing where there was nothing to do, or another process has done it."""
    from recplug.adapters.recbole.train.result_table import result_table

    if result is None:
        return
    say(result_table(result))
    pictures = result.result.get("diagnostics") or []
    say(f"run directory: {result.directory}" + (f" (pictures in {result.directory}/diagnostics)" if pictures else ""))
