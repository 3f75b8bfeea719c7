"""Build the bundled data sets from their source folders; running it again writes the same bytes.

    python benchmarks/build_bundled_data.py --scientific DIR --baby DIR --food_kitchen DIR --factors

The Scientific folder holds ``scientific.inter.gz``, ``items.tsv.gz``, ``image_feat.npy``, ``text_feat.npy`` and
``full/``. Items are renamed to their ASINs, so that both sets share one pair of feature tables.

Both sets' factor profiles are made of nothing but their ``.item`` files, so ``--factors`` needs no source.

The Baby folder is the one that ``recplug data get amazon-baby --from DIR`` takes. Its cut keeps the source's ids and
split: the 1,000 items with the most training interactions, then, again and again until nothing more goes, users with
at least 5 training interactions, one of validation and one of the test, and items with at least 5 of training.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from recplug.adapters.data import factor_profiles
from recplug.adapters.data.convert import PARTS, convert
from recplug.adapters.data.held_out_nodes import APART, GROUP, last_apart
from recplug.adapters.data.recipes import RECIPES
from recplug.adapters.features import FeatureTable, Provenance, from_npy

NAME, FULL, BABY = "amazon-scientific", "amazon-scientific-full", "amazon-baby-small"
PAIR = {"food": "food-small", "kitchen": "kitchen-small"}
HEADER = ["user_id:token", "item_id:token", "order:float"]
COUNTS = {NAME: (2_928, 1_585, 19_712), FULL: (8_442, 4_385, 59_384), BABY: (1_489, 890, 16_880)}
COUNTS |= {"food-small": (1_983, 780, 12_044), "kitchen-small": (2_797, 1_267, 17_272)}
BABY_ITEMS, BABY_LEAST = 1_000, 5
POPULAR, ALONE_LEAST = {"food": 1_500, "kitchen": 1_800}, {"food": 4, "kitchen": 5}
BOTH_LEAST, ITEM_LEAST, LAST_OUT, NEW_LEAST, NEW_ITEMS = 4, 3, 2, 2, 80
WIDTH = 512
CLIP = Provenance(
    encoder="CLIP ViT-B/32",
    pooling="CLS",
    licence="none stated; research use only, not commercial, cite the papers (TERMS.md)",
    source="github.com/KIKIENAO/decorec at 3d93ec5, dataset/downstream/Scientific; extracted as in MISSRec (MM 2023)",
    created="2026-11-21",
)


def read(path: Path, header: list[str]) -> list[list[str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        first, *rows = [line.rstrip("\n").split("\t") for line in file]
    expect(first == header, f"{path.name} has the header {first}, not {header}")
    expect(all(len(row) == len(header) for row in rows), f"{path.name} has rows of another length")
    return rows


def expect(truth: bool, complaint: str) -> None:
    if not truth:
        raise SystemExit(f"build_bundled_data: {complaint}")


def write(path: Path, header: list[str], rows: list[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join("\t".join(row) + "\n" for row in [header, *rows])
    path.write_bytes(lines.encode())


def build(name: str, interactions: Path, items: Path, output: Path) -> list[str]:
    """Write ``NAME.inter`` and ``NAME.item``; return the ASINs in the order of the source's item ids."""
    catalogue = read(items, ["item_id:token", "asin:token", "text:token_seq"])
    expect([row[0] for row in catalogue] == [str(i) for i in range(len(catalogue))], f"{items} is not in id order")
    asins = [row[1] for row in catalogue]
    expect(len(set(asins)) == len(asins), f"{items} names an ASIN twice")
    rows = read(interactions, HEADER)
    users, bought = {row[0] for row in rows}, {row[1] for row in rows}
    found = (len(users), len(bought), len(rows))
    expect(found == COUNTS[name] and len(asins) == len(bought), f"{name} has {found}, not {COUNTS[name]}")
    position: dict[str, int] = {}
    for user, _, order in rows:
        expect(int(order) == position.get(user, 0), f"user {user} of {name}: {order} is out of order")
        position[user] = int(order) + 1
    write(output / f"{name}.inter", HEADER, [[user, asins[int(item)], order] for user, item, order in rows])
    write(output / f"{name}.item", ["item_id:token", "text:token_seq"], [[asin, text] for _, asin, text in catalogue])
    return asins


