"""
Serve with faiss
================

What a run has learned leaves it as vectors: one an item, one a user, and a user's ranking is the order of the dot
products. faiss finds the first of it without scoring everything in Python. This page trains BPR on
``amazon-baby-small`` for a few epochs, exports it, and answers from the files alone.

The same from the command line::

    run_recbole --model BPR --plugin ssr --dataset amazon-baby-small --output_dir run
    recplug export run --items --users --faiss
    python examples/serve_with_faiss.py run/export USER
"""

# %%
# Train and export
# ----------------
# Each file is tried against the model's own scores before it is written. ``run.export_index`` makes other indexes than
# the exact one, for millions of items: ``factory="HNSW32"``.

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import faiss
import matplotlib.pyplot as plt
from safetensors.numpy import load_file

from recplug.adapters.recbole import load, run

place = Path(tempfile.mkdtemp())
settings = {"epochs": 10, "learning_rate": 0.005, "train_batch_size": 512, "show_progress": False}
run("BPR", "amazon-baby-small", "ssr", settings, output_dir=place / "run")
trained = load(place / "run")
trained.export_items(place / "items.safetensors")
trained.export_users(place / "users.safetensors")
for file in sorted(place.glob("*.safetensors")):
    print(f"{file.name:<20}{file.stat().st_size:>10,} bytes")

# %%
# Answer from the files
# ---------------------
# Neither recplug nor RecBole nor PyTorch is needed for this.


def read(path):
    """Tokens and their vectors ``[n, w]``."""
    stored = load_file(path)
    text, ends = stored["item_tokens"].tobytes(), stored["item_token_offsets"].tolist()
    return [text[a:b].decode() for a, b in pairwise(ends)], stored["features"]


items, item_vectors = read(place / "items.safetensors")
users, user_vectors = read(place / "users.safetensors")
index = faiss.IndexFlatIP(item_vectors.shape[1])
index.add(item_vectors)
someone = users[0]
scores, found = index.search(user_vectors[:1], 10)
print(someone, "gets", *[items[at] for at in found[0]])

# %%
# Is it the run's own list?
# -------------------------
# ``recommend`` scores with the model itself. faiss knows no histories: what someone has had comes back too, so as many
# more are asked for, and those are left out. Crosses are such items; the first ten dots are the run's own list.

own = trained.recommend(users=[someone], k=10).lists()[someone]
everything = trained.recommend(users=[someone], k=len(items), mask_history=False).lists()[someone]
had = set(everything) - set(trained.recommend(users=[someone], k=len(items)).lists()[someone])
scores, found = index.search(user_vectors[:1], 10 + len(had))
shown = [items[at] for at in found[0]]
left = [item for item in shown if item not in had][:10]
print(f"{someone} has had {len(had)} items; the run's own list: {left == own}")
figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
for known, style, label in ((False, "o", "to recommend"), (True, "x", "had already")):
    places = [place for place, item in enumerate(shown) if (item in had) == known]
    axes.plot([place + 1 for place in places], scores[0][places], style, label=label)
axes.set(xlabel="place in the index's answer", ylabel="dot product", title=f"the first items for user {someone}")
axes.xaxis.get_major_locator().set_params(integer=True)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %%
# How long does it take?
# ----------------------
# All users at once, in one process with one thread. An exact index reads every vector for every user; with some hundred
# items that is nothing, and the time grows with the number of items.

faiss.omp_set_num_threads(1)
began = time.perf_counter()
index.search(user_vectors, 10)
print(f"{len(users)} users, {len(items)} items: {1e6 * (time.perf_counter() - began) / len(users):.0f} µs a user")
