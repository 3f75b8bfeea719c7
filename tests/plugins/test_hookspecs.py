"""No hook without documentation, types and a test."""

import inspect
import typing
from pathlib import Path

import pluggy
import pytest
import torch
from torch import nn

from recplug.plugins import Plugin, hookimpl, hookspecs
from recplug.plugins.registry import manager

HOOKS = sorted(name for name in vars(manager().hook) if name.startswith("recplug_"))
SPECS = {name: getattr(hookspecs, name) for name in HOOKS}


def test_all_hooks_are_found():
    written = {n for n, f in inspect.getmembers(hookspecs, inspect.isfunction) if n.startswith("recplug_")}
    assert written == set(HOOKS)
    assert len(HOOKS) >= 6


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented(name):
    text = inspect.getdoc(SPECS[name])
    assert text
    assert text.splitlines()[0].endswith(".")
    assert "Called" in text, "say when"
    assert all(argument in text for argument in inspect.signature(SPECS[name]).parameters if argument != "model")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_typed_and_empty(name):
    types = {"Tensor": torch.Tensor, "nn": nn, "Plugin": Plugin}
    hints = typing.get_type_hints(SPECS[name], localns=types)
    assert set(hints) == {*inspect.signature(SPECS[name]).parameters, "return"}
    assert SPECS[name](*inspect.signature(SPECS[name]).parameters) is None


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_tested_elsewhere(name):
    tests = Path(__file__).parents[1]
    mentions = [path for path in tests.rglob("test_*.py") if name in path.read_text() and path != Path(__file__)]
    assert mentions


@pytest.mark.parametrize("name", HOOKS)
def test_every_implementation_is_called_with_what_the_hook_declares(name):
    """None of the hooks stops at the first answer, and a package may take fewer arguments."""
    arguments = {argument: object() for argument in inspect.signature(SPECS[name]).parameters}
    seen = []

    def implement(*taken):
        source = f"def {name}({', '.join(taken)}): seen.append(dict({', '.join(f'{t}={t}' for t in taken)}))"
        namespace = {"seen": seen}
        exec(source, namespace)
        return type("Package", (), {name: staticmethod(hookimpl(namespace[name]))})()

    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    plugins.register(implement(*arguments))
    plugins.register(implement())
    getattr(plugins.hook, name)(**arguments)
    assert seen == [{}, arguments]


def test_an_argument_that_a_hook_does_not_have_is_refused():
    class Package:
        @hookimpl
        def recplug_epoch_start(self, model, epoch, loss):
            """Takes one argument too many."""

    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    with pytest.raises(pluggy.PluginValidationError):
        plugins.register(Package())
