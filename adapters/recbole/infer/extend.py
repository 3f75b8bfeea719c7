"""New users and items beside a loaded model, by token, and everyone's scores of everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recplug.adapters.features import FeatureTable, find_tables
from recplug.adapters.recbole.data.interactions import interactions
from recplug.adapters.recbole.domains.user_links import read_links
from recplug.adapters.recbole.infer.histories import Askers, Ragged
from recplug.adapters.recbole.infer.inductive import micrec_of, tables_of, trained
from recplug.adapters.recbole.infer.scores import at_work, host_scores
from recplug.plugins.contract import Modality, Side
from recplug.plugins.errors import RecplugError
from recplug.plugins.micrec.content import new_content
from recplug.plugins.micrec.inductive import Inductive, across
from recplug.plugins.micrec.new_nodes import Nodes, Route
from recplug.plugins.nn.knn import Neighbours

Mode = Literal["fold_in", "exact"]
MODES: tuple[Mode, ...] = ("fold_in", "exact")
LINKED = 3  # linked users in whose place someone of the second domain is put, where micrec.neighbours is 0
FOLDED = 8192  # strangers who are given vectors at once
Scorer = Callable[[Tensor], Tensor]  # rows of askers [b] to scores [b, columns]


@dataclass(frozen=True)
class Told:
    """How a user or an item came by its vector; see :class:`recplug.plugins.micrec.new_nodes.Explanation`.

    Attributes:
        route: ``warm``, ``support``, ``content``, ``cross_domain`` or ``global``.
        templates: how many templates it is made from.
        neighbours: tokens of the users, or items, that it was refined with or made from, and how like they are.
    """

    route: Route
    templates: int
    neighbours: list[tuple[str, float]]


class Newcomers:
    """New users and items of one loaded model.

    Items are numbered by the columns of scores: the run's, then the new ones in the order in which they were added.
    Users are numbered likewise.

    Args:
        model: augmented, with its best parameters.
        user_tokens, item_tokens: of the run, by id.

    Raises:
        RecplugError: where the model has no way to make new nodes.
    """

    def __init__(self, model: Any, user_tokens: Sequence[str], item_tokens: Sequence[str]) -> None:
        self.model = model
        self.inductive = Inductive(trained(model))
        self.sequential = model.recplug_host.family == "sequential"
        self.tokens: dict[Side, list[str]] = {"users": list(user_tokens), "items": list(item_tokens)}
        self.n_users, self.n_items = len(user_tokens), len(item_tokens)
        self.ids: dict[Side, dict[str, int]] = {"users": {}, "items": {}}
        self.histories: list[list[int]] = []  # of the new users
        self._gap = self.inductive.size("items") - self.n_items  # rows of no item: BERT4Rec's mask

    # -- who is new

    def add_items(self, tokens: Sequence[str], given: Mapping[str, Modality], support: Tensor) -> None:
        """Add items.

        Args:
            tokens: which.
            given: their content by modality, as far as there is any.
            support: ``[2, m]`` (place in ``tokens``, user id).
        """
        with at_work(self.model):
            known = self.inductive.micrec.contents.get("items")
            content = None if known is None or not given else new_content(known, given, len(tokens))
            self.inductive.extend("items", self.inductive.fold("items", len(tokens), support, content=content))
        self._name("items", tokens)

    def add_users(self, tokens: Sequence[str], histories: Sequence[Sequence[int]]) -> None:
        """Add users with the columns of what they have had."""
        if not self.sequential:
            with at_work(self.model):
                self.inductive.extend("users", self._fold(tokens, Ragged.of(histories)))
        self.histories += [list(each) for each in histories]
        self._name("users", tokens)

    def _name(self, side: Side, tokens: Sequence[str]) -> None:
        start = len(self.tokens[side])
        self.ids[side].update({token: start + at for at, token in enumerate(tokens)})
        self.tokens[side] += tokens

    def _fold(self, names: Sequence[str], past: Ragged) -> Nodes:
        return self.inductive.fold("users", len(names), torch.stack(past.pairs()), across=self._across(names))

    def _across(self, names: Sequence[str]) -> Neighbours | None:
        """Who is nearest, among the linked users, to those of ``names`` whom the second domain knows."""
        micrec, users = self.inductive.micrec, self.inductive.nodes["users"]
        if users is None or micrec.source is None or micrec.transfer is None:
            return None
        ids = torch.tensor([self.elsewhere.get(name, 0) for name in names], dtype=torch.int64)
        return across(micrec, users, ids, micrec.settings.neighbours or LINKED)

    @cached_property
    def elsewhere(self) -> dict[str, int]:
        """Ids of the second domain's training users, by the target's name for them; empty without such a domain."""
        source: Any = self.inductive.micrec.source
        if source is None:
            return {}
        dataset = source.loaders["train"]._dataset
        tokens = dataset.field2id_token[dataset.uid_field]
        there = {str(tokens[row]): row for row in torch.unique(interactions(dataset)[0]).tolist() if row}
        links = self.inductive.micrec.settings.links
        if links is None:
            return there
        return {ours: there[theirs] for theirs, ours in read_links(links) if theirs in there}

    # -- scores

    def scorer(self, askers: Askers, mode: Mode, *, since: bool = False) -> Scorer:
        """What scores every item for ``askers``, at rows of theirs.

        Args:
            askers: who is asked about.
            mode: of their vectors.
            since: whether what known users have had was given, and counts in the exact mode.

        Raises:
            RecplugError: where the host's rule does not allow this mode.
        """
        with at_work(self.model):
            if self.sequential:
                return self._of_histories(askers, mode)
            return self._exactly(askers, since) if mode == "exact" else self._beside(askers)

    def _beside(self, askers: Askers) -> Scorer:
        """Known users keep the host's own scores of known items."""
        items, users = self.inductive.vectors("items"), self.inductive.vectors("users")
        strangers = (askers.users == 0).nonzero().squeeze(1)
        if len(strangers):
            self.inductive.check_fold_in()
            parts = [askers.take(some) for some in strangers.split(FOLDED)]
            users = torch.cat([users, *(self._fold(part.names, part.past).vectors.to(users.dtype) for part in parts)])
        rows = askers.users.clone()
        rows[strangers] = torch.arange(len(users) - len(strangers), len(users))

        def score(block: Tensor) -> Tensor:
            mine = rows[block].to(users.device)
            scores = users[mine] @ items.T  # [b, columns]
            known = (mine < self.n_users).nonzero().squeeze(1)
            if len(known):
                scores[known, : self.n_items] = host_scores(self.model, askers.take(block[known.cpu()]), self.n_items)
            return scores

        return score

    def _exactly(self, askers: Askers, since: bool) -> Scorer:
        """Everyone's anew."""
        strangers = (askers.users == 0).nonzero().squeeze(1)
        rows, more = askers.users.clone(), self._more(askers) if since else None
        with self._for_now():
            if len(strangers):
                some = askers.take(strangers)
                rows[strangers] = torch.arange(len(some)) + self.inductive.size("users")
                self.inductive.extend("users", self._fold(some.names, some.past))
            users, items = self.inductive.exact(more)
        assert users is not None

        def score(block: Tensor) -> Tensor:
            return users[rows[block].to(users.device)] @ items.T  # [b, columns]

        return score

    def _more(self, askers: Askers) -> Tensor:
        """``[2, m]``: what those with a row of theirs have had, (user, item)."""
        owner, items = askers.past.pairs()
        users = askers.users[owner]
        return torch.stack([users, items])[:, users > 0]

    @contextmanager
    def _for_now(self) -> Iterator[None]:
        """What is added inside of the block is forgotten after it."""
        before = {side: list(nodes) for side, nodes in self.inductive.added.items()}
        try:
            yield
        finally:
            self.inductive.added = before

    def _of_histories(self, askers: Askers, mode: Mode) -> Scorer:
        """On a sequential host a new item has a row, for whom a history names it too; users need nothing."""
        anew = mode == "exact"
        table = self.inductive.exact()[1] if anew else self.inductive.vectors("items")  # [rows, d]
        columns = torch.arange(len(self.tokens["items"]), device=table.device)
        candidates = table[columns + self._gap * (columns >= self.n_items)]  # [columns, d]

        def score(block: Tensor) -> Tensor:
            part = askers.take(block)
            owner, items = part.past.pairs()
            named = torch.zeros(len(part), dtype=torch.bool)
            named[owner[items >= self.n_items]] = True  # whose history names a new item
            of_rows = Ragged(part.past.start, items + self._gap * (items >= self.n_items))
            sequence, lengths = (each.to(table.device) for each in of_rows.padded(self.model.max_seq_length))
            with self.model.recplug.asking() as step, tables_of(step, None, table):
                scores = self.model.forward(sequence, lengths) @ candidates.T  # [b, columns]
            known = (~named).nonzero().squeeze(1)
            if len(known) and not anew:
                own = host_scores(self.model, part.take(known), self.n_items)
                scores[known.to(scores.device), : self.n_items] = own
            return scores

        return score

    # -- explanations

    def explain(self, side: Side, row: int) -> Told:
        """How the user, or item, of one number came by its vector."""
        at = row + self._gap if side == "items" and row >= self.n_items else row
        if side == "users" and self.sequential:
            raise RecplugError("a sequential backbone has no vector of a user: it reads the history each time")
        found = self.inductive.explain(side, at)
        return Told(found.route, found.templates, [(self.tokens[side][near], like) for near, like in found.neighbours])


