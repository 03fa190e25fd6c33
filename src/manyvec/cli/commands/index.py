"""`manyvec index`: add files to an index."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyvec.cli.options import DEFAULT_INDEX, DeviceOption, EncoderOption, IndexOption, JsonOption, Storage
from manyvec.errors import InputError

if TYPE_CHECKING:
    from manyvec.cli.estimate import Estimate
    from manyvec.index import Index
    from manyvec.models.protocol import Encoder
    from manyvec.types import Document

EXAMPLES = """Examples:

manyvec index docs/

manyvec index papers.jsonl notes/ --index ./papers --column year=int --column 'tags=list\\[str]'

manyvec index reports/ --encoder vidore/colqwen2.5-v0.2 --estimate"""


def run(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...",
            help="Files (.jsonl, .jsonl.gz, .csv, .txt, .md, .png, .jpg, .webp, .pdf) or folders.",
            show_default=False,
        ),
    ],
    index: IndexOption = DEFAULT_INDEX,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="NAME=TYPE",
            help="Metadata to filter on, for a new index: year=int, lang=str, 'tags=list\\[str]'. May be repeated.",
            show_default=False,
        ),
    ] = None,
    storage: Annotated[
        Storage | None,
        typer.Option(help="How a new index stores token vectors (default: float16).", show_default=False),
    ] = None,
    pool_factor: Annotated[
        float | None,
        typer.Option(metavar="N", help="Keep 1 in N token vectors in a new index (default: all).", show_default=False),
    ] = None,
    encoder: EncoderOption = "minilm",
    device: DeviceOption = "auto",
    estimate: Annotated[bool, typer.Option("--estimate", help="Print what each storage would need, and stop.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Add the documents of files to an index. Unchanged documents are not encoded again.

    Images and the pages of PDFs need a model that reads images.
    """
    _check_paths(paths)
    if pool_factor is not None and not pool_factor >= 1:
        raise InputError(f"--pool-factor must be at least 1, got {pool_factor}")
    from manyvec.cli.conditions import parse_columns
    from manyvec.cli.estimate import estimate_files
    from manyvec.cli.output import duration, megabytes, print_json, say
    from manyvec.files.readers import find_files, read_file
    from manyvec.models.loading import load_encoder
    from manyvec.models.protocol import ImageReader

    columns = parse_columns(column or [])
    model = load_encoder(encoder, device=device)
    files = list(find_files(paths, pages=isinstance(model, ImageReader)))
    if n_skipped := len(list(find_files(paths, pages=True))) - len(files):
        say(f"{n_skipped:,} images and PDFs are skipped: {model.name} reads only text")
    expected = estimate_files(files, model, pool_factor or 1)
    say(
        f"{expected['documents']:,} documents: about {expected['tokens']:,} token vectors, "
        f"{megabytes(expected['bytes_on_disk'][storage or 'float16'])} on disk, "
        f"{duration(expected['seconds'])} on {model.device}"
    )
    if estimate:
        _print_estimate(expected, as_json=as_json)
        return
    opened = _open_or_create(index, model, columns, storage, pool_factor)
    started = time.monotonic()
    documents = (document for file in files for document in read_file(file))
    report = opened.add(_Sized(_typed(documents, opened), expected["documents"]), show_progress=True)
    opened.optimize(show_progress=True)
    seconds = round(time.monotonic() - started, 1)
    n_documents = opened.count()
    if as_json:
        print_json({**asdict(report), "seconds": seconds, "documents": n_documents})
    else:
        print(
            f"{report.added:,} added, {report.updated:,} updated, {report.unchanged:,} unchanged; "
            f"{n_documents:,} documents in {index}"
        )


def _check_paths(paths: list[str]) -> None:
    """Refuse a path that does not exist, before a model is loaded."""
    for path in paths:
        if not Path(path).exists():
            raise InputError(f"{path}: no such file or folder")


def _open_or_create(
    uri: str, encoder: Encoder, columns: dict[str, str], storage: str | None, pool_factor: float | None
) -> Index:
    """Open the index, or create it with these options; an existing one must have been created with them."""
    from manyvec.index import Index

    try:
        index = Index.open(uri, encoder)
    except FileNotFoundError:
        return Index.create(
            uri, encoder, filter_columns=columns, storage=storage or "float16", pool_factor=pool_factor or 1
        )
    if columns and index.filter_columns != columns:
        raise InputError(f"the index {uri} already has the filter columns {index.filter_columns or 'none'}")
    info = index.info()
    if storage not in (None, info.storage) or pool_factor not in (None, info.pool_factor):
        raise InputError(
            f"the index {uri} already has the storage {info.storage} and the pool factor {info.pool_factor:g}"
        )
    return index


def _typed(documents: Iterator[Document], index: Index) -> Iterator[Document]:
    """Yield documents with the strings of filter columns converted to their types."""
    from manyvec.cli.conditions import typed
    from manyvec.filters import ColumnType

    columns = {name: ColumnType.parse(kind) for name, kind in index.filter_columns.items()}
    for document in documents:
        yield replace(document, metadata=typed(document.metadata, columns, f"document {document.id!r}"))


def _print_estimate(estimate: Estimate, *, as_json: bool) -> None:
    from manyvec.cli.output import megabytes, print_json, print_table

    if as_json:
        print_json(estimate)
        return
    n_documents = max(1, estimate["documents"])
    rows = [
        (storage, f"{round(n_bytes / n_documents):,}", megabytes(n_bytes))
        for storage, n_bytes in estimate["bytes_on_disk"].items()
    ]
    print_table(["storage", "bytes per document", "total"], rows, right=(1, 2))


@dataclass(frozen=True)
class _Sized:
    """Documents that are read lazily but whose number is known, so that a progress bar can show the time left."""

    documents: Iterator[Document]
    n: int

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Document]:
        return self.documents
