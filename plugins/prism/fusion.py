"""PRISM's parts: projections, experts and gate."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recplug.plugins.contract import Modality
from recplug.plugins.nn import Noise


class Content(nn.Module):
    r"""Frozen content vectors, projected to the backbone's width.

    .. math:: p_m = \mathrm{LayerNorm}(W_m\, x_m / \lVert x_m \rVert + b_m)

    The paper never mentions the projection. Rows are normalised to unit length once, kept in the precision they came
    in, and not saved in checkpoints. An item without a vector gets a learned default, never noise.

    Args:
        modalities: M aligned content sources.
        width: d.
        n_rows: rows of the host's item table; rows beyond a modality's own are absent.
        tune: train the vectors, in float32.

    Shapes:
        ``ids [r]`` to ``[r, M, d]``.
    """

    present: Tensor

    def __init__(self, *, modalities: list[Modality], width: int, n_rows: int, tune: bool = False) -> None:
        super().__init__()
        self.names = tuple(m.name for m in modalities)
        self.width = width
        self.n_rows = n_rows
        self.tuned = nn.ParameterList()
        present = torch.zeros(n_rows, len(modalities), dtype=torch.bool)
        for index, modality in enumerate(modalities):
            rows = torch.zeros(n_rows, modality.width, dtype=modality.values.dtype)
            rows[: len(modality.values)] = F.normalize(modality.values.float(), dim=-1).to(rows.dtype)
            present[: len(modality.present), index] = modality.present
            rows[~present[:, index]] = 0.0  # a NaN stored there would come back as a gradient
            if tune:
                self.tuned.append(nn.Parameter(rows.float()))
            else:
                self.register_buffer(f"rows_{index}", rows, persistent=False)
        self.register_buffer("present", present, persistent=False)
        self.project = nn.ModuleList(nn.Linear(m.width, width) for m in modalities)
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in modalities)
        self.absent = nn.Parameter(torch.empty(len(modalities), width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projections and the defaults anew; the content vectors stay."""
        for linear, norm in zip(self.project, self.norm, strict=True):
            linear.reset_parameters()  # type: ignore[operator]
            norm.reset_parameters()  # type: ignore[operator]
        nn.init.normal_(self.absent, std=0.02)

    def rows(self, index: int) -> Tensor:
        """``[n_rows, d_m]``: the content vectors of one modality."""
        return self.tuned[index] if len(self.tuned) else getattr(self, f"rows_{index}")

    def forward(self, ids: Tensor) -> Tensor:
        """``ids [r]`` to ``[r, M, d]``."""
        projected = []
        for index, (linear, norm) in enumerate(zip(self.project, self.norm, strict=True)):
            vectors = self.rows(index)[ids].to(self.absent.dtype)  # [r, d_m]
            projected.append(norm(linear(vectors)))  # [r, d]
        stacked = torch.stack(projected, dim=1)  # [r, M, d]
        return torch.where(self.present[ids].unsqueeze(-1), stacked, self.absent.to(stacked.dtype))

    def complete(self, ids: Tensor) -> Tensor:
        """``[r]`` bool: items that have every modality."""
        return self.present[ids].all(dim=-1)

    def extra_repr(self) -> str:
        """Names, width and rows."""
        return f"modalities={list(self.names)}, width={self.width}, rows={self.n_rows}, tuned={bool(len(self.tuned))}"


