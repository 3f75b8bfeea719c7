"""Named variants and declared ablations: each a row of the table, tested against what it is a variant of."""

from dataclasses import replace

import pytest

from recplug.adapters.compare.cells.plan import ready, rows, total
from recplug.adapters.compare.spec import ask, check_names, grown, remember, remembered
from recplug.adapters.compare.variants import PUBLISHED, published, read_variants
from recplug.plugins import registry
from recplug.plugins.errors import RecplugError


@pytest.fixture
def ablated(monkeypatch):
    """PRISM with two ablations of its own."""
    plugin = replace(registry.get("prism"), ablations={"w/o scale": {"scale": 0.0}, "half": {"scale": 0.5}})
    monkeypatch.setattr(
        "recplug.adapters.compare.spec.get", lambda name: plugin if name == "prism" else registry.get(name)
    )
    return plugin


def words(cells):
    return [" ".join(cell.arguments()[3:]) for cell in cells]


def test_an_ablation_is_the_plugin_with_its_settings(ablated):
    asked = ask("SASRec", "prism", "d", seeds=1, controls="none", ablations=True)
    bare, full, *ablations = ready(asked, {})
    assert words([bare, full]) == ["", "--plugin=prism"]
    assert [cell.control for cell in ablations] == ["w/o scale", "half"]
    assert words(ablations) == ["--plugin=prism --prism.scale=0.0", "--plugin=prism --prism.scale=0.5"]
    assert total(asked, {}) == 4
    assert len({cell.key for cell in ready(asked, {})}) == 4
    assert all(" " not in cell.key and "/" not in cell.key for cell in ablations)


def test_in_a_set_of_plugins_an_ablation_names_its_plugin(ablated):
    asked = ask("SASRec", "prism+mlp", "d", seeds=1, controls="none", ablations=True)
    assert [cell.control for cell in ready(asked, {})[2:]] == ["prism: w/o scale", "prism: half"]


def test_a_variant_may_change_the_backbone_and_the_plugins():
    variants = {
        "two layers": {"n_layers": 2},
        "an MLP": {"plugin": "mlp", "mlp.parameters": 90},
        "lists": {"topk": [5, 10]},
    }
    asked = ask("SASRec", "prism", "d", seeds=2, controls="none", settings={"epochs": 1}, variants=variants)
    found = [cell for cell in ready(asked, {}) if cell.seed == 2 and cell.control]
    assert words(found) == [
        "--plugin=prism --n_layers=2",
        "--plugin=mlp --mlp.parameters=90",
        "--plugin=prism --topk=5,10",
    ]


def test_a_variant_has_what_validation_chose_for_the_rest():
    asked = ask("SASRec", "prism", "d", seeds=1, controls="none", grid={"prism.scale": ["0.1", "1.0"]},
                variants={"v": {"n_layers": 2}})  # fmt: skip
    (_, best, others) = list(rows(asked, {}))[1]
    assert best is None
    assert others[0].waits


def test_every_variant_is_checked_before_anything_is_trained():
    def checked(**changes):
        return check_names(
            ask("SASRec", "prism", "amazon-scientific", seeds=1, controls="none", variants={"v": changes})
        )

    assert checked(**{"prism.scale": 0.5}).variants == {"v": {"prism.scale": 0.5}}
    for changes, word in (
        ({"prism.scael": 1}, "scale"),
        ({"n_layer": 2}, "n_layers"),
        ({"plugin": "prsm"}, "prism"),
        ({"seed": 2}, "comparison itself"),
        ({}, "changes nothing"),
    ):
        with pytest.raises(RecplugError, match=word):
            checked(**changes)
    with pytest.raises(RecplugError, match="no ablations"):
        check_names(ask("SASRec", "mlp", "amazon-scientific", seeds=1, ablations=True))


def test_the_folder_remembers_variants_and_takes_more(tmp_path):
    asked = ask("A", "prism", "d", seeds=1, variants={"v": {"prism.scale": 0.5}})
    remember(tmp_path, asked)
    assert remembered(tmp_path) == asked
    more = replace(asked, variants={**asked.variants, "w": {"n_layers": 1}})
    assert grown(asked, more, tmp_path) == more
    with pytest.raises(RecplugError, match="variant 'v'"):
        grown(more, replace(asked, variants={"v": {"prism.scale": 0.4}}), tmp_path)


def test_a_file_of_variants(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("models: SASRec\nplugins: prism\ndatasets: d\nseeds: 2\nvariants:\n  v: {prism.scale: 0.5}\n")
    assert read_variants(str(file)) == {
        "models": "SASRec", "plugins": "prism", "datasets": "d", "seeds": 2, "variants": {"v": {"prism.scale": 0.5}}
    }  # fmt: skip
    for text, word in (
        ("[1", "cannot read"),
        ("- 1", "expected"),
        ("seed: 1", "seeds"),
        ("variants: {v: 1}", "nested"),
    ):
        file.write_text(text)
        with pytest.raises(RecplugError, match=word) as raised:
            read_variants(str(file))
        assert "\n" not in str(raised.value)
    with pytest.raises(RecplugError, match="there are"):
        read_variants("recplug:nothing")


@pytest.mark.parametrize("name", published())
def test_a_published_file_is_a_comparison(name):
    found = read_variants(f"recplug:{name}")
    asked = ask(found.pop("models"), found.pop("plugins"), found.pop("datasets"), **found)
    assert len(ready(asked, {})) >= 2
    assert (PUBLISHED / f"{name}.yaml").read_text().startswith("# ")
