"""Connections to LanceDB: how they are made, which errors they raise, and how ids become SQL conditions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from manyvec.errors import IndexNotFoundError, InputError, ManifestError, StoreError, WriteConflictError
from manyvec.filters import quote

if TYPE_CHECKING:
    from lancedb.table import Table

TABLE = "documents"
# What LanceDB says when another writer committed first and when it has tried for too long.
_CONFLICTS = ("commit conflict", "concurrent writers", "concurrent transaction")
# LanceDB takes 6 ms for 1,000 values in an IN (...) and 40 ms for 10,000.
_IDS_PER_CONDITION = 1000
# Bounds on what LanceDB keeps in memory for a connection; its own are 1 GB and 6 GB. Metadata of every version and file
# that was read: 150 KB for each commit. And search indexes: a quarter of the cache's budget, but at least this much.
_METADATA_BYTES = 32 * 2**20
_MIN_INDEX_BYTES = 64 * 2**20
# Modules of the exceptions that a panic in LanceDB's Rust raises. Those of the second are not even an `Exception`.
_RUST_PANICS = ("pyo3_async_runtimes", "pyo3_runtime")


class Connection:
    """A connection to a LanceDB database.

    Args:
        uri: A folder, a bucket, or `memory://`.
        cache_bytes: Memory budget of the index, which bounds what LanceDB keeps in memory of search indexes.
        is_consistent: Whether every use of a table looks for commits of other processes: 0.2 ms on a local disk, a
            request in a bucket. Otherwise only `checkout_latest` does.

    Attributes:
        database: LanceDB's connection.
    """

    def __init__(self, uri: str, cache_bytes: int = 0, *, is_consistent: bool = True) -> None:
        import lancedb

        self.uri = uri
        self.cache_bytes = cache_bytes
        self._session = lancedb.Session(
            index_cache_size_bytes=max(_MIN_INDEX_BYTES, cache_bytes // 4), metadata_cache_size_bytes=_METADATA_BYTES
        )
        self.database = lancedb.connect(
            uri,
            storage_options={"new_table_enable_stable_row_ids": "true"},
            read_consistency_interval=timedelta(0) if is_consistent else None,
            session=self._session,
        )

    @property
    def bytes_held(self) -> int:
        """Bytes that LanceDB keeps in memory for this connection."""
        return int(self._session.size_bytes)

    def documents(self) -> Table:
        """Return a new handle of the documents' table."""
        return self.database.open_table(TABLE)

    def renewed(self) -> Connection:
        """Return a new connection, for which LanceDB keeps nothing in memory and no file open yet."""
        return Connection(self.uri, self.cache_bytes)


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Raise errors of LanceDB as `StoreError("cannot <action>: …")`; manyvec's own errors pass unchanged.

    One that says that another writer committed first becomes a `WriteConflictError`.
    """
    try:
        yield
    except (InputError, StoreError, IndexNotFoundError, ManifestError):
        raise
    # LanceDB raises RuntimeError for most disk errors and ValueError for the others.
    except (RuntimeError, OSError, ValueError) as error:
        is_conflict = any(words in str(error).lower() for words in _CONFLICTS)
        raise (WriteConflictError if is_conflict else StoreError)(f"cannot {action}: {error}") from error
    except BaseException as error:
        if type(error).__module__ not in _RUST_PANICS:
            raise
        raise StoreError(f"cannot {action}: LanceDB panicked, which damaged files lead to: {error}") from error


def where_ids(ids: Sequence[str]) -> Iterator[str]:
    """Yield SQL conditions that together select these ids, each short enough for one statement."""
    for start in range(0, len(ids), _IDS_PER_CONDITION):
        yield f"id IN ({', '.join(quote(id) for id in ids[start : start + _IDS_PER_CONDITION])})"


def disk_bytes(uri: str) -> int | None:
    """Return the size of an index in a folder, all stored versions included; None for one in a bucket."""
    if "://" in uri:
        return None
    return sum(path.stat().st_size for path in Path(uri).rglob("*") if path.is_file())
