"""MICRec on toy hosts, and small data."""

import pytest
import torch

from recplug.plugins import get
from recplug.plugins.contract import Modality
from recplug.plugins.testing import cases

EDGES = torch.tensor([[1, 1, 1, 2, 2, 3, 4, 4, 4, 4], [1, 2, 5, 2, 3, 2, 1, 3, 5, 6]])  # item 4 and user 5 have none
N_USERS, N_ROWS = 6, 8


def make_case(host, *, source=False, join="replace", **settings):
    """A toy host with MICRec, in the place of its rows unless told otherwise, where the mathematics is plain."""
    settings["join"] = join
    (case,) = (case for case in cases(get("micrec"), settings, [host]) if case.second_domain == source)
    return case


def make_modality(name="text", n=20, width=6, seed=0, absent=()):
    generator = torch.Generator().manual_seed(seed)
    present = torch.ones(n, dtype=torch.bool)
    present[[0, *absent]] = False
    values = 3 + torch.randn(n, width, generator=generator)
    return Modality(name, values * present.unsqueeze(1), present)


def augmentation(host):
    (found,) = host.chain.augmentations().values()
    return found


@pytest.fixture(scope="session")
def make():
    return make_case


@pytest.fixture(scope="session")
def modality():
    return make_modality


@pytest.fixture(scope="session")
def module_of():
    return augmentation


@pytest.fixture
def edges():
    return EDGES.clone()


@pytest.fixture(scope="session")
def sizes():
    return {"n_users": N_USERS, "n_rows": N_ROWS}
