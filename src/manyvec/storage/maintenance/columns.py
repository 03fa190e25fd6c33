"""Add filter columns to an index that has documents: their values are read from the stored metadata.

LanceDB adds a column without rewriting the others only if an SQL expression computes its values. So a regular
expression reads them from the metadata's JSON, and every value is then compared with the one that `ColumnType.convert`
returns. Rows that differ, such as those of a string with quotes in it, are rewritten. Three columns for 20,000 rows of
320 MB take 4 s of one CPU and write 5 MB (`examples/benchmarks/columns.py`); a merge by id would write all 320 MB.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from manyvec.errors import InputError
from manyvec.filters import ColumnType, quote
from manyvec.filters.columns import Scalar, infer_columns
from manyvec.filters.values import read_metadata
from manyvec.storage.schema import column_field, filter_value, stored_as
from manyvec.storage.snapshot import Snapshot
from manyvec.storage.table import Store

# Rows with odd values that are rewritten in one commit, images included.
_ROWS_PER_COMMIT = 256
# Patterns of the values as `write_metadata` writes them, and the SQL that turns what they match into the column's type.
_PATTERNS: dict[Scalar, tuple[str, str, str]] = {
    str: (r'"([^"\\]*)"', r'\["?([^\]\\]*?)"?\]', "{}"),
    int: (r'"?(-?[0-9]{1,18})(?:\.0)?"?[,}]', r"\[([0-9, -]*)\]", "TRY_CAST({} AS BIGINT)"),
    float: (r'"?(-?[0-9.eE+-]+)"?[,}]', r"\[([0-9.eE, +-]*)\]", "TRY_CAST({} AS DOUBLE)"),
    bool: (r'"?(true|false)"?[,}]', r"\[([a-z, ]*)\]", "TRY_CAST({} AS BOOLEAN)"),
    datetime: (
        r'"([0-9T:. +-]+)"',
        r'\["?([0-9T:. "+-]*?)"?\]',
        "arrow_cast({}, 'Timestamp(Microsecond, Some(\"UTC\"))')",
    ),
}
_LISTS: dict[Scalar, str] = {
    str: "{}",
    int: "arrow_cast({}, 'List(Int64)')",
    float: "arrow_cast({}, 'List(Float64)')",
    bool: "arrow_cast({}, 'List(Boolean)')",
    datetime: "arrow_cast({}, 'List(Timestamp(Microsecond, Some(\"UTC\")))')",
}


@dataclass(frozen=True)
class _Column:
    """A column to add.

    Attributes:
        name: Name that filters use.
        kind: Type of its values.
        is_nested: Whether the documents' metadata spells the name as a path through dicts.
    """

    name: str
    kind: ColumnType
    is_nested: bool = False

    @property
    def stored(self) -> str:
        return stored_as(self.name)

    @property
    def sql(self) -> str:
        """An expression that reads most values from the metadata."""
        *parents, key = self.name.split(".") if self.is_nested else [self.name]
        written = [re.escape(json.dumps(part, ensure_ascii=False)) for part in (*parents, key)]
        path = "".join(f"{part}: \\{{[^{{}}]*" for part in written[:-1]) + written[-1] + ": "
        of_scalar, of_list, cast = _PATTERNS[self.kind.scalar]
        if not self.kind.is_list:
            return cast.format(f"regexp_match(metadata, {quote(path + of_scalar)})[1]")
        separator = '", "' if self.kind.scalar in (str, datetime) else ", "
        items = f"string_to_array(regexp_match(metadata, {quote(path + of_list)})[1], {quote(separator)})"
        return _LISTS[self.kind.scalar].format(items)


def add_filter_columns(store: Store, columns: Mapping[str, ColumnType]) -> dict[str, int]:
    """Declare filter columns and fill them; see `Index.add_filter_columns`.

    The columns are filled before they are declared, and compared with the metadata once more afterwards, because other
    writers may have written rows meanwhile. A call that was interrupted is completed by the same call.
    """
    before = store.snapshot()
    declared, wanted = before.manifest.columns, {name: str(kind) for name, kind in columns.items()}
    for name, kind in columns.items():
        if declared.get(name, kind) != kind:
            raise InputError(f"the filter column {name!r} is declared as {declared[name]}, not {kind}")
    before.manifest.with_columns(wanted)  # Refuses names before anything is read.
    added, counts = _checked(before, columns)
    store.add_columns({column.stored: (column_field(column.name, column.kind), column.sql) for column in added})
    _fill(store, added)
    _keep_assignments(store, before)
    store.declare(wanted)
    store.create_indexes(store.missing_indexes())
    _fill(store, added)
    return counts


def infer_stored(store: Store) -> dict[str, str]:
    """Return the columns that the stored documents could be filtered on, with their types."""
    return infer_columns(metadata for _, metadata in _metadata(store.snapshot()))


def infer_given(documents: Iterable[Any], n_documents: int = 256) -> tuple[dict[str, str], Iterator[Any]]:
    """Return the columns that the first documents of a call could be filtered on, and all its documents."""
    rest = iter(documents)
    first = list(itertools.islice(rest, n_documents))
    given = (
        value.get("metadata") if isinstance(value, Mapping) else getattr(value, "metadata", None) for value in first
    )
    columns = infer_columns(metadata for metadata in given if isinstance(metadata, Mapping))
    return columns, itertools.chain(first, rest)


def _checked(snapshot: Snapshot, columns: Mapping[str, ColumnType]) -> tuple[list[_Column], dict[str, int]]:
    """Return the columns and how many documents have a value of each; refuse values of another type."""
    counts, nested = dict.fromkeys(columns, 0), dict.fromkeys(columns, 0)
    for id, metadata in _metadata(snapshot):
        for name, kind in columns.items():
            if filter_value(metadata, name, kind, id, is_stored=True) is not None:
                counts[name] += 1
                nested[name] += name not in metadata
    return [_Column(name, kind, 2 * nested[name] > counts[name]) for name, kind in columns.items()], counts


def _metadata(snapshot: Snapshot) -> Iterator[tuple[str, dict[str, Any]]]:
    for rows in snapshot.scan(["id", "metadata"]):
        for row in rows:
            yield row["id"], read_metadata(row["metadata"])


def _fill(store: Store, columns: Sequence[_Column]) -> None:
    """Rewrite the rows whose columns disagree with their metadata."""
    names = [column.stored for column in columns]
    wrong: list[dict[str, Any]] = []
    for rows in store.snapshot().scan(["id", "metadata", *names]):
        for row in rows:
            metadata = read_metadata(row["metadata"])
            values = {
                column.stored: filter_value(metadata, column.name, column.kind, row["id"], is_stored=True)
                for column in columns
            }
            if any(row[name] != value for name, value in values.items()):
                wrong.append({"id": row["id"], "metadata": row["metadata"], **values})
    for start in range(0, len(wrong), _ROWS_PER_COMMIT):
        part = wrong[start : start + _ROWS_PER_COMMIT]
        store.write_columns({name: [row[name] for row in part] for name in ("id", "metadata", *names)})


def _keep_assignments(store: Store, before: Snapshot) -> None:
    """Keep the centroids of documents whose rows were written, but not their token vectors."""
    if (assigned := before.assignments()) is None:
        return
    after = store.snapshot()
    old, new = before.states(), after.states()
    if np.array_equal(old.row_ids, new.row_ids) and np.array_equal(old.updated, new.updated):
        return
    positions = assigned.positions_in(old.row_ids, old.updated)
    hashes_before, hashes_after = _content_hashes(before), _content_hashes(after)
    same = {row_id for row_id, content in hashes_before.items() if hashes_after.get(row_id) == content}
    kept = np.flatnonzero((positions >= 0) & np.isin(assigned.row_ids, np.array([*same], np.int64)))
    chosen = assigned.select(kept)
    updated = new.updated[np.searchsorted(new.row_ids, chosen.row_ids)]
    store.centroids.add_assignments(replace(chosen, updated=updated))
    with store.turn():
        store.centroids.set_assignments(assigned.codebook)


def _content_hashes(snapshot: Snapshot) -> dict[int, str]:
    return {row["_rowid"]: row["content_hash"] for rows in snapshot.scan(["content_hash"]) for row in rows}