def scientific(source: Path, output: Path) -> None:
    expect((source / "items.tsv.gz").is_file(), f"no items.tsv.gz in {source}; --scientific names the source folder")
    asins = build(NAME, source / "scientific.inter.gz", source / "items.tsv.gz", output / NAME)
    full = build(FULL, source / "full/scientific_full.inter.gz", source / "full/items.tsv.gz", output / FULL)
    # The full set's own pointer into the matrices must say what aligning by ASIN says.
    rows = np.load(source / "full/clip_row.npy")
    own = {asin: int(row) for asin, row in zip(full, rows, strict=True) if row >= 0}
    expect(own == {asin: row for row, asin in enumerate(asins)}, "clip_row.npy and the ASINs disagree")

    for modality in ("image", "text"):
        matrix = np.load(source / f"{modality}_feat.npy")
        table = from_npy(source / f"{modality}_feat.npy", asins, modality, provenance=CLIP)
        path = output / NAME / f"{NAME}.{modality}.safetensors"
        table.save(path)
        stored = FeatureTable.load(path)
        expect(stored.tokens == tuple(asins) and stored.features.shape[1] == WIDTH, f"{path.name} lost items or width")
        expect(stored.features.numpy().tobytes() == matrix.tobytes(), f"{path.name} differs from its source")
        print(f"{path.name}: {len(asins):,} x {WIDTH}, sha256 {stored.sha256}")


def factors(output: Path) -> None:
    """The factor profiles of both Scientific sets, from the texts that are there."""
    for name in (NAME, FULL):
        lines = (output / name / f"{name}.item").read_text(encoding="utf-8").splitlines()
        table = factor_profiles.scientific(dict(line.split("\t", 1) for line in lines[1:]))
        table.save(output / name / f"{name}.factors.json")
        print(f"{name}.factors.json: {len(table.schema.factors)} factors, sha256 {table.sha256}")


def baby(source: Path, output: Path) -> None:
    """The cut of Baby: parts of the split, ASINs, and both feature tables, each a subset of the converted files."""
    with tempfile.TemporaryDirectory() as place:
        whole = convert(RECIPES["amazon-baby"], source, place)
        text = {part: (whole / f"amazon-baby.{part}.inter").read_text().splitlines()[1:] for part in PARTS}
        rows = {part: [tuple(line.split("\t")) for line in lines] for part, lines in text.items()}
        # The cut has the source's numbers for users: their pseudonyms are not passed on.
        number = dict(line.split("\t") for line in (whole / "amazon-baby.user").read_text().splitlines()[1:])
        rows = dense({part: [(number[user], item) for user, item in own] for part, own in rows.items()})
        catalogue = [line.split("\t") for line in (whole / "amazon-baby.item").read_text().splitlines()[1:]]
        tables = [FeatureTable.load(whole / f"amazon-baby.{modality}.safetensors") for modality in ("image", "text")]
    items = {item for part in rows.values() for _, item in part}
    users = {user for part in rows.values() for user, _ in part}
    found = (len(users), len(items), sum(map(len, rows.values())))
    expect(found == COUNTS[BABY], f"{BABY} has {found}, not {COUNTS[BABY]}")
    for part, own in rows.items():
        write(output / BABY / f"{BABY}.{part}.inter", HEADER[:2], [list(row) for row in own])
    kept = [row[:2] for row in catalogue if row[0] in items]
    write(output / BABY / f"{BABY}.item", ["item_id:token", "asin:token"], kept)
    for table in tables:
        save_part(table, items, output / BABY / f"{BABY}.{table.modality}.safetensors")


def save_part(table: FeatureTable, items: set[str], path: Path) -> None:
    """The rows of these items as a table of its own."""
    places = [place for place, token in enumerate(table.tokens) if token in items]
    tokens = tuple(table.tokens[place] for place in places)
    part = FeatureTable(table.features[places], tokens, table.modality, table.metadata)
    part.save(path)
    print(f"{path.name}: {len(tokens):,} x {part.features.shape[1]}, sha256 {part.sha256}")


def food_kitchen(source: Path, output: Path) -> None:
    """The cut of both domains: seen users, new users, titles and vectors, each a subset of the converted files."""
    with tempfile.TemporaryDirectory() as place:
        whole = {domain: convert(RECIPES[domain], source, place) for domain in PAIR}
        seen = {domain: lines_of(folder / f"{domain}.inter") for domain, folder in whole.items()}
        new = {
            domain: [row for part in APART for row in lines_of(folder / f"{domain}.{part}.inter")]
            for domain, folder in whole.items()
        }
        catalogues = {domain: lines_of(folder / f"{domain}.item") for domain, folder in whole.items()}
        tables = {domain: FeatureTable.load(folder / f"{domain}.text.safetensors") for domain, folder in whole.items()}
    seen = dense_pair(seen)
    for domain, name in PAIR.items():
        rows, folder = seen[domain], output / name
        known = {item for _, item, _ in rows}
        found = (len({user for user, _, _ in rows}), len(known), len(rows))
        expect(found == COUNTS[name], f"{name} has {found}, not {COUNTS[name]}")
        write(folder / f"{name}.inter", HEADER, rows)
        others = Counter(item for _, item, *_ in new[domain] if item not in known)
        items = known | set(sorted(others, key=lambda item: (-others[item], int(item)))[:NEW_ITEMS])
        history = Counter(user for user, item, *_ in new[domain] if item in items)
        kept = [row[:4] for row in new[domain] if row[1] in items and history[row[0]] >= NEW_LEAST]
        for part, own in zip(APART, last_apart(kept, known), strict=True):
            write(folder / f"{name}.{part}.inter", [*HEADER, "split:token", GROUP], own)
            print(f"{name}.{part}.inter: {len(own):,} rows, {dict(Counter(row[-1] for row in own))}")
        header = ["item_id:token", "asin:token", "title:token_seq"]
        write(folder / f"{name}.item", header, [row for row in catalogues[domain] if row[0] in items])
        save_part(tables[domain], items, folder / f"{name}.text.safetensors")


