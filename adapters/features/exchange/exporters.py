"""Take vectors out to other tools' files; each is read back by its importer as the same table.

Files that go by row numbers name the items of their rows in a second file. ``items`` fixes the order, and says which
items there are: one without a vector becomes a row of zeros where the file goes by rows, and nothing or an empty value
elsewhere. Without ``items`` the table's own are written. Nothing is replaced unless ``overwrite`` says so, and a
format that cannot carry an item's token refuses.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recplug.adapters.features.exchange.reading import mapped_tokens, reason_of
from recplug.adapters.features.exchange.toolkits import CORNAC_IDS, cornac_ids
from recplug.adapters.features.exchange.writing import (
    Exported,
    breaks_lines,
    check_free,
    matrix_of,
    placed,
    refuse_tokens,
    text_of,
    write_files,
)
from recplug.adapters.features.table import FeatureTable
from recplug.adapters.features.tokens import StrPath
from recplug.plugins.errors import RecplugError

MMREC_IDS = "i_id_mapping.csv"
RECBOLE_ID = "iid"  # not item_id: RecBole knows a field's name once, and takes this one as another name of items


def to_npy(
    table: FeatureTable, path: StrPath, *, items: Sequence[str] | None = None, overwrite: bool = False
) -> Exported:
    """A matrix, and beside ``NAME.npy`` its tokens, one a line, in ``NAME.tokens.txt``.

    Args:
        table: what to write.
        path: the matrix.
        items: the rows; see above.
        overwrite: replace files that exist.

    Raises:
        RecplugError: for a file that exists or cannot be written, a token with a line break, or ``items`` that are
            named twice or none of which has a vector.
    """
    target, names = Path(path), Path(path).with_suffix(".tokens.txt")
    check_free(overwrite, target, names)
    rows = placed(table, items)
    refuse_tokens("a list of tokens, one a line,", rows.tokens, breaks_lines)
    write_files({names: text_of(rows.tokens), target: matrix_of(rows.matrix)})
    return rows.report(target)


def to_npz(
    table: FeatureTable, path: StrPath, *, items: Sequence[str] | None = None, overwrite: bool = False
) -> Exported:
    """One archive with the arrays ``features [n, d]`` and ``tokens [n]``; the rest as for :func:`to_npy`."""
    target = Path(path)
    check_free(overwrite, target)
    rows = placed(table, items)
    refuse_tokens("NumPy's text", rows.tokens, lambda token: "\0" in token)

    def write(file: Path) -> None:
        with open(file, "wb") as stream:  # savez would add a suffix to the name
            np.savez(stream, features=rows.matrix, tokens=np.array(rows.tokens))

    write_files({target: write})
    return rows.report(target)


def to_parquet(
    table: FeatureTable, path: StrPath, *, items: Sequence[str] | None = None, overwrite: bool = False
) -> Exported:
    """The columns ``item_token`` and ``features``, a list, null where there is no vector; the rest as :func:`to_npy`.

    It carries every token.
    """
    target = Path(path)
    check_free(overwrite, target)
    rows = placed(table, items)
    starts = np.concatenate([[0], np.cumsum(rows.present)]) * rows.matrix.shape[1]  # [n + 1]
    offsets = pa.array(starts, pa.int64(), mask=np.append(~rows.present, False))
    vectors = pa.LargeListArray.from_arrays(offsets, pa.array(rows.matrix[rows.present].ravel()))
    columns = pa.table({"item_token": pa.array(rows.tokens, pa.string()), "features": vectors})
    write_files({target: lambda file: pq.write_table(columns, file)})
    return rows.report(target)


def to_mmrec(
    table: FeatureTable, folder: StrPath, *, items: Sequence[str] | None = None, overwrite: bool = False
) -> Exported:
    """MMRec's ``MODALITY_feat.npy``, and the ``i_id_mapping.csv`` that gives its rows their tokens.

    A mapping that the folder has already fixes the order; it is never replaced, since other matrices go by it. The rest
    as for :func:`to_npy`.
    """
    target, mapping = Path(folder) / f"{table.modality}_feat.npy", Path(folder) / MMREC_IDS
    check_free(overwrite, target)
    rows = placed(table, _shared_order(mapping, mapped_tokens, items))
    refuse_tokens("MMRec's mapping", rows.tokens, lambda token: breaks_lines(token) or "\0" in token)
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows(
        [("asin", "itemID"), *((token, number) for number, token in enumerate(rows.tokens))]
    )
    beside = {} if mapping.exists() else {mapping: text_of([text.getvalue()[:-1]])}
    write_files({**beside, target: matrix_of(rows.matrix)})
    return rows.report(target)


def to_cornac(
    table: FeatureTable, path: StrPath, *, items: Sequence[str] | None = None, overwrite: bool = False
) -> Exported:
    """A matrix and the ``item_ids.txt`` beside it, for Cornac's ``FeatureModality``.

    Ids that the folder has already fix the order; they are never replaced, since other matrices go by them. Give all of
    a data set's ``items``: Cornac moves rows to the places of its own items, and one that has none gets another's. The
    rest as for :func:`to_npy`.
    """
    target, ids = Path(path), Path(path).with_name(CORNAC_IDS)
    check_free(overwrite, target)
    rows = placed(table, _shared_order(ids, cornac_ids, items))
    refuse_tokens("Cornac's list of ids", rows.tokens, lambda token: breaks_lines(token) or token != token.strip())
    beside = {} if ids.exists() else {ids: text_of(rows.tokens)}
    write_files({**beside, target: matrix_of(rows.matrix)})
    return rows.report(target)


def to_ducho(
    table: FeatureTable, folder: StrPath, *, items: Sequence[str] | None = None, overwrite: bool = False
) -> Exported:
    """A folder as Ducho writes it for one layer: ``TOKEN.npy`` with ``[1, d]`` for each item that has a vector.

    Args:
        table: what to write.
        folder: it must not exist; Ducho's own place would be ``.../BACKEND/MODEL/LAYER``.
        items: which; default all.
        overwrite: has no use here, a folder is never replaced.

    Raises:
        RecplugError: for a folder that exists or cannot be written, or a token that no file can be called by.
    """
    target = Path(folder)
    if target.exists():
        raise RecplugError(f"{target} exists, and a folder is never replaced; choose another --output")
    rows = placed(table, items)
    kept = [token for token, present in zip(rows.tokens, rows.present, strict=True) if present]
    refuse_tokens("the name of a file", kept, lambda t: "/" in t or "\0" in t or len(t.encode()) > 255 - len(".npy"))
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        partial.mkdir(parents=True)
        for token, row in zip(kept, rows.matrix[rows.present], strict=True):
            np.save(partial / f"{token}.npy", row[None])
        if len(os.listdir(partial)) < len(kept):
            raise RecplugError(f"{target.parent} takes some items' names for the same; export with --to parquet")
        partial.rename(target)
    except OSError as error:
        reason = error.strerror or reason_of(error)  # NumPy's own has no strerror
        raise RecplugError(f"cannot write {target}: {reason}; choose another place") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows.report(target)


def to_recbole(
    table: FeatureTable, path: StrPath, *, items: Sequence[str] | None = None, overwrite: bool = False
) -> Exported:
    """One of RecBole's files of additional features: ``iid:token`` and ``MODALITY:float_seq``, empty without a vector.

    Call it ``DATASET.SUFFIX``. Give the data set's ``items``: RecBole makes an item of every token that it reads here.
    Numbers are the shortest that read back as the same. The rest as for :func:`to_npy`.
    """
    target = Path(path)
    check_free(overwrite, target)
    rows = placed(table, items)
    refuse_tokens("RecBole's text", rows.tokens, lambda t: breaks_lines(t) or "\t" in t or "\0" in t or t[0] == '"')

    def lines() -> Iterator[str]:
        yield f"{RECBOLE_ID}:token\t{table.modality}:float_seq"
        for token, row, present in zip(rows.tokens, rows.matrix, rows.present, strict=True):
            yield f"{token}\t{' '.join(row.astype(np.float32).astype(str)) if present else ''}"

    def write(file: Path) -> None:
        text_of(lines())(file)
        _as_recbole_reads_it(file, rows.tokens)

    write_files({target: write})
    return rows.report(target)


def _as_recbole_reads_it(file: Path, tokens: Sequence[str]) -> None:
    """RecBole leaves words such as NA to pandas, which takes them for nothing."""
    import pandas as pd

    column = f"{RECBOLE_ID}:token"
    try:
        table = pd.read_csv(file, delimiter="\t", usecols=[column], dtype=str, encoding="utf-8", engine="python")
    except pd.errors.ParserError as error:
        raise RecplugError(
            f"RecBole would not read these items ({reason_of(error)}); export with --to parquet"
        ) from None
    read = table[column].tolist()
    changed = next((token for place, token in enumerate(tokens) if read[place : place + 1] != [token]), None)
    if changed is not None:
        raise RecplugError(f"RecBole would not read the item token {changed!r} as it is; rename the item")


def _shared_order(file: Path, read: Callable[[Path], list[str]], items: Sequence[str] | None) -> Sequence[str] | None:
    """The items that ``file`` has already; ``items`` where there is no such file."""
    if not file.exists():
        return items
    found = read(file)
    if items is not None and list(items) != found:
        raise RecplugError(
            f"{file} has other items, or another order, and other matrices go by it; choose a new folder"
        )
    return found
