"""Does MICRec help? LightGCN and SASRec on Food with Kitchen as the source, and the other way round.

    python benchmarks/quality_micrec.py --cut --seeds 3               # the bundled cut of both; resumes
    python benchmarks/quality_micrec.py --data_path DIR --seeds 3     # DIR holds food/ and kitchen/
    python benchmarks/quality_micrec.py --cut --table                 # only prints what is there

Every user's last item tests and the one before it validates; full ranking without a user's history, early stopping on
validation NDCG@20 of the target, one budget for all cells of a backbone; the test set is read once a cell. A cell that
is missing stays empty. Differences are paired over users, averaged over the seeds that both have: mean, 95 % interval
and p of a sign-flip permutation test; over all users, and over those with and without the source.

The overlap is thinned out by renaming linked users in the source: "links 25 %" leaves a quarter of them, and every
interaction in place. "shuffled links" deals the source's linked users' names out to each other.

New users (``NAME.support.inter``, ``NAME.query.inter``) are scored after training, without a gradient step, from their
support among the items that the model knows; their one query item counts. A backbone that cannot do it has no line.

``--encoder NAME`` encodes the titles once with a model of sentence-transformers, in place of the LSA vectors.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import Filled, Measure, Variant, cell_path, fill, table, waves
from paired import load as load_cells

from recplug.adapters.compare.statistics import ndcg_by_user
from recplug.adapters.data import bundled
from recplug.adapters.features import FeatureTable
from recplug.adapters.recbole import load
from recplug.plugins.errors import RecplugError

K = 20
RATIOS = (0.0, 0.1, 0.25, 0.5)  # and 1, which is MICRec itself
SHUFFLED = "shuffled"
FIRST = ("bare", "MICRec", "no contrast")
OTHERWISE = "MICRec, in the rows' place"
CONTROLS = (OTHERWISE, "contrast as printed", "no content", "shuffled links", "no templates", "one domain")
CURVE = tuple(f"links {100 * ratio:.0f} %" for ratio in RATIOS)
METRICS = ("best_valid_score", "recall@10", "recall@20", "ndcg@10", "ndcg@20")
HOSTS: dict[str, dict[str, Any]] = {
    "LightGCN": {
        "n_layers": 3,
        "embedding_size": 64,
        "reg_weight": 1e-4,
        "learning_rate": 1e-3,
        "train_batch_size": 2048,
        "epochs": 120,
        "eval_step": 2,
        "stopping_step": 10,
    },
    "SASRec": {"MAX_ITEM_LIST_LENGTH": 20, "train_batch_size": 1024, "epochs": 60, "eval_step": 2, "stopping_step": 5},
}


@dataclass(frozen=True)
class Pair:
    """A target and its source.

    Attributes:
        target, source: names of the data sets.
        place: the folder that holds both; None: they are bundled.
        work: where the source lies again with other links.
    """

    target: str
    source: str
    place: Path | None
    work: Path

    def folder(self, name: str) -> Path:
        return bundled()[name].directory if self.place is None else self.place / name

    @property
    def linked(self) -> list[str]:
        """Users of both, in the order of their tokens."""
        return sorted(set.intersection(*(users_of(self.folder(name), name) for name in (self.target, self.source))))

    def variants(self) -> dict[str, Variant]:
        def micrec(links: float | str = 1.0, **own: Any) -> Variant:
            path = self.place if links == 1.0 else relinked(self, links)
            domain = {"source": self.source, "source_path": None if path is None else str(path)}
            return ["micrec"], {f"micrec.{name}": value for name, value in {**domain, **own}.items()}

        return {
            "bare": ([], {"fast_propagation": True, "trim_padding": True}),
            "MICRec": micrec(),
            "no contrast": micrec(gamma=0.0),
            "contrast as printed": micrec(gamma=1.0),
            OTHERWISE: micrec(join="replace"),
            "no content": micrec(neighbours=0, isolated="keep"),
            "shuffled links": micrec(SHUFFLED),
            "no templates": micrec(templates=False),
            "one domain": (["micrec"], {}),
            **{name: micrec(ratio) for name, ratio in zip(CURVE, RATIOS, strict=True)},
        }


# -- links


def users_of(folder: Path, name: str) -> set[str]:
    return {row[0] for row in rows_of(folder / f"{name}.inter")}


def rows_of(file: Path) -> list[list[str]]:
    return [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]


def renaming(linked: Sequence[str], links: float | str) -> dict[str, str]:
    """New tokens for the source's linked users: of a share of them, or in another order.

    A smaller share's links are a part of a larger one's.
    """
    order = np.random.default_rng(0).permutation(len(linked))
    if links == SHUFFLED:  # one long cycle: nobody keeps the own name
        return {linked[one]: linked[other] for one, other in zip(order, np.roll(order, 1), strict=True)}
    return {linked[place]: f"unlinked-{linked[place]}" for place in order[round(float(links) * len(linked)) :]}


def relinked(pair: Pair, links: float | str) -> Path:
    """The folder of a copy of the source in which linked users have other tokens; made once."""
    place = pair.work / f"{pair.source}-links-{links}"
    target, source = place / pair.source, pair.folder(pair.source)
    if not target.is_dir():
        names = renaming(pair.linked, links)
        half = place.with_name(f".{place.name}.part")
        shutil.rmtree(half, ignore_errors=True)
        shutil.copytree(source, half / pair.source)
        file = half / pair.source / f"{pair.source}.inter"
        header, *lines = file.read_text(encoding="utf-8").splitlines()
        rows = (line.partition("\t") for line in lines)
        renamed = (f"{names.get(user, user)}\t{rest}" for user, _, rest in rows)
        file.write_text("\n".join([header, *renamed]) + "\n", encoding="utf-8")
        half.rename(place)
    return place


# -- titles


def encoded(names: Sequence[str], folders: Sequence[Path], encoder: str, work: Path) -> Path:
    """The folder of copies of both sets with their titles' vectors by a sentence encoder; made once."""
    place = work / f"encoded-{Path(encoder).name}"
    if place.is_dir():
        return place
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise SystemExit(f"--encoder needs sentence-transformers ({error}); pip install 'recplug[text]'") from None
    model = SentenceTransformer(encoder)
    half = place.with_name(f".{place.name}.part")
    shutil.rmtree(half, ignore_errors=True)
    for name, folder in zip(names, folders, strict=True):
        shutil.copytree(folder, half / name)
        items, titles = zip(*((row[0], row[2]) for row in rows_of(folder / f"{name}.item")), strict=True)
        vectors = model.encode(list(titles), normalize_embeddings=True, show_progress_bar=True)
        origin = {"encoder": encoder, "pooling": "the encoder's own", "normalised": "yes"}
        features = torch.as_tensor(np.asarray(vectors)).half()
        FeatureTable(features, items, "text", origin).save(half / name / f"{name}.text.safetensors")
    half.rename(place)
    return place


