"""The store: one LanceDB table of documents, and the only module that knows LanceDB.

`Store` writes and sees every commit; `Snapshot` reads one version of the table and never another, so that the steps of
a search agree with each other while others write. Row ids are stable: updates and `optimize` keep them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import IndexNotFoundError, InputError, ManifestError, StoreError
from manyvec.filters import quote
from manyvec.storage.schema import (
    FILTER_PREFIX,
    MANIFEST_KEY,
    Manifest,
    Row,
    assignments_of,
    codebook_table,
    ragged,
    row_columns,
    rows_of,
    schema_of,
    span_steps,
    spans_of,
    vectors_of,
)
from manyvec.timing import stage
from manyvec.vectors.batch import CodedBatch, StoredBatch, TokenBatch, all_finite, offsets_of
from manyvec.vectors.codebook import Assignments, Codebook
from manyvec.vectors.codec import Codec, bytes_per_token

if TYPE_CHECKING:
    import lancedb
    import pyarrow as pa

logger = logging.getLogger(__name__)

TABLE = "documents"
_CODEBOOK_KEY = "manyvec-codebook"
_CODEC_KEY = "manyvec-codec"
# 1,000 values in an IN (...) take LanceDB 6 ms, 10,000 take 40.
_IDS_PER_STATEMENT = 1000
# Bytes of token vectors read from disk at a time: where they are scored, and where they are kept in memory. Each of
# LanceDB's threads holds on to some memory of the largest read it had part in (`examples/benchmarks/growth.py`).
_WINDOW_BYTES = 4 * 2**20
LOAD_WINDOW_BYTES = 2**20
# The same where centroids are found for them: many at once have more in common.
BUILD_WINDOW_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Stored:
    """What is known of a stored document without reading its token vectors."""

    row_id: int
    metadata: str
    content_hash: str

    @property
    def text_hash(self) -> str:
        """The part of the hash that covers the text; see `ingest.content_hash`."""
        return self.content_hash.partition(":")[0]


@dataclass(frozen=True)
class RowStates:
    """Every row of a version, in the order of row ids.

    Attributes:
        row_ids: (n,) rising.
        updated: (n,) table version that last wrote the row; with the row id it names the row's content.
        n_tokens: (n,)
        ids: (n,) the documents' ids.
        is_coded: (n,) bool: the token vectors are kept in the codec's bytes, not as float16.
    """

    row_ids: NDArray[np.int64]
    updated: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    ids: NDArray[np.object_]
    is_coded: NDArray[np.bool_]


class Store:
    """The table of one index. May be shared by threads."""

    def __init__(self, uri: str, database: lancedb.DBConnection, table: Any, manifest: Manifest) -> None:
        self.uri = uri
        self.manifest = manifest
        self._database = database
        self._table = table
        # How token vectors are encoded, and for `residual` the codebook that finds their centroids.
        self._codec: Codec | None = None
        self._codec_book: Codebook | None = None

    @classmethod
    def create(cls, uri: str, manifest: Manifest) -> Store:
        """Make an empty table.

        Raises:
            InputError: there is one already.
            StoreError: the place cannot be written.
        """
        with _translated(f"create an index in {uri}"):
            database = _connect(uri)
            if TABLE in database.list_tables().tables:
                raise InputError(f"there is an index in {uri} already: use Index.open, or create(..., exist_ok=True)")
            table = database.create_table(TABLE, schema=schema_of(manifest))
            # Made now, so that words are cut the same way before and after `optimize`, which only extends them.
            for column, config in _column_indexes(manifest).items():
                table.create_index(column, config=config)
        return cls(uri, database, table, manifest)

    @classmethod
    def open(cls, uri: str) -> Store:
        """Open the table of an index.

        Raises:
            IndexNotFoundError: there is none.
            ManifestError: its manifest is missing, damaged, or of another format.
        """
        # LanceDB would make the folder.
        if "://" not in uri and not Path(uri).is_dir():
            raise IndexNotFoundError(f"there is no index at {uri}: no such folder. Index.create makes one")
        with _translated(f"open the index {uri}"):
            database = _connect(uri)
            if TABLE not in database.list_tables().tables:
                raise IndexNotFoundError(f"there is no index at {uri}: no table {TABLE!r}. Index.create makes one")
            table = database.open_table(TABLE)
            schema = table.schema
        written = (schema.field("tokens").metadata or {}) if "tokens" in schema.names else {}
        return cls(uri, database, table, Manifest.parse(written.get(MANIFEST_KEY.encode()), uri))

    @property
    def version(self) -> int:
        """The table's newest version, whoever wrote it."""
        with _translated(f"read the index {self.uri}"):
            return int(self._table.version)

    def snapshot(self) -> Snapshot:
        """The table as it is now, to be read while others write."""
        with _translated(f"read the index {self.uri}"):
            version = self._table.version
            table = self._database.open_table(TABLE)
            table.checkout(version)
        return Snapshot(self.uri, int(version), table, self)

    @property
    def codec(self) -> Codec | None:
        """How new token vectors are kept; None for float16, also where `residual` has no centroids yet.

        Raises:
            ManifestError: the centroids cannot be read, and without them nor can what was stored with them.
        """
        storage, dim = self.manifest.storage, self.manifest.dim
        if self._codec is None and storage == "residual":
            with _translated(f"read the index {self.uri}"):
                name = (self._table.schema.field("tokens").metadata or {}).get(_CODEC_KEY.encode(), b"").decode()
            if name:
                try:
                    self._codec_book = self._read_codebook(f"codec_{name}")
                except (RuntimeError, OSError, ValueError, KeyError) as error:
                    raise ManifestError(f"the centroids of the index {self.uri} cannot be read: {error}") from error
                self._codec = Codec(storage, dim, self._codec_book.centroids)
        elif self._codec is None and storage != "float16":
            self._codec = Codec(storage, dim)
        return self._codec

    def use_codec(self, codebook: Codebook) -> None:
        """Keep new token vectors around these centroids; without effect where there are centroids already."""
        name = codebook.fingerprint
        with _translated(f"write to the index {self.uri}"):
            self._table.checkout_latest()
            if self.codec is None:
                self._database.create_table(f"codec_{name}", codebook_table(codebook), mode="overwrite")
                self._table.update_field_metadata({"path": "tokens", "metadata": {_CODEC_KEY: name}})

    def upsert(self, rows: Sequence[Row], tokens: TokenBatch) -> None:
        """Write documents, in one commit; a row whose id is there already is replaced. Ids must differ.

        Args:
            tokens: their token vectors; they are encoded as the index keeps them.

        Raises:
            StoreError: nothing of this call was written.
        """
        with _translated(f"write to the index {self.uri}"):
            # Without a BTree on the key, its being a primary key keeps concurrent upserts from making duplicates.
            merge = self._table.merge_insert("id").use_index(False)
            merge.when_matched_update_all().when_not_matched_insert_all().execute(
                self._to_arrow({**row_columns(rows, self.manifest), **self._token_columns(tokens)})
            )

    def update_metadata(self, rows: Sequence[Row]) -> int:
        """Write metadata and filter columns of rows that are stored with this text; answers how many were.

        Token vectors stay where they are.
        """
        columns = row_columns(rows, self.manifest)
        return self._update({name: column for name, column in columns.items() if name not in ("text", "image")})

    def recode(self, ids: Sequence[str], hashes: Sequence[str], tokens: TokenBatch) -> int:
        """Keep token vectors as new ones are kept now, those of rows whose text is still the one hashed."""
        return self._update({"id": ids, "content_hash": hashes, **self._token_columns(tokens)})

    def _update(self, columns: Mapping[str, Any]) -> int:
        """Write some columns of rows and leave the others as they are; answers how many rows still had this text."""
        snapshot = self.snapshot()
        known = snapshot.find(columns["id"])
        there = [position for position, id in enumerate(columns["id"]) if id in known]
        if not there:
            return 0
        # Whole rows, because to write some of their columns LanceDB reads the whole table into memory, images included.
        kept = [name for name in self._table.schema.names if name not in columns]
        stored = snapshot.take([known[columns["id"][position]].row_id for position in there], kept)
        given = self._to_arrow(columns).take(there)
        rows = {name: (given if name in columns else stored)[name] for name in self._table.schema.names}
        # A row that someone has given another text or metadata since must not get the old one's.
        same = "target.content_hash = source.content_hash"
        same += " AND target.metadata = source.metadata" if "metadata" in kept else ""
        with _translated(f"write to the index {self.uri}"):
            merge = self._table.merge_insert("id").use_index(False).when_matched_update_all(where=same)
            return int(merge.execute(self._to_arrow(rows)).num_updated_rows)

    def _to_arrow(self, columns: Mapping[str, Any]) -> pa.Table:
        import pyarrow as pa

        schema = pa.schema([field for field in self._table.schema if field.name in columns])
        arrays = [
            column if isinstance(column, (pa.Array, pa.ChunkedArray)) else pa.array(column, type=field.type)
            for field in schema
            for column in [columns[field.name]]
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _token_columns(self, tokens: TokenBatch) -> dict[str, Any]:
        import pyarrow as pa

        spans = tokens.spans if tokens.spans is not None else np.full((tokens.n_tokens, 2), -1, np.int32)
        codec = self.codec
        columns = {"n_tokens": tokens.lengths, "spans": span_steps(spans, tokens.offsets)}
        if codec is None:
            with np.errstate(over="ignore"):
                vectors = tokens.vectors.astype(np.float16, copy=False)
            if not all_finite(vectors):
                raise InputError(
                    "token vectors hold values beyond 65,504, which float16 storage cannot hold: normalise them"
                )
            columns["tokens"] = ragged(vectors, tokens.offsets)
            codes = None
        else:
            columns["tokens"] = pa.nulls(len(tokens), self._table.schema.field("tokens").type)
            nearest = None if self._codec_book is None else self._codec_book.assign(tokens.vectors)
            codes = codec.encode(tokens.vectors, nearest)
        if self.manifest.storage != "float16":
            kind = self._table.schema.field("codes").type
            columns["codes"] = pa.nulls(len(tokens), kind) if codes is None else ragged(codes, tokens.offsets)
        if self.manifest.storage == "residual":
            columns["is_coded"] = [codes is not None] * len(tokens)
        return columns

    def delete(self, where: str) -> int:
        """Delete the rows for which the condition holds; answers how many."""
        with _translated(f"delete from the index {self.uri}"):
            return int(self._table.delete(where).num_deleted_rows)

    def find(self, ids: Sequence[str]) -> dict[str, Stored]:
        """What is stored under these ids, as of now."""
        return self.snapshot().find(ids)

    def assignments(self) -> Assignments | None:
        """The codebook in use and what it was last used on; None if there is none, or it cannot be read."""
        name = self.snapshot().codebook.partition(" ")[0]
        if not name:
            return None
        try:
            codebook = self._read_codebook(f"codebook_{name}")
            rows = self._database.open_table(f"assigned_{name}").to_arrow().combine_chunks()
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            logger.warning("the codebook %s of %s cannot be read (%s): every document is scored", name, self.uri, error)
            return None
        return assignments_of(codebook, rows)

    def _read_codebook(self, table: str) -> Codebook:
        vectors = self._database.open_table(table).to_arrow()["vector"].combine_chunks()
        codebook = Codebook(vectors_of(vectors, self.manifest.dim))
        if not table.endswith(f"_{codebook.fingerprint}"):
            raise ValueError(f"the fingerprint of {table} is {codebook.fingerprint}")
        return codebook

    def start_codebook(self, codebook: Codebook) -> None:
        """Write a codebook that nothing is assigned to yet; it is used once `use_codebook` names it."""
        import pyarrow as pa

        name = codebook.fingerprint
        assigned = {"row_id": pa.int64(), "updated": pa.int64(), "centroids": pa.list_(pa.uint16())}
        with _translated(f"write to the index {self.uri}"):
            # Overwritten, because a run that was killed, or damage, may have left tables of this name.
            self._database.create_table(f"codebook_{name}", codebook_table(codebook), mode="overwrite")
            self._database.create_table(f"assigned_{name}", schema=pa.schema(assigned), mode="overwrite")

    def add_assignments(self, assignments: Assignments) -> None:
        """Keep what was assigned to a codebook that has been started."""
        import pyarrow as pa

        columns = {
            "row_id": assignments.row_ids,
            "updated": assignments.updated,
            "centroids": pa.ListArray.from_arrays(
                pa.array(assignments.offsets.astype(np.int32)), pa.array(assignments.centroids)
            ),
        }
        with _translated(f"write to the index {self.uri}"):
            self._database.open_table(f"assigned_{assignments.codebook.fingerprint}").add(pa.table(columns))

    def use_codebook(self, name: str) -> None:
        """Point the index to a codebook that is completely written, and drop all others."""
        with _translated(f"write to the index {self.uri}"):
            self._table.checkout_latest()
            count = self._database.open_table(f"assigned_{name}").count_rows()
            self._table.update_field_metadata({"path": "tokens", "metadata": {_CODEBOOK_KEY: f"{name} {count}"}})
            for table in self._database.list_tables().tables:
                if table.startswith(("codebook_", "assigned_")) and not table.endswith(name):
                    self._database.drop_table(table)

    def optimize(self, keep: timedelta) -> None:
        """Merge small files, take new rows into the indexes, drop versions older than `keep`."""
        with _translated(f"optimize the index {self.uri}"):
            # A handle that missed another writer's delete fails here on every call.
            self._table.checkout_latest()
            # At 0 LanceDB warns of what our own docstring says.
            self._table.optimize(cleanup_older_than=max(keep, timedelta(milliseconds=1)))


@dataclass(frozen=True)
class Snapshot:
    """One version of the table."""

    uri: str
    version: int
    _table: Any
    _store: Store

    @property
    def codebook(self) -> str:
        """A name that changes whenever there is something new to read with `Store.assignments`."""
        with _translated(f"read the index {self.uri}"):
            return (self._table.schema.field("tokens").metadata or {}).get(_CODEBOOK_KEY.encode(), b"").decode()

    def count(self, where: str | None = None) -> int:
        with _translated(f"read the index {self.uri}"):
            return int(self._table.count_rows(where))

    def row_ids(self, where: str | None = None) -> NDArray[np.int64]:
        """(n,) rising, of the rows for which the condition holds."""
        with _translated(f"read the index {self.uri}"):
            query = self._table.search().select(["id"]).with_row_id(True).limit(None)
            found = (query.where(where) if where else query).to_arrow()["_rowid"]
        return np.sort(found.to_numpy().astype(np.int64))

    def states(self) -> RowStates:
        with _translated(f"read the index {self.uri}"):
            columns = ["id", "n_tokens", "_row_last_updated_at_version"]
            columns += ["is_coded"] if self._storage == "residual" else []
            table = self._table.search().select(columns).with_row_id(True).limit(None).to_arrow()
        row_ids = table["_rowid"].to_numpy().astype(np.int64)
        order = np.argsort(row_ids)
        is_coded = np.full(len(order), self._storage != "float16")
        if self._storage == "residual":
            is_coded = table["is_coded"].to_numpy()[order]
        return RowStates(
            row_ids[order],
            table["_row_last_updated_at_version"].to_numpy().astype(np.int64)[order],
            table["n_tokens"].to_numpy().astype(np.int64)[order],
            table["id"].to_numpy(zero_copy_only=False)[order],
            is_coded,
        )

    def find(self, ids: Sequence[str]) -> dict[str, Stored]:
        """What is stored under these ids; unknown ones are left out."""
        found: dict[str, Stored] = {}
        for where in where_ids(ids):
            with _translated(f"read the index {self.uri}"):
                query = self._table.search().select(["id", "metadata", "content_hash"]).with_row_id(True).limit(None)
                rows = query.where(where).to_arrow().to_pylist()
            found |= {r["id"]: Stored(r["_rowid"], r["metadata"], r["content_hash"]) for r in rows}
        return found

    def texts(self, row_ids: Sequence[int] | NDArray[np.int64], *, spans: bool = False) -> list[dict[str, Any]]:
        """`id`, `text`, `metadata` (as JSON), `is_page` and, if asked, `spans` of these rows, in this order."""
        columns = ["id", "text", "metadata", "content_hash"]
        table = self.take(row_ids, [*columns, "spans"] if spans else columns)
        # A page's hash has two parts, see `ingest.content_hash`: its image need not be read to know that it has one.
        rows = [row | {"is_page": ":" in row["content_hash"]} for row in table.select(columns).to_pylist()]
        if spans and rows:
            of_all, offsets = _spans_in(table)
            for row, own in zip(rows, np.split(of_all, offsets[1:-1]), strict=True):
                row["spans"] = own
        return rows

    def images(self, row_ids: Sequence[int] | NDArray[np.int64]) -> list[bytes | None]:
        """The files of these rows' page images, in this order; None for those that are texts."""
        if not self._store.manifest.images:
            return [None] * len(row_ids)
        return list(self.take(row_ids, ["image"])["image"].to_pylist())

    def tokens(self, row_ids: Sequence[int] | NDArray[np.int64]) -> TokenBatch:
        """float16 token vectors of these rows, in this order; decoded where they are kept in a codec's bytes."""
        if self._storage != "residual":
            return self.stored_tokens(row_ids, is_coded=self._storage != "float16").decoded()
        # Some may be kept as float16 still.
        is_coded = self.take(row_ids, ["is_coded"])["is_coded"].to_numpy()
        wanted = np.asarray(row_ids, np.int64)
        groups = [np.flatnonzero(is_coded), np.flatnonzero(~is_coded)]
        parts = [
            self.stored_tokens(wanted[positions], is_coded=coded).decoded()
            for positions, coded in zip(groups, (True, False), strict=True)
            if len(positions)
        ]
        return TokenBatch.concatenate(parts).select(np.argsort(np.concatenate(groups)))

    @property
    def _storage(self) -> str:
        return self._store.manifest.storage

    def token_bytes(self, states: RowStates, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) bytes of these documents' token vectors, on disk and in memory."""
        manifest = self._store.manifest
        coded, half = (bytes_per_token(storage, manifest.dim) for storage in (manifest.storage, "float16"))
        return states.n_tokens[documents] * np.where(states.is_coded[documents], coded, half)

    def stored_tokens(self, row_ids: Sequence[int] | NDArray[np.int64], *, is_coded: bool) -> StoredBatch:
        """Read the token vectors of rows, in this order, as they are stored.

        Args:
            row_ids: Rows that are all stored as codes or all as float16.
            is_coded: Whether they are stored as codes; see `RowStates`.
        """
        if not is_coded:
            return self.uncoded_tokens(row_ids)
        if (codec := self._store.codec) is None:
            raise ManifestError(f"the index {self.uri} holds codes, but its manifest names no centroids for them")
        codes, offsets = rows_of(self.take(row_ids, ["codes"])["codes"], np.uint8)
        return CodedBatch.unchecked(codes, offsets, codec)

    def uncoded_tokens(self, row_ids: Sequence[int] | NDArray[np.int64], *, spans: bool = False) -> TokenBatch:
        """Read the token vectors of rows that are stored as float16, in this order, with their spans if asked."""
        table = self.take(row_ids, ["tokens", "spans"] if spans else ["tokens"])
        vectors, offsets = rows_of(table["tokens"], np.float16)
        return TokenBatch.unchecked(vectors, offsets, _spans_in(table)[0] if spans else None)

    def match(self, text: str, limit: int, where: str | None = None) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """BM25 over the documents' words: row ids and scores of at most `limit` rows, in no order."""
        from lancedb.query import MatchQuery

        if limit < 1:  # which LanceDB takes for no limit
            return np.empty(0, np.int64), np.empty(0, np.float32)
        with _translated(f"search the index {self.uri}"):
            words = MatchQuery(text, "text")  # type: ignore[call-arg]  # its defaults are pydantic's
            # To bring ids as well would take half as long again.
            query = self._table.search(words, query_type="fts").select(["_score"]).with_row_id(True)
            found = (query.where(where) if where else query).limit(limit).to_arrow()
        return found["_rowid"].to_numpy().astype(np.int64), found["_score"].to_numpy()

    def nearest(self, tokens: NDArray[np.floating], limit: int, where: str | None = None) -> list[int]:
        """Row ids that LanceDB's own multivector search over the column `tokens` finds, best first."""
        if self._storage != "float16":
            raise InputError(f"LanceDB searches float16 token vectors; the index {self.uri} keeps codes")
        with _translated(f"search the index {self.uri}"):
            query = self._table.search(np.asarray(tokens, np.float16), vector_column_name="tokens")
            query = query.distance_type("cosine").select(["id"]).with_row_id(True)
            found = (query.where(where) if where else query).limit(limit).to_arrow()
        return [int(row_id) for row_id in found["_rowid"].to_pylist()]

    @stage("fetch")
    def take(self, row_ids: Sequence[int] | NDArray[np.int64], columns: list[str]) -> pa.Table:
        """Columns of these rows, in this order; a row may come twice."""
        wanted = np.asarray(row_ids, np.int64)
        rising, positions = np.unique(wanted, return_inverse=True)
        with _translated(f"read the index {self.uri}"):
            # take_row_ids answers in the order of storage, drops repeated ids, and leaves out unknown ones silently.
            table = self._table.take_row_ids(rising.tolist()).select(columns).with_row_id().to_arrow()
        found = table["_rowid"].to_numpy().astype(np.int64)
        if len(found) != len(rising):
            raise StoreError(f"{len(rising) - len(found)} of {len(rising)} rows are not in version {self.version}")
        order = np.argsort(found)[positions]
        return table if np.array_equal(order, np.arange(len(order))) else table.take(order)


def _spans_in(table: pa.Table) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """(n_tokens, 2) spans of all rows, and where each row's start."""
    chunks = table["spans"].chunks
    offsets = offsets_of(np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in chunks]) // 2)
    return spans_of(np.concatenate([chunk.flatten().to_numpy().reshape(-1, 2) for chunk in chunks]), offsets), offsets


