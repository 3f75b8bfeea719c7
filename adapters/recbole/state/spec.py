"""What was asked of a run, and what of it is written down: every value with its origin, content, sizes, versions."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

from recplug.adapters.chain_builder import resolve
from recplug.adapters.factors import FactorTable, find_factors
from recplug.adapters.features import FeatureTable, find_tables
from recplug.adapters.recbole import processes
from recplug.adapters.recbole.config.host_config import make_config, read_yaml
from recplug.adapters.recbole.config.host_values import check_valid_metric
from recplug.adapters.recbole.config.keys import KEYS
from recplug.adapters.recbole.data.fingerprint import fingerprint
from recplug.adapters.recbole.domains.source_config import shared_values
from recplug.adapters.recbole.domains.source_domain import Domain, is_host_row, source_hosts, wanted_source
from recplug.adapters.recbole.state.previous_run import Before
from recplug.adapters.recbole.state.run_directory import RunDirectory
from recplug.plugins.errors import RecplugError
from recplug.plugins.presets import expand
from recplug.plugins.registry import GROUP, get

# What RecBole works out for itself, and does not take as a value.
DERIVED = ("MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type", "valid_neg_sample_args", "test_neg_sample_args",
           "device", "single_spec", "checkpoint_dir", "trust_checkpoint", *processes.KEYS)  # fmt: skip
PACKAGES = ("recplug", "torch", "recbole", "numpy", "pandas", "scipy")


class Asked:
    """What was asked of a run.

    Args:
        host: the model's class.
        dataset: its data set.
        names: plugins, in order.
        given: their settings that were given.
        values: RecBole's keys and the adapter's that were given.
        folder: where the data set lies; None for the one that RecBole brings itself.
        files: what configuration files say, the data set's own first.
        directory: where it is written down.
        before: what the run left, if it is taken up again.
    """

    def __init__(
        self,
        host: type,
        dataset: str,
        names: list[str],
        given: dict[str, dict[str, Any]],
        values: dict[str, Any],
        folder: Path | None,
        files: dict[Path, dict[str, Any]],
        directory: RunDirectory,
        before: Before | None = None,
    ) -> None:
        self.before = before
        self.host, self.dataset, self.names, self.given = host, dataset, names, given
        self.values, self.folder, self.files, self.directory = values, folder, files, directory

    def _configure(self) -> Any:
        for file, settings in self.files.items():
            if settings.get("trust_checkpoint"):
                raise RecplugError(f"{file}: trust_checkpoint is no word of a file's; say it on the command line")
        overrides = {**self.preset_values(), **self.values, "checkpoint_dir": str(self.directory.path)}
        overrides.setdefault("show_progress", sys.stderr.isatty())
        overrides |= processes.values_here()
        if self.folder is not None:
            overrides["data_path"] = str(self.folder.parent)
        config = make_config(self.host, self.dataset, list(self.files), overrides)
        check_valid_metric(config["metrics"], config["topk"], config["valid_metric"])
        if self.folder is not None:
            config["data_path"] = str(self.folder)  # the folder need not be called like the data set
        for key, default in KEYS.items():
            if config[key] is None:
                config[key] = default
        for key in ("adapter", "warm_start"):
            if config[key] is not None:
                config[key] = str(Path(str(config[key])).expanduser().absolute())
        config["features"] = {**_merged(self.files, "features"), **(self.values.get("features") or {})}
        for name in self.names:
            config[name] = self.plugin_values(name)
        return config

    def plugin_values(self, name: str) -> dict[str, Any]:
        """What files, and then the command line, say of one plugin."""
        return {**_merged(self.files, name), **self.given.get(name, {})}

    def preset_values(self) -> dict[str, Any]:
        """The backbone's and the trainer's values that the plugins' presets carry, where the user gives none.

        Raises:
            RecplugError: where two presets want different values.
        """
        found: dict[str, Any] = {}
        for name in self.names:
            _, host = expand(get(name), self.plugin_values(name))
            for key, value in host.items():
                if found.get(key, value) != value:
                    raise RecplugError(f"the presets in use want {key} {found[key]} and {value}; give --{key} yourself")
                if not self._is_given(key):
                    found[key] = value
        return found

    def _write_config(self, config: Any, ours: tuple[str, ...] = ()) -> None:
        """Every value and its origin, such that the file repeats the run: without what RecBole derives.

        A run that is taken up again reads the file, and leaves it as it is.
        """
        if self.before is not None:
            return
        # Dotted keys of a file, like prism.scale, have found their way into what they belong to.
        values = {k: v for k, v in config.final_config_dict.items() if k not in DERIVED and "." not in k}
        negatives = values["train_neg_sample_args"]
        if not negatives or negatives.get("distribution") == "none":
            values["train_neg_sample_args"] = None  # as it was given: RecBole refuses its own resolved form
        origins = self._origins(values) | dict.fromkeys(ours, "recplug")
        values.pop("plugin", None)  # a file may name plugins that the bare backbone beside them goes without
        if self.names:
            values["plugin"], origins["plugin"] = self.names, "the run"
        resolved = resolve(self.names, {name: config[name] for name in self.names})
        values.pop("given", None)
        if wanted_source(resolved) is not None:
            values["given"], origins["given"] = sorted(shared_values(config)), "what the second domain shares"
        for name, settings in resolved.items():
            values[name] = settings.model_dump()
            origins |= {f"{name}.{key}": "default" for key in values[name]}
            if (preset := self.plugin_values(name).get("preset")) is not None:
                changed, _ = expand(get(name), {"preset": preset})
                origins |= {f"{name}.{key}": f"preset {preset}" for key in changed}
            for file, found in self.files.items():
                origins |= {f"{name}.{key}": file.name for key in _merged({file: found}, name)}
            origins |= {f"{name}.{key}": "given" for key in self.given.get(name, {})}
        self.directory.write_config(values, origins)

    def _origins(self, resolved: Mapping[str, Any]) -> dict[str, str]:
        origins = dict.fromkeys(KEYS, "recplug")
        for file, settings in self.files.items():
            origins |= {key: file.name for key in settings if key in resolved}
        origins |= dict.fromkeys(self.preset_values(), "preset")
        origins |= dict.fromkeys(self.values, "given")
        origins |= dict.fromkeys(("data_path", "dataset", "model"), "the run")
        return origins

    def _is_given(self, key: str) -> bool:
        """Whether the user gives a value for ``key``; the data set's own file does not count, it serves any model."""
        own = self.folder and self.folder / f"{self.dataset}.yaml"
        return key in self.values or any(key in settings for file, settings in self.files.items() if file != own)

    def _about(self, result: Mapping[str, Any], model: Any) -> dict[str, Any]:
        """What a state of this training belongs to."""
        source = model.recplug_source
        return {
            "config": read_yaml(self.directory.path / "config.yaml"),
            "plugins": plugin_versions(self.names),
            "source": None if source is None else content_of(source),
            **{key: result[key] for key in ("versions", "data_fingerprint", "features", "factors", "begun_from")},
        }

    def _features(self, config: Any) -> dict[str, Any]:
        return features_of(config, self.dataset) if self.names else {}

    def _factors(self, config: Any) -> dict[str, Any]:
        path = find_factors(config["data_path"], self.dataset, config["factors"]) if self.names else None
        return {} if path is None else {"file": path.name, "sha256": FactorTable.load(path).sha256}


