"""Build the bundled Amazon Scientific sets from their source folder.

    python benchmarks/build_bundled_data.py --source DIR

DIR holds ``scientific.inter.gz``, ``items.tsv.gz``, ``image_feat.npy``, ``text_feat.npy`` and ``full/``. Items are
renamed to their ASINs, so that both sets share one pair of feature tables. Running it again writes the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import numpy as np

from recplug.adapters.features import FeatureTable, Provenance, from_npy

NAME, FULL = "amazon-scientific", "amazon-scientific-full"
HEADER = ["user_id:token", "item_id:token", "order:float"]
COUNTS = {NAME: (2_928, 1_585, 19_712), FULL: (8_442, 4_385, 59_384)}
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


def main() -> None:
    here = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Build the bundled Amazon Scientific sets.")
    parser.add_argument("--source", type=Path, required=True, help="the folder of the source data")
    parser.add_argument("--output", type=Path, default=here / "adapters" / "data", help="where the sets' folders go")
    arguments = parser.parse_args()
    source, output = arguments.source, arguments.output
    expect((source / "items.tsv.gz").is_file(), f"no items.tsv.gz in {source}; --source names the source data's folder")

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
    for name, (users, items, interactions) in COUNTS.items():
        print(f"{name}: {users:,} users, {items:,} items, {interactions:,} interactions")


if __name__ == "__main__":
    main()
