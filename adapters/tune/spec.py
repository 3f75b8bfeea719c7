"""What a search asks for, and the folder that remembers it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from recplug.adapters.files import replacing
from recplug.adapters.ownership import claim
from recplug.adapters.tune.space import OURS, Dimension, space, written
from recplug.plugins.errors import RecplugError, did_you_mean

TUNE_FILE, SETTINGS_FILE = "tune.yaml", "settings.yaml"
PRUNERS, SAMPLERS = ("median", "hyperband", "none"), ("tpe", "random")


@dataclass(frozen=True)
class Asked:
    """A search.

    Attributes:
        model, dataset: RecBole's name, and the data set's.
        plugins: in their order; empty for the bare backbone.
        dimensions: what is searched.
        fixed: what all trials have in common, by key; plugin settings are dotted.
        data_path: as for ``run_recbole``.
        storage: of the study: a file, or a URL; empty for the journal in the search's folder.
        sampler, pruner: one of :data:`SAMPLERS`, of :data:`PRUNERS`.
        seed: of the sampler.
        metric: what validation measures.
        larger: whether more of it is better.
        epochs: that a trial has at most.
        folder: a name that only this search's folder has.
    """

    model: str
    dataset: str
    plugins: tuple[str, ...]
    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, Any]
    data_path: str | None
    storage: str
    sampler: str
    pruner: str
    seed: int
    metric: str
    larger: bool
    epochs: int
    folder: str = ""

    def same(self) -> dict[str, Any]:
        """What trials have to agree on to belong to one study."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "plugins": list(self.plugins),
            "data_path": self.data_path,
            "fixed": {key: str(value) for key, value in sorted(self.fixed.items())},
            "space": dict(sorted(written(self.dimensions).items())),
            "metric": self.metric,
            "epochs": self.epochs,
        }


def ask(
    model: str,
    plugins: str | Sequence[str] = (),
    dataset: str = "amazon-scientific",
    *,
    words: Iterable[str] = (),
    fixed: Mapping[str, Any] | None = None,
    data_path: str | Path | None = None,
    storage: str | Path | None = None,
    sampler: str = "tpe",
    pruner: str = "median",
    seed: int = 0,
) -> Asked:
    """What people write to :class:`Asked`, checked against the model, the plugins and the data set.

    Raises:
        RecplugError: for what there is not, or does not fit together; nothing is trained or written.
    """
    from recplug.adapters.compare.spec import flat
    from recplug.adapters.data import locate
    from recplug.adapters.recbole import augment
    from recplug.adapters.recbole.config.host_config import known_keys, make_config, model_class
    from recplug.adapters.recbole.config.host_values import check_valid_metric
    from recplug.plugins.registry import get, parse_names

    for name, value, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value not in known:
            raise RecplugError(f"no {name} '{value}'{did_you_mean(value, known)}; there are: {', '.join(known)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise RecplugError(f"seed={seed} is no whole number from 0 on")
    names = [] if plugins in ("none", "bare") else parse_names(plugins)
    host = model_class(model)
    common = flat(fixed or {})
    given: dict[str, dict[str, Any]] = {}
    for key, value in common.items():
        plugin, dot, setting = key.partition(".")
        if key in OURS:
            raise RecplugError(f"'{key}' is for the search itself to decide; leave it out")
        if dot and plugin != "features":
            get(plugin)
            if plugin not in names:
                raise RecplugError(f"'{key}': the plugin '{plugin}' is not in use; add it with --plugin {plugin}")
            given.setdefault(plugin, {})[setting] = value
        elif (
            not dot and key not in known_keys(host.__name__) and (hint := did_you_mean(key, known_keys(host.__name__)))
        ):
            raise RecplugError(f"no key '{key}' of recplug or of {host.__name__}{hint}")
    augment(host, names, given)
    folder = locate(dataset, data_path)
    own = [] if folder is None else [file for file in [folder / f"{dataset}.yaml"] if file.is_file()]
    plain = {key: value for key, value in common.items() if "." not in key}
    if folder is not None:
        plain["data_path"] = str(folder.parent)

    def try_out(key: str, value: Any) -> None:
        make_config(host, dataset, own, {**plain, key: value})

    config = make_config(host, dataset, own, plain)
    check_valid_metric(config["metrics"], config["topk"], config["valid_metric"])
    return Asked(
        model=host.__name__,
        dataset=dataset,
        plugins=tuple(names),
        dimensions=tuple(
            space(host.__name__, names, words, fixed=common, host=config.final_config_dict, check=try_out)
        ),
        fixed=common,
        data_path=None if data_path is None else str(Path(data_path).expanduser().absolute()),
        storage="" if storage is None else str(storage),
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        metric=str(config["valid_metric"]).lower(),
        larger=bool(config["valid_metric_bigger"]),
        epochs=int(config["epochs"]),
    )


# -- the folder


def remember(output: Path, asked: Asked) -> Asked:
    """Write ``tune.yaml`` and ``settings.yaml``, and give the search a name that only this folder has."""
    claim(output, "search", again=True)
    named = replace(asked, folder=asked.folder or uuid.uuid4().hex)
    about = {
        "model": named.model, "plugins": list(named.plugins), "dataset": named.dataset, "data_path": named.data_path,
        "space": [f"{key}={values}" for key, values in written(named.dimensions).items()], "storage": named.storage,
        "sampler": named.sampler, "pruner": named.pruner, "seed": named.seed, "folder": named.folder,
    }  # fmt: skip
    _save(output / SETTINGS_FILE, "# What all trials have in common.\n", dict(named.fixed))
    _save(output / TUNE_FILE, "# What this search asks for; `recplug tune --output DIR` goes on.\n", about)
    return named


def remembered(output: Path) -> Asked | None:
    """What the folder's search asked for; None where it holds none.

    Raises:
        RecplugError: where a file was damaged.
    """
    from recplug.adapters.recbole.config.host_config import read_yaml

    if not (output / TUNE_FILE).is_file():
        return None
    try:
        about = read_yaml(output / TUNE_FILE)
        folder, words = about.pop("folder"), about.pop("space")
        return replace(ask(**about, words=words, fixed=read_yaml(output / SETTINGS_FILE)), folder=folder)
    except (KeyError, TypeError, RecplugError) as error:
        why = " ".join(str(error).split())
        raise RecplugError(
            f"{output / TUNE_FILE} cannot be read again ({why}); put it back, or choose another --output"
        ) from error


def check_same(before: Mapping[str, Any], now: Asked, where: str) -> None:
    """Refuse to mix trials of two searches.

    Args:
        before: :meth:`Asked.same` of the one that was begun.
        now: the one to go on with.
        where: that holds the first.

    Raises:
        RecplugError: naming what differs.
    """
    asked = now.same()
    differ = [key for key in asked if before.get(key) != asked[key]]
    if differ:
        key = differ[0]
        raise RecplugError(
            f"{where} holds a search with another {key} ({before.get(key)}, not {asked[key]}); give that again, or "
            "choose another --output"
        )


def _save(path: Path, comment: str, values: Mapping[str, Any]) -> None:
    with replacing(path) as partial:
        partial.write_text(
            comment + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8"
        )
