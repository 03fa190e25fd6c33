"""Files in, documents out: JSON lines (BEIR's layout), CSV, plain text and Markdown."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from manyvec.errors import InputError
from manyvec.types import Document

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".txt", ".md")


def read_documents(paths: Iterable[str | Path]) -> Iterator[Document]:
    """Read the documents of files and, recursively, folders, in the order of their paths.

    - `.jsonl`, `.jsonl.gz`: an object a line, with `_id` or `id`, `text`, and if wanted `title` and `metadata`.
    - `.csv`: the same as columns, `metadata` apart; other columns become metadata.
    - `.txt`, `.md`: one document a file; its path is its id.

    A title stands before the text, and in the metadata. Lines and files without any text are left out.

    Raises:
        InputError: no such file, a file of another kind, or a line that cannot be read; it is named.
    """
    for path in _files(paths):
        suffixes = "".join(path.suffixes[-2:]).lower()
        if suffixes.endswith((".jsonl", ".jsonl.gz")):
            records: Iterable[tuple[int, Mapping[str, Any]]] = read_jsonl(path)
        elif suffixes.endswith(".csv"):
            records = _read_csv(path)
        else:
            text = path.read_text(encoding="utf-8", errors="replace")
            records = [(1, {"id": path.as_posix(), "text": text, "metadata": {"source": path.as_posix()}})]
        for line, record in records:
            try:
                document = to_document(record, default_id=f"{path.as_posix()}:{line}")
            except InputError as error:
                raise InputError(f"{path}, line {line}: {error}") from None
            if document is not None:
                yield document


def read_jsonl(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, object) of each line that is not blank; the file may be gzipped."""
    with _open(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not JSON: {error}") from None
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: an object was expected, got {type(record).__name__}")
            yield number, record


def to_document(record: Mapping[str, Any], *, default_id: str | None = None) -> Document | None:
    """A document of a record with `_id` or `id`, `title`, `text` and `metadata`; None if it has no text at all."""
    rest = dict(record)
    id = rest.pop("_id", None) or rest.pop("id", None) or default_id
    title, text, metadata = rest.pop("title", None) or "", rest.pop("text", None) or "", rest.pop("metadata", None)
    if not isinstance(title, str) or not isinstance(text, str):
        raise InputError("title and text must be texts")
    if not (title + text).strip():
        return None
    if not isinstance(metadata or {}, Mapping):
        raise InputError(f"metadata must be an object, got {type(metadata).__name__}")
    titled = {"title": title} if title else {}
    # Numbers are ids in many CSV files and in some JSON ones.
    id = str(id) if isinstance(id, int) else id
    return Document(id, f"{title} {text}".strip(), {**titled, **rest, **(metadata or {})})  # type: ignore[arg-type]


def _read_csv(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if "text" not in (reader.fieldnames or ()):
            raise InputError(f"{path}: a CSV file needs a column 'text'; it has {reader.fieldnames or 'none'}")
        for record in reader:
            # What stands beyond the last column has no name.
            yield reader.line_num, {key: value for key, value in record.items() if key is not None}


def _files(paths: Iterable[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(SUFFIXES))
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif not path.name.lower().endswith(SUFFIXES):
            raise InputError(f"{path}: only {', '.join(SUFFIXES)} can be read")
        else:
            yield path


def _open(path: Path) -> IO[str]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")
