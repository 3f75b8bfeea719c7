from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

from recplug.plugins import (
    Plugin,
    PluginSettings,
    RecplugError,
    Requirements,
    available,
    get,
    hookimpl,
    registry,
    setting,
)


class Settings(PluginSettings):
    scale: float = setting(1.0, "A scale.")


def plugin(name, **identity):
    return Plugin(name, "", "", Settings, lambda s: Requirements(seams=frozenset()), lambda s, c: None, identity)


class Package:
    """A plugin package: what an entry point loads."""

    def __init__(self, provide):
        self.provide = provide

    @hookimpl
    def recplug_plugin(self):
        return self.provide()


class Point(SimpleNamespace):
    """An entry point; ``load`` returns its package or raises it."""

    def load(self):
        if isinstance(self.package, Exception):
            raise self.package
        return self.package


@pytest.fixture
def install(monkeypatch):
    """Replace what is installed by the given packages, by entry-point name."""

    def forget():
        registry.manager.cache_clear()
        registry._plugins.cache_clear()

    def install(**packages):
        points = [Point(name=n, package=p, dist=SimpleNamespace(name=f"dist-{n}")) for n, p in packages.items()]
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        forget()

    monkeypatch.delenv("RECPLUG_PLUGINS", raising=False)
    forget()
    yield install
    monkeypatch.undo()
    forget()


def one_line(call, *words):
    with pytest.raises(RecplugError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_the_packages_own_plugins_enter_by_entry_points(install):
    assert set(available()) == {point.name for point in entry_points(group="recplug.plugins")}
    assert get("prism").paper == "PRISM, arXiv 2601.10944"


def test_plugins_keep_the_order_of_their_entry_points(install):
    install(b=Package(lambda: plugin("beta")), a=Package(lambda: plugin("alpha")))
    assert list(available()) == ["alpha", "beta"]


def test_loading_can_be_pinned(install, monkeypatch):
    broken = ImportError("no module named nowhere")
    monkeypatch.setenv("RECPLUG_PLUGINS", "mine, ")
    install(mine=Package(lambda: plugin("mine")), broken=broken)
    assert list(available()) == ["mine"]
    monkeypatch.setenv("RECPLUG_PLUGINS", "")
    install(mine=Package(lambda: plugin("mine")), broken=broken)
    assert available() == {}
    one_line(lambda: get("mine"), "installed: none")


def test_an_unknown_plugin_names_the_nearest(install):
    install(mine=Package(lambda: plugin("mine")))
    one_line(lambda: get("mien"), "no plugin 'mien'", "did you mean 'mine'?", "installed: mine")


@pytest.mark.parametrize(
    ("package", "words"),
    [
        (ImportError("no module\nnamed nowhere"), ["does not load", "dist-bad", "nowhere", "RECPLUG_PLUGINS"]),
        (Package(lambda: 1 / 0), ["fails", "ZeroDivisionError", "RECPLUG_PLUGINS"]),
        (Package(lambda: None), ["returns nothing"]),
        (Package(lambda: "mine"), ["must return a recplug.plugins.Plugin, not str"]),
        (Package(lambda: plugin("Mine")), ["'Mine'", "lower-case identifier"]),
        (Package(lambda: plugin("my-own")), ["'my-own'", "lower-case identifier"]),
        (Package(lambda: plugin("dataset")), ["reserved"]),
        (Package(lambda: plugin("items")), ["reserved"]),
        (Package(lambda: plugin("training")), ["reserved"]),
        (Package(lambda: plugin("mine", scael=0.0)), ["its identity names settings that it does not have", "scael"]),
    ],
)
def test_a_broken_package_is_told_in_one_line(install, package, words):
    install(good=Package(lambda: plugin("good")), bad=package)
    one_line(available, "bad" if isinstance(package, Exception) else "", *words)


def test_a_misspelt_hook_is_told_in_one_line(install):
    class Misspelt:
        @hookimpl
        def recplug_plugn(self):
            return plugin("mine")

    install(bad=Misspelt())
    one_line(available, "bad", "recplug_plugn")


def test_two_packages_with_one_name(install):
    install(one=Package(lambda: plugin("mine")), two=Package(lambda: plugin("mine")))
    one_line(available, "two installed packages provide the plugin 'mine'")


def test_two_entry_points_with_one_name(install, monkeypatch):
    points = [Point(name="same", package=Package(lambda n=n: plugin(n)), dist=None) for n in ("one", "two")]
    install()
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    one_line(available, "two installed packages have the entry point 'same'")


def test_names_are_parsed_in_order(install):
    install(a=Package(lambda: plugin("alpha")), b=Package(lambda: plugin("beta")))
    assert registry.parse_names("beta, alpha") == ["beta", "alpha"]
    assert registry.parse_names(["alpha"]) == ["alpha"]
    assert registry.parse_names(None) == registry.parse_names("none") == registry.parse_names("") == []
    one_line(lambda: registry.parse_names("alpha,beta,alpha"), "'alpha' is named twice")
    one_line(lambda: registry.parse_names("alpah"), "did you mean 'alpha'?")


def test_hook_calls_can_be_traced(install, monkeypatch, capsys):
    monkeypatch.setenv("RECPLUG_TRACE_HOOKS", "1")
    install(mine=Package(lambda: plugin("mine")))
    registry.manager().hook.recplug_epoch_start(model=None, epoch=3)
    assert "recplug_epoch_start" in capsys.readouterr().err


def test_what_a_script_registers_is_known_at_once(install):
    install()
    assert available() == {}
    late = Package(lambda: plugin("late"))
    registry.manager().register(late)
    assert get("late").name == "late"
    registry.manager().unregister(late)
    assert available() == {}
