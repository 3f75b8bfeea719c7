"""Settings of the content graph filter."""

from __future__ import annotations

from recplug.plugins.nn.closed_form import Exponents
from recplug.plugins.search import Range
from recplug.plugins.settings import PluginSettings, setting


class FilterSettings(PluginSettings):
    """How the filter is made, and what a ranking takes of it; the defaults were chosen on Amazon Baby by validation."""

    alone: bool = setting(False, "Rank by the filter alone: no epoch is run, and the backbone stays untrained.")
    weight: float | None = setting(
        None,
        "How much of the filter is added to the backbone's scores, both standardised for each user; by default chosen "
        "after training, by validation, among 0, 0.25, 0.5, 1, 2, ...; 0 until then.",
        when={"alone": False},
        ge=0.0,
    )
    fit: bool = setting(
        False, "Search heat, the exponents and recency after training, by validation, before the weight is chosen."
    )
    order: int = setting(
        2, "Powers of the content graph in the heat kernel; 0: no content.", paper="h", search=[0, 1, 2, 3], ge=0, le=8
    )
    heat: float = setting(
        0.7, "How far a history spreads over the content graph.", paper="a", search=Range(0.2, 2.0), ge=0.0, le=10.0
    )
    users: float = setting(
        0.3, "How much less users with long histories count.", paper="b", search=Range(0.0, 1.0), ge=-1.0, le=2.0
    )
    history: float = setting(
        0.1, "How much less popular items of the history count.", paper="x", search=Range(0.0, 1.0), ge=-1.0, le=2.0
    )
    items: float = setting(
        0.4,
        "How much less popular items count on the way to other users and back.",
        paper="y",
        search=Range(0.0, 1.0),
        ge=-1.0,
        le=2.0,
    )
    popularity: float = setting(
        0.4, "How much more popular items are recommended.", paper="q", search=Range(0.0, 1.0), ge=-1.0, le=2.0
    )
    recency: float = setting(
        0.6,
        "What an item of the history counts for each step that it lies back.",
        search=Range(0.3, 1.0),
        when={"family": "sequential"},
        gt=0.0,
        le=1.0,
    )
    neighbours: int = setting(
        10, "Nearest items by content, in each modality.", paper="k", search=[5, 10, 20], ge=1, le=1000
    )
    image_weight: float = setting(
        0.1,
        "The image's share in the content graph; the others share the rest.",
        search=Range(0.0, 1.0),
        ge=0.0,
        le=1.0,
    )
    modalities: tuple[str, ...] | None = setting(None, "Content sources by name; by default all there are.")

    @property
    def exponents(self) -> Exponents:
        """The closed form's numbers."""
        return Exponents(
            heat=self.heat, users=self.users, history=self.history, items=self.items, popularity=self.popularity
        )
