"""The closed-form content graph filter: nothing is trained, and validation says how much of it a ranking takes."""

from recplug.plugins.filter.module import ContentFilter
from recplug.plugins.filter.settings import FilterSettings
from recplug.plugins.nn.closed_form import ClosedForm, Exponents

__all__ = ["ClosedForm", "ContentFilter", "Exponents", "FilterSettings"]
