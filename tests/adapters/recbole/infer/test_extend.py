"""New users and items of a loaded run: routes, bits that stay, both modes, and what they are measured by."""

import json
import shutil

import numpy as np
import pytest
import torch

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import load, run
from recplug.adapters.recbole.finished.new_nodes import as_markdown, evaluate_new
from recplug.plugins.errors import RecplugError

SMALL = {
    "hidden_size": 16,
    "inner_size": 32,
    "embedding_size": 16,
    "n_layers": 2,
    "MAX_ITEM_LIST_LENGTH": 8,
    "train_batch_size": 64,
    "epochs": 2,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "seed": 5,
    "use_gpu": False,
    "show_progress": False,
}
GRAPH = ("LightGCN", "BPR", "NGCF")
SEQUENTIAL = ("SASRec", "GRU4Rec")
MORE = {"NGCF": {"hidden_size_list": [16, 8]}}
SUPPORT = [("u1", "n1"), ("u2", "n1"), ("u3", "n2"), ("u2", "n1")]


@pytest.fixture(scope="module")
def directory(tiny, tmp_path_factory):
    """``directory(model, plugins)``: a run's; each is trained once."""
    made = {}

    def train(model, plugins="micrec"):
        if (model, plugins) not in made:
            made[model, plugins] = tmp_path_factory.mktemp("runs") / "run"
            config = {**SMALL, **MORE.get(model, {})}
            run(model, "tiny", plugins, config, data_path=tiny, output_dir=made[model, plugins])
        return made[model, plugins]

    return train


def vectors(n=3):
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(n, 6, generator=generator)
    text[-1] = 0  # no vector
    return {"image": torch.randn(n, 12, generator=generator).numpy(), "text": text}


def best(loaded, user, **more):
    return loaded.recommend([user], k=8, **more).lists()[user]


@pytest.mark.parametrize("model", [*GRAPH, *SEQUENTIAL])
def test_scores_of_what_was_there_stay_to_the_last_bit(directory, model):
    loaded = load(directory(model))
    users = [f"u{n}" for n in range(20)]
    before = loaded.scores(users)
    loaded.extend_items(["n1", "n2", "n3"], vectors(), support=SUPPORT)
    if model == "NGCF":
        with pytest.raises(RecplugError, match="mode='exact'"):
            loaded.scores(users)
        assert loaded.scores(users, mode="exact").shape == (20, 44)
        return
    after = loaded.scores(users)
    assert after.shape == (20, 44)
    assert torch.equal(after[:, :41], before)
    loaded.extend_users(["new"], [("new", "i3"), ("new", "n1")])
    assert torch.equal(loaded.scores(users)[:, :41], before)
    assert torch.equal(loaded.scores(["u4", "new", "u7"])[[0, 2]][:, :41], loaded.scores(["u4", "u7"])[:, :41])
    assert set(best(loaded, "new", mask_history=False)) - set(best(loaded, "new")) <= {"i3", "n1"}
    assert loaded.history("new") == ["i3", "n1"]
    assert not {"i3", "n1"} & set(loaded.recommend(["new"], k=99).lists()["new"])


@pytest.mark.parametrize("model", [*GRAPH, *SEQUENTIAL])
@pytest.mark.parametrize("mode", ["fold_in", "exact"])
def test_someone_new_has_one_answer_whichever_way_one_asks(directory, model, mode):
    if (model, mode) == ("NGCF", "fold_in"):
        pytest.skip("not LightGCN's rule")
    had = ["i3", "i7", "i12"]
    one, other = load(directory(model)), load(directory(model))
    by_history = one.recommend(histories={"new": had}, k=10, mode=mode).table()
    other.extend_users(["new"], [("new", item) for item in had])
    added = other.recommend(["new"], k=10, mode=mode).table()
    assert by_history["item"].equals(added["item"])
    np.testing.assert_allclose(by_history["score"], added["score"], rtol=1e-4)
    # And the run is as it was: what was asked about is not kept.
    assert one.scores(["u1"], mode=mode).shape == (1, 41)


@pytest.mark.parametrize("model", ["LightGCN", "BPR"])
def test_both_modes_agree_where_nothing_is_new(directory, model):
    loaded = load(directory(model))
    users = [f"u{n}" for n in range(20)]
    exact, folded = (loaded.scores(users, mode=mode)[:, 1:] for mode in ("exact", "fold_in"))
    torch.testing.assert_close(exact, folded, rtol=1e-4, atol=1e-6)


