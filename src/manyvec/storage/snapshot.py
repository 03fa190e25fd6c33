"""`Snapshot`: one version of an index's table, which later commits do not change."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import ManifestError, ShapeError, StoreError
from manyvec.storage.centroids import ASSIGNMENTS_KEY, CentroidTables
from manyvec.storage.lance import SearchIndexFiles, translated, where_ids
from manyvec.storage.schema import Manifest, content_hash, image_hash, metadata_checksum, rows_of, spans_of
from manyvec.storage.states import RowStates, Stored, VersionKey
from manyvec.timing import stage
from manyvec.vectors.batch import CodedBatch, StoredBatch, TokenBatch, check_offsets, offsets_of
from manyvec.vectors.codebook import Assignments, positions_of_rows
from manyvec.vectors.codec import bytes_per_token

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.query import LanceQueryBuilder
    from lancedb.table import Table

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch", TokenBatch, CodedBatch)
RowIds = Sequence[int] | NDArray[np.int64]
# Bytes of token vectors read at a time: to score them from disk, to load them into memory, and to find the centroids of
# many, which is faster in large groups. Each of LanceDB's threads keeps some memory of the largest read that it took
# part in (`examples/benchmarks/growth.py`).
SCORE_WINDOW_BYTES = 4 * 2**20
LOAD_WINDOW_BYTES = 2**20
BUILD_WINDOW_BYTES = 64 * 2**20
_ROWS_PER_BATCH = 100_000
_MAX_WARNINGS = 10
_ROWS_PER_SCAN = 8192
# Rows that are read one by one instead of with all others.
_MAX_NEW_STATES = 2_000
# New rows that are read with all that a search needs of them, few because they may be books, and how much is kept.
_MAX_FRESH_ROWS = 8
_MAX_FRESH_BYTES = 8 * 2**20
# Version of the table at which a row was written last.
_WRITTEN_AT = "_row_last_updated_at_version"
_NO_ROW = -1


@dataclass(frozen=True)
class Snapshot:
    """One version of the table, so that the steps of a search agree with each other while others write.

    Attributes:
        uri: The index.
        key: Which version of which index. What is derived from a version and kept must be kept under its key.
        manifest: The index's manifest.
        centroids: The tables of centroids beside the documents.
        search_index_files: Files of the search indexes, which are compared with their checksums at the first use.
    """

    uri: str
    key: VersionKey
    manifest: Manifest
    centroids: CentroidTables
    search_index_files: SearchIndexFiles
    _table: Table
    _damaged: set[int] = field(default_factory=set, compare=False, repr=False)
    # At most one table: rows that were new in this version.
    _fresh: list[pa.Table] = field(default_factory=list, compare=False, repr=False)

    @property
    def version(self) -> int:
        """The table version."""
        return self.key.version

    @property
    def assignments_key(self) -> str:
        """A string that changes whenever `assignments` has something new to read; empty if there are none."""
        metadata = self._schema.field("tokens").metadata or {}
        return str(metadata.get(ASSIGNMENTS_KEY.encode(), b"").decode())

    @cached_property
    def _schema(self) -> pa.Schema:
        with translated(f"read the index {self.uri}"):
            return self._table.schema

    def with_checksums(self, columns: list[str]) -> list[str]:
        """Return columns with those of their checksums, which indexes of earlier versions do not have."""
        checksums = ["metadata_checksum"] if "metadata" in columns else []
        checksums += ["vectors_checksum"] if not {"tokens", "codes"}.isdisjoint(columns) else []
        return [*columns, *(name for name in checksums if self.has_columns([name]))]

    def has_columns(self, names: Sequence[str]) -> bool:
        """Return whether the table has these columns: indexes of earlier versions do not have all."""
        return {*names} <= {*self._schema.names}

    def assignments(self) -> Assignments | None:
        """Return the codebook of the centroid lists with each document's centroids; None if there are none."""
        return self.centroids.assignments(self.assignments_key)

    def count(self, where: str | None = None) -> int:
        """Return the number of rows, or of those that satisfy a condition."""
        with translated(f"read the index {self.uri}"):
            return int(self._table.count_rows(where))

    def row_ids(self, where: str | None = None) -> NDArray[np.int64]:
        """Return the row ids, ascending, of all rows or of those that satisfy a condition."""
        self._compare_search_indexes()
        with translated(f"read the index {self.uri}"):
            query = self._table.search().select(["_rowid"]).limit(None)
            found = _all_rows(query.where(where) if where else query)["_rowid"]
        return np.sort(found.to_numpy().astype(np.int64))

    def row_ids_by_content(self) -> dict[str, int]:
        """Return a row id for each `content_hash`."""
        with translated(f"read the index {self.uri}"):
            table = _all_rows(self._table.search().select(["content_hash"]).with_row_id(True).limit(None))
        return dict(zip(table["content_hash"].to_pylist(), table["_rowid"].to_pylist(), strict=True))

    def document_ids(self, where: str | None = None) -> list[str]:
        """Return the ids, sorted, of all documents or of those that satisfy a condition."""
        states = self.states()
        ids = states.ids if where is None else states.ids[np.isin(states.row_ids, self.row_ids(where))]
        return sorted(ids.tolist())

    def scan(self, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """Yield columns of all rows, with `_rowid`, a few thousand rows at a time, in no order."""
        with translated(f"read the index {self.uri}"):
            query = self._table.search().select(columns).with_row_id(True).limit(None)
            for batch in query.to_batches(batch_size=_ROWS_PER_SCAN):
                yield batch.to_pylist()

    def states(self, held: RowStates | None = None) -> RowStates:
        """Return id, length and last change of every row.

        Args:
            held: States of another version of the index. Of rows that are in both, only the last change is read: of
                100,000 rows in 5 ms instead of 20.
        """
        if held is not None and len(held.row_ids):
            row_ids, updated, _ = self.read_all([])
            before = positions_of_rows(row_ids, updated, held.row_ids, held.updated)
            if len(new := np.flatnonzero(before < 0)) <= _MAX_NEW_STATES:
                ids, n_tokens, is_coded = held.ids[before], held.n_tokens[before], held.is_coded[before]
                if len(new):
                    table = self._take_new(row_ids[new])
                    ids[new], n_tokens[new], is_coded[new] = self._described(table)
                return RowStates(row_ids, updated, n_tokens, ids, is_coded)
        row_ids, updated, table = self.read_all(self._state_columns)
        ids, n_tokens, is_coded = self._described(table)
        return RowStates(row_ids, updated, n_tokens, ids, is_coded)

    def _take_new(self, row_ids: NDArray[np.int64]) -> pa.Table:
        """Return columns of `RowStates` of new rows; of a few rows, the rest of them is read in the same call."""
        if len(row_ids) > _MAX_FRESH_ROWS:
            return self.take(row_ids, self._state_columns)
        table = self.take(row_ids, [name for name in self._schema.names if name != "image"])
        if table.nbytes <= _MAX_FRESH_BYTES:
            self._fresh[:] = [table]
        return table

    @property
    def _state_columns(self) -> list[str]:
        return ["id", "n_tokens", *(["is_coded"] if self.manifest.storage == "residual" else [])]

    def read_all(self, columns: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], pa.Table]:
        """Return the row ids, ascending, the version that last wrote each row, and columns in this order."""
        with translated(f"read the index {self.uri}"):
            table = _all_rows(self._table.search().select([*columns, _WRITTEN_AT]).with_row_id(True).limit(None))
        row_ids = table["_rowid"].to_numpy().astype(np.int64)
        if not (np.diff(row_ids) > 0).all():
            order = np.argsort(row_ids)
            row_ids, table = row_ids[order], table.take(order)
        return row_ids, table[_WRITTEN_AT].to_numpy().astype(np.int64), table

    def _described(self, table: pa.Table) -> tuple[NDArray[np.object_], NDArray[np.int64], NDArray[np.bool_]]:
        """Return ids, numbers of token vectors, and whether these are codes, of rows in a table."""
        if self.manifest.storage == "residual":
            is_coded = table["is_coded"].to_numpy()
        else:
            is_coded = np.full(len(table), self.manifest.storage != "float16")
        ids = table["id"].to_numpy(zero_copy_only=False)
        return ids, table["n_tokens"].to_numpy().astype(np.int64), is_coded

    def find(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Return what is stored under these ids; unknown ids are left out.

        If another program has stored an id more than once, the newest row counts, and a warning is logged.
        """
        columns = ["id", "metadata", "content_hash"]
        found: dict[str, Stored] = {}
        for where in where_ids(ids):
            rows = self._selected(where, columns)
            if len({row["id"] for row in rows}) < len(rows):
                # When a row was written is read only here: it takes LanceDB 10 % longer.
                rows = self._selected(where, [*columns, _WRITTEN_AT])
                rows.sort(key=lambda row: (row[_WRITTEN_AT], row["_rowid"]))
                self._warn_of_repeated([row["id"] for row in rows])
            found |= {r["id"]: Stored(r["_rowid"], r["metadata"], r["content_hash"]) for r in rows}
        return found

    def _selected(self, where: str, columns: list[str]) -> list[dict[str, Any]]:
        """Return columns and `_rowid` of the rows that satisfy a condition."""
        with translated(f"read the index {self.uri}"):
            query = self._table.search().select(columns).with_row_id(True).limit(None)
            return list(query.where(where).to_arrow().to_pylist())

    def _warn_of_repeated(self, ids: Sequence[str]) -> None:
        repeated = [(id, count) for id, count in Counter(ids).items() if count > 1]
        for id, count in repeated[:_MAX_WARNINGS]:
            logger.warning(
                "document %r is stored %d times in the index %s: Index.optimize keeps the newest", id, count, self.uri
            )

    def texts(self, row_ids: RowIds, *, spans: bool = False) -> list[dict[str, Any]]:
        """Return `id`, `text`, `metadata` (as JSON), `is_page` and, if asked, `spans` of rows, in this order.

        A text that was damaged on disk is logged, and so is metadata, which is empty then.
        """
        columns = self.with_checksums(["id", "text", "metadata", "content_hash"])
        table = self.take(row_ids, [*columns, "spans"] if spans else columns)
        rows = [row | {"is_page": image_hash(row["content_hash"]) != ""} for row in table.select(columns).to_pylist()]
        for row_id, row in zip(row_ids, rows, strict=True):
            if content_hash(row["text"] or "") != row["content_hash"].partition(":")[0]:
                self._log_damage(int(row_id), row["id"], "a text that differs from the one that was added")
            try:
                json.loads(row["metadata"] or "")
            except ValueError:
                self._log_damage(int(row_id), row["id"], "metadata that is not valid JSON")
                row["metadata"] = "{}"
            else:
                if is_other_metadata(row):
                    self._log_damage(int(row_id), row["id"], "an id or metadata that differ from what was added")
        if spans and rows:
            all_spans, offsets = _spans_in(table)
            for row, row_spans in zip(rows, np.split(all_spans, offsets[1:-1]), strict=True):
                row["spans"] = row_spans
        return rows

    def images(self, row_ids: RowIds) -> list[bytes | None]:
        """Return the page images of rows as file bytes, in this order; None for rows without an image."""
        if not self.manifest.images:
            return [None] * len(row_ids)
        return list(self.take(row_ids, ["image"])["image"].to_pylist())

    def tokens(self, row_ids: RowIds) -> TokenBatch:
        """Return the token vectors of rows as float16, in this order, decoded where they are stored as codes."""
        if self.manifest.storage != "residual":
            return self.stored_tokens(row_ids, is_coded=self.manifest.storage != "float16").decoded()
        # Rows that `optimize` has not reached yet are float16.
        is_coded = self.take(row_ids, ["is_coded"])["is_coded"].to_numpy()
        chosen = np.asarray(row_ids, np.int64)
        groups = [np.flatnonzero(is_coded), np.flatnonzero(~is_coded)]
        parts = [
            self.stored_tokens(chosen[positions], is_coded=coded).decoded()
            for positions, coded in zip(groups, (True, False), strict=True)
            if len(positions)
        ]
        return TokenBatch.concatenate(parts).select(np.argsort(np.concatenate(groups)))

    def token_bytes(self, states: RowStates, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the (n,) bytes that the token vectors of these documents take, on disk and in memory."""
        coded, half = (bytes_per_token(storage, self.manifest.dim) for storage in (self.manifest.storage, "float16"))
        return states.n_tokens[documents] * np.where(states.is_coded[documents], coded, half)

    def stored_tokens(self, row_ids: RowIds, *, is_coded: bool) -> StoredBatch:
        """Return the token vectors of rows, in this order, as they are stored.

        A damaged document has none; see `report_damage`.

        Args:
            row_ids: Rows that are all stored as codes or all as float16.
            is_coded: Whether they are stored as codes; see `RowStates`.
        """
        if not is_coded:
            return self.uncoded_tokens(row_ids)
        if (codec := self.centroids.codec()) is None:
            raise ManifestError(f"the index {self.uri} holds codes, but its manifest names no centroids for them")
        table = self.take(row_ids, self.with_checksums(["codes"]))
        codes, offsets = self._rows_of(table["codes"], np.uint8)
        return self._undamaged(CodedBatch.unchecked(codes, offsets, codec), row_ids, table)

    def uncoded_tokens(self, row_ids: RowIds, *, spans: bool = False) -> TokenBatch:
        """Return the token vectors of rows that are stored as float16, in this order, with their spans if asked."""
        columns = ["tokens", "spans"] if spans else ["tokens"]
        table = self.take(row_ids, self.with_checksums(columns))
        vectors, offsets = self._rows_of(table["tokens"], np.float16)
        tokens = TokenBatch.unchecked(vectors, offsets, _spans_in(table)[0] if spans else None)
        return self._undamaged(tokens, row_ids, table)

    def report_damage(self, row_ids: RowIds, reasons: Sequence[str]) -> None:
        """Log documents whose token vectors cannot be used, each once per snapshot."""
        new = [(row_id, reason) for row_id, reason in zip(row_ids, reasons, strict=True) if row_id not in self._damaged]
        ids = self.take([row_id for row_id, _ in new], ["id"])["id"].to_pylist() if new else []
        for id, (row_id, reason) in zip(ids, new, strict=True):
            self._log_damage(int(row_id), id, f"{reason}, and cannot be found")

    def report_search_index(self, reason: str) -> None:
        """Log that a search index is damaged, once per snapshot."""
        if _NO_ROW not in self._damaged:
            self._damaged.add(_NO_ROW)
            logger.warning(
                "a search index of the index %s %s: `manyvec check --repair` builds it again", self.uri, reason
            )

    @cached_property
    def _damaged_files(self) -> list[str]:
        return self.search_index_files.damaged()

    def _compare_search_indexes(self) -> None:
        if self._damaged_files:
            self.report_search_index(f"differs from what was written ({self._damaged_files[0]})")

    def _log_damage(self, row_id: int, id: str, reason: str) -> None:
        if row_id not in self._damaged:
            self._damaged.add(row_id)
            logger.warning("document %r of the index %s has %s: add it again", id, self.uri, reason)

    def _rows_of(self, column: pa.ChunkedArray, dtype: type) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return the rows and offsets of a column; what is returned fits together, as kernels need it."""
        rows, offsets = rows_of(column, dtype)
        try:
            check_offsets(offsets, len(rows))
        except ShapeError as error:
            raise StoreError(f"the index {self.uri} is damaged: {error}") from error
        return rows, offsets

    def _undamaged(self, tokens: Batch, row_ids: RowIds, table: pa.Table) -> Batch:
        """Return token vectors without those of damaged documents, so that the other documents can be searched."""
        if not (damage := damage_of(tokens, table)):
            return tokens
        self.report_damage([int(row_ids[position]) for position in damage], list(damage.values()))
        return tokens.emptied(list(damage))

    def match(self, text: str, limit: int, where: str | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return row ids and BM25 scores of the at most `limit` rows that match the words best, in no order."""
        from lancedb.query import MatchQuery

        if limit < 1:  # LanceDB would take it for no limit.
            return np.empty(0, np.int64), np.empty(0, np.float32)
        self._compare_search_indexes()
        with translated(f"search the index {self.uri}"):
            words = MatchQuery(text, "text")  # type: ignore[call-arg]  # its defaults are pydantic's
            # Selecting the ids too would take half as long again.
            query = self._table.search(words, query_type="fts").select(["_score"]).with_row_id(True)
            found = (query.where(where) if where else query).limit(limit).to_arrow()
        return found["_rowid"].to_numpy().astype(np.int64), found["_score"].to_numpy()

    @stage("fetch")
    def take(self, row_ids: RowIds, columns: list[str]) -> pa.Table:
        """Return columns of rows, in this order; a row may occur more than once.

        Raises:
            StoreError: A row is not in this version.
        """
        chosen = np.asarray(row_ids, np.int64)
        for fresh in self._fresh:
            known = fresh["_rowid"].to_numpy().astype(np.int64)
            if np.isin(chosen, known).all() and {*columns} <= {*fresh.column_names}:
                return fresh.select([*columns, "_rowid"]).take(np.searchsorted(known, chosen))
        ascending, positions = np.unique(chosen, return_inverse=True)
        with translated(f"read the index {self.uri}"):
            # take_row_ids returns rows in storage order, drops repeated ids, and leaves out unknown ones silently.
            table = self._table.take_row_ids(ascending.tolist()).select(columns).with_row_id().to_arrow()
        found = table["_rowid"].to_numpy().astype(np.int64)
        if len(found) != len(ascending):
            raise StoreError(
                f"{len(ascending) - len(found)} of {len(ascending)} rows are not in version {self.version}"
            )
        order = np.argsort(found)[positions]
        return table if np.array_equal(order, np.arange(len(order))) else table.take(order)


def _all_rows(query: LanceQueryBuilder) -> pa.Table:
    """Run a query that returns many rows."""
    import pyarrow as pa

    # In small batches, of LanceDB's default size, 100,000 rows take five to eight times as long.
    batches = query.to_batches(batch_size=_ROWS_PER_BATCH)
    return pa.Table.from_batches(batches, batches.schema)


def damage_of(tokens: StoredBatch, table: pa.Table) -> dict[int, str]:
    """Return what is wrong with the token vectors of each damaged row, by position; see `RaggedBatch.damage`."""
    damage = tokens.damage()
    if "vectors_checksum" in table.column_names:
        stored = table["vectors_checksum"]
        differs = stored.is_valid().to_numpy() & (stored.fill_null(0).to_numpy() != tokens.checksums())
        for position in np.flatnonzero(differs).tolist():
            damage.setdefault(position, "token vectors that differ from those that were added")
    return damage


def is_other_metadata(row: Mapping[str, Any]) -> bool:
    """Return whether the id and the metadata of a row differ from what was written, as far as a checksum tells."""
    stored = row.get("metadata_checksum")
    return stored is not None and stored != metadata_checksum(row["id"], row["metadata"] or "")


def windows(n_bytes: NDArray[np.int64], window_bytes: int = SCORE_WINDOW_BYTES) -> Iterator[slice]:
    """Yield runs of documents whose token vectors fill one window; a larger document is a run of its own."""
    ends = np.cumsum(n_bytes)
    start = 0
    while start < len(n_bytes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + window_bytes, side="right")))
        yield slice(start, stop)
        start = stop


def _spans_in(table: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the (n_tokens, 2) spans of all rows, and the offsets of the rows."""
    chunks = table["spans"].chunks
    offsets = offsets_of(np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks]) // 2)
    return spans_of(np.concatenate([chunk.flatten().to_numpy().reshape(-1, 2) for chunk in chunks]), offsets), offsets
