"""What factor profiles are worth, before anything is trained: coverage, groups, overlap, lift, agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from recplug.adapters.factors.lift import PAIRS, PERMUTATIONS, Lift, lifts, sample_pairs
from recplug.adapters.factors.table import FactorTable
from recplug.plugins.contract import Panel
from recplug.plugins.factors import FactorProfiles

STEPS = (1, 2, 5, 10, 20, 50, 100, 500)
HUGE, ALIKE, UNSURE, USELESS, FEW = 0.8, 0.9, 0.6, 0.4, 3.0


@dataclass(frozen=True)
class Agreement:
    """How often a second labelling of the same items says the same.

    Attributes:
        share: of items with equal values; unknown on both sides is equal.
        kappa: Cohen's, that is, ``share`` beyond what both would reach by chance; NaN where chance alone gives 1.
        items: that both labelled.
    """

    share: float
    kappa: float
    items: int


@dataclass(frozen=True)
class FactorReport:
    """One factor in numbers.

    Attributes:
        name: of the factor.
        coverage, unknown, failed, missing: shares of the data set's items: with a value, without, given up, and absent
            from the table; they add up to 1.
        other: share of items whose value is the one that means "something else".
        sizes: items of each value by name, in the schema's order, before small values are rolled up.
        small: how many values training rolls up, because fewer items of the table have them than it asks for.
        entropy: of the values, in nats.
        largest: the most frequent value, and its share of the items that have a value.
        multiple: share of items with several values.
        lift: where interactions were given, of what training sees.
        agreement: where a second labelling has the factor.
    """

    name: str
    coverage: float
    unknown: float
    failed: float
    missing: float
    other: float
    sizes: dict[str, int]
    small: int
    entropy: float
    largest: tuple[str, float]
    multiple: float
    lift: Lift | None
    agreement: Agreement | None

    @property
    def effective(self) -> float:
        """exp(entropy): as many equally frequent values would be as informative."""
        return float(np.exp(self.entropy))

    @property
    def singletons(self) -> int:
        """Values of one item alone, whose group says nothing about any other."""
        return sum(size == 1 for size in self.sizes.values())

    @property
    def histogram(self) -> tuple[int, ...]:
        """How many values have 0 items, and from one of :data:`STEPS` up to the next."""
        return tuple(np.histogram(list(self.sizes.values()), [0, *STEPS, np.inf])[0].tolist())

    @property
    def remarks(self) -> list[str]:
        """What to do about it, where something stands out."""
        found = []
        name, share = self.largest
        if share > HUGE:
            found.append(f"{name!r} holds {share:.0%} of its items, so its group is nearly everybody")
        if self.coverage and self.effective < FEW:
            found.append(f"it is worth {self.effective:.1f} equal values; finer ones would tell more apart")
        if self.coverage and self.small == sum(size > 0 for size in self.sizes.values()):
            found.append("every value is too small for a group, so training sees nothing of it; merge values")
        if self.lift and self.lift.value <= self.lift.high:
            found.append("items bought together agree on it no more than chance; leave it out")
        if self.agreement and self.agreement.kappa < UNSURE:
            advice = "drop it" if self.agreement.kappa < USELESS else "rewrite its definitions"
            found.append(f"asked twice, the answers differ (kappa {self.agreement.kappa:.2f}); {advice}")
        return found


@dataclass(frozen=True, eq=False)
class Report:
    """All factors, and how much they say the same.

    Attributes:
        items: of the data set.
        factors: one report each.
        overlap: ``[K, K]``, normalised mutual information over the items that both factors know, of what training
            sees; NaN where there are none. An item's several values count in equal parts.
    """

    items: int
    factors: tuple[FactorReport, ...]
    overlap: np.ndarray

    def lines(self) -> list[str]:
        """For the console: a line a factor, remarks under it."""
        found = [f"{self.items:,} items, {len(self.factors)} factors"]
        for factor in self.factors:
            found.append(_line(factor))
            found += [f"    {remark}" for remark in factor.remarks]
        for i, j in zip(*np.nonzero(np.triu(self.overlap > ALIKE, 1)), strict=True):
            one, two = self.factors[i].name, self.factors[j].name
            found.append(f"{one} and {two} say the same (NMI {self.overlap[i, j]:.2f}); drop or merge one")
        return found

    def panels(self) -> dict[str, Panel]:
        """Pictures by name."""
        names = tuple(factor.name for factor in self.factors)
        shares = [[f.coverage, f.other, f.unknown, f.failed, f.missing] for f in self.factors]
        panels = {
            "coverage": Panel(
                torch.tensor(shares), "heatmap", "What the items are labelled with",
                "Shares of the data set's items. 'Value' includes 'other', which joins items that need have nothing in "
                "common; unknown, failed and missing items stay out of the factor's groups.",
                names, ("value", "of it other", "unknown", "failed", "missing"), limits=(0.0, 1.0),
            ),
            "groups": Panel(
                torch.tensor([np.divide(f.histogram, len(f.sizes)).tolist() for f in self.factors]),
                "heatmap", "Share of a factor's values with groups of this size",
                "Groups of one item pass nothing on, and a group of nearly all items is nearly the mean of everything; "
                "many groups of tens and hundreds are good.",
                names, _ranges(), xlabel="items of a value", limits=(0.0, 1.0),
            ),
            "overlap": Panel(
                torch.from_numpy(self.overlap), "heatmap", "How much two factors say the same",
                "Normalised mutual information: 0 for independent factors, 1 where one follows from the other. "
                f"Above {ALIKE} one of the two is superfluous.",
                names, names, limits=(0.0, 1.0),
            ),
        }  # fmt: skip
        if all(factor.lift for factor in self.factors):
            rows = [[f.lift.value, f.lift.low, f.lift.high] for f in self.factors if f.lift]
            panels["lift"] = Panel(
                torch.tensor(rows), "heatmap", "Do items bought together share values?",
                "How much more often they do than pairs of equally popular items (1: no more). Between low and high "
                "lie 95 % of the results for the same profiles given to random items; a useful factor is far above.",
                names, ("lift", "null, low", "null, high"),
            )  # fmt: skip
        return panels


def report(
    table: FactorTable,
    id_tokens: Sequence[str],
    edges: Tensor | None = None,
    *,
    second: FactorTable | None = None,
    pairs: int = PAIRS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Report:
    """Measure profiles against the items of a data set.

    Args:
        table: the profiles.
        id_tokens: the token of every host row; row 0 is ``"[PAD]"``.
        edges: ``[2, n]`` training interactions as user and item ids (rows of ``id_tokens``); None: no lift.
        second: another labelling of the same items with the same vocabulary, for the agreement.
        pairs, permutations, seed: of the lift; see :mod:`recplug.adapters.factors.lift`.

    Raises:
        RecplugError: where not one item is in the table, or no user bought two items.
    """
    profiles = table.align(id_tokens)
    found: list[Lift | None] = [None] * len(profiles.factors)
    if edges is not None:
        sampled = sample_pairs(edges, pairs=pairs, seed=seed)
        found = [*lifts(profiles, sampled, permutations=permutations, seed=seed)]
    places = {token: row for row, token in enumerate(table.tokens)}
    held = [places[token] for token in id_tokens[1:] if token in places]
    states = Counter(table.status[row] for row in held)
    items = len(id_tokens) - 1
    missing, failed = (items - len(held)) / items, (states["failed"] + states["refused"]) / items
    reports = []
    heard = profiles.known.any(dim=0).tolist()  # else every value was rolled up to nothing
    for spec, factor, lift, any_group in zip(table.schema.factors, profiles.factors, found, heard, strict=True):
        labels = [table.values[spec.name][row] for row in held]
        counts = Counter(name for names in labels for name in names)
        known = sum(map(bool, labels))
        top = max(spec.names, key=lambda name: counts[name])
        reports.append(
            FactorReport(
                name=spec.name,
                coverage=known / items,
                unknown=(len(held) - known) / items - failed,
                failed=failed,
                missing=missing,
                other=counts[spec.other_name or ""] / items,
                sizes={name: counts[name] for name in spec.names},
                small=len(counts.keys() - set(factor.values if any_group else ())),
                entropy=_entropy(np.array([*counts.values()]) / max(1, counts.total())),
                largest=(top, counts[top] / max(1, known)),
                multiple=sum(len(names) > 1 for names in labels) / items,
                lift=lift,
                agreement=None if second is None else agreement(table, second, spec.name),
            )
        )
    return Report(items, tuple(reports), overlap(profiles))


def overlap(profiles: FactorProfiles) -> np.ndarray:
    """``[K, K]`` normalised mutual information, I / ((H + H') / 2), of factor pairs; see :class:`Report`."""
    from scipy.sparse import csr_matrix

    counts = profiles.counts.cpu().numpy()  # [n, K]
    items, values = profiles.items.cpu().numpy(), profiles.values.cpu().numpy()
    weight = 1.0 / counts[items, profiles.factor_of.cpu().numpy()[values]]
    spread = csr_matrix((weight, (items, values)), shape=(profiles.n_items, profiles.n_values))
    k = counts.shape[1]
    blocks = [spread[:, profiles.offsets[i] : profiles.offsets[i + 1]] for i in range(k)]
    found = np.eye(k)
    for i in range(k):
        for j in range(i + 1, k):
            joint = (blocks[i].T @ blocks[j]).toarray()  # [V_i, V_j]
            found[i, j] = found[j, i] = _nmi(joint / joint.sum()) if joint.any() else np.nan
    return found


def _nmi(joint: np.ndarray) -> float:
    one, two = joint.sum(axis=1), joint.sum(axis=0)
    entropies = _entropy(one) + _entropy(two)
    # Two constants say nothing about each other.
    return 2 * (entropies - _entropy(joint.ravel())) / entropies if entropies > 0 else 0.0


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return -float((shares * np.log(shares)).sum())


def agreement(table: FactorTable, second: FactorTable, factor: str) -> Agreement | None:
    """How two labellings agree on a factor; None where the second has no such factor or no common items.

    Several values of an item are one answer. Items that either labelling gave up are left out.
    """
    if factor not in second.values:
        return None
    one, two = _answers(table, factor), _answers(second, factor)
    both = [(one[token], two[token]) for token in one if token in two]
    if not both:
        return None
    share = sum(a == b for a, b in both) / len(both)
    mine, theirs = Counter(a for a, _ in both), Counter(b for _, b in both)
    chance = sum(mine[answer] * theirs[answer] for answer in mine) / len(both) ** 2
    return Agreement(share, (share - chance) / (1 - chance) if chance < 1 else float("nan"), len(both))


def _answers(table: FactorTable, factor: str) -> dict[str, frozenset[str]]:
    """The values of the items that were labelled at all."""
    rows = zip(table.tokens, table.values[factor], table.status, strict=True)
    return {token: frozenset(values) for token, values, status in rows if status in ("ok", "override")}


def _line(factor: FactorReport) -> str:
    name, share = factor.largest
    used = sum(size > 0 for size in factor.sizes.values())
    parts = [f"{factor.coverage:.1%} of items"]
    for word, amount in (("other", factor.other), ("failed", factor.failed), ("missing", factor.missing)):
        parts += [f"{word} {amount:.1%}"] if amount else []
    parts.append(f"{used} values (as {factor.effective:.1f} equal ones)")
    parts.append(f"largest {name!r} {share:.1%}")
    parts += [f"{factor.small} too small for a group of their own"] if factor.small else []
    parts += [f"several values {factor.multiple:.1%}"] if factor.multiple else []
    if factor.lift and not np.isnan(factor.lift.value):
        lift = factor.lift
        parts.append(f"lift {lift.value:.2f} (chance {lift.low:.2f} to {lift.high:.2f}, p {lift.p:.2g})")
    if factor.agreement:
        parts.append(f"asked twice: {factor.agreement.share:.1%} equal, kappa {factor.agreement.kappa:.2f}")
    return f"{factor.name}: {', '.join(parts)}"


def _ranges() -> tuple[str, ...]:
    ends = [f"{low}" if low + 1 == high else f"{low}-{high - 1}" for low, high in pairwise(STEPS)]
    return ("0", *ends, f"{STEPS[-1]}+")
