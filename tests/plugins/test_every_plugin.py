"""The contract, for every installed plugin at its defaults, on every toy backbone that it fits."""

import pytest

from recplug.plugins import available
from recplug.plugins.testing import CHECKS, cases

CASES = [case for plugin in available().values() for case in cases(plugin)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, check):
    CHECKS[check](case)
