"""Plugins that ask each other for something, on a plain model: no step is lost, no row and no memory mixed up."""

import pytest
import torch
from torch import nn

from recplug.plugins import Augmentation, Batch, Context, Modality
from recplug.plugins.chain import Chain
from recplug.plugins.prism import Prism, PrismSettings
from recplug.plugins.table import ItemTable

N, D = 12, 8
BATCH = Batch(positives=torch.tensor([7, 2]), sequence=torch.tensor([[3, 2], [2, 0]]), lengths=torch.tensor([2, 1]))
EDGES = torch.tensor([[1, 1, 2, 2], [3, 2, 2, 5]])


class Shifted(Augmentation):
    def tables(self, users, items):
        return users, items + 1.0


class AsksTwice(Augmentation):
    def items(self, rows, ids, *, role, sequence):
        return rows + self.step.candidates().mean() + self.step.table("items").mean()


class InputOnce(Augmentation):
    """An item has one row as input and another one as candidate; only the first is declared."""

    by_item = frozenset({"input"})

    def items(self, rows, ids, *, role, sequence):
        return rows + (1.0 if role == "input" else 100.0)


class Same(Augmentation):
    """Uses a key that another plugin might use too."""

    def items(self, rows, ids, *, role, sequence):
        return rows + self.step.lookup("experts", ids, lambda r: torch.ones(len(r), D))[0]


def prism(**settings):
    torch.manual_seed(1)
    present = torch.arange(N) > 0
    modalities = [Modality(name, torch.randn(N, 6) * present.unsqueeze(1), present) for name in ("image", "text")]
    return Prism(modalities=modalities, width=D, settings=PrismSettings(**settings))


def host(**augmentations):
    torch.manual_seed(0)
    model = nn.Module()
    model.table = nn.Embedding(N, D, padding_idx=0)
    context = Context("Toy", "sequential", 5, N, {"items": N}, {"items": D}, EDGES)
    model.chain = Chain(augmentations, context)
    ItemTable.graft(model.table, model.chain)
    return model


def test_diagnostics_ask_for_a_table_that_another_plugin_makes():
    model = host(shifted=Shifted(), prism=prism()).eval()
    with torch.no_grad(), model.chain.serving():
        assert "size" in model.chain.augmentations()["prism"].diagnostics()
    assert model.chain.augmentations()["prism"].step is None


def test_a_plugin_keeps_its_step_after_it_has_asked_for_a_table():
    class Candidates(Augmentation):
        roles = frozenset({"candidate"})

        def items(self, rows, ids, *, role, sequence):
            return rows * 2

    class Input(AsksTwice):
        roles = frozenset({"input"})

    model = host(candidates=Candidates(), input=Input()).eval()
    raw = model.table.raw.detach()
    with torch.no_grad():
        rows = model.table(torch.tensor([[3, 2]]))
    weight = torch.cat([raw[:1], 2 * raw[1:]])
    torch.testing.assert_close(rows[0], raw[[3, 2]] + weight.mean() + raw.mean())


@pytest.mark.parametrize("training", [True, False])
def test_rows_that_differ_by_role_are_not_taken_for_one_table(training):
    model = host(input=InputOnce()).train(training)
    with torch.set_grad_enabled(training), model.chain.step(BATCH, whole_table=True):
        rows, weight = model.table(BATCH.sequence), model.table.weight
    torch.testing.assert_close(rows[0], model.table.raw[[3, 2]] + 1)
    torch.testing.assert_close(weight[1:], model.table.raw[1:] + 100)


@pytest.mark.parametrize("names", [("prism", "same"), ("same", "prism")])
def test_prism_remembers_under_keys_of_its_own(names):
    fusing = {"prism": prism(fusion="item").eval(), "same": Same()}
    model = host(**{name: fusing[name] for name in names}).eval()
    ids = torch.arange(1, N)
    with torch.no_grad():
        expected = model.table.raw[1:]
        for name in names:
            expected = expected + 1 if name == "same" else fusing["prism"](expected, ids)
        torch.testing.assert_close(model.table.weight[1:], expected)


def test_an_evaluation_in_another_precision_is_not_remembered():
    model = host(prism=prism()).eval()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model.table.weight.clone()
        fine = model.table.weight.clone()
        model.chain.forget()
        assert torch.equal(fine, model.table.weight)
    assert not torch.equal(fine, coarse)


def test_a_model_that_was_made_in_inference_mode_can_be_asked():
    with torch.inference_mode():
        model = host(prism=prism()).eval()
        assert model.table.weight.isfinite().all()


def test_a_host_may_ask_for_items_beyond_its_batch():
    model = host(prism=prism(candidates="id"))
    strangers = torch.tensor([[9, 8], [10, 0]])
    with model.chain.step(BATCH), pytest.raises(IndexError):
        model.table(strangers)
    with model.chain.step(BATCH, beyond_batch=True):
        model.table(BATCH.sequence)
        assert model.table(strangers).isfinite().all()


def test_modalities_may_be_named_on_a_command_line():
    assert PrismSettings(modalities="image, text").modalities == ("image", "text")
    assert PrismSettings(modalities="image").modalities == ("image",)
