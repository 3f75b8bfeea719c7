"""Settings of the control ``mlp``."""

from __future__ import annotations

from recplug.plugins.search import Range
from recplug.plugins.settings import PluginSettings, setting


class MlpSettings(PluginSettings):
    """How large the MLP is, and what it reads."""

    parameters: int = setting(
        50_000,
        "Trained numbers to match, such as those of the method that is compared; met within a few per cent from a few "
        "rows' worth on.",
        search=[10_000, 50_000, 200_000],
        ge=1,
    )
    scale: float = setting(
        1.0, "What its output is multiplied by before it is added to the item's row.", search=Range(0.1, 2.0, log=True)
    )
    modalities: tuple[str, ...] | None = setting(None, "Content sources by name; by default all there are.")
