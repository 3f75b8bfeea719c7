"""A second domain beside the target: its data, its model, and random draws that leave the target's as they are."""

from __future__ import annotations

import copy
import glob
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recbole.evaluator import Collector
from recbole.trainer import Trainer
from recbole.utils import calculate_valid_score, get_trainer
from torch import Tensor, nn

from recplug.adapters.data import locate
from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.data.loaders import make_loaders
from recplug.adapters.recbole.data.sampling import use_fast_sampling
from recplug.adapters.recbole.domains.random_streams import RandomState
from recplug.adapters.recbole.domains.source_config import configure, shared_values
from recplug.adapters.recbole.domains.user_links import Pairing, pair
from recplug.plugins.chain import versions_of
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import get
from recplug.plugins.settings import PluginSettings
from recplug.plugins.step import Step

log = logging.getLogger("recplug")
# The settings by which a plugin names a second domain; its part in the source goes without them.
OWN = ("source", "source_path", "links")


@dataclass(frozen=True)
class Wanted:
    """The second domain that a plugin's settings name.

    Attributes:
        plugin: whose settings they are.
        name: the source's data set.
        path: where it lies, if not beside the target's.
        links: a file that says who is who, if the tokens do not.
    """

    plugin: str
    name: str
    path: str | None
    links: str | None


def wanted_source(settings: Mapping[str, PluginSettings]) -> Wanted | None:
    """The second domain that the settings ask for, or None.

    Raises:
        RecplugError: where a plugin takes none, or several plugins ask.
    """
    asking = {name: values for name, values in settings.items() if getattr(values, "source", None)}
    for name, values in asking.items():
        if get(name).requirements(values).second_domain == "no":
            raise RecplugError(f"{name} takes no second domain; leave --{name}.source out")
    if len(asking) > 1:
        raise RecplugError(f"{' and '.join(asking)} each name a source; one plugin can have a second domain in a run")
    for name, values in asking.items():
        path, links = getattr(values, "source_path", None), getattr(values, "links", None)
        return Wanted(name, str(getattr(values, "source", "")), path, links)
    return None


def open_source(target: Any, config: Any, dataset: Any, settings: Mapping[str, PluginSettings]) -> Domain | None:
    """The second domain that a model's plugins name, or None; arguments as of :func:`build_source`."""
    wanted = wanted_source(settings)
    return None if wanted is None else build_source(target, config, dataset, wanted, settings)


def build_source(
    target: Any, config: Any, dataset: Any, wanted: Wanted, settings: Mapping[str, PluginSettings]
) -> Domain:
    """Read the source's data, link its users with the target's, and build its model.

    The source has the target's configuration, but for what is said of one data set alone, and the same model class.
    Of the target's plugins those act in it that take a second domain, and do not need one themselves.

    Args:
        target: the augmented model that is being built.
        config: the target's configuration.
        dataset: the target's training split.
        wanted: the source.
        settings: the target's plugins.

    Raises:
        RecplugError: for a source that is the target, or that cannot be found, read, or linked; and for a host that
            cannot share its training.
    """
    _check_host(target, config)
    folder = _find(wanted, config)
    given = {
        name: {k: v for k, v in values.model_dump(exclude_unset=True).items() if k not in OWN}
        for name, values in settings.items()
        if get(name).requirements(values).second_domain != "no"
    }
    given = {
        name: values
        for name, values in given.items()
        if get(name).requirements(get(name).settings(**values)).second_domain != "required"
    }
    shared = shared_values(config)
    source_config = configure(config, target.recplug_base, wanted.name, folder, shared, given)
    state = RandomState(config["seed"], config["device"])
    with state.used():
        family, keep_batch = target.recplug_host.family, "eval_batch_size" in shared
        loaders = make_loaders(source_config, target.recplug_base, family, keep_batch=keep_batch)
    pairing = pair(loaders[0]._dataset, dataset, file=wanted.links, seed=config["seed"])
    pairing.report(wanted.name, config["dataset"])
    state.restart()  # as RecBole seeds a run: before the data, and again before the model
    with state.used():
        model = type(target).recplug_beside(list(given), given)(source_config, loaders[0]._dataset)
    return Domain(wanted.name, model.to(config["device"]), source_config, loaders, pairing, state)


