"""When the second stage begins: a state machine on the device, saved with the model (eq. 26, Alg. 2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPOCHS = 512  # rows of the curve; later epochs are added to its last row
COLUMNS = ("steps", "entropy", "entropy of a pair", "coverage weight", "confidence weight", "second stage")
ARMED_FROM = 3  # the first epoch that ``armed`` counts, from 0


class Trigger(nn.Module):
    r"""Stage 1 until the routing's entropy has fired, then stage 2 for good.

    .. math::
        n \leftarrow (n + 1)\,[\hat H \ge H^*], \qquad \text{stage} \leftarrow \max(\text{stage}, 1 + [n \ge W])

    Nothing here asks the device: the state is updated by arithmetic and read by :meth:`state`, once an epoch. Entropies
    are those of the global batch, so that all ranks decide alike. With usual initial values :math:`\hat H` is above
    0.98 from the first batch on, so ``paper`` fires at step W; ``armed`` (ours) is the same, counted from epoch 3 on.

    Args:
        kind: ``"paper"``, ``"armed"`` or ``"fixed@T"``, with T an epoch counted from 0.
        threshold: H*.
        patience: W.
    """

    stage: Tensor
    count: Tensor
    step: Tensor
    epochs: Tensor
    switch_step: Tensor
    switch_epoch: Tensor
    curve: Tensor

    def __init__(self, *, kind: str, threshold: float, patience: int) -> None:
        super().__init__()
        self.kind = kind
        self.fixed_at = int(kind.partition("@")[2]) if "@" in kind else None
        self.threshold = threshold
        self.patience = patience
        self.epoch = -1
        begin = {"stage": 1, "count": 0, "step": 0, "epochs": 0, "switch_step": -1, "switch_epoch": -1}
        for name, value in begin.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("curve", torch.zeros(EPOCHS, len(COLUMNS)))
        self.register_load_state_dict_post_hook(_epoch_loaded)

    def second(self) -> Tensor:
        """Whether this is stage 2: a bool on the device."""
        return self.stage > 1

    @torch.no_grad()
    def begin_epoch(self, epoch: int) -> None:
        """Switch where an epoch says so.

        Args:
            epoch: counted from 0; a state that was loaded counts on, also where the host begins anew.
        """
        self.epoch = max(epoch, self.epoch + 1)
        self.epochs.fill_(self.epoch + 1)
        if self.fixed_at is not None and self.epoch >= self.fixed_at:
            self._switch(torch.ones_like(self.stage, dtype=torch.bool))

    @torch.no_grad()
    def observe(self, marginal: Tensor) -> None:
        """One training step's normalised entropy of the mean routing, a scalar."""
        self.step += 1
        if self.fixed_at is not None or (self.kind == "armed" and self.epoch < ARMED_FROM):
            return
        self.count.copy_(torch.where(marginal >= self.threshold, self.count + 1, torch.zeros_like(self.count)))
        self._switch(self.count >= self.patience)

    @torch.no_grad()
    def note(self, marginal: Tensor, conditional: Tensor, coverage: Tensor, confidence: Tensor) -> None:
        """Add a step to this epoch's row of the curve: entropies and the losses' weights."""
        stage = self.second().to(self.curve.dtype)
        row = torch.stack([torch.ones_like(stage), marginal, conditional, coverage, confidence, stage])
        self.curve[min(max(self.epoch, 0), EPOCHS - 1)] += row.to(self.curve.dtype)

    def _switch(self, fires: Tensor) -> None:
        now = fires & ~self.second()
        epoch = torch.full_like(self.switch_epoch, self.epoch)
        self.switch_step.copy_(torch.where(now, self.step, self.switch_step))
        self.switch_epoch.copy_(torch.where(now, epoch, self.switch_epoch))
        self.stage.copy_(torch.where(now, torch.full_like(self.stage, 2), self.stage))

    def state(self) -> dict[str, int]:
        """Stage, step, and step and epoch of the switch (-1 before it); waits for the device."""
        names = ("stage", "step", "switch_step", "switch_epoch")
        values = torch.stack([self.get_buffer(name) for name in names]).tolist()
        return dict(zip(names, values, strict=True))

    def means(self) -> Tensor:
        """``[epochs, 5]``: the means of :data:`COLUMNS` after the first, for the epochs seen; waits for the device."""
        steps = self.curve[:, :1]  # [EPOCHS, 1]
        seen = steps.squeeze(1).nonzero().squeeze(1)
        last = int(seen[-1]) + 1 if len(seen) else 0
        return (self.curve[:, 1:] / steps.clamp(min=1.0))[:last]

    def extra_repr(self) -> str:
        """The rule."""
        return f"kind={self.kind}, threshold={self.threshold}, patience={self.patience}"


def _epoch_loaded(trigger: nn.Module, incompatible: object) -> None:
    """Epochs are compared on the host, which reads their number here."""
    assert isinstance(trigger, Trigger)
    trigger.epoch = int(trigger.epochs) - 1
