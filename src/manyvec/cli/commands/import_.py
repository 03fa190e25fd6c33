"""`manyvec import`: add what another program has indexed, with its token vectors where they can be read."""

from __future__ import annotations

import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from manyvec.cli.options import (
    DEFAULT_INDEX,
    DeviceOption,
    IndexOption,
    JsonOption,
    Storage,
    StorageFormatOption,
    place_options,
)
from manyvec.errors import IndexNotFoundError, InputError

if TYPE_CHECKING:
    from manyvec.cluster import AnyIndex
    from manyvec.types import Document

EXAMPLES = """Examples:

manyvec import vectors.parquet --model jina-colbert-v2

manyvec import ./lancedb --table pages --text-column caption --model colpali-v1.3

manyvec import vectors.npy --texts documents.jsonl --model jina-colbert-v2

manyvec import .ragatouille/colbert/indexes/wiki --encoder colbert-ir/colbertv2.0"""


def run(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="LanceDB database or table; .parquet, .arrow, .jsonl, .npy or .safetensors file; folder of a "
            "RAGatouille or PyLate index.",
            show_default=False,
        ),
    ],
    index: IndexOption = DEFAULT_INDEX,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model that computed the vectors, for a new index. Its queries are token vectors as well.",
            show_default=False,
        ),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option("--adopt", help="Store the vectors as those of --encoder, which then encodes queries."),
    ] = False,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            metavar="NAME",
            help="Model that encodes texts without vectors, and queries (default: the index's own, or minilm).",
            show_default=False,
        ),
    ] = None,
    texts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="JSON Lines file with id, text and metadata, where SOURCE has none."),
    ] = None,
    offsets: Annotated[
        str | None, typer.Option(metavar="FILE", help="Offsets or lengths of the documents in an .npy file.")
    ] = None,
    table: Annotated[str | None, typer.Option(metavar="NAME", help="Table of a database with several.")] = None,
    id_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the ids.")] = None,
    text_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the texts.")] = None,
    vector_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column of the token vectors.")] = None,
    any_length: Annotated[
        bool, typer.Option("--any-length", help="Accept vectors that are not of unit length, for a new index.")
    ] = False,
    storage: StorageFormatOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Add the documents of another program's collection. Those that come with token vectors are not encoded again."""
    if model is not None and (adopt or encoder is not None):
        raise InputError("name either --model, for vectors that are computed elsewhere, or --encoder")
    from manyvec.cli.output import print_json, say
    from manyvec.files.collections import read_collection
    from manyvec.files.report import FileReport

    report = FileReport()
    options = {"texts": texts, "offsets": offsets, "table": table}
    options |= {"id_column": id_column, "text_column": text_column, "vector_column": vector_column}
    documents = read_collection(source, report=report, **options)
    first = next(documents, None)
    if first is None:
        raise InputError(f"{source} holds no documents")
    opened = _opened(index, first, model, encoder, adopt=adopt, any_length=any_length, storage=storage, device=device)
    added = opened.add(itertools.chain([first], documents), on_blank="skip", adopt_vectors=adopt, show_progress=True)
    opened.optimize(show_progress=True)
    for note in report.notes:
        say(f"note: {note}")
    if as_json:
        counts = {"added": added.added, "updated": added.updated, "unchanged": added.unchanged, "blank": added.blank}
        print_json({**counts, "documents": opened.count(), "model": opened.model, "notes": report.notes})
    else:
        print(
            f"{added.added:,} added, {added.updated:,} updated, {added.unchanged:,} unchanged; "
            f"{opened.count():,} documents of {opened.model} in {index}"
        )


def _opened(
    uri: str,
    first: Document,
    model: str | None,
    encoder: str | None,
    *,
    adopt: bool,
    any_length: bool,
    storage: Storage | None,
    device: str,
) -> AnyIndex:
    """Open the index, or create the one that the first document asks for."""
    from manyvec import cluster
    from manyvec.index import Index
    from manyvec.models.precomputed import Vectors

    with suppress(IndexNotFoundError):
        existing = cluster.open_index(uri, encoder, device=device, **place_options())
        if (model, storage, any_length) != (None, None, False):
            raise InputError(f"--model, --storage and --any-length are for a new index: {uri} exists and has its own")
        return existing
    if first.vectors is None or adopt:
        if adopt and encoder is None:
            raise InputError("--adopt needs --encoder NAME: the model whose vectors these are")
        return Index.create(uri, encoder or "minilm", storage=storage or "float16", device=device, **place_options())
    if model is None:
        raise InputError(
            f"{first.vectors.shape[1]}-dim token vectors come along: name the model that computed them with --model, "
            "or store them as those of a model of this library with --adopt --encoder NAME"
        )
    outside = Vectors(model, first.vectors.shape[1], normalized=not any_length)
    return Index.create(uri, outside, storage=storage or "float16", **place_options())