# -- cells


def histories(folder: Path, name: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """New users with something known in their support and a known query: what they had, oldest first, and the query."""
    known = {row[1] for row in rows_of(folder / f"{name}.inter")}
    asked = {row[0]: row[1] for row in rows_of(folder / f"{name}.query.inter") if row[1] in known}
    had: dict[str, list[str]] = {}
    for row in rows_of(folder / f"{name}.support.inter"):
        if row[0] in asked and row[1] in known:
            had.setdefault(row[0], []).append(row[1])
    return had, {user: asked[user] for user in had}


def kept(run: Path, folder: Path, name: str, user: np.ndarray, rank: np.ndarray) -> dict[str, np.ndarray]:
    """What a cell's file holds: every target's rank, the links, and new users' ranks, K + 1 beyond K."""
    arrays = {"user": user, "rank": rank}
    about = json.loads((run / "result.json").read_text(encoding="utf-8"))
    arrays["source"] = np.array(json.dumps(about.get("source", {})))
    had, asked = histories(folder, name)
    try:
        lists = load(run).recommend(histories=had, k=K).lists()
    except RecplugError as error:
        print(f"no new users: {error}")
        return arrays
    found = [(who, lists[who].index(item) + 1 if item in lists[who] else K + 1) for who, item in asked.items()]
    names, ranks = zip(*found, strict=True)
    return {**arrays, "new_user": np.array(names), "new_rank": np.array(ranks)}


def cells(seeds: int) -> list[tuple[str, int]]:
    """Bare, MICRec and its uncoupled twin on every seed first, then the controls, then the curve."""
    return waves([(names, range(seeds)) for names in (FIRST, CONTROLS, CURVE)])


def seen(cell: Mapping[str, np.ndarray], among: Sequence[str] | None = None, *, without: bool = False) -> np.ndarray:
    """NDCG of the users, of those in ``among``, or of the others."""
    users, values = ndcg_by_user(cell["user"], cell["rank"], K)
    return values if among is None else values[np.isin(users, among, invert=without)]


def new(cell: Mapping[str, np.ndarray]) -> np.ndarray:
    """NDCG of the new users; empty where the backbone cannot score them."""
    return ndcg_by_user(cell["new_user"], cell["new_rank"], K)[1] if "new_user" in cell else np.empty(0)


def printed(output: Path, pairs: Sequence[Pair], hosts: Sequence[str], seeds: int) -> str:
    seen_grids: dict[tuple[str, ...], dict[str, list[Filled]]] = {}
    new_grids: dict[tuple[str, ...], dict[str, list[Filled]]] = {}
    for pair in pairs:
        linked = pair.linked
        measures: dict[str, Measure] = {
            "all": seen,
            "linked": partial(seen, among=linked),
            "unlinked": partial(seen, among=linked, without=True),
            "new": new,
        }
        for host in hosts:
            names = (*FIRST, *CONTROLS, *CURVE)
            grid = {name: load_cells(output, pair.target, host, name, seeds=seeds, measures=measures) for name in names}
            seen_grids[host, pair.target] = grid
            fit = {name: [cell for cell in found if cell.by_user["new"].size] for name, found in grid.items()}
            new_grids[host, pair.target] = {
                name: [replace(cell, about={**cell.about, "new": float(cell.by_user["new"].mean())}) for cell in found]
                for name, found in fit.items()
                if found or name in FIRST[1:]
            }
    lead = ["backbone", "target", "variant", "seeds"]
    groups = [f"{which} users' N@{K}: MICRec against it (95 %), p" for which in ("all", "linked", "unlinked")]
    header = [*lead, f"valid N@{K}", "R@10", "R@20", "N@10", "N@20", "epochs", f"N@{K} to bare", *groups]
    first = table(
        seen_grids, header, own="MICRec", metrics=METRICS, measures=("all", "linked", "unlinked"), epochs=True
    )
    header = [*lead, f"new users' N@{K}", "to no contrast", "MICRec against it (95 %), p"]
    second = table(new_grids, header, own="MICRec", metrics=("new",), measures=("new",), base="no contrast")
    return f"{first}\n\n{second}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cut", action="store_true", help="the bundled food-small and kitchen-small")
    where.add_argument("--data_path", type=Path, help="the folder that holds food/ and kitchen/")
    parser.add_argument("--output", type=Path, default=Path("runs/quality_micrec"))
    parser.add_argument("--targets", default="food,kitchen", help="these alone, separated by commas")
    parser.add_argument("--backbones", default=",".join(HOSTS), help="these alone, separated by commas")
    parser.add_argument("--encoder", help="a model of sentence-transformers, by name or folder; default: LSA vectors")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="another budget; the output folder should then be another too")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="fill these variants alone: names, separated by ';'")
    parser.add_argument("--table", action="store_true", help="print the tables and train nothing")
    arguments = parser.parse_args()
    names = {domain: f"{domain}-small" if arguments.cut else domain for domain in ("food", "kitchen")}
    place: Path | None = arguments.data_path
    for domain, name in names.items():
        if place is not None and not (place / name).is_dir():
            parser.error(f"--data_path must hold {name}/; make it with: recplug data get {domain} --from DIR")
    variants = (*FIRST, *CONTROLS, *CURVE)
    targets, hosts = arguments.targets.split(","), arguments.backbones.split(",")
    chosen = arguments.only.split(";") if arguments.only else variants
    for given, known in ((targets, names), (hosts, HOSTS), (chosen, variants)):
        for name in given:
            if name not in known:
                parser.error(f"no {name}; choose of: {'; '.join(known)}")
    torch.set_num_threads(arguments.threads)
    work = arguments.output / "work"
    work.mkdir(parents=True, exist_ok=True)
    if arguments.encoder:
        folders = [bundled()[name].directory if place is None else place / name for name in names.values()]
        place = encoded(list(names.values()), folders, arguments.encoder, work)
    others = {"food": "kitchen", "kitchen": "food"}
    pairs = [Pair(names[target], names[others[target]], place, work) for target in targets]
    more: dict[str, Any] = {"epochs": arguments.epochs} if arguments.epochs else {}
    for variant, seed in () if arguments.table else cells(arguments.seeds):
        if variant not in chosen:
            continue
        for pair in pairs:
            for host in hosts:
                path = cell_path(arguments.output, pair.target, host, variant, seed=seed)
                fill(
                    path,
                    f"{pair.target}, {host}, {variant}",
                    host,
                    pair.target,
                    pair.variants()[variant],
                    {**HOSTS[host], **more},
                    seed=seed,
                    shown=f"ndcg@{K}",
                    arrays=partial(kept, path.with_suffix(""), pair.folder(pair.target), pair.target),
                    data_path=pair.place,
                )
    print(printed(arguments.output, pairs, hosts, arguments.seeds))


if __name__ == "__main__":
    main()
