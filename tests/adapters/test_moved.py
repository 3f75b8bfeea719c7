"""Import paths that documents named before the rooms: they work for one version, and say where things are now."""

import importlib
import sys

import pytest

MOVED = {
    "recplug.adapters.recbole.launch": ("launch", "recplug.adapters.recbole.train.launch"),
    "recplug.adapters.recbole.unseen": ("evaluate_new", "recplug.adapters.recbole.finished.new_nodes"),
    "recplug.adapters.data.checking": ("read_atomic", "recplug.adapters.data.check"),
}


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_works_with_a_warning(old):
    name, new = MOVED[old]
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=new):
        module = importlib.import_module(old)
    assert getattr(module, name) is getattr(importlib.import_module(new), name)


def test_rooms_that_were_files_still_give_what_documents_named():
    from recplug.adapters.recbole.compat import recbole_compat
    from recplug.adapters.recbole.config import make_config, model_class

    assert callable(recbole_compat)
    assert callable(make_config)
    assert callable(model_class)
