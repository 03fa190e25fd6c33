"""Check an index: read everything once, report what is wrong, and repair what can be repaired."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import ManifestError, ManyvecError, ShapeError, StoreError
from manyvec.storage.lance import Place
from manyvec.storage.maintenance.optimize import extend_lists, remove_duplicates
from manyvec.storage.schema import content_hash, image_hash, rows_of
from manyvec.storage.snapshot import BUILD_WINDOW_BYTES, Snapshot, damage_of, is_other_metadata, windows
from manyvec.storage.states import RowStates
from manyvec.storage.table import Store
from manyvec.vectors.batch import CodedBatch, TokenBatch, check_offsets

if TYPE_CHECKING:
    import pyarrow as pa

# Replaced and deleted data that a repair leaves on disk; see `Index.optimize`.
_KEEP = timedelta(days=7)
_DAMAGED_SEARCH_INDEX = "a file of a search index differs from what was written"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with an index.

    Attributes:
        message: What is wrong.
        document: Id of the document, if it is one document.
        is_repairable: Whether `check` can repair it. What it cannot repair is lost: add the document again.
    """

    message: str
    document: str | None = None
    is_repairable: bool = False


@dataclass(frozen=True)
class CheckReport:
    """Result of `check`.

    Attributes:
        uri: The index.
        documents: Number of rows that were read.
        tokens: Number of token vectors that were read.
        problems: What was wrong.
        repaired: What was repaired, in words.
    """

    uri: str
    documents: int
    tokens: int
    problems: tuple[Problem, ...]
    repaired: tuple[str, ...] = ()

    @property
    def lost(self) -> tuple[Problem, ...]:
        """Problems that no repair can solve."""
        return tuple(problem for problem in self.problems if not problem.is_repairable)


def check(uri: str | Place, *, repair: bool = False, show_progress: bool = False) -> CheckReport:
    """Read all of an index once and report what is wrong.

    Texts, images, metadata and token vectors are compared with their stored hashes and checksums. What has none cannot
    be checked: filter columns, spans, and the vectors of rows that other programs or earlier versions of manyvec wrote.

    Args:
        uri: Folder or URI of the index.
        repair: Also delete older rows of ids that are stored more than once, rebuild centroid lists and search indexes
            that cannot be read, and delete files that interrupted writers have left. No other program may write to the
            index meanwhile.
        show_progress: Show a progress bar.

    Raises:
        IndexNotFoundError: There is no index.
        ManifestError: The manifest is missing or damaged.
        StoreError: The table cannot be read at all.
    """
    store = Store.open(uri)
    snapshot = store.snapshot()
    states = snapshot.states()
    problems = [
        *_lost_versions(store),
        *_duplicates(states),
        *_centroids(snapshot),
        *(
            Problem(f"the search index of {column!r} is missing", is_repairable=True)
            for column in store.missing_indexes()
        ),
        *(Problem(f"{_DAMAGED_SEARCH_INDEX}: {file}", is_repairable=True) for file in store.damaged_indexes()),
        *_documents(snapshot, states, show_progress=show_progress),
    ]
    repaired = tuple(_repaired(store, problems)) if repair else ()
    return CheckReport(store.uri, len(states.row_ids), int(states.n_tokens.sum()), tuple(problems), repaired)


def _lost_versions(store: Store) -> Iterator[Problem]:
    if lost := store.lost_versions():
        yield Problem("is at version {}, but version {} was committed: its files are missing".format(*lost))


def _duplicates(states: RowStates) -> Iterator[Problem]:
    for id, count in Counter(states.ids.tolist()).items():
        if count > 1:
            yield Problem(f"is stored {count} times", id, is_repairable=True)


def _centroids(snapshot: Snapshot) -> Iterator[Problem]:
    try:
        snapshot.centroids.codec()
    except ManifestError as error:
        yield Problem(str(error))
    if snapshot.assignments_key and snapshot.assignments() is None:
        yield Problem("the centroid lists cannot be read", is_repairable=True)


def _documents(snapshot: Snapshot, states: RowStates, *, show_progress: bool) -> Iterator[Problem]:
    from tqdm.auto import tqdm

    with tqdm(total=len(states.row_ids), unit=" documents", disable=not show_progress) as bar:
        for is_coded in (True, False):
            group = np.flatnonzero(states.is_coded == is_coded)
            for window in windows(snapshot.token_bytes(states, group), BUILD_WINDOW_BYTES):
                yield from _window(snapshot, states, group[window], is_coded=is_coded)
                bar.update(len(group[window]))


