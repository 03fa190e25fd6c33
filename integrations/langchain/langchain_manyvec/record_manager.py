"""`ManyvecRecordManager`: keep the records of LangChain's indexing API in the database of the index."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from langchain_core.indexing import RecordManager

from manyvec import InputError, StoreError, in_thread

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "langchain_records"
# 1,000 values in an IN (...) take LanceDB 6 ms, 10,000 take 40.
_VALUES_PER_STATEMENT = 1000
# Seconds; a float64 timestamp still resolves this step.
_TICK = 1e-6
# If two threads create a table at the same moment, both succeed in LanceDB and the second empties the first one's.
_CREATING = threading.Lock()


class ManyvecRecordManager(RecordManager):
    """Record manager for `langchain_core.indexing.index`, stored as a table in the LanceDB database of the index.

        records = ManyvecRecordManager("papers", index.uri)
        langchain_core.indexing.index(documents, records, store, cleanup="full", key_encoder="blake2b")

    Several processes can write once the table exists, which `create_schema` or the first write creates. Timestamps come
    from this machine's clock, but are never older than the newest record: a clock that was set back would otherwise
    hide outdated documents from a cleanup.

    Args:
        namespace: Name that separates these records from those of other record managers in the same table.
        uri: Folder or bucket of the index, or any other LanceDB database.
        storage_options: LanceDB's options for a bucket, such as credentials.
    """

    def __init__(
        self, namespace: str, uri: str | PathLike[str], *, storage_options: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(namespace)
        self.uri = fspath(uri)
        self._storage_options = dict(storage_options or {})
        self._started = 0.0
        self._opened: Any = None

    def create_schema(self) -> None:
        """Create the table if needed, and merge the small files that earlier runs left. Calling it is optional."""
        with self._table() as table:
            # optimize fails on a handle that has not seen another writer's delete.
            table.checkout_latest()
            table.optimize(cleanup_older_than=timedelta(hours=1))

    def get_time(self) -> float:
        """Return the time in seconds since 1970, later than every record of the namespace."""
        newest = self._select(self._where(), ["updated_at"])["updated_at"].to_numpy().max(initial=0.0)
        self._started = max(time.time(), float(newest) + _TICK)
        return self._started

    def update(
        self,
        keys: Sequence[str],
        *,
        group_ids: Sequence[str | None] | None = None,
        time_at_least: float | None = None,
    ) -> None:
        """Insert or replace records in one commit.

        Args:
            keys: Keys of the records; if a key occurs more than once, the last one wins.
            group_ids: One group id per key, None for no group.
            time_at_least: Time that this machine's clock must have reached.

        Raises:
            InputError: The numbers of keys and group ids differ, or `time_at_least` is in the future.
        """
        if group_ids is not None and len(group_ids) != len(keys):
            raise InputError(f"update got {len(keys)} keys and {len(group_ids)} group ids: pass one group id per key")
        now = max(time.time(), self._started)
        if time_at_least is not None and time_at_least > now:
            raise InputError(f"time_at_least is {time_at_least}, but it is only {now}: is this machine's clock behind?")
        groups = dict(zip(keys, group_ids or [None] * len(keys), strict=True))
        if not groups:
            return
        import pyarrow as pa

        rows = [
            {"id": self._id(key), "namespace": self.namespace, "key": key, "group_id": group, "updated_at": now}
            for key, group in groups.items()
        ]
        new = pa.Table.from_pylist(rows, _schema())
        with self._table() as table:
            # Without a BTree index on it, the primary key prevents duplicates from concurrent upserts.
            merge = table.merge_insert("id").use_index(False)
            merge.when_matched_update_all().when_not_matched_insert_all().execute(new)

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """Return for each key whether a record exists."""
        found = {
            id
            for condition in _any_of("id", [self._id(key) for key in keys])
            for id in self._select(condition, ["id"])["id"].to_pylist()
        }
        return [self._id(key) in found for key in keys]

    def list_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        """Return keys in no particular order.

        Args:
            before: Only records written before this time.
            after: Only records written after this time.
            group_ids: Only records of these groups; an empty list matches no record.
            limit: Maximum number of keys.
        """
        where = self._where()
        if before is not None:
            where += f" AND updated_at < {float(before)!r}"
        if after is not None:
            where += f" AND updated_at > {float(after)!r}"
        conditions = [where]
        if group_ids is not None:
            conditions = [f"{where} AND {groups}" for groups in _any_of("group_id", list(dict.fromkeys(group_ids)))]
        keys: list[str] = []
        for condition in conditions:
            if limit is not None and len(keys) >= limit:
                break
            keys += self._select(condition, ["key"], limit)["key"].to_pylist()
        return keys[:limit]

    def delete_keys(self, keys: Sequence[str]) -> None:
        """Delete records. Unknown keys are ignored."""
        for condition in _any_of("id", [self._id(key) for key in keys]):
            with self._table() as table:
                table.delete(condition)

    acreate_schema = in_thread(create_schema)
    aget_time = in_thread(get_time)
    aupdate = in_thread(update)
    aexists = in_thread(exists)
    alist_keys = in_thread(list_keys)
    adelete_keys = in_thread(delete_keys)

    def _id(self, key: str) -> str:
        """Return the primary key, which is unique for each pair of namespace and key."""
        return json.dumps([self.namespace, key])

    def _where(self) -> str:
        return f"namespace = {_quote(self.namespace)}"

    def _select(self, where: str, columns: list[str], limit: int | None = None) -> pa.Table:
        with self._table() as table:
            return table.search().where(where).select(columns).limit(limit).to_arrow()

    @contextmanager
    def _table(self) -> Iterator[Any]:
        """Open or create the table, and turn errors of LanceDB into a `StoreError` that names the database."""
        import lancedb

        try:
            with _CREATING:
                if self._opened is None:
                    database = lancedb.connect(
                        self.uri, storage_options=self._storage_options, read_consistency_interval=timedelta(0)
                    )
                    self._opened = database.create_table(TABLE, schema=_schema(), exist_ok=True)
            yield self._opened
        except (RuntimeError, OSError, ValueError) as error:
            raise StoreError(f"cannot read or write the records in {self.uri}: {error}") from error


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata={"lance-schema:unenforced-primary-key": "true"}),
            pa.field("namespace", pa.string(), nullable=False),
            pa.field("key", pa.string(), nullable=False),
            pa.field("group_id", pa.string()),
            pa.field("updated_at", pa.float64(), nullable=False),
        ]
    )


def _any_of(column: str, values: Sequence[str]) -> Iterator[str]:
    """Yield SQL conditions that together select these values of a column, each small enough for one statement."""
    for start in range(0, len(values), _VALUES_PER_STATEMENT):
        yield f"{column} IN ({', '.join(map(_quote, values[start : start + _VALUES_PER_STATEMENT]))})"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
