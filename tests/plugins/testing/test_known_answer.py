"""The planted data hold what they promise."""

import pytest
import torch
from sklearn.linear_model import LinearRegression

from recplug.plugins.testing import planted_modalities


def explained(content, signal):
    """Share of a signal's variance that a linear map of the content explains, on items left out of the fit."""
    half = len(content) // 2
    model = LinearRegression().fit(content[:half], signal[:half])
    residual = ((signal[half:] - torch.tensor(model.predict(content[half:]))) ** 2).sum()
    return float(1 - residual / ((signal[half:] - signal[half:].mean(dim=0)) ** 2).sum())


@pytest.mark.parametrize("names", [("image", "text"), ("image", "text", "audio")])
def test_signals_are_where_they_were_planted(names):
    data = planted_modalities(names=names, n_items=600)
    for name in names:
        content = data.modalities[name].values[1:]
        assert explained(content, data.signals["redundant"][1:]) > 0.95
        assert explained(content, data.signals[f"unique_{name}"][1:]) > 0.95
        others = [other for other in names if other != name]
        assert all(explained(content, data.signals[f"unique_{other}"][1:]) < 0.05 for other in others)
        # Not even squares and products of one modality's own dimensions know the synergistic signal.
        pairs = (content.unsqueeze(2) * content.unsqueeze(1)).flatten(1)[:, :: len(names)]
        assert explained(pairs, data.signals["synergistic"][1:]) < 0.05


def test_synergy_is_the_product_of_the_signs():
    data = planted_modalities(n_items=600, noise=0.0)
    image, text = (data.modalities[name].values[1:] for name in ("image", "text"))
    # Every product of one dimension of each: the synergistic signal is a linear map of them.
    products = (image.unsqueeze(2) * text.unsqueeze(1)).flatten(1)  # [n, 144]
    assert explained(products, data.signals["synergistic"][1:]) > 0.99


def test_users_choose_what_they_like():
    data = planted_modalities(n_items=100, n_users=300, length=12)
    for name, signal in data.signals.items():
        history = signal[data.test.sequence].sum(dim=1)  # [n_users, k]
        chosen = (history * signal[data.test.positives]).sum(dim=-1)
        drawn = (history * signal[data.test.negatives]).sum(dim=-1)
        difference = chosen - drawn  # [n_users]
        assert difference.mean() > 4 * difference.std() / len(difference) ** 0.5, name


def test_batches_are_padded_prefixes():
    data = planted_modalities(n_items=50, n_users=20, length=6)
    assert data.n_users == 21
    assert data.n_items == 51
    assert all((m.values[0] == 0).all() and not m.present[0] for m in data.modalities.values())
    sizes = 0
    for batch in data.batches(16, generator=torch.Generator().manual_seed(0)):
        assert torch.equal((batch.sequence > 0).sum(dim=1), batch.lengths)
        whole = data.test.sequence[batch.users - 1]  # [b, 5]
        places = torch.arange(5)
        assert torch.equal(batch.sequence, whole * (places < batch.lengths.unsqueeze(1)))
        assert torch.equal(batch.positives, whole[torch.arange(len(whole)), batch.lengths])
        sizes += len(batch.users)
    assert sizes == 20 * 4  # beginnings of 1 to 4 items; the last item is the test's


def test_seeds():
    first, again, other = (planted_modalities(n_items=30, n_users=10, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train.sequence, again.train.sequence)
    assert not torch.equal(first.modalities["image"].values, other.modalities["image"].values)
