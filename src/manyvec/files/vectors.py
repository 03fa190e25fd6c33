"""Documents with token vectors that another program has computed: tables of Arrow, Parquet and LanceDB, arrays."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, ShapeError
from manyvec.files.records import TEXT_KEYS, read_jsonl, read_jsonl_documents
from manyvec.types import Document
from manyvec.vectors.batch import check_offsets, offsets_of

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW = (".parquet",), (".arrow", ".feather", ".ipc")
ARRAYS = (".npy", ".safetensors")
# Rows that are read at a time: 100 MB for documents of 500 vectors of 384 float16.
_BATCH_ROWS = 256
_ID_KEYS = ("id", "_id", "doc_id", "document_id", "docid", "pid")
_VECTOR_KEYS = ("vectors", "embeddings", "token_embeddings", "tokens", "vector", "embedding")
_OFFSET_KEYS = ("offsets", "lengths", "doclens")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; None for those that are recognised by name and type.

    Attributes:
        id: Column of the ids, by default `id`, `_id`, `doc_id` or the like; without one, rows are numbered.
        text: Column of the texts, by default `text`, `content` or the like; without one, the id is the text.
        vectors: Column of token vectors, by default the only list of lists of floats.
    """

    id: str | None = None
    text: str | None = None
    vectors: str | None = None


