"""Content files that are shuffled, incomplete or over-complete, and content that is taken away on purpose."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from recplug.adapters.features import FeatureTable, dropped, load_modalities
from recplug.adapters.recbole import load, run
from recplug.plugins.errors import RecplugError

SMALL = {
    "hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1, "MAX_ITEM_LIST_LENGTH": 6, "train_batch_size": 256,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False, "show_progress": False,
}  # fmt: skip
SEQUENTIAL = ("SASRec", ["prism"])
HOSTS = {
    "SASRec + prism": SEQUENTIAL,
    "LightGCN + micrec": ("LightGCN", ["micrec"]),
    "LightGCN + magnet": ("LightGCN", ["magnet"]),
    "LightGCN + ssr": ("LightGCN", ["ssr"]),
}


def rewritten(tiny, folder, change):
    """The paths of both tables after ``change(features, tokens)``."""
    paths = {}
    for modality in ("image", "text"):
        table = FeatureTable.load(tiny / "tiny" / f"tiny.{modality}.safetensors")
        features, tokens = change(table.features, list(table.tokens))
        paths[modality] = folder / f"{modality}.safetensors"
        FeatureTable(features, tuple(tokens), modality).save(paths[modality])
    return {modality: str(path) for modality, path in paths.items()}


def permuted(features, tokens):
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(1))
    return features[order], [tokens[i] for i in order.tolist()]


def over_complete(features, tokens):
    strangers = [f"stranger{i}" for i in range(9)]
    return permuted(torch.cat([torch.full((9, features.shape[1]), 50.0), features]), [*strangers, *tokens])


def scores(model, batch):
    model.eval()
    with torch.no_grad():
        found = model.full_sort_predict(batch)
    return found.view(len(batch), -1)


def trained_step(model, train_batch):
    """One step of training, so that content has gone through the weights too."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = model.calculate_loss(train_batch)
    sum(loss if isinstance(loss, tuple) else (loss,)).backward()
    optimizer.step()


@pytest.mark.parametrize("case", ["SASRec + prism", "LightGCN + ssr", "LightGCN + micrec"])
def test_other_rows_and_another_order_give_the_same_scores(case, build, batch_of, tiny, tmp_path):
    name, plugins = HOSTS[case]
    found = {}
    for kind, change in (("as it is", lambda f, t: (f, t)), ("permuted", permuted), ("over-complete", over_complete)):
        folder = tmp_path / kind
        folder.mkdir()
        _, model, train, valid, _ = build(name, plugins, features=rewritten(tiny, folder, change))
        trained_step(model, batch_of(train))
        found[kind] = scores(model, batch_of(valid))
    assert torch.equal(found["permuted"], found["as it is"])
    assert torch.equal(found["over-complete"], found["as it is"])
    _, control, train, valid, _ = build(name, plugins, shuffle_features=True)
    trained_step(control, batch_of(train))
    assert not torch.equal(scores(control, batch_of(valid)), found["as it is"]), "content counts at all"


def test_an_incomplete_file_gives_the_same_scores_to_who_keeps_a_vector(build, batch_of, tiny, tmp_path):
    name, plugins = SEQUENTIAL
    _, whole, _, valid, _ = build(name, plugins)
    batch = batch_of(valid)[:4]
    tokens = valid.dataset.field2id_token["item_id"]
    asked = {tokens[i] for i in batch["item_id_list"].flatten().unique().tolist()}
    lost = sorted(set(tokens[1:]) - asked)[:8]
    assert len(lost) == 8, "items that no history of the batch holds"

    def incomplete(features, names):
        kept = [i for i, token in enumerate(names) if token not in lost]
        return features[kept], [names[i] for i in kept]

    _, partial, *_ = build(name, plugins, features=rewritten(tiny, tmp_path, incomplete))
    missing = torch.tensor([token in lost for token in tokens])
    before, after = scores(whole, batch), scores(partial, batch)
    assert torch.equal(after[:, ~missing], before[:, ~missing])
    assert not torch.isclose(after[:, missing], before[:, missing]).all()


@pytest.mark.parametrize("case", ["SASRec + prism", "LightGCN + magnet"])
def test_content_that_was_dropped_is_content_that_was_never_there(case, build, batch_of, tiny, tmp_path):
    """The study's model, and one whose files lack the same vectors: the same scores."""
    name, plugins = HOSTS[case]
    _, study, train, valid, _ = build(name, plugins, drop_features=0.4, drop_seed=2)
    trained_step(study, batch_of(train))
    tokens = valid.dataset.field2id_token["item_id"]
    modalities, _ = load_modalities(tiny / "tiny", "tiny", None, {}, tokens)
    held, _ = dropped(modalities, {}, tokens, 0.4, seed=2)

    def kept(features, names):
        present = held["image" if features.shape[1] == 12 else "text"].present
        rows = [row for row, token in enumerate(names) if present[list(tokens).index(token)]]
        assert len(rows) == len(names) - round(0.4 * len(names))
        return features[rows], [names[row] for row in rows]

    _, files, *_ = build(name, plugins, features=rewritten(tiny, tmp_path, kept))
    trained_step(files, batch_of(train))
    assert torch.equal(scores(study, batch_of(valid)), scores(files, batch_of(valid)))


def test_a_run_says_what_it_dropped_and_loads_the_same(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    config = {**SMALL, "epochs": 1, "drop_features": 0.5, "drop_features_together": True, "drop_seed": 3}
    caplog.set_level("INFO", logger="recplug")
    ended = run("SASRec", "tiny", ["prism"], config, data_path=tiny, output_dir="run")
    assert ended.result["drop_features"] == 0.5
    assert json.loads(Path("run/result.json").read_text())["drop_features"] == 0.5
    kept = yaml.safe_load(Path("run/config.yaml").read_text())
    assert {key: kept[key] for key in config if key.startswith("drop")} == {
        "drop_features": 0.5, "drop_features_together": True, "drop_seed": 3
    }  # fmt: skip
    told = "study: content vectors are taken from items (drop_features); left: image of 20, text of 17 items"
    assert told in "".join(file.read_text() for file in Path("run").glob("*.log"))
    loaded = load("run").model.recplug.plugins["prism"].content.present
    assert loaded.sum(dim=0).tolist() == [20, 17], "who has lost his content stays without it"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"drop_features": 1.0}, "drop_features=1.0 is no share"),
        ({"drop_features": -0.1}, "drop_features=-0.1 is no share"),
        ({"drop_features": True}, "drop_features=True is no share"),
        ({"drop_features": "half"}, "drop_features='half' is no share"),
        ({"drop_features": 0.5, "drop_seed": 0.5}, "drop_seed=0.5 is not a whole number"),
        ({"drop_features": 0.5, "drop_features_together": "yes!"}, "drop_features_together='yes!'"),
    ],
    ids=["one", "negative", "switch", "word", "seed", "together"],
)
def test_a_study_that_cannot_be_is_refused_in_one_line(more, words, tiny, tmp_path):
    with pytest.raises(RecplugError, match=words) as caught:
        run("SASRec", "tiny", ["prism"], {**SMALL, **more}, data_path=tiny, output_dir=tmp_path / "run")
    assert "\n" not in str(caught.value)
