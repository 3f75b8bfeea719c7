"""Which data a result was made from."""

from __future__ import annotations

import hashlib
from typing import Any


def fingerprint(*loaders: Any) -> str:
    """SHA-256 over the tokens and the interactions of every split, after RecBole's filters.

    Args:
        *loaders: RecBole's data loaders, in the order train, valid, test.
    """
    digest = hashlib.sha256()
    for loader in loaders:
        dataset = loader._dataset
        for field in (dataset.uid_field, dataset.iid_field):
            tokens = "\n".join(map(str, dataset.field2id_token[field]))
            ids = dataset.inter_feat[field].cpu().contiguous().numpy()
            digest.update(hashlib.sha256(tokens.encode()).digest())
            digest.update(hashlib.sha256(ids.astype("<i8").tobytes()).digest())
    return digest.hexdigest()


def ids_of(dataset: Any) -> dict[str, Any]:
    """Which users and items a data set numbers, and in which order: count and SHA-256 of their tokens."""
    fields = {"users": dataset.uid_field, "items": dataset.iid_field}
    found = {}
    for side, field in fields.items():
        tokens = dataset.field2id_token[field]
        digest = hashlib.sha256("\n".join(map(str, tokens)).encode()).hexdigest()
        found[side] = {"count": len(tokens) - 1, "sha256": digest}
    return found