def read_table(path: Path, columns: Columns) -> Iterator[Document]:
    """Yield the documents of a Parquet or Arrow file; see `Columns`.

    A column `spans` holds the spans of the vectors, `image` the bytes of page images, `metadata` a struct or a JSON
    object; every other column becomes metadata, unless it holds vectors or bytes.

    Raises:
        InputError: The file is damaged, a column is missing, or a document cannot be used.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _refused(path):
        if path.suffix.lower() in PARQUET:
            with pq.ParquetFile(path) as file:
                yield from documents_of(file.schema_arrow, file.iter_batches(_BATCH_ROWS), columns, path.name)
        else:
            with pa.memory_map(str(path)) as source:
                reader = _arrow_reader(source)
                yield from documents_of(reader.schema, _batches(reader), columns, path.name)


def _arrow_reader(source: Any) -> Any:
    import pyarrow as pa

    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if hasattr(reader, "num_record_batches"):
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from reader


def read_lancedb(uri: str, table: str | None, columns: Columns) -> Iterator[Document]:
    """Yield the documents of a LanceDB table with a column of token vectors; see `read_table`.

    Args:
        uri: Database, or the folder of a table, which ends with `.lance`.
        table: Name of the table; not needed if the database has only one.
        columns: Which columns hold what.
    """
    import lancedb

    if uri.rstrip("/").endswith(".lance"):
        uri, _, name = uri.rstrip("/").rpartition("/")
        uri, table = uri or ".", name.removesuffix(".lance")
    with _refused(uri):
        database = lancedb.connect(uri)
        names = database.list_tables().tables
        if table is None and len(names) != 1:
            raise InputError(f"{uri} has the tables {', '.join(names) or 'none'}: name one with table")
        opened = database.open_table(names[0] if table is None else table)
        if any(b"manyvec" in (field.metadata or {}) for field in opened.schema):
            raise InputError(f"{uri} is an index of manyvec: write its vectors with `manyvec export FILE --vectors`")
        read = opened.search().limit(None).to_batches(_BATCH_ROWS)
        yield from documents_of(opened.schema, read, columns, opened.name)


def documents_of(
    schema: pa.Schema, batches: Iterator[pa.RecordBatch], columns: Columns, name: str
) -> Iterator[Document]:
    """Yield the documents of record batches; see `read_table`.

    Args:
        schema: Schema of the batches.
        batches: Rows.
        columns: Which columns hold what.
        name: Prefix of the ids of rows without one.
    """
    vectors_key = _vector_column(schema, columns.vectors)
    id_key = _chosen(schema, columns.id, _ID_KEYS)
    text_key = _chosen(schema, columns.text, TEXT_KEYS)
    named = {vectors_key, id_key, text_key, "spans", "image", "metadata"}
    others = [f.name for f in schema if f.name not in named and not _is_bulky(f.type)]
    number = 0
    for batch in batches:
        offsets, vectors = _ragged(batch.column(vectors_key), vectors_key)
        spans = _spans(batch, offsets)
        kept = [key for key in (id_key, text_key, "image", "metadata", *others) if key in schema.names]
        for i, row in enumerate(batch.select(list(dict.fromkeys(kept))).to_pylist()):
            number += 1
            id = row.get(id_key)
            id = f"{name}#row={number}" if id is None else str(id)
            tokens = slice(offsets[i], offsets[i + 1])
            if tokens.start == tokens.stop:
                raise InputError(f"document {id!r} has no vectors in the column {vectors_key!r}")
            metadata = {key: row[key] for key in others} | _metadata(row.get("metadata"), id)
            of_text = None if spans is None else spans[tokens]
            text = (row.get(text_key) or "") if text_key else id
            yield Document(id, text, metadata, image=row.get("image"), vectors=vectors[tokens], spans=of_text)


def _vector_column(schema: pa.Schema, given: str | None) -> str:
    found = [field.name for field in schema if _is_multivector(field.type)]
    if given is not None:
        found = [name for name in found if name == given]
    if len(found) == 1:
        return found[0]
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if given is not None:
        raise InputError(f"{given!r} is no column of token vectors, lists of lists of floats; there are: {listed}")
    if not found:
        raise InputError(f"there is no column of token vectors, lists of lists of floats, among: {listed}")
    raise InputError(f"there are several columns of token vectors, {', '.join(found)}: name one of them")


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_multivector(kind: pa.DataType) -> bool:
    import pyarrow.types as types

    return _is_list(kind) and _is_list(kind.value_type) and types.is_floating(kind.value_type.value_type)


def _is_bulky(kind: pa.DataType) -> bool:
    """Whether a column cannot be metadata: vectors and bytes."""
    import pyarrow.types as types

    if _is_list(kind):
        return types.is_floating(kind.value_type) or _is_list(kind.value_type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _chosen(schema: pa.Schema, given: str | None, usual: Sequence[str]) -> str | None:
    if given is not None and given not in schema.names:
        raise InputError(f"there is no column {given!r}: there are {', '.join(schema.names)}")
    return given if given is not None else next((name for name in usual if name in schema.names), None)


def _ragged(column: pa.Array, name: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return the offsets of the documents in a column of lists of lists, and its rows end to end."""
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    inner = column.flatten()
    widths = np.unique(inner.value_lengths().to_numpy(zero_copy_only=False)) if len(inner) else np.array([1])
    if len(widths) > 1 or inner.null_count:
        raise ShapeError(f"the vectors in the column {name!r} have different dimensions: {widths.tolist()[:5]}")
    values = inner.flatten().to_numpy(zero_copy_only=False)
    return offsets_of(lengths), values.reshape(-1, int(widths[0]))


def _spans(batch: pa.RecordBatch, offsets: NDArray[np.int64]) -> NDArray[Any] | None:
    if "spans" not in batch.schema.names or not _is_list(batch.schema.field("spans").type):
        return None
    column = batch.column("spans")
    if column.null_count == len(column):
        return None
    of_spans, spans = _ragged(column, "spans")
    if not np.array_equal(of_spans, offsets):
        raise ShapeError("the column 'spans' must have one [start, end] for each vector of its row")
    return spans


def _metadata(value: Any, id: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"document {id!r}: the column 'metadata' is no JSON object: {error}") from error
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"document {id!r}: the column 'metadata' is no JSON object")
    return dict(value or {})


def read_json_vectors(path: Path) -> Iterator[Document]:
    """Yield the documents of a JSON Lines file as `manyvec export --vectors` writes it."""
    for where, record in read_jsonl(path):
        vectors = record.get("vectors")
        try:
            yield Document.of(record if vectors is None else {**record, "vectors": np.asarray(vectors, np.float32)})
        except (ValueError, TypeError) as error:
            raise InputError(f"{where}: {error}") from error


