"""LanceDB: connections to it, the errors that it raises, its search indexes' files, and ids as SQL conditions."""

from __future__ import annotations

import inspect
import json
import re
import secrets
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec, module_from_spec
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from manyvec.errors import IndexNotFoundError, InputError, ManifestError, StoreError, WriteConflictError
from manyvec.filters import quote
from manyvec.filters.values import shown

if TYPE_CHECKING:
    import lancedb
    from lancedb.table import Table

TABLE = "documents"
_TABLE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# Starts of the names of other tables; see `CentroidTables` and LangChain's `ManyvecRecordManager`.
_CENTROIDS = ("codec_", "codebook_", "assigned_")
_RESERVED = (*_CENTROIDS, "langchain_records")
# What messages of LanceDB mean; those of object stores are otherwise 1,500 characters of Rust.
_MEANINGS = {
    "NoSuchBucket|bucket does not exist": "there is no such bucket",
    "AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|status: 403|status: 401|InvalidToken|ExpiredToken": (
        "access was denied: check the credentials in the environment or in storage_options"
    ),
    "ConnectError|dns error|kind: Connect": "the object store cannot be reached: check the network and the endpoint",
    "Connection is closed": "its connection is closed: open the index with another one from lancedb.connect",
}
_MAX_MESSAGE = 300
# In the folder of the documents' table; LanceDB ignores it.
_CHECKSUMS = ".manyvec-checksums"
# What LanceDB says when another writer committed first and when it has tried for too long.
_CONFLICTS = ("commit conflict", "concurrent writers", "concurrent transaction")
# LanceDB takes 6 ms for 1,000 values in an IN (...) and 40 ms for 10,000.
_IDS_PER_CONDITION = 1000
# Bounds on what LanceDB keeps in memory for a connection; its own are 1 GB and 6 GB. Metadata of every version and file
# that was read: 150 KB for each commit. And search indexes: a quarter of the cache's budget, but at least this much.
_METADATA_BYTES = 32 * 2**20
_MIN_INDEX_BYTES = 64 * 2**20
# A package of LanceDB's REST clients for remote catalogs, which make up two fifths of what importing lancedb takes.
_REST_CLIENTS = "lance_namespace_urllib3_client"
# Modules of the exceptions that a panic in LanceDB's Rust raises. Those of the second are not even an `Exception`.
_RUST_PANICS = ("pyo3_async_runtimes", "pyo3_runtime")


class _Deferred(ModuleType):
    """A package whose `__init__` runs when something of it is asked for; its submodules can be imported before."""

    def __getattr__(self, name: str) -> Any:
        with _running:
            if "_is_running" in self.__dict__:
                raise AttributeError(name)
            if isinstance(self, _Deferred):
                self.__dict__["_is_running"] = True
                try:
                    assert self.__spec__ is not None and self.__spec__.loader is not None
                    self.__spec__.loader.exec_module(self)
                finally:
                    del self.__dict__["_is_running"]
                self.__class__ = ModuleType  # type: ignore[assignment]  # an ordinary module from now on
        return getattr(self, name)


# Held by the thread that runs an `__init__`.
_running = threading.RLock()


def _defer(package: str) -> None:
    """Let a package be imported without running its `__init__`, unless it is imported already."""
    if package not in sys.modules and (spec := find_spec(package)) is not None:
        module = module_from_spec(spec)
        module.__class__ = _Deferred
        sys.modules[package] = module


# lancedb needs types of a submodule only.
_defer(_REST_CLIENTS)


