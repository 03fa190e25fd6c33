"""Files in, documents out: JSON lines (BEIR's layout), CSV, plain text and Markdown; images and the pages of PDFs."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from manyvec.errors import InputError, require
from manyvec.types import Document

SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".txt", ".md")
PAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".pdf")
# 144 dots an inch: small print is legible, and an A4 page has 1,190 by 1,684 pixels, more than most models look at.
_PDF_SCALE = 2
# A poster, or a page whose size is wrong, is rendered smaller.
_PDF_SIDE = 4000


def read_documents(paths: Iterable[str | Path], *, pages: bool = False) -> Iterator[Document]:
    """Read the documents of files and, recursively, folders, in the order of their paths.

    - `.jsonl`, `.jsonl.gz`: an object a line, with `text`, and if wanted `_id` or `id`, `title` and `metadata`.
    - `.csv`: the same as columns, `metadata` apart; other columns become metadata.
    - `.txt`, `.md`: one document a file.
    - with `pages`, `.png`, `.jpg`, `.jpeg`, `.webp`: an image, whose text is the file's name.
    - with `pages`, `.pdf`: an image for each page, rendered when its turn comes; its text is the page's own, if any,
      and its id `FILE#page=N`.

    A title stands before the text, and in the metadata. A document without an id is called after its file and line.
    Lines and files without any text are left out.

    Raises:
        InputError: no such file, a file of another kind, or a line or PDF that cannot be read; it is named.
    """
    for path in find_files(paths, pages=pages):
        yield from read_file(path)


def read_file(path: Path) -> Iterator[Document]:
    """`read_documents` for one file."""
    name, source = path.name.lower(), path.as_posix()
    if name.endswith(".pdf"):
        yield from _read_pdf(path)
    elif name.endswith(PAGE_SUFFIXES):
        yield Document(source, path.name, {"source": source}, image=path)
    else:
        if name.endswith((".jsonl", ".jsonl.gz")):
            records = read_jsonl(path)
        elif name.endswith(".csv"):
            records = _read_csv(path)
        else:
            text = path.read_text(encoding="utf-8", errors="replace")
            records = iter([(source, {"text": text, "metadata": {"source": source}})])
        for where, record in records:
            try:
                document = _document(record, default_id=where)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            if document is not None:
                yield document


def read_jsonl(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(file and line, object) of each line that is not blank; the file may be gzipped.

    Raises:
        InputError: a line is not UTF-8, not JSON or no object, or the gzip file is damaged.
    """
    try:
        # Bytes, so that a line that is not UTF-8 is reported like one that is not JSON.
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.isspace():
                    where = f"{path}, line {number}"
                    yield where, _object(line, where)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _object(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected an object, got {line!r:.80}")
    return record


def _document(record: Mapping[str, Any], *, default_id: str) -> Document | None:
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
    return Document(id, f"{title} {text}".strip(), {**titled, **rest, **(metadata or {})})


def _read_csv(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if "text" not in (reader.fieldnames or ()):
            raise InputError(f"{path}: a CSV file needs a column 'text'; it has {reader.fieldnames or 'none'}")
        for record in reader:
            # What stands beyond the last column has no name.
            yield f"{path}, line {reader.line_num}", {k: v for k, v in record.items() if k is not None}


def n_pages(path: Path) -> int:
    """How many page images a file holds; 0 for one of texts."""
    if not path.name.lower().endswith(".pdf"):
        return int(path.name.lower().endswith(PAGE_SUFFIXES))
    with _opened_pdf(path) as pdf:
        return len(pdf)


def _read_pdf(path: Path) -> Iterator[Document]:
    with _opened_pdf(path) as pdf:
        for i in range(len(pdf)):
            page = pdf[i]
            text = page.get_textpage().get_text_bounded().replace("\r\n", "\n")
            buffer = BytesIO()
            scale = min(_PDF_SCALE, _PDF_SIDE / max(1, *page.get_size()))
            page.render(scale=scale).to_pil().save(buffer, "PNG")
            page.close()
            metadata = {"source": path.as_posix(), "page": i + 1}
            shown = text if text.strip() else f"{path.name}, page {i + 1}"
            yield Document(f"{path.as_posix()}#page={i + 1}", shown, metadata, image=buffer.getvalue())


@contextmanager
def _opened_pdf(path: Path) -> Iterator[Any]:
    pypdfium2 = require("pypdfium2", extra="images")
    try:
        with pypdfium2.PdfDocument(path) as pdf:
            yield pdf
    except pypdfium2.PdfiumError as error:
        raise InputError(f"{path}: the PDF is damaged, or needs a password: {error}") from error


def find_files(paths: Iterable[str | Path], *, pages: bool = False) -> Iterator[Path]:
    """The files that `read_documents` reads, in its order."""
    suffixes = (*SUFFIXES, *PAGE_SUFFIXES) if pages else SUFFIXES
    for path in map(Path, paths):
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(suffixes))
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        elif not pages and path.name.lower().endswith(PAGE_SUFFIXES):
            raise InputError(f"{path}: images and PDFs need a model that reads images (see `manyvec models`)")
        elif not path.name.lower().endswith(suffixes):
            raise InputError(f"{path}: only {', '.join(suffixes)} can be read")
        else:
            yield path
