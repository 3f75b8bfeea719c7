"""What each data set that is made from the user's files needs, and what must come out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from recplug.adapters.data import factor_profiles
from recplug.adapters.factors import FactorTable
from recplug.adapters.features.exchange.reading import Provenance

LICENCE = "none stated; research use only, not commercial, cite the papers (TERMS.md)"
GROUPLENS = "GroupLens's terms: research use only, not commercial, cite the paper (LICENSE-MovieLens.txt)"
SPLIT, ORDER, RATINGS = ("split:token",), ("order:float",), ("rating:float", "timestamp:float")
SEQUENCES = (*ORDER, "domain:token", *SPLIT)
Rows = Sequence[Mapping[str, str]]
MMREC = "github.com/Blackycat111/SAIA at 5a58082, data/baby; protocol of MMRec (X. Zhou, 2023)"


@dataclass(frozen=True)
class Content:
    """A file about the items.

    Attributes:
        modality: ``"image"`` or ``"text"``.
        file: its name in the source folder.
        encoder, source, licence: for the header of what is made of it.
    """

    modality: str
    file: str
    encoder: str
    source: str
    licence: str = LICENCE

    @property
    def provenance(self) -> Provenance:
        """The header; undated, so that the same source gives the same bytes."""
        return Provenance(encoder=self.encoder, licence=self.licence, source=self.source, created="unknown")


@dataclass(frozen=True)
class Recipe:
    """How one data set is made, and what must come out.

    Attributes:
        name: what ``--dataset`` takes.
        category: the source folder's name, and that of its interactions.
        summary: one line.
        users, items, interactions: counts, without padding.
        told: what an interaction says beside user and item: the part of a ready-made split, the place in the user's
            history, or rating and time.
        splits: what the column ``split`` may say.
        features, graphs: the files about the items.
        numbered: whether users and items are the numbers of the rows of their tables. Users are then renamed to the
            pseudonyms that their table has: another set's numbers would mean other people.
        people: what comes before the users' numbers where they have no pseudonyms, so that no other source's match.
        domain: of a source that holds several domains, the one that this set is. Its users come in files of their own,
            training users and new ones; see :mod:`recplug.adapters.data.held_out_nodes`.
        catalogue: makes the fields of ``NAME.item`` from the source's items; None: they stay as they are.
        factors: makes the factor profiles from the source's items; None: there are none.
        fields: of the source's items, those that ``catalogue`` and ``factors`` read.
        papers: further files that belong to the set, such as its licence.
    """

    name: str
    category: str
    summary: str
    users: int
    items: int
    interactions: int
    told: tuple[str, ...]
    features: tuple[Content, ...]
    splits: tuple[str, ...] = ("0", "1", "2")
    graphs: tuple[Content, ...] = ()
    numbered: bool = True
    people: str = ""
    domain: str | None = None
    catalogue: Callable[[Rows], Rows] | None = None
    factors: Callable[[Rows], FactorTable] | None = None
    fields: tuple[str, ...] = ()
    papers: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The names of all source files."""
        about = (content.file for content in self.features + self.graphs)
        users = ("users.tsv.gz",) if self.numbered else ()
        return (f"{self.category}.inter.gz", "items.tsv.gz", *users, *about, *self.papers)

    @property
    def advice(self) -> str:
        """The command that makes it."""
        return f"recplug data get {self.name} --from DIR"


MOVIES = "plots of OMDb, abstracts of DBpedia, posters (github.com/antonsteenvoorden/ml1m-images at 1d45057)"
_IMAGE, _TEXT = "4096-d CNN", "384-d sentence transformer"
_TITLES = Content(
    "text",
    "text_feat_lsa128.npy",
    "TF-IDF of the titles, SVD to 128",
    "titles: github.com/xhran2010/LLMCDSR at 5825e99, data/food-kitchen",
)


def _food_kitchen(domain: str, summary: str, users: int, items: int, interactions: int) -> Recipe:
    return Recipe(
        domain,
        "food_kitchen",
        summary,
        users,
        items,
        interactions,
        told=SEQUENCES,
        splits=("train_A", "train_B", "train_overlap", "valid", "test"),
        features=(_TITLES,),
        numbered=False,
        people="fk",
        domain=domain,
        catalogue=factor_profiles.products,
        fields=("domain", "asin", "title"),
    )


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "amazon-baby",
            "baby",
            "Amazon Baby 2014, 5-core, the split of MMRec; image and text for every item",
            19_445,
            7_050,
            160_792,
            told=SPLIT,
            features=tuple(
                Content(modality, f"{modality}_feat_rec128.npy", f"128-d fitted to the kNN graph of {official}", MMREC)
                for modality, official in (("image", _IMAGE), ("text", _TEXT))
            ),
            graphs=tuple(
                Content(modality, f"{modality}_knn.npz", official, MMREC)
                for modality, official in (("image", _IMAGE), ("text", _TEXT))
            ),
        ),
        Recipe(
            "amazon-beauty",
            "beauty",
            "Amazon Beauty 2014, 5-core, in order; text for every item",
            22_363,
            12_101,
            198_502,
            told=ORDER,
            factors=factor_profiles.attributes,
            fields=("attributes",),
            features=(
                Content(
                    "text",
                    "text_feat_lsa128.npy",
                    "TF-IDF of title words and pairs, SVD to 128",
                    "titles: github.com/Quhaoh233/DeftRec at f29f02a, data/beauty",
                ),
            ),
        ),
        Recipe(
            "movielens-small",
            "movielens",
            "MovieLens latest-small of 2015 to 2018, pooled, 5-core; ratings with time, image and text for every item",
            1_954,
            2_686,
            193_558,
            told=RATINGS,
            features=(
                Content("image", "image_feat.npy", "colours, gradients, patches of the poster; PCA", MOVIES, GROUPLENS),
                Content("text", "text_feat_lsa256.npy", "TF-IDF of the texts, SVD to 256", MOVIES, GROUPLENS),
            ),
            numbered=False,
            catalogue=factor_profiles.catalogue,
            factors=factor_profiles.movies,
            fields=("title", "year", "genres", "plot", "abstract"),
            papers=("LICENSE-MovieLens.txt",),
        ),
        _food_kitchen(
            "food",
            "Amazon Grocery and Gourmet Food; in order; new users apart; 9,398 users are kitchen's too; text by item",
            14_870,
            8_661,
            98_316,
        ),
        _food_kitchen(
            "kitchen",
            "Amazon Home and Kitchen; in order; new users apart; 9,398 users are food's too; text by item",
            47_589,
            27_637,
            337_811,
        ),
    )
}
