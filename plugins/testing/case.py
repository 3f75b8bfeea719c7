"""One plugin with its settings on one toy backbone, over a data set that has every oddity on purpose."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recplug.plugins.contract import Context, Modality, Plugin, Side
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import Factor, FactorProfiles
from recplug.plugins.nn.propagation import lightgcn
from recplug.plugins.presets import settings_of
from recplug.plugins.settings import PluginSettings
from recplug.plugins.step import Batch
from recplug.plugins.testing.domains import ToySource
from recplug.plugins.testing.host import ToyHost
from recplug.plugins.testing.rules import require
from recplug.plugins.testing.toys import HOSTS, Toy, ToyGraph, ToyPropagation

N_USERS, N_ITEMS, LENGTH = 14, 23, 6  # rare sizes, also their sum, or other things would look like rows of nodes
LONELY_USER, COLD_ITEM = 13, 7  # without interactions; the item lacks content too
N_SOURCE_USERS, N_SOURCE_ITEMS = 17, 29  # of the second domain; other sizes, for the same reason


@dataclass(frozen=True)
class Case:
    """A plugin, its settings and the name of a toy backbone (:data:`HOSTS`), maybe with a second domain."""

    plugin: Plugin
    settings: PluginSettings
    host: str
    second_domain: bool = False

    def __str__(self) -> str:
        return f"{self.plugin.name} on {self.host}{' with a source' if self.second_domain else ''}"

    def backbone(self, edges: Tensor | None = None) -> Toy:
        """The bare toy, the same at every call, over ``edges [2, n]``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return HOSTS[self.host](N_USERS, N_ITEMS, self.edges() if edges is None else edges)

    def modalities(self) -> dict[str, Modality]:
        """Content of different widths and precisions; item 3 lacks the first, item 5 the second, item 7 all."""
        generator = torch.Generator("cpu").manual_seed(2)
        names = ["image", "text", "audio", "video"][: max(2, self.plugin.requirements(self.settings).modalities)]
        found = {}
        for index, name in enumerate(names):
            present = torch.ones(N_ITEMS, dtype=torch.bool, device="cpu")
            present[[0, 3 + 2 * index, 7]] = False
            values = torch.randn(N_ITEMS, 5 + 3 * index, generator=generator, device="cpu")
            values = (values * present.unsqueeze(1)).to(torch.float16 if index else torch.float32)
            found[name] = Modality(name, values, present)
        return found

    def factors(self) -> FactorProfiles:
        """Three factors, one with several values an item and one with an 'other'; item 7 has no profile at all."""
        generator = torch.Generator("cpu").manual_seed(8)
        factors = (
            Factor("material", ("steel", "wood", "paper", "other"), other=3),
            Factor("use", ("home", "work", "travel"), source="image"),
            Factor("style", ("old", "new"), source="catalogue"),
        )
        chosen = torch.rand(N_ITEMS, 9, generator=generator, device="cpu") < 0.3
        single = torch.randint(-1, 4, (N_ITEMS, 1), generator=generator, device="cpu")  # -1: unknown
        chosen[:, :4] = single == torch.arange(4, device="cpu")
        chosen[[0, COLD_ITEM]] = False
        items, values = chosen.nonzero(as_tuple=True)
        return FactorProfiles(factors, items, values, N_ITEMS)

    def edges(self) -> Tensor:
        """``[2, n]`` training interactions (user, item), some twice; one user and one item have none."""
        generator = torch.Generator("cpu").manual_seed(3)
        users = torch.arange(1, LONELY_USER, device="cpu").repeat_interleave(4)
        items = torch.randint(1, N_ITEMS - 1, (len(users),), generator=generator, device="cpu")
        return torch.stack([users, items + (items >= COLD_ITEM)])

    def batch(self) -> Batch:
        """Histories of different lengths, with items that lack content; the targets are distinct."""
        generator = torch.Generator("cpu").manual_seed(4)
        lengths = torch.tensor([LENGTH, 3, 1, 4], device="cpu")
        sequence = torch.randint(1, N_ITEMS, (len(lengths), LENGTH), generator=generator, device="cpu")
        sequence[0, :3] = torch.tensor([3, 5, 7], device="cpu")
        places = torch.arange(LENGTH, device="cpu")
        order = 1 + torch.randperm(N_ITEMS - 1, generator=generator, device="cpu")
        return Batch(
            users=torch.arange(1, 1 + len(lengths), device="cpu"),
            positives=order[:4],
            negatives=order[4:8],
            sequence=torch.where(places < lengths.unsqueeze(1), sequence, 0),
            lengths=lengths,
        )

    def source(self) -> ToySource:
        """The second domain: the bare toy over other data, one batch of them, and linked users."""
        generator = torch.Generator("cpu").manual_seed(9)
        users = torch.arange(1, N_SOURCE_USERS, device="cpu").repeat_interleave(3)
        items = torch.randint(1, N_SOURCE_ITEMS, (len(users),), generator=generator, device="cpu")
        edges = torch.stack([users, items])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(10)
            backbone = HOSTS[self.host](N_SOURCE_USERS, N_SOURCE_ITEMS, edges)
        context = _context(self.host, backbone, n_users=N_SOURCE_USERS, n_items=N_SOURCE_ITEMS, edges=edges)
        links = torch.tensor([[1, 9], [2, 3], [4, 1], [7, 12], [8, 2], [11, 6], [16, 5]], device="cpu")
        held_out = torch.tensor([[5, 4], [6, 8], [9, 7]], device="cpu")
        return ToySource(ToyHost(backbone, {}, context), [self.batch()], links=links, held_out=held_out)

    def build(
        self,
        *,
        backbone: Toy | None = None,
        modalities: Mapping[str, Modality] | None = None,
        edges: Tensor | None = None,
        factors: FactorProfiles | None = None,
    ) -> ToyHost:
        """The augmented toy, as an adapter builds it: in a forked random state, seeded with the run's seed."""
        edges = self.edges() if edges is None else edges
        backbone = backbone or self.backbone(edges)
        context = self.context(backbone, modalities=modalities, edges=edges, factors=factors)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed)
            augmentation = self.plugin.build(self.settings, context)
        return ToyHost(backbone, {self.plugin.name: augmentation}, context)

    def context(
        self,
        backbone: Toy,
        *,
        modalities: Mapping[str, Modality] | None = None,
        edges: Tensor | None = None,
        factors: FactorProfiles | None = None,
    ) -> Context:
        """What the plugin's builder is told of this toy and its data."""
        return _context(
            self.host,
            backbone,
            n_users=N_USERS,
            n_items=N_ITEMS,
            edges=self.edges() if edges is None else edges,
            modalities=self.modalities() if modalities is None else modalities,
            factors=factors or self.factors(),
            source=self.source() if self.second_domain else None,
        )

    def at_identity(self) -> Case:
        """The same case at the settings at which the plugin adds nothing; a second domain would add its own loss."""
        values = {**self.settings.model_dump(exclude_unset=True), **self.plugin.identity}
        return replace(self, settings=settings_of(self.plugin, values), second_domain=False)


