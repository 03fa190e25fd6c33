"""Bring an index into agreement with files: add what is new, update what changed, delete what is gone."""

from __future__ import annotations

import itertools
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manyvec.errors import require
from manyvec.files.reading import read, resolved, source_of
from manyvec.files.report import FileReport
from manyvec.files.selection import Selection
from manyvec.types import Document

if TYPE_CHECKING:
    from threading import Event

    from manyvec.cluster import AnyIndex

_BATCH = 512
# How often the watcher looks whether it is to stop.
_WAIT_MS = 500


@dataclass(frozen=True)
class SyncReport:
    """What `sync` did, or would do.

    Attributes:
        added: Number of new documents, those that moved not counted.
        updated: Number of documents whose text or metadata changed.
        unchanged: Number of documents that were left alone.
        deleted: Ids of documents whose file, page or passage is gone, those that moved not counted.
        files: What became of each file.
        moved: New id of each document that is now found elsewhere with the same content, such as in a renamed file, by
            its old id. It is not encoded again.
    """

    added: int
    updated: int
    unchanged: int
    deleted: list[str]
    files: FileReport = field(default_factory=FileReport)
    moved: dict[str, str] = field(default_factory=dict)

    @property
    def n_changes(self) -> int:
        """Number of documents that were written or deleted."""
        return self.added + self.updated + len(self.moved) + len(self.deleted)


def sync(
    index: AnyIndex,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    root: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    delete: bool = True,
    prepare: Callable[[Iterator[Document]], Iterator[Document]] | None = None,
    show_progress: bool = False,
    expected_characters: int | None = None,
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
        expected_characters: Length of all texts, if it is known, to show the time left.
        reading: Other arguments of `read`, which must be the same each time.
    """
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    base = resolved(root)
    files = reading.pop("report", None) or FileReport()
    existing = [path for path in given if os.path.lexists(os.path.expanduser(path))]
    seen, new = set[str](), dict[int, str]()
    before = set(index.ids()) if delete else set()
    documents = read(existing, root=root, report=files, **reading)
    documents = _noted(prepare(documents) if prepare else documents, before, seen, new)
    if dry_run:
        added, updated, unchanged = _compare(index, documents)
    else:
        options: dict[str, Any] = {"show_progress": show_progress, "expected_characters": expected_characters}
        report = index.add(documents, on_blank="skip", reuse_vectors=True, **options)
        files.add_repeated(report.repeated)
        added, updated, unchanged = report.added, report.updated, report.unchanged
    kept = {source_of(Path(problem.path), base) for problem in files.problems}
    roots = [source_of(Path(os.path.expanduser(path)), base) for path in given]
    if not delete:
        return SyncReport(added, updated, unchanged, [], files)
    gone: list[str] = []
    moved: dict[str, str] = {}
    for document in _unseen(index, before - seen):
        source = document.metadata.get("file", document.metadata.get("source"))
        if isinstance(source, str) and source not in kept and _is_under(source, roots, base):
            elsewhere = new.pop(_content(document), None)
            if elsewhere is None:
                gone.append(document.id)
            else:
                moved[document.id] = elsewhere
    if (gone or moved) and not dry_run:
        index.delete([*gone, *moved])
    return SyncReport(added - len(moved), updated, unchanged, gone, files, moved)


def watch(
    index: AnyIndex,
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    stop: Event | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    everything: bool = False,
    **options: Any,
) -> Iterator[SyncReport]:
    """Sync an index with files, and again whenever some of them change.

    Args:
        index: Index to change.
        paths: Files and folders, which exist.
        stop: Event that ends the watching when it is set; without it, it goes on until the program is interrupted.
        include: As for `read`.
        exclude: As for `read`.
        everything: As for `read`.
        options: Other arguments of `sync`.

    Yields:
        A report of the first sync, then one for each set of changes.

    Raises:
        InputError: A path does not exist.
        MissingPackageError: watchfiles is not installed.
    """
    watchfiles = require("watchfiles", extra="files")
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    selection = Selection(include, exclude, everything)
    roots = [Path(os.path.realpath(os.path.expanduser(path))) for path in given]
    list(selection.find(given, FileReport()))
    folders = {root if root.is_dir() else root.parent for root in roots}
    is_first = True
    # The watcher starts before the first sync, so that no change falls between the two.
    options_of_watcher: dict[str, Any] = {"rust_timeout": _WAIT_MS, "yield_on_timeout": True, "watch_filter": None}
    for changes in watchfiles.watch(*folders, stop_event=stop, **options_of_watcher):
        if is_first:
            is_first = False
            choice: dict[str, Any] = {"include": include, "exclude": exclude, "everything": everything}
            yield sync(index, given, **choice, **options)
        elif changes:
            existing = [root for root in roots if root.exists()]
            selected = {os.path.realpath(path) for path in selection.find(existing, FileReport())}
            touched = {Path(os.path.realpath(path)) for _, path in changes}
            # A folder that was moved here is reported without its files.
            changed = [path for path in selected if not touched.isdisjoint([Path(path), *Path(path).parents])]
            gone = [path for path in touched if not path.exists() and _is_within(path, roots)]
            gone = [path for path in gone if not path.is_relative_to(index.uri)]
            if changed or gone:
                # By name, so that what the folders' rules leave out stays out.
                yield sync(index, sorted([*changed, *map(str, gone)]), **options)


def _is_within(path: Path, roots: Sequence[Path]) -> bool:
    return any(path.is_relative_to(root) for root in roots)


def _noted(documents: Iterator[Document], before: set[str], seen: set[str], new: dict[int, str]) -> Iterator[Document]:
    for document in documents:
        seen.add(document.id)
        if document.id not in before:
            new[_content(document)] = document.id
        yield document


def _content(document: Document) -> int:
    # Only where a document is new or gone, so images are seldom read twice.
    try:
        image = document.image.read_bytes() if isinstance(document.image, Path) else document.image
    except OSError:
        image = None
    return hash((document.text, image))


def _compare(index: AnyIndex, documents: Iterator[Document]) -> tuple[int, int, int]:
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


def _unseen(index: AnyIndex, ids: set[str]) -> Iterator[Document]:
    ordered = sorted(ids)
    for start in range(0, len(ordered), _BATCH):
        yield from index.get(ordered[start : start + _BATCH])


def _is_under(source: str, roots: Sequence[str], base: Path) -> bool:
    source = posixpath.normpath(source)
    inside = not Path(source).is_absolute()
    return any(
        (root == "." and inside) or source == root or source.startswith(root.rstrip("/") + "/") for root in roots
    ) or any(Path(root).is_absolute() and inside and base.is_relative_to(root) for root in roots)
