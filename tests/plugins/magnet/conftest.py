"""MAGNET on toy hosts, and small content."""

import pytest
import torch

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
