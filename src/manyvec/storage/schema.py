"""What a row of an index holds: the manifest, the schema of the table, and conversions to and from Arrow."""

from __future__ import annotations

import hashlib
import json
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, ManifestError, ShapeError
from manyvec.filters import ColumnType
from manyvec.filters.columns import is_column_name, parse_columns, value_at
from manyvec.filters.values import read_metadata
from manyvec.models.families import lexical_weight
from manyvec.models.precomputed import Vectors
from manyvec.models.prefix import with_dim
from manyvec.models.protocol import Encoder, ImageReader
from manyvec.storage.words import word_fields
from manyvec.vectors.batch import offsets_of
from manyvec.vectors.codebook import Assignments, Codebook
from manyvec.vectors.codec import STORAGES, bytes_per_token

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2
# Format 1 called the filter columns `filters`.
_READ_FORMATS = (1, 2)
# Filter columns are in the same table as our own columns; the prefix lets users call one "id" or "text".
_FILTER_PREFIX = "meta_"
MANIFEST_KEY = "manyvec"


@dataclass(frozen=True)
class Manifest:
    """Description of an index, stored in the metadata of the column `tokens` and checked when the index is opened.

    Attributes:
        model: Name of the encoder.
        fingerprint: Hash of the encoder's weights and settings.
        dim: Dimension of the token vectors.
        filter_columns: Types of the filter columns, as `ColumnType.parse` reads them.
        storage: How token vectors are stored; one of `codec.STORAGES`.
        pool_factor: One in this many token vectors of a document is kept.
        images: Whether the table has a column for page images.
        format: Version of the table's layout and of this description.
        library: Version of manyvec that created the index.
        identity: Random string, so that another index at the same URI is told apart; empty in format 1.
        lexical_weight: Share of BM25 in searches that name none.

    Raises:
        InputError: An unknown storage, a pool factor below 1, or a filter column whose name LanceDB cannot hold.
    """

    model: str
    fingerprint: str
    dim: int
    filter_columns: dict[str, str] = field(default_factory=dict)
    storage: str = "float16"
    pool_factor: float = 1
    images: bool = False
    format: int = FORMAT
    library: str = ""
    identity: str = ""
    lexical_weight: float = 0

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            raise InputError(f"storage must be one of {', '.join(STORAGES)}, got {self.storage!r}")
        if not self.pool_factor >= 1:
            raise InputError(f"pool_factor must be 1 or more, got {self.pool_factor!r}")
        stored: dict[str, str] = {}
        for name in self.filter_columns:
            if not is_column_name(name):
                raise InputError(
                    f"a filter column cannot be called {name!r}: leave out backticks, line breaks and repeated dots"
                )
            if (other := stored.setdefault(stored_as(name), name)) != name:
                raise InputError(f"the filter columns {other!r} and {name!r} cannot be told apart: leave one out")

    @classmethod
    def of(cls, encoder: Encoder, filter_columns: Mapping[str, Any], *, storage: str, pool_factor: float) -> Manifest:
        """Return the description of a new index.

        Args:
            encoder: Encoder of its documents.
            filter_columns: Metadata keys with their types; see `Index.create`.
            storage: How token vectors are stored.
            pool_factor: One in this many token vectors of a document is kept.
        """
        return cls(
            model=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
            filter_columns={name: str(kind) for name, kind in parse_columns(filter_columns).items()},
            storage=storage,
            pool_factor=pool_factor,
            images=isinstance(encoder, ImageReader),
            library=package_version("manyvec"),
            lexical_weight=0 if isinstance(encoder, Vectors) else lexical_weight(encoder.name),
        )

    def identified(self) -> Manifest:
        """Return the manifest in the current format, with a new identity."""
        return replace(self, format=FORMAT, identity=secrets.token_hex(16))

    def to_json(self) -> str:
        """Return the manifest as `parse` reads it."""
        return json.dumps(asdict(self))

    def fitted(self, encoder: Encoder, uri: str) -> Encoder:
        """Return the encoder that the index was built with: this one, or its first dimensions.

        Raises:
            ManifestError: The index was built with another encoder.
        """
        can_be_cut = encoder.dim > self.dim and not isinstance(encoder, Vectors)
        fitted = with_dim(encoder, self.dim) if can_be_cut else encoder
        if fitted.dim != self.dim or fitted.fingerprint != self.fingerprint:
            same_name = " (other weights or settings under the same name)" if encoder.name == self.model else ""
            raise ManifestError(
                f"the index {uri} holds {self.dim}-dim vectors of {self.model}; the encoder is "
                f"{encoder.name} ({encoder.dim}-dim){same_name}. Open it with {self.model}, or build a new index."
            )
        return fitted

    def check_dim(self, dim: int | None, uri: str) -> None:
        """Raise `ManifestError` if a dim is asked for that the index does not have."""
        if dim not in (None, self.dim):
            raise ManifestError(f"the index {uri} has {self.dim} dims, not {dim}: leave dim out, or build a new index")

    def with_columns(self, columns: Mapping[str, str]) -> Manifest:
        """Return the manifest with further filter columns."""
        return replace(self, filter_columns={**self.filter_columns, **columns})

    @cached_property
    def columns(self) -> dict[str, ColumnType]:
        """The filter columns with parsed types."""
        return {name: ColumnType.parse(written) for name, written in self.filter_columns.items()}

    @classmethod
    def parse(cls, written: bytes | None, uri: str) -> Manifest:
        """Read the manifest of an index.

        Args:
            written: JSON; None if the table has none.
            uri: The index, for error messages.

        Raises:
            ManifestError: It is missing, damaged, or of an unknown format.
        """
        if written is None:
            raise ManifestError(f"the table 'documents' in {uri} has no manyvec manifest: another program wrote it")
        try:
            values = json.loads(written)
            version = values["format"]
            if version not in _READ_FORMATS:
                raise ManifestError(
                    f"the index {uri} has format {version}, this manyvec reads formats 1 and 2: "
                    "install the manyvec that wrote it, or build the index again"
                )
            if version == 1:
                values["filter_columns"] = values.pop("filters", {})
            # Indexes of before this was recorded.
            if "lexical_weight" not in values:
                values["lexical_weight"] = lexical_weight(values["model"])
            manifest = cls(**values)
            assert isinstance(manifest.dim, int) and isinstance(manifest.model, str) and manifest.columns is not None
            assert 0 <= manifest.lexical_weight <= 1
        except ManifestError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise ManifestError(f"the manifest of the index {uri} is damaged: {error!r}. Build it again") from error
        return manifest


