"""The checks that no prediction knows what comes after it."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from recplug.plugins.step import Batch
from recplug.plugins.testing.case import N_ITEMS, Case
from recplug.plugins.testing.rules import require, rule


@rule("the target of a history never changes its encoding")
def check_no_target(case: Case) -> None:
    """Targets and negatives of other numbers, and changing places between users."""
    batch = case.batch()
    assert batch.positives is not None
    assert batch.negatives is not None
    moved = replace(batch, positives=batch.positives.roll(1), negatives=batch.negatives.roll(1))
    other = replace(batch, positives=batch.positives % (N_ITEMS - 1) + 1, negatives=batch.positives)
    _same_encoding(case, batch, moved, other, slice(None))


@rule("what a user does later never changes an earlier prediction")
def check_no_future(case: Case) -> None:
    """A batch of beginnings and of whole histories, as data augmentation makes it; what the whole ones add changes."""
    generator = torch.Generator("cpu").manual_seed(7)
    whole = torch.randint(1, N_ITEMS, (4, 5), generator=generator, device="cpu")  # [4, 5]
    begun = torch.arange(5, device="cpu") < 2
    lengths = torch.tensor([2] * 4 + [5] * 4, device="cpu")
    users, items = torch.arange(8, device="cpu") % 4 + 1, torch.arange(1, 9, device="cpu")
    batch, moved, other = (
        Batch(users, items, items + 8, torch.cat([whole * begun, torch.where(begun, whole, later)]), lengths)
        for later in (whole, whole.roll(1, dims=0), whole % (N_ITEMS - 1) + 1)
    )
    _same_encoding(case, batch, moved, other, slice(4))


def _same_encoding(case: Case, batch: Batch, moved: Batch, other: Batch, rows: slice) -> None:
    """The encoding of ``rows`` is that of ``moved`` in training and that of ``other`` in evaluation.

    In training the batch must hold the same items, or its noise would fall on others.
    """
    for training, changed in ((True, moved), (False, other)):
        host = case.build().train(training)
        encoded = []
        for one in (batch, changed):
            torch.manual_seed(6)
            encoded.append(copy.deepcopy(host).encode(one)[rows])
        difference = (encoded[0] - encoded[1]).abs().max()
        require(difference < 1e-5, f"in {'training' if training else 'evaluation'} it moves by up to {difference:.2g}")
