"""What an augmented RecBole model has besides its backbone, whatever its family."""

from __future__ import annotations

import copyreg
import functools
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.utils import InputType
from torch import Tensor, nn

from recplug.adapters.chain_builder import build_chain, resolve
from recplug.adapters.factors import FACTOR_CONTROLS, load_factors
from recplug.adapters.features import dropped, load_modalities, load_neighbours, shuffled
from recplug.adapters.files import cache_folder
from recplug.adapters.recbole.data.fingerprint import ids_of
from recplug.adapters.recbole.data.interactions import interactions
from recplug.adapters.recbole.graft.fast_products import fast_adjacency_building, use_fast_products
from recplug.adapters.recbole.graft.hosts import Host
from recplug.plugins.chain import Chain
from recplug.plugins.contract import Context, Modality, Seam
from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.nn.knn import Neighbours
from recplug.plugins.settings import PluginSettings
from recplug.plugins.step import Batch, Step
from recplug.plugins.table import ItemTable, UserTable, find_table

if TYPE_CHECKING:
    from recplug.adapters.recbole.domains.random_streams import RandomState
    from recplug.adapters.recbole.domains.source_domain import Domain

log = logging.getLogger("recplug")


class GraftedClass(type):
    """Lets an augmented class be pickled (RecBole's checkpoints hold the configuration, which holds the class)."""


def _reduce(cls: Any) -> Any:
    if "recplug_base" not in vars(cls):
        return cls.__qualname__
    return functools.partial(cls.recplug_augment, **_tables(cls)), (
        cls.recplug_base,
        cls.recplug_names,
        cls.recplug_settings,
    )


def _tables(cls: Any) -> dict[str, Any]:
    """What ``augment`` was told of a model of one's own."""
    host = cls.recplug_host
    return {"table": host.table, "users": host.users or None} if host.reason == OWN else {}


copyreg.pickle(GraftedClass, _reduce)
OWN = "a model of your own"


def check_config(host: Host, config: Any) -> None:
    """Compare a RecBole configuration with a host's restrictions.

    Raises:
        RecplugError: naming what to set.
    """
    why = f" ({host.reason})" if host.status == "restricted" else ""
    if host.losses and (loss := config["loss_type"]) not in (None, *host.losses):
        takes = " or ".join(host.losses)
        raise RecplugError(f"{host.name} takes loss_type {takes}, not {loss}{why}; set --loss_type {host.losses[0]}")
    if host.only and config[host.only[0]] != host.only[1]:
        raise RecplugError(f"{host.name} works with {host.only[0]} {host.only[1]}{why}; set --{' '.join(host.only)}")