def _merged(files: Mapping[Path, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """What the files say under one key that holds a mapping, nested or dotted; later files win, name by name."""
    merged: dict[str, Any] = {}
    for file, settings in files.items():
        nested = settings.get(key) or {}
        if not isinstance(nested, Mapping):
            raise RecplugError(f"{file}: '{key}' takes names and values, nested under it; found {nested!r}")
        merged |= {str(name): value for name, value in nested.items()}
        merged |= {name[len(key) + 1 :]: value for name, value in settings.items() if name.startswith(f"{key}.")}
    return merged


def versions() -> dict[str, str]:
    """Of the packages on which numbers depend."""
    return {name: _version(name) for name in PACKAGES}


def plugin_versions(names: list[str]) -> dict[str, str]:
    """The package that brings each plugin, with its version; ``"unknown"`` for one that is in no package."""
    found = {point.name: point.dist for point in entry_points(group=GROUP)}
    about = {name: found.get(name) for name in names}
    return {name: "unknown" if dist is None else f"{dist.name} {dist.version}" for name, dist in about.items()}


def content_of(source: Domain) -> dict[str, Any]:
    """What a second domain was read from."""
    features = features_of(source.config, source.name) if source.model.recplug_names else {}
    return {"data_fingerprint": fingerprint(*source.loaders.values()), "features": features}


def chosen(plugin: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not the default: a default can be of a form that is not taken as a value."""
    fields = get(plugin).settings.model_fields
    return {key: value for key, value in settings.items() if key not in fields or value != fields[key].default}


def features_of(config: Any, dataset: str) -> dict[str, Any]:
    """The feature tables of a data set: file and SHA-256, by modality."""
    tables = find_tables(config["data_path"], dataset, config["features"] or {})
    return {name: {"file": path.name, "sha256": FeatureTable.load(path).sha256} for name, path in tables.items()}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def parameters(model: Any) -> dict[str, Any]:
    """Trained numbers: of the backbone, of each plugin, and, where there is one, of a source's backbone."""
    plugins, source = {}, 0
    for name, augmentation in model.recplug.augmentations().items():
        hosts = source_hosts(augmentation)
        sizes = {key: p.numel() for key, p in augmentation.named_parameters() if p.requires_grad}
        of_host = sum(size for key, size in sizes.items() if is_host_row(key, hosts))
        plugins[name], source = sum(sizes.values()) - of_host, source + of_host
    total = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = {"backbone": total - sum(plugins.values()) - source, "plugins": plugins}
    return {**found, "source": source} if source else found
