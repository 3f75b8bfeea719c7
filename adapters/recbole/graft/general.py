"""Augmented general models: tables of users and items, and the nodes that graph backbones propagate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.adapters.recbole.compat.patching import replaced
from recplug.adapters.recbole.graft.base import OWN, Grafted
from recplug.adapters.recbole.graft.fast_products import fast_forward
from recplug.adapters.recbole.graft.score_seam import (
    pair_by_pair,
    pairs_of,
    pairwise_losses,
    rank,
    ranks_everything,
    score_block,
    score_through,
)
from recplug.plugins.chain import Chain, versions_of
from recplug.plugins.contract import BOTH_HALVES, Context, Seam
from recplug.plugins.errors import RecplugError
from recplug.plugins.nn.propagation import Adjacency, lightgcn
from recplug.plugins.step import Step

CACHES = "restore_"  # how RecBole's graph models call the nodes that they keep between two batches of an evaluation
LAYERS = 2  # of LightGCN's rule, for hosts without a number of layers of their own


class GraftedNodes(Grafted):
    """A general backbone; where it propagates, the plugins see what it propagated."""

    def __init__(self, config: Any, dataset: Any) -> None:
        self._recplug_seen: list[int] | None = None
        self._recplug_forward: Callable[..., Any] = self.recplug_base.forward  # type: ignore[attr-defined]
        self.recplug_block = score_block(config["score_block"])
        super().__init__(config, dataset)
        if self.recplug_fast:
            self._recplug_forward = fast_forward(self.recplug_base)
        # A propagating host reads its whole tables in every step, and so may what changes scores (Step.nodes).
        self.recplug_whole_table = bool(self.recplug_host.nodes or self.recplug.scoring("training"))
        if self.recplug_names and self.recplug_host.nodes not in ("", "forward"):
            encoder: nn.Module = getattr(self, self.recplug_host.nodes)
            encoder.__dict__["recplug_chain"] = self.recplug
            encoder.register_forward_hook(_through_chain)
        if self.recplug.propagates:
            self.recplug.vectors = self._recplug_vectors
        if self.recplug.scoring("training"):
            score_through(self.recplug, self.get_submodule(self._recplug_pair_loss()))  # type: ignore[attr-defined]

    def _recplug_seams(self) -> frozenset[Seam]:
        seams = set(super()._recplug_seams())
        if not self._recplug_propagates():
            seams.discard("propagated")
        if not isinstance(getattr(self, self.recplug_host.graph or "", None), Adjacency):
            seams.discard("graph")
        return frozenset(seams)

    def _recplug_pair_loss(self) -> str:
        """Where the loss is that compares the scores of the batch's pairs; empty where there is none."""
        host = self.recplug_host
        if host.reason != OWN:
            return host.pair_loss
        found = pairwise_losses(self)  # type: ignore[arg-type]
        has_vectors = self._recplug_propagates() or all(self._recplug_embeddings())
        return found[0] if len(found) == 1 and has_vectors else ""

    def _recplug_propagates(self) -> bool:
        host = self.recplug_host
        if host.reason != OWN:
            return bool(host.nodes)
        if self.recplug_base.forward is nn.Module.forward:  # type: ignore[attr-defined]
            return False
        arguments = inspect.signature(self.recplug_base.forward).parameters.values()  # type: ignore[attr-defined]
        required = [a for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
        return len(required) == 1  # self

    def _recplug_context(
        self, config: Any, dataset: Any, items: nn.Embedding | None, users: nn.Embedding | None
    ) -> Context:
        context = super()._recplug_context(config, dataset, items, users)
        layers = getattr(self, "n_layers", LAYERS)
        width = dict(context.width)
        if self.recplug_names and self._recplug_propagates():
            width["propagated"] = self._recplug_node_width(context)
        return replace(
            context,
            width=width,
            free_width=self.recplug_host.free_width,
            others_nodes=self.recplug_host.others_nodes,
            halves=BOTH_HALVES if self._recplug_pair_loss() else context.halves,
            propagate=functools.partial(lightgcn, layers=int(layers)),
        )

    def _recplug_node_width(self, context: Context) -> int:
        """Run the host's propagation once, unseen by the random state."""
        self.to(context.device)  # type: ignore[attr-defined]
        devices = [context.device] if context.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            host = self.recplug_host
            run = super().forward if host.nodes == "forward" else getattr(self, host.nodes)  # type: ignore[misc]
            found = run(*(getattr(self, name) for name in host.node_arguments))
        if not isinstance(found, tuple) or len(found) < 2 or not all(isinstance(t, Tensor) for t in found[:2]):
            raise RecplugError(f"{host.name}.forward() does not return (users, items); give it another name")
        users, items = found[:2]
        if (len(users), len(items)) != (context.n_users, context.n_items) or users.shape[1:] != items.shape[1:]:
            raise RecplugError(
                f"{host.name}.forward() returns {tuple(users.shape)} and {tuple(items.shape)}; expected "
                f"[{context.n_users}, w] and [{context.n_items}, w]"
            )
        return users.shape[1]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The host's; what it propagates on the training graph passes through the plugins."""
        host, chain = self.recplug_host, self.recplug
        names = host.node_arguments
        ours = host.nodes == "forward" and chain.propagates
        if not ours or kwargs or any(a is not getattr(self, n) for a, n in zip(args, names, strict=False)):
            return self._recplug_forward(self, *args, **kwargs)
        self._recplug_refresh()
        step = chain.current()
        if step.kind == "evaluation" and "recplug.nodes.users" in step.memory:
            return step.memory["recplug.nodes.users"], step.memory["recplug.nodes.items"]
        with self._recplug_over_graph(step):
            users, items, *rest = self._recplug_forward(self, *(getattr(self, n) for n in names[: len(args)]))
        users, items = chain.propagated(step, users, items)
        if step.kind == "evaluation" and not rest:  # `predict` propagates anew for each batch
            step.memory["recplug.nodes.users"], step.memory["recplug.nodes.items"] = users, items
        return (users, items, *rest)

    @contextmanager
    def _recplug_over_graph(self, step: Step) -> Iterator[None]:
        """In this block the host's graph is the one that the plugins make of it for ``step``."""
        name = self.recplug_host.graph
        if not name or not self.recplug.acting("graph"):
            yield
            return
        with replaced(self, **{name: self.recplug.graph(step, getattr(self, name))}):
            yield

    @torch.no_grad()
    def recplug_encode(self) -> None:
        """Propagate once, in evaluation."""
        if self.recplug.propagates:
            self._recplug_propagate()

    def _recplug_propagate(self) -> None:
        """Let the host propagate on its training graph, and the current step see it."""
        host = self.recplug_host
        run = self.forward if host.nodes == "forward" else getattr(self, host.nodes)
        run(*(getattr(self, name) for name in host.node_arguments))

    def _recplug_vectors(self, users: Tensor) -> Tensor:
        """``users [b]`` to their nodes ``[b, w]``, in a step whose host has not propagated yet."""
        self._recplug_propagate()
        nodes = self.recplug.current().propagated
        assert nodes is not None
        return F.embedding(users, nodes[0])

    def train(self, mode: bool = True) -> Any:
        """Switch mode; nodes that an evaluation kept are dropped."""
        found = super().train(mode)
        self._recplug_drop_caches()
        return found

    def predict(self, interaction: Any) -> Tensor:
        """The host's scores of pairs ``[b]``, by nodes that fit its parameters, through the plugins."""
        self._recplug_refresh()
        if not self.recplug.scoring("ranking"):
            return super().predict(interaction)  # type: ignore[misc]
        with self._recplug_asking() as step:
            if self.recplug.by_whole_rows():
                return pairs_of(functools.partial(self._recplug_rank, step=step), self, interaction)
            base = super().predict(interaction)  # type: ignore[misc]
            users, items = interaction[self.USER_ID], interaction[self.ITEM_ID]  # type: ignore[attr-defined]
            return self.recplug.score(step, base, users, items)

    def full_sort_predict(self, interaction: Any) -> Tensor:
        """The host's scores of every item ``[B * n_items]``, by nodes that fit its parameters, through the plugins."""
        self._recplug_refresh()
        if not self.recplug.scoring("ranking"):
            return super().full_sort_predict(interaction)  # type: ignore[misc]
        with self._recplug_asking() as step:
            return self._recplug_rank(interaction, step).reshape(-1)

    def _recplug_rank(self, interaction: Any, step: Step) -> Tensor:
        """``[B, n_items]``; what the host keeps between two batches may be an earlier step's."""
        host = super().full_sort_predict  # type: ignore[misc]
        if not ranks_everything(self):
            host = functools.partial(pair_by_pair, super().predict, self, n_items=self.recplug.n_items)  # type: ignore[misc]
        return rank(self, host, interaction, step, self.recplug_block)

    @contextmanager
    def _recplug_asking(self) -> Iterator[Step]:
        """One step for the host's scores and for what is made of them: kept nodes may be an earlier step's."""
        with self.recplug.asking() as step:
            self._recplug_drop_caches()
            yield step

    def _recplug_refresh(self) -> None:
        """Forget what was computed with other parameters: the host's own caches outlive a loaded checkpoint."""
        if self.training or torch.is_grad_enabled():  # type: ignore[attr-defined]
            return
        versions = versions_of(self.parameters())  # type: ignore[attr-defined]
        if versions != self._recplug_seen:
            self._recplug_seen = versions
            self.recplug.forget()
            self._recplug_drop_caches()

    def _recplug_caches(self) -> list[str]:
        return [name for name in getattr(self, "other_parameter_name", ()) if name.startswith(CACHES)]

    def _recplug_drop_caches(self) -> None:
        for name in self._recplug_caches():
            setattr(self, name, None)

    def other_parameter(self) -> dict[str, Any]:
        """What the host saves beside its parameters, without kept nodes: they can be computed."""
        return {**super().other_parameter(), **dict.fromkeys(self._recplug_caches())}  # type: ignore[misc]

    def load_other_parameter(self, para: dict[str, Any] | None) -> None:
        """Take back what the host saved, without nodes that other plugins may have made."""
        kept = self._recplug_caches()
        super().load_other_parameter({k: v for k, v in (para or {}).items() if k not in kept})  # type: ignore[misc]
        self._recplug_drop_caches()


def _through_chain(encoder: nn.Module, arguments: tuple[Any, ...], nodes: tuple[Tensor, Tensor]) -> Any:
    chain: Chain = encoder.__dict__["recplug_chain"]
    step: Step = chain.current()
    return chain.propagated(step, *nodes)
