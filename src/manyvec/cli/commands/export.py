"""`manyvec export`: write the documents of an index, with their token vectors if asked, to a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from manyvec.cli.options import DEFAULT_INDEX, IndexOption, WhereOption, open_index
from manyvec.errors import InputError

if TYPE_CHECKING:
    from manyvec.cluster import AnyIndex
    from manyvec.filters import FilterLike
    from manyvec.types import Document

EXAMPLES = """Examples:

manyvec export papers.jsonl --index ./papers

manyvec export recent.parquet --where 'year>=2020'

manyvec export all.parquet --vectors && manyvec import all.parquet --index ./copy --adopt --encoder minilm

manyvec export - | head"""
# Documents that are read and written at a time.
_BATCH = 256


def run(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .jsonl file, which `manyvec index` reads again, a .parquet file, or - for standard output.",
            show_default=False,
        ),
    ],
    index: IndexOption = DEFAULT_INDEX,
    where: WhereOption = None,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="Write token vectors and spans too, as `manyvec import` reads them.")
    ] = False,
) -> None:
    """Write id, text and metadata of documents to a file; images stay in the index."""
    if file != "-" and not file.endswith((".jsonl", ".parquet")):
        raise InputError(f"{file}: the name must end with .jsonl or .parquet")
    if file != "-" and not (folder := Path(file).expanduser().absolute().parent).is_dir():
        raise InputError(f"{folder}: no such folder")
    opened = open_index(index)
    from manyvec.cli.conditions import parse_where
    from manyvec.cli.output import say

    condition = parse_where(where or [], opened.filter_columns)
    records = _records(opened, condition, with_vectors=vectors)
    try:
        if file.endswith(".parquet"):
            n_documents = _write_parquet(records, file, opened.info().dim if vectors else None)
        else:
            n_documents = _write_jsonl(records, file)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"{file} cannot be written: {error.strerror or error}") from error
    say(f"{n_documents:,} documents written to {'standard output' if file == '-' else file}")


def _records(index: AnyIndex, condition: FilterLike | None, *, with_vectors: bool) -> Iterator[list[dict[str, Any]]]:
    """Yield documents in batches, in the order of their ids."""
    ids = index.ids(condition)
    for start in range(0, len(ids), _BATCH):
        documents = index.get(ids[start : start + _BATCH], vectors=with_vectors)
        yield [_record(document) for document in documents]


def _record(document: Document) -> dict[str, Any]:
    record = {"id": document.id, "text": document.text, "metadata": dict(document.metadata)}
    given = {"vectors": document.vectors, "spans": document.spans}
    return record | {name: array.tolist() for name, array in given.items() if array is not None}


def _write_jsonl(batches: Iterator[list[dict[str, Any]]], file: str) -> int:
    from manyvec.filters.values import json_default

    n_documents = 0
    with _output(file) as output:
        for batch in batches:
            output.writelines(json.dumps(record, ensure_ascii=False, default=json_default) + "\n" for record in batch)
            n_documents += len(batch)
    return n_documents


def _write_parquet(batches: Iterator[list[dict[str, Any]]], file: str, dim: int | None) -> int:
    """Write a file with the columns `vectors` and `spans` if the dimension of vectors is given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from manyvec.filters.values import json_default

    schema = pa.schema([(name, pa.string()) for name in ("id", "text", "metadata")])
    if dim is not None:
        schema = schema.append(pa.field("vectors", pa.list_(pa.list_(pa.float16(), dim))))
        schema = schema.append(pa.field("spans", pa.list_(pa.list_(pa.int32(), 2))))
    n_documents = 0
    with _complete(file) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in batches:
            rows = [
                {**record, "metadata": json.dumps(record["metadata"], ensure_ascii=False, default=json_default)}
                for record in batch
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema))
            n_documents += len(rows)
    return n_documents


@contextmanager
def _output(file: str) -> Iterator[TextIO]:
    if file == "-":
        yield sys.stdout
        return
    with _complete(file) as temporary, open(temporary, "w", encoding="utf-8") as output:
        yield output


@contextmanager
def _complete(file: str) -> Iterator[str]:
    """Yield the name of a temporary file that takes the place of `file` once it is complete."""
    path = os.path.expanduser(file)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
