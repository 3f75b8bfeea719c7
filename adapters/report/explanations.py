"""Why an item may have been recommended: what can be computed about it, each line with how that was done.

None of this is the model's own account: a neighbour in content, a shared value or an expert's weight stands beside a
recommendation, and need not have caused it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recplug.adapters.page.frame import percent
from recplug.adapters.recbole import LoadedRun
from recplug.adapters.recbole.infer.inductive import micrec_of
from recplug.adapters.recbole.infer.scores import at_work
from recplug.adapters.report.catalogue import Catalogue
from recplug.adapters.report.run_contents import Run
from recplug.plugins.errors import RecplugError
from recplug.plugins.magnet.module import Magnet
from recplug.plugins.prism import Prism

LATEST = 50  # items of a history that are compared
VALUES = 3  # shared factor values that are named
EXPERTS = 2
HOW = {
    "content": "“Nearest” is the item of the history with the most similar content vector (largest cosine); the share "
    "is that of the items outside the history whose own nearest is farther off. It is computed from the content tables "
    "alone, whether or not the model reads them.",
    "factors": "Shared factor values are those that an item has in common with the history, the rarest in the "
    "catalogue first; the count says how many items of the history have them.",
    "magnet": "“Routed to” names the experts with the largest weights for this user and item after training.",
    "prism": "The gate's weights are means over this user's history, as the model weighs it to recommend, beside those "
    "of the histories of the last evaluation.",
    "micrec": "A route says from what a user's or an item's vector was made; warm means from its own interactions.",
}


@dataclass(frozen=True)
class Line:
    """One thing that can be said.

    Attributes:
        about: what was looked at, such as ``nearest in text``.
        token: an item that it is about, or nothing.
        words: the rest.
    """

    about: str
    words: str
    token: str = ""


class Reasons:
    """What can be said of the recommendations of one run; :attr:`used` are the keys of :data:`HOW` that were needed."""

    def __init__(self, loaded: LoadedRun, run: Run, catalogue: Catalogue) -> None:
        self.loaded, self.run, self.catalogue = loaded, run, catalogue
        self.used: dict[str, None] = {}
        self._magnet = next((m for m in loaded.model.recplug.augmentations().values() if isinstance(m, Magnet)), None)
        self._frequency: dict[str, dict[str, float]] = {}

    def of_user(self, user: str) -> list[Line]:
        """What plugins say of a user."""
        found = []
        if gate := self._gate(user):
            self.used["prism"] = None
            found.append(Line("PRISM's gate", gate))
        if micrec_of(self.loaded.model) is not None and (route := self._route(user, "users")):
            found.append(Line("MICRec's route", route))
        return found

    def of_items(self, user: str, items: Sequence[str], history: Sequence[str]) -> list[list[Line]]:
        """What can be said of each of ``items`` for a user with this ``history``, oldest first."""
        found: list[list[Line]] = [[] for _ in items]
        rows = [self.loaded.known("items")[item] for item in items]
        self._content(found, rows, list(dict.fromkeys(history))[-LATEST:])
        if "mars" in self.run.result["plugins"] and self.catalogue.factors:
            self._factors(found, items, history)
        if self._magnet is not None and not self._magnet.settings.inert:
            self._experts(found, self._magnet, user, rows)
        if micrec_of(self.loaded.model) is not None:
            for lines, item in zip(found, items, strict=True):
                if (route := self._route(item, "items")) and not route.startswith("warm"):
                    lines.append(Line("MICRec's route", route))
        return found

    # -- content and factors

    def _content(self, found: list[list[Line]], rows: Sequence[int], history: Sequence[str]) -> None:
        if not history:
            return
        had = torch.tensor([self.loaded.known("items")[item] for item in history])
        for name, modality in self.catalogue.content.items():
            cosines = self.catalogue.cosines(name, had)  # [n_items, h]
            nearest, which = cosines.nan_to_num(-2.0).max(dim=1)  # [n_items]
            others = modality.present.clone()
            others[had] = False
            among = nearest[others]
            for lines, row in zip(found, rows, strict=True):
                if float(nearest[row]) < -1.5 or not len(among):
                    continue
                self.used["content"] = None
                share = float((among < nearest[row]).float().mean())
                words = f"(cosine {float(nearest[row]):.2f}, nearer than {percent(share)} of items)"
                lines.append(Line(f"nearest in {name}", words, history[int(which[row])]))

    def _factors(self, found: list[list[Line]], items: Sequence[str], history: Sequence[str]) -> None:
        for lines, item in zip(found, items, strict=True):
            shared = []
            for factor, values in self.catalogue.factors.items():
                for value in sorted(values.get(item, frozenset())):
                    count = sum(value in values.get(other, frozenset()) for other in history)
                    if count:
                        shared.append((self._share(factor, value), f"{factor} {value} ({count} of {len(history)})"))
            if shared:
                self.used["factors"] = None
                lines.append(Line("shares", ", ".join(words for _, words in sorted(shared)[:VALUES])))

    def _share(self, factor: str, value: str) -> float:
        """How many of the items have a value."""
        if factor not in self._frequency:
            counts: dict[str, float] = {}
            for values in self.catalogue.factors[factor].values():
                for each in values:
                    counts[each] = counts.get(each, 0) + 1
            self._frequency[factor] = counts
        return self._frequency[factor][value]

    # -- plugins

    def _experts(self, found: list[list[Line]], magnet: Magnet, user: str, rows: Sequence[int]) -> None:
        model = self.loaded.model
        items = torch.tensor(list(rows), device=model.device)
        users = torch.full_like(items, self.loaded.known("users")[user])
        with at_work(model):
            model.recplug_encode()
            with model.recplug.serving():
                routing = magnet.sampled_routing(users, items)
        if routing is None:
            return
        self.used["magnet"] = None
        weights = routing[1]  # [n, E]
        for lines, row in zip(found, weights.cpu(), strict=True):
            lines.append(Line("routed to", _largest(row, magnet.pool.names)))

    def _gate(self, user: str) -> str:
        """A user's mean weights of PRISM's experts in recommending; nothing where the model weighs items."""
        prism = self.loaded.model.recplug.augmentations().get("prism")
        if not isinstance(prism, Prism):
            return ""
        prism.recorder.found.pop("gate_histories", None)
        self.loaded.scores([user], until="test")
        weights = prism.recorder.found.get("gate_histories")
        if weights is None or not len(weights):
            return ""
        names = [name.replace("_", " ") for name in prism.expert_names]
        pictures = {picture.name: picture.values for picture in self.run.pictures.get("prism", ())}
        everyone = pictures.get("gate_histories")
        others = [""] * len(names) if everyone is None else [f" (all {mean:.2f})" for mean in everyone.mean(axis=0)]
        return ", ".join(f"{n} {w:.2f}{o}" for n, w, o in zip(names, weights[-1].tolist(), others, strict=True))

    def _route(self, token: str, side: Any) -> str:
        try:
            told = self.loaded.explain(token, side=side)
        except RecplugError:
            # MICRec beside another plugin that changes rows cannot tell; a run without templates has nothing to tell.
            return ""
        self.used["micrec"] = None
        near = ", ".join(f"{name} ({how:.2f})" for name, how in told.neighbours[:EXPERTS])
        made = f"; made from {told.templates} templates" if told.templates else ""
        return f"{told.route}{made}{f'; nearest: {near}' if near else ''}"


def _largest(weights: Tensor, names: Sequence[str]) -> str:
    best = weights.topk(min(EXPERTS, len(weights)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return ", ".join(f"{names[at]} {weight:.2f}" for at, weight in pairs if weight > 0)


def how(used: Mapping[str, None]) -> list[str]:
    """How what was said was computed."""
    return [HOW[key] for key in HOW if key in used]