def test_ngcf_propagates_on_the_larger_graph_as_on_its_own(directory):
    loaded = load(directory("NGCF"))
    users = [f"u{n}" for n in range(20)]
    exact, folded = (loaded.scores(users, mode=mode)[:, 1:] for mode in ("exact", "fold_in"))
    torch.testing.assert_close(exact, folded, rtol=1e-4, atol=1e-6)
    loaded.extend_items(["far"], {}, support=[("u30", "far")])
    assert not torch.equal(loaded.scores(users, mode="exact")[:, 1:41], exact)
    assert loaded.model.n_items == 41  # as before
    assert loaded.model.norm_adj_matrix.shape == (102, 102)


@pytest.mark.parametrize("model", ["LightGCN", "BPR", "SASRec"])
def test_a_new_item_with_features_alone_is_recommended(directory, tiny, model):
    """Whose content is that of an item which someone would be recommended: beside it, and before all strange ones."""
    loaded = load(directory(model))
    top = best(loaded, "u5", mask_history=True)[0]
    tables = {name: FeatureTable.load(tiny / "tiny" / f"tiny.{name}.safetensors") for name in ("image", "text")}
    given = {name: table.features[table.tokens.index(top)][None].float() for name, table in tables.items()}
    loaded.extend_items(["twin"], given)
    assert loaded.explain("twin").route == "content"
    assert loaded.explain("twin").neighbours[0] == (top, pytest.approx(1, abs=1e-5))
    ranked = loaded.recommend(["u5"], k=99).lists()["u5"]
    assert "twin" in ranked[:15]
    only = loaded.recommend(["u5"], k=99, candidates=["twin", top]).lists()["u5"]
    assert sorted(only) == sorted(["twin", top])


def test_explanations_name_tokens_and_routes(directory):
    loaded = load(directory("LightGCN"))
    assert loaded.explain("u1").route == "warm"
    warm = loaded.explain("i2")
    assert warm.route == "warm"
    assert warm.templates > 0
    assert all(token.startswith("i") and -1 <= like <= 1.001 for token, like in warm.neighbours)
    loaded.extend_items(["n1", "n2", "n3"], vectors(), support=SUPPORT)
    loaded.extend_items(["blank"], {})
    loaded.extend_users(["new", "none"], [("new", "i3")])
    told = {token: loaded.explain(token) for token in ("n1", "n2", "n3", "blank", "new", "none")}
    assert [each.route for each in told.values()] == ["support", "support", "content", "global", "support", "global"]
    assert [each.templates for each in told.values()] == [2, 1, 0, 0, 1, 0]
    loaded.extend_items(["u9"], {})
    with pytest.raises(RecplugError, match="both a user and an item; say side="):
        loaded.explain("u9")
    assert loaded.explain("u9", side="users").route == "warm"
    with pytest.raises(RecplugError, match="no user or item of the run"):
        loaded.explain("what")


def test_a_history_may_name_a_new_item_on_a_sequential_host(directory):
    loaded = load(directory("SASRec"))
    loaded.extend_items(["n1", "n2", "n3"], vectors(), support=SUPPORT)
    with_new = loaded.recommend(histories={"a": ["i1", "n1"], "b": ["i1"], "c": ["i1", "i2"]}, k=9).lists()
    assert loaded.recommend(histories={"b": ["i1"]}, k=9).lists()["b"] == with_new["b"]
    assert "n1" not in with_new["a"]
    with pytest.raises(RecplugError, match="reads the history each time"):
        loaded.explain("u1")


