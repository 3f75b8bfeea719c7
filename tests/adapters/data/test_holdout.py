"""Held-out users and items: the shares, what never meets what, and that RecBole reads the rest alone."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recplug.adapters import data
from recplug.adapters.data import Draw, bundled, check
from recplug.adapters.data.held_out_nodes import groups, last_apart
from recplug.adapters.data.holdout import Log, hold_out
from recplug.plugins.errors import RecplugError


def told(action, *words):
    with pytest.raises(RecplugError) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line


def lines(path):
    return [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]


@st.composite
def logs(draw):
    """Sets of random pairs, with or without time, a ready-made split, or a leave-out rule; and a draw."""
    n_users, n_items = draw(st.integers(12, 40)), draw(st.integers(8, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(150, 500))
    pairs = np.stack([rng.integers(0, n_users, n), rng.integers(0, n_items, n)], axis=1)
    if draw(st.booleans()):
        pairs = np.unique(pairs, axis=0)
    user, item = (np.unique(column, return_inverse=True)[1] for column in pairs.T)
    kind = draw(st.sampled_from(["plain", "time", "leave", "parts"]))
    log = Log(
        user,
        item,
        time=rng.permutation(len(user)).astype(float) if kind in ("time", "leave") else None,
        part=rng.choice(3, len(user), p=[0.8, 0.1, 0.1]) if kind == "parts" else None,
        last_out=2 if kind == "leave" else 0,
    )
    share = st.floats(0.05, 0.4)
    wanted = Draw(
        new_users=draw(share),
        new_items=draw(share),
        cold_items=draw(st.sampled_from([0.0, 0.25, 1.0])),
        support=draw(st.sampled_from([0.0, 0.3, 0.5, 0.9])),
        seed=draw(st.integers(0, 99)),
    )
    return log, wanted


def held_out(log, draw):
    """The draw, unless it leaves nothing to train on."""
    try:
        return hold_out(log, draw)
    except RecplugError:
        assume(False)


@settings(max_examples=150, deadline=None)
@given(logs())
def test_every_rule_of_the_protocol_holds(case):
    log, draw = case
    held = held_out(log, draw)
    user_new, item_new = held.new_users[log.user], held.new_items[log.item]
    # Known is seen x seen, and nothing else is; support, query and known share no interaction.
    np.testing.assert_array_equal(held.known, ~user_new & ~item_new)
    assert not (held.known & (held.support | held.query)).any()
    assert not (held.support & held.query).any()
    # At least the share that was asked for is new.
    assert held.new_users.sum() >= round(draw.new_users * len(held.new_users))
    assert held.new_items.sum() >= round(draw.new_items * len(held.new_items))
    # Whoever is known trained.
    trains = log.training(held.known)
    assert not (trains & ~held.known).any()
    assert set(np.flatnonzero(~held.new_users)) == set(log.user[trains])
    assert set(np.flatnonzero(~held.new_items)) == set(log.item[trains])
    # Of nobody new more than the share is shown.
    for new, owner in ((held.new_users, log.user), (held.new_items, log.item)):
        shown, all_ = (
            np.bincount(owner[mask], minlength=len(new)) for mask in (held.support, np.ones_like(held.known))
        )
        assert (shown <= draw.support * all_ + 1e-6)[new].all()
    # What is left of the new ones is asked for, except repeats of what was shown.
    pairs = list(zip(log.user.tolist(), log.item.tolist(), strict=True))
    shown = {pair for pair, mask in zip(pairs, held.support, strict=True) if mask}
    for pair, known, support, query in zip(pairs, held.known, held.support, held.query, strict=True):
        assert known or support or query or pair in shown
        assert not (query and pair in shown)
    # Groups, slowly.
    supported = {item for _, item in shown}
    for (user, item), group, known in zip(pairs, held.group, held.known, strict=True):
        user_is, item_is = held.new_users[user], held.new_items[item]
        if known:
            assert group == ""
        elif item_is and item not in supported:
            assert group == "cold_item"
        else:
            assert (
                group
                == {(True, True): "new_both", (True, False): "new_user", (False, True): "new_item"}[
                    (bool(user_is), bool(item_is))
                ]
            )
    assert sum(held.counts().values()) == held.query.sum()


@settings(max_examples=30, deadline=None)
@given(logs())
def test_a_new_users_support_comes_before_his_other_purchases_of_known_items(case):
    log, draw = case
    assume(log.time is not None)
    held = held_out(log, draw)
    plain = held.new_users[log.user] & ~held.new_items[log.item]
    for user in np.flatnonzero(held.new_users):
        own = plain & (log.user == user)
        shown, asked = log.time[own & held.support], log.time[own & held.query & (held.group == "new_user")]
        if len(shown) and len(asked):
            assert shown.max() < asked.min()


@settings(max_examples=30, deadline=None)
@given(logs())
def test_the_draw_depends_on_seed_and_tokens_alone(case):
    log, draw = case
    shuffle = np.random.default_rng(1).permutation(len(log.user))
    other = Log(log.user[shuffle], log.item[shuffle], None if log.time is None else log.time[shuffle],
                None if log.part is None else log.part[shuffle], log.last_out)  # fmt: skip
    first, again, moved = held_out(log, draw), held_out(log, draw), held_out(other, draw)
    for name in ("known", "support", "query", "group", "new_users"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    np.testing.assert_array_equal(first.new_users, moved.new_users)
    np.testing.assert_array_equal(first.new_items, moved.new_items)


def test_the_last_two_of_each_user_do_not_train():
    log = Log(
        np.array([0, 0, 0, 0, 1, 1, 2]), np.arange(7), time=np.array([3.0, 1.0, 2.0, 0.0, 5.0, 4.0, 1.0]), last_out=2
    )
    everything = np.ones(7, dtype=bool)
    assert log.training(everything).nonzero()[0].tolist() == [1, 3, 5]  # one interaction alone is no sequence
    assert log.training(np.array([1, 1, 1, 0, 1, 1, 1], dtype=bool)).nonzero()[0].tolist() == [1, 5]


def test_groups_refuse_what_is_known():
    yes, no = np.array([True]), np.array([False])
    told(lambda: groups(no, no, no), "in no group")
    told(lambda: groups(yes, no, yes), "in no group")
    assert groups(yes, yes, yes).tolist() == ["cold_item"]


def test_the_last_of_a_history_is_asked_for():
    rows = [
        ["u", "a", "5", "x"],
        ["u", "b", "10", "x"],
        ["v", "b", "0", "y"],
        ["u", "c", "7", "x"],
        ["v", "z", "1", "y"],
    ]
    support, query = last_apart(rows, {"a", "b"})
    assert support == [
        ["u", "a", "5", "x", "new_user"],
        ["u", "c", "7", "x", "new_both"],
        ["v", "b", "0", "y", "new_user"],
    ]
    assert query == [["u", "b", "10", "x", "new_user"], ["v", "z", "1", "y", "cold_item"]]


@pytest.mark.parametrize(
    ("key", "value"), [("new_users", 1.0), ("support", 1.0), ("new_items", -0.1), ("cold_items", 1.1)]
)
def test_shares_are_shares(key, value):
    told(lambda: Draw(**{key: value}), key, str(value), "share in [0, 1")


def test_something_is_held_out_and_something_is_left():
    told(lambda: Draw(new_users=0.0, new_items=0.0), "both 0")
    log = Log(np.array([0, 1]), np.array([0, 1]), part=np.array([0, 1]))
    told(lambda: hold_out(log, Draw(new_users=0.5, new_items=0.5)), "nothing to train on remains")


@pytest.mark.parametrize("name", ["food-small", "amazon-baby-small", "amazon-scientific"])
def test_files_hold_every_interaction_once(name, tmp_path):
    target, _ = data.holdout(name, tmp_path, Draw(seed=5))
    source = bundled()[name].directory
    read = [path.name for path in source.glob("*.inter") if path.name.split(".")[-2] not in ("support", "query")]
    story = json.loads((target / f"{name}.holdout.json").read_text())
    new_users, new_items = set(story["new_users"]), set(story["new_items"])
    whole, found = Counter(), Counter()
    for file in read:
        header, *rows = lines(source / file)
        whole.update(map(tuple, rows))
        header_, *kept = lines(target / file)
        assert header_ == header
        assert kept == [row for row in rows if row[0] not in new_users and row[1] not in new_items]
        found.update(map(tuple, kept))
    for part in ("support", "query"):
        header_, *rows = lines(target / f"{name}.{part}.inter")
        assert header_ == [*header, "group:token"]
        assert all(row[0] in new_users or row[1] in new_items for row in rows)
        found.update(tuple(row[:-1]) for row in rows)
    assert found <= whole
    shown = {tuple(row[:2]) for row in lines(target / f"{name}.support.inter")[1:]}
    assert all(row[:2] in shown for row in whole - found)  # bought again; only amazon-scientific has such
    assert bool(whole - found) == (name == "amazon-scientific")
    assert {path.suffix for path in target.iterdir()} >= {".yaml", ".safetensors", ".item", ".md", ".json"}
    assert check(target)[0].startswith(f"{name}: ")
    again, _ = data.holdout(name, tmp_path / "again", Draw(seed=5))
    for path in target.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


@pytest.mark.parametrize(
    ("model", "name"), [("BPR", "food-small"), ("SASRec", "food-small"), ("BPR", "amazon-baby-small")]
)
def test_recbole_knows_nobody_new_and_trains_everybody_else(model, name, tmp_path):
    from recplug.adapters.recbole.compat.remedies import recbole_compat
    from recplug.adapters.recbole.config.host_config import make_config
    from recplug.adapters.recbole.data.interactions import interactions

    target, _ = data.holdout(name, tmp_path, Draw(seed=1))
    story = json.loads((target / f"{name}.holdout.json").read_text())
    overrides = {"data_path": str(tmp_path), "state": "ERROR", "use_gpu": False}
    with recbole_compat():
        from recbole.data import create_dataset, data_preparation

        config = make_config(model, name, [target / f"{name}.yaml"], overrides)
        dataset = create_dataset(config)
        train = data_preparation(config, dataset)[0]._dataset
    users, items = (set(dataset.field2id_token[field][1:]) for field in ("user_id", "item_id"))
    assert not users & set(story["new_users"])
    assert not items & set(story["new_items"])
    trained = interactions(train)
    assert len(trained[0].unique()) == len(users)
    assert len(trained[1].unique()) == len(items)


def test_a_pair_names_the_new_users_whom_the_other_knows(tmp_path):
    first, _ = data.holdout("food-small", tmp_path, Draw(seed=2))
    second, _ = data.holdout("kitchen-small", tmp_path, Draw(seed=2), pair="food-small")
    told(lambda: data.holdout("food-small", tmp_path / "x", Draw(), pair="ml-100k"), "--pair")
    stories = [json.loads(next(folder.glob("*.holdout.json")).read_text()) for folder in (first, second)]
    known = {row[0] for row in lines(first / "food-small.inter")[1:]}  # not the whole set: it lies beside
    expected = sorted(set(stories[1]["new_users"]) & known)
    assert stories[1]["known_in"] == {"dataset": "food-small", "users": expected}
    assert 40 < len(expected) < 200
    assert "known_in" not in stories[0]


def test_a_held_out_set_can_be_held_out_again(tmp_path):
    first, _ = data.holdout("food-small", tmp_path / "a", Draw(seed=1))
    second, said = data.holdout("food-small", tmp_path / "b", Draw(seed=2), data_path=tmp_path / "a")
    assert json.loads((second / "food-small.holdout.json").read_text())["draw"]["seed"] == 2
    assert said[-1] == "the new users that food-small had before are left out"
    apart = [{row[0] for row in lines(folder / "food-small.inter")[1:]} for folder in (first, second)]
    assert apart[1] < apart[0]
    assert check(second)[0].startswith("food-small: ")


def test_tables_of_another_folder_come_along(tmp_path):
    target, _ = data.holdout("amazon-scientific-full", tmp_path, Draw())
    assert (tmp_path / "amazon-scientific" / "amazon-scientific.text.safetensors").is_file()
    assert any("items have a vector" in line for line in check(target))


def test_settings_that_give_ids_to_new_items_are_refused(tmp_path):
    folder = data.get("food-small", tmp_path)
    text = (folder / "food-small.yaml").read_text()
    (folder / "food-small.yaml").write_text(text.replace("load_col:\n", "load_col:\n  item: [item_id, title]\n"))
    told(
        lambda: data.holdout("food-small", tmp_path / "held", Draw(), data_path=tmp_path), "food-small.item", "load_col"
    )
    assert not (tmp_path / "held" / "food-small").exists()
