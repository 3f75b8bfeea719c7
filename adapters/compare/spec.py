"""What a comparison asks for, and the folder that remembers it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from recplug.adapters.compare.controls import CONTROLS
from recplug.adapters.data import locate
from recplug.adapters.files import replacing
from recplug.adapters.ownership import claim
from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.presets import settings_of
from recplug.plugins.registry import available, get, parse_names

MOST_SEEDS = 1000
GRID_FILE, SETTINGS_FILE = "grid.yaml", "settings.yaml"
GROWING = ("models", "plugins", "datasets", "controls")  # to which a comparison that has begun may add
# What the grid itself decides for each cell.
OURS = ("model", "dataset", "plugin", "seed", "output_dir", "data_path", "config_files", "baseline", "resume",
        "shuffle_features", "factor_control")  # fmt: skip
VARYING = ("plugin", "shuffle_features", "factor_control")  # of these, what a named variant may change


@dataclass(frozen=True)
class Asked:
    """The whole grid.

    Attributes:
        models: names of backbones.
        plugins: sets of plugins, each in its order; the empty one, the bare backbone, comes first.
        datasets: names.
        seeds: how many; they are 1, 2, ...
        controls: what every set of plugins is compared with, beside the bare backbone.
        grid: values to choose from by validation, as they are written on a command line, by key.
        settings: of all cells, by key; plugin settings are dotted.
        data_path: as for ``run_recbole``.
        ablations: whether each set of plugins is compared with the ablations that its plugins declare.
        variants: what each set of plugins is compared with besides, by name: keys and values that differ from it;
            the key ``plugin`` names other plugins.
    """

    models: tuple[str, ...]
    plugins: tuple[tuple[str, ...], ...]
    datasets: tuple[str, ...]
    seeds: int
    controls: tuple[str, ...] = CONTROLS
    grid: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data_path: str | None = None
    ablations: bool = False
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def named(self, plugins: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The named variants of a set of plugins: their declared ablations, then this comparison's own."""
        if not plugins:
            return {}
        found: dict[str, dict[str, Any]] = {}
        for plugin in plugins if self.ablations else ():
            for name, values in get(plugin).ablations.items():
                label = f"{plugin}: {name}" if len(plugins) > 1 else name
                found[label] = {f"{plugin}.{key}": value for key, value in values.items()}
        return {**found, **{name: dict(values) for name, values in self.variants.items()}}


