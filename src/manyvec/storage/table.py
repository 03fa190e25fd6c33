"""`Store`: the table of an index, which it creates, opens and writes to. Row ids stay the same through updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manyvec.errors import IndexNotFoundError, InputError
from manyvec.storage.centroids import CentroidTables
from manyvec.storage.lance import connect, translated
from manyvec.storage.schema import (
    FILTER_PREFIX,
    MANIFEST_KEY,
    Manifest,
    Row,
    ragged,
    row_columns,
    schema_of,
    span_steps,
)
from manyvec.storage.snapshot import Snapshot, Stored
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.codec import check_range

if TYPE_CHECKING:
    import lancedb
    import pyarrow as pa
    from lancedb.table import Table

TABLE = "documents"


class Store:
    """The table of one index. May be shared by threads.

    Attributes:
        uri: The database.
        manifest: The index's manifest.
        centroids: The tables of centroids beside the documents.
    """

    def __init__(self, uri: str, database: lancedb.DBConnection, table: Table, manifest: Manifest) -> None:
        self.uri = uri
        self.manifest = manifest
        self.centroids = CentroidTables(uri, manifest, database, table)
        self._database = database
        self._table = table

    @classmethod
    def create(cls, uri: str, manifest: Manifest) -> Store:
        """Create an empty table.

        Raises:
            InputError: There is already an index.
            StoreError: The database cannot be written.
        """
        with translated(f"create an index in {uri}"):
            database = connect(uri)
            if TABLE in database.list_tables().tables:
                raise InputError(f"there is an index in {uri} already: use Index.open, or create(..., exist_ok=True)")
            table = database.create_table(TABLE, schema=schema_of(manifest))
            # Created now, so that text is split into words the same way before and after `optimize`.
            for column, config in _column_indexes(manifest).items():
                table.create_index(column, config=config)
        return cls(uri, database, table, manifest)

    @classmethod
    def open(cls, uri: str) -> Store:
        """Open the table of an index.

        Raises:
            IndexNotFoundError: There is no index.
            ManifestError: The manifest is missing, damaged, or of an unknown format.
        """
        # LanceDB would create the folder.
        if "://" not in uri and not Path(uri).is_dir():
            raise IndexNotFoundError(f"there is no index at {uri}: no such folder. Index.create makes one")
        with translated(f"open the index {uri}"):
            database = connect(uri)
            if TABLE not in database.list_tables().tables:
                raise IndexNotFoundError(f"there is no index at {uri}: no table {TABLE!r}. Index.create makes one")
            table = database.open_table(TABLE)
            schema = table.schema
        written = (schema.field("tokens").metadata or {}) if "tokens" in schema.names else {}
        return cls(uri, database, table, Manifest.parse(written.get(MANIFEST_KEY.encode()), uri))

    @property
    def version(self) -> int:
        """The newest version of the table, whoever wrote it."""
        with translated(f"read the index {self.uri}"):
            return int(self._table.version)

    def snapshot(self) -> Snapshot:
        """Return the newest version, to be read while others write."""
        with translated(f"read the index {self.uri}"):
            version = self._table.version
            table = self._database.open_table(TABLE)
            table.checkout(version)
        return Snapshot(self.uri, int(version), self.manifest, table, self.centroids.codec)

    def find(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Return what is stored under these ids now; unknown ids are left out."""
        return self.snapshot().find(ids)

    def upsert(self, rows: Sequence[Row], tokens: TokenBatch) -> None:
        """Insert documents in one commit; a row whose id exists is replaced.

        Args:
            rows: Documents with distinct ids.
            tokens: Their token vectors, which are encoded as the index stores them.

        Raises:
            StoreError: Nothing of this call was written.
        """
        with translated(f"write to the index {self.uri}"):
            # Concurrent upserts of a new id insert it twice if they use a BTree index on it; the primary key prevents
            # that only without the index.
            merge = self._table.merge_insert("id").use_index(False)
            merge.when_matched_update_all().when_not_matched_insert_all().execute(
                self._to_arrow({**row_columns(rows, self.manifest), **self._token_columns(tokens)})
            )

    def update_metadata(self, rows: Sequence[Row]) -> int:
        """Write metadata and filter columns of stored rows, without their token vectors.

        Returns:
            How many of the rows were still stored with the same text and image; the others are left as they are.
        """
        columns = row_columns(rows, self.manifest)
        return self._update({name: column for name, column in columns.items() if name not in ("text", "image")})

    def recode(self, ids: Sequence[str], content_hashes: Sequence[str], tokens: TokenBatch) -> int:
        """Write token vectors of stored rows as the index encodes new ones.

        Args:
            ids: Distinct ids.
            content_hashes: Of the texts that the vectors belong to. A row whose text has changed since is left alone.
            tokens: Their token vectors.

        Returns:
            How many rows were written.
        """
        return self._update({"id": ids, "content_hash": content_hashes, **self._token_columns(tokens)})

    def delete(self, where: str) -> int:
        """Delete the rows that satisfy a condition, and return how many there were."""
        with translated(f"delete from the index {self.uri}"):
            result = self._table.delete(where)
            return int(result.num_deleted_rows)  # type: ignore[attr-defined]  # missing in lancedb's stubs

    def optimize(self, keep: timedelta) -> None:
        """Merge small files, index new rows, and drop versions older than `keep`."""
        with translated(f"optimize the index {self.uri}"):
            # A handle that has not seen another writer's delete would fail here on every call.
            self._table.checkout_latest()
            # At 0 LanceDB warns of what our docstring says.
            self._table.optimize(cleanup_older_than=max(keep, timedelta(milliseconds=1)))

    def _update(self, columns: Mapping[str, Any]) -> int:
        """Write some columns of rows whose text is unchanged, and return how many those were."""
        snapshot = self.snapshot()
        known = snapshot.find(columns["id"])
        stored_at = [position for position, id in enumerate(columns["id"]) if id in known]
        if not stored_at:
            return 0
        # Whole rows: to write some of their columns, LanceDB would read the whole table into memory, images included.
        kept = [name for name in self._table.schema.names if name not in columns]
        stored = snapshot.take([known[columns["id"][position]].row_id for position in stored_at], kept)
        new = self._to_arrow(columns).take(stored_at)
        rows = {name: (new if name in columns else stored)[name] for name in self._table.schema.names}
        # Someone may have changed text or metadata since they were read: such a row must not get the old ones back.
        unchanged = "target.content_hash = source.content_hash"
        unchanged += " AND target.metadata = source.metadata" if "metadata" in kept else ""
        with translated(f"write to the index {self.uri}"):
            merge = self._table.merge_insert("id").use_index(False).when_matched_update_all(where=unchanged)
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
        codec = self.centroids.codec()
        columns = {"n_tokens": tokens.lengths, "spans": span_steps(spans, tokens.offsets)}
        if codec is None:
            check_range(tokens.vectors, "float16")
            columns["tokens"] = ragged(tokens.vectors.astype(np.float16, copy=False), tokens.offsets)
            codes = None
        else:
            columns["tokens"] = pa.nulls(len(tokens), self._table.schema.field("tokens").type)
            codebook = self.centroids.codec_codebook()
            codes = codec.encode(tokens.vectors, None if codebook is None else codebook.assign(tokens.vectors))
        if self.manifest.storage != "float16":
            kind = self._table.schema.field("codes").type
            columns["codes"] = pa.nulls(len(tokens), kind) if codes is None else ragged(codes, tokens.offsets)
        if self.manifest.storage == "residual":
            columns["is_coded"] = [codes is not None] * len(tokens)
        return columns


def _column_indexes(manifest: Manifest) -> dict[str, Any]:
    """Return LanceDB's index settings for the text and each filter column."""
    from lancedb.index import FTS, Bitmap, BTree, LabelList

    indexes: dict[str, Any] = {"text": FTS(with_position=False)}
    for name, kind in manifest.columns.items():
        indexes[FILTER_PREFIX + name] = LabelList() if kind.is_list else Bitmap() if kind.scalar is bool else BTree()
    return indexes
