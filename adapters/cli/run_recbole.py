"""The command ``run_recbole``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recplug.adapters.cli.common import UsageError, command, say

USAGE = """\
run_recbole --model SASRec --plugin prism [options]

Train a RecBole model, with plugins grafted on, in RecBole's own trainer.

  --model NAME            a RecBole model (required)
  --plugin A,B            plugins, in the order in which they act; see: recplug plugins
  --dataset NAME          default amazon-scientific, which comes with the package; see: recplug data list
  --data_path DIR         folder that holds NAME/NAME.inter
  --config_files "A B"    YAML files; later ones win; the command line wins over all
  --output_dir DIR        a new folder; default runs/<model>-<plugins>-<dataset>-<time>
  --baseline true         train the bare model first, with the same budget and seed, and end with a table
  --PLUGIN.KEY VALUE      a plugin's setting; see: recplug plugins show NAME
  --micrec.source NAME    a second domain that trains beside the first, with common user tokens
  --features.NAME FILE    a feature table that is not called DATASET.NAME.safetensors
  --shuffle_features true control: content vectors dealt out to other items
  --factors FILE          a factor schema that is not called DATASET.factors.json
  --factor_control KIND   controls: shuffled (other items' profiles), random (groups of equal sizes)
  --trim_padding false    encode padding too (with a plugin it is left out where that is exact)
  --score_block N         users scored at once by a plugin that changes scores; less memory, the same ranking
  --mask_history true     rank without the items that a user has had
  --ANY_RECBOLE_KEY VALUE any key of RecBole's own, such as --epochs 20
  --debug                 show the traceback of an error

Both "--key value" and "--key=value" work; a value that begins with -- needs the second. The command line wins over
--config_files, these over the data set's own YAML, that over RecBole's defaults; in YAML, a plugin's settings are
nested under its name.
"""
# Keys that the command itself reads, from the command line or a configuration file.
NAMES = ("model", "plugin", "dataset", "data_path", "output_dir")
OWN = (*NAMES, "config_files", "baseline", "debug", "help")
LATER = ("resume", "nproc", "ip", "port", "world_size", "group_offset")


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
    from recplug.adapters.recbole.config import known_keys
    from recplug.plugins.errors import RecplugError, did_you_mean
    from recplug.plugins.registry import get

    known = {*known_keys(model), *OWN, *LATER}
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
    from recplug.adapters.recbole.config import known_keys
    from recplug.plugins.errors import did_you_mean
    from recplug.plugins.registry import available

    known = {*known_keys(model), *OWN, *LATER, *available()}
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
    for key in LATER:
        if key in values and not (key in ("nproc", "world_size") and values[key] in ("1", "-1")):
            raise UsageError(f"--{key} is not supported by this version; leave it out")

    from recplug.adapters.recbole.config import literal, model_class, read_yaml
    from recplug.adapters.recbole.runner import DEFAULT_DATASET, run
    from recplug.adapters.recbole.table import result_table
    from recplug.plugins.errors import RecplugError
    from recplug.plugins.registry import parse_names

    config: dict[str, Any] = {key: literal(value) for key, value in values.items() if key not in (*OWN, *LATER)}
    files = {file: read_yaml(file) for file in values.get("config_files", "").split()}
    own: dict[str, Any] = {"dataset": DEFAULT_DATASET}
    for source in (*files.values(), values):
        own |= {key: source[key] for key in (*NAMES, "baseline") if source.get(key) is not None}
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
    paths = {key.partition(".")[2]: config.pop(key) for key in list(config) if key.startswith("features.")}
    if paths:
        config["features"] = {name: str(Path(str(path)).expanduser().absolute()) for name, path in paths.items()}
    if config.get("factors") is not None:
        config["factors"] = str(Path(str(config["factors"])).expanduser().absolute())
    result = run(
        model,
        str(own["dataset"]),
        names,
        config,
        config_files=list(files),
        data_path=own.get("data_path"),
        output_dir=own.get("output_dir"),
        baseline=baseline,
    )
    say(result_table(result))
    pictures = result.result.get("diagnostics") or []
    say(f"run directory: {result.directory}" + (f" (pictures in {result.directory}/diagnostics)" if pictures else ""))
