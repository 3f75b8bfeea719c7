"""PRISM (arXiv 2601.10944): experts for unique, redundant and synergistic content, weighed per user."""

from recplug.plugins.prism.module import Prism
from recplug.plugins.prism.settings import PrismSettings

__all__ = ["Prism", "PrismSettings"]