@dataclass(frozen=True)
class Row:
    """A document as it is stored, without its token vectors.

    Attributes:
        id: Id of the document.
        text: Its text.
        metadata: Its metadata as JSON.
        content_hash: See `content_hash`.
        filter_values: Values of all filter columns; None for a missing one.
        image: Page image as the bytes of a file.
        vectors: (n_tokens, dim) token vectors that came with the document; None if it has to be encoded.
        spans: (n_tokens, 2) spans of these vectors, if they are known.
    """

    id: str
    text: str
    metadata: str
    content_hash: str
    filter_values: dict[str, Any]
    image: bytes | None = None
    vectors: NDArray[np.floating] | None = None
    spans: NDArray[np.int32] | None = None


def stored_as(name: str) -> str:
    """Return what a filter column is called in the table. LanceDB reads a dot as a path into a struct."""
    return _FILTER_PREFIX + name.replace(".", "->")


def filter_value(metadata: Mapping[str, Any], name: str, kind: ColumnType, id: str, *, is_stored: bool = False) -> Any:
    """Return the value of a document's filter column.

    Args:
        metadata: Metadata of the document.
        name: Name of the column.
        kind: Type of the column.
        id: Id of the document, for the error message.
        is_stored: Whether the metadata was stored before the column was declared. Strings of files are then read as
            numbers, which `manyvec index` would have done.

    Raises:
        InputError: The value has another type.
    """
    return kind.convert(value_at(metadata, name), f"document {id!r}: metadata[{name!r}]", reads_strings=is_stored)


def content_hash(text: str, image: bytes | None = None, vectors: bytes | None = None) -> str:
    """Return the hashes of a document's text, image and given vectors, with colons between them.

    That of an image is empty if only vectors follow; what is missing at the end is left out.
    """
    of_text = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    if image is None and vectors is None:
        return of_text
    others = ["" if part is None else hashlib.blake2b(part, digest_size=16).hexdigest() for part in (image, vectors)]
    return ":".join([of_text, *others]).rstrip(":")