def _window(
    snapshot: Snapshot, states: RowStates, documents: NDArray[np.int64], *, is_coded: bool
) -> Iterator[Problem]:
    """Yield the problems of documents that are read together, or apart if they cannot be read together."""
    column = "codes" if is_coded else "tokens"
    columns = ["id", "text", "metadata", "content_hash", "n_tokens", "spans", column]
    columns += ["image"] if snapshot.manifest.images else []
    columns = snapshot.with_checksums(columns)
    try:
        table = snapshot.take(states.row_ids[documents], columns)
        tokens = _tokens(snapshot, table, column)
    except (ManyvecError, ValueError) as error:
        if len(documents) == 1:
            yield Problem(f"cannot be read: {error}", states.ids[documents[0]])
            return
        half = len(documents) // 2
        yield from _window(snapshot, states, documents[:half], is_coded=is_coded)
        yield from _window(snapshot, states, documents[half:], is_coded=is_coded)
        return
    damage = damage_of(tokens, table)
    n_spans = table["spans"].combine_chunks().value_lengths().fill_null(0).to_numpy() // 2
    rows = table.drop_columns([column, "spans"]).to_pylist()
    for position, (row, n_tokens) in enumerate(zip(rows, tokens.lengths.tolist(), strict=True)):
        for message in _row_problems(row):
            yield Problem(message, row["id"])
        if n_tokens != row["n_tokens"]:
            yield Problem(f"has {n_tokens} token vectors instead of {row['n_tokens']}", row["id"])
        elif n_spans[position] != n_tokens:
            yield Problem(f"has {n_spans[position]} spans for {n_tokens} token vectors", row["id"])
        if position in damage:
            yield Problem(f"has {damage[position]}", row["id"])


def _tokens(snapshot: Snapshot, table: pa.Table, column: str) -> TokenBatch | CodedBatch:
    vectors, offsets = rows_of(table[column], np.uint8 if column == "codes" else np.float16)
    try:
        check_offsets(offsets, len(vectors))
    except ShapeError as error:
        raise StoreError(str(error)) from error
    if column == "tokens":
        return TokenBatch.unchecked(vectors, offsets)
    if (codec := snapshot.centroids.codec()) is None:
        raise ManifestError("there are no centroids for its codes")
    return CodedBatch.unchecked(vectors, offsets, codec)


def _row_problems(row: dict[str, Any]) -> Iterator[str]:
    if content_hash(row["text"]) != row["content_hash"].partition(":")[0]:
        yield "has another text than was stored"
    stored = image_hash(row["content_hash"])
    if stored and image_hash(content_hash("", row.get("image") or b"")) != stored:
        yield "has another image than was stored"
    try:
        is_dict = isinstance(json.loads(row["metadata"]), dict)
    except (ValueError, RecursionError):
        is_dict = False
    if not is_dict:
        yield "has metadata that is no JSON object"
    elif is_other_metadata(row):
        yield "has another id or other metadata than was stored"


def _repaired(store: Store, problems: list[Problem]) -> Iterator[str]:
    """Repair what can be repaired, and yield what was done."""
    with store.optimizing() as is_alone:
        if ids := remove_duplicates(store):
            yield f"older rows of {len(ids)} ids were deleted"
        messages = {problem.message for problem in problems}
        if "the centroid lists cannot be read" in messages:
            with store.turn():
                store.centroids.remove_assignments()
            extend_lists(store, more_than=0)
            yield "the centroid lists were built again"
        is_damaged = any(message.startswith(_DAMAGED_SEARCH_INDEX) for message in messages)
        missing = store.missing_indexes()
        if columns := store.create_indexes() if is_damaged else store.create_indexes(missing) if missing else []:
            yield f"search indexes were built again: {', '.join(columns)}"
        before = store.place.disk_bytes()
        store.optimize(_KEEP, removes_leftovers=is_alone)
        after = store.place.disk_bytes()
        if before is not None and after is not None and after < before:
            yield f"{before - after} bytes of files that nothing refers to were deleted"
