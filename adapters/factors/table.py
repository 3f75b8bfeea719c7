"""The factor table: the values of every item, by item token and never by row number.

On disk it is two files side by side: the schema (``.factors.json``, see :mod:`recplug.adapters.factors.schema`) and the
labels (``.factors.parquet``). The labels keep the words that were current when they were written; a schema that a
person has edited since gives them today's names when they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from recplug.adapters.factors import parquet
from recplug.adapters.factors.alignment import aligned, aligned_with
from recplug.adapters.factors.schema import CONTROL, FactorSchema, FactorSpec, folded
from recplug.adapters.features.tokens import check_padding, token_problem
from recplug.adapters.files import replacing
from recplug.plugins.errors import RecplugError, did_you_mean
from recplug.plugins.factors import Factor, FactorProfiles

SUFFIX = ".factors.json"
Status = Literal["ok", "failed", "refused", "override"]
Names = tuple[str, ...]


@dataclass(frozen=True)
class FactorCoverage:
    """How a factor table meets a dataset; ``str()`` gives the report line.

    Attributes:
        factors: how many factors the table has.
        items: the dataset's items, without the padding row.
        covered: how many of them have a value under at least one factor.
        unused: rows of the table whose token the dataset does not have.
    """

    factors: int
    items: int
    covered: int
    unused: int

    def __str__(self) -> str:
        share = 100 * self.covered / self.items
        line = f"{self.factors} factors: {self.covered:,} of {self.items:,} items have a profile ({share:.1f} %)"
        return line + (f", {self.unused:,} table rows unused" if self.unused else "")


@dataclass(frozen=True, eq=False)
class FactorTable:
    """The factor profiles of n items. Checked when made: every value gets the name that the schema gives it.

    Attributes:
        schema: the factors and their vocabularies.
        tokens: the n item tokens, unique, in row order.
        values: for each factor, n tuples of values: empty where unknown, one, or several where the factor is ``multi``.
            Given as names or aliases of any spelling; kept as names, in the schema's order, each once, without those
            that the schema drops.
        status: for each item ``"ok"``, ``"failed"`` (no usable answer), ``"refused"`` (the model would not answer) or
            ``"override"`` (a person's).
        metadata: how the labels were made: licence, created, made_by, model, ... whatever the maker gives.
        content_sha256: for each item the digest of what it was labelled from; empty where nobody kept it.

    Raises:
        RecplugError: for tokens that are empty or repeated, columns that miss or are of another length, a value that
            the schema does not know, or several values under a factor that takes one.
    """

    schema: FactorSchema
    tokens: tuple[str, ...]
    values: dict[str, tuple[Names, ...]]
    status: tuple[str, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    content_sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problem = (
            token_problem(self.tokens, len(self.tokens))
            or _column_problem(self)
            or parquet.metadata_problem(self.metadata)
        )
        if problem:
            raise RecplugError(f"factor table: {problem}")
        named = {}
        for raw, column in self.values.items():
            spec = self.schema.factor(raw)
            if spec is not None:
                named[spec.name] = _named(self.schema, spec, self.tokens, column)
        object.__setattr__(self, "values", {spec.name: named[spec.name] for spec in self.schema.factors})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FactorTable:
        """Read and check ``DATASET.factors.json`` and the ``DATASET.factors.parquet`` beside it.

        Raises:
            RecplugError: for a missing, truncated or altered file, or contents that the class refuses.
        """
        labels = _labels_of(path)
        schema = FactorSchema.load(path)
        stored = parquet.read(labels)
        try:
            return cls(schema, stored.tokens, stored.values, stored.status, stored.metadata, stored.content_sha256)
        except RecplugError as error:
            raise RecplugError(f"{labels}: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write both files; equal tables give equal bytes, and a reader never sees half a file.

        Raises:
            RecplugError: where a file cannot be written.
        """
        schema, labels = Path(path), _labels_of(path)
        try:
            schema.parent.mkdir(parents=True, exist_ok=True)
            with replacing(labels) as partial_labels, replacing(schema) as partial_schema:
                stored = parquet.Stored(self.tokens, self.values, self.status, self.metadata, self.content_sha256)
                multi = {spec.name for spec in self.schema.factors if spec.multi}
                parquet.write(stored, partial_labels, schema_sha256=self.schema.sha256, multi=multi)
                partial_schema.write_bytes(self.schema.text().encode())
        except OSError as error:
            raise RecplugError(f"cannot write {schema}: {error.strerror or error}; choose another place") from None

    @cached_property
    def sha256(self) -> str:
        """The digest of schema and labels: what training depends on."""
        labels = [self.tokens, [self.values[spec.name] for spec in self.schema.factors]]
        return hashlib.sha256((self.schema.sha256 + json.dumps(labels)).encode()).hexdigest()

    def coverage(self, id_tokens: Sequence[str]) -> FactorCoverage:
        """Compare with a dataset's items; ``id_tokens[0]`` is the padding token.

        Raises:
            RecplugError: where the table has not one of the dataset's items.
        """
        rows = self._host_rows(id_tokens)
        known = np.array([any(column) for column in zip(*self.values.values(), strict=True)])
        held = rows[rows >= 0]
        return FactorCoverage(
            len(self.schema.factors), len(id_tokens) - 1, int(known[held].sum()), len(self.tokens) - len(held)
        )

    def align(
        self, id_tokens: Sequence[str], *, min_group: int | None = None, factors: Sequence[Factor] | None = None
    ) -> FactorProfiles:
        """Order the profiles like a host's item table.

        Args:
            id_tokens: the token of every host row; row 0 is ``"[PAD]"`` and never has a value.
            min_group: a value that fewer items *of this table* have becomes its parent, else the factor's ``other``,
                else unknown (:func:`~.alignment.rolled_up`). None: 0.1 % of the table's items, at least 5. 0: never.
                Counting in the table and not in the dataset gives an item the same profile in every dataset, and an
                item that training never saw the one it would have had there.
            factors: those of other profiles, such as of training, of which these are for new items: the result has
                exactly these factors and values, in their order. Nothing is counted: a value that they lack becomes its
                nearest ancestor among them, else the factor's ``other``, else unknown. None: the table's own.

        Returns:
            The profiles on the CPU. A factor's vocabulary is what the dataset's items have, and its ``other``; all of
            it where they have nothing.

        Raises:
            RecplugError: where the table has not one of the dataset's items or not one of ``factors``, for a negative
                ``min_group``, or one beside ``factors``.
        """
        if min_group is not None and factors is not None:
            raise RecplugError(f"min_group={min_group} says nothing of factors that are given; leave one of both out")
        rows = self._host_rows(id_tokens)
        hosts = np.flatnonzero(rows >= 0)
        least = self.least(min_group)
        wanted = self.schema.factors if factors is None else factors
        found, items, values, offset = [], [], [], 0
        for each in wanted:
            spec = self._spec(each.name)
            if isinstance(each, Factor):
                factor, (item, value) = each, aligned_with(spec, self.values[spec.name], rows[hosts], each)
            else:
                factor, item, value = aligned(spec, self.values[spec.name], rows[hosts], least)
            found.append(factor)
            items.append(hosts[item])
            values.append(value + offset)
            offset += len(factor.values)
        item, value = np.concatenate(items), np.concatenate(values)  # [e], [e]
        # Stable, because that one merges what is sorted already: the items under each factor.
        order = np.argsort(item * offset + value, kind="stable")
        return FactorProfiles(tuple(found), _int64(item[order]), _int64(value[order]), len(id_tokens))

    def least(self, min_group: int | None) -> float:
        """The size of the smallest group that :meth:`align` keeps.

        Raises:
            RecplugError: for what is no number, or negative.
        """
        if min_group is None:
            return max(5, 0.001 * len(self.tokens))
        if not isinstance(min_group, int) or min_group < 0:
            raise RecplugError(f"min_group={min_group!r} is no group's size; give 0 (never roll up) or more")
        return min_group

    def __repr__(self) -> str:
        factors = ", ".join(f"{spec.name}: {len(spec.values)}" for spec in self.schema.factors)
        return f"FactorTable({len(self.tokens)} items; {factors})"

    def _spec(self, name: str) -> FactorSpec:
        spec = self.schema.factor(name)
        if spec is None:
            hint = did_you_mean(name, [spec.name for spec in self.schema.factors])
            raise RecplugError(f"the factor table has no factor {name!r}{hint}; align a table made under one schema")
        return spec

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {token: row for row, token in enumerate(self.tokens)}

    def _host_rows(self, id_tokens: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """``[n_items]``: each host row's place in the table, -1 where it has none."""
        check_padding(id_tokens)
        rows = np.array([self._rows.get(token, -1) for token in id_tokens], dtype=np.int64)
        rows[0] = -1
        if not (rows >= 0).any():
            held = f"its tokens look like {self.tokens[0]!r}" if self.tokens else "it is empty"
            example = f", the dataset's like {str(id_tokens[1])!r}" if len(id_tokens) > 1 else ""
            raise RecplugError(
                f"the factor table holds none of the dataset's {len(id_tokens) - 1} items: {held}{example}; make it"
                " with the dataset's own item tokens"
            )
        return rows


def _named(schema: FactorSchema, spec: FactorSpec, tokens: Names, column: tuple[Names, ...]) -> tuple[Names, ...]:
    """The column in the schema's names."""
    order = {name: number for number, name in enumerate(spec.names)}
    seen: dict[Names, Names] = {}
    for token, raws in zip(tokens, column, strict=True):
        if raws in seen:
            continue
        names = set()
        for raw in raws:
            name = spec.resolve(raw)
            if name is not None:
                names.add(name)
            elif not schema.drops(spec, raw):
                raise RecplugError(
                    f"item {token!r} has the {spec.name} {raw!r}, which is none of the factor's values"
                    f"{spec.near(raw) or '; add it, make it an alias of another, or list it in dropped'}"
                )
        if len(names) > 1 and not spec.multi:
            raise RecplugError(
                f"item {token!r} has {len(names)} values of {spec.name} ({', '.join(sorted(names))}), which takes one;"
                " keep one, or set multi of the factor to true"
            )
        seen[raws] = tuple(sorted(names, key=order.__getitem__))
    return tuple(seen[raws] for raws in column)


def _column_problem(table: FactorTable) -> str | None:
    rows, schema = len(table.tokens), table.schema
    broken = next((token for token in table.tokens if CONTROL.search(token)), None)
    if broken is not None:
        return f"the item token {broken!r} has control characters; no data set can name that item"
    if len(table.status) != rows:
        return f"{rows} items but {len(table.status)} statuses; give one for each"
    wrong = next((status for status in table.status if status not in get_args(Status)), None)
    if wrong is not None:
        return f"no status is called {wrong!r}; choose one of {', '.join(get_args(Status))}"
    if table.content_sha256 and len(table.content_sha256) != rows:
        return f"{rows} items but {len(table.content_sha256)} content digests; give one for each, or none"
    given: Counter[str] = Counter()
    for name, column in table.values.items():
        if len(column) != rows:
            return f"{rows} items but {len(column)} entries of factor {name!r}; give one for each"
        spec = schema.factor(name)
        if spec is not None:
            given[spec.name] += 1
        elif not schema.drops_factor(name):
            hint = did_you_mean(name, [spec.name for spec in schema.factors])
            return (
                f"the labels have a factor {name!r} that the schema has not"
                f"{hint or '; put its name into the aliases of one, or into dropped with an empty list'}"
            )
    for spec in schema.factors:
        if given[spec.name] != 1:
            seen = f"{given[spec.name]} columns of" if given[spec.name] else "no column of"
            hint = did_you_mean(spec.name, [name for name in table.values if folded(name) != folded(spec.name)])
            return f"the labels have {seen} factor {spec.name!r}, and need one{hint}"
    return None


def _labels_of(path: str | os.PathLike[str]) -> Path:
    if Path(path).suffix != ".json":
        raise RecplugError(f"{path} does not end with .json; name the schema, such as DATASET{SUFFIX}")
    return Path(path).with_suffix(".parquet")


def _int64(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))