def ask(
    models: str | Iterable[str],
    plugins: str | Iterable[str],
    datasets: str | Iterable[str],
    *,
    seeds: int = 5,
    controls: str | Iterable[str] = CONTROLS,
    grid: Mapping[str, Sequence[Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    data_path: str | Path | None = None,
    ablations: bool = False,
    variants: Mapping[str, Mapping[str, Any]] | None = None,
) -> Asked:
    """What people write to :class:`Asked`; the bare backbone is always among the plugins.

    Raises:
        RecplugError: for what cannot be a grid. Names of models, plugins and data sets are :func:`check_names`'s.
    """
    chosen = [] if controls == "none" else _names(controls, "controls")
    for name in chosen:
        if name not in CONTROLS:
            raise RecplugError(f"no control '{name}'{did_you_mean(name, CONTROLS)}; there are: {', '.join(CONTROLS)}")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or seeds < 1:
        raise RecplugError(f"seeds={seeds} is no positive whole number; 5 means the seeds 1 to 5")
    if seeds > MOST_SEEDS:
        raise RecplugError(f"seeds={seeds} are more than a comparison can mean; {MOST_SEEDS} is the most")
    sets = [_set(each) for each in _names(plugins, "plugins")]
    values = {key: tuple(written(value) for value in several) for key, several in (grid or {}).items()}
    for key, several in values.items():
        if not several or len(set(several)) < len(several):
            raise RecplugError(f"grid {key} has {'a value twice' if several else 'no value'}; write {key}=0.1,1.0")
    common = flat(settings or {})
    for key in (*common, *values):
        if key in OURS:
            raise RecplugError(f"'{key}' is for the grid itself to decide, cell by cell; leave it out")
    named = {str(name): flat(changes or {}) for name, changes in (variants or {}).items()}
    for name, changes in named.items():
        if wrong := sorted(set(changes) & (set(OURS) - set(VARYING))):
            raise RecplugError(f"variant '{name}': '{wrong[0]}' is for the comparison itself to decide; leave it out")
        if not changes or name in CONTROLS:
            what = "has the name of a control" if name in CONTROLS else "changes nothing"
            raise RecplugError(f"variant '{name}' {what}; correct the variants")
    if both := common.keys() & values.keys():
        raise RecplugError(f"{', '.join(sorted(both))} is a setting and in the grid too; keep one of the two")
    return Asked(
        models=tuple(_names(models, "models")),
        plugins=((), *dict.fromkeys(each for each in sets if each)),
        datasets=tuple(_names(datasets, "datasets")),
        seeds=seeds,
        controls=tuple(name for name in CONTROLS if name in chosen),
        grid=dict(sorted(values.items())),
        settings=common,
        data_path=None if data_path is None else str(Path(data_path).expanduser().absolute()),
        ablations=bool(ablations),
        variants=named,
    )


def check_names(asked: Asked) -> Asked:
    """The same, with models called as RecBole calls them.

    Raises:
        RecplugError: for models, plugins, data sets, plugin settings and keys that there are not.
    """
    from recplug.adapters.recbole.config.host_config import known_keys, model_class

    models = tuple(dict.fromkeys(model_class(name).__name__ for name in asked.models))
    used = {name for names in asked.plugins for name in parse_names(names)}
    for dataset in asked.datasets:
        locate(dataset, asked.data_path)
    known = {name: known_keys(name) for name in models}
    for key, several in asked.grid.items():
        plugin = key.partition(".")[0]
        if "." in key and plugin != "features" and plugin not in used:
            get(plugin)
            raise RecplugError(f"grid {key}: the plugin '{plugin}' is in no set of --plugins; add it, or leave it")
        for value in several:
            _check_key(key, value, known, strict=True)
    for key, value in asked.settings.items():
        _check_key(key, value, known, strict=False)
    for changes in asked.variants.values():
        parse_names(changes.get("plugin"))
        for key, value in changes.items():
            if key not in VARYING:
                _check_key(key, value, known, strict=True)
    if asked.ablations and not any(get(name).ablations for name in used):
        raise RecplugError(f"{', '.join(sorted(used)) or 'the bare backbone'}: no ablations; leave --ablations out")
    return replace(asked, models=models)


def _check_key(key: str, value: Any, known: Mapping[str, set[str]], *, strict: bool) -> None:
    """Refuse a key, or a plugin's value, that there is not; ``strict`` refuses keys of no near name too."""
    from recplug.adapters.recbole.config.host_config import literal

    plugin, dot, setting = key.partition(".")
    if dot and plugin != "features":
        settings_of(get(plugin), {setting: literal(value) if isinstance(value, str) else value})
    elif not dot and not any(key in keys for keys in known.values()):
        hint = did_you_mean(key, set().union(*known.values()))
        if hint or strict:
            raise RecplugError(f"no key '{key}' of recplug or of {', '.join(known)}{hint}")


# -- the folder


def remember(output: Path, asked: Asked) -> None:
    """Write ``grid.yaml`` and ``settings.yaml``."""
    claim(output, "comparison", again=True)
    written = {key: value for key, value in asdict(asked).items() if key != "settings"}
    written["plugins"] = ["+".join(names) or "none" for names in asked.plugins]
    written = {key: list(value) if isinstance(value, tuple) else value for key, value in written.items()}
    written["grid"] = {key: list(values) for key, values in asked.grid.items()}
    written["variants"] = {name: dict(changes) for name, changes in asked.variants.items()}
    _save(output / SETTINGS_FILE, "# What all cells have in common.\n", dict(asked.settings))
    _save(output / GRID_FILE, "# What this comparison asks for; `recplug compare --output DIR` goes on.\n", written)


def remembered(output: Path) -> Asked | None:
    """What the folder's comparison asked for; None where it holds none.

    Raises:
        RecplugError: where the two files were damaged.
    """
    if not (output / GRID_FILE).is_file():
        return None
    try:
        grid = yaml.safe_load((output / GRID_FILE).read_text(encoding="utf-8"))
        settings = yaml.safe_load((output / SETTINGS_FILE).read_text(encoding="utf-8")) or {}
        return ask(**grid, settings=settings)
    except (OSError, yaml.YAMLError, TypeError, RecplugError) as error:
        why = " ".join(str(error).split())
        raise RecplugError(
            f"{output / GRID_FILE} is damaged ({why}); put it back, or choose another --output"
        ) from error


def grown(before: Asked, now: Asked, output: Path) -> Asked:
    """What to go on with: more than ``before``, never less or other.

    Raises:
        RecplugError: where something is left out, or all cells' settings differ.
    """
    if dict(before.settings) != dict(now.settings):
        keys = [key for key in {**before.settings, **now.settings} if before.settings.get(key) != now.settings.get(key)]
        raise RecplugError(
            f"{output} holds a comparison with other settings ({', '.join(sorted(keys))}); give those again, or choose "
            "another --output"
        )
    missing = []
    for name in GROWING:
        found = set(getattr(now, name))
        missing += [f"--{name} {_word(each)}" for each in getattr(before, name) if each not in found]
    missing += [f"--seeds {before.seeds}"] * (now.seeds < before.seeds)
    missing += ["--ablations"] * (before.ablations and not now.ablations)
    missing += [f"variant '{name}'" for name, each in before.variants.items() if now.variants.get(name) != each]
    for key, values in before.grid.items():
        missing += [f"--grid {key}={value}" for value in values if value not in now.grid.get(key, ())]
    if missing:
        raise RecplugError(f"{output} holds {', '.join(missing)} too; name them as well, or choose another --output")
    if new := now.grid.keys() - before.grid.keys():
        raise RecplugError(
            f"{output} was begun without --grid {', '.join(sorted(new))}, so no cell has a value of it; choose another "
            "--output"
        )
    return now


def _save(path: Path, comment: str, values: Mapping[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(
            comment + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )


# -- reading what people write


def _names(given: str | Iterable[str], what: str) -> list[str]:
    several = (
        given.split(",") if isinstance(given, str) else ["+".join(n) if isinstance(n, tuple) else n for n in given]
    )
    found = list(dict.fromkeys(name.strip() for name in several if name.strip()))
    if not found and what != "controls":
        raise RecplugError(f"no {what} are named; add --{what} A,B")
    return found


def _set(word: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in word.split("+"))
    if not all(names):
        raise RecplugError(f"'{word}' is no set of plugins; write prism, or prism+mars")
    return () if word in ("none", "bare") else names


def _word(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else "+".join(value) or "none"


def written(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(written, value))
    return value.strip() if isinstance(value, str) else str(value)


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings nested under a plugin, or under ``features``, as dotted keys."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and (key in available() or key == "features"):
            found |= {f"{key}.{name}": each for name, each in value.items()}
        else:
            found[key] = value
    return found


def parse_grid(words: Iterable[str]) -> dict[str, list[str]]:
    """``prism.scale=0.3,1.0`` to key and values; commas in brackets and quotes do not separate.

    Raises:
        RecplugError: for a word of another form, or a key that is given twice.
    """
    found: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        if not equals or not key.strip():
            raise RecplugError(f"--grid {word} is no KEY=VALUE,VALUE; write --grid prism.scale=0.3,1.0")
        if key.strip() in found:
            raise RecplugError(f"--grid {key.strip()} is given twice; give all its values at once")
        parts = re.findall(r"""(?:[^,\[\]()'"]|\[[^\]]*\]|\([^)]*\)|'[^']*'|"[^"]*")+""", values)
        found[key.strip()] = [part.strip() for part in parts]
    return found
