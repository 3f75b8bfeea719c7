"""Vectors for items that had no row in training, from their profile and, where there is any, their content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recplug.plugins.contract import Modality
from recplug.plugins.errors import RecplugError
from recplug.plugins.factors import FactorProfiles
from recplug.plugins.mars.fusion import FactorFusion
from recplug.plugins.mars.label_probe import multi_hot
from recplug.plugins.nn.content import modality_weights

Route = Literal["factors", "neighbours", "factors and neighbours", "global mean"]
ROUTES: tuple[Route, ...] = ("global mean", "neighbours", "factors", "factors and neighbours")
BLOCK = 1024  # items whose neighbours are searched at once
WARM = 5_000  # known items on which lengths are compared


@torch.no_grad()
def vectors_of_new_items(
    fusion: FactorFusion,
    base: Tensor,
    profiles: FactorProfiles,
    modalities: Mapping[str, Modality] | None = None,
    *,
    known: Mapping[str, Modality] | None = None,
    ids: Tensor | None = None,
    popularity: Tensor | None = None,
) -> tuple[Tensor, list[Route]]:
    r"""Vectors of items that have no row, to be scored beside those that have (ours; the paper has none).

    .. math:: \tilde e = s \, \big( \bar e + H \big), \qquad
        \bar e = \frac{a^0 \bar e_{near} + \sum_k a^k \, \mathrm{mean}(e_j : l_k(j) = l_k)}{a^0 + \sum_k a^k}

    H is made as for other items, from the means of groups and neighbours that training left; all sums run over what is
    known of the item. Beside a structure of weight 1 the gate's weights need not add up to 1: H keeps them, as training
    weighed branches by them, and what stands in the place of the item's own row is their mean. The gate is uniform, as
    an item without a row has no X. Neighbours are the nearest known items by content, where the module has a structural
    graph made from content. Means are shorter than trained rows, which would bury new items: s is the median length of
    known items' scored vectors over the median length that this recipe gives the same items (they count in their
    groups, but are not their own neighbours). Known items are those with training interactions.

    Args:
        fusion: trained.
        base: ``[n_rows, d]``, the backbone's items before MARS (of a graph, the propagated ones).
        profiles: of the unseen items, which are rows 1 to n (row 0 is padding), under the trained factors.
        modalities: content of the same rows, by name, or None.
        known: content of the backbone's items by name, among which neighbours are looked for; None: no neighbours.
        ids: ``[n_rows, d]``, the backbone's item table, where ``base`` is propagated from it; None: ``base``.
        popularity: ``[n_rows]`` training interactions of the backbone's items, or None.

    Returns:
        Vectors ``[n, d]`` float32 of rows 1 to n, and from what each was made. An item of which nothing is known gets
        the mean of the known items, which favours nobody.

    Raises:
        RecplugError: other factors than in training, or rows that do not match.
    """
    given = dict(modalities or {})
    table = {name: each for name, each in (known or {}).items() if name in given}
    _check(fusion, base, profiles, given, table)
    device = base.device
    base = base.float()
    ids = base if ids is None else ids.float()
    warm = torch.arange(1, fusion.profiles.n_items, device=device)
    if popularity is not None and bool((popularity > 0).any()):
        warm = warm[popularity.to(device)[warm] > 0]
    sample = warm[:: -(-len(warm) // WARM)]  # evenly, at most WARM of them
    scored = fusion.join(base[sample], fusion(fusion.pool(ids), sample)[0]).float()  # [w, d]

    recipe = _Recipe(fusion, base, ids, warm, table)
    rows = torch.arange(1, profiles.n_items, device=device)
    vectors, have = recipe(multi_hot(profiles.to(device), rows), rows, given)
    again, _ = recipe(multi_hot(fusion.profiles.to(device), sample), sample, table, known=True)
    some = again.norm(dim=1) > 0
    if bool(some.any()):
        vectors = vectors * (scored[some].norm(dim=1).median() / again[some].norm(dim=1).median())
    vectors = torch.where(have.any(dim=1, keepdim=True), vectors, scored.mean(dim=0))
    routes = have[:, 1:].any(dim=1).long() * 2 + have[:, 0].long()  # [n]: places in ROUTES
    return vectors, [ROUTES[place] for place in routes.tolist()]


class _Recipe:
    """Makes an item's vector from its values and its content alone.

    Args:
        fusion: trained.
        base: ``[n_rows, d]``.
        ids: ``[n_rows, d]``.
        warm: ``[w]``: the rows that may be neighbours.
        table: their content by name.
    """

    def __init__(
        self, fusion: FactorFusion, base: Tensor, ids: Tensor, warm: Tensor, table: Mapping[str, Modality]
    ) -> None:
        self.fusion, self.base, self.warm = fusion, base, warm
        self.x = torch.stack([fusion.content.ids(ids), *fusion.content.blocks("rows")]).sum(dim=0)  # [n_rows, d]
        self.factor_of = fusion.profiles.factor_of.to(base.device)  # [V]
        groups = fusion.groups
        self.readable = torch.zeros(fusion.profiles.n_values, dtype=torch.bool, device=base.device)
        if groups is not None:
            self.readable = groups.sizes > 0  # [V]
            self.rows = groups.means(base)  # [V, d]
            self.values = groups.heard(self.x) if fusion.free is None else fusion.free  # [V, d]
        by_content = fusion.settings.structure in ("auto", "knn")
        self.table = table if fusion.structure is not None and by_content else {}

    def __call__(
        self, hot: Tensor, rows: Tensor, content: Mapping[str, Modality], *, known: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Vectors ``[n, d]`` and what each could read ``[n, K + 1]`` bool.

        Args:
            hot: ``[n, V]`` bool: the items' values.
            rows: ``[n]``: the items' rows in ``content``.
            content: by name.
            known: whether they are rows of the backbone's table, which are not to be their own neighbours.
        """
        fusion = self.fusion
        mine = (hot & self.readable).to(self.x.dtype)  # [n, V]
        counts = mine.new_zeros(len(hot), len(fusion.profiles.factors)).index_add(1, self.factor_of, mine)  # [n, K]
        near, near_x, found = self._neighbours(rows, content, known)
        have = torch.cat([found.unsqueeze(1), counts > 0], dim=1)  # [n, K + 1]
        weights = fusion.gate(self.x.new_zeros(len(hot), self.x.shape[1]), have)
        part = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        mean, h = part[:, :1] * near, weights[:, :1] * near_x
        if fusion.groups is not None:
            mine = mine / counts.clamp(min=1).index_select(1, self.factor_of)  # [n, V]
            mean = mean + (mine * part[:, 1:].index_select(1, self.factor_of)) @ self.rows
            h = h + (mine * weights[:, 1:].index_select(1, self.factor_of)) @ self.values
        return fusion.join(mean, h), have

    def _neighbours(self, rows: Tensor, content: Mapping[str, Modality], known: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Means over neighbours of the backbone's rows and of X, ``[n, d]``; whether there are any ``[n]``."""
        means = [self.x.new_zeros(len(rows), self.x.shape[1]) for _ in range(2)]
        total = self.x.new_zeros(len(rows), 1)
        shares = modality_weights(list(self.table), self.fusion.settings.image_weight)
        for name, share in shares.items():
            places = self.warm[self.table[name].present.to(self.warm.device)[self.warm]]  # [p]
            keys = F.normalize(self.table[name].values.to(places.device)[places].float(), dim=1)  # [p, d_m]
            for start in range(0, len(rows), BLOCK):
                block = slice(start, start + BLOCK)
                mine = rows[block].to(content[name].values.device)
                queries = F.normalize(content[name].values[mine].to(keys.device).float(), dim=1)  # [b, d_m]
                cosine = queries @ keys.T  # [b, p]
                if known:
                    cosine = cosine.masked_fill(places == rows[block].unsqueeze(1), -torch.inf)
                best, at = cosine.topk(min(self.fusion.settings.neighbours, len(places)), dim=1)  # [b, k]
                valid = (best > -torch.inf) & content[name].present[mine].to(keys.device).unsqueeze(1)
                weight = share * valid / valid.sum(dim=1, keepdim=True).clamp(min=1)  # [b, k]
                for mean, vectors in zip(means, (self.base, self.x), strict=True):
                    mean[block] += torch.einsum("bk,bkd->bd", weight, vectors[places[at]])
                total[block] += weight.sum(dim=1, keepdim=True)
        tiny = torch.finfo(total.dtype).tiny
        return means[0] / total.clamp(min=tiny), means[1] / total.clamp(min=tiny), total.squeeze(1) > 0


def _check(
    fusion: FactorFusion,
    base: Tensor,
    profiles: FactorProfiles,
    given: Mapping[str, Modality],
    table: Mapping[str, Modality],
) -> None:
    trained, other = ([(factor.name, factor.values) for factor in each.factors] for each in (fusion.profiles, profiles))
    if trained != other:
        names = [", ".join(name for name, _ in each) for each in (trained, other)]
        raise RecplugError(
            f"mars was trained on the factors {names[0]}; unseen items have {names[1]}, or other values of them; "
            "align them with the trained ones, factors=mars.profiles.factors"
        )
    expected = [len(fusion.available), fusion.width]
    if list(base.shape) != expected:
        raise RecplugError(f"mars needs the backbone's items {expected}, not {list(base.shape)}")
    sizes = {name: (each, profiles.n_items, "profiles") for name, each in given.items()}
    sizes |= {f"known {name}": (each, fusion.profiles.n_items, "trained items") for name, each in table.items()}
    for name, (each, rows, what) in sizes.items():
        if len(each.values) != rows:
            raise RecplugError(
                f"{name} content has {len(each.values)} rows, the {what} {rows}; both begin with padding"
            )
