"""Check RecBole's atomic files and the feature tables beside them, before RecBole reads them its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pyarrow import csv

from recplug.adapters.data.held_out_nodes import APART, GROUP, GROUPS, QUERY, SUPPORT
from recplug.adapters.features.find import find_neighbours, find_tables
from recplug.adapters.features.neighbours import NeighbourTable
from recplug.adapters.features.table import FeatureTable
from recplug.adapters.features.tokens import PADDING
from recplug.plugins.errors import RecplugError, did_you_mean

PARTS = ("train", "valid", "test")
TYPES = ("token", "token_seq", "float", "float_seq")
# What pandas, and so RecBole, reads as a missing value and not as a token.
MISSING = pa.array(
    [
        "",
        "#N/A",
        "#N/A N/A",
        "#NA",
        "-1.#IND",
        "-1.#QNAN",
        "-NaN",
        "-nan",
        "1.#IND",
        "1.#QNAN",
        "<NA>",
        "N/A",
        "NA",
        "NULL",
        "NaN",
        "None",
        "n/a",
        "nan",
        "null",
    ]
)


def dataset_in(folder: Path) -> str:
    """The name of the one data set in ``folder``: the folder's own, or that of its only ``.inter`` files.

    ``NAME.train.inter`` and other parts named by ``benchmark_filename`` in ``NAME.yaml`` are one data set; what is
    beside it of new users and items (``NAME.support.inter``, ``NAME.query.inter``) belongs to it.

    Raises:
        RecplugError: where there is none, or several.
    """
    names = set()
    for path in folder.glob("*.inter"):
        name = path.name.removesuffix(".inter")
        whole, _, part = name.rpartition(".")
        split = whole and part in (*(settings_of(folder, whole).get("benchmark_filename") or PARTS), *APART)
        names.add(whole if split else name)
    if folder.resolve().name in names:
        return folder.resolve().name
    if len(names) != 1:
        found = f"several data sets ({', '.join(sorted(names))})" if names else "no .inter file"
        raise RecplugError(f"{folder} holds {found}; give a folder with one NAME.inter")
    return names.pop()


def settings_of(folder: Path, dataset: str) -> dict[str, Any]:
    """What ``DATASET.yaml`` in ``folder`` says, or nothing where there is no such file.

    Raises:
        RecplugError: where it is not YAML, or ``features`` is not a path by modality.
    """
    path = folder / f"{dataset}.yaml"
    if not path.is_file():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecplugError(f"{path} is not YAML: {_line(error)}; correct it") from None
    features = settings.get("features", {}) if isinstance(settings, dict) else None
    if not isinstance(features, dict) or not all(isinstance(item, str) for pair in features.items() for item in pair):
        raise RecplugError(
            f"{path}: settings are 'key: value' lines, and 'features' has one path by modality; correct it"
        )
    return settings


def check_directory(folder: Path, dataset: str) -> list[str]:
    """Check ``DATASET.inter`` or its ready-made split, ``DATASET.item`` if there is one, and every table beside them.

    Field names are taken from ``DATASET.yaml``, else RecBole's defaults.

    Returns:
        Report lines.

    Raises:
        RecplugError: for the first thing that would spoil training.
    """
    settings = settings_of(folder, dataset)
    user, item = settings.get("USER_ID_FIELD") or "user_id", settings.get("ITEM_ID_FIELD") or "item_id"
    parts, times = {}, {}
    for part, path in interaction_files(folder, dataset, settings).items():
        read, types = read_atomic(path)
        for name in (user, item):
            _check_tokens(path, read, types, name)
        times[part] = _check_time(path, read, types, settings.get("TIME_FIELD"))
        parts[part] = read.select([user, item])
    table = pa.concat_tables(parts.values())
    items = pc.unique(table[item])
    lines = [f"{dataset}: {len(pc.unique(table[user])):,} users, {len(items):,} items, {len(table):,} interactions"]
    if len(parts) > 1:
        lines.append(_split(parts, item, declared=bool(settings.get("benchmark_filename"))))
    same = len(set(times.values())) == 1
    lines += [next(iter(times.values()))] if same else [f"{part} {line}" for part, line in times.items()]
    lines.append(_repeats(table, user, item))
    lines += _newcomers(folder, dataset, table, user, item)

    catalogue = folder / f"{dataset}.item"
    if catalogue.is_file():
        about, about_types = read_atomic(catalogue)
        _check_tokens(catalogue, about, about_types, item)
        described = pc.unique(about[item])
        if len(described) < len(about):
            raise RecplugError(
                f"{catalogue} describes {len(about) - len(described)} items twice; keep one row for each"
            )
        known = pc.sum(pc.is_in(items, value_set=described)).as_py()
        lines.append(f"{catalogue.name}: describes {known:,} of {len(items):,} items")

    id_tokens = [PADDING, *items.to_pylist()]
    tables = find_tables(folder, dataset, settings.get("features", {}))
    for name, place in tables.items():
        features = FeatureTable.load(place)
        stored = "" if name == features.modality else f" (as {name})"
        lines.append(f"{features.coverage(id_tokens)}{stored}; licence: {features.metadata.get('licence', 'unknown')}")
    if not tables:
        lines.append("no feature tables; make one with `recplug features import --from npy ...`")
    graphs = {name: NeighbourTable.load(place) for name, place in find_neighbours(folder, dataset).items()}
    return lines + [f"{graph.coverage(id_tokens)}; up to {graph.k} each" for graph in graphs.values()]


def interaction_files(folder: Path, dataset: str, settings: dict[str, Any]) -> dict[str, Path]:
    """The files of interactions by part, in order; one part without a name where there is no ready-made split."""
    declared = settings.get("benchmark_filename")
    if declared:
        return {str(part): folder / f"{dataset}.{part}.inter" for part in declared}
    whole = folder / f"{dataset}.inter"
    split = {part: folder / f"{dataset}.{part}.inter" for part in PARTS}
    return {"": whole} if whole.is_file() or not split[PARTS[0]].is_file() else split


def _split(parts: dict[str, pa.Table], item: str, *, declared: bool) -> str:
    """Sizes, and how many items a model never sees in training."""
    first, *later = parts.values()
    others = pc.unique(pa.chunked_array([chunk for part in later for chunk in part[item].chunks]))
    unseen = len(others) - pc.sum(pc.is_in(others, value_set=pc.unique(first[item]))).as_py()
    sizes = ", ".join(f"{part} {len(table):,}" for part, table in parts.items())
    advice = "" if declared else f"; for RecBole to use it, set benchmark_filename: [{', '.join(parts)}]"
    return f"split: {sizes}; {unseen:,} items occur outside {next(iter(parts))} only{advice}"


def _newcomers(folder: Path, dataset: str, known: pa.Table, user: str, item: str) -> list[str]:
    """What there is of new users and items: nothing of it may be in what RecBole reads, nor in both files."""
    found: dict[str, pa.Table] = {}
    for part in APART:
        path = folder / f"{dataset}.{part}.inter"
        if not path.is_file():
            continue
        read, types = read_atomic(path)
        for name in (user, item):
            _check_tokens(path, read, types, name)
        group = GROUP.partition(":")[0]
        wrong = pc.unique(read[group]).to_pylist() if group in types else ["nothing"]
        if not set(wrong) <= set(GROUPS):
            raise RecplugError(
                f"{path}: the column {GROUP} says {', '.join(GROUPS)}, not {min(set(wrong) - set(GROUPS))}"
            )
        old = pc.and_(*(pc.is_in(read[name], value_set=pc.unique(known[name])) for name in (user, item)))
        if pc.any(old).as_py():
            line = pc.index(old, True).as_py() + 2
            raise RecplugError(f"{path}, line {line}: neither user nor item is new; leave out what training may read")
        found[part] = read.select([user, item, group])
    if len(found) == 1:
        raise RecplugError(f"{folder} has {dataset}.{next(iter(found))}.inter alone; {' and '.join(APART)} go together")
    if not found:
        return []
    both = found[SUPPORT].select([user, item]).join(found[QUERY].select([user, item]), [user, item], join_type="inner")
    if len(both):
        raise RecplugError(f"{dataset}.{QUERY}.inter asks for {len(both)} pairs that the support shows; leave them out")
    counts = {entry["values"]: entry["counts"] for entry in pc.value_counts(found[QUERY][group]).to_pylist()}
    asked = ", ".join(f"{name} {counts[name]:,}" for name in GROUPS if name in counts)
    return [f"new users and items: support {len(found[SUPPORT]):,}, query {len(found[QUERY]):,} ({asked})"]


def read_atomic(path: Path) -> tuple[pa.Table, dict[str, str]]:
    """An atomic file as text columns by field name, and the type of each field."""
    try:
        with open(path, encoding="utf-8") as file:
            header = file.readline().rstrip("\n").split("\t")
        types = _types(path, header)
        table = csv.read_csv(
            path,
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string())),
        )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise RecplugError(f"cannot read {path}: {_line(error)}; it must be tab-separated UTF-8") from None
    if not len(table):
        raise RecplugError(f"{path} has no rows; give at least one")
    return table.rename_columns(list(types)), types


def _types(path: Path, header: list[str]) -> dict[str, str]:
    types: dict[str, str] = {}
    for cell in header:
        name, _, kind = cell.partition(":")
        if not name or kind not in TYPES:
            raise RecplugError(
                f"{path}: header {cell!r} is not NAME:TYPE with a TYPE of {', '.join(TYPES)}; correct it"
            )
        if name in types:
            raise RecplugError(f"{path}: the header names {name!r} twice; rename one")
        types[name] = kind
    return types


def _check_tokens(path: Path, table: pa.Table, types: dict[str, str], name: str) -> None:
    """Every row has a token that RecBole reads as it stands."""
    if name not in types:
        hint = did_you_mean(name, types) or f"; it has: {', '.join(types)}"
        raise RecplugError(f"{path} has no field {name!r}{hint}")
    if types[name] != "token":
        raise RecplugError(f"{path}: {name!r} is {types[name]!r}; ids are 'token'")
    wrong = pc.is_in(table[name], value_set=MISSING)
    number = pc.index(wrong, True).as_py()
    if number >= 0:
        raise RecplugError(
            f"{path}: {name} is {table[name][number].as_py()!r} in {pc.sum(wrong).as_py():,} rows (first: line"
            f" {number + 2}), which reads as missing; name it otherwise or leave these rows out"
        )
    if pc.index(table[name], PADDING).as_py() >= 0:
        raise RecplugError(f"{path}: {name} {PADDING!r} is RecBole's padding; name it otherwise")


def _check_time(path: Path, table: pa.Table, types: dict[str, str], declared: str | None) -> str:
    name = declared or "timestamp"
    if name not in types:
        if declared:
            raise RecplugError(f"{path} has no time field {name!r}{did_you_mean(name, types)}; correct TIME_FIELD")
        return "no time field: sequential models need one (name it with TIME_FIELD), graph models do not"
    if types[name] != "float":
        raise RecplugError(f"{path}: the time field {name!r} is {types[name]!r}; RecBole sorts by a 'float'")
    try:
        values = pc.cast(table[name], pa.float64())
    except pa.ArrowException as error:
        raise RecplugError(f"{path}: the time field {name!r} is not all numbers ({_line(error)}); correct it") from None
    finite = pc.is_finite(values)
    if not pc.all(finite).as_py():
        raise RecplugError(f"{path}: {name} is not finite in line {pc.index(finite, False).as_py() + 2}; correct it")
    return f"time: {name}, from {pc.min(values).as_py():.15g} to {pc.max(values).as_py():.15g}"


def _repeats(table: pa.Table, user: str, item: str) -> str:
    pairs = table.group_by([user, item]).aggregate([([], "count_all")])
    repeated = pairs.filter(pc.greater(pairs["count_all"], 1))
    if not len(repeated):
        return "repeats: none"
    extra = len(table) - len(pairs)
    users = len(pc.unique(repeated[user]))
    return f"repeats: {extra:,} rows name a pair of user and item again ({users:,} users); rm_dup_inter drops them"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