def lines_of(file: Path) -> list[list[str]]:
    """The rows of an atomic file."""
    return [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]


def dense_pair(rows: dict[str, list[list[str]]]) -> dict[str, list[list[str]]]:
    """The interactions of both domains among users and items that have enough of each other, by domain."""
    both = set.intersection(*({row[0] for row in own} for own in rows.values()))
    items = {}
    for domain, own in rows.items():
        popular = Counter(row[1] for row in own if row[0] in both)
        items[domain] = set(sorted(popular, key=lambda item: (-popular[item], int(item)))[: POPULAR[domain]])
    while True:
        kept = {domain: [row for row in own if row[1] in items[domain]] for domain, own in rows.items()}
        length = {domain: Counter(row[0] for row in own) for domain, own in kept.items()}
        linked = {user for user in both if all(counts[user] >= BOTH_LEAST for counts in length.values())}
        for domain, own in kept.items():
            counts, least = length[domain], ALONE_LEAST[domain]
            kept[domain] = [row for row in own if row[0] in linked or (row[0] not in both and counts[row[0]] >= least)]
        if kept == rows:
            return rows
        rows = kept
        for domain, own in rows.items():
            history: dict[str, list[list[str]]] = {}
            for row in own:
                history.setdefault(row[0], []).append(row)
            in_time = (sorted(user, key=lambda row: float(row[2])) for user in history.values())
            counts = Counter(row[1] for user in in_time for row in user[:-LAST_OUT])
            items[domain] = {item for item in counts if counts[item] >= ITEM_LEAST}


def dense(rows: dict[str, list[tuple[str, ...]]]) -> dict[str, list[tuple[str, ...]]]:
    """The interactions among items and users that have enough of each other, by part."""
    popular = Counter(item for _, item in rows["train"])
    items = set(sorted(popular, key=lambda item: (-popular[item], int(item)))[:BABY_ITEMS])
    while True:
        rows = {part: [row for row in own if row[1] in items] for part, own in rows.items()}
        counts = Counter(user for user, _ in rows["train"])
        later = {user for user, _ in rows["valid"]} & {user for user, _ in rows["test"]}
        users = {user for user in later if counts[user] >= BABY_LEAST}
        kept = {part: [row for row in own if row[0] in users] for part, own in rows.items()}
        counts = Counter(item for _, item in kept["train"])
        items = {item for item in counts if counts[item] >= BABY_LEAST}
        if kept == rows and all(row[1] in items for own in rows.values() for row in own):
            return rows
        rows = kept


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Build the bundled data sets.")
    parser.add_argument("--scientific", type=Path, metavar="DIR", help="source folder of Amazon Scientific")
    parser.add_argument("--baby", type=Path, metavar="DIR", help="source folder of Amazon Baby")
    parser.add_argument("--food_kitchen", type=Path, metavar="DIR", help="source folder of Food-Kitchen")
    parser.add_argument("--factors", action="store_true", help="factor profiles of Amazon Scientific, from its texts")
    parser.add_argument("--output", type=Path, default=here / "adapters" / "data", help="where the sets' folders go")
    arguments = parser.parse_args()
    builders = (
        (arguments.scientific, scientific, (NAME, FULL)),
        (arguments.baby, baby, (BABY,)),
        (arguments.food_kitchen, food_kitchen, tuple(PAIR.values())),
    )
    if not arguments.factors and all(source is None for source, _, _ in builders):
        parser.error("give --scientific DIR, --baby DIR, --food_kitchen DIR, --factors or several")
    for source, make, names in builders:
        if source is None:
            continue
        make(source, arguments.output)
        for name in names:
            users, items, interactions = COUNTS[name]
            print(f"{name}: {users:,} users, {items:,} items, {interactions:,} interactions")
    if arguments.factors or arguments.scientific:
        factors(arguments.output)


if __name__ == "__main__":
    main()