def _column_indexes(manifest: Manifest) -> dict[str, Any]:
    from lancedb.index import FTS, Bitmap, BTree, LabelList

    indexes: dict[str, Any] = {"text": FTS(with_position=False)}
    for name, kind in manifest.columns.items():
        indexes[FILTER_PREFIX + name] = LabelList() if kind.is_list else Bitmap() if kind.scalar is bool else BTree()
    return indexes


def where_ids(ids: Sequence[str]) -> Iterator[str]:
    """Conditions that together name these ids, each small enough for one statement."""
    for start in range(0, len(ids), _IDS_PER_STATEMENT):
        yield f"id IN ({', '.join(quote(id) for id in ids[start : start + _IDS_PER_STATEMENT])})"


def windows(n_bytes: NDArray[np.int64], window_bytes: int = _WINDOW_BYTES) -> Iterator[slice]:
    """Runs of documents whose token vectors fill one window; a larger document makes a run of its own."""
    ends = np.cumsum(n_bytes)
    start = 0
    while start < len(n_bytes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + window_bytes, side="right")))
        yield slice(start, stop)
        start = stop


def disk_bytes(uri: str) -> int | None:
    """Size of an index in a folder; None for one in a bucket."""
    if "://" in uri:
        return None
    return sum(path.stat().st_size for path in Path(uri).rglob("*") if path.is_file())


def _connect(uri: str) -> lancedb.DBConnection:
    import lancedb

    return lancedb.connect(
        uri,
        storage_options={"new_table_enable_stable_row_ids": "true"},
        # Seeing other processes' commits costs 0.2 ms a look on a local disk.
        read_consistency_interval=timedelta(0),
    )


@contextmanager
def _translated(action: str) -> Iterator[None]:
    """Turn what LanceDB raises into one error that says what was being done."""
    try:
        yield
    except (InputError, StoreError, IndexNotFoundError, ManifestError):
        raise
    # LanceDB raises RuntimeError for most faults of the disk, ValueError for others.
    except (RuntimeError, OSError, ValueError) as error:
        raise StoreError(f"cannot {action}: {error}") from error
