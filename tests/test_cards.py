"""Reproduction cards: their numbers are those of the published tables, their verdicts follow, and the toys come out."""

import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "cards.py"
NAMES = sorted(path.stem for path in (ROOT / "benchmarks" / "cards").glob("*.yaml"))
FULL = [name for name in NAMES if not name.startswith("toy-")]
MODULES = ["itemgraph", "magnet", "mars", "micrec", "prism", "ssr"]
HEADS = {"ndcg@10": "N@10", "ndcg@20": "N@20", "recall@20": "R@20"}


@pytest.fixture
def cards(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import cards

    return cards


def a_card(cards, **more):
    own, bare = {"mean": 0.2, "deviation": 0.01, "seeds": 3}, {"mean": 0.1, "deviation": 0.02, "seeds": 5}
    rows = {"PRISM": {"plugins": ["prism"], **own}, "bare": bare}
    common = {
        "name": "card",
        "about": "A card.",
        "module": "prism",
        "size": "full",
        "model": "BPR",
        "metric": "ndcg@10",
    }
    data = {"dataset": "amazon-scientific", "fingerprint": "0" * 64, "source": "here", "command": "none", "seeds": 3}
    return cards.Card.model_validate({**common, **data, "rows": rows, **more})


# -- the files


def test_every_module_has_a_full_card_and_a_toy(cards):
    for size in ("full", "toy"):
        assert sorted({card.module for card in cards.every().values() if card.size == size}) == MODULES


def tables(path):
    """Each line of a Markdown file's tables, by column."""
    found, header = [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = None
        elif header is None:
            header = cells
        elif set(line) != {"|", "-"}:
            found.append(dict(zip(header, cells, strict=False)))
    return found


@pytest.mark.parametrize("name", FULL)
def test_numbers_are_those_of_the_published_table(cards, name):
    card = cards.every()[name]
    file = ROOT / card.source
    assert card.command in file.read_text() + "".join(
        path.read_text() for path in (ROOT / "docs/methods").glob("*.rst")
    )
    for label, row in card.rows.items():
        printed = f"{row.mean:.4f}" + ("" if row.deviation is None else f" ± {row.deviation:.4f}")
        (line,) = [
            line
            for line in tables(file)
            if line["variant"] == label
            and line.get("backbone", card.model) == card.model
            and line.get("target", card.dataset) == card.dataset
            and line.get(HEADS[card.metric]) == printed
        ]
        assert line["seeds"] == str(row.seeds)


@pytest.mark.parametrize("name", NAMES)
def test_settings_are_known(cards, name):
    from recplug.adapters.recbole import augment
    from recplug.adapters.recbole.config.host_config import model_class
    from recplug.plugins import get

    card = cards.every()[name]
    for row in card.rows.values():
        own = {key: value for key, value in {**card.settings, **row.settings}.items() if "." in key}
        given = {plugin: {} for plugin in row.plugins}
        for key, value in own.items():
            plugin, _, setting = key.partition(".")
            given[plugin][setting] = value
        for plugin, values in given.items():
            get(plugin).settings(**values)
        augment(model_class(card.model), row.plugins, given)


# -- verdicts


def test_the_tolerance_is_that_of_two_means(cards):
    card = a_card(cards)
    pooled = math.sqrt((2 * 0.01**2 + 4 * 0.02**2) / 6)
    assert card.tolerance(card.rows["PRISM"], 1) == pytest.approx(3 * pooled * math.sqrt(1 / 3 + 1))
    assert card.tolerance(card.rows["bare"], 5) == pytest.approx(3 * pooled * math.sqrt(2 / 5))
    rows = {
        "PRISM": {"plugins": ["prism"], "mean": 0.2, "seeds": 1},
        "bare": {"mean": 0.1, "deviation": 0.02, "seeds": 2},
    }
    one = a_card(cards, rows=rows)
    assert one.tolerance(one.rows["PRISM"], 1) == pytest.approx(3 * 0.02 * math.sqrt(2))


def test_a_row_is_off_where_its_mean_is(cards, monkeypatch, tmp_path):
    card = a_card(cards)
    edge = card.tolerance(card.rows["PRISM"], 3)
    for shift, wanted in ((0.0, 0), (edge, 0), (-edge, 0), (edge + 1e-3, 1), (-edge - 1e-3, 1)):
        asked = []

        def fake(card, name, seed, output, data_path, shift=shift, asked=asked):
            asked.append((name, seed))
            mean = card.rows[name].mean + (shift if name == "PRISM" else 0) + (seed - 2) * 0.01  # spread, same mean
            return {"data_fingerprint": card.fingerprint, "test_result": {card.metric: mean}}

        monkeypatch.setattr(cards, "trained", fake)
        off = cards.check(card, tmp_path, None, card.seeds)
        assert asked == [(name, seed) for name in card.rows for seed in (1, 2, 3)]
        assert len(off) == wanted
        if wanted:
            got = statistics.fmean(card.rows["PRISM"].mean + shift + place * 0.01 for place in (-1, 0, 1))
            assert off == [f"off: PRISM: got {got:.4f}, expected 0.2000 ± {edge:.4f}"]


def test_other_data_cannot_run(cards, monkeypatch, tmp_path):
    other = {"data_fingerprint": "1" * 64, "test_result": {"ndcg@10": 0.2}}
    monkeypatch.setattr(cards, "trained", lambda *given: other)
    with pytest.raises(cards.CannotRun, match="fingerprint 111111111111, the card's data 000000000000"):
        cards.check(a_card(cards), tmp_path, None, 1)


def test_missing_data_are_named_with_the_command_that_makes_them(cards, tmp_path):
    with pytest.raises(cards.CannotRun, match=r"no amazon-baby/ in --data_path .*recplug data get amazon-baby"):
        cards.check(cards.every()["ssr-lightgcn"], tmp_path, tmp_path, 1)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metrik": "ndcg@10"}, "metrik"),
        ({"module": "ssr"}, "the first row is not ssr's"),
        ({"fingerprint": "12"}, "fingerprint"),
        ({"rows": {}}, "rows"),
        ({"seeds": 0}, "seeds"),
    ],
    ids=["unknown_key", "other_module", "fingerprint", "no_rows", "no_seeds"],
)
def test_a_wrong_card_is_refused_in_a_line(cards, tmp_path, change, why):
    content = yaml.safe_load((cards.CARDS / "prism-sasrec.yaml").read_text())
    file = tmp_path / "card.yaml"
    file.write_text(yaml.safe_dump({**content, **change}))
    with pytest.raises(cards.CannotRun) as caught:
        cards.read(file)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_without_any_spread_are_refused(cards, tmp_path):
    rows = {"PRISM": {"plugins": ["prism"], "mean": 0.2, "seeds": 1}, "bare": {"mean": 0.1, "seeds": 1}}
    with pytest.raises(ValueError, match="nothing can be judged"):
        a_card(cards, rows=rows)