class Grafted(metaclass=GraftedClass):
    """The first base of every augmented model, before a RecBole model class."""

    recplug_host: Host
    recplug_names: tuple[str, ...]
    recplug_settings: dict[str, dict[str, Any]]
    recplug_base: type
    recplug_augment: Any  # ``augment`` itself, given by it: what builds a second domain builds models like this one
    recplug_open_source: Any  # (config, dataset, settings) -> the second domain that the settings name, or None
    recplug: Chain
    recplug_trim = False
    recplug_whole_table = False
    recplug_source: Domain | None = None
    recplug_streams: RandomState | None = None  # what a second domain's model draws from
    recplug_ids: dict[str, Any]  # which users and items its rows are; empty without a plugin
    _recplug_adds = False  # whether a plugin has had a loss of its own

    def __init__(self, config: Any, dataset: Any) -> None:
        host, names = self.recplug_host, self.recplug_names
        # Before the host's constructor, which ends the whole process where a CPR model is given BPR.
        check_config(host, config)
        wanted = config["fast_propagation"]
        # Under autocast RecBole's sparse products fail; the fast ones stay in single precision.
        fast = bool(names or config["enable_amp"]) if wanted is None else bool(wanted)
        with fast_adjacency_building() if fast else nullcontext():
            super().__init__(config, dataset)  # type: ignore[call-arg]
        self.recplug_fast: list[str] = use_fast_products(self) if fast else []  # type: ignore[arg-type]
        given = {name: {**(config[name] or {}), **self.recplug_settings.get(name, {})} for name in names}
        self.recplug_ids = ids_of(dataset) if names else {}
        self.recplug_resolved: dict[str, PluginSettings] = resolve(names, given)
        items, users = self._recplug_embeddings()
        context = self._recplug_context(config, dataset, items, users)
        self.recplug_source = self.recplug_open_source(config, dataset, self.recplug_resolved)
        if self.recplug_source is not None:
            context = replace(context, source=self.recplug_source)
        # A model of one's own need not have a table of users.
        seams = self._recplug_seams() - ({"users"} if users is None else set())
        self.recplug = build_chain(self.recplug_resolved, context, seams=seams, encoder=host.dot, why=host.why())
        if items is not None:
            ItemTable.graft(items, self.recplug, role=host.role)
        if users is not None:
            UserTable.graft(users, self.recplug)
        self.recplug.flips_mode = bool((config["train_neg_sample_args"] or {}).get("dynamic"))

    def _recplug_embeddings(self) -> tuple[nn.Embedding | None, nn.Embedding | None]:
        """The host's tables of items and users."""
        host = self.recplug_host
        if host.status == "refused":
            return None, None
        items = find_table(self, host.table) if host.table else None  # type: ignore[arg-type]
        if items is None and host.table:
            raise RecplugError(f"{host.name} has no nn.Embedding called '{host.table}'; pass augment(..., table=NAME)")
        users = find_table(self, host.users) if host.users else None  # type: ignore[arg-type]
        if users is None and host.users and (host.reason != OWN or host.users != "user_embedding"):
            raise RecplugError(f"{host.name} has no nn.Embedding called '{host.users}'; pass augment(..., users=NAME)")
        return items, users

    def _recplug_seams(self) -> frozenset[Seam]:
        return self.recplug_host.seams()

    def _recplug_context(
        self, config: Any, dataset: Any, items: nn.Embedding | None, users: nn.Embedding | None
    ) -> Context:
        modalities: dict[str, Modality] = {}
        neighbours: dict[str, Neighbours] = {}
        factors: FactorProfiles | None = None
        if self.recplug_names:
            tokens = dataset.field2id_token[dataset.iid_field]
            folder, name = Path(config["data_path"]), config["dataset"]
            modalities, report = load_modalities(folder, name, None, config["features"] or {}, tokens)
            if config["shuffle_features"]:
                modalities = {name: shuffled(m, seed=config["seed"]) for name, m in modalities.items()}
                report += ["control: content vectors are dealt out to other items (shuffle_features)"]
            else:
                neighbours, lines = load_neighbours(folder, name, tokens)
                report += lines
            if config["drop_features"]:
                modalities, neighbours = dropped(
                    modalities,
                    neighbours,
                    tokens,
                    config["drop_features"],
                    seed=config["drop_seed"] or 0,
                    together=bool(config["drop_features_together"]),
                )
                left = ", ".join(f"{name} of {int(m.present.sum()):,}" for name, m in modalities.items())
                report += [f"study: content vectors are taken from items (drop_features); left: {left} items"]
            neighbours = {modality: graph.to(config["device"]) for modality, graph in neighbours.items()}
            factors, lines = load_factors(folder, name, config["factors"], tokens, min_group=config["factor_min_group"])
            report += lines
            if factors is not None:
                factors, lines = _controlled(factors, config["factor_control"], config["seed"])
                factors, report = factors.to(config["device"]), report + lines
            for line in report:
                log.info(line)
        edges = torch.stack(interactions(dataset))
        n_items = dataset.item_num  # S3Rec's own n_items counts the mask row too
        tables = {side: table for side, table in (("items", items), ("users", users)) if table is not None}
        return Context(
            host=self.recplug_host.name,
            family=self.recplug_host.family,
            n_users=dataset.user_num,
            n_items=n_items,
            n_rows={side: table.num_embeddings for side, table in tables.items()},
            width={side: table.embedding_dim for side, table in tables.items()},
            edges=edges,
            modalities=modalities,
            neighbours=neighbours,
            factors=factors,
            mask_id=n_items if items is not None and items.num_embeddings > n_items else None,
            loss_reduction="sum" if self.recplug_host.loss_sum else "mean",
            steps_per_epoch=_steps_per_epoch(config, len(dataset)),
            device=config["device"],
            seed=config["seed"],
            halves=self.recplug_host.halves(),
            cache=cache_folder() if self.recplug_names else None,
        )

    @classmethod
    def recplug_beside(cls, names: list[str], settings: dict[str, dict[str, Any]]) -> Any:
        """The same host with other plugins: the class of a second domain's model."""
        return cls.recplug_augment(cls.recplug_base, names, settings, **_tables(cls))

    def calculate_loss(self, interaction: Any, *args: Any, **kwargs: Any) -> Any:
        """The host's loss, and the plugins' as one more part; exactly the host's where plugins add none."""
        return self.recplug_training(interaction, *args, **kwargs)[0]

    def recplug_training(self, interaction: Any, *args: Any, **kwargs: Any) -> tuple[Any, Step]:
        """:meth:`calculate_loss`, and the step in which it was computed."""
        about = self.recplug_host
        with self.recplug.step(
            self._recplug_batch(interaction),
            whole_table=self.recplug_whole_table,
            beyond_batch=about.beyond_batch,
            score_is_dot=about.dot,
        ) as step:
            host = super().calculate_loss(interaction, *args, **kwargs)  # type: ignore[misc]
            total = self.recplug.total_loss(step)
        parts = host if isinstance(host, tuple) else (host,)
        for index, part in enumerate(parts):
            self.recplug.log_part("backbone" if index == 0 else f"backbone.{index + 1}", part)
        if total is None:
            if not self._recplug_adds:
                return host, step
            total = parts[0].new_zeros(())  # RecBole's trainer wants as many parts from every step of an epoch
        self._recplug_adds = True
        # NCL's trainer leaves out the last part while it warms up; that has to stay the host's own.
        return ((*parts[:-1], total, parts[-1]) if about.warm_up else (*parts, total)), step

    def train(self, mode: bool = True) -> Any:
        """Switch mode; some hosts draw while they do (SGL its subgraphs)."""
        with nullcontext() if self.recplug_streams is None else self.recplug_streams.used():
            return super().train(mode)  # type: ignore[misc]

    def recplug_encode(self) -> None:
        """Compute what an evaluation keeps, so that diagnostics can look at it."""

    def recplug_speed(self) -> str:
        """What was done to the backbone's speed, for the log."""
        return f"products of {', '.join(self.recplug_fast)} fast" if self.recplug_fast else "products as they are"

    def _recplug_batch(self, interaction: Any) -> Batch:
        """The batch's ids; a model of another kind has no names for them."""
        names = {
            "users": "USER_ID",
            "positives": "ITEM_ID",
            "negatives": "NEG_ITEM_ID",
            "labels": "LABEL",
            "sequence": "ITEM_SEQ",
            "lengths": "ITEM_SEQ_LEN",
        }
        return Batch(**{ids: _field(interaction, getattr(self, name, "")) for ids, name in names.items()})


