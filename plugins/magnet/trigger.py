"""When the second stage begins: a state machine on the device, saved with the model (eq. 26, Alg. 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPOCHS = 512  # rows of the curve; later epochs are added to its last row
COLUMNS = ("steps", "entropy", "entropy of a pair", "coverage weight", "confidence weight", "second stage")
DECIDED, NEARLY = 0.90, 0.98  # entropy of single pairs at which `joint` fires, and at which it does if that is at rest
REST = 0.01  # the range of an entropy at rest


class Trigger(nn.Module):
    r"""Stage 1 until the routing's entropy has fired, then stage 2 for good.

    .. math::
        n \leftarrow (n + 1)\,[\hat H \ge H^*], \qquad \text{stage} \leftarrow \max(\text{stage}, 1 + [n \ge W])

    Nothing here asks the device: the state is updated by arithmetic and read by :meth:`state`, once an epoch. Entropies
    are those of the global batch, so that all ranks decide alike. With usual initial values :math:`\hat H` is above
    0.98 from the first batch on, so ``paper`` fires at step W; ``armed`` counts from an epoch on.

    Args:
        kind: ``"paper"``, ``"armed"``, ``"joint"``, ``"below"``, ``"plateau"`` or ``"fixed@T"``.
        threshold: H*.
        patience: W.
        clock: ``"step"``, or ``"epoch"``: check an epoch's mean when the next begins.
        t_min: with ``armed``, the first epoch that counts, from 0.
        t_max: the epoch at which stage 2 is forced; 0 for never.
        ema: decay of a running mean of the entropy, which begins at 0; 0 for none.
    """

    stage: Tensor
    count: Tensor
    step: Tensor
    epochs: Tensor
    switch_step: Tensor
    switch_epoch: Tensor
    forced: Tensor
    smooth: Tensor
    window: Tensor
    curve: Tensor

    def __init__(
        self,
        *,
        kind: str,
        threshold: float,
        patience: int,
        clock: str = "step",
        t_min: int = 3,
        t_max: int = 0,
        ema: float = 0.0,
    ) -> None:
        super().__init__()
        self.kind, _, at = kind.partition("@")
        self.fixed_at = int(at) if at else None
        self.threshold = threshold
        self.patience = patience
        self.clock = clock
        self.t_min = t_min
        self.t_max = t_max
        self.ema = ema
        self.epoch = -1
        for name, value in {
            "stage": 1,
            "count": 0,
            "step": 0,
            "epochs": 0,
            "switch_step": -1,
            "switch_epoch": -1,
        }.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("forced", torch.tensor(False))
        self.register_buffer("smooth", torch.tensor(0.0))
        self.register_buffer("window", torch.full((patience,), torch.inf))
        self.register_buffer("curve", torch.zeros(EPOCHS, len(COLUMNS)))
        self.register_load_state_dict_post_hook(_epoch_loaded)

    def second(self) -> Tensor:
        """Whether this is stage 2: a bool on the device."""
        return self.stage > 1

    @torch.no_grad()
    def begin_epoch(self, epoch: int) -> None:
        """Switch where an epoch says so; with clock ``epoch``, check the mean of the one before.

        Args:
            epoch: counted from 0; a state that was loaded counts on, also where the host begins anew.
        """
        epoch = max(epoch, self.epoch + 1)
        self.epochs.fill_(epoch + 1)
        if self.clock == "epoch" and 0 < epoch <= EPOCHS:
            steps, marginal, conditional = self.curve[epoch - 1, :3]
            self.epoch = epoch
            self._check(marginal / steps.clamp(min=1.0), conditional / steps.clamp(min=1.0), steps > 0)
        self.epoch = epoch
        if self.fixed_at is not None and epoch >= self.fixed_at:
            self._switch(torch.ones_like(self.forced), forced=False)
        if self.t_max and epoch >= self.t_max:
            self._switch(torch.ones_like(self.forced), forced=True)

    @torch.no_grad()
    def observe(self, marginal: Tensor, conditional: Tensor) -> None:
        """One training step's normalised entropies, scalars: of the mean routing, and the mean of single pairs'."""
        self.step += 1
        if self.clock == "step":
            self._check(marginal, conditional, torch.ones_like(self.forced))

    @torch.no_grad()
    def note(self, marginal: Tensor, conditional: Tensor, coverage: Tensor, confidence: Tensor) -> None:
        """Add a step to this epoch's row of the curve: entropies and the losses' weights."""
        stage = self.second().to(self.curve.dtype)
        row = torch.stack([torch.ones_like(stage), marginal, conditional, coverage, confidence, stage])
        self.curve[min(max(self.epoch, 0), EPOCHS - 1)] += row.to(self.curve.dtype)

    def _check(self, marginal: Tensor, conditional: Tensor, counts: Tensor) -> None:
        """One check of the rule; none where ``counts`` is False."""
        if self.kind == "fixed":
            return
        signal = marginal
        if self.ema:
            signal = self.ema * self.smooth + (1 - self.ema) * marginal
            self.smooth.copy_(torch.where(counts, signal, self.smooth))
        watched = conditional if self.kind == "joint" else signal
        moved = torch.cat([self.window[1:], watched.reshape(1).to(self.window.dtype)])
        self.window.copy_(torch.where(counts, moved, self.window))
        at_rest = self.window.max() - self.window.min() <= REST  # inf - x, before the window is full, is not
        held = signal >= self.threshold
        needed = self.patience
        if self.kind == "joint":
            held = held & ((conditional <= DECIDED) | ((conditional <= NEARLY) & at_rest))
        elif self.kind == "below":
            held = signal <= self.threshold
        elif self.kind == "plateau":
            held, needed = at_rest, 1  # the window has been W checks long
        elif self.kind == "armed" and self.epoch < self.t_min:
            held = torch.zeros_like(held)
        following = torch.where(held, self.count + 1, torch.zeros_like(self.count))
        self.count.copy_(torch.where(counts, following, self.count))
        self._switch(self.count >= needed, forced=False)

    def _switch(self, fires: Tensor, *, forced: bool) -> None:
        now = fires & ~self.second()
        epoch = torch.full_like(self.switch_epoch, self.epoch)
        self.switch_step.copy_(torch.where(now, self.step, self.switch_step))
        self.switch_epoch.copy_(torch.where(now, epoch, self.switch_epoch))
        if forced:
            self.forced.copy_(self.forced | now)
        self.stage.copy_(torch.where(now, torch.full_like(self.stage, 2), self.stage))

    def state(self) -> dict[str, int]:
        """Stage, step and epoch of the switch (-1 before it) and whether it was forced; waits for the device."""
        names = ("stage", "step", "switch_step", "switch_epoch", "forced")
        values = torch.stack([self.get_buffer(name).long() for name in names]).tolist()
        return dict(zip(names, values, strict=True))

    def means(self) -> Tensor:
        """``[epochs, 5]``: the means of :data:`COLUMNS` after the first, for the epochs seen; waits for the device."""
        steps = self.curve[:, :1]  # [EPOCHS, 1]
        seen = steps.squeeze(1).nonzero().squeeze(1)
        last = int(seen[-1]) + 1 if len(seen) else 0
        return (self.curve[:, 1:] / steps.clamp(min=1.0))[:last]

    def extra_repr(self) -> str:
        """The rule."""
        kind = self.kind if self.fixed_at is None else f"fixed@{self.fixed_at}"
        return (
            f"kind={kind}, threshold={self.threshold}, patience={self.patience}, clock={self.clock}, "
            f"t_min={self.t_min}, t_max={self.t_max}"
        )


def _epoch_loaded(trigger: nn.Module, incompatible: object) -> None:
    """Epochs are compared on the host, which reads their number here."""
    assert isinstance(trigger, Trigger)
    trigger.epoch = int(trigger.epochs) - 1
