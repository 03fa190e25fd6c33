"""The store: one LanceDB table of documents, and the only module that knows LanceDB.

`Store` writes and sees every commit; `Snapshot` reads one version of the table and never another, so that the steps of
a search agree with each other while others write. Row ids are stable: updates and `optimize` keep them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.codebook import Assignments, Codebook
from manyvec.errors import IndexNotFoundError, InputError, ManifestError, StoreError
from manyvec.filters import ColumnType, quote
from manyvec.timing import stage
from manyvec.tokens import TokenBatch, all_finite, offsets_of

if TYPE_CHECKING:
    import lancedb
    import pyarrow as pa

logger = logging.getLogger(__name__)

TABLE = "documents"
FORMAT = 1
# Declared filter columns stand beside our own in the table; the prefix lets users call one "id" or "text".
FILTER_PREFIX = "meta_"
_MANIFEST_KEY = "manyvec"
_CODEBOOK_KEY = "manyvec-codebook"
# 1,000 values in an IN (...) take LanceDB 6 ms, 10,000 take 40.
_IDS_PER_STATEMENT = 1000


@dataclass(frozen=True)
class Manifest:
    """What an index says of itself; kept with the table and checked when it is opened."""

    model: str
    fingerprint: str
    dim: int
    filters: dict[str, str] = field(default_factory=dict)
    storage: str = "float16"
    format: int = FORMAT
    library: str = ""

    def __post_init__(self) -> None:
        for name in self.filters:
            # LanceDB reads a dot as a path into a struct, and a backtick breaks every update.
            if not name or any(c in name for c in ".`") or not name.isprintable():
                raise InputError(
                    f"a filter column cannot be called {name!r}: leave out dots, backticks and line breaks"
                )

    @property
    def columns(self) -> dict[str, ColumnType]:
        return {name: ColumnType.parse(written) for name, written in self.filters.items()}

    @classmethod
    def parse(cls, written: bytes | None, uri: str) -> Manifest:
        if written is None:
            raise ManifestError(f"the table {TABLE!r} in {uri} has no manyvec manifest: another program wrote it")
        try:
            values = json.loads(written)
            version = values["format"]
            if version != FORMAT:
                raise ManifestError(
                    f"the index {uri} has format {version}, this manyvec reads format {FORMAT}: "
                    "install the manyvec that wrote it, or build the index again"
                )
            manifest = cls(**values)
            assert isinstance(manifest.dim, int) and isinstance(manifest.model, str) and manifest.columns is not None
        except ManifestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise ManifestError(f"the manifest of the index {uri} is damaged: {error!r}. Build it again") from error
        return manifest


@dataclass(frozen=True)
class Row:
    """One document as it is stored, apart from its token vectors."""

    id: str
    text: str
    metadata: str
    content_hash: str
    filters: dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """What is known of a stored document without reading its token vectors."""

    row_id: int
    metadata: str
    content_hash: str


@dataclass(frozen=True)
class RowStates:
    """Every row of a version, in the order of row ids.

    Attributes:
        row_ids: (n,) rising.
        updated: (n,) table version that last wrote the row; with the row id it names the row's content.
        n_tokens: (n,)
        ids: (n,) the documents' ids.
    """

    row_ids: NDArray[np.int64]
    updated: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    ids: NDArray[np.object_]


class Store:
    """The table of one index. May be shared by threads."""

    def __init__(self, uri: str, database: lancedb.DBConnection, table: Any, manifest: Manifest) -> None:
        self.uri = uri
        self.manifest = manifest
        self._database = database
        self._table = table

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
            table = database.create_table(TABLE, schema=_schema(manifest))
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
        return cls(uri, database, table, Manifest.parse(written.get(_MANIFEST_KEY.encode()), uri))

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
        return Snapshot(self.uri, int(version), table)

    def upsert(self, rows: Sequence[Row], tokens: TokenBatch) -> None:
        """Write documents, in one commit; a row whose id is there already is replaced. Ids must differ.

        Raises:
            StoreError: nothing of this call was written.
        """
        with _translated(f"write to the index {self.uri}"):
            # Without a BTree on the key, its being a primary key keeps concurrent upserts from making duplicates.
            merge = self._table.merge_insert("id").use_index(False)
            merge.when_matched_update_all().when_not_matched_insert_all().execute(
                _to_arrow(rows, tokens, self._table.schema, self.manifest)
            )

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
            vectors = self._database.open_table(f"codebook_{name}").to_arrow()["vector"].combine_chunks()
            codebook = Codebook(_values_of(vectors, self.manifest.dim))
            if codebook.fingerprint != name:
                raise ValueError(f"its fingerprint is {codebook.fingerprint}")
            rows = self._database.open_table(f"assigned_{name}").to_arrow().combine_chunks()
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            logger.warning("the codebook %s of %s cannot be read (%s): every document is scored", name, self.uri, error)
            return None
        return _to_assignments(codebook, rows)

    def start_codebook(self, codebook: Codebook) -> None:
        """Write a codebook that nothing is assigned to yet; it is used once `use_codebook` names it."""
        import pyarrow as pa

        name = codebook.fingerprint
        vectors = pa.FixedSizeListArray.from_arrays(codebook.centroids.ravel(), codebook.dim)
        assigned = {"row_id": pa.int64(), "updated": pa.int64(), "centroids": pa.list_(pa.uint16())}
        with _translated(f"write to the index {self.uri}"):
            # Overwritten, because a run that was killed, or damage, may have left tables of this name.
            self._database.create_table(f"codebook_{name}", pa.table({"vector": vectors}), mode="overwrite")
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
            table = self._table.search().select(columns).with_row_id(True).limit(None).to_arrow()
        row_ids = table["_rowid"].to_numpy().astype(np.int64)
        order = np.argsort(row_ids)
        return RowStates(
            row_ids[order],
            table["_row_last_updated_at_version"].to_numpy().astype(np.int64)[order],
            table["n_tokens"].to_numpy().astype(np.int64)[order],
            table["id"].to_numpy(zero_copy_only=False)[order],
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

    def texts(self, row_ids: Sequence[int] | NDArray[np.int64]) -> list[dict[str, str]]:
        """`id`, `text` and `metadata` (as JSON) of these rows, in this order."""
        return [dict(row) for row in self._take(row_ids, ["id", "text", "metadata"]).to_pylist()]

    def tokens(self, row_ids: Sequence[int] | NDArray[np.int64], *, spans: bool = False) -> TokenBatch:
        """Token vectors of these rows, in this order, as stored."""
        table = self._take(row_ids, ["tokens", "spans"] if spans else ["tokens"])
        chunks = table["tokens"].chunks
        vectors = [_values(chunk, np.float16) for chunk in chunks]
        lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
        return TokenBatch.unchecked(
            vectors[0] if len(vectors) == 1 else np.concatenate(vectors),
            offsets_of(np.concatenate(lengths)),
            np.concatenate([_values(chunk, np.int32) for chunk in table["spans"].chunks]) if spans else None,
        )

    def match(self, text: str, limit: int, where: str | None = None) -> list[tuple[int, float]]:
        """BM25 over the documents' words: (row id, score) of at most `limit` rows, best first."""
        from lancedb.query import MatchQuery

        with _translated(f"search the index {self.uri}"):
            words = MatchQuery(text, "text")  # type: ignore[call-arg]  # its defaults are pydantic's
            query = self._table.search(words, query_type="fts").select(["id", "_score"]).with_row_id(True)
            found = (query.where(where) if where else query).limit(limit).to_arrow()
        ranked = zip(found["_rowid"].to_pylist(), found["_score"].to_pylist(), found["id"].to_pylist(), strict=True)
        return [(row_id, score) for row_id, score, _ in sorted(ranked, key=lambda row: (-row[1], row[2]))]

    @stage("fetch")
    def _take(self, row_ids: Sequence[int] | NDArray[np.int64], columns: list[str]) -> pa.Table:
        wanted = np.asarray(row_ids, np.int64)
        rising, places = np.unique(wanted, return_inverse=True)
        with _translated(f"read the index {self.uri}"):
            # take_row_ids answers in the order of storage, drops repeated ids, and leaves out unknown ones silently.
            table = self._table.take_row_ids(rising.tolist()).select(columns).with_row_id().to_arrow()
        found = table["_rowid"].to_numpy().astype(np.int64)
        if len(found) != len(rising):
            raise StoreError(f"{len(rising) - len(found)} of {len(rising)} rows are not in version {self.version}")
        order = np.argsort(found)[places]
        return table if np.array_equal(order, np.arange(len(order))) else table.take(order)


