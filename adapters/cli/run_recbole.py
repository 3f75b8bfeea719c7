"""The command ``run_recbole``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recplug.adapters.cli.common import command, say
from recplug.plugins.errors import RecplugError, did_you_mean

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
  --features.NAME FILE    a feature table that is not called DATASET.NAME.safetensors
  --shuffle_features true control: content vectors dealt out to other items
  --trim_padding false    encode padding too (with a plugin it is left out where that is exact)
  --mask_history true     rank without the items that a user has had
  --ANY_RECBOLE_KEY VALUE any key of RecBole's own, such as --epochs 20
  --debug                 show the traceback of an error

Both "--key value" and "--key=value" work.
"""
OWN = ("model", "plugin", "dataset", "data_path", "config_files", "output_dir", "baseline", "debug", "help")
LATER = ("resume", "nproc", "ip", "port", "world_size", "group_offset")


def parse(arguments: Sequence[str]) -> dict[str, str]:
    """``--key value`` and ``--key=value`` to a mapping; a key without a value is ``"true"``.

    Raises:
        RecplugError: for anything else, or a key that is given twice with different values.
    """
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise RecplugError(f"'{word}' belongs to no key; write --key value, and quote values with spaces")
        key, equals, value = word[2:].partition("=")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if key in values and values[key] != value:
            raise RecplugError(f"--{key} is given twice, as '{values[key]}' and '{value}'; give it once")
        values[key] = value
    return values


def check_keys(keys: Sequence[str], model: str, names: Sequence[str]) -> None:
    """Refuse keys that nothing reads and that look like a slip of the pen.

    Raises:
        RecplugError: naming the nearest valid key.
    """
    from recplug.adapters.recbole.config import known_keys

    known = {*known_keys(model), *OWN, *LATER}
    for key in keys:
        plugin, dot, _ = key.partition(".")
        if dot and plugin == "features":
            continue
        if dot and plugin not in names:
            from recplug.plugins.registry import get

            get(plugin)
            raise RecplugError(f"--{key}: the plugin '{plugin}' is not in use; add it with --plugin {plugin}")
        if not dot and key not in known:
            hint = did_you_mean(key, known)
            if hint:
                raise RecplugError(f"no key '{key}'{hint}")
            say(f"note: neither recplug nor RecBole's {model} documents the key '{key}'; it is passed on")


@command
def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    values = parse(arguments)
    if "help" in values or not arguments:
        say(USAGE)
        return
    for key in LATER:
        if key in values and not (key in ("nproc", "world_size") and values[key] in ("1", "-1")):
            raise RecplugError(f"--{key} is not supported by this version; leave it out")
    if "model" not in values:
        raise RecplugError("no model is named; add --model SASRec")

    from recplug.adapters.recbole.config import literal, model_class
    from recplug.adapters.recbole.runner import DEFAULT_DATASET, run
    from recplug.adapters.recbole.table import result_table
    from recplug.plugins.registry import parse_names

    names = parse_names(values.get("plugin"))
    model = model_class(values["model"]).__name__
    config: dict[str, Any] = {key: literal(value) for key, value in values.items() if key not in (*OWN, *LATER)}
    check_keys(list(config), model, names)
    paths = {key.partition(".")[2]: str(config.pop(key)) for key in list(config) if key.startswith("features.")}
    if paths:
        config["features"] = paths
    result = run(
        model,
        values.get("dataset", DEFAULT_DATASET),
        names,
        config,
        config_files=values.get("config_files", "").split(),
        data_path=values.get("data_path"),
        output_dir=values.get("output_dir"),
        baseline=literal(values.get("baseline", "false")) is True,
    )
    say(result_table(result))
    pictures = result.result.get("diagnostics") or []
    say(f"run directory: {result.directory}" + (f" (pictures in {result.directory}/diagnostics)" if pictures else ""))