def test_wrong_newcomers_are_one_line(directory, tiny):
    loaded = load(directory("LightGCN"))
    loaded.extend_items(["n0"], {})
    cases = [
        (loaded.extend_items, (["i1"],), "'i1' is one of the run's items already"),
        (loaded.extend_items, (["n0"],), "'n0' is one of the run's items already"),
        (loaded.extend_items, (["a", "a"],), "'a' is named 2 times"),
        (loaded.extend_items, ("abc",), "new items are a list of tokens"),
        (loaded.extend_items, (["a"], {"audio": np.ones((1, 3))}), "trained with the content .*not with audio"),
        (loaded.extend_items, (["a"], {"text": np.ones((2, 6))}), r"finite numbers \[1, d\]"),
        (loaded.extend_items, (["a"], {"text": np.ones((1, 5))}), r"text of new items is \[1, 5\]"),
        (loaded.extend_items, (["a"], {}, [("u1", "b")]), "the item 'b', which is not among the new ones"),
        (loaded.extend_items, (["a"], {}, [("x", "a")]), "does not know the user 'x'"),
        (loaded.extend_users, (["u1"],), "'u1' is one of the run's users already"),
        (loaded.extend_users, (["x"], [("x", "i99")]), "does not know the item 'i99'"),
    ]
    for ask, arguments, message in cases:
        with pytest.raises(RecplugError, match=message) as error:
            ask(*arguments)
        assert "\n" not in str(error.value)
    assert loaded.scores(["u1"]).shape == (1, 42)  # nothing was added half
    bare = load(directory("BPR", ""))
    with pytest.raises(RecplugError, match="nothing in this run makes new users or items"):
        bare.extend_users(["x"], [("x", "i1")])
    both = load(directory("LightGCN", "micrec,ssr"))
    with pytest.raises(RecplugError, match="ssr changes rows beside micrec"):
        both.extend_items(["x"], {})


def test_features_are_looked_up_by_token(directory, tiny):
    loaded = load(directory("LightGCN"))
    table = FeatureTable(torch.ones(2, 6), ("m", "n"), "text")
    loaded.extend_items(["n", "o"], {"text": table})
    assert [loaded.explain(token).route for token in ("n", "o")] == ["content", "global"]


@pytest.mark.parametrize("linked_by", ["tokens", "file"])
def test_someone_known_in_the_other_domain_alone_goes_across(tiny, tmp_path, linked_by):
    shutil.copytree(tiny / "tiny", tmp_path / "tiny")
    (tmp_path / "other").mkdir()
    prefix = "" if linked_by == "tokens" else "o-"
    people = [f"{prefix}u{n}" for n in range(40)] + [f"{prefix}abroad"]
    rows = [(user, f"k{(at * 3 + step) % 25}", step) for at, user in enumerate(people) for step in range(6)]
    lines = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)]
    (tmp_path / "other" / "other.inter").write_text("\n".join(lines) + "\n")
    config = {**SMALL, "micrec": {"source": "other"}}
    if linked_by == "file":
        file = tmp_path / "links.tsv"
        file.write_text("source\ttarget\n" + "".join(f"{each}\t{each[2:]}\n" for each in people))
        config["micrec"]["links"] = str(file)
    run("LightGCN", "tiny", "micrec", config, data_path=tmp_path, output_dir=tmp_path / "run")
    loaded = load(tmp_path / "run")
    before = loaded.scores(["u1", "u2"])
    loaded.extend_users(["abroad", "nobody", "both"], [("both", "i3")])
    told = {token: loaded.explain(token) for token in ("abroad", "nobody", "both")}
    assert [each.route for each in told.values()] == ["cross_domain", "global", "support"]
    near = [token for token, _ in told["abroad"].neighbours]
    assert len(near) == 3
    assert set(near) <= {f"u{n}" for n in range(40)}
    inductive = loaded._new.inductive
    rows = [loaded.known("users")[token] for token in near]
    vector = inductive.nodes["users"][rows].mean(dim=0)
    torch.testing.assert_close(inductive.vectors("users")[loaded.known("users")["abroad"]], vector)
    assert torch.equal(loaded.scores(["u1", "u2"]), before)
    # By name alone, too; and nobody's ranking is everyone's whom nobody knows.
    asked = loaded.recommend(histories={"abroad": [], "none": []}, k=5).lists()
    assert asked["none"] == loaded.recommend(["nobody"], k=5).lists()["nobody"]
    assert loaded.recommend(["abroad"], k=5).lists()["abroad"] == best(loaded, "abroad")[:5]
    assert "cross" in loaded.explain("abroad").route
    assert loaded.scores(["abroad"], mode="exact").shape == (1, 41)
    query = [("abroad", "i5", "new_user"), ("nobody", "i6", "new_user")]
    report = evaluate_new(load(tmp_path / "run"), [], query)["support"]
    assert {name: row["users"] for name, row in report.items()} == {"0": 2, "0, known in the second domain": 1}
    other = tmp_path / "other" / "other.inter"
    other.write_text(other.read_text() + f"{prefix}u1\tk1\t9\n")
    with pytest.raises(RecplugError, match="the data of the second domain, other, are not those of the run"):
        load(tmp_path / "run")


