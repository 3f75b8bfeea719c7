"""Panels to files: every kind is drawn, and a point of a scatter lies where it should."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from recplug.adapters import panels
from recplug.adapters.panels import COLOURS, draw
from recplug.plugins.contract import Panel

VALUES = {
    "heatmap": torch.rand(7, 3),
    "bars": torch.tensor([1.0, -2.0, 0.5]),
    "histogram": torch.rand(2, 50),
    "curves": torch.rand(3, 20),
    "scatter": torch.cat([torch.randn(2, 30, 2), (torch.arange(60) % 3).float().reshape(2, 30, 1)], dim=2),
}


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", list(VALUES))
def test_every_kind_is_a_picture(tmp_path, kind, labelled):
    values = VALUES[kind]
    n = 3 if kind == "scatter" else len(values)
    columns = tuple(f"column {i}" for i in range(len(values) if kind == "scatter" else values.shape[-1]))
    rows = tuple(f"row {i}" for i in range(n))
    draw(Panel(values, kind, "title", "A caption. " * 20, *((rows, columns) if labelled else ())), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_label_has_one_colour_in_every_picture():
    points = torch.tensor(
        [
            [[0.0, 1.0, 0.0], [2.0, 3.0, 1.0], [4.0, 5.0, 1.0]],
            [[6.0, 7.0, 1.0], [8.0, 9.0, 2.0], [10.0, 11.0, 0.0]],
        ]
    )
    panel = Panel(points, "scatter", "title", "caption.", ("red", "green", "blue"), ("before", "after"))
    figure = Figure()
    panels._scatter(figure, panel, points.numpy())
    assert [axes.get_title() for axes in figure.axes] == ["before", "after"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["red", "green", "blue"]
    for axes, picture in zip(figure.axes, points.numpy(), strict=True):
        assert len(axes.collections) == 3
        for label, drawn in enumerate(axes.collections):
            np.testing.assert_allclose(drawn.get_offsets(), picture[picture[:, 2] == label, :2])
            assert tuple(drawn.get_facecolor()[0][:3]) == pytest.approx(
                tuple(int(COLOURS[label][i : i + 2], 16) / 255 for i in (1, 3, 5))
            )