def _context(
    name: str,
    backbone: Toy,
    *,
    n_users: int,
    n_items: int,
    edges: Tensor,
    modalities: Mapping[str, Modality] | None = None,
    factors: FactorProfiles | None = None,
    source: ToySource | None = None,
) -> Context:
    """What an adapter says of a toy."""
    tables: dict[Side, torch.nn.Embedding] = {"items": backbone.items}
    if isinstance(backbone, ToyGraph):
        tables["users"] = backbone.users
    width: dict[str, int] = {side: table.embedding_dim for side, table in tables.items()}
    if "propagated" in backbone.seams:
        width["propagated"] = width["items"]
    return Context(
        host=name,
        family=backbone.family,
        n_users=n_users,
        n_items=n_items,
        n_rows={side: table.num_embeddings for side, table in tables.items()},
        width=width,
        edges=edges,
        modalities=modalities or {},
        factors=factors,
        mask_id=backbone.mask_id,
        steps_per_epoch=3,
        device=torch.device("cpu"),
        seed=5,
        propagate=partial(lightgcn, layers=2) if backbone.family == "graph" else None,
        loss_reduction=backbone.loss_reduction,
        source=source,
        free_width=isinstance(backbone, ToyPropagation) and backbone.free_width,
        halves=backbone.halves,
    )


