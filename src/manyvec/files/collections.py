"""Collections that other programs have indexed: with their token vectors where these can be read, else their texts."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import pathname2url

from manyvec.errors import InputError
from manyvec.files.records import JSON_LINES, read_jsonl_documents
from manyvec.files.report import FileReport
from manyvec.files.vectors import (
    ARRAYS,
    ARROW,
    PARQUET,
    Columns,
    read_arrays,
    read_json_vectors,
    read_lancedb,
    read_table,
)
from manyvec.types import Document

_RAGATOUILLE = ("collection.json", "pid_docid_map.json")
# PyLate's indexes hold ids and vectors, no texts: PLAID and FastPlaid, older PLAID, Voyager.
_PYLATE = ("documents_ids_to_plaid_ids", "document_ids_to_embeddings")
_KINDS = (
    "a LanceDB database or table, a .parquet, .arrow, .feather, .jsonl, .npy or .safetensors file, or the folder of a "
    "RAGatouille or PyLate index"
)


def read_collection(
    source: str | Path,
    *,
    texts: str | Path | None = None,
    offsets: str | Path | None = None,
    table: str | None = None,
    id_column: str | None = None,
    text_column: str | None = None,
    vector_column: str | None = None,
    report: FileReport | None = None,
) -> Iterator[Document]:
    """Read the documents of a collection that another program has indexed.

    - LanceDB tables, Parquet, Arrow and JSON Lines files: id, text, metadata and token vectors, a list of lists of
      floats for each document, and `spans` if there is such a column.
    - `.npy` and `.safetensors` files of all token vectors end to end, with offsets: the documents come from `texts`.
    - RAGatouille's index: texts, ids and metadata. Its vectors are compressed, and the model is asked again.
    - PyLate's index: the documents of `texts` that it holds. Pickles are never loaded.

    Args:
        source: File, folder or database.
        texts: JSON Lines file with the id, text and metadata of documents, where the source has none.
        offsets: `.npy` file of the offsets or lengths of documents, for an array that has none beside it.
        table: Table of a LanceDB database that has several.
        id_column: Column of the ids, if it is not called `id` or the like.
        text_column: Column of the texts, if it is not called `text` or the like.
        vector_column: Column of the token vectors, if there are several.
        report: Collects notes on what was left out.

    Raises:
        InputError: The source is of another kind, damaged, or lacks what is needed; the message names it.
    """
    columns = Columns(id_column, text_column, vector_column)
    report = FileReport() if report is None else report
    name = str(source)
    if "://" in name:
        return read_lancedb(name, table, columns)
    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(f"{source}: no such file or folder")
    if path.is_dir():
        if all((path / file).exists() for file in _RAGATOUILLE):
            return _ragatouille(path)
        if (ids := _pylate_ids(path)) is not None:
            return _pylate(path, ids, _needed(texts, source), report)
        if suffix == ".lance" or any(path.glob("*.lance")):
            return read_lancedb(str(path), table, columns)
    elif suffix in (*PARQUET, *ARROW):
        return read_table(path, columns)
    elif path.name.lower().endswith(JSON_LINES):
        return read_json_vectors(path)
    elif suffix in ARRAYS:
        return read_arrays(path, None if offsets is None else Path(offsets), _needed(texts, source))
    raise InputError(f"{source}: expected {_KINDS}")


def _needed(texts: str | Path | None, source: str | Path) -> Path:
    if texts is None:
        raise InputError(f"{source} holds no texts: name a .jsonl file with the id and text of its documents")
    if not (path := Path(texts).expanduser()).is_file():
        raise InputError(f"{texts}: no such file")
    return path


def _ragatouille(folder: Path) -> Iterator[Document]:
    """Yield the passages of RAGatouille's index. Several of one document are numbered, with `document_id`."""
    passages, ids = _json(folder / "collection.json", list), _json(folder / "pid_docid_map.json", dict)
    stored = folder / "docid_metadata_map.json"
    metadata = (_json(stored, dict, may_be_null=True) or {}) if stored.exists() else {}
    counts, seen = Counter(map(str, ids.values())), Counter[str]()
    for number, text in enumerate(passages):
        if (found := ids.get(str(number))) is None:
            raise InputError(f"{folder / 'pid_docid_map.json'} has no id for passage {number}")
        of_document = metadata.get(str(found)) or {}
        id = str(found)
        seen[id] += 1
        several = {"document_id": id} if counts[id] > 1 else {}
        yield Document(f"{id}#{seen[id]}" if several else id, text, {**of_document, **several})


def _json(path: Path, kind: type, *, may_be_null: bool = False) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind) and not (may_be_null and value is None):
        raise InputError(f"{path} must hold a {kind.__name__}, got {type(value).__name__}")
    return value


def _pylate_ids(folder: Path) -> Path | None:
    """Return the file of a PyLate index that holds its ids; None if this is no such index."""
    for stem in _PYLATE:
        for suffix in (".sqlite", ".pkl"):
            found = [folder / f"{stem}{suffix}", *folder.glob(f"*_{stem}{suffix}")]
            if existing := next((path for path in found if path.is_file()), None):
                return existing
    return None


def _pylate(folder: Path, ids_file: Path, texts: Path, report: FileReport) -> Iterator[Document]:
    if ids_file.suffix == ".pkl":
        report.notes.append(f"{ids_file} is a pickle, which is not loaded: all documents of {texts} were read")
        yield from read_jsonl_documents(texts)
        return
    try:
        # Only the keys: the values are pickles.
        with sqlite3.connect(
            f"file:{pathname2url(str(ids_file.absolute()))}?mode=ro&immutable=1", uri=True
        ) as database:
            ids = {str(key) for (key,) in database.execute('SELECT key FROM "unnamed"')}
    except sqlite3.Error as error:
        raise InputError(f"{ids_file} cannot be read: {error}") from error
    n_ids = len(ids)
    for document in read_jsonl_documents(texts):
        if document.id in ids:
            ids.discard(document.id)
            yield document
    if len(ids) == n_ids:
        raise InputError(f"{texts} has none of the {n_ids:,} documents of {folder}, such as {min(ids, default='')!r}")
    if ids:
        report.notes.append(f"{len(ids):,} documents of {folder} are not in {texts}, such as {min(ids)!r}")
