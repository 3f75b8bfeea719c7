"""``augment(model_class, plugins)``: a subclass of the user's RecBole model with plugins grafted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from recbole.model.abstract_recommender import AbstractRecommender, GeneralRecommender, SequentialRecommender

from recplug.adapters.chain_builder import resolve
from recplug.adapters.recbole.domains.source_domain import open_source
from recplug.adapters.recbole.graft.base import Grafted, GraftedClass
from recplug.adapters.recbole.graft.general import GraftedNodes
from recplug.adapters.recbole.graft.hosts import HOSTS, Host, host_of
from recplug.adapters.recbole.graft.sequential import GraftedSequences
from recplug.plugins.errors import RecplugError
from recplug.plugins.registry import parse_names

M = TypeVar("M", bound=AbstractRecommender)


def augment(
    model_class: type[M],
    plugins: str | Sequence[str],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    table: str | None = None,
    users: str | None = None,
) -> type[M]:
    """A subclass of ``model_class`` whose items and users pass through plugins; the class itself is left as it is.

    The vanilla constructor runs first, so the backbone's own initialisation is untouched. What else the plugins need
    is read from the model's RecBole configuration: a nested mapping of settings by plugin name (``prism:``),
    ``features``, ``shuffle_features``, ``trim_padding``, ``fast_propagation``, ``mask_history`` and ``score_block``.

    Args:
        model_class: a RecBole model class, or your own.
        plugins: names, in the order in which they act; may be empty, which any model allows.
        settings: settings by plugin name; they win over the configuration's.
        table: the attribute that holds the item embedding, for models of your own (default ``item_embedding``).
        users: the attribute that holds the user embedding of a general model of your own (default ``user_embedding``).
            Its ``forward()`` counts as propagation where it takes no argument and returns ``(users, items)``, and its
            ``BPRLoss``, if it has exactly one, as what compares the scores of the batch's pairs.

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
    host = _host(model_class, names, table, users)
    body = {
        "__module__": model_class.__module__,
        "__doc__": model_class.__doc__,
        "recplug_host": host,
        "recplug_names": names,
        "recplug_settings": settings,
        "recplug_base": model_class,
        "recplug_augment": staticmethod(augment),
        "recplug_open_source": open_source,
    }
    return GraftedClass(model_class.__name__, (_BASES[host.family], model_class), body)  # type: ignore[return-value]


_BASES: dict[str, type[Grafted]] = {"sequential": GraftedSequences, "graph": GraftedNodes}


def _host(model_class: type, names: Sequence[str], table: str | None, users: str | None) -> Host:
    name = model_class.__name__
    if model_class.__module__.startswith("recbole.model.") and name in HOSTS:
        return host_of(name) if names else HOSTS[name]
    if issubclass(model_class, SequentialRecommender):
        return Host(name, table=table or "item_embedding", losses=(), reason="a model of your own")
    if issubclass(model_class, GeneralRecommender):
        return Host(
            name,
            "graph",
            reason="a model of your own",
            table=table or "item_embedding",
            users=users or "user_embedding",
            nodes="forward",
            losses=(),
            role="candidate",
            beyond_batch=True,
            others_nodes=True,
            no_scores="plugins change scores in training where exactly one BPRLoss compares those of the batch's pairs",
        )
    if names or not issubclass(model_class, AbstractRecommender):
        kind = "is neither a sequential nor a general model of RecBole"
        raise RecplugError(f"{name} {kind}; use one such as SASRec or LightGCN")
    return Host(name, "graph", "refused", "a model of another kind", table="", losses=())