def content_of(
    model: Any, config: Any, tokens: Sequence[str], features: Mapping[str, Any] | None
) -> dict[str, Modality]:
    """Content of new items by modality.

    Args:
        model: with the plugin.
        config: of the run, whose feature tables are read where ``features`` is None.
        tokens: the items.
        features: by modality, ``[n, d]`` in the order of ``tokens`` or a feature table.

    Raises:
        RecplugError: for a modality that training did not see, or numbers that are no rows of the tokens.
    """
    micrec = micrec_of(model)
    names = micrec.contents["items"].names if micrec is not None and "items" in micrec.contents else ()
    if features is None:
        tables = find_tables(config["data_path"], config["dataset"], config["features"] or {})
        features = {name: FeatureTable.load(tables[name]) for name in names if name in tables}
    if strangers := sorted(set(features) - set(names)):
        raise RecplugError(
            f"the run was trained with the content {', '.join(names) or 'of nothing'}, not with {', '.join(strangers)}"
        )
    found = {}
    for name, given in features.items():
        if isinstance(given, FeatureTable):
            if not set(given.tokens).isdisjoint(tokens):
                whole = given.align(["[PAD]", *tokens], name=name)
                found[name] = Modality(name, whole.values[1:], whole.present[1:])
            continue
        values = torch.as_tensor(np.asarray(given), dtype=torch.float32)
        if values.dim() != 2 or len(values) != len(tokens) or not bool(values.isfinite().all()):
            raise RecplugError(f"{name} of new items has to be finite numbers [{len(tokens)}, d], a row a token")
        found[name] = Modality(name, values, (values != 0).any(dim=1))
    return found
