"""What several methods share."""

from recplug.plugins.nn.noise import Noise
from recplug.plugins.nn.propagation import Adjacency, lightgcn, propagate_mean

__all__ = ["Adjacency", "Noise", "lightgcn", "propagate_mean"]
