"""Feature extraction: texts and pictures of a data set through an encoder, to a feature table."""

from recplug.adapters.features.extraction.assemble import merge
from recplug.adapters.features.extraction.plan import Shard
from recplug.adapters.features.extraction.run import Report, extract
from recplug.adapters.features.extraction.sources import Items, Missing, image_items, text_items

__all__ = ["Items", "Missing", "Report", "Shard", "extract", "image_items", "merge", "text_items"]
