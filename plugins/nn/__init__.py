"""What several methods share."""

from recplug.plugins.nn.noise import Noise

__all__ = ["Noise"]
