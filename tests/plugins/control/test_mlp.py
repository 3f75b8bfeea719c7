"""The control ``mlp``: as large as it is told to be, and nothing without content. The contract is everyone's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recplug.plugins.contract import Modality
from recplug.plugins.control import ContentMlp
from recplug.plugins.control.module import sizes
from recplug.plugins.errors import RecplugError


def made(parameters, widths=(40, 30), d=16, n=50):
    generator = torch.Generator().manual_seed(0)
    modalities = []
    for place, width in enumerate(widths):
        present = torch.ones(n, dtype=torch.bool)
        present[[0, 3 + place, 9]] = False
        values = torch.randn(n, width, generator=generator) * present.unsqueeze(1)
        modalities.append(Modality(f"m{place}", values, present))
    return ContentMlp(modalities=modalities, width=d, n_rows=n, parameters=parameters)


@given(st.integers(300, 2_000_000), st.integers(1, 6000), st.integers(2, 128))
def test_the_number_of_parameters_is_met(parameters, content, width):
    hidden, columns = sizes(parameters, content=content, width=width)
    assert hidden >= 1
    assert 1 <= columns <= content
    found = hidden * (columns + 1 + width) + width
    if parameters >= 2 * width + 2 and content > 1:
        # Half a column of every unit; where there is less content than that, half a unit.
        assert abs(found - parameters) <= max(hidden / 2, content + 1 + width)
    if parameters >= 20 * width:
        assert abs(found - parameters) <= 0.05 * parameters or columns == content


@pytest.mark.parametrize("parameters", [500, 1_500, 5_000, 77_777])
def test_what_is_trained_is_as_large(parameters):
    found = sum(p.numel() for p in made(parameters).parameters())
    assert abs(found - parameters) <= 0.03 * parameters


def test_an_item_without_content_keeps_its_row_and_others_do_not():
    mlp = made(2_000)
    ids, rows = torch.arange(50), torch.randn(50, 16)
    changed = (mlp.items(rows, ids, role="input", sequence=None) != rows).any(dim=1)
    expected = torch.ones(50, dtype=torch.bool)
    expected[[0, 9]] = False  # items 3 and 4 lack one modality of two
    assert torch.equal(changed, expected)


def test_it_is_the_formula():
    mlp = made(77_777)  # enough for all content: no projection
    first, second = mlp.layers[0], mlp.layers[2]
    ids, rows = torch.tensor([7, 12]), torch.randn(2, 16)
    x = mlp.content.rows[ids]
    assert torch.allclose(x.norm(dim=1), torch.full((2,), 70**0.5), atol=1e-4)
    hidden = torch.nn.functional.gelu(x @ first.weight.T + first.bias)
    expected = rows + hidden @ second.weight.T + second.bias
    assert torch.allclose(mlp.items(rows, ids, role="candidate", sequence=None), expected, atol=1e-5)


def test_without_content_it_says_so():
    with pytest.raises(RecplugError, match="needs content"):
        ContentMlp(modalities=[], width=8, n_rows=5, parameters=100)


def test_it_learns_what_content_says():
    """Labels that content decides are fitted, and with shuffled content they are not so for new items."""
    torch.manual_seed(0)
    mlp = made(4_000, n=400)
    target = mlp.content.rows[:, :1].sign()  # of the first column
    ids, zero = torch.arange(1, 400), torch.zeros(399, 16)
    train, test = ids < 300, ids >= 300
    optimiser = torch.optim.Adam(mlp.parameters(), lr=1e-2)
    for _ in range(100):
        optimiser.zero_grad()
        score = mlp.items(zero, ids, role="input", sequence=None)[:, 0]
        torch.nn.functional.softplus(-score * target[ids, 0])[train].mean().backward()
        optimiser.step()
    right = (score.sign() == target[ids, 0])[test].float().mean()
    assert right > 0.75
