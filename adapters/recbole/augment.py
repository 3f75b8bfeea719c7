"""``augment(model_class, plugins)``: a subclass of the user's RecBole model with plugins grafted on."""

from __future__ import annotations

import copyreg
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor

from recplug.adapters.build import build_chain, resolve
from recplug.adapters.features import load_modalities, shuffled
from recplug.adapters.recbole.hosts import HOSTS, Host, host_of
from recplug.adapters.recbole.trim import encode_trimmed
from recplug.plugins.chain import Chain
from recplug.plugins.contract import Context, Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import parse_names
from recplug.plugins.settings import PluginSettings
from recplug.plugins.step import Batch
from recplug.plugins.table import ItemTable, find_table

log = logging.getLogger("recplug")
M = TypeVar("M", bound=SequentialRecommender)
# The adapter's own keys in a RecBole configuration, with their defaults.
KEYS: dict[str, Any] = {
    "features": None,  # {modality: path}; default: every DATASET.MODALITY.safetensors beside the .inter file
    "shuffle_features": False,  # the control: content vectors dealt out to other items
    "trim_padding": None,  # default: on with a plugin, where it is exact
    "mask_history": False,  # rank without the items that a user has had
}


def augment(
    model_class: type[M],
    plugins: str | Sequence[str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    table: str | None = None,
) -> type[M]:
    """A subclass of ``model_class`` whose items pass through plugins; the class itself is left as it is.

    The vanilla constructor runs first, so the backbone's own initialisation is untouched. What else the plugins need
    is read from the model's RecBole configuration: a nested mapping of settings by plugin name (``prism:``),
    ``features``, ``shuffle_features``, ``trim_padding`` and ``mask_history``.

    Args:
        model_class: a RecBole model class, or your own.
        plugins: names, in the order in which they act; may be empty.
        settings: settings by plugin name; they win over the configuration's.
        table: the attribute that holds the item embedding, for models of your own (default ``item_embedding``).

    Raises:
        RecplugError: if the model is refused, a plugin is unknown or named twice, or a setting is wrong.
    """
    names = tuple(parse_names(plugins))
    settings = {name: dict(values) for name, values in (settings or {}).items()}
    if strangers := sorted(set(settings) - set(names)):
        raise RecplugError(f"settings for {strangers}, which --plugin does not name; plugins here: {list(names)}")
    resolve(names, settings)
    if issubclass(model_class, Grafted):
        raise RecplugError(f"{model_class.__name__} is augmented already; name all plugins at once")
    host = _host(model_class, table)
    body = {
        "__module__": model_class.__module__,
        "__doc__": model_class.__doc__,
        "recplug_host": host,
        "recplug_names": names,
        "recplug_settings": settings,
        "recplug_base": model_class,
    }
    return _Meta(model_class.__name__, (Grafted, model_class), body)  # type: ignore[return-value]


def _host(model_class: type, table: str | None) -> Host:
    name = model_class.__name__
    if model_class.__module__.startswith("recbole.model.") and name in HOSTS:
        return host_of(name)
    if not issubclass(model_class, SequentialRecommender):
        raise RecplugError(
            f"{name} is not a sequential model; this version grafts onto sequential backbones such as SASRec or GRU4Rec"
        )
    return Host(name, table=table or "item_embedding", losses=(), reason="a model of your own")


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


class _Meta(type):
    """Lets an augmented class be pickled (RecBole's checkpoints hold the configuration, which holds the class)."""


def _reduce(cls: Any) -> Any:
    if cls is Grafted:
        return "Grafted"
    restore = functools.partial(augment, table=cls.recplug_host.table)
    return restore, (cls.recplug_base, cls.recplug_names, cls.recplug_settings)


copyreg.pickle(_Meta, _reduce)


class Grafted(metaclass=_Meta):
    """What an augmented model has besides its backbone; always the first base, before a RecBole model class."""

    recplug_host: Host
    recplug_names: tuple[str, ...]
    recplug_settings: dict[str, dict[str, Any]]
    recplug_base: type
    recplug: Chain

    def __init__(self, config: Any, dataset: Any) -> None:
        host = self.recplug_host
        # Before the host's constructor, which ends the whole process where a CPR model is given BPR.
        check_config(host, config)
        super().__init__(config, dataset)  # type: ignore[call-arg]
        given = {name: {**(config[name] or {}), **self.recplug_settings.get(name, {})} for name in self.recplug_names}
        self.recplug_resolved: dict[str, PluginSettings] = resolve(self.recplug_names, given)
        embedding = find_table(self, host.table)  # type: ignore[arg-type]
        if embedding is None:
            raise RecplugError(f"{host.name} has no nn.Embedding called '{host.table}'; pass augment(..., table=NAME)")
        context = self._recplug_context(config, dataset, embedding.num_embeddings, embedding.embedding_dim)
        self.recplug = build_chain(self.recplug_resolved, context, encoder=host.dot)
        ItemTable.graft(embedding, self.recplug, one_dimensional_input=host.last_item)
        self.recplug.flips_mode = bool((config["train_neg_sample_args"] or {}).get("dynamic"))
        self.recplug_full_softmax = config["loss_type"] == "CE"
        self.recplug_trim = self._recplug_trim(config)
        self.recplug_history: Tensor | None = None
        if config["mask_history"]:
            self.recplug_history = torch.stack(_interactions(dataset))

    def _recplug_context(self, config: Any, dataset: Any, n_rows: int, width: int) -> Context:
        modalities: dict[str, Modality] = {}
        if self.recplug_names:
            tokens = dataset.field2id_token[dataset.iid_field]
            modalities, report = load_modalities(
                Path(config["data_path"]), config["dataset"], None, config["features"] or {}, tokens
            )
            for line in report:
                log.info(line)
            if config["shuffle_features"]:
                modalities = {name: shuffled(m, seed=config["seed"]) for name, m in modalities.items()}
                log.info("control: content vectors are dealt out to other items (shuffle_features)")
        users, items = _interactions(dataset)
        n_items = dataset.item_num  # S3Rec's own n_items counts the mask row too
        return Context(
            host=self.recplug_host.name,
            family="sequential",
            n_users=dataset.user_num,
            n_items=n_items,
            n_rows={"items": n_rows},
            width={"items": width},
            edges=torch.stack([users, items]),
            modalities=modalities,
            mask_id=n_items if n_rows > n_items else None,
            steps_per_epoch=_steps_per_epoch(config, len(dataset)),
            device=config["device"],
            seed=config["seed"],
        )

    def _recplug_trim(self, config: Any) -> bool:
        wanted = config["trim_padding"]
        if wanted is None:
            return bool(self.recplug_names) and self.recplug_host.trim
        if wanted and self.recplug_host.name in HOSTS and not self.recplug_host.trim:
            exact = [name for name, host in HOSTS.items() if host.trim]
            raise RecplugError(
                f"trim_padding is not exact for {self.recplug_host.name}, whose encoder reads the padding; "
                f"leave it out, or use one of {', '.join(exact)}"
            )
        return bool(wanted)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's encoder, without padding where that is exact; remembered for ``Step.reencode``."""
        encode = functools.partial(super().forward, **kwargs)  # type: ignore[misc]
        step = self.recplug._step
        padded = bool(args) and isinstance(args[0], Tensor) and args[0].dim() == 2
        trim = self.recplug_trim and padded and not any(isinstance(value, Tensor) for value in kwargs.values())

        def run() -> Any:
            if trim:
                return encode_trimmed(encode, args, self.max_seq_length)  # type: ignore[attr-defined]
            return encode(*args)

        output = run()
        if step is not None and step.encoded is None and self.recplug_host.dot:
            step.encoder, step.encoded = run, output
        return output

    def calculate_loss(self, interaction: Any, *args: Any) -> Any:
        """The host's loss, and the plugins' as one more part; exactly the host's where plugins add none."""
        batch = Batch(
            users=_field(interaction, self.USER_ID),  # type: ignore[attr-defined]
            positives=_field(interaction, self.POS_ITEM_ID),  # type: ignore[attr-defined]
            negatives=_field(interaction, self.NEG_ITEM_ID),  # type: ignore[attr-defined]
            sequence=_field(interaction, self.ITEM_SEQ),  # type: ignore[attr-defined]
            lengths=_field(interaction, self.ITEM_SEQ_LEN),  # type: ignore[attr-defined]
        )
        about = self.recplug_host
        with self.recplug.step(
            batch,
            whole_table=self.recplug_full_softmax,
            beyond_batch=about.beyond_batch,
            score_is_dot=about.dot,
        ) as step:
            host = super().calculate_loss(interaction, *args)  # type: ignore[misc]
            total = self.recplug.total_loss(step)
        for index, part in enumerate(host if isinstance(host, tuple) else (host,)):
            self.recplug.log_part("backbone" if index == 0 else f"backbone.{index + 1}", part)
        if total is None:
            return host
        return (*host, total) if isinstance(host, tuple) else (host, total)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The host's scores of every item ``[B * n_items]``; what a user has had ranks last with ``mask_history``."""
        scores = super().full_sort_predict(interaction)  # type: ignore[misc]
        if self.recplug_history is None:
            return scores
        users = interaction[self.USER_ID]  # type: ignore[attr-defined]
        rows = scores.reshape(len(users), -1).clone()  # [B, n_items]
        rows.scatter_(1, interaction[self.ITEM_SEQ], -torch.inf)  # type: ignore[attr-defined]
        row, items = self._recplug_seen(users)
        rows[row, items] = -torch.inf
        return rows.reshape(scores.shape)

    def _recplug_seen(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """(row of the batch, item) of every training interaction of the batch's ``users [B]``."""
        assert self.recplug_history is not None
        self.recplug_history = history = self.recplug_history.to(users.device)  # [2, n], sorted by user
        first = torch.searchsorted(history[0].contiguous(), users)
        last = torch.searchsorted(history[0].contiguous(), users, right=True)
        rows = torch.repeat_interleave(torch.arange(len(users), device=users.device), last - first)
        offset = torch.arange(len(rows), device=users.device) - torch.repeat_interleave(
            (last - first).cumsum(0) - (last - first), last - first
        )
        return rows, history[1, first[rows] + offset]


def _steps_per_epoch(config: Any, samples: int) -> int:
    """As RecBole's training loader counts them: several negatives an interaction leave room for fewer of these."""
    negatives = config["train_neg_sample_args"] or {}
    times = negatives.get("sample_num", "none")
    batch = max(config["train_batch_size"] // (1 if times == "none" else times), 1)
    return -(-samples // batch)


def _interactions(dataset: Any) -> tuple[Tensor, Tensor]:
    """The data set's interactions, each once, sorted by user: ``users [n]``, ``items [n]``."""
    feat, n_items = dataset.inter_feat, dataset.item_num
    users, targets = feat[dataset.uid_field], feat[dataset.iid_field]
    pairs = [torch.unique(users * n_items + targets)]
    # A user's first item is never a target: it stands in the histories alone.
    histories = f"{dataset.iid_field}{dataset.config['LIST_SUFFIX']}"
    for column in feat[histories].unbind(dim=1) if histories in feat else ():
        real = column != 0
        pairs.append(torch.unique(users[real] * n_items + column[real]))
    found = torch.unique(torch.cat(pairs))
    return found // n_items, found % n_items


def _field(interaction: Any, name: str) -> Tensor | None:
    if name not in interaction:
        return None
    return interaction[name]
