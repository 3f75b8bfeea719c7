"""``recplug features extract`` and ``merge``."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from recplug.adapters.console import say
from recplug.adapters.item_files import DataPath, folder_of
from recplug.adapters.stopping import exit_code, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from recplug.adapters.features.extraction import Items, Missing

REASONS = 3


class Modality(str, Enum):
    """What can be encoded."""

    image = "image"
    text = "text"


class Precision(str, Enum):
    """What the encoder computes in."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Dtype(str, Enum):
    """What the table holds."""

    float16 = "float16"
    float32 = "float32"


Dataset = Annotated[str, typer.Option("--dataset", help="The data set whose items are encoded.")]
OfModality = Annotated[Modality, typer.Option("--modality", help="Pictures or texts.")]
Output = Annotated[Path | None, typer.Option("--output", help="Default: DATASET.MODALITY.safetensors.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a table that exists.")]


def extract(
    dataset: Dataset,
    modality: OfModality,
    encoder: Annotated[
        str,
        typer.Option("--encoder", help="open_clip:NAME/WEIGHTS, transformers:NAME, sentence-transformers:NAME."),
    ],
    data_path: DataPath = None,
    images: Annotated[
        str | None,
        typer.Option("--images", help="image: folder with TOKEN.jpg, or a column of DATASET.item with files."),
    ] = None,
    columns: Annotated[
        str | None, typer.Option("--columns", help="text: A,B of DATASET.item; default all text columns.")
    ] = None,
    separator: Annotated[str | None, typer.Option("--separator", help="text: between columns; default '. '.")] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="text: put before each, like 'query: '.")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Of the encoder: commit, tag or branch.")] = None,
    pooling: Annotated[str | None, typer.Option("--pooling", help="How many vectors become one.")] = None,
    max_length: Annotated[int | None, typer.Option("--max_length", min=1, help="text: tokens that are read.")] = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Vectors of length 1.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    precision: Annotated[Precision, typer.Option("--precision", help="Of the encoder.")] = Precision.fp32,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Of the table.")] = Dtype.float32,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Items that are encoded together.")] = 64,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes that read and decode; default by cores.")
    ] = None,
    output: Output = None,
    overwrite: Overwrite = False,
    shard: Annotated[str | None, typer.Option("--shard", help="I/N: only this part of the work, then merge.")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Throw partial work away.")] = False,
    retry_broken: Annotated[
        bool, typer.Option("--retry_broken", help="Try again what was broken, and replace the table.")
    ] = False,
) -> None:
    """Make a feature table from the pictures or texts of a data set's items.

    Stop it whenever you like: the same command goes on where it was.

    recplug features extract --dataset NAME --modality image --encoder open_clip:ViT-B-32/laion2b_s34b_b79k --images DIR

    recplug features extract --dataset NAME --modality text --encoder sentence-transformers:all-MiniLM-L6-v2
    """
    from recplug.adapters.features.encoders import open_encoder
    from recplug.adapters.features.extraction import Shard
    from recplug.adapters.features.extraction import extract as run
    from recplug.adapters.features.extraction.assemble import check_output, missing_file
    from recplug.adapters.features.extraction.assemble import folder_of as work_of

    part = Shard() if shard is None else Shard.parse(shard)
    target = _output(output, dataset, modality, data_path)
    _fits(
        modality,
        images,
        {"--columns": columns, "--separator": separator, "--prefix": prefix, "--max_length": max_length},
    )
    try:
        items = _items(dataset, data_path, modality, images, columns, separator)
        say(f"{len(items.tokens):,} items to encode ({items.source}), {len(items.missing):,} without {_what(modality)}")
        if part.count == 1:  # before a model is fetched
            check_output(target, replace=overwrite or retry_broken)
        opened = open_encoder(
            encoder,
            modality.value,
            revision=revision,
            pooling=pooling,
            max_length=max_length,
            normalise=normalise,
            device=device,
            precision=precision.value,
            prefix=prefix or "",
        )
        report = run(
            opened,
            items,
            target,
            dtype=dtype.value,
            batch=batch,
            workers=workers,
            shard=part,
            overwrite=overwrite,
            restart=restart,
            retry_broken=retry_broken,
        )
    except KeyboardInterrupt as stopped:
        kept = work_of(target, part)
        held = f"{kept} keeps what is done" if kept.exists() else "nothing was done yet"
        print(f"{told(stopped)}; {held}, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(exit_code(stopped)) from None
    if report.fresh:
        rate = report.fresh / max(report.seconds, 1e-9)
        say(f"{report.fresh:,} items in {report.seconds:,.1f} s, {rate:,.0f} a second")
    if modality is Modality.text:
        say(f"{report.truncated:,} texts were longer than the encoder reads, and were cut")
    _tell(report.missing)
    if report.output is None:
        say(f"{report.folder}: {report.encoded:,} of {report.items:,} items, shard {part.index} of {part.count}")
        where = "" if data_path is None else f" --data_path {quote(str(data_path))}"
        where += "" if output is None else f" --output {quote(str(output))}"
        say(f"when all are there: recplug features merge --dataset {dataset} --modality {modality.value}{where}")
        return
    if report.missing:
        say(f"who and why: {missing_file(target)}")
    if report.folder is not None:
        say(f"{report.folder} is kept for --retry_broken; delete it when you need it no more")
    _written(target, report.encoded, dataset, modality, data_path)


def merge(
    dataset: Dataset,
    modality: OfModality,
    data_path: DataPath = None,
    output: Output = None,
    overwrite: Overwrite = False,
) -> None:
    """Make one feature table of the folders that --shard 1/N to N/N left beside it.

    recplug features merge --dataset NAME --modality image
    """
    from recplug.adapters.features.extraction import merge as run
    from recplug.adapters.features.extraction.assemble import missing_file

    target = _output(output, dataset, modality, data_path)
    made = run(target, overwrite=overwrite)
    _tell(made.missing)
    if made.missing:
        say(f"who and why: {missing_file(target)}")
    say(f"{made.work.plan.shard.count} shards are merged; their folders can be deleted")
    _written(target, len(made.numbers), dataset, modality, data_path)


def _fits(modality: Modality, images: str | None, of_text: dict[str, object]) -> None:
    """Refuse options of the other modality."""
    from recplug.plugins.errors import RecplugError

    others: dict[str, object] = {"--images": images} if modality is Modality.text else of_text
    for option, given in others.items():
        if given is not None:
            other = Modality.image if modality is Modality.text else Modality.text
            raise RecplugError(f"{option} belongs to --modality {other.value}; leave it out")


def _items(
    dataset: str,
    data_path: Path | None,
    modality: Modality,
    images: str | None,
    columns: str | None,
    separator: str | None,
) -> Items:
    from recplug.adapters.features.extraction import image_items, text_items
    from recplug.plugins.errors import RecplugError

    folder = folder_of(dataset, data_path)
    if modality is Modality.image:
        if images is None:
            raise RecplugError(f"no pictures; give --images FOLDER, or a column of {dataset}.item that names files")
        return image_items(folder, dataset, images)
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    return text_items(folder, dataset, names, **({} if separator is None else {"separator": separator}))


def _output(output: Path | None, dataset: str, modality: Modality, data_path: Path | None) -> Path:
    """Beside the data set where its folder was named, else here."""
    from recplug.plugins.errors import RecplugError

    name = f"{dataset}.{modality.value}.safetensors"
    if output is None:
        return folder_of(dataset, data_path) / name if data_path is not None else Path(name)
    if output.suffix != ".safetensors":
        raise RecplugError(f"--output {output} does not end in .safetensors; name it {output.name}.safetensors")
    return output


def _what(modality: Modality) -> str:
    return "a picture" if modality is Modality.image else "text"


def _tell(missing: Sequence[Missing]) -> None:
    """How many have no vector, and the commonest reasons."""
    from collections import Counter

    if not missing:
        return
    reasons = Counter(item.reason.partition(":")[0] for item in missing).most_common()
    told = ", ".join(f"{count:,} {reason}" for reason, count in reasons[:REASONS])
    say(f"{len(missing):,} items have no vector ({told}{', ...' if len(reasons) > REASONS else ''}); they stay masked")


def _written(target: Path, items: int, dataset: str, modality: Modality, data_path: Path | None) -> None:
    say(f"{target}: {items:,} items")
    if target.resolve().parent != folder_of(dataset, data_path).resolve():
        say(f"use it with: run_recbole --dataset {dataset} --features.{modality.value} {quote(str(target))}")
