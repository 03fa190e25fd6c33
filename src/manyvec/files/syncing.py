"""Bring an index into agreement with files: add what is new, update what changed, delete what is gone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyvec.files.reading import read, resolved, source_of
from manyvec.files.report import FileReport
from manyvec.types import Document

if TYPE_CHECKING:
    from manyvec.index import Index

_BATCH = 512


@dataclass(frozen=True)
class SyncReport:
    """What `sync` did, or would do.

    Attributes:
        added: Number of new documents.
        updated: Number of documents whose text or metadata changed.
        unchanged: Number of documents that were left alone.
        deleted: Ids of documents whose file, page or passage is gone.
        files: What became of each file.
    """

    added: int
    updated: int
    unchanged: int
    deleted: list[str]
    files: FileReport = field(default_factory=FileReport)


def sync(
    index: Index,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    delete: bool = True,
    prepare: Callable[[Iterator[Document]], Iterator[Document]] | None = None,
    show_progress: bool = False,
    **reading: Any,
) -> SyncReport:
    """Make an index hold exactly what files and folders hold now.

    Documents are compared by content: those that are unchanged are not encoded again, and files are not trusted to
    have changed because their date did. Only documents whose `source` lies under `paths` are deleted; documents of a
    file that exists but cannot be read now are kept.

    Args:
        index: Index to change.
        paths: Files and folders; one that no longer exists is taken for deleted.
        root: Folder that ids are relative to, as for `read`; the same as when the index was filled.
        dry_run: Whether to report only, and leave the index as it is.
        delete: Whether to delete documents that are gone.
        prepare: Changes or drops documents before they are added.
        show_progress: Whether to draw a progress bar.
        reading: Other arguments of `read`, which must be the same each time.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    base = resolved(root)
    files = reading.pop("report", None) or FileReport()
    existing = [path for path in given if os.path.lexists(os.path.expanduser(path))]
    seen: set[str] = set()
    documents = read(existing, root=root, report=files, **reading)
    documents = _noted(prepare(documents) if prepare else documents, seen)
    if dry_run:
        added, updated, unchanged = _compare(index, documents)
    else:
        report = index.add(documents, on_blank="skip", show_progress=show_progress)
        added, updated, unchanged = report.added, report.updated, report.unchanged
    kept = {source_of(Path(problem.path), base) for problem in files.problems}
    roots = [source_of(Path(os.path.expanduser(path)), base) for path in given]
    if not delete:
        return SyncReport(added, updated, unchanged, [], files)
    gone = [id for id, source in _sources(index, seen) if source not in kept and _is_under(source, roots, base)]
    if gone and not dry_run:
        index.delete(gone)
    return SyncReport(added, updated, unchanged, gone, files)


def _noted(documents: Iterator[Document], seen: set[str]) -> Iterator[Document]:
    for document in documents:
        seen.add(document.id)
        yield document


def _compare(index: Index, documents: Iterator[Document]) -> tuple[int, int, int]:
    added = updated = unchanged = 0
    while batch := list(itertools.islice(documents, _BATCH)):
        stored = {document.id: document for document in index.get([document.id for document in batch])}
        for document in batch:
            before = stored.get(document.id)
            if before is None:
                added += 1
            elif before.text == document.text and dict(before.metadata) == dict(document.metadata):
                unchanged += 1
            else:
                updated += 1
    return added, updated, unchanged


def _sources(index: Index, seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the id and source of each stored document that was not seen and came from a file."""
    others = [id for id in index.ids() if id not in seen]
    for start in range(0, len(others), _BATCH):
        for document in index.get(others[start : start + _BATCH]):
            source = document.metadata.get("file", document.metadata.get("source"))
            if isinstance(source, str):
                yield document.id, source


def _is_under(source: str, roots: Sequence[str], base: Path) -> bool:
    inside = not Path(source).is_absolute()
    return any(
        (root == "." and inside) or source == root or source.startswith(root.rstrip("/") + "/") for root in roots
    ) or any(Path(root).is_absolute() and inside and base.is_relative_to(root) for root in roots)
