"""`Store`: the table of an index, which it creates, opens and writes to. Row ids stay the same through updates."""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from manyvec.errors import InputError, StoreError, WriteConflictError
from manyvec.storage.centroids import CentroidTables
from manyvec.storage.ingest.columns import token_columns
from manyvec.storage.lance import Connection, Place, translated
from manyvec.storage.opened import OpenedIndex
from manyvec.storage.schema import Manifest, Row, row_columns, schema_of, search_indexes, to_arrow
from manyvec.storage.snapshot import Snapshot
from manyvec.storage.states import Stored, VersionKey
from manyvec.storage.words import word_columns
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Attempts to read an index that is being replaced again and again, and to commit beside writers that do not wait.
_ATTEMPTS = 5


class _ColumnsChangedError(Exception):
    """The filter columns have changed since rows were made."""


class Store:
    """The table at a URI. May be shared by threads.

    When another index takes the place of the one that was opened, the next call works on the new one, with its
    manifest: what is kept of an index must be kept under `key`.
    """

    def __init__(self, opened: OpenedIndex) -> None:
        self.uri = opened.uri
        self.place = opened.connection.place
        self._opened = opened
        self._reopening = threading.Lock()

    @classmethod
    def create(cls, place: Place | str, manifest: Manifest, cache_bytes: int = 0) -> Store:
        """Create an empty table, with a new identity.

        Args:
            place: Where the index is to lie.
            manifest: Its description.
            cache_bytes: Its memory budget; see `Connection`.

        Raises:
            InputError: There is already an index.
            StoreError: The database cannot be written.
        """
        manifest, place = manifest.identified(), Place.of(place) if isinstance(place, str) else place
        with translated(f"create an index in {place}"):
            connection = Connection(place, cache_bytes)
            database = connection.database
            if place.table in database.list_tables().tables:
                raise InputError(f"there is an index in {place} already: use Index.open, or create(..., exist_ok=True)")
            # The option counts for a connection that a user has made, too.
            stable = {**place.storage_options, "new_table_enable_stable_row_ids": "true"}
            table = database.create_table(place.table, schema=schema_of(manifest), storage_options=stable)
            # Created now, so that text is split into words the same way before and after `optimize`.
            for column, config in search_indexes(manifest).items():
                table.create_index(column, config=config)
            opened = OpenedIndex(connection, table, manifest)
            opened.search_index_files.note()
            return cls(opened)

    @classmethod
    def open(cls, place: Place | str, cache_bytes: int = 0) -> Store:
        """Open the table of an index; see `OpenedIndex.open`."""
        return cls(OpenedIndex.open(Place.of(place) if isinstance(place, str) else place, cache_bytes))

    @property
    def manifest(self) -> Manifest:
        """The manifest of the index that was last seen at the URI."""
        return self._opened.manifest

    @property
    def filter_columns(self) -> dict[str, str]:
        """The filter columns and their types in the newest version, whoever added them."""
        return dict(self._newest()[0].manifest.filter_columns)

    @property
    def generation(self) -> int:
        """The generation of the index that was last seen at the URI; see `VersionKey`."""
        return self._opened.generation

    @property
    def bytes_held(self) -> int:
        """Bytes that LanceDB keeps in memory of search indexes and of metadata."""
        return self._opened.connection.bytes_held

    @property
    def centroids(self) -> CentroidTables:
        """The tables of centroids beside the documents."""
        return self._opened.centroids

    @property
    def key(self) -> VersionKey:
        """The newest version of the index that is at the URI now, whoever wrote it."""
        opened, version = self._newest()
        return VersionKey(opened.generation, version)

    @property
    def version(self) -> int:
        """The newest table version."""
        return self.key.version

    def snapshot(self) -> Snapshot:
        """Return the newest version, to be read while others write."""
        for _ in range(_ATTEMPTS):
            opened, version = self._newest()
            with translated(f"read the index {self.uri}"):
                table = opened.connection.documents()
                table.checkout(version)
                # Another index may have taken the place of this one between the two calls.
                if opened.is_of(table, version):
                    key = VersionKey(opened.generation, version)
                    files = opened.search_index_files
                    return Snapshot(self.uri, key, opened.manifest, opened.centroids, files, table)
        raise StoreError(f"the index {self.uri} was replaced while it was being read: try again")

    def latest(self) -> Snapshot:
        """Return a snapshot for one read at once: the next one may read what was committed meanwhile.

        It takes three calls into LanceDB less than `snapshot`.
        """
        if self.place.connection is not None:
            # Handles of a connection that its user has closed go on working.
            return self.snapshot()
        opened, version = self._newest()
        key, files = VersionKey(opened.generation, version), opened.search_index_files
        return Snapshot(self.uri, key, opened.manifest, opened.centroids, files, opened.table)

    def _newest(self) -> tuple[OpenedIndex, int]:
        for _ in range(_ATTEMPTS):
            opened = self._opened
            with translated(f"read the index {self.uri}"):
                version = opened.newest()
            if version is not None:
                return opened, version
            with self._reopening:
                if self._opened is opened:
                    self._opened = OpenedIndex.open(self.place, opened.connection.cache_bytes)
                    logger.warning("the index %s was replaced by another one, which is used from now on", self.uri)
        raise StoreError(f"the index {self.uri} was replaced while it was being read: try again")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let other writers wait during the block, which commits something."""
        opened = self._opened
        with translated(f"write to the index {self.uri}"), opened.writers.turn():
            yield
            opened.note(int(opened.table.version))

    def _commit(self, opened: OpenedIndex, work: Callable[[], T], made_for: Manifest | None = None) -> T:
        """Commit something when it is this writer's turn, and again if another program's writer came first.

        Args:
            opened: The index that `work` writes to.
            work: Commits it.
            made_for: Manifest that the rows were made for.

        Raises:
            StoreError: Another index has taken the place of the one that the rows were made for.
            _ColumnsChangedError: The index has been given other filter columns since.
        """
        for attempt in itertools.count(1):
            try:
                with translated(f"write to the index {self.uri}"), opened.writers.turn():
                    if made_for is not None:
                        self._check_generation(self._newest()[0], opened.generation)
                        if opened.manifest.columns != made_for.columns:
                            raise _ColumnsChangedError
                    result = work()
                    # Results of merges and deletions have it.
                    opened.note(int(getattr(result, "version", None) or opened.table.version))
                    return result
            except WriteConflictError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise AssertionError("unreachable")

    def _written_to(self, generation: int | None = None) -> OpenedIndex:
        """Return the index for a write; refuse to write what was made for another index.

        One that was seen with this generation is not looked at again: `_commit` does that when its turn has come.
        """
        opened = self._newest()[0] if generation is None else self._opened
        self._check_generation(opened, generation)
        with translated(f"write to the index {self.uri}"):
            opened.identify()
        return opened

    def _check_generation(self, opened: OpenedIndex, generation: int | None) -> None:
        if generation is not None and opened.generation != generation:
            raise StoreError(f"cannot write to the index {self.uri}: another one has taken its place. Try again")

    def find(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Return what is stored under these ids now; unknown ids are left out."""
        return self.latest().find(ids)

    def upsert(self, rows: Sequence[Row], tokens: TokenBatch, *, generation: int | None = None) -> None:
        """Insert documents in one commit; a row whose id exists is replaced.

        Args:
            rows: Documents with distinct ids.
            tokens: Their token vectors, which are encoded as the index stores them.
            generation: Generation of the index that rows and tokens were made for; None for the one there is now.

        Raises:
            StoreError: Nothing of this call was written.
        """
        opened = self._written_to(generation)
        manifest = opened.manifest
        with translated(f"write to the index {self.uri}"):
            values = _values(rows, tokens, opened)
            # Concurrent upserts of a new id insert it twice if they use a BTree index on it; the primary key prevents
            # that only without the index.
            merge = opened.table.merge_insert("id").use_index(False)
            merge.when_matched_update_all().when_not_matched_insert_all()
            try:
                self._commit(opened, lambda: merge.execute(values), manifest)
            except _ColumnsChangedError:
                self.upsert(rows, tokens, generation=opened.generation)

    def rows(self, rows: Sequence[Row], tokens: TokenBatch) -> pa.Table:
        """Return rows as `upsert` would write them, with their token vectors encoded as the index stores them."""
        return _values(rows, tokens, self._written_to())

    def append(self, values: pa.Table) -> None:
        """Append rows in one commit, as `rows` returns them. Ids that are stored already are not looked for."""
        opened = self._written_to()
        with translated(f"write to the index {self.uri}"):
            self._commit(opened, lambda: opened.table.add(values))

    def update_metadata(self, rows: Sequence[Row], *, generation: int | None = None) -> int:
        """Write metadata and filter columns of stored rows, without their token vectors.

        Args:
            rows: Rows with distinct ids.
            generation: Generation of the index that the rows were made for; None for the one there is now.

        Returns:
            How many of the rows were still stored with the same text and image; the others are left as they are.
        """

        def columns(opened: OpenedIndex) -> dict[str, Any]:
            values = row_columns(rows, opened.manifest)
            return {name: column for name, column in values.items() if name not in ("text", "image")}

        return self._update(self._written_to(generation), columns)

    def recode(self, ids: Sequence[str], content_hashes: Sequence[str], tokens: TokenBatch) -> int:
        """Write token vectors of stored rows as the index encodes new ones.

        Args:
            ids: Distinct ids.
            content_hashes: Of the texts that the vectors belong to. A row whose text has changed since is left alone.
            tokens: Their token vectors.

        Returns:
            How many rows were written.
        """

        def columns(opened: OpenedIndex) -> dict[str, Any]:
            return {"id": ids, "content_hash": content_hashes, **token_columns(tokens, opened, opened.table.schema)}

        return self._update(self._written_to(), columns)

    def add_columns(self, columns: Mapping[str, tuple[pa.Field, str]]) -> None:
        """Add columns that the table does not have, filled as far as LanceDB can compute them.

        Args:
            columns: Names in the table, each with its field and an SQL expression for its values.
        """
        import pyarrow as pa

        opened = self._written_to()
        for name, (column, expression) in columns.items():
            schema = opened.table.schema
            if name in schema.names and schema.field(name).type == column.type:
                continue
            if name in schema.names:
                # Left by an interrupted call that declared another type.
                self._commit(opened, partial(opened.table.drop_columns, [name]))
            try:
                self._commit(opened, partial(opened.table.add_columns, {name: expression}))
            except StoreError as error:
                # A string that only looks like a date, for example.
                logger.info("the column %s is filled row by row: %s", name, error)
            schema = opened.table.schema
            if name in schema.names and schema.field(name).type != column.type:
                self._commit(opened, partial(opened.table.drop_columns, [name]))
            if name not in opened.table.schema.names:
                self._commit(opened, partial(opened.table.add_columns, pa.schema([column])))

    def write_columns(self, columns: Mapping[str, Any]) -> int:
        """Write filter columns of stored rows whose metadata is unchanged; return how many rows were written.

        Args:
            columns: Values by the names of columns in the table; `id` and `metadata` must be among them.
        """
        return self._update(self._written_to(), lambda _: columns)

    def declare(self, columns: Mapping[str, str]) -> None:
        """Write further filter columns into the manifest; the table must have them."""
        opened = self._written_to()
        self._commit(opened, lambda: opened.declare(columns))

    def delete(self, where: str) -> int:
        """Delete the rows that satisfy a condition, and return how many there were."""
        opened = self._written_to()
        with translated(f"delete from the index {self.uri}"):
            result = self._commit(opened, lambda: opened.table.delete(where))
            return int(result.num_deleted_rows)  # type: ignore[attr-defined]  # not in lancedb's stubs

    def lost_versions(self) -> tuple[int, int] | None:
        """See `OpenedIndex.lost_versions`."""
        return self._newest()[0].lost_versions()

    def missing_indexes(self) -> list[str]:
        """Return the columns that should have a search index and have none."""
        opened, _ = self._newest()
        with translated(f"read the index {self.uri}"):
            # LanceDB quotes some names here.
            indexed = {column.strip("`") for index in opened.table.list_indices() for column in index.columns}
        return [column for column in search_indexes(opened.manifest) if column not in indexed]

    def damaged_indexes(self) -> list[str]:
        """Return the files of search indexes that differ from those that were written."""
        return self._newest()[0].search_index_files.damaged()

    def create_indexes(self, columns: Sequence[str] | None = None) -> list[str]:
        """Create search indexes anew: of these columns, or of all; return their columns."""
        opened = self._written_to()
        indexes = search_indexes(opened.manifest)
        chosen = {column: indexes[column] for column in (indexes if columns is None else columns)}
        for column, config in chosen.items():
            with self.turn():
                opened.table.create_index(column, config=config, replace=True)
        # Damaged files belong to older versions now.
        opened.search_index_files.note(anew=columns is None)
        return [*chosen]

    @contextmanager
    def optimizing(self) -> Iterator[bool]:
        """Let other optimizers wait during the block; yield whether none of them is at work."""
        opened = self._written_to()
        with ExitStack() as stack:
            with translated(f"optimize the index {self.uri}"):
                is_alone = stack.enter_context(opened.optimizers.turn())
            yield is_alone

    def optimize(self, keep: timedelta, *, removes_leftovers: bool = False) -> None:
        """Merge small files, index new rows, and drop versions older than `keep`.

        Args:
            keep: How long replaced and deleted data stays on disk.
            removes_leftovers: Whether to delete files that no version refers to, as killed writers leave them. Those of
                a writer that has not committed yet are among them, so this waits for writers to finish; nobody else may
                be optimizing, and programs other than manyvec must not write meanwhile. LanceDB itself deletes such
                files after seven days, and unfinished ones never.

        Raises:
            WriteConflictError: Other writers left no gap between their commits; nothing is lost.
        """
        opened = self._written_to()
        for attempt in range(1, _ATTEMPTS + 1):
            # Merging files loses against every commit to them, however small. It can take long, so that other writers
            # are only made to wait when it has lost before.
            turn = opened.writers.turn() if attempt > 2 else nullcontext()
            try:
                with translated(f"optimize the index {self.uri}"), turn:
                    # A handle that has not seen another writer's delete would fail here on every call.
                    opened.table.checkout_latest()
                    # At 0 LanceDB warns of what our docstring says.
                    cleanup_older_than = max(keep, timedelta(milliseconds=1))
                    opened.table.optimize(cleanup_older_than=cleanup_older_than)
                if removes_leftovers:
                    with translated(f"optimize the index {self.uri}"), opened.writers.turn() as is_alone:
                        opened.table.optimize(cleanup_older_than=cleanup_older_than, delete_unverified=is_alone)
                        for file in self.place.unfinished_files() if is_alone else ():
                            file.unlink(missing_ok=True)
                with translated(f"optimize the index {self.uri}"):
                    opened.search_index_files.note()
                    opened.reconnect()
                return
            except WriteConflictError as error:
                if attempt == _ATTEMPTS:
                    raise WriteConflictError(
                        f"cannot optimize the index {self.uri}: other writers committed all the time. Try again"
                    ) from error
                time.sleep(random.uniform(0, 0.1 * 2**attempt))

    def _update(self, opened: OpenedIndex, make_columns: Callable[[OpenedIndex], Mapping[str, Any]]) -> int:
        """Write some columns of rows whose text is unchanged, and return how many those were."""
        manifest, columns = opened.manifest, make_columns(opened)
        snapshot = self.snapshot()
        known = snapshot.find(columns["id"])
        stored_at = [position for position, id in enumerate(columns["id"]) if id in known]
        if not stored_at or snapshot.key.generation != opened.generation:
            return 0
        # Whole rows: to write some of their columns, LanceDB would read the whole table into memory, images included.
        schema = opened.table.schema
        kept = [name for name in schema.names if name not in columns]
        stored = snapshot.take([known[columns["id"][position]].row_id for position in stored_at], kept)
        new = to_arrow(columns, schema).take(stored_at)
        rows = {name: (new if name in columns else stored)[name] for name in schema.names}
        # Someone may have changed text or metadata since they were read: such a row must not get the old ones back.
        unchanged = "target.content_hash = source.content_hash"
        has_new_metadata = {"metadata", "content_hash"}.isdisjoint(kept)
        unchanged += "" if has_new_metadata else " AND target.metadata = source.metadata"
        with translated(f"write to the index {self.uri}"):
            values = to_arrow(rows, schema)
            merge = opened.table.merge_insert("id").use_index(False).when_matched_update_all(where=unchanged)
            try:
                return int(self._commit(opened, lambda: merge.execute(values), manifest).num_updated_rows)
            except _ColumnsChangedError:
                return self._update(opened, make_columns)


def _values(rows: Sequence[Row], tokens: TokenBatch, opened: OpenedIndex) -> pa.Table:
    schema = opened.table.schema
    columns = row_columns(rows, opened.manifest)
    columns |= word_columns(columns["text"]) | token_columns(tokens, opened, schema)
    return to_arrow(columns, schema)
