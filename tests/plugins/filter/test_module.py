"""The filter as an augmentation: standardised beside a backbone, alone in its place, fitted by validation only."""

import copy
import json

import pytest
import torch

from recplug.plugins import Augmentation, Batch, get
from recplug.plugins.filter import fitting
from recplug.plugins.settings import parse_settings
from recplug.plugins.testing import CHECKS, Case, cases

PLUGIN = get("filter")
SETTINGS = [{"weight": 1.0}, {"alone": True}]
CASES = [case for settings in SETTINGS for case in cases(PLUGIN, settings)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case} {case.settings.weight}")
def test_contract(case, check):
    CHECKS[check](case)


def host_of(name, **settings):
    return Case(PLUGIN, parse_settings("filter", PLUGIN.settings, settings), name).build().eval()


def module_of(host):
    return host.chain.augmentations()["filter"]


def filtered(host, users, **shown):
    """f and r of users."""
    with torch.no_grad(), host.chain.asking() as step, step.showing(Batch(**shown)):
        return module_of(host).filtered(users, step)


BATCH = Case(PLUGIN, PLUGIN.settings(), "mean-ce").batch()


@pytest.mark.parametrize("name", ["mean-ce", "mask-ce", "nodes-bpr", "decoder-sum"])
def test_both_parts_are_standardised_for_each_user(name):
    bare, host = host_of(name, weight=0.0), host_of(name, weight=2.0)
    base, found = bare.scores(BATCH), host.scores(BATCH)
    shown = {} if host.backbone.family == "graph" else {"sequence": BATCH.sequence, "lengths": BATCH.lengths}
    f, r = filtered(host, BATCH.users, **shown)
    for row in range(len(base)):
        b, own = base[row], f[row]
        z = (own - own[1:].mean()) / own[1:].std(correction=0)
        wanted = b + 2.0 * b[1:].std(correction=0) * z
        new = r[row] == 0
        torch.testing.assert_close(found[row][new][1:], wanted[new][1:], rtol=1e-4, atol=1e-5)
        assert torch.equal(found[row][~new], b[~new])  # the history keeps the backbone's own level


@pytest.mark.parametrize("name", ["gru-bpr", "graph-bpr"])
def test_alone_no_notice_is_taken_of_the_backbone(name):
    host = host_of(name, alone=True)
    module = module_of(host)
    assert module.untrained
    assert module.replaces
    before = host.scores(BATCH)
    with torch.no_grad():
        for parameter in host.backbone.parameters():
            parameter.mul_(-3.0)
    assert torch.equal(host.scores(BATCH), before)


def test_a_history_counts_by_recency():
    host = host_of("mean-ce", weight=1.0, recency=0.5)
    sequence = torch.tensor([[4, 9, 4, 0], [2, 0, 0, 0]])
    _, r = filtered(host, torch.tensor([1, 2]), sequence=sequence, lengths=torch.tensor([3, 1]))
    wanted = torch.zeros_like(r)
    wanted[0, 9], wanted[0, 4], wanted[1, 2] = 0.5, 1.25, 1.0
    assert torch.equal(r, wanted)


def test_on_a_graph_a_user_is_the_training_row_and_a_stranger_the_history_that_is_shown():
    host = host_of("nodes-bpr", alone=True)
    users = torch.tensor([3, 13])
    f, r = filtered(host, users)
    case = Case(PLUGIN, PLUGIN.settings(), "nodes-bpr")
    items = set(case.edges()[1][case.edges()[0] == 3].tolist())
    assert set(r[0].nonzero().squeeze(1).tolist()) == items
    assert not r[1].any()
    again, _ = filtered(host, torch.tensor([0]), sequence=torch.tensor([sorted(items)]))
    torch.testing.assert_close(again[0], f[0])


def test_someone_without_a_history_gets_what_is_popular():
    host = host_of("nodes-bpr", alone=True)
    (scores,) = host.scores(Batch(users=torch.tensor([13])))
    degree = module_of(host).form.item_degree
    assert torch.equal(
        scores[1:].argsort(descending=True, stable=True), degree[1:].argsort(descending=True, stable=True)
    )


def test_blocks_of_columns_change_nothing(monkeypatch):
    host = host_of("nodes-bpr", weight=1.0)
    whole = host.scores(BATCH)
    monkeypatch.setattr("recplug.plugins.filter.module.COLUMNS", 3)
    torch.testing.assert_close(host.scores(BATCH), whole)


