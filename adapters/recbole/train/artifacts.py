"""What a finished training leaves: adapter file, diagnostics, and the result of a second domain."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recplug.adapters.recbole.domains.source_domain import Domain
from recplug.adapters.recbole.state.run_directory import RunDirectory, adapter_tensors
from recplug.adapters.recbole.state.spec import content_of, plugin_versions
from recplug.adapters.recbole.train.callbacks import shown
from recplug.plugins.registry import manager

log = logging.getLogger("recplug")
ABOUT = ("model", "dataset", "plugins", "settings", "features", "factors", "versions")


def leave(model: Any, directory: RunDirectory, result: dict[str, Any]) -> None:
    """Adapter file and diagnostics of the best epoch, whose parameters the model now has.

    Args:
        model: the augmented model.
        directory: where they go.
        result: what ``result.json`` will hold; takes the names of the pictures.
    """
    model.eval()
    if names := result["plugins"]:
        tensors = adapter_tensors(model.recplug)
        manager().hook.recplug_export(model=model, tensors=tensors)
        about = {key: result[key] for key in ABOUT}
        about |= {"packages": plugin_versions(names), **model.recplug_ids}
        directory.write_adapter(tensors, about)
        model.recplug_encode()
        result["diagnostics"], notes = directory.write_diagnostics(model.recplug)
        result["notes"] = [*result.get("notes", ()), *notes]
    manager().hook.recplug_after_training(model=model, result=result)


def source_result(source: Domain, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The second domain of the best epoch, whose parameters the model now has; it is tested here, once.

    Args:
        source: the domain.
        rows: the epochs.
    """
    test = source.evaluate("test")
    log.info("source %s in the best epoch: test %s", source.name, shown(test))
    return {
        "dataset": source.name,
        **content_of(source),
        "valid_result": source.evaluate("valid"),
        "test_result": test,
        "links": source.pairing.total,
        "links_held_out": len(source.held_out),
        "linked_by": "file" if source.pairing.by_file else "token",
        "share_seen": mean(row["source/share_seen"] for row in rows),
    }


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