@dataclass(frozen=True)
class Place:
    """Where an index lies.

    Args:
        uri: Database: an absolute path, a bucket's URI, or `memory://`.
        table: Name of the documents' table.
        storage_options: LanceDB's options for the object store, such as credentials. They are never written or shown.
        connection: Connection to a database in memory, which exists nowhere else.
    """

    uri: str
    table: str = TABLE
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    connection: lancedb.DBConnection | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        uri: str | PathLike[str] | None,
        *,
        storage_options: Mapping[str, str] | None = None,
        connection: lancedb.DBConnection | None = None,
        table_name: str | None = None,
    ) -> Place:
        """Return the place that a user named; see `Index.create`.

        Raises:
            InputError: Both `uri` and `connection` are passed or neither, or one of the arguments cannot be used.
        """
        if connection is not None:
            if uri is not None:
                raise InputError("pass either the uri of a database or a connection to it, not both")
            if not callable(getattr(connection, "list_tables", None)) or inspect.iscoroutinefunction(
                connection.list_tables
            ):
                raise InputError(f"connection must come from lancedb.connect, got {type(connection).__name__}")
            # Copied: LanceDB's connection is closed or used otherwise by whoever made it.
            options = getattr(connection, "storage_options", None) or {}
            storage_options = {**options, **(storage_options or {})}
            try:
                uri = str(connection.uri)
            except RuntimeError as error:
                raise InputError("connection is closed: pass an open one from lancedb.connect") from error
        path = fspath(uri) if isinstance(uri, (str, PathLike)) else uri
        if not isinstance(path, str) or not path.strip():
            raise InputError(f"an index needs a folder or a bucket's URI, got {uri!r}")
        if path.startswith("db://"):
            raise InputError("manyvec cannot use LanceDB Cloud (db://): pass a folder or a bucket's URI")
        if "://" in path and "@" in path.partition("://")[2].partition("/")[0] and not path.startswith(("az", "abfs")):
            raise InputError("a URI must not hold credentials: pass storage_options, or set environment variables")
        if table_name is not None and (not _TABLE_NAME.fullmatch(table_name) or table_name.startswith(_RESERVED)):
            raise InputError(
                f"table_name must consist of at most 64 letters, digits, - and _, and not start with "
                f"{', '.join(_RESERVED)}; got {shown(table_name)}"
            )
        options = dict(storage_options or {})
        if wrong := [
            name for name, value in options.items() if not isinstance(name, str) or not isinstance(value, str)
        ]:
            raise InputError(f"storage_options must be a dict of strings; the value of {wrong[0]!r} is none")
        in_memory = connection if path.startswith("memory:") else None
        # Absolute, so that the index stays itself when the process changes its working directory.
        absolute = path if "://" in path else str(Path(path).expanduser().absolute())
        return cls(absolute, table_name or TABLE, options, in_memory)

    def __str__(self) -> str:
        return self.uri if self.table == TABLE else f"{self.uri} (table {self.table!r})"

    @property
    def prefix(self) -> str:
        """Start of the names of the tables that belong to this index, beside that of the documents."""
        return "" if self.table == TABLE else f"{self.table}."

    @property
    def folder(self) -> Path | None:
        """Folder of the database; None for one in a bucket or in memory."""
        return None if "://" in self.uri else Path(self.uri)

    @property
    def is_in_bucket(self) -> bool:
        """Whether each look at the database is a request to an object store."""
        return self.folder is None and not self.uri.startswith("memory:")

    def unfinished_files(self) -> Iterator[Path]:
        """Yield the files of this index that are being written, or were by a writer that was killed."""
        if self.folder is not None:
            for name in (self.table, *(f"{self.prefix}{start}*" for start in _CENTROIDS)):
                yield from self.folder.glob(f"{name}.lance/*/.tmp*")

    def disk_bytes(self) -> int | None:
        """Return the size of the index on disk, all stored versions included; None for one in a bucket."""
        if self.folder is None:
            return None
        tables = self.folder.glob("*" if self.table == TABLE else f"{self.table}.*")
        paths = (path for table in tables for path in (table, *table.rglob("*")))
        return sum(path.stat().st_size for path in paths if path.is_file())