def where_ids(ids: Sequence[str]) -> Iterator[str]:
    """Conditions that together name these ids, each small enough for one statement."""
    for start in range(0, len(ids), _IDS_PER_STATEMENT):
        yield f"id IN ({', '.join(quote(id) for id in ids[start : start + _IDS_PER_STATEMENT])})"


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


def _schema(manifest: Manifest) -> pa.Schema:
    import pyarrow as pa

    scalars = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    scalars[datetime] = pa.timestamp("us", "UTC")
    # Compression would save 8 % of the disk and cost 2.4x at read.
    token_metadata = {_MANIFEST_KEY: json.dumps(asdict(manifest)), "lance-encoding:compression": "none"}
    fields = [
        pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"}),
        pa.field("text", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("tokens", pa.list_(pa.list_(pa.float16(), manifest.dim)), metadata=token_metadata),
        pa.field("spans", pa.list_(pa.list_(pa.int32(), 2))),
    ]
    for name, kind in manifest.columns.items():
        scalar = scalars[kind.scalar]
        fields.append(pa.field(FILTER_PREFIX + name, pa.list_(scalar) if kind.is_list else scalar))
    return pa.schema(fields)


def _column_indexes(manifest: Manifest) -> dict[str, Any]:
    from lancedb.index import FTS, Bitmap, BTree, LabelList

    indexes: dict[str, Any] = {"text": FTS(with_position=False)}
    for name, kind in manifest.columns.items():
        indexes[FILTER_PREFIX + name] = LabelList() if kind.is_list else Bitmap() if kind.scalar is bool else BTree()
    return indexes


def _to_arrow(rows: Sequence[Row], tokens: TokenBatch, schema: pa.Schema, manifest: Manifest) -> pa.Table:
    import pyarrow as pa

    with np.errstate(over="ignore"):
        vectors = tokens.vectors.astype(np.float16, copy=False)
    if not all_finite(vectors):
        raise InputError("token vectors hold values beyond 65,504, which float16 storage cannot hold: normalise them")
    spans = tokens.spans if tokens.spans is not None else np.full((tokens.n_tokens, 2), -1, np.int32)
    offsets = pa.array(tokens.offsets.astype(np.int32))
    columns = {
        "id": [row.id for row in rows],
        "text": [row.text for row in rows],
        "metadata": [row.metadata for row in rows],
        "content_hash": [row.content_hash for row in rows],
        "n_tokens": tokens.lengths,
        "tokens": pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(vectors.ravel(), tokens.dim)),
        "spans": pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(spans.ravel(), 2)),
    }
    columns |= {FILTER_PREFIX + name: [row.filters[name] for row in rows] for name in manifest.filters}
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, type=schema.field(name).type)
        for name, column in ((name, columns[name]) for name in schema.names)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _values(chunk: pa.ListArray, dtype: type) -> NDArray[Any]:
    """(n_tokens, width) of a list array of fixed-size lists, without a copy."""
    width = chunk.type.value_type.list_size
    return np.asarray(chunk.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, width), dtype)


def _values_of(array: Any, dim: int) -> NDArray[np.float32]:
    """(n, dim) of a fixed-size-list array."""
    return np.ascontiguousarray(array.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim), np.float32)


def _to_assignments(codebook: Codebook, rows: pa.Table) -> Assignments:
    """Rows as they were appended; of a row assigned several times the last counts."""
    row_ids, updated = rows["row_id"].to_numpy(), rows["updated"].to_numpy()
    order = np.lexsort((updated, row_ids))
    is_last = np.append(row_ids[order][1:] != row_ids[order][:-1], len(order) > 0)
    rows = rows.take(order[is_last]).combine_chunks()
    lists = rows["centroids"].chunk(0) if len(rows) else None
    centroids = np.empty(0, np.uint16) if lists is None else lists.flatten().to_numpy()
    lengths = [] if lists is None else np.diff(lists.offsets.to_numpy())
    return Assignments(codebook, row_ids[order[is_last]], updated[order[is_last]], offsets_of(lengths), centroids)


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
