"""Example users of real runs: histories, ranks and reasons against slow loops and the model itself."""

import json
import re
import shutil

import numpy as np
import pytest
import torch

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import load
from recplug.adapters.recbole.infer.scores import at_work
from recplug.adapters.report import explanations as reasons_room
from recplug.adapters.report import write_report
from recplug.adapters.report.catalogue import LONGEST, Catalogue, shortened
from recplug.adapters.report.example_users import examples
from recplug.adapters.report.explanations import Reasons
from recplug.adapters.report.run_contents import read_run
from recplug.adapters.report.side_by_side import columns
from recplug.plugins.errors import RecplugError


@pytest.fixture(scope="module")
def loaded(prism):
    return load(prism)


def catalogue_of(loaded, data, images=None):
    return Catalogue(data / "tiny", "tiny", loaded.item_tokens.tolist(), loaded.config, images)


@pytest.fixture(scope="module")
def asked(prism):
    """Examples of the run and of its baseline."""
    return examples(columns([read_run(prism)]), None, None, 4, None)


def test_users_stand_at_their_places(prism, asked):
    ranks = read_run(prism).ranks
    order = sorted(ranks, key=lambda pair: (ranks[pair], pair[0]))
    places = [round(share * (len(order) - 1)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert [example.user for example in asked.examples] == [order[place][0] for place in places]
    for example in asked.examples:
        ((item, found),) = example.held_out
        assert found == {
            "SASRec + prism": ranks[example.user, item.token],
            "bare SASRec": read_run(prism / "baseline").ranks[example.user, item.token],
        }
    assert asked.missing == []
    assert "sorted by where SASRec + prism ranks" in asked.chosen


def test_histories_end_before_what_is_held_out(data, asked):
    lines = [line.split("\t") for line in (data / "tiny" / "tiny.inter").read_text().splitlines()[1:]]
    for example in asked.examples:
        had = [item for user, item, _ in lines if user == example.user]
        assert [item.token for item in example.history] == had[:-1]
        assert [item.token for item, _ in example.held_out] == had[-1:]
        assert example.total == len(had) - 1


def test_the_lists_are_the_models_and_agree_with_the_ranks(asked, loaded):
    for example in asked.examples:
        for answer in example.answers:
            ((target, ranks),) = example.held_out
            at = [line.item.token for line in answer.items]
            assert [line.hit for line in answer.items] == [token == target.token for token in at]
            if ranks[answer.name] <= 4:
                assert at.index(target.token) == ranks[answer.name] - 1
            else:
                assert target.token not in at
        ours = next(answer for answer in example.answers if answer.name == "SASRec + prism")
        scores = loaded.scores([example.user], until="test")[0]
        for line in ours.items:
            assert line.score == pytest.approx(float(scores[loaded.known("items")[line.item.token]]))


def test_several_held_out_items_come_best_first(magnet):
    run = read_run(magnet)
    found = examples(columns([run]), None, None, 3, None)
    assert max(len(example.held_out) for example in found.examples) > 1
    for example in found.examples:
        ranks = [at["BPR + magnet"] for _, at in example.held_out]
        assert ranks == sorted(rank for (user, _), rank in run.ranks.items() if user == example.user)
        assert example.best == {"BPR + magnet": min(ranks)}
        hits = sum(line.hit for line in example.answers[0].items)
        assert hits == sum(rank <= 3 for rank in ranks)


def test_the_nearest_in_content(asked, data):
    """Against two loops over tokens, from the files."""
    tables = {name: FeatureTable.load(data / "tiny" / f"tiny.{name}.safetensors") for name in ("image", "text")}

    def cosine(table, one, other):
        rows = [table.tokens.index(token) if token in table.tokens else None for token in (one, other)]
        if None in rows:
            return None
        a, b = (table.features[row].double() for row in rows)
        return float(a @ b / (a.norm() * b.norm()))

    seen = 0
    for example in asked.examples:
        had = [item.token for item in example.history]
        for line in example.answers[-1].items:
            for told, about in line.why:
                name = told.about.removeprefix("nearest in ")
                near = {item: cosine(tables[name], line.item.token, item) for item in had}
                near = {item: value for item, value in near.items() if value is not None}
                assert about.token == told.token == max(near, key=near.get)
                others = [
                    max((c for item in had if (c := cosine(tables[name], other, item)) is not None), default=-2)
                    for other in tables[name].tokens
                    if other not in had
                ]
                share = np.mean([value < max(near.values()) - 1e-9 for value in others])
                found = re.fullmatch(r"\(cosine (-?[\d.]+), nearer than ([\d.]+) % of items\)", told.words)
                assert float(found[1]) == pytest.approx(max(near.values()), abs=0.0051)
                assert float(found[2]) == pytest.approx(100 * share, abs=0.51)
                seen += 1
    assert seen > 20


def test_an_item_without_vectors_has_no_neighbour(loaded, prism, data):
    found = Reasons(loaded, read_run(prism), catalogue_of(loaded, data))
    user = loaded.user_tokens[1]
    known = set(loaded.item_tokens)
    without, ours = next(t for t in ("i28", "i29") if t in known), "i3"
    assert found.of_items(user, [without], [ours])[0] == []
    assert [line.token for line in found.of_items(user, [ours], [without, "i4"])[0]] == ["i4", "i4"]
    assert found.of_items(user, [ours], [without]) == [[]]
    assert found.of_items(user, [ours], []) == [[]]


def test_prisms_gate_of_a_user(loaded, prism, data):
    """Against the formula, on the history that the model recommends by."""
    found = Reasons(loaded, read_run(prism), catalogue_of(loaded, data))
    user, module = loaded.user_tokens[7], loaded.model.recplug.augmentations()["prism"]
    lines = [line.split("\t") for line in (data / "tiny" / "tiny.inter").read_text().splitlines()[1:]]
    had = torch.tensor([loaded.known("items")[item] for owner, item, _ in lines if owner == user][:-1])
    with torch.no_grad():
        e, raw = module.experts(module.content(had)), loaded.model.recplug.item_table.raw
        weights = module.gate(module.gate.items(e) + module.gate.contexts(raw[had].mean(dim=0))).mean(dim=0)
    (line,) = found.of_user(user)
    assert [float(w) for w in re.findall(r" ([\d.]+) \(all", line.words)] == pytest.approx(weights.tolist(), abs=0.0051)
    assert "prism" in found.used
    shutil.copytree(prism, data.parent / "nothing_drawn", dirs_exist_ok=True)
    shutil.rmtree(data.parent / "nothing_drawn" / "diagnostics")
    (line,) = Reasons(loaded, read_run(data.parent / "nothing_drawn"), catalogue_of(loaded, data)).of_user(user)
    assert "(all" not in line.words


def test_magnets_experts_are_those_that_score(magnet, data):
    """The weights that are told are the routing's own, of the users and items that were asked about."""
    loaded = load(magnet)
    found = Reasons(loaded, read_run(magnet), catalogue_of(loaded, data))
    user, items = loaded.user_tokens[3], loaded.item_tokens[[2, 5, 9]].tolist()
    lines = found.of_items(user, items, [])
    module = loaded.model.recplug.augmentations()["magnet"]
    with at_work(loaded.model):
        loaded.model.recplug_encode()
        with loaded.model.recplug.serving():
            kept = module.sampled_routing(torch.full((3,), 3), torch.tensor([2, 5, 9])).kept
    for (line,), row in zip(lines, kept.tolist(), strict=True):
        assert line.about == "routed to"
        told = [(name, float(w)) for name, w in re.findall(r"([a-z ]+?) ([\d.]+)(?:, |$)", line.words)]
        best = sorted(row, reverse=True)[:2]
        assert [weight for _, weight in told] == pytest.approx(best, abs=0.0051)
        for name, weight in told:
            assert row[module.pool.names.index(name)] == pytest.approx(weight, abs=0.0051)


def test_shared_factors_by_rarity(loaded, prism, data):
    catalogue = catalogue_of(loaded, data)
    catalogue.factors = {
        "colour": {"i1": frozenset({"red"}), "i2": frozenset({"red"}), "i3": frozenset({"red"}), "i4": frozenset()},
        "use": {"i1": frozenset({"a", "b"}), "i2": frozenset({"b"}), "i3": frozenset({"c"})},
    }
    run = read_run(prism)
    run.result["plugins"].append("mars")
    (lines,) = Reasons(loaded, run, catalogue).of_items(loaded.user_tokens[1], ["i1"], ["i2", "i3", "i4"])
    assert lines[-1].about == "shares"
    assert lines[-1].words == "use b (1 of 3), colour red (2 of 3)"


def test_micrecs_routes(loaded, prism, data, monkeypatch):
    class Told:
        route, templates, neighbours = "content", 3, [("i4", 0.5), ("i5", 0.25), ("i6", 0.1)]

    found = Reasons(loaded, read_run(prism), catalogue_of(loaded, data))
    monkeypatch.setattr(reasons_room, "micrec_of", lambda model: object())
    monkeypatch.setattr(loaded, "explain", lambda token, side: Told(), raising=False)
    assert (
        found.of_user(loaded.user_tokens[1])[-1].words
        == "content; made from 3 templates; nearest: i4 (0.50), i5 (0.25)"
    )
    (lines,) = found.of_items(loaded.user_tokens[1], ["i29"], [])
    assert [line.about for line in lines] == ["MICRec's route"]

    def cannot(token, side):
        raise RecplugError("prism changes rows beside micrec")

    monkeypatch.setattr(loaded, "explain", cannot, raising=False)
    assert found.of_items(loaded.user_tokens[1], ["i29"], []) == [[]]


# -- the catalogue


def test_titles_and_pictures(loaded, data):
    catalogue = catalogue_of(loaded, data, str(data / "tiny" / "pictures"))
    assert catalogue.titles["i3"].endswith(" 3")
    assert max(map(len, catalogue.titles.values())) <= LONGEST
    assert catalogue.thumbnail("i2").startswith("data:image/jpeg;base64,")
    assert len(catalogue.thumbnail("i2")) < 4_000
    assert catalogue.thumbnail("i4") is None  # no picture, whatever its name
    assert catalogue.thumbnail("i1") is None
    by_column = catalogue_of(loaded, data, "picture")
    assert by_column.thumbnail("i2") == catalogue.thumbnail("i2")
    assert "i5" not in by_column.files  # an address, which is never fetched


def test_images_that_are_neither_folder_nor_column(prism, tmp_path):
    with pytest.raises(RecplugError, match=r"nor a column of tiny\.item; did you mean 'picture'"):
        write_report(prism, tmp_path / "a.html", images="pictrue")


@pytest.mark.parametrize("title", ["", " \n\t ", "x" * 10_000, "a " * 5_000, "é" * 101, "كرة " * 100], ids=range(6))
def test_titles_are_one_short_line(title):
    assert len(shortened(title)) <= LONGEST
    assert "\n" not in shortened(title)


# -- what cannot be asked


def test_an_unknown_user_is_refused_with_the_nearest_name(prism, tmp_path):
    with pytest.raises(RecplugError, match="does not know the user 'u77x'"):
        write_report(prism, tmp_path / "a.html", users=["u77x"])
    assert not (tmp_path / "a.html").exists()


def test_without_data_there_is_a_page(prism, data, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(prism, path)
    config = path / "config.yaml"
    config.write_text(config.read_text().replace(str(data / "tiny"), "/nowhere/tiny"))
    lines = write_report(path, tmp_path / "a.html")
    assert all(line.startswith("SASRec + prism: ") for line in lines)
    assert len([line for line in lines if "no example users, as" in line]) == 1
    assert any("config.yaml" in line for line in lines)  # its digest is another now
    assert 'id="users"' in (tmp_path / "a.html").read_text()  # the baseline, whose data are where they were
    shutil.rmtree(path / "baseline")
    write_report(path, tmp_path / "a.html", overwrite=True)
    assert 'id="users"' not in (tmp_path / "a.html").read_text()
    write_report(prism, tmp_path / "a.html", data_path=data, overwrite=True)
    assert 'id="users"' in (tmp_path / "a.html").read_text()


def test_without_a_checkpoint_and_of_a_model_that_is_not_recboles(prism, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(prism, path)
    shutil.rmtree(path / "baseline")
    (path / "checkpoint.pth").unlink()
    (line,) = write_report(path, tmp_path / "a.html")
    assert "has no checkpoint" in line
    shutil.copy(prism / "checkpoint.pth", path)
    result = json.loads((path / "result.json").read_text())
    del result["sha256"]
    (path / "result.json").write_text(json.dumps({**result, "model": "Mine"}))
    (line,) = write_report(path, tmp_path / "a.html", overwrite=True)
    assert "is a model of your own" in line


def test_no_users_opens_no_checkpoint(prism, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a checkpoint was opened"))
    assert write_report(prism, tmp_path / "a.html", examples=False) == []