class Connection:
    """A connection to the database of an index.

    Args:
        place: The index.
        cache_bytes: Memory budget of the index, which bounds what LanceDB keeps in memory of search indexes.

    Attributes:
        database: LanceDB's connection.
    """

    def __init__(self, place: Place, cache_bytes: int = 0) -> None:
        import lancedb

        self.place = place
        self.cache_bytes = cache_bytes
        self._session = lancedb.Session(
            index_cache_size_bytes=max(_MIN_INDEX_BYTES, cache_bytes // 4), metadata_cache_size_bytes=_METADATA_BYTES
        )
        # Not `or`: a connection to an empty database counts as false.
        if place.connection is not None:
            self.database = place.connection
            return
        self.database = lancedb.connect(
            place.uri,
            storage_options={**place.storage_options, "new_table_enable_stable_row_ids": "true"},
            # Every use of a table looks for commits of other processes, 0.2 ms on a local disk. In a bucket this would
            # be a request, and only `checkout_latest` looks.
            read_consistency_interval=None if place.is_in_bucket else timedelta(0),
            session=self._session,
        )

    @property
    def bytes_held(self) -> int:
        """Bytes that LanceDB keeps in memory for this connection."""
        return int(self._session.size_bytes)

    def documents(self) -> Table:
        """Return a new handle of the documents' table."""
        return self.database.open_table(self.place.table)

    def renewed(self) -> Connection:
        """Return a new connection, for which LanceDB keeps nothing in memory and no file open yet."""
        return Connection(self.place, self.cache_bytes)


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
        if (known := _known(str(error))) is not None:
            # Not `from error`: the object store's reply may repeat an access key.
            raise StoreError(f"cannot {action}: {known}") from None
        raise (WriteConflictError if is_conflict else StoreError)(f"cannot {action}: {_shortened(error)}") from error
    except BaseException as error:
        if type(error).__module__ not in _RUST_PANICS:
            raise
        raise StoreError(
            f"cannot {action}: LanceDB panicked, which damaged files lead to: {_shortened(error)}"
        ) from error


def _known(message: str) -> str | None:
    """Return what an error of an object store means, if that is known."""
    return next((meaning for words, meaning in _MEANINGS.items() if re.search(words, message)), None)


def _shortened(error: BaseException) -> str:
    """Return LanceDB's message in one line, without where in its source it arose."""
    message = re.sub(
        r",? *(location: Location \{[^}]*\}|backtrace: \w+|\S*/\.cargo/\S*|\S+\.rs:\d+\S*)", "", str(error)
    )
    message = " ".join(message.split())
    return message if len(message) <= _MAX_MESSAGE else message[:_MAX_MESSAGE] + "…"


class SearchIndexFiles:
    """The files of the search indexes of an index in a folder, with checksums, which LanceDB's have not.

    LanceDB writes the files of a search index into a new folder and never changes them.

    Args:
        folder: Folder of the documents' table; None for a bucket, where nothing is noted or compared.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._compared: dict[str, bool] = {}

    def note(self, *, anew: bool = False) -> None:
        """Note the checksums of files that are new, or of all files `anew`."""
        if self._folder is None:
            return
        noted = {} if anew else self._noted()
        checksums = {name: noted.get(name) or _file_checksum(path) for name, path in self._files()}
        # What was committed counts, even if the disk is full now.
        with suppress(OSError):
            new = self._folder / f"{_CHECKSUMS}-{secrets.token_hex(4)}"
            new.write_text(json.dumps(checksums))
            new.replace(self._folder / _CHECKSUMS)

    def damaged(self) -> list[str]:
        """Return the files that differ from those that were written. Each is compared once for each connection."""
        if self._folder is None:
            return []
        files = list(self._files())
        if any(name not in self._compared for name, _ in files):
            noted = self._noted()
            for name, path in files:
                if name not in self._compared and name in noted:
                    self._compared[name] = _file_checksum(path) == noted[name]
        return [name for name, _ in files if not self._compared.get(name, True)]

    def _files(self) -> Iterator[tuple[str, Path]]:
        if self._folder is not None:
            for path in sorted((self._folder / "_indices").glob("*/*")):
                yield f"{path.parent.name}/{path.name}", path

    def _noted(self) -> dict[str, int]:
        try:
            noted = json.loads((self._folder / _CHECKSUMS).read_text()) if self._folder else {}
        except (OSError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}


def _file_checksum(path: Path) -> int | None:
    """Return the CRC-32 of a file; None if it was deleted meanwhile."""
    checksum = 0
    try:
        with path.open("rb") as file:
            while part := file.read(2**20):
                checksum = zlib.crc32(part, checksum)
    except OSError:
        return None
    return checksum


def where_ids(ids: Sequence[str]) -> Iterator[str]:
    """Yield SQL conditions that together select these ids, each short enough for one statement."""
    for start in range(0, len(ids), _IDS_PER_CONDITION):
        yield f"id IN ({', '.join(quote(id) for id in ids[start : start + _IDS_PER_CONDITION])})"
