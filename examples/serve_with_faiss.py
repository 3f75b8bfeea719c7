"""Serve a run's recommendations from three files: no recplug, no RecBole, no PyTorch.

    recplug export RUN --items --users --faiss
    python serve_with_faiss.py RUN/export USER [USER ...]

Needs faiss-cpu, numpy and safetensors.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
from safetensors.numpy import load_file


def read_table(path):
    """Tokens and their vectors ``[n, w]``."""
    stored = load_file(path)
    text, ends = stored["item_tokens"].tobytes(), stored["item_token_offsets"].tolist()
    return [text[a:b].decode() for a, b in pairwise(ends)], stored["features"]


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("folder", type=Path)
    words.add_argument("users", nargs="+")
    words.add_argument("--k", type=int, default=10)
    words.add_argument("--hidden", type=Path, help="JSON: items by user that are not to be shown, such as their past")
    given = words.parse_args()
    index = faiss.read_index(str(given.folder / "items.faiss"))
    items = json.loads((given.folder / "items.faiss.tokens.json").read_text(encoding="utf-8"))
    users, vectors = read_table(given.folder / "users.safetensors")
    row = {user: at for at, user in enumerate(users)}
    if unknown := [user for user in given.users if user not in row]:
        words.error(f"no vector of {', '.join(unknown)} in {given.folder / 'users.safetensors'}")
    hidden = json.loads(given.hidden.read_text(encoding="utf-8")) if given.hidden else {}
    for user in given.users:
        had = set(hidden.get(user, []))
        # What is hidden may fill the first places, so as many more are asked for.
        scores, found = index.search(np.ascontiguousarray(vectors[[row[user]]]), min(given.k + len(had), index.ntotal))
        best = [(items[at], score) for at, score in zip(found[0], scores[0], strict=True) if items[at] not in had]
        for item, score in best[: given.k]:
            print(f"{user}\t{item}\t{score:.4f}")


if __name__ == "__main__":
    main()
