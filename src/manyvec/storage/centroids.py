"""Tables of centroids beside the documents: those of `residual` codes, and those of the centroid lists.

A codebook is named by the hash of its centroids. `codec_NAME` holds the centroids that codes refer to; it is never
changed. `codebook_NAME` holds the centroids of the lists and `assigned_NAME` the centroids of each document. Metadata
of the documents' column `tokens` names the codebooks in use: LanceDB has no transaction over two tables, so a codebook
is written completely before that metadata points to it. Where the documents' table is called NAME instead of
`documents`, the others are called `NAME.codec_…` and so on.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from manyvec.errors import ManifestError, ShapeError, StoreError
from manyvec.storage.lance import Place, translated
from manyvec.storage.schema import Manifest, assignments_of, codebook_table, vectors_of
from manyvec.vectors.codebook import Assignments, Codebook
from manyvec.vectors.codec import Codec

if TYPE_CHECKING:
    import lancedb
    import pyarrow as pa
    from lancedb.table import Table

logger = logging.getLogger(__name__)

# Keys in the metadata of the column `tokens`. The first holds a codebook's name, and the number of rows and the version
# of its table of assignments.
ASSIGNMENTS_KEY = "manyvec-codebook"
_CODEC_KEY = "manyvec-codec"


class CentroidTables:
    """The codec of an index, and the codebook and assignments of its centroid lists."""

    def __init__(self, place: Place, manifest: Manifest, database: lancedb.DBConnection, documents: Table) -> None:
        self._uri = str(place)
        self._prefix = place.prefix
        self._manifest = manifest
        self._database = database
        self._documents = documents
        self._codec: Codec | None = None
        self._codec_codebook: Codebook | None = None

    def reconnect(self, database: lancedb.DBConnection, documents: Table) -> None:
        """Use another connection to the same index."""
        self._database, self._documents = database, documents

    def codec(self) -> Codec | None:
        """Return how new token vectors are encoded.

        Returns:
            None for `float16`, and for `residual` as long as it has no centroids.

        Raises:
            ManifestError: The centroids of `residual` cannot be read; the codes are lost without them.
        """
        storage, dim = self._manifest.storage, self._manifest.dim
        if self._codec is None and storage == "residual":
            with translated(f"read the index {self._uri}"):
                name = self._metadata(_CODEC_KEY)
            if name:
                try:
                    self._codec_codebook = self._read(f"{self._prefix}codec_{name}")
                except (RuntimeError, OSError, ValueError, KeyError) as error:
                    raise ManifestError(f"the centroids of the index {self._uri} cannot be read: {error}") from error
                self._codec = Codec(storage, dim, self._codec_codebook.centroids)
        elif self._codec is None and storage != "float16":
            self._codec = Codec(storage, dim)
        return self._codec

    def codec_codebook(self) -> Codebook | None:
        """Return the codebook that `residual` codes refer to; None for other codecs or before it exists."""
        self.codec()
        return self._codec_codebook

    def set_codec(self, codebook: Codebook) -> None:
        """Encode new token vectors relative to these centroids. Does nothing if the index already has centroids."""
        name = codebook.fingerprint
        with translated(f"write to the index {self._uri}"):
            self._documents.checkout_latest()
            if self.codec() is None:
                self._database.create_table(f"{self._prefix}codec_{name}", codebook_table(codebook), mode="overwrite")
                self._point(_CODEC_KEY, name)

    def assignments(self, key: str) -> Assignments | None:
        """Return the codebook of the centroid lists with each document's centroids.

        Args:
            key: Which codebook; see `Snapshot.assignments_key`.

        Returns:
            None if there is no codebook, or if it cannot be read, which is logged: every document is scored then.
        """
        if not (name := key.partition(" ")[0]):
            return None
        try:
            with translated(f"read the index {self._uri}"):
                codebook = self._read(f"{self._prefix}codebook_{name}")
                rows = self._database.open_table(f"{self._prefix}assigned_{name}").to_arrow().combine_chunks()
            return assignments_of(codebook, rows)
        except (StoreError, ShapeError, KeyError) as error:
            logger.warning(
                "the codebook %s of %s cannot be read (%s): every document is scored", name, self._uri, error
            )
            return None

    def start_assignments(self, codebook: Codebook) -> None:
        """Write a codebook without assignments. Searches use it once `set_assignments` names it."""
        name, nothing = codebook.fingerprint, np.empty(0, np.int64)
        empty = Assignments(codebook, nothing, nothing, np.zeros(1, np.int64), np.empty(0, np.uint16))
        with translated(f"write to the index {self._uri}"):
            # An interrupted run, or damage, may have left tables of this name.
            self._database.create_table(f"{self._prefix}codebook_{name}", codebook_table(codebook), mode="overwrite")
            self._database.create_table(f"{self._prefix}assigned_{name}", _assigned_table(empty), mode="overwrite")

    def add_assignments(self, assignments: Assignments) -> None:
        """Append the centroids of documents to a codebook's assignments."""
        with translated(f"write to the index {self._uri}"):
            table = self._database.open_table(f"{self._prefix}assigned_{assignments.codebook.fingerprint}")
            # Lists of earlier versions have no checksums.
            table.add(_assigned_table(assignments).select(table.schema.names))

    def replace_assignments(self, assignments: Assignments) -> None:
        """Replace a codebook's assignments, in one commit."""
        with translated(f"write to the index {self._uri}"):
            name = f"{self._prefix}assigned_{assignments.codebook.fingerprint}"
            self._database.create_table(name, _assigned_table(assignments), mode="overwrite")

    def optimize_assignments(self, codebook: Codebook, keep: timedelta) -> None:
        """Merge the files of a codebook's assignments, and drop versions older than `keep`."""
        with translated(f"optimize the index {self._uri}"):
            table = self._database.open_table(f"{self._prefix}assigned_{codebook.fingerprint}")
            table.optimize(cleanup_older_than=max(keep, timedelta(milliseconds=1)))

    def set_assignments(self, codebook: Codebook) -> None:
        """Let searches use a codebook whose assignments are complete, and drop all others."""
        name = codebook.fingerprint
        with translated(f"write to the index {self._uri}"):
            self._documents.checkout_latest()
            assigned = self._database.open_table(f"{self._prefix}assigned_{name}")
            # The version makes the value differ when only the assignments changed: it tells readers to read them again.
            self._point(ASSIGNMENTS_KEY, f"{name} {assigned.count_rows()} {assigned.version}")
            self._drop_assignments(except_for=name)

    def remove_assignments(self) -> None:
        """Let searches do without centroid lists, and drop their tables."""
        with translated(f"write to the index {self._uri}"):
            self._documents.checkout_latest()
            self._point(ASSIGNMENTS_KEY, "")
            self._drop_assignments()

    def _drop_assignments(self, except_for: str | None = None) -> None:
        # Other indexes in this database have tables with other prefixes.
        starts = (f"{self._prefix}codebook_", f"{self._prefix}assigned_")
        for table in self._database.list_tables().tables:
            if table.startswith(starts) and not (except_for and table.endswith(except_for)):
                self._database.drop_table(table)

    def _metadata(self, key: str) -> str:
        return str((self._documents.schema.field("tokens").metadata or {}).get(key.encode(), b"").decode())

    def _point(self, key: str, value: str) -> None:
        self._documents.update_field_metadata({"path": "tokens", "metadata": {key: value}})

    def _read(self, table: str) -> Codebook:
        vectors = self._database.open_table(table).to_arrow()["vector"].combine_chunks()
        codebook = Codebook(vectors_of(vectors, self._manifest.dim))
        if not table.endswith(f"_{codebook.fingerprint}"):
            raise ValueError(f"the fingerprint of {table} is {codebook.fingerprint}")
        return codebook


def _assigned_table(assignments: Assignments) -> pa.Table:
    import pyarrow as pa

    offsets = pa.array(assignments.offsets.astype(np.int32))
    return pa.table(
        {
            "row_id": assignments.row_ids,
            "updated": assignments.updated,
            "centroids": pa.ListArray.from_arrays(offsets, pa.array(assignments.centroids)),
            "checksum": assignments.checksums(),
        }
    )
