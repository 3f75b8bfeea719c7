"""From what was asked (command line, files, Python) to RecBole's configuration, checked.

In: a model, a data set, files, overrides. Out: RecBole's ``Config`` and our own keys (:mod:`keys`).
"""

from recplug.adapters.recbole.config.host_config import make_config, model_class

__all__ = ["make_config", "model_class"]