def _controlled(profiles: FactorProfiles, kind: str | None, seed: int) -> tuple[FactorProfiles, list[str]]:
    """The profiles of a control, and a line that says so; the profiles themselves where there is none."""
    if kind is None:
        return profiles, []
    if kind not in FACTOR_CONTROLS:
        hint = did_you_mean(kind, FACTOR_CONTROLS) or f"; there are: {', '.join(FACTOR_CONTROLS)}"
        raise RecplugError(f"no factor_control {kind!r}{hint}")
    return FACTOR_CONTROLS[kind](profiles, seed), [f"control: factor profiles are {kind} (factor_control)"]


def _steps_per_epoch(config: Any, samples: int) -> int:
    """As RecBole's training loader counts them: several negatives an interaction leave room for fewer of these."""
    negatives = config["train_neg_sample_args"] or {}
    times = negatives.get("sample_num", "none")
    times = 1 if times == "none" else times
    if times and config["MODEL_INPUT_TYPE"] == InputType.POINTWISE and negatives.get("distribution") != "none":
        times += 1
    processes = 1 if config["single_spec"] else config["world_size"]
    batch = max(config["train_batch_size"] // max(times, 1) // processes, 1)
    share = -(-samples // processes)
    return -(-share // batch)


def _field(interaction: Any, name: str) -> Tensor | None:
    if not name or name not in interaction:
        return None
    return interaction[name]
