"""A run's result as a table for the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recplug.adapters.recbole.train.run import RunResult


def result_table(run: RunResult) -> str:
    """Test metrics, beside the bare backbone's where they are known, with the cost in time."""
    result = run.result
    name = "+".join([result["model"], *result["plugins"]])
    masked = "history masked" if result["mask_history"] else "history not masked"
    title = f"test result on {result['dataset']}, seed {result['seed']}, {masked}"
    if run.baseline is None:
        lines = [f"{metric:<12}{value:>10.4f}" for metric, value in run.test_result.items()] or ["no test part"]
        return "\n".join(["", f"{name}: {title}", *lines])
    bare = run.baseline.result
    head = f"{'metric':<12}{bare['model']:>14}{name:>18}{'change':>10}"
    lines = [
        f"{metric:<12}{old:>14.4f}{run.test_result[metric]:>18.4f}{_change(old, run.test_result[metric]):>10}"
        for metric, old in run.baseline.test_result.items()
    ]
    for label, key, unit in (("epochs", "epochs", ""), ("s/epoch", "seconds_per_epoch", ".2f")):
        old, new = bare[key], result[key]
        lines.append(f"{label:<12}{old:>14{unit}}{new:>18{unit}}{_change(old, new):>10}")
    return "\n".join(["", title, head, "-" * len(head), *lines, "one seed: for a comparison use several"])


def _change(old: float, new: float) -> str:
    return f"{100 * (new - old) / old:+.1f} %" if old else ""
