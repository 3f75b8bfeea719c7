"""Do factors help the closed-form content filter? Factor groups as terms of its graph of items, beside controls.

    OMP_NUM_THREADS=1 python benchmarks/factors_in_filter.py            # bundled amazon-scientific, about ten minutes

The filter is s = r T^-.1 E D^-.4 R^T U^-.3 R D^-.4 E T^.4 with E = 1 + aC + (aC)^2 / 2, a = .7: R are the training
interactions, U and D the degrees of users and items, T is D + 1, C the symmetric graph of ten neighbours (image .1,
text .9). A factor adds w_k P_k to C, P_k the normalised graph of equal values (MARS, eq. 4; 'other' joins nobody).
Weights are chosen by validation R@20: all alike first, then each by itself, once; shuffled profiles (other items'
whole profiles) have the same search. One is left out for the test, one for validation; history is masked; the test is
read once a row.
"""

import csv

import numpy as np

from recplug.adapters.data import bundled
from recplug.adapters.factors import FactorTable
from recplug.adapters.features import FeatureTable

PLACE = bundled()["amazon-scientific"].directory / "amazon-scientific"
ALIKE, ALONE, SHUFFLES, K = (0.03, 0.1, 0.3, 1.0), (0.0, 0.1, 0.3), 2, 20


def symmetric(graph: np.ndarray) -> np.ndarray:
    half = np.maximum(graph.sum(1), 1) ** -0.5
    return half[:, None] * graph * half


def neighbours(x: np.ndarray, k: int = 10) -> np.ndarray:
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -9)
    graph = np.zeros_like(cosine)
    np.put_along_axis(graph, np.argpartition(-cosine, k, axis=1)[:, :k], 1, axis=1)
    return symmetric(np.maximum(graph, graph.T))


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """R ``[users, items]``, each user's validation and test item, C, and P_k by factor."""
    histories: dict[str, list[tuple[float, str]]] = {}
    with PLACE.with_suffix(".inter").open() as file:
        for user, item, order in list(csv.reader(file, delimiter="\t"))[1:]:
            histories.setdefault(user, []).append((float(order), item))
    tokens = sorted({item for history in histories.values() for _, item in history})
    place = {token: number for number, token in enumerate(tokens)}
    rows = [[place[item] for _, item in sorted(history)] for history in histories.values()]
    r = np.zeros((len(rows), len(tokens)), np.float32)
    for user, items in enumerate(rows):
        r[user, items[:-2]] = 1
    valid, test = (np.array([items[at] for items in rows]) for at in (-2, -1))
    c = np.zeros((len(tokens), len(tokens)), np.float32)
    for modality, share in (("image", 0.1), ("text", 0.9)):
        table = FeatureTable.load(f"{PLACE}.{modality}.safetensors")
        at = {token: number for number, token in enumerate(table.tokens)}
        c += share * neighbours(table.features.float().numpy()[[at[token] for token in tokens]])
    profiles = FactorTable.load(f"{PLACE}.factors.json").align(["[PAD]", *tokens])
    held = np.zeros((len(tokens), profiles.n_values), np.float32)
    held[profiles.items.numpy() - 1, profiles.values.numpy()] = 1
    graphs = {}
    for factor, low, high in zip(profiles.factors, profiles.offsets, profiles.offsets[1:], strict=False):
        own = held[:, low:high].copy()
        if factor.other is not None:
            own[:, factor.other] = 0
        graphs[factor.name] = symmetric(own @ own.T)
    return r, valid, test, c, graphs


class Filter:
    def __init__(self, r: np.ndarray) -> None:
        users, items = np.maximum(r.sum(1), 1), np.maximum(r.sum(0), 1)
        half = users[:, None] ** -0.15 * r * items**-0.4
        self.r, self.across, self.t = r, half.T @ half, r.sum(0) + 1

    def found(self, c: np.ndarray, held: np.ndarray) -> np.ndarray:
        """``[users]``: whether the held-out item is among the first 20."""
        heat = np.eye(len(c), dtype=np.float32) + 0.7 * c + 0.245 * (c @ c)
        scores = self.r @ (self.t[:, None] ** -0.1 * (heat @ self.across @ heat) * self.t**0.4)
        scores[self.r > 0] = -np.inf
        own = scores[np.arange(len(held)), held]
        return (scores > own[:, None]).sum(1) < K


def fit(form: Filter, base: np.ndarray, graphs: dict[str, np.ndarray], valid: np.ndarray) -> tuple[float, dict]:
    def score(weights: dict[str, float]) -> float:
        return float(form.found(base + sum(w * graphs[name] for name, w in weights.items() if w), valid).mean())

    tried = [dict.fromkeys(graphs, w / len(graphs)) for w in (0.0, *ALIKE)]
    best = max(((score(weights), weights) for weights in tried), key=lambda pair: pair[0])
    for name in graphs:
        for weight in ALONE:
            weights = {**best[1], name: weight}
            best = max(best, (score(weights), weights), key=lambda pair: pair[0])
    return best


def interval(difference: np.ndarray) -> str:
    generator = np.random.default_rng(0)
    draws = [difference[generator.integers(0, len(difference), len(difference))].mean() for _ in range(1000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{difference.mean():+.4f}, 95 % {low:+.4f} ... {high:+.4f}"


def main() -> None:
    r, valid, test, c, graphs = load()
    form = Filter(r)
    for name, base in (("content", c), ("no content", np.zeros_like(c))):
        bare = form.found(base, test)
        print(f"{name}: valid R@20 {form.found(base, valid).mean():.4f}, test {bare.mean():.4f}", flush=True)
        tests = {}
        for label in ("real", *range(SHUFFLES)):
            order = np.arange(len(c)) if label == "real" else np.random.default_rng(label).permutation(len(c))
            own = {factor: graph[order][:, order] for factor, graph in graphs.items()}
            best, weights = fit(form, base, own, valid)
            tests[label] = form.found(base + sum(w * own[k] for k, w in weights.items()), test).astype(float)
            chosen = ", ".join(f"{k} {w:.2g}" for k, w in weights.items() if w)
            print(f"  + {label} profiles: valid {best:.4f}, test {tests[label].mean():.4f}; {chosen}", flush=True)
        real = tests.pop("real")
        print(f"  real minus shuffled: {interval(real - np.mean(list(tests.values()), axis=0))}")
        print(f"  real minus none: {interval(real - bare)}", flush=True)


if __name__ == "__main__":
    main()
