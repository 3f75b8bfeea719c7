"""Drawings: every point where its numbers say, every table with the panel's numbers, words to be read."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recplug.adapters.panels import draw
from recplug.adapters.report.charts import Line, Mark, legend, nice, plot
from recplug.adapters.report.diagnostics import Picture, read_pictures
from recplug.adapters.report.figures import colours, figure, is_complete, luminance
from recplug.plugins.contract import Panel

FINITE = st.floats(-1e6, 1e6)


def parsed(markup):
    return ElementTree.fromstring(f"<div>{markup}</div>")


def dots(svg, style):
    return [
        (float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle") if f"s{style}" in c.get("class").split()
    ]


@given(st.lists(FINITE, min_size=2, max_size=20).filter(lambda y: max(y) - min(y) > 1e-3))
def test_points_lie_where_their_numbers_say(y):
    svg = parsed(plot("a", [Line("one", range(len(y)), y)], title="t", xlabel="epoch"))
    places = dots(svg, 0)
    assert len(places) == len(y)
    xs, ys = np.array(places).T
    # The first two different points fix the scale; all others have to follow it, upwards for more.
    scale = (ys[np.argmax(y)] - ys[np.argmin(y)]) / (max(y) - min(y))
    assert scale < 0
    np.testing.assert_allclose(ys, ys[np.argmin(y)] + scale * (np.array(y) - min(y)), atol=0.12)
    np.testing.assert_allclose(np.diff(xs), (xs[-1] - xs[0]) / (len(y) - 1), atol=0.11)
    assert xs.min() >= 0
    assert xs.max() <= 340
    assert ys.min() >= 0
    assert ys.max() <= 210


def test_ticks_stand_at_their_own_values():
    """A tick's height, taken through the scale of two known points, is the number that it says."""
    svg = parsed(plot("a", [Line("one", [0, 1], [2.0, 7.0])], title="t", xlabel="epoch"))
    (_, low), (_, high) = dots(svg, 0)
    levels = [
        float(re.match(r"M[\d.]+ ([\d.]+)H", p.get("d"))[1]) for p in svg.iter("path") if p.get("class") == "level"
    ]
    said = [float(t.text) for t in svg.iter("text") if t.get("text-anchor") == "end" and t.get("class") == "tick"]
    assert len(said) == len(levels) >= 3
    for level, number in zip(levels, said, strict=True):
        assert 2 + (level - low) / (high - low) * 5 == pytest.approx(number, abs=0.02)


def test_gaps_break_the_curve_and_get_no_dot():
    y = [1.0, None, 3.0, float("nan"), float("inf"), 2.0, 2.5]
    svg = parsed(plot("a", [Line("one", range(7), y)], title="t", xlabel="epoch"))
    assert len(dots(svg, 0)) == 4
    (curve,) = (path.get("d") for path in svg.iter("path") if "line" in path.get("class"))
    assert re.sub(r"[-\d. ]+", "", curve) == "MMML"


@pytest.mark.parametrize("y", [[], [None], [float("nan")], [0.0], [3.0, 3.0], [1e-12, 2e-12], [1e30, -1e30]], ids=str)
def test_no_curve_is_too_odd(y):
    svg = parsed(plot("a", [Line("one", range(len(y)), y)], title="t", xlabel="epoch"))
    numbers = [float(n) for p in svg.iter("path") for n in re.findall(r"[-\d.e+]+", p.get("d"))]
    assert all(0 <= number <= 340 for number in numbers)


def test_words_are_escaped_and_say_what_is_drawn():
    bad = '<script>"&'
    markup = plot(
        "a", [Line(bad, [0, 1, 2], [5.0, 1.0, 3.0])], title=bad, xlabel="epoch", ylabel=bad, marks=[Mark(1, bad)]
    )  # fmt: skip
    assert "<script>" not in markup + legend([(bad, 1)])
    svg = parsed(markup)
    (desc,) = (each.text for each in svg.iter("desc"))
    assert desc == f"{bad}: from 5 at epoch 0 to 3 at 2; lowest 1 at 1, highest 5 at 0. Marked at 1: {bad}."
    (drawing,) = svg.iter("svg")
    assert drawing.get("role") == "img"
    ids = {each.get("id") for each in svg.iter() if each.get("id")}
    assert set(drawing.get("aria-labelledby").split()) == ids


@given(FINITE, st.floats(1e-6, 1e6), st.integers(1, 9))
def test_ticks_are_round_and_within(low, span, most):
    high = low + span
    found = nice(low, high, most)
    slack = 1e-6 * max(abs(low), abs(high), 1)
    assert all(low - slack <= value <= high + slack for value in found)
    assert len(found) <= most + 1
    for step in np.diff(found):
        mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
        if span > 1e-3 * abs(low):  # else the differences are rounding
            assert min(abs(mantissa - nice_one) for nice_one in (1, 2, 5, 10)) < 1e-3