# -- real runs


def script(folder, *arguments):
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)


def test_an_unknown_card_is_an_error_of_a_line(tmp_path):
    done = script(tmp_path, "prism-sasrek")
    assert done.returncode == 2
    assert "no card prism-sasrek; choose of: best-baby" in done.stderr


def test_a_toy_comes_out_and_is_not_trained_twice(tmp_path):
    first = script(tmp_path, "toy-ssr")
    assert (first.returncode, first.stdout.splitlines()[-1]) == (0, "toy-ssr: as expected"), first.stdout + first.stderr
    results = sorted((tmp_path / "runs" / "cards" / "toy-ssr").glob("*/result.json"))
    times = [path.stat().st_mtime_ns for path in results]
    assert len(times) == 2
    unfinished = results[0]  # as a kill would have left it
    unfinished.write_text(json.dumps({"status": "running"}))
    again = script(tmp_path, "toy-ssr")
    assert again.stdout == first.stdout
    assert json.loads(unfinished.read_text())["status"] == "finished"
    assert results[1].stat().st_mtime_ns == times[1]


@pytest.mark.slow
def test_every_toy_comes_out(tmp_path):
    done = script(tmp_path, "--toy")
    verdicts = re.findall(r"^toy-(\w+): (.+)$", done.stdout, re.MULTILINE)
    assert verdicts == [(name, "as expected") for name in MODULES], done.stdout + done.stderr
    assert done.returncode == 0


def test_the_documented_command_of_micrec_is_the_tables(cards):
    """One configuration: what the page tells to run is what the card, and so the table, was made with."""
    card = cards.every()["micrec-lightgcn"]
    page = (ROOT / "docs" / "methods" / "micrec.rst").read_text(encoding="utf-8")
    words = next(line for line in page.splitlines() if "run_recbole" in line).replace("=", " ").split()
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given.pop("--model") == card.model
    assert given.pop("--plugin") == card.rows["MICRec"].plugins[0]
    assert given.pop("--dataset") == card.dataset
    assert given.pop("--micrec.source") == card.rows["MICRec"].settings["micrec.source"]
    found = {"embedding_size": 64, "learning_rate": 0.001, "train_batch_size": 2048}  # RecBole's for LightGCN
    found |= {key[2:]: type(card.settings[key[2:]])(value) for key, value in given.items()}
    assert found == card.settings