def image_hash(hashes: str) -> str:
    """Return the part of a `content_hash` that covers the image; empty if there is none."""
    return hashes.split(":")[1] if ":" in hashes else ""


def metadata_checksum(id: str, metadata: str) -> int:
    """Return the CRC-32 of an id and of metadata as JSON."""
    return zlib.crc32(f"{id}\0{metadata}".encode())


def schema_of(manifest: Manifest) -> pa.Schema:
    """Return the schema of the documents' table."""
    import pyarrow as pa

    # Compression would save 8 % of the disk and make reads take 2.4 times as long.
    token_metadata = {MANIFEST_KEY: manifest.to_json(), "lance-encoding:compression": "none"}
    fields = [
        pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"}),
        pa.field("text", pa.string(), nullable=False),
        pa.field("metadata", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("n_tokens", pa.int32(), nullable=False),
        pa.field("tokens", pa.list_(pa.list_(pa.float16(), manifest.dim)), metadata=token_metadata),
        # Flat, because LanceDB does not compress lists of fixed-size lists: 1 byte per token instead of 8.
        pa.field("spans", pa.list_(pa.uint32())),
        # LanceDB hands damaged bytes on as they are. Null, or without these columns, for what others have written.
        pa.field("metadata_checksum", pa.uint32()),
        pa.field("vectors_checksum", pa.uint32()),
        *word_fields(),
    ]
    if manifest.storage != "float16":
        codes = pa.list_(pa.list_(pa.uint8(), bytes_per_token(manifest.storage, manifest.dim)))
        fields.append(pa.field("codes", codes, metadata={"lance-encoding:compression": "none"}))
    if manifest.storage == "residual":
        # False for rows that are still float16, written before the centroids existed.
        fields.append(pa.field("is_coded", pa.bool_(), nullable=False))
    if manifest.images:
        # Image files are compressed already.
        fields.append(pa.field("image", pa.large_binary(), metadata={"lance-encoding:compression": "none"}))
    return pa.schema([*fields, *(column_field(name, kind) for name, kind in manifest.columns.items())])


def column_field(name: str, kind: ColumnType) -> pa.Field:
    """Return the field of a filter column."""
    import pyarrow as pa

    scalars = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}
    scalar = {**scalars, datetime: pa.timestamp("us", "UTC")}[kind.scalar]
    return pa.field(stored_as(name), pa.list_(scalar) if kind.is_list else scalar)


def search_indexes(manifest: Manifest) -> dict[str, Any]:
    """Return LanceDB's index settings for the text and each filter column."""
    from lancedb.index import FTS, Bitmap, BTree, LabelList

    indexes: dict[str, Any] = {"text": FTS(with_position=False)}
    for name, kind in manifest.columns.items():
        # LanceDB has no index for lists of these: such a column is scanned.
        if kind.is_list and kind.scalar in (float, datetime):
            continue
        indexes[stored_as(name)] = LabelList() if kind.is_list else Bitmap() if kind.scalar is bool else BTree()
    return indexes


