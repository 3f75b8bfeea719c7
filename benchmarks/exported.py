"""Do exported vectors and an index find what the run itself recommends? For every user, the first 20 of all items.

    run_recbole --model GRU4Rec --plugin mars --dataset amazon-scientific --epochs 1 --hidden_size 32 --output_dir run
    python benchmarks/exported.py run

Needs faiss-cpu.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import faiss

from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import load

TOP = 20


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("runs", nargs="+", metavar="RUN")
    for directory in words.parse_args().runs:
        run = load(directory)
        with tempfile.TemporaryDirectory() as folder:
            users_file, index_file = Path(folder) / "users.safetensors", Path(folder) / "items.faiss"
            run.export_users(users_file)
            run.export_index(index_file)
            users, index = FeatureTable.load(users_file), faiss.read_index(str(index_file))
            _, found = index.search(users.features.numpy(), TOP)  # [n, 20]
        ranked = run.recommend(users.tokens, k=TOP, mask_history=False).lists()
        items = run.item_tokens[1:]
        same = sum(set(items[row]) == set(ranked[user]) for user, row in zip(users.tokens, found, strict=True))
        n = len(users.tokens)
        print(
            f"{directory}: the same {TOP} of {len(items):,} items for {same:,} of {n:,} users, {100 * same / n:.2f} %"
        )


if __name__ == "__main__":
    main()
