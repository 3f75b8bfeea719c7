"""The contract, for every installed plugin at its defaults, on every toy backbone that it fits."""

import pytest

from recplug.plugins import available
from recplug.plugins.presets import presets, settings_of
from recplug.plugins.testing import CHECKS, cases
from recplug.plugins.testing.mechanisms import check_mechanisms

CASES = [case for plugin in available().values() for case in cases(plugin)]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_contract(case, check):
    CHECKS[check](case)


@pytest.mark.parametrize("plugin", available().values(), ids=lambda plugin: plugin.name)
def test_what_a_summary_names_acts_at_the_defaults(plugin):
    check_mechanisms(plugin)


@pytest.mark.parametrize("plugin", available().values(), ids=lambda plugin: plugin.name)
def test_presets_ablations_and_mechanisms_are_settings_that_the_plugin_takes(plugin):
    for values in (*plugin.ablations.values(), *plugin.mechanisms.values()):
        settings_of(plugin, values)
    for name in presets(plugin):
        settings_of(plugin, {"preset": name})
