"""Factor profiles that need no model: Amazon Scientific by rules on its texts, MovieLens and Beauty by columns."""

from __future__ import annotations

import html
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from recplug.adapters.data import vocabularies
from recplug.adapters.factors import FactorSchema, FactorSpec, FactorTable, Value
from recplug.plugins.factors import FactorSource

LICENCE = "that of the data set; research use only, not commercial (TERMS.md)"
BRANDS, OTHER = 30, "other"
Labels = Sequence[tuple[str, ...]]
_START = ". Industrial & Scientific"
_COUNT = re.compile(
    r"(?:pack|set|box|case|bag|lot|package) of (\d[\d,]*)"
    r"|(?<![\d.,/-])(\d[\d,]*)[ -]?(?:pcs|pc|pieces?|packs?|pk|count|ct|rolls?|sheets?|bags?|boxes|pairs?)(?![a-z])"
)
_SIZES = {
    "metric": re.compile(r"\d ?(?:mm|cm|ml|l|kg|g|gm|grams?|liters?|meters?)(?![a-z])"),
    "imperial": re.compile(
        r"\d ?-?(?:inch|inches|in|ft|feet|foot|yd|yds|yards?|oz|ounces?|fl|lb|lbs|pounds?|gallons?|quarts?|mil|awg"
        r"|gauge)(?![a-z])|\d ?[\"'”′″]"
    ),
}
PACKS = {"1": 1, "2 to 5": 5, "6 to 20": 20, "21 to 99": 99, "100 or more": 10**9}


def parts(text: str) -> tuple[str, str, str]:
    """Title, category path and brand of one text of Amazon Scientific: ``TITLE. Industrial & Scientific PATH. BRAND.``

    Path and brand are empty where the text has none.
    """
    text = html.unescape(text).strip()
    title, found, rest = text.partition(_START)
    if not found:
        title, _, brand = text.partition(". . ")
        return title, "", brand.strip(" .")
    path, _, brand = rest.partition(". ")
    return title, path.strip(" ."), brand.strip(" .")


def under(path: str) -> tuple[str, str]:
    """Department and shelf at the head of a category path, by ``DEPARTMENTS``; empty where none is."""
    department = _head(path, vocabularies.DEPARTMENTS)
    return department, _head(path.removeprefix(department).strip(), vocabularies.DEPARTMENTS.get(department, ()))


def _head(path: str, names: Sequence[str] | Mapping[str, object]) -> str:
    return max((name for name in names if f"{path} ".startswith(f"{name} ")), key=len, default="")


def reader(vocabulary: Mapping[str, str]) -> Callable[[str], tuple[str, ...]]:
    """A function that finds the values whose words a text holds, in the vocabulary's order."""
    patterns = {
        value: re.compile(rf"(?<![a-z0-9])(?:{'|'.join(map(re.escape, own.split(', ')))})(?:s|es)?(?![a-z0-9])")
        for value, own in vocabulary.items()
    }
    return lambda text: tuple(value for value, pattern in patterns.items() if pattern.search(text.casefold()))


def pack(title: str) -> str:
    """How many pieces a title offers, by the steps of :data:`PACKS`; empty where it does not say."""
    found = [int((a or b).replace(",", "")) for a, b in _COUNT.findall(title.casefold())]
    number = max(found, default=0)
    return next((name for name, most in PACKS.items() if number <= most), "") if number else ""


def units(title: str) -> str:
    """Whether a title measures in metric or imperial units, or in both; empty where it does not measure."""
    found = [name for name, pattern in _SIZES.items() if pattern.search(title.casefold())]
    return "both" if len(found) == 2 else "".join(found)


def own_words(title: str) -> str:
    """The part of a title that names the thing itself, before what it is for or comes with."""
    return re.split(r"\b(?:for|with|compatible|fits|designed|suitable)\b", title, maxsplit=1, flags=re.IGNORECASE)[0]


def scientific(texts: Mapping[str, str]) -> FactorTable:
    """Ten factors of Amazon Scientific, read from the texts by item token.

    Department, shelf and brand stand in the text as the shop's catalogue had them; the others are words of the title.
    """
    named, paths, brands = zip(*map(parts, texts.values()), strict=True)
    titles = list(map(_without, named, brands))
    heads = [under(path) for path in paths]
    departments = dict.fromkeys(vocabularies.DEPARTMENTS, "")
    shelves = departments | {shelf: name for name, own in vocabularies.DEPARTMENTS.items() for shelf in own}
    kept, makers = _brands(brands)
    forms, uses = reader(vocabularies.FORMS), reader(vocabularies.USES)
    factors = [
        _factor("department", "head of the category path", "catalogue", departments, _one(d for d, _ in heads)),
        _factor("shelf", "category path under the department", "catalogue", shelves, _one(s or d for d, s in heads)),
        _factor("brand", f"the {BRANDS} most frequent brands", "catalogue", kept, makers, other=OTHER),
        _words("material", "what it is made of, by words of the title", vocabularies.MATERIALS, titles, multi=True),
        _words("form", "what kind of thing it is, by words of the title", vocabularies.FORMS, titles,
               [(forms(own_words(title)) or forms(title))[:1] for title in titles]),
        _words("use", "what it is used for, by words of the title", vocabularies.USES, titles,
               [uses(title)[:1] for title in titles]),
        _words("colour", "by words of the title", vocabularies.COLOURS, titles, multi=True),
        _words("trait", "what the title says in its favour", vocabularies.TRAITS, titles, multi=True),
        _factor("pack", "pieces in the pack, by the title", "text", list(PACKS), _one(map(pack, titles))),
        _factor("units", "measures in the title", "text", [*_SIZES, "both"], _one(map(units, titles))),
    ]  # fmt: skip
    return _table(list(texts), factors, "rules on title, category path and brand")


