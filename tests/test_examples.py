"""The examples run as they stand, with small settings, and print what they promise."""

import re
import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch, capsys, tmp_path):
    """``example(name, *arguments)``: what the script prints, run in an empty folder."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def shown(monkeypatch):
    """Every figure that the script shows."""
    figures = []
    monkeypatch.setattr(plt, "show", lambda: figures.append(plt.gcf()) or plt.close())
    return figures


def test_plain_torch(example, shown):
    out = example("plot_plain_torch.py", "--epochs", "2", "--users", "150")
    found = re.findall(r"^(GRU\S*(?: with Prism\(\))?) +epoch (\d)  loss +([\d.]+)  HR@10 ([\d.]+)", out, re.MULTILINE)
    assert [(name, epoch) for name, epoch, *_ in found] == [
        (name, epoch) for name in ("GRU", "GRU+prism", "GRU with Prism()") for epoch in "01"
    ]
    losses = [float(loss) for _, _, loss, _ in found]
    assert all(later < earlier for earlier, later in zip(losses[::2], losses[1::2], strict=True))
    assert all(0 <= float(hits) <= 1 for *_, hits in found)
    assert out.count("prism.synergy") == 2
    assert [len(axes.lines) for figure in shown for axes in figure.axes] == [3]


def test_own_recbole_model(example, shown, tmp_path):
    out = example("plot_own_recbole_model.py", "--epochs", "1", "--output_dir", "out")
    assert "'ndcg@10': 0.0" in out
    assert (tmp_path / "out" / "adapter.safetensors").is_file()
    assert [len(axes.lines) for figure in shown for axes in figure.axes] == [2]


@pytest.mark.slow
def test_plot_mars_factors(example, shown):
    out = example("plot_mars_factors.py")
    assert len(shown) == 6  # the factors, losses, and four pictures of the run
    assert 0 < float(re.search(r"^ndcg@10 +([\d.]+)", out, re.MULTILINE).group(1)) < 1
    assert float(re.search(r"largest difference: (\S+)", out).group(1)) < 1e-6


@pytest.mark.slow
def test_plot_magnet_routing(example, shown):
    out = example("plot_magnet_routing.py")
    assert len(shown) == 7  # losses, the trigger, and five pictures of the two runs
    found = re.findall(r"^(no )?routing losses +recall@10 (\d\.\d+)", out, re.MULTILINE)
    assert len(found) == 2
    assert all(0 < float(recall) < 1 for _, recall in found)
    assert re.search(r"^behaviour complementary +0.10 +0.45 +0.45$", out, re.MULTILINE)


@pytest.mark.slow
def test_plot_micrec_new_users(example, shown):
    out = example("plot_micrec_new_users.py")
    assert len(shown) == 2
    assert int(re.search(r"both modes share (\d+) of 20", out).group(1)) >= 18
    routes = re.findall(r"^\S+ +(support|global|content) +\d+ templates", out, re.MULTILINE)
    assert routes == ["support", "global", "content"]
    found = re.search(r"^new_user +recall@20 model (\S+) +popularity (\S+)", out, re.MULTILINE)
    assert float(found.group(1)) > float(found.group(2))


@pytest.mark.slow
def test_plot_write_a_plugin(example, shown):
    out = example("plot_write_a_plugin.py")
    assert 0 < float(re.search(r"^ndcg@10 ([\d.]+) after", out, re.MULTILINE).group(1)) < 1
    assert len(shown) == 1


@pytest.mark.slow
def test_plot_features_from_images(example, shown):
    out = example("plot_features_from_images.py")
    pictures, items = re.search(r"^(\d+) of (\d+) items have a picture", out, re.MULTILINE).groups()
    assert f"{pictures} encoded, {int(items) - int(pictures)} without a picture" in out
    losses = [float(loss) for loss in re.findall(r"^epoch \d: loss ([\d.]+)", out, re.MULTILINE)]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 3
    assert len(shown) == 1


@pytest.mark.slow
def test_plot_compare(example, shown):
    out = example("plot_compare.py")
    assert len(re.findall(r"^\| (?:bare|ssr|ssr, shuffled) \| 2 \|", out, re.MULTILINE)) == 3
    assert "index.html results.parquet table.md table.tex" in out
    assert len(shown) == 2


@pytest.mark.slow
def test_plot_report(example):
    out = example("plot_report.py")
    characters, missing = re.search(r"^([\d,]+) characters, (\d+) things missing", out, re.MULTILINE).groups()
    assert int(characters.replace(",", "")) > 50_000
    assert missing == "0"


@pytest.mark.slow
def test_plot_serve(example, shown):
    pytest.importorskip("faiss")
    out = example("plot_serve.py")
    assert "the run's own list: True" in out
    assert len(shown) == 1


def test_every_page_of_the_gallery_has_its_place(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES.parent / "docs" / "_ext"))
    import gallery_order

    assert sorted(gallery_order.PAGES) == sorted(path.name for path in EXAMPLES.glob("plot_*.py"))