@pytest.mark.parametrize("model", ["LightGCN", "SASRec"])
def test_the_evaluation_is_what_one_counts_by_hand(directory, model):
    support = [
        ("ann", "i3", "new_user"), ("ann", "i7", "new_user"), ("bob", "i1", "new_user"),
        ("u1", "n1", "new_item"), ("u2", "n1", "new_item"), ("ann", "n1", "new_both"),
    ]  # fmt: skip
    query = [
        ("ann", "i8", "new_user"), ("ann", "i11", "new_user"), ("bob", "i5", "new_user"),
        ("u5", "n1", "new_item"), ("u6", "n2", "cold_item"), ("bob", "n1", "new_both"),
    ]  # fmt: skip
    loaded = load(directory(model))
    report = evaluate_new(loaded, support, query, k=10)
    assert (report["new_users"], report["new_items"]) == (2, 2)
    assert {group: row["queries"] for group, row in report["groups"].items()} == {
        "cold_item": 1, "new_both": 1, "new_item": 1, "new_user": 3,
    }  # fmt: skip

    again = load(directory(model))
    again.extend_items(["n1", "n2"], support=[("u1", "n1"), ("u2", "n1")])
    told = {"ann": ["i3", "i7", "n1"], "bob": ["i1"]}
    if model == "LightGCN":
        again.extend_users(["ann", "bob"], [(user, item) for user, had in told.items() for item in had])
        lists = again.recommend(["ann", "bob", "u5", "u6"], k=10).lists()
    else:
        lists = again.recommend(["u5", "u6"], histories=told, k=10).lists()
    recalls, gains = [], []
    for user in ("ann", "bob"):
        wanted = [item for who, item, group in query if (who, group) == (user, "new_user")]
        places = [lists[user].index(item) + 1 for item in wanted if item in lists[user]]
        recalls.append(len(places) / len(wanted))
        ideal = sum(1 / np.log2(at + 1) for at in range(1, len(wanted) + 1))
        gains.append(sum(1 / np.log2(at + 1) for at in places) / ideal)
    found = report["groups"]["new_user"]["ranked"]["model"]
    assert found["recall"] == pytest.approx(np.mean(recalls))
    assert found["ndcg"] == pytest.approx(np.mean(gains))
    assert report["groups"]["new_item"]["ranked"]["model"]["recall"] == float("n1" in lists["u5"])
    assert report["groups"]["cold_item"]["ranked"]["model"]["recall"] == float("n2" in lists["u6"])

    assert list(report["support"]) == (["0", "1", "2"] if model == "LightGCN" else ["1", "2"])
    assert [row["users"] for row in report["support"].values()][-2:] == [2, 1]
    assert report["degree"]["0"]["queries"] == 1
    assert report["degree"]["0"]["within"]["model"]["recall"] == 1.0
    if model == "LightGCN":
        nothing = report["support"]["0"]["ranked"]
        assert nothing["model"] == pytest.approx(nothing["global"])
    text = as_markdown(report)
    assert "| new_user | 2 | 3 |" in text
    json.dumps(report)


def test_an_evaluation_of_nothing_new_is_refused(directory):
    loaded = load(directory("LightGCN"))
    for query, message in (([("u1", "i1", "x")], "both of which training has seen"), ([], "query is empty")):
        with pytest.raises(RecplugError, match=message):
            evaluate_new(loaded, [], query)
    with pytest.raises(RecplugError, match="asks for 'i1' of 'n1', which the support shows"):
        evaluate_new(loaded, [("n1", "i1", "x")], [("n1", "i1", "x")])


@pytest.mark.parametrize("mode", ["fold_in", "exact"])
def test_a_place_in_a_list_is_no_user_of_the_run(directory, mode):
    """A data set may name its users by numbers, as many do; and so does a list of histories."""
    loaded = load(directory("LightGCN"))
    history = ["i1", "i5", "i9"]
    asked = {"k": 5, "mode": mode}
    strangers = loaded.recommend(histories={"one": history, "two": history}, **asked).table()["score"].to_pylist()
    loaded._known_ids["users"] |= {"0": 3, "1": 4}
    listed = loaded.recommend(histories=[history, history], **asked).table()
    assert listed["user"].to_pylist() == ["0"] * 5 + ["1"] * 5
    assert listed["score"].to_pylist() == pytest.approx(strangers)
    named = loaded.recommend(histories={"0": history, "1": history}, **asked).table()["score"].to_pylist()
    assert named != pytest.approx(strangers)