def to_arrow(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Return columns in the types and the order of a schema."""
    import pyarrow as pa

    schema = pa.schema([field for field in schema if field.name in columns])
    arrays = [
        column if isinstance(column, (pa.Array, pa.ChunkedArray)) else pa.array(column, type=field.type)
        for field in schema
        for column in [columns[field.name]]
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def row_columns(rows: Sequence[Row], manifest: Manifest) -> dict[str, Any]:
    """Return the columns of rows by name, without those of the token vectors."""
    names = ["id", "text", "metadata", "content_hash", *(["image"] if manifest.images else [])]
    columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in names}
    columns["metadata_checksum"] = [metadata_checksum(row.id, row.metadata) for row in rows]
    return columns | {
        stored_as(name): [_value_of(row, name, kind) for row in rows] for name, kind in manifest.columns.items()
    }


def _value_of(row: Row, name: str, kind: ColumnType) -> Any:
    if name in row.filter_values:
        return row.filter_values[name]
    # The column was added after the row was made.
    return filter_value(read_metadata(row.metadata), name, kind, row.id, is_stored=True)


def ragged(rows: NDArray[Any], offsets: NDArray[np.int64]) -> pa.ListArray:
    """Return a list of fixed-size lists per document, without a copy."""
    import pyarrow as pa

    lists = pa.FixedSizeListArray.from_arrays(np.ascontiguousarray(rows).ravel(), rows.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), lists)


def span_steps(spans: NDArray[np.int32], offsets: NDArray[np.int64]) -> pa.ListArray:
    """Encode spans as two small numbers per token: the distance from the start of the token before, and the length.

    Distances are zigzag-encoded: forward steps are even, backward steps odd. For a patch of an image, (row, column),
    the second number may be negative; it wraps around here, and back in `spans_of`.
    """
    import pyarrow as pa

    before = np.concatenate([[0], spans[:-1, 0]])[: len(spans)]
    before[offsets[:-1][np.diff(offsets) > 0]] = 0
    steps = (spans[:, 0] - before).astype(np.int64)
    numbers = np.stack([(steps << 1) ^ (steps >> 63), spans[:, 1] - spans[:, 0]], axis=1).astype(np.uint32)
    return pa.ListArray.from_arrays(pa.array((2 * offsets).astype(np.int32)), pa.array(numbers.ravel()))


def spans_of(steps: NDArray[np.uint32], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    """Decode `span_steps` to (n_tokens, 2) spans."""
    numbers = steps.astype(np.int64)
    forward = (numbers[:, 0] >> 1) ^ -(numbers[:, 0] & 1)
    sums = np.concatenate([[0], np.cumsum(forward)])
    starts = sums[1:] - np.repeat(sums[offsets[:-1]], np.diff(offsets))
    return np.stack([starts, starts + numbers[:, 1]], axis=1).astype(np.int32)


def codebook_table(codebook: Codebook) -> pa.Table:
    """Return the centroids as a table with the column `vector`."""
    import pyarrow as pa

    vectors = pa.FixedSizeListArray.from_arrays(codebook.centroids.ravel(), codebook.dim)
    return pa.table({"vector": vectors})


def rows_of(column: pa.ChunkedArray, dtype: type) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the (n_tokens, width) rows of a list column of vectors or codes, and the offsets of the documents.

    A column of one chunk is not copied.
    """
    width = column.type.value_type.list_size
    chunks = [chunk.flatten().flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    # A document without vectors, which only damage leads to, is null.
    lengths = [chunk.value_lengths().fill_null(0).to_numpy() for chunk in column.chunks]
    offsets = offsets_of(np.concatenate(lengths))
    rows = chunks[0] if len(chunks) == 1 else np.concatenate(chunks)
    return np.asarray(rows.reshape(-1, width), dtype), offsets


def vectors_of(array: pa.FixedSizeListArray, dim: int) -> NDArray[np.float32]:
    """Return the (n, dim) values of a fixed-size-list array."""
    return np.ascontiguousarray(array.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim), np.float32)


def assignments_of(codebook: Codebook, rows: pa.Table) -> Assignments:
    """Return the assignments in rows as they were appended; if a row was assigned again, the last one counts."""
    row_ids, updated = rows["row_id"].to_numpy(), rows["updated"].to_numpy()
    order = np.lexsort((updated, row_ids))
    is_last = np.append(row_ids[order][1:] != row_ids[order][:-1], True)[: len(order)]
    if not is_last.all() or (np.diff(order) < 0).any():
        rows = rows.take(order[is_last]).combine_chunks()
    lists = rows["centroids"].chunk(0) if len(rows) else None
    centroids = np.empty(0, np.uint16) if lists is None else lists.flatten().to_numpy()
    lengths = [] if lists is None else np.diff(lists.offsets.to_numpy())
    assignments = Assignments(
        codebook, row_ids[order[is_last]], updated[order[is_last]], offsets_of(lengths), centroids
    )
    if "checksum" in rows.column_names and not np.array_equal(assignments.checksums(), rows["checksum"].to_numpy()):
        raise ShapeError("the centroids of a document differ from those that were written")
    return assignments
