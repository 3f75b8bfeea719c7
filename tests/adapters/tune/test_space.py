"""What is searched: every declaration is one that its setting takes, and what people type is checked."""

import pytest

from recplug.adapters.tune.spec import ask
from recplug.adapters.tune.study import _distribution
from recplug.plugins import PluginSettings, Range, RecplugError, available, setting
from recplug.plugins.search import is_whole, search_text, searches
from recplug.plugins.settings import parse_settings

PLUGINS = sorted(available())


@pytest.mark.parametrize("name", PLUGINS)
def test_every_end_and_choice_builds_settings_and_ranges_hold_the_default(name):
    model = available()[name].settings
    found = searches(model)
    assert len(found) >= {"mlp": 2, "itemgraph": 3}.get(name, 5)
    for key, search in found.items():
        default = model.model_fields[key].get_default(call_default_factory=True)
        if isinstance(search, Range):
            for value in (search.low, search.high, default):
                assert search.low <= getattr(parse_settings(name, model, {key: value}), key) <= search.high
        else:
            assert [getattr(parse_settings(name, model, {key: value}), key) for value in search] == search
            assert default in search or default == "auto"


@pytest.mark.parametrize("name", PLUGINS)
def test_any_draw_of_all_declared_at_once_is_valid(name):
    """Choices that exclude each other would waste trials."""
    from optuna.samplers import RandomSampler
    from optuna.study import create_study

    from recplug.adapters.tune.space import Dimension

    model = available()[name].settings
    drawn = {
        key: _distribution(Dimension(key, search, is_whole(model.model_fields[key].annotation)))
        for key, search in searches(model).items()
    }
    study = create_study(sampler=RandomSampler(seed=1))
    for _ in range(200):
        values = study.ask(drawn).params
        parsed = parse_settings(name, model, values)
        assert {key: getattr(parsed, key) for key in values} == values


@pytest.mark.parametrize(
    ("search", "why"),
    [
        (Range(0.5, 3.0), "3.0 of search"),
        ([0.5, 2.5], "2.5 of search"),
        ((0.1, 0.2), "neither a list"),
        ([], "neither a list"),
    ],
    ids=["range", "choice", "tuple", "empty"],
)
def test_a_wrong_declaration_is_refused_when_the_class_is_made(search, why):
    with pytest.raises(RecplugError, match=why):

        class Wrong(PluginSettings):
            weight: float = setting(1.0, "A weight.", search=search, ge=0, le=2)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, 1.0)], ids=["empty", "falling", "no logarithm"])
def test_a_range_has_to_be_one(ends):
    with pytest.raises(RecplugError):
        Range(*ends, log=True)


def test_a_range_of_whole_numbers_refuses_others():
    with pytest.raises(RecplugError, match=r"Whole\.depth"):

        class Whole(PluginSettings):
            depth: int = setting(1, "How deep.", search=Range(0.5, 3))


def test_for_readers():
    assert search_text(Range(1e-4, 0.1, log=True)) == "0.0001 .. 0.1, log"
    assert search_text(["a", 2]) == "a | 2"


def keys(model="SASRec", plugins="prism", **options):
    return {each.key: each for each in ask(model, plugins, **options).dimensions}


def test_the_space_is_what_plugins_and_the_table_declare_of_this_model():
    found = keys()
    assert set(found) == {f"prism.{key}" for key in searches(available()["prism"].settings)} | {
        "learning_rate", "weight_decay", "hidden_dropout_prob", "attn_dropout_prob"
    }  # fmt: skip
    assert found["attn_dropout_prob"].default == 0.5  # SASRec's own
    bare = keys("LightGCN", "none", dataset="amazon-baby-small")
    assert set(bare) == {"learning_rate", "weight_decay", "reg_weight"}
    assert "learning_rate" not in keys(fixed={"learning_rate": 0.003})


def test_naming_narrows_and_adds():
    assert set(keys(words=["prism.scale,hidden_size"])) == {"prism.scale", "hidden_size"}
    found = keys(words=["prism.margin=0.1..0.4", "prism.loss_items=128..512:log", "n_layers=1..3", "all"])
    assert found["prism.margin"].search == Range(0.1, 0.4)
    assert not found["prism.margin"].whole
    assert found["prism.loss_items"].search == Range(128, 512, log=True)
    assert found["prism.loss_items"].whole
    assert found["n_layers"].whole
    assert "prism.scale" in found


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["prism.scal"], "did you mean 'scale'"),
        (["learning_rat"], "did you mean 'learning_rate'"),
        (["num_layers"], "SASRec has no key 'num_layers'"),
        (["mars.views=auto,off"], "add it with --plugin mars"),
        (["prism.gate_dropout=0..1"], r"prism\.gate_dropout=1: Input should be less than 1"),
        (["prism.hidden=0..5"], r"prism\.hidden=0"),
        (["prism.hidden=1.5..5"], "no whole number"),
        (["learning_rate=-1..1"], "below its least value"),
        (["learning_rate=much..more"], "both ends are numbers"),
        (["learning_rate=1..0.1"], "does not rise"),
        (["weight_decay=0..1:log"], "no logarithm"),
        (["prism.scale=0.1"], "fix one value with --fixed"),
        (["prism.fusion=item,item"], "no choice"),
        (["prism.fusion"], "nothing is declared"),
        (["prism.scale", "prism.scale=0.1..1"], "given twice"),
        (["dataset=a,b"], "cannot be searched"),
        (["seed=1,2"], "'seed' cannot be searched: trials would not be comparable"),
        (["valid_metric=Recall@10,Recall@20"], "'valid_metric' cannot be searched: trials would not"),
        (["=1..2"], "not understood"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_searched_is_told_in_a_line(words, why):
    with pytest.raises(RecplugError, match=why) as caught:
        keys(words=words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"pruner": "mean"}, "there are: median"),
        ({"fixed": {"learning_rate": 1}, "words": ["learning_rate"]}, "fixed at 1 and in --space"),
        ({"fixed": {"dataset": "x"}}, "search itself"),
        ({"fixed": {"mars.views": "off"}}, "add it with --plugin mars"),
        ({"fixed": {"prism.scal": 1}}, "did you mean 'scale'"),
        ({"fixed": {"epoch": 1}}, "did you mean 'epochs'"),
        ({"seed": -1}, "seed=-1"),
        ({"dataset": "amazon-scientifi"}, "amazon-scientific"),
    ],
    ids=["sampler", "pruner", "both", "ours", "plugin", "setting", "key", "seed", "dataset"],
)
def test_what_does_not_fit_is_told_in_a_line(options, why):
    with pytest.raises(RecplugError, match=why) as caught:
        keys(**options)
    assert "\n" not in str(caught.value)
