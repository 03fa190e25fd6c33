"""Read files of any kind as documents."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from manyvec.errors import InputError, MissingPackageError
from manyvec.files.office import SUFFIXES as OFFICE
from manyvec.files.office import UNREAD, read_office
from manyvec.files.pdf import Pages, read_pdf
from manyvec.files.records import JSON, JSON_LINES, TABLES, read_records
from manyvec.files.report import FileReport, StrictReport
from manyvec.files.selection import Selection
from manyvec.files.text import read_text
from manyvec.types import Document

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
RECORDS = (*TABLES, *JSON_LINES, *JSON)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")
COLUMNAR = (".parquet", ".arrow", ".feather")
# Types that the standard library does not know, or names after another program.
_MEDIA_TYPES = {
    ".md": "text/markdown",
    ".rst": "text/x-rst",
    ".jsonl": "application/jsonl",
    ".ipynb": "application/json",
}

Splitting = Callable[[Document], Iterator[Document]]


@dataclass(frozen=True)
class Reading:
    """How files are read; see `read` for the meaning of each."""

    root: Path
    pages: Pages = "text"
    text_key: str | None = None
    splitter: Splitting | None = None

    def documents(self, path: Path, report: FileReport) -> Iterator[Document]:
        """Yield the documents of one file; what cannot be read goes into the report."""
        shown = path.as_posix()
        if self.pages == "text" and shown.lower().endswith(IMAGES):
            report.left_out["images, which need a model that reads them"] += 1
            return
        n_documents, n_before = 0, report.n_problems
        try:
            described = _description(path)
            for document in self._of_kind(path, report):
                # A line of dashes is no text: models find no token in it, and no query asks for it.
                if document.image is None and not any(map(str.isalnum, document.text)):
                    continue
                n_documents += 1
                yield replace(document, metadata={**described, **document.metadata})
        except MissingPackageError as error:
            report.add_problem(shown, str(error), is_whole_file=not n_documents)
        except InputError as error:
            report.add_problem(shown, str(error), is_whole_file=not n_documents)
        except RecursionError:
            report.add_problem(shown, "nested too deeply", is_whole_file=not n_documents)
        except OSError as error:
            report.add_problem(shown, f"cannot be read: {error.strerror or error}", is_whole_file=not n_documents)
        if n_documents:
            report.add_file(shown, n_documents)
        elif report.n_problems == n_before:
            report.add_problem(shown, "no text in it")

    def _of_kind(self, path: Path, report: FileReport) -> Iterator[Document]:
        name, source = path.name.lower(), source_of(path, self.root)
        shown = path.as_posix()

        def on_problem(reason: str) -> None:
            report.add_problem(shown, reason, is_whole_file=False)

        if name.endswith(IMAGES):
            yield Document(source, path.name, {"source": source}, image=path)
        elif name.endswith(RECORDS):
            yield from read_records(
                path, source, self.text_key, on_problem, lambda note: report.notes.append(f"{shown}: {note}")
            )
        elif name.endswith(ARCHIVES):
            raise InputError("an archive: unpack it")
        elif name.endswith(COLUMNAR):
            raise InputError("a table: `manyvec import` reads one with token vectors; save others as .csv or .jsonl")
        elif (suffix := path.suffix.lower()) in UNREAD:
            raise InputError(f"{suffix} files are not read: save it as {UNREAD[suffix]}")
        else:
            yield from self._split(self._texts(path, source, on_problem))

    def _texts(self, path: Path, source: str, on_problem: Callable[[str], None]) -> Iterator[Document]:
        if path.name.lower().endswith(".pdf") or _starts_as_pdf(path):
            yield from read_pdf(path, source, self.pages, on_problem)
        elif path.name.lower().endswith(OFFICE):
            yield from read_office(path, source)
        elif (text := read_text(path)).strip():
            yield Document(source, text, {"source": source})

    def _split(self, documents: Iterator[Document]) -> Iterator[Document]:
        for document in documents:
            if self.splitter is None or document.image is not None:
                yield document
            else:
                yield from self.splitter(document)


def read(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    pages: Pages = "text",
    splitter: Splitting | None = None,
    text_key: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    everything: bool = False,
    report: FileReport | None = None,
) -> Iterator[Document]:
    """Read the documents of files and, recursively, of folders, one after another.

    - Text files of any suffix and encoding, Markdown and source code: one document.
    - `.csv`, `.tsv`, `.jsonl`, `.ndjson`, `.json`, gzipped or not: one document per row or object.
    - `.pdf`: one document per page, `page` in its metadata.
    - `.docx`, `.pptx`, `.xlsx`, `.epub`, `.html`, `.ipynb`, `.eml`, `.msg` (extra `files`): one document, or one per
      slide or sheet.
    - Images, with `pages="image"`: one document, with the file's name as its text.

    The id of a document is the path of its file relative to `root`, followed by `#page=3` and the like; the same path
    is `source` in its metadata, beside `modified` and `media_type`.

    Args:
        paths: Files and folders. A file named here is read even if it is hidden or ignored.
        root: Folder that ids are relative to; the working folder by default. Ids of files outside are absolute paths.
        pages: Whether PDF pages are read as `text`, as `image` for models that read images, or `both`.
        splitter: Splits documents that are neither records nor images, such as `Splitter()`; whole by default.
        text_key: Column or key that holds the text of records; `a.b` looks into nested objects.
        include: Globs, as in a .gitignore file; other files of folders are left out.
        exclude: Globs of files and folders to leave out.
        everything: Whether to read hidden and vendored files and those that .gitignore files name.
        report: Collects what could not be read, and the reading goes on. Without it, the first problem is raised.

    Raises:
        InputError: A path does not exist or, without a `report`, something cannot be read; the message names it.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    report = StrictReport() if report is None else report
    reading = Reading(resolved(root), pages, text_key, splitter)
    for path in Selection(include, exclude, everything).find(given, report):
        yield from reading.documents(path, report)


def resolved(root: str | os.PathLike[str] | None) -> Path:
    """Return a root as an absolute path without links; the working folder by default."""
    return Path(os.path.realpath("." if root is None else os.path.expanduser(root)))


def source_of(path: Path, root: Path) -> str:
    """Return the name of a file in ids and metadata: its path relative to `root`, or absolute if it lies outside."""
    absolute = Path(os.path.realpath(path))
    inside = absolute.relative_to(root) if absolute.is_relative_to(root) else absolute
    # A name that is not UTF-8 is written with escapes.
    return os.fsencode(inside.as_posix()).decode("utf-8", "backslashreplace")


def _starts_as_pdf(path: Path) -> bool:
    # Much of a PDF is plain letters: without its suffix it would pass for a text.
    with path.open("rb") as file:
        return file.read(5) == b"%PDF-"


def _description(path: Path) -> dict[str, str]:
    modified = datetime.fromtimestamp(path.stat().st_mtime, tz=timezone.utc).isoformat(timespec="seconds")
    media_type = _MEDIA_TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or "text/plain"
    return {"modified": modified, "media_type": media_type}