class Domain:
    """The second domain of a run (:class:`recplug.plugins.contract.Source`).

    It stands beside the plugin that trains it, and is no module: the plugin keeps :attr:`model` as its child. A copy
    shares the data, and has a model and random draws of its own; its training begins another pass over the data.

    Args:
        name: the data set.
        model: its augmented backbone.
        config: its RecBole configuration.
        loaders: of its training, validation and test parts.
        pairing: who is who.
        state: what it draws from.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        config: Any,
        loaders: tuple[Any, Any, Any],
        pairing: Pairing,
        state: RandomState,
    ) -> None:
        self.name, self.model, self.config, self.pairing = name, model, config, pairing
        self.loaders = dict(zip(("train", "valid", "test"), loaders, strict=True))
        self.links = pairing.links.to(config["device"])
        self.held_out = pairing.held_out.to(config["device"])
        if model.recplug_fast:
            use_fast_sampling(loaders[0])
        self._state = model.recplug_streams = state
        state.hold(loaders[0].generator)
        self._batches: Iterator[Any] = iter(())
        self._shuffles: Tensor | None = None  # before this pass over the data
        self._drawn = 0  # batches of this pass
        self._latest: tuple[list[int], Step] | None = None
        self._trainer: Any = None

    def next_batch(self) -> Any:
        """The next training batch, on the model's device; a loader that is used up begins anew, in another order."""
        with self._state.used():
            return self._next_batch()

    def _next_batch(self) -> Any:
        found = next(self._batches, None)
        if found is None:
            self._shuffles, self._drawn = self.loaders["train"].generator.get_state(), 0
            self._batches = iter(self.loaders["train"])
            found = next(self._batches)
        self._drawn += 1
        return found.to(self.model.recplug.table("items").raw.device)

    def state(self) -> dict[str, Any]:
        """Where its random draws and the pass over its data are; its model's state is the model's."""
        return {"streams": self._state.state(), "shuffles": self._shuffles, "drawn": self._drawn}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state` was asked: the pass begins as it did, and leaves out the batches that it gave."""
        self._batches, self._shuffles, self._drawn = iter(()), state["shuffles"], state["drawn"]
        if self._shuffles is not None:
            with self._state.used():
                self.loaders["train"].generator.set_state(self._shuffles)
                self._batches = iter(self.loaders["train"])
                for _ in range(self._drawn):
                    next(self._batches)
        self._state.set_state(state["streams"])

    def loss(self) -> Tensor:
        """``[]``: the source's whole training loss, its plugins' too, on its next batch."""
        with self._state.used():
            found, step = self.model.recplug_training(self._next_batch())
        parts = found if isinstance(found, tuple) else (found,)
        self._latest = versions_of(self.model.parameters()), step
        return torch.stack([part.sum() for part in parts]).sum()  # LightGCN's loss has the shape [1]

    def encode_users(self, ids: Tensor) -> Tensor:
        """``ids [b]`` of source users to ``[b, d]``, by what the latest :meth:`loss` has computed while it fits."""
        with self._state.used():
            return self._step().vectors_of(ids)

    def _step(self) -> Step:
        chain = self.model.recplug
        if self._latest is not None and torch.is_grad_enabled():
            versions, step = self._latest
            if versions == versions_of(self.model.parameters()):
                return step
            self._latest = None
        found: Step = chain.current()
        return found

    def share_seen(self) -> float:
        """How often this epoch has gone through the source's training data so far."""
        return float(self.model.recplug.steps_in_epoch / len(self.loaders["train"]))

    def evaluate(self, part: str) -> dict[str, float]:
        """Metrics of ``"valid"`` or ``"test"``, ranked and masked as RecBole does for the source alone."""
        training = self.model.training
        with self._state.used(), torch.no_grad():
            found = self._tester().evaluate(self.loaders[part], load_best_model=False, show_progress=False)
        if training:
            self.model.train()
        return dict(found or {})

    def on_evaluation_end(self, epoch: int) -> dict[str, float]:
        """Validate, tell the source's augmentations, and return the metrics."""
        self._latest = None
        found = self.evaluate("valid")
        if found:
            score = calculate_valid_score(found, self.config["valid_metric"].lower())
            self.model.recplug.on_evaluation_end(epoch, score)
        return found

    def _tester(self) -> Any:
        """A trainer that never trains: RecBole evaluates in its trainer."""
        if self._trainer is None:
            import recbole.trainer.trainer as module

            with replaced(module, get_tensorboard=lambda logger: None):
                self._trainer = Trainer(self.config, self.model)
            self._trainer.optimizer = None
            self._trainer.eval_collector = Collector(self.config)
            self._trainer.eval_collector.data_collect(self.loaders["train"])
        return self._trainer

    def __getstate__(self) -> dict[str, Any]:
        fresh = {"_batches": iter(()), "_shuffles": None, "_drawn": 0, "_latest": None, "_trainer": None}
        return {**self.__dict__, **fresh}

    def __deepcopy__(self, memo: dict[int, Any]) -> Domain:
        other = object.__new__(Domain)
        memo[id(self)] = other
        other.__dict__.update(self.__getstate__())
        other.model, other._state = copy.deepcopy(self.model, memo), copy.deepcopy(self._state, memo)
        return other


def source_hosts(plugins: nn.Module) -> list[str]:
    """The names of augmented backbones among the plugins' modules: a source's, whose rows are not the plugins'."""
    return [name for name, module in plugins.named_modules() if hasattr(type(module), "recplug_base")]


def is_host_row(name: str, hosts: list[str]) -> bool:
    """Whether a tensor ``name`` belongs to one of the backbones ``hosts``, and not to a plugin that acts there."""
    return any(name.startswith(f"{host}.") and not name.startswith(f"{host}.recplug.") for host in hosts)


def _check_host(target: Any, config: Any) -> None:
    host = target.recplug_host
    if not config["single_spec"]:
        raise RecplugError("a second domain trains in one process; leave --nproc and --world_size out")
    if get_trainer(config["MODEL_TYPE"], config["model"]) is not Trainer:
        raise RecplugError(
            f"{host.name} trains in a trainer of its own, which knows one domain; use LightGCN or SASRec"
        )


def _find(wanted: Wanted, config: Any) -> Path | None:
    """The source's folder; None for the set that RecBole brings itself."""
    ours, name = Path(config["data_path"]), glob.escape(wanted.name)
    beside = any(ours.glob(f"{name}.inter")) or any(ours.glob(f"{name}.*.inter"))
    try:
        folder = locate(wanted.name, wanted.path or (ours if beside else ours.parent))
    except RecplugError as error:
        advice = str(error).replace("--data_path", f"--{wanted.plugin}.source_path")  # the other one is the target's
        raise RecplugError(f"the source of {wanted.plugin} is missing: {advice}") from None
    same = folder is None or folder.resolve() == ours.resolve()
    if same and wanted.name == config["dataset"]:
        raise RecplugError(f"{wanted.name} is the target itself; give --{wanted.plugin}.source another data set")
    return folder