def cases(plugin: Plugin, settings: Mapping[str, Any] | None = None, hosts: Iterable[str] = tuple(HOSTS)) -> list[Case]:
    """The toy backbones that a plugin fits, with validated settings; with a second domain too where that is optional.

    Args:
        plugin: the plugin.
        settings: given settings; others take their defaults.
        hosts: names in :data:`HOSTS`; those of a family that the plugin does not declare, and those without a seam on
            which it acts, are left out.

    Raises:
        RecplugError: if a setting is wrong, or the toys cannot offer what the plugin requires.
    """
    parsed = settings_of(plugin, settings or {})
    needs = plugin.requirements(parsed)
    toys = [(Case(plugin, parsed, host), Case(plugin, parsed, host).backbone()) for host in hosts]
    toys = [(case, toy) for case, toy in toys if toy.family in needs.families]
    if not toys:
        raise RecplugError(
            f"none of the toy hosts is of a family that {plugin.name} declares: {sorted(needs.families)}"
        )
    offered = {case.host: toy.seams - (frozenset() if needs.halves <= toy.halves else {"score"}) for case, toy in toys}
    fitting = [(case, toy) for case, toy in toys if needs.seams <= offered[case.host]]
    if not fitting:
        missing = sorted(needs.seams - frozenset().union(*offered.values()))
        seams = missing or f"{sorted(needs.seams)} together"
        raise RecplugError(f"the toy hosts do not offer {seams}, on which {plugin.name} acts")
    fitting = [(case, toy) for case, toy in fitting if not needs.one_of or needs.one_of & offered[case.host]]
    if not fitting:
        raise RecplugError(f"the toy hosts offer none of {sorted(needs.one_of)}, on which {plugin.name} acts")
    fitting = [(case, toy) for case, toy in fitting if toy.family == "sequential" or not needs.backbone_in_loss]
    if not fitting:
        raise RecplugError(f"{plugin.name} re-runs the encoder, which of the toy hosts the sequential ones offer")
    domains = {"no": (False,), "optional": (False, True), "required": (True,)}[needs.second_domain]
    return [replace(case, second_domain=second) for case, _ in fitting for second in domains]


def step_loss(host: ToyHost, batch: Batch) -> Tensor:
    """The loss of one training step, with the host's dropout from a fixed seed."""
    torch.manual_seed(6)
    return host.train().loss(batch)


def trained(host: ToyHost, batch: Batch) -> ToyHost:
    """``host`` after two steps of training, with an evaluation between them."""
    optimiser = torch.optim.SGD(host.parameters(), lr=0.5)
    for _ in range(2):
        optimiser.zero_grad()
        step_loss(host, batch).backward()
        optimiser.step()
        host.scores(batch)
    return host


def same_future(host: ToyHost, other: ToyHost, batch: Batch) -> str:
    """Whether two hosts score alike and take the same next step; what differs, or an empty string."""
    if not torch.equal(host.scores(batch), other.scores(batch)):
        return "the scores differ"
    # Both take the step on copies: the question must not move their noise.
    losses = [step_loss(copy.deepcopy(one), batch) for one in (host, other)]
    return "" if torch.equal(*losses) else "the next step's losses differ (is the noise's position kept?)"


def finite(host: ToyHost, loss: Tensor, batch: Batch) -> None:
    """The loss, its gradients and the scores are finite."""
    require(loss.isfinite(), "the loss is not finite")
    loss.backward()
    for name, parameter in host.named_parameters():
        require(parameter.grad is None or parameter.grad.isfinite().all(), f"the gradient of {name} is not finite")
    require(host.scores(batch).isfinite().all(), "a score is not finite")


def snapshot(host: ToyHost) -> dict[str, Tensor]:
    """Every tensor of the state dict, and the position of every generator, that one module holds."""
    found: dict[str, Tensor] = {}
    for path, module in host.named_modules():
        held = {**vars(module), **module._parameters, **module._buffers}
        for name, value in held.items():
            if isinstance(value, Tensor):
                found[f"{path}.{name}"] = value.detach().clone()
            if isinstance(value, torch.Generator):
                found[f"{path}.{name}"] = value.get_state()
    return found
