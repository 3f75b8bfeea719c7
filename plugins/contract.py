"""The contract between a plugin and the adapters that graft it onto a backbone (see ``docs/architecture.md``).

A :class:`Plugin` names its settings, says what it requires and builds an :class:`Augmentation`, an ordinary
``nn.Module`` with a few optional methods, one per *seam*. The adapter calls those methods; the plugin never sees the
host framework.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.protocols import Propagate, Source, Validate
from recplug.plugins.settings import PluginSettings, Preset

if TYPE_CHECKING:
    from recplug.plugins.factors import FactorProfiles
    from recplug.plugins.nn.knn import Neighbours
    from recplug.plugins.nn.propagation import Adjacency
    from recplug.plugins.step import Step

Family = Literal["sequential", "graph"]
Role = Literal["input", "candidate"]
Side = Literal["users", "items"]
Seam = Literal["items", "users", "tables", "graph", "propagated", "score", "losses"]
SEAMS: tuple[Seam, ...] = get_args(Seam)
Half = Literal["ranking", "training"]  # of the score seam
BOTH_HALVES: frozenset[Half] = frozenset(get_args(Half))


@dataclass(frozen=True)
class Modality:
    """One content source, aligned with the rows of the host's item table.

    Attributes:
        name: ``"image"``, ``"text"``, ...
        values: ``[n_items, d_m]``, float16 or float32; rows of items without a vector are zero.
        present: ``[n_items]`` bool; False where the item has no vector, and for the padding row.
    """

    name: str
    values: Tensor
    present: Tensor

    @property
    def width(self) -> int:
        """The width d_m of one vector."""
        return self.values.shape[1]


@dataclass(frozen=True)
class Panel:
    """One picture of :meth:`Augmentation.diagnostics`; the adapter draws it and stores its numbers.

    Attributes:
        values: a matrix ``[rows, columns]`` (``heatmap``, ``curves``: a line a row), one row a group with its sample
            along the columns (``histogram``), a vector ``[n]`` (``bars``), or ``[pictures, n, 3]``, of each point x, y
            and the number of its label (``scatter``).
        kind: how to draw it.
        title: a short heading.
        caption: one or two sentences for someone who has not read the paper: what to see, and what is good.
        rows, columns: labels; of a ``scatter``, the points' labels and the pictures' names.
        xlabel, ylabel: the axes' names, with units.
        limits: the colour or value range, where it has a natural one.
        marks: of ``curves``: places on the horizontal axis where something happened, and what.
    """

    values: Tensor
    kind: Literal["heatmap", "bars", "histogram", "curves", "scatter"]
    title: str
    caption: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    xlabel: str = ""
    ylabel: str = ""
    limits: tuple[float, float] | None = None
    marks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Context:
    """What a plugin is told about the backbone and the data when it builds an augmentation.

    Attributes:
        host: the backbone's name, for messages.
        family: ``"sequential"`` or ``"graph"``.
        n_users, n_items: counts with the padding row; item ids run from 0 (padding) to ``n_items - 1``.
        n_rows: rows of each table (``"items"`` may exceed ``n_items``: BERT4Rec has a mask row).
        width: vector width per seam, for example ``{"items": 64}``.
        padding_id: the padding row of every table.
        mask_id: the mask token's row, or None.
        loss_reduction: ``"mean"`` or ``"sum"``: how the host reduces its loss over a batch.
        edges: ``[2, n]`` training interactions (user id, item id), on the device.
        modalities: aligned content, by name, in the order in which the user gave it.
        factors: aligned factor profiles, or None.
        steps_per_epoch: training steps in one epoch, 0 where unknown.
        device: where tensors are made.
        seed: the run's seed; plugin noise is drawn from generators seeded with it.
        propagate: the host's propagation on another graph, or None.
        source: the second domain, or None.
        neighbours: item graphs by modality that came with the data, for plugins that would otherwise compute them.
        free_width: whether the *propagated* seam may return nodes of another width, because the host takes their dot
            product and nothing else.
        others_nodes: whether the host's loss reads users, or propagated nodes, that the batch does not name.
        halves: the halves of the *score* seam that the host offers, for plugins that act there or elsewhere.
        cache: a folder for what is dear to compute and depends on the data alone, or None.
    """

    host: str
    family: Family
    n_users: int
    n_items: int
    n_rows: Mapping[str, int]
    width: Mapping[str, int]
    edges: Tensor
    modalities: Mapping[str, Modality] = field(default_factory=dict)
    padding_id: int = 0
    mask_id: int | None = None
    loss_reduction: Literal["mean", "sum"] = "mean"
    factors: FactorProfiles | None = None
    steps_per_epoch: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    propagate: Propagate | None = None
    source: Source | None = None
    neighbours: Mapping[str, Neighbours] = field(default_factory=dict)
    free_width: bool = False
    others_nodes: bool = False
    halves: frozenset[Half] = frozenset()
    cache: Path | None = None

    def content(self, names: Sequence[str] | None, *, of: str) -> list[Modality]:
        """The modalities of these names, for plugin ``of``; all there are for None.

        Raises:
            RecplugError: one of them has no feature table.
        """
        for name in names or ():
            if name not in self.modalities:
                have = ", ".join(self.modalities) or "none"
                hint = did_you_mean(name, self.modalities)
                raise RecplugError(f"{of}.modalities names '{name}'; feature tables: {have}{hint}")
        return [self.modalities[name] for name in (self.modalities if names is None else names)]


@dataclass(frozen=True)
class Requirements:
    """What a plugin needs, checked before anything is trained.

    Attributes:
        seams: the seams on which the augmentation acts; with one of ``one_of``, and with none, some or all of
            ``optional``, exactly the methods it overrides.
        one_of: seams of which the builder takes the one that suits the host, if there are any.
        optional: seams on which it acts too where the host offers them.
        halves: which halves of the *score* seam it needs, where it acts there.
        families: the backbone families it can be grafted onto.
        modalities: how many content sources it needs at least.
        factors: whether it needs factor profiles.
        second_domain: ``"no"``, ``"optional"`` or ``"required"``.
        backbone_in_loss: whether its losses re-run the backbone's encoder (``Step.reencode``).
        brings: what a model takes only once, whoever brings it, and the setting without which this plugin does not:
            ``{ITEM_GRAPH: "mars.structure=none"}``. Two plugins that bring the same are refused together.
    """

    seams: frozenset[Seam]
    one_of: frozenset[Seam] = frozenset()
    optional: frozenset[Seam] = frozenset()
    halves: frozenset[Half] = BOTH_HALVES
    families: frozenset[Family] = frozenset({"sequential", "graph"})
    modalities: int = 0
    factors: bool = False
    second_domain: Literal["no", "optional", "required"] = "no"
    backbone_in_loss: bool = False
    brings: Mapping[str, str] = field(default_factory=dict)


class Augmentation(nn.Module):
    """What a plugin adds to one backbone. Every method is optional and an identity by default.

    The adapter discovers which seams are used by looking at which methods a subclass overrides.
    :attr:`step` is set by the adapter while a training step or an evaluation asks for something and is None otherwise;
    it is never saved, copied or pickled with the module. :attr:`roles` says in which roles :meth:`items` changes rows;
    an augmentation that leaves candidates alone spares the host's full softmax a fused table. :attr:`by_item` says in
    which roles an item's row depends on the item alone, whatever the history: the adapter then fuses each item once a
    step and gathers. Where it names both roles, an item has the same row in both.

    Of an augmentation that changes scores, :attr:`halves` says where: in the *ranking* (blocks, and the pairs of
    ``predict`` and of sampled candidates), in *training* (the pairs that the host's loss compares), or in both.
    :attr:`replaces` says that it takes no notice of ``base``, so that none that changes scores may come before it;
    :attr:`whole_rows`, that it reads a user's ``base`` over all items: it is asked for blocks of every item alone, and
    an adapter takes pairs out of these. Where :attr:`untrained` is True no epoch is run.
    """

    step: Step | None = None
    roles: frozenset[Role] = frozenset({"input", "candidate"})
    by_item: frozenset[Role] = frozenset()
    halves: frozenset[Half] = BOTH_HALVES
    replaces: bool = False
    whole_rows: bool = False
    untrained: bool = False
    _methods: ClassVar[tuple[Seam, ...]] = SEAMS

    def seams(self) -> frozenset[Seam]:
        """The seams whose methods this augmentation overrides."""
        return frozenset(s for s in self._methods if getattr(type(self), s) is not getattr(Augmentation, s))

    def items(self, rows: Tensor, ids: Tensor, *, role: Role, sequence: Tensor | None) -> Tensor:
        """Act on the item rows that were asked for.

        Args:
            rows: ``[*ids.shape, d]``, the host's rows, or the previous plugin's output.
            ids: ``[B, L]`` for a sequence, ``[n]`` for candidates.
            role: ``"input"`` where the rows enter the encoder, ``"candidate"`` where they are scored against.
            sequence: ``[B, L]`` padded item ids where ``ids`` is a user's history, else None.

        Returns:
            ``[*ids.shape, d]``. Whatever is returned for padding and mask rows is ignored: they keep the host's row.
        """
        return rows

    def users(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Act on the user rows that were asked for: ``rows [n, d]``, ``ids [n]``, to ``[n, d]``."""
        return rows

    def tables(self, users: Tensor | None, items: Tensor) -> tuple[Tensor | None, Tensor]:
        """Act on both whole raw tables, once a step: ``users [n_users, d]`` or None, ``items [n_rows, d]``."""
        return users, items

    def graph(self, graph: Adjacency) -> Adjacency:
        """Act on the user-item graph that the host propagates over, once a training step; evaluation has the host's.

        Args:
            graph: ``[n_users + n_items, n_users + n_items]``, symmetric, :math:`D^{-1/2} A D^{-1/2}`, users first.

        Returns:
            Of the same shape and device.
        """
        return graph

    def propagated(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Act on propagated nodes: ``users [n_users, w]``, ``items [n_items, w]``."""
        return users, items

    def propagated_width(self, width: int) -> int:
        """The width that :meth:`propagated` makes of ``width``; the next plugin is built for it."""
        return width

    def score(self, base: Tensor, users: Tensor, items: Tensor, step: Step) -> Tensor:
        """Change scores, of pairs and of blocks; a user and an item have one score, whichever way it is asked for.

        The vectors that the host scores by are :meth:`Step.nodes`, with a gradient in training. What does not depend
        on the batch goes into ``step.memory``: an evaluation asks block after block with the same ``step``, a change
        of the model begins another. In training the host's loss asks twice a step: for the batch's positives
        (``items is step.batch.positives``), then for its negatives, both beside ``step.batch.users``. A step of the
        kind ``"call"`` (dynamic negative sampling; scores under a gradient) asks once and remembers nothing.

        In the ranking half ``step.batch`` holds what the host is shown: the users' histories, ``sequence [u, L]`` and
        ``lengths [u]``, on a sequential host, and of people without a row of their own on any; a pair has a history of
        its own.

        Args:
            base: the host's scores: ``[b]`` for pairs, ``[u, n]`` for a block. Return it as it is to change nothing.
            users: ``[b]`` or ``[u]`` user ids; padding for people who are not the data's.
            items: ``[b]`` or ``[n]`` item ids; all in their order where a block holds every item.
            step: the step under way; its ``kind`` says whether this is training.

        Returns:
            Of ``base``'s shape and type.
        """
        return base

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Scalar loss terms of this training step, already weighted, by name."""
        return {}

    def on_epoch_start(self, epoch: int) -> None:
        """Called before the first step of every epoch, counted from 0."""

    def on_evaluation_end(self, epoch: int, score: float) -> None:
        """Called after every validation with the epoch and the validation score."""

    def after_training(self, validate: Validate) -> dict[str, Any]:
        """Called once, with the best parameters, before the test; may fit a few constants by the validation score.

        They are buffers, so that they are saved.

        Args:
            validate: asks for the score; the module sees no validation data itself.

        Returns:
            What was fitted, for ``result.json``; nothing where nothing was.
        """
        return {}

    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """What the module learned, by name: pictures (:class:`Panel`) and plain arrays."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("step", None)
        return state


@dataclass(frozen=True)
class Plugin:
    """A named contribution, returned by the ``recplug_plugin`` hook.

    Attributes:
        name: lower-case identifier; the namespace of its settings and of its tensors in a checkpoint.
        summary: one line for ``recplug plugins``.
        paper: citation or address.
        settings: the pydantic model of its settings.
        requirements: what it needs, given its settings.
        build: makes the augmentation for one backbone; runs in a forked random state.
        identity: the settings at which it adds nothing, for the contract tests.
        presets: named sets of settings by name, besides ``recplug``, the defaults.
        ablations: the paper's words for each variant of its ablation study, and the settings that make it.
        mechanisms: what the summary claims, in its words, and the settings that switch just that off; the contract
            kit checks that scores differ, at the defaults, from those without it.
    """

    name: str
    summary: str
    paper: str
    settings: type[PluginSettings]
    requirements: Callable[[Any], Requirements]
    build: Callable[[Any, Context], Augmentation]
    identity: Mapping[str, Any]
    presets: Mapping[str, Preset] = field(default_factory=dict)
    ablations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    mechanisms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
