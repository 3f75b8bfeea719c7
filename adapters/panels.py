"""Panels to pictures: one way to draw, so that every plugin's diagnostics look alike and read alone."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recplug.plugins.contract import Panel

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#7F7F7F", "#000000")


def draw(panel: Panel, path: Path) -> None:
    """Draw one panel, caption included, as a PNG of about 900 pixels.

    The picture carries its words, so that it can be read aloud or drawn anew from the stored numbers: PNG's ``Title``
    and ``Description``, and ``recplug`` (JSON), everything else that a panel has beside its values.
    """
    values = panel.values.detach().float().cpu().numpy()
    caption = textwrap.fill(panel.caption, 92)
    height = 3.6 + 0.17 * caption.count("\n")
    if panel.kind == "heatmap":
        height += 0.25 * max(0, len(values) - 5)
    figure = Figure(figsize=(7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    if panel.kind == "scatter":
        _scatter(figure, panel, values)
    else:
        axes = figure.subplots()
        kinds = {"heatmap": _heatmap, "bars": _bars, "histogram": _histogram, "curves": _curves}
        kinds[panel.kind](axes, panel, values)
        axes.set_title(panel.title, loc="left", fontsize=11, fontweight="bold")
        axes.set_xlabel(panel.xlabel)
        axes.set_ylabel(panel.ylabel)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8.5, color="#333333")
    labels = {key: getattr(panel, key) for key in ("kind", "rows", "columns", "xlabel", "ylabel", "limits", "marks")}
    words = {"Title": panel.title, "Description": panel.caption, "recplug": json.dumps(labels, default=float)}
    figure.savefig(path, dpi=130, metadata=words)


def _heatmap(axes: Axes, panel: Panel, values: np.ndarray) -> None:
    low, high = panel.limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    image = axes.imshow(values, cmap="RdBu_r" if low < 0 < high else "viridis", vmin=low, vmax=high, aspect="auto")
    axes.figure.colorbar(image, ax=axes)
    axes.set_xticks(range(values.shape[1]))
    if panel.columns:
        crowded = sum(map(len, panel.columns)) > 60
        axes.set_xticks(
            range(values.shape[1]),
            panel.columns,
            rotation=30 if crowded else 0,
            ha="right" if crowded else "center",
        )
    axes.set_yticks(range(values.shape[0]), panel.rows or None)
    middle, span = (low + high) / 2, max(high - low, 1e-9)
    for (row, column), value in np.ndenumerate(values):
        far = abs(value - middle) / span > 0.3
        dark = far if low < 0 < high else value < middle
        colour = "white" if dark else "black"
        axes.text(float(column), float(row), f"{value:.2f}", ha="center", va="center", color=colour)


def _bars(axes: Axes, panel: Panel, values: np.ndarray) -> None:
    places = np.arange(len(values))
    axes.bar(places, values, color=[COLOURS[i % len(COLOURS)] for i in places], width=0.65)
    axes.set_xticks(places, panel.rows or None)
    for place, value in enumerate(values.tolist()):
        axes.text(place, value, f"{value:.3g}", ha="center", va="bottom" if value >= 0 else "top", fontsize=9)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.margins(y=0.15)
    if panel.limits:
        axes.set_ylim(panel.limits)
    axes.spines[["top", "right"]].set_visible(False)


def _histogram(axes: Axes, panel: Panel, values: np.ndarray) -> None:
    low, high = panel.limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    edges = np.linspace(low, high if high > low else low + 1e-6, 41).tolist()
    for index, sample in enumerate(values):
        label = panel.rows[index] if panel.rows else None
        colour = COLOURS[index % len(COLOURS)]
        sample = sample[np.isfinite(sample)]
        axes.hist(sample, bins=edges, histtype="stepfilled", alpha=0.25, color=colour)
        axes.hist(sample, bins=edges, histtype="step", linewidth=1.4, color=colour, label=label)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.rows:
        axes.legend(frameon=False, fontsize=9)


def _curves(axes: Axes, panel: Panel, values: np.ndarray) -> None:
    for index, line in enumerate(values):
        label = panel.rows[index] if panel.rows else None
        axes.plot(np.arange(len(line)), line, color=COLOURS[index % len(COLOURS)], linewidth=1.5, label=label)
    for place, word in panel.marks:
        axes.axvline(place, color="black", linewidth=1.0, linestyle="--", label=word)
    if panel.columns:  # what the horizontal axis counts, at five places
        places = np.linspace(0, values.shape[1] - 1, 5).round().astype(int)
        axes.set_xticks(places, [panel.columns[place] for place in places])
    if panel.limits:
        axes.set_ylim(panel.limits)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if panel.rows:
        if len(panel.rows) + len(panel.marks) > 4:  # so many would cover the lines
            axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        else:
            axes.legend(frameon=False, fontsize=9)


def _scatter(figure: Figure, panel: Panel, values: np.ndarray) -> None:
    """One picture beside the other; a label has one colour in all of them."""
    pictures = figure.subplots(1, len(values), squeeze=False)[0]
    for index, (axes, points) in enumerate(zip(pictures, values, strict=True)):
        for label in range(round(float(values[..., 2].max())) + 1):
            x, y = points[points[:, 2] == label, :2].T
            name = panel.rows[label] if panel.rows else None
            axes.scatter(x, y, s=6, linewidths=0, color=COLOURS[label % len(COLOURS)], label=name)
        if panel.columns:
            axes.set_title(panel.columns[index], fontsize=9)
        axes.set_xlabel(panel.xlabel)
        axes.set_xticks([])
        axes.set_yticks([])
    pictures[0].set_ylabel(panel.ylabel)
    if panel.rows:
        handles, names = pictures[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=8, markerscale=2)
    figure.suptitle(panel.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
