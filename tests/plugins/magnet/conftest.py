"""MAGNET on toy hosts, and small content."""

import pytest
import torch
import torch.nn.functional as F

from recplug.plugins import get
from recplug.plugins.contract import Modality
from recplug.plugins.testing import cases


def make_case(host, **settings):
    (case,) = cases(get("magnet"), settings, [host])
    return case


def make_modalities(n_items, widths=(5, 3), seed=0, absent=((3,), (5,))):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for index, (width, missing) in enumerate(zip(widths, absent, strict=True)):
        present = torch.ones(n_items, dtype=torch.bool)
        present[[0, *missing]] = False
        values = torch.randn(n_items, width, generator=generator)
        found.append(Modality(("image", "text", "audio")[index], values * present.unsqueeze(1), present))
    return found


def augmentation(host):
    (found,) = host.chain.augmentations().values()
    return found


@pytest.fixture(scope="session")
def make():
    return make_case


@pytest.fixture(scope="session")
def modalities():
    return make_modalities


@pytest.fixture(scope="session")
def module_of():
    return augmentation


def one_expert(experts, e, x_user, x_item):
    """One expert and one pair: its vector, or None where it has none; and its score, or None without a user."""
    if experts.form == "product":
        return experts.scale[e] * x_item, None if x_user is None else (experts.scale[e] * x_user * x_item).sum()
    weight, given = [experts.of_item[e]], [x_item]
    if x_user is not None:
        weight, given = [*weight, experts.of_user[e]], [*given, x_user]
    hidden = F.gelu(torch.cat(given) @ torch.cat(weight) + experts.first_bias[e])
    s = hidden @ experts.second[e] + experts.second_bias[e]
    return s, None if x_user is None else s @ experts.readout


@pytest.fixture
def slow_expert():
    return one_expert
