"""What MAGNET's modes share: the mixture, the trigger, the losses of the routing, and the log."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.contract import Augmentation, Modality, Panel
from recplug.plugins.magnet import diagnostics
from recplug.plugins.magnet.content import Content, mix
from recplug.plugins.magnet.experts import Experts, Templates, plain, templates
from recplug.plugins.magnet.losses import coverage, usage, weights
from recplug.plugins.magnet.router import Router, Routing
from recplug.plugins.magnet.settings import MagnetSettings
from recplug.plugins.magnet.trigger import Trigger
from recplug.plugins.nn import Noise

log = logging.getLogger("recplug")
BEHAVIOUR = "behaviour"
PAIRS = 20_000  # training pairs that the pictures look at


class Magnet(Augmentation):
    r"""A mixture of experts over behaviour and content, routed by behaviour alone (MAGNET, arXiv 2602.20723).

    .. math::
        x^e &= w^e_B\,z + \textstyle\sum_m w^e_m\,h^m && \text{(9, 10), fixed mixes (12-15)} \\
        \pi &= \mathrm{softmax}(\mathrm{Router}(z)), \quad \tilde\pi = \pi \text{ on its K best, renormalised}
        && \text{(16-19)} \\
        \mathcal L &= \lambda_{cov} \textstyle\sum_e (\bar\pi_e - 1/E)^2 + \lambda_{conf}\,\overline{H(\pi)}
        + \lambda_{ctr} \mathcal L_{view} && \text{(28-31)}

    Stage 1 presses for coverage, stage 2 for decided routing; :class:`Trigger` says when it changes.

    Where we deviate: the paper gives no shape of heads, router and score, no epsilon and no place of the dropout;
    content is frozen, at unit length, and an item or history without it is not asked for the experts anchored on it;
    the entropy in the weights of eq. 31 carries no gradient, and is divided by what an even router reaches; means over
    a batch; users' profiles leave out the positive in training; an expert is by default a weighed dot product; and the
    result is added, times a trained gamma, to the dot product of the behaviour vectors, or to the backbone's rows.

    Args:
        settings: every choice.
        modalities: content sources, at least one.
        n_rows: rows of the item table.
        n_users: with the padding row.
        edges: ``[2, n]`` (user, item) training interactions.
        width: d, of behaviour vectors.
        of_pairs: whether pairs are routed, or items.
        by_vectors: whether experts read projected content vectors.
        seed: of the plugin's noise.
    """

    edges: Tensor
    templates: Tensor
    anchors: Tensor

    def __init__(
        self,
        *,
        settings: MagnetSettings,
        modalities: Sequence[Modality],
        n_rows: int,
        n_users: int,
        edges: Tensor,
        width: int,
        of_pairs: bool,
        by_vectors: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.width = width
        self.n_rows = n_rows
        self.n_users = n_users
        self.sources = (BEHAVIOUR, *(m.name for m in modalities))
        self.noise = Noise(seed)
        self.pool = _pool(settings, self.sources)
        self.top_k = min(settings.top_k, self.pool.n_experts)
        self.register_buffer("edges", edges, persistent=False)
        self.register_buffer("templates", self.pool.weights.to(edges.device), persistent=False)
        self.register_buffer("anchors", self.pool.anchors.to(edges.device), persistent=False)
        self.free: nn.Parameter | None = None
        if settings.structure == "free":
            self.free = nn.Parameter(torch.empty(self.pool.n_experts, len(self.sources)))
        self.gamma: nn.Parameter | None = None
        if settings.base != "none":
            self.gamma = nn.Parameter(torch.empty(()), requires_grad=not settings.inert)
        self.content: Content | None = None
        if by_vectors:
            self.content = Content(
                modalities=modalities,
                n_rows=n_rows,
                n_users=n_users if of_pairs else 0,
                edges=edges,
                width=width,
                content_width=settings.content_width,
            )
        shape = {
            "width": width,
            "experts": self.pool.n_experts,
            "of_pairs": of_pairs,
            "dropout": settings.dropout,
            "noise": self.noise,
        }
        self.router = Router(**shape)  # type: ignore[arg-type]
        self.experts = Experts(form="concat" if settings.expert_input == "concat" else "product", **shape)  # type: ignore[arg-type]
        self.trigger = Trigger(kind=settings.trigger, threshold=settings.threshold, patience=settings.patience)
        self._told = 0, False  # steps at the last line of the log, and whether the switch was told
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every layer anew; the trigger's state stays."""
        for part in (self.content, self.router, self.experts):
            if part is not None:
                part.reset_parameters()
        with torch.no_grad():
            if self.gamma is not None:
                self.gamma.fill_(self.settings.gamma)
            if self.free is not None:
                self.free.zero_()

    # -- the mixture

    def mixes(self) -> Tensor:
        """``[E, M]``: the experts' weights of the sources."""
        return self.templates if self.free is None else self.free.float().softmax(dim=-1)

    def inputs(self, z: Tensor, cues: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """The experts' inputs ``[r, E, d]``, and which of them lack their anchor, ``[r, E]`` bool.

        Args:
            z: ``[r, d]``.
            cues: ``[r, M-1, d]``.
            present: ``[r, M-1]`` bool.
        """
        return mix(z, cues, present, self.mixes()), self.lacking(present)

    def lacking(self, present: Tensor) -> Tensor:
        """``[r, E]`` bool: experts whose anchor is not among the sources ``present [r, M-1]``."""
        return ~F.pad(present, (1, 0), value=True).index_select(1, self.anchors)

    def join(self, base: Tensor, own: Tensor) -> Tensor:
        """The backbone's and MAGNET's scores or rows, both of one shape: added, or the latter in place."""
        if self.gamma is None:
            return own.to(base.dtype)
        return base + (self.gamma * own).to(base.dtype)

    # -- losses

    def route_losses(self, dense: Tensor, entropy: Tensor, asked: Tensor) -> dict[str, Tensor]:
        """Coverage and confidence of the positives' routing, ``dense [b, E]`` and ``entropy [b]``.

        In training the trigger looks at it first (Alg. 2), so that the weights are those of the new stage. ``asked
        [b, E]`` are the experts that each pair could be routed to.
        """
        settings, trigger = self.settings, self.trigger
        if not len(entropy) or dense.shape[1] < 2:
            return {}
        found = usage(dense, entropy, asked)
        if self.training:
            trigger.observe(found.marginal)
        on_coverage, on_confidence = weights(
            found.marginal, trigger.second(), scale=settings.lambda_route, weighting=settings.weighting
        )
        if self.training:
            trigger.note(found.marginal, found.conditional, on_coverage, on_confidence)
        if not settings.lambda_route:
            return {}
        return {"coverage": on_coverage * coverage(dense, found), "confidence": on_confidence * entropy.mean()}

    def reduced(self, parts: dict[str, Tensor], n_pairs: int) -> dict[str, Tensor]:
        """The losses beside a mean over a batch of ``n_pairs``, as the host's is taken to be."""
        return parts if self.settings.reduction == "mean" else {name: part / n_pairs for name, part in parts.items()}

    # -- the log

    def on_epoch_start(self, epoch: int) -> None:
        """Let the trigger see the epoch, and say what the routing did in the one before."""
        self.trigger.begin_epoch(epoch)
        if epoch:
            self._tell()

    def on_evaluation_end(self, epoch: int, score: float) -> None:
        """Say what the routing did."""
        self._tell()

    def _tell(self) -> None:
        """One line on the switch, once; and one on the entropies of the last epoch."""
        if self.settings.inert:
            return
        state, (steps, switched) = self.trigger.state(), self._told
        if state["step"] == steps:
            return
        self._told = state["step"], state["stage"] > 1
        experts = self.pool.n_experts
        marginal, conditional = self.trigger.means()[-1, :2].tolist()
        log.info(
            "magnet: stage %d, entropy %.3f (%.1f of %d experts in use), of single routings %.3f",
            state["stage"],
            marginal,
            experts**marginal,
            experts,
            conditional,
        )
        if state["stage"] < 2 or switched:
            return
        at = state["switch_step"], state["switch_epoch"]
        log.info("magnet: stage 2 since step %d of epoch %d (trigger %s)", *at, self.settings.trigger)
        if state["switch_epoch"] == 0 and self.trigger.fixed_at is None:
            log.warning(
                "magnet: the trigger fired inside the first epoch, at step %d: a fresh router is balanced, so this "
                "says nothing of training, and stage 1 hardly took place; set magnet.trigger to armed",
                state["switch_step"],
            )

    # -- pictures

    @torch.no_grad()
    def diagnostics(self) -> dict[str, Panel | Tensor]:
        """The mixes, gamma and the entropy; where an evaluation is under way, also how it routed training pairs."""
        found: dict[str, Panel | Tensor] = {"templates": self.mixes().detach().clone()}
        if self.gamma is not None:
            found["gamma"] = self.gamma.detach().clone()
        curve, settings = self.trigger.means(), self.settings
        if len(curve):
            found["entropy"] = diagnostics.entropy(
                curve, self.trigger.state(), trigger=settings.trigger, threshold=settings.threshold
            )
        users, items = self._sample()
        routing = self.sampled_routing(users, items) if len(users) and not settings.inert else None
        if routing is None:
            return found
        names, pool = self.sources, self.pool
        found["utilisation"] = diagnostics.utilisation(pool, names, routing.dense.mean(dim=0), self.top_k)
        found["slots"] = (routing.kept > 0).float().mean(dim=0) / self.top_k
        found["sources"] = diagnostics.shares(names, routing.kept.mean(dim=0), self.mixes())
        groups = diagnostics.groups_of(self.edges, self.n_users, self.n_rows, users, items)
        found["routing"] = diagnostics.by_group(routing.dense, pool.names, groups)
        return found

    def _sample(self) -> tuple[Tensor, Tensor]:
        """Some training pairs."""
        edges = self.edges
        if edges.shape[1] > PAIRS:
            edges = edges[:, Noise(self.noise.seed).permutation(edges.shape[1], edges.device)[:PAIRS]]
        return edges[0], edges[1]

    def sampled_routing(self, users: Tensor, items: Tensor) -> Routing | None:
        """The routing by which pairs ``[n]`` are scored in this step; None where there is none under way."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Sizes, and the choices that differ from the defaults."""
        changed = self.settings.model_dump(exclude_defaults=True)
        return ", ".join([f"sources={list(self.sources)}", *(f"{k}={v!r}" for k, v in changed.items())])


def _pool(settings: MagnetSettings, sources: Sequence[str]) -> Templates:
    found = templates(sources, alpha=settings.alpha, beta=settings.beta, delta=settings.delta)
    if settings.structure == "template":
        return found
    return plain(sources, 1 if settings.structure == "single" else found.n_experts)