def movies(rows: Sequence[Mapping[str, str]]) -> FactorTable:
    """Four factors of MovieLens, from its items by column: title, year, genres (with ``|``), plot and abstract."""
    genres = [tuple(row["genres"].split("|")) if row["genres"] else () for row in rows]
    decades = [(f"{row['year'][:3]}0s",) if row["year"] else () for row in rows]
    plots = [f"{row['title']}. {row['plot']}" for row in rows]
    abstracts, origins = [row["abstract"] for row in rows], reader(vocabularies.ORIGINS)
    factors = [
        _factor("genre", "MovieLens's genres", "catalogue", _seen(genres), genres, multi=True),
        _factor("decade", "of the release", "catalogue", _seen(decades), decades),
        _words("theme", "by words of the title and the plot", vocabularies.THEMES, plots, multi=True),
        _words("origin", "what the film goes back to, by words of the abstract", vocabularies.ORIGINS, abstracts,
               [origins(abstract)[:1] for abstract in abstracts]),
    ]  # fmt: skip
    method = "columns, and rules on plot and abstract"
    return _table([row["item_id"] for row in rows], factors, method)


def attributes(rows: Sequence[Mapping[str, str]]) -> FactorTable:
    """Three factors of Amazon Beauty: its attribute ids, split by how many items have them.

    The ids are of categories and brands; their names were never published. Frequent ones are mostly categories, rare
    ones mostly brands. Ids that fewer than ten items have are left out, and so is a factor without any.
    """
    given = [tuple(dict.fromkeys(row["attributes"].split())) for row in rows]
    counts = Counter(number for numbers in given for number in numbers)
    bands = {"broad": (0.05, 1.1), "medium": (0.01, 0.05), "narrow": (10 / len(rows), 0.01)}
    factors = []
    for name, (low, high) in bands.items():
        own = [tuple(n for n in numbers if low * len(rows) <= counts[n] < high * len(rows)) for numbers in given]
        description = f"ids of categories and brands (names unknown) of {low:.2%} of the items or more"
        if any(own):
            factors.append(_factor(f"{name} attributes", description, "catalogue", _seen(own), own, multi=True))
    return _table([row["item_id"] for row in rows], factors, "attribute ids by frequency")


def _without(title: str, brand: str) -> str:
    """The title without the brand at its beginning, whose words say nothing about the thing (Anderson Metals)."""
    return title[len(brand) :] if brand and title.casefold().startswith(brand.casefold()) else title


def _brands(brands: Sequence[str]) -> tuple[list[str], Labels]:
    """The most frequent brands, each in its most frequent spelling, and the items' own."""
    counts = Counter(brand.casefold() for brand in brands if brand)
    spelled = Counter(brands)
    first = sorted(counts, key=lambda key: (-counts[key], key))[:BRANDS]
    names = {key: min((b for b in spelled if b.casefold() == key), key=lambda b: (-spelled[b], b)) for key in first}
    return [*names.values(), OTHER], _one(names.get(b.casefold(), OTHER) if b else "" for b in brands)


def _one(values: Iterable[str]) -> Labels:
    return [(value,) if value else () for value in values]


def _seen(labels: Labels) -> list[str]:
    """All values, numbers in their order before names in theirs."""
    found = {value for values in labels for value in values}
    return sorted(found, key=lambda value: (int(value) if value.isdecimal() else sys.maxsize, value))


def _words(
    name: str,
    description: str,
    vocabulary: Mapping[str, str],
    texts: Sequence[str],
    labels: Labels | None = None,
    *,
    multi: bool = False,
) -> tuple[FactorSpec, Labels]:
    """A factor of a vocabulary; without labels, every value that the texts name."""
    values = tuple(Value(name=value, definition=own) for value, own in vocabulary.items())
    spec = FactorSpec(name=name, description=description, source="text", multi=multi, values=values)
    return spec, list(map(reader(vocabulary), texts)) if labels is None else labels


def _factor(
    name: str,
    description: str,
    source: FactorSource,
    values: Iterable[str] | Mapping[str, str],
    labels: Labels,
    *,
    multi: bool = False,
    other: str | None = None,
) -> tuple[FactorSpec, Labels]:
    """A factor of given values, or of values with their parents."""
    parents = values if isinstance(values, Mapping) else {}
    made = tuple(Value(name=value, parent=parents.get(value) or None) for value in values)
    return FactorSpec(name=name, description=description, source=source, multi=multi, values=made, other=other), labels


def _table(tokens: Sequence[str], factors: Sequence[tuple[FactorSpec, Labels]], method: str) -> FactorTable:
    provenance = {"made_by": f"recplug: {method}; no language model", "licence": LICENCE, "created": "unknown"}
    schema = FactorSchema(factors=tuple(spec for spec, _ in factors), provenance=provenance)
    values = {spec.name: tuple(labels) for spec, labels in factors}
    return FactorTable(schema, tuple(tokens), values, ("ok",) * len(tokens), provenance)


def catalogue(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """MovieLens's items for RecBole, by header: genres with blanks between, no quotation marks (misread)."""
    return [
        {
            "item_id:token": row["item_id"],
            "title:token_seq": _unquoted(row["title"]),
            "year:token": row["year"],
            "genres:token_seq": row["genres"].replace("|", " "),
            "plot:token_seq": _unquoted(row["plot"]),
        }
        for row in rows
    ]


def products(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Food's and Kitchen's items for RecBole, by header: product number and title, no quotation marks (misread)."""
    return [
        {
            "item_id:token": row["item_id"],
            "asin:token": row["asin"],
            "title:token_seq": _unquoted(row["title"]),
        }
        for row in rows
    ]


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return text.replace('"', "'")
