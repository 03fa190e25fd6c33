"""The documents of a build as a Ray Dataset, and the dataset's rows as documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from manyvec.cluster.layout import hash_of
from manyvec.errors import InputError
from manyvec.files.records import JSON_LINES, document_of
from manyvec.filters.values import shown
from manyvec.types import Document

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

Source: TypeAlias = "Dataset | str | PathLike[str] | Iterable[Document | Mapping[str, Any]]"

# Beside actors that take nearly all of a small machine: tasks that read would wait forever, without a word.
TASK_CPUS = 0.25
_LINE = "manyvec line"
_MAX_NAMES = 10


def dataset_of(source: Source, batch_size: int) -> Dataset:
    """Return a Ray Dataset, the files at a path, or documents of this process as a Ray Dataset.

    Args:
        source: Where the documents are.
        batch_size: Documents that an actor takes at a time: those of this process come in blocks of as many.
    """
    import ray.data

    if isinstance(source, ray.data.Dataset):
        return source
    if isinstance(source, (str, PathLike)):
        path = fspath(source)
        if path.lower().endswith(JSON_LINES):
            # As text: Ray would make one table of all lines, in which a key has one type and is never missing.
            lines = ray.data.read_text(path, num_cpus=TASK_CPUS)
            return lines.rename_columns({"text": _LINE}, num_cpus=TASK_CPUS)
        context = ray.data.DataContext.get_current()
        lists_first, context.use_datasource_v2 = context.use_datasource_v2, False
        try:
            # The newer reader lists files in a task of a whole CPU, whatever `num_cpus` is.
            return ray.data.read_parquet(path, num_cpus=TASK_CPUS)
        finally:
            context.use_datasource_v2 = lists_first
    items = [_plain(value) for value in source]
    # Ray would make 200 blocks, however few documents there are, and a task for each.
    return ray.data.from_items(items, override_num_blocks=max(1, -(-len(items) // batch_size)))


def documents_in(batch: pa.Table) -> Iterator[Document | dict[str, Any]]:
    """Yield the documents of a batch; one without any text as a dict, which has no `text` then.

    Raises:
        InputError: A row is no document.
    """
    for record in _records(batch):
        if (id := _id(record)) is None:
            raise InputError(f"a document has no id: {shown(record)}")
        metadata = record.get("metadata")
        if isinstance(metadata, str):
            record["metadata"] = _json(metadata)
        if "image" in record or "vectors" in record:
            given: dict[str, Any] = {name: np.asarray(record[name]) for name in ("vectors", "spans") if name in record}
            yield Document.of({"text": "", **record, "id": id, **given})
        else:
            yield document_of(record, id) or {"id": id}


def check_ids(dataset: Dataset) -> None:
    """Read the ids of all documents once.

    Raises:
        InputError: A document has no id, or an id occurs more than once.
    """
    of_ids = dataset
    # Parquet tells its columns without being read, and reads only these then.
    if (schema := dataset.schema(fetch_if_missing=False)) is not None and "id" in schema.names:
        of_ids = dataset.select_columns([name for name in ("_id", "id") if name in schema.names], num_cpus=TASK_CPUS)
    hashed = of_ids.map_batches(_hashes, batch_format="pyarrow", num_cpus=TASK_CPUS)
    parts = [batch["hash"] for batch in hashed.iter_batches(batch_size=None, batch_format="numpy")]
    hashes = np.concatenate(parts) if parts else np.empty(0, np.uint64)
    known = hashes[hashes > 0]
    if n_missing := len(hashes) - len(known):
        raise InputError(f"the documents of a build need ids: {n_missing:,} of {len(hashes):,} have none")
    distinct, counts = np.unique(known, return_counts=True)
    if len(doubled := distinct[counts > 1]):
        named = of_ids.map_batches(
            _ids_among, fn_kwargs={"hashes": doubled}, batch_format="pyarrow", num_cpus=TASK_CPUS
        ).take(2 * _MAX_NAMES)
        raise InputError(
            f"ids must be distinct, but these occur more than once: {shown(sorted({row['id'] for row in named}))}"
        )


def _plain(value: Document | Mapping[str, Any]) -> dict[str, Any]:
    """Return a document as values that a table holds; one without any text has an empty one."""
    from manyvec.models.image import image_bytes

    if isinstance(value, Mapping) and value.get("image") is None and not str(value.get("text") or "").strip():
        return {"id": value.get("id"), "text": ""}
    document = Document.of(value)
    image = document.image
    if image is not None and not isinstance(image, bytes):
        image = image_bytes(image, f"document {document.id!r}: its image")
    values: dict[str, Any] = {
        "id": document.id,
        "text": document.text,
        "metadata": document.metadata_json(),
        "image": image,
    }
    values |= {"vectors": document.vectors, "spans": document.spans}
    return {name: given for name, given in values.items() if given is not None}


def _records(batch: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield rows as dicts, without what is null: a table has a null where a document lacks a key."""
    if _LINE in batch.column_names:
        for line in batch[_LINE].to_pylist():
            yield _json(line)
        return
    for row in batch.to_pylist():
        if isinstance(row.get("metadata"), dict):
            row["metadata"] = {name: value for name, value in row["metadata"].items() if value is not None}
        yield {name: value for name, value in row.items() if value is not None}


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError(f"not JSON: {error}: {shown(text)}") from None
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object, got {shown(text)}")
    return value


def _id(record: Mapping[str, Any]) -> str | None:
    """Return the id of a record as `document_of` reads it; None if there is none."""
    id = next((record[key] for key in ("_id", "id") if record.get(key) not in (None, "")), None)
    return None if id is None else str(id)


def _hashes(batch: pa.Table) -> dict[str, NDArray[np.uint64]]:
    """Return a hash of the id of each row, never 0, which stands for none."""
    ids = [_id(record) for record in _records(batch)]
    return {"hash": np.array([0 if id is None else max(1, hash_of(id)) for id in ids], np.uint64)}


def _ids_among(batch: pa.Table, hashes: NDArray[np.uint64]) -> dict[str, list[str]]:
    """Return the ids with one of these hashes."""
    wanted = {*hashes.tolist()}
    return {"id": [id for record in _records(batch) if (id := _id(record)) is not None and hash_of(id) in wanted]}