class Experts(nn.Module):
    r"""J = M + 2 experts of one form (eq. 1): one a modality for what is unique, one for synergy, one for redundancy.

    .. math:: e^j = W_2^j\, \mathrm{GELU}\big(\textstyle\sum_m W_1^{j,m} p_m + b_1^j\big) + b_2^j

    The first layer is a sum over modalities, so that masking one of them (eqs. 3, 4) exchanges one summand instead of
    running the expert again. Depth, width and activation are those of the authors' code, whose dropout never reaches
    the output. The ablation "without expert j" has fewer of them.

    Args:
        experts: J.
        modalities: M.
        width: d.
        hidden: h_e.

    Shapes:
        ``p [r, M, d]`` to ``[r, J, d]``; with ``masked(p, z)`` to ``[r, J, M, d]``.
    """

    def __init__(self, *, experts: int, modalities: int, width: int, hidden: int) -> None:
        super().__init__()
        self.n_experts = experts
        self.hidden = hidden
        self.w1 = nn.Parameter(torch.empty(modalities, width, self.n_experts * hidden))
        self.b1 = nn.Parameter(torch.empty(self.n_experts, hidden))
        self.w2 = nn.Parameter(torch.empty(self.n_experts, hidden, width))
        self.b2 = nn.Parameter(torch.empty(self.n_experts, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw as ``nn.Linear`` does, each expert independently."""
        modalities, width, _ = self.w1.shape
        for tensor, fan_in in ((self.w1, modalities * width), (self.b1, modalities * width)):
            nn.init.uniform_(tensor, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        for tensor in (self.w2, self.b2):
            nn.init.uniform_(tensor, -1 / math.sqrt(self.hidden), 1 / math.sqrt(self.hidden))

    def forward(self, p: Tensor) -> Tensor:
        """``p [..., M, d]`` to ``[..., J, d]``."""
        first = p.flatten(-2) @ self.w1.flatten(0, 1)  # [..., J*h]
        return self._second(first.unflatten(-1, (self.n_experts, self.hidden)))

    def masked(self, p: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The experts on everything, and with one modality after the other replaced by ``z``.

        Args:
            p: ``[r, M, d]``.
            z: ``[r, M, d]``, stand-ins.

        Returns:
            ``[r, J, d]`` and ``[r, J, M, d]``; entry m of the latter has modality m replaced.
        """
        shape = (self.n_experts, self.hidden)
        kept = torch.einsum("rmd,mdk->rmk", p, self.w1)  # [r, M, J*h]
        replaced = torch.einsum("rmd,mdk->rmk", z, self.w1)  # [r, M, J*h]
        everything = kept.sum(dim=1)  # [r, J*h]
        conditions = everything.unsqueeze(1) - kept + replaced  # [r, M, J*h]
        stacked = torch.cat([everything.unsqueeze(1), conditions], dim=1)  # [r, 1+M, J*h]
        out = self._second(stacked.unflatten(-1, shape))  # [r, 1+M, J, d]
        return out[:, 0], out[:, 1:].transpose(1, 2)

    def _second(self, first: Tensor) -> Tensor:
        """``[..., J, h]`` before the activation to ``[..., J, d]``."""
        return torch.einsum("...jh,jhd->...jd", F.gelu(first + self.b1), self.w2) + self.b2

    def extra_repr(self) -> str:
        """Sizes."""
        return f"experts={self.n_experts}, hidden={self.hidden}"


class Gate(nn.Module):
    r"""The weights of the experts (eq. 10): :math:`w = \mathrm{softmax}(W([e^1; ...; e^J; c]) / \tau)`.

    c is the item's own row, or the mean of the rows of a user's history. The first layer is linear, so its part in the
    experts is computed once an item and its part in c once a user. Softmax, temperature and sizes are the authors'
    code's; the paper names none.

    Args:
        experts: J.
        width: d.
        temperature: tau.
        dropout: on the hidden layer (2d).
        noise: the plugin's random stream.

    Shapes:
        ``items(e [r, J, d])`` to ``[r, 2d]``; ``contexts(c [n, d])`` to ``[n, 2d]``; ``forward`` of their sum
        ``[..., 2d]`` to ``[..., J]``.
    """

    def __init__(self, *, experts: int, width: int, temperature: float, dropout: float, noise: Noise) -> None:
        super().__init__()
        self.temperature = temperature
        self.p_dropout = dropout
        self.noise = noise
        self.of_experts = nn.Linear(experts * width, 2 * width)
        self.of_context = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(2 * width, experts)

    def reset_parameters(self) -> None:
        """Draw all layers anew."""
        for linear in (self.of_experts, self.of_context, self.out):
            linear.reset_parameters()

    def items(self, e: Tensor) -> Tensor:
        """The experts' part of the first layer: ``[r, J, d]`` to ``[r, 2d]``."""
        return self.of_experts(e.flatten(-2))

    def contexts(self, c: Tensor) -> Tensor:
        """The context's part of the first layer: ``[n, d]`` to ``[n, 2d]``."""
        return self.of_context(c)

    def forward(self, first: Tensor) -> Tensor:
        """``[..., 2d]`` to weights ``[..., J]`` that sum to 1."""
        hidden = self.noise.dropout(F.gelu(first), self.p_dropout)
        return torch.softmax(self.out(hidden).float() / self.temperature, dim=-1).to(first.dtype)

    def extra_repr(self) -> str:
        """Choices."""
        return f"temperature={self.temperature}, dropout={self.p_dropout}"