def read_arrays(path: Path, offsets: Path | None, texts: Path) -> Iterator[Document]:
    """Yield the documents of a JSON Lines file with their vectors from an array that holds all of them end to end.

    Args:
        path: `.npy` file of shape (n_tokens, dim), or `.safetensors` file with such a tensor and one of offsets; it may
            have `spans` as well.
        offsets: `.npy` file of the (n + 1,) offsets or the (n,) lengths of the documents. By default the tensor
            `offsets` or `lengths`, or `NAME.offsets.npy` or `NAME.lengths.npy` beside `NAME.npy`.
        texts: File of the documents, in the same order.

    Raises:
        InputError: A file is damaged, or the numbers do not fit together.
    """
    with _refused(path):
        tensors = _tensors(path)
        vectors = _matrix(tensors, path)
        spans = tensors.get("spans")
        bounds = _offsets(tensors, path, offsets, len(vectors))
    n_documents, n_read = len(bounds) - 1, 0
    for i, document in enumerate(read_jsonl_documents(texts)):
        if i >= n_documents:
            raise InputError(f"{texts} has more documents than {path}, which has {n_documents:,}")
        tokens = slice(bounds[i], bounds[i + 1])
        of_text = None if spans is None else np.asarray(spans[tokens])
        yield Document(document.id, document.text, document.metadata, vectors=vectors[tokens], spans=of_text)
        n_read = i + 1
    if n_read < n_documents:
        raise InputError(f"{texts} has {n_read:,} documents, {path} has the vectors of {n_documents:,}")


def _tensors(path: Path) -> Mapping[str, Any]:
    if path.suffix.lower() == ".npy":
        return {"vectors": np.load(path, mmap_mode="r", allow_pickle=False)}
    from safetensors.numpy import load_file

    return load_file(path)


def _matrix(tensors: Mapping[str, Any], path: Path) -> Any:
    matrices = [key for key, tensor in tensors.items() if tensor.ndim == 2 and tensor.dtype.kind == "f"]
    key = next((key for key in _VECTOR_KEYS if key in matrices), matrices[0] if len(matrices) == 1 else None)
    if key is None:
        shapes = ", ".join(f"{key} {tensor.shape} {tensor.dtype}" for key, tensor in tensors.items())
        raise ShapeError(
            f"{path}: the vectors must be one array of floats, (n_tokens, dim), all documents end to end without "
            f"padding; got {shapes}"
        )
    return tensors[key]


def _offsets(tensors: Mapping[str, Any], path: Path, given: Path | None, n_rows: int) -> NDArray[np.int64]:
    beside = [path.with_suffix(f".{key}.npy") for key in _OFFSET_KEYS]
    file = given or next((each for each in beside if each.exists()), None)
    named = next((key for key in _OFFSET_KEYS if key in tensors), "")
    if file is None and not named:
        raise InputError(f"{path}: where each document starts is unknown: name a file of offsets or lengths")
    numbers = np.load(file, allow_pickle=False) if file is not None else tensors[named]
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ShapeError(f"offsets must be a list of integers, got {numbers.shape} {numbers.dtype}")
    # Offsets start with 0 and end with the number of rows; lengths add up to it.
    is_lengths = not (len(numbers) and numbers[0] == 0 and numbers[-1] == n_rows) and numbers.sum() == n_rows
    bounds = offsets_of(numbers) if is_lengths else numbers.astype(np.int64)
    check_offsets(bounds, n_rows)
    return bounds


@contextmanager
def _refused(path: Path | str) -> Iterator[None]:
    """Translate what the readers of damaged files raise."""
    try:
        yield
    except InputError:
        raise
    # pyarrow's errors derive from ValueError and the like; LanceDB and safetensors raise their own.
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0] if str(error) else error!r}") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("pyarrow", "safetensors", "safetensors_rust", "lancedb"):
            raise
        raise InputError(f"{path} cannot be read: {error}") from error
