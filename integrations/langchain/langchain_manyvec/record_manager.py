"""`ManyvecRecordManager`: what LangChain's indexing API has written, remembered beside the index itself."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from langchain_core.indexing import RecordManager
from langchain_core.runnables import run_in_executor

from manyvec import InputError, StoreError

if TYPE_CHECKING:
    import pyarrow as pa

TABLE = "langchain_records"
# 1,000 values in an IN (...) take LanceDB 6 ms, 10,000 take 40.
_VALUES_PER_STATEMENT = 1000
# A float of seconds since 1970 still tells these apart.
_TICK = 1e-6
# Two that create a table at the same moment both succeed in LanceDB, and the second empties what the first has written.
_CREATING = threading.Lock()


class ManyvecRecordManager(RecordManager):
    """Records for `langchain_core.indexing.index`, in a table of the index's own LanceDB database.

        records = ManyvecRecordManager("papers", index.uri)
        langchain_core.indexing.index(documents, records, store, cleanup="full", key_encoder="blake2b")

    Several processes may write, once `create_schema` or the first write of one of them has made the table. Time is this
    machine's clock, moved on where the newest record is ahead of it, so that a clock set back hides no outdated
    document from a cleanup.

    Args:
        namespace: records of one namespace know nothing of another's.
        uri: the folder or bucket of the index, or any other.
    """

    def __init__(self, namespace: str, uri: str | PathLike[str]) -> None:
        super().__init__(namespace)
        self.uri = fspath(uri)
        self._started = 0.0
        self._opened: Any = None

    def create_schema(self) -> None:
        """Make the table if there is none, else merge the small files that earlier runs left. Optional."""
        with self._table() as table:
            # A handle that missed another writer's delete fails in optimize.
            table.checkout_latest()
            table.optimize(cleanup_older_than=timedelta(hours=1))

    def get_time(self) -> float:
        """Seconds since 1970, later than every record of the namespace."""
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
        """Write records, in one commit; a key that is there is replaced. Of equal keys in one call the last wins.

        Raises:
            InputError: keys and group ids differ in number, or `time_at_least` lies in the future.
        """
        if group_ids is not None and len(group_ids) != len(keys):
            raise InputError(f"update got {len(keys)} keys and {len(group_ids)} group ids: give one for each")
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
            # Without a BTree on it, the primary key keeps concurrent upserts from making duplicates.
            merge = table.merge_insert("id").use_index(False)
            merge.when_matched_update_all().when_not_matched_insert_all().execute(new)

    def exists(self, keys: Sequence[str]) -> list[bool]:
        """Whether each key is there, in the order of the keys."""
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
        """Keys written before and after these times, of any of these groups; no group at all gives no key."""
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
        """Delete records; unknown keys do no harm."""
        for condition in _any_of("id", [self._id(key) for key in keys]):
            with self._table() as table:
                table.delete(condition)

    async def acreate_schema(self) -> None:
        await run_in_executor(None, self.create_schema)

    async def aget_time(self) -> float:
        return await run_in_executor(None, self.get_time)

    async def aupdate(
        self,
        keys: Sequence[str],
        *,
        group_ids: Sequence[str | None] | None = None,
        time_at_least: float | None = None,
    ) -> None:
        await run_in_executor(None, self.update, keys, group_ids=group_ids, time_at_least=time_at_least)

    async def aexists(self, keys: Sequence[str]) -> list[bool]:
        return await run_in_executor(None, self.exists, keys)

    async def alist_keys(
        self,
        *,
        before: float | None = None,
        after: float | None = None,
        group_ids: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[str]:
        return await run_in_executor(None, self.list_keys, before=before, after=after, group_ids=group_ids, limit=limit)

    async def adelete_keys(self, keys: Sequence[str]) -> None:
        await run_in_executor(None, self.delete_keys, keys)

    def _id(self, key: str) -> str:
        """The primary key: unlike pairs of namespace and key never give the same text."""
        return json.dumps([self.namespace, key])

    def _where(self) -> str:
        return f"namespace = {_quote(self.namespace)}"

    def _select(self, where: str, columns: list[str], limit: int | None = None) -> pa.Table:
        with self._table() as table:
            return table.search().where(where).select(columns).limit(limit).to_arrow()

    @contextmanager
    def _table(self) -> Iterator[Any]:
        """The table, made if there is none yet; what LanceDB raises becomes one error that says where."""
        import lancedb

        try:
            with _CREATING:
                if self._opened is None:
                    database = lancedb.connect(self.uri, read_consistency_interval=timedelta(0))
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
    """Conditions that together hold for these values of a column, each small enough for one statement."""
    for start in range(0, len(values), _VALUES_PER_STATEMENT):
        yield f"{column} IN ({', '.join(map(_quote, values[start : start + _VALUES_PER_STATEMENT]))})"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
