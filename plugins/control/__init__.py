"""The control ``mlp``: what any small network makes of the same content, with as many parameters as a method has."""

from recplug.plugins.control.module import ContentMlp
from recplug.plugins.control.settings import MlpSettings

__all__ = ["ContentMlp", "MlpSettings"]