@given(FINITE, FINITE, FINITE)
def test_cells_can_be_read(value, one, other):
    ground, ink = colours(value, min(one, other), max(one, other))
    light, dark = sorted((luminance(tuple(bytes.fromhex(c[1:]))) for c in (ground, ink)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_luminance_is_wcags():
    assert luminance((255, 255, 255)) == pytest.approx(1.0)
    assert luminance((0, 0, 0)) == 0.0
    assert (1.05) / (luminance((0x76, 0x76, 0x76)) + 0.05) == pytest.approx(4.54, abs=0.01)  # W3C's well-known grey


def as_read(tmp_path, panel):
    """A panel through its files."""
    tmp_path.mkdir(exist_ok=True)
    draw(panel, tmp_path / "toy.it.png")
    np.savez(tmp_path / "toy.npz", it=panel.values.numpy())
    missing = []
    (picture,) = read_pictures(tmp_path, missing)["toy"]
    assert not missing
    return picture


def test_tables_and_bars_hold_the_numbers(tmp_path, panels):
    cells = parsed(figure(as_read(tmp_path / "a", panels["shares"]), "p"))
    assert [cell.text for cell in cells.iter("td") if cell.get("style")] == ["0.10", "0.90", "-0.40", "0.60"]
    assert [cell.text for cell in cells.iter("th")] == ["x", "y", "a", "b"]
    bars = parsed(figure(as_read(tmp_path / "b", panels["sizes"]), "p"))
    (up, down) = ((float(r.get("x")[:-1]), float(r.get("width")[:-1])) for r in bars.iter("rect"))
    assert up == pytest.approx((25, 75))  # from 0, which is a quarter of the way from -1 to 3
    assert down == pytest.approx((0, 25))
    assert [cell.text for cell in bars.iter("td") if cell.get("class") == "num"] == ["3", "-1"]


def test_a_histogram_counts(tmp_path, panels):
    panel = panels["spread"]
    svg = parsed(figure(as_read(tmp_path, panel), "p"))
    rows = [[cell.text for cell in row] for row in svg.iter("tr")][1:]
    for (name, number, *quantiles), sample in zip(rows, panel.values.numpy(), strict=True):
        assert (name, number) in (("a", "20"), ("b", "20"))
        wanted = np.quantile(sample, (0.05, 0.5, 0.95))
        np.testing.assert_allclose([float(q) for q in quantiles], wanted, rtol=6e-3)
    counts = np.histogram(panel.values[0].numpy(), bins=np.linspace(0, 1, 41))[0]
    path = next(p.get("d") for p in svg.iter("path") if "line s0" in p.get("class"))
    heights = {float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path)}
    assert len(heights) == len({0, *counts.tolist()})


def test_whole_numbers_have_a_bin_each():
    labels = {"kind": "histogram", "rows": [], "columns": []}
    markup = figure(Picture("it", "t", "c.", labels, np.array([[0.0, 0, 1, 3, 3, 3]])), "p")
    path = next(p.get("d") for p in parsed(markup).iter("path") if "line s0" in p.get("class"))
    ys = [float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", path)]
    ground, top = max(ys), min(ys)
    heights = [round(3 * (ground - y) / (ground - top)) for y in ys]
    assert heights == [0, 2, 2, 1, 1, 0, 0, 3, 3, 0]


def test_curves_and_points_are_all_there(tmp_path, panels):
    curves = parsed(figure(as_read(tmp_path / "a", panels["entropy"]), "p"))
    assert sum("line" in path.get("class", "").split() for path in curves.iter("path")) == 4  # two, and their keys
    assert "switch" in [text.text for text in curves.iter("text")]
    shown = parsed(figure(as_read(tmp_path / "b", panels["map"]), "p"))
    places = [[(c.get("class"), float(c.get("cx")), float(c.get("cy"))) for c in svg.iter("circle")]
              for svg in shown.iter("svg") if svg.get("role") == "img"]  # fmt: skip
    assert [len(each) for each in places] == [9, 9]
    for drawn, values in zip(places, panels["map"].values.numpy(), strict=True):
        assert [style for style, *_ in drawn] == [f"point s{int(label)}" for label in values[:, 2]]
        xy = np.array([place for _, *place in drawn])
        scale = 186 / np.ptp(values[:, :2], axis=0).max()
        np.testing.assert_allclose(xy - xy[0], scale * (values[:, :2] - values[0, :2]), atol=0.21)


def test_what_does_not_fit_is_shown_as_it_was_drawn(tmp_path, panels):
    picture = as_read(tmp_path, panels["shares"])
    for changed in ({"values": None}, {"labels": {}}, {"labels": {**picture.labels, "rows": ["a"]}},
                    {"labels": {**picture.labels, "kind": "cake"}}, {"values": np.zeros(3)},
                    {"values": np.zeros((60, 60))},
                    {"values": np.zeros(300), "labels": {"kind": "bars"}},
                    {"values": np.zeros((1, 6_000, 3)), "labels": {"kind": "scatter"}}):  # fmt: skip
        other = Picture(**{**picture.__dict__, **changed})
        assert not is_complete(other)
        assert 'src="data:image/png;base64,' in figure(other, "p")
    assert "cannot be read" in figure(Picture("it"), "p")


def test_numbers_that_are_none_are_no_trouble(tmp_path):
    nan = float("nan")
    for place, panel in enumerate(
        [
            Panel(torch.tensor([[nan, 1.0], [nan, nan]]), "heatmap", "t", "c."),
            Panel(torch.full((2, 2), nan), "heatmap", "t", "c.", limits=None),
            Panel(torch.full((2, 3), nan), "histogram", "t", "c.", limits=(0.0, 1.0)),
            Panel(torch.tensor([nan, 1.0]), "bars", "t", "c."),
            Panel(torch.full((1, 3), nan), "curves", "t", "c."),
        ]
    ):
        folder = tmp_path / str(place)
        folder.mkdir()
        np.savez(folder / "toy.npz", it=panel.values.numpy())
        labels = {"kind": panel.kind, "rows": [], "columns": [], "limits": panel.limits, "marks": []}
        picture = Picture("it", "t", "c.", labels, panel.values.numpy())
        assert is_complete(picture)
        parsed(figure(picture, "p"))
