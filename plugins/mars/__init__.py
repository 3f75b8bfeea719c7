"""MARS: semantic factors of items (OpenReview Y6idSGOwfK)."""

from recplug.plugins.mars.module import Mars, MarsNodes, MarsTable
from recplug.plugins.mars.settings import MarsSettings

__all__ = ["Mars", "MarsNodes", "MarsSettings", "MarsTable"]