# -- fitting


class Wishes:
    """A validation that likes given numbers best."""

    key = "data"

    def __init__(self, module, **wanted):
        self.module, self.wanted, self.asked = module, wanted, []

    def __call__(self, users=None):
        self.asked.append(users)
        have = {**self.module.get_numbers(), "weight": float(self.module.weight)}
        return -sum(abs(have[name] - value) for name, value in self.wanted.items())


@pytest.mark.parametrize(("wanted", "found"), [(0.0, 0.0), (0.3, 0.25), (1.1, 1.0), (7.0, 8.0), (900.0, 64.0)])
def test_the_weight_is_the_best_of_doubling_ones_and_may_be_none(wanted, found):
    module = module_of(host_of("mean-ce"))
    assert float(module.weight) == 0.0
    assert module.after_training(Wishes(module, weight=wanted)) == {"weight": found}
    assert float(module.weight) == found
    assert dict(module.curves["weight"])[0.0] == -wanted


def test_a_weight_that_was_given_is_not_fitted():
    module = module_of(host_of("mean-ce", weight=3.0))
    assert module.after_training(Wishes(module, weight=0.0)) == {}
    assert float(module.weight) == 3.0


def test_exponents_are_searched_one_by_one_and_kept_under_the_datas_digest(tmp_path):
    module = module_of(host_of("mean-ce", fit=True, alone=True))
    module.cache = tmp_path
    validate = Wishes(module, popularity=0.2, recency=0.8, heat=1.2)
    found = module.after_training(validate)
    assert found == {**module.get_numbers(), "popularity": 0.2, "recency": 0.8, "heat": 1.2}
    assert validate.asked[-1] is None  # at the end everyone is asked
    again = copy.deepcopy(module)
    again.reset_parameters()
    other = Wishes(again, popularity=0.6)
    assert again.after_training(other) == found
    assert other.asked == []
    other.key = "other data"
    assert again.after_training(other)["popularity"] == 0.6
    for file in tmp_path.iterdir():
        assert json.loads(file.read_text())["numbers"]
        file.write_text("{")  # damaged: searched and written anew
    assert again.after_training(other)["popularity"] == 0.6


def test_the_defaults_stay_where_everyone_likes_them_better():
    module = module_of(host_of("nodes-bpr", fit=True, alone=True))
    start = module.get_numbers()

    class Sample(Wishes):
        def __call__(self, users=None):
            score = super().__call__(users)
            return score if users else -score

    assert module.after_training(Sample(module, popularity=0.0)) == start


@pytest.mark.parametrize("name", ["mean-ce", "nodes-bpr"])
def test_a_search_shares_products_and_finds_what_a_whole_computation_finds(name):
    host = host_of(name, alone=True)
    module = module_of(host)
    kept = fitting.Kept()
    for change in ({}, {"popularity": 0.1}, {"users": 0.9}, {"heat": 0.2}, {"history": 0.5}, {"recency": 0.9}, {}):
        module.set_numbers(change)
        module.kept = None
        plain = host.scores(BATCH)
        module.kept = kept
        torch.testing.assert_close(host.scores(BATCH), plain)


def test_what_was_fitted_is_saved():
    module = module_of(host_of("mean-ce"))
    module.after_training(Wishes(module, weight=2.0))
    module.set_numbers({"users": 0.9})
    other = module_of(host_of("mean-ce"))
    other.load_state_dict(module.state_dict())
    assert float(other.weight) == 2.0
    assert other.get_numbers() == module.get_numbers()
    assert "weight=2" in repr(other)


def test_the_curves_are_pictures():
    module = module_of(host_of("mean-ce"))
    assert module.diagnostics() == {}
    module.after_training(Wishes(module, weight=2.0))
    panel = module.diagnostics()["weight"]
    assert panel.rows == ("0", "0.25", "0.5", "1", "2", "4")
    assert int(panel.values.argmax()) == 4


def test_it_acts_in_the_ranking_half_alone():
    assert get("filter").requirements(PLUGIN.settings()).halves == {"ranking"}
    host = host_of("graph-bpr", weight=4.0)
    assert not host.chain.scoring("training")
    assert host.chain.by_whole_rows()
    assert isinstance(module_of(host), Augmentation)
