"""`OpenedIndex`: a connection to one index, which notices when another index has taken its place.

A folder can be deleted and built again, or replaced by a copy, while a process holds it open. LanceDB's handles follow
the path: they would serve the new table to code that still has token vectors of the old one in memory. An index is told
apart by the random identity in its manifest, and one copy of an index from another by the files of its versions.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from manyvec.errors import IndexNotFoundError
from manyvec.storage.centroids import CentroidTables
from manyvec.storage.lance import Connection, Place, SearchIndexFiles, translated
from manyvec.storage.lock import Turns
from manyvec.storage.schema import MANIFEST_KEY, Manifest

if TYPE_CHECKING:
    from lancedb.table import Table

logger = logging.getLogger(__name__)

# In the folder of the documents' table; LanceDB ignores it.
_VERSION = ".manyvec-version"
_generations = itertools.count(1)
# Versions after which a connection is replaced. LanceDB keeps files of search indexes open that `optimize`, in this
# process or another, has replaced and deleted: one or two each time. A new connection takes 5 ms.
_VERSIONS_PER_CONNECTION = 100


class _Version(NamedTuple):
    """A version of a table, and what tells it from a version of another table that has the same number.

    Attributes:
        number: Version number.
        identity: Identity of the index, where it is read with every look at the version: in a bucket.
        file: Inode, time of the last change in nanoseconds, and size of the version's file: in a folder.
    """

    number: int
    identity: str = ""
    file: tuple[int, int, int] | None = None


class OpenedIndex:
    """A connection to one index.

    Attributes:
        uri: The database.
        generation: Number that no other connection of this process has.
        manifest: The index's manifest.
        connection: Connection to the database.
        table: Handle of the documents' table: at its newest version, which in a bucket `newest` looks for.
        centroids: The tables of centroids beside the documents.
        writers: Lets the writers of the index take turns.
        optimizers: Lets those take turns who merge files and build lists, which goes on between writes.
        search_index_files: Files of the search indexes.
    """

    def __init__(self, connection: Connection, table: Table, manifest: Manifest) -> None:
        place = connection.place
        self.uri = str(place)
        self.generation = next(_generations)
        self.manifest = manifest
        self.connection = connection
        self.table = table
        self.centroids = CentroidTables(place, manifest, connection.database, table)
        self._looking = threading.Lock()
        self.writers, self.optimizers = Turns(place.folder), Turns(place.folder, "optimizer")
        self._folder = None if place.folder is None else place.folder / f"{place.table}.lance"
        self.search_index_files = SearchIndexFiles(self._folder)
        self._folder_inode = self._inode()
        self._times = self._version_times()
        self._seen = self._look()
        self._connected_at = self._seen.number

    @classmethod
    def open(cls, place: Place, cache_bytes: int) -> OpenedIndex:
        """Open an index.

        Args:
            place: Where it lies.
            cache_bytes: Its memory budget; see `Connection`.

        Raises:
            IndexNotFoundError: There is no index.
            ManifestError: The manifest is missing, damaged, or of an unknown format.
        """
        # LanceDB would create the folder.
        if place.folder is not None and not place.folder.is_dir():
            raise IndexNotFoundError(f"there is no index at {place.uri}: no such folder. Index.create makes one")
        with translated(f"open the index {place}"):
            connection = Connection(place, cache_bytes)
            if place.table not in connection.database.list_tables().tables:
                raise IndexNotFoundError(
                    f"there is no index at {place.uri}: no table {place.table!r}. Index.create makes one"
                )
            table = connection.documents()
            opened = cls(connection, table, Manifest.parse(manifest_json(table), str(place)))
        if lost := opened.lost_versions():
            logger.warning(
                "the index %s is at version %d, but version %d was committed: its files are missing, or an older copy "
                "was put in its place",
                place,
                *lost,
            )
        return opened

    def newest(self) -> int | None:
        """Return the newest version of the index, or None if another index has taken its place."""
        seen, now = self._seen, self._look()
        if now == seen:
            return seen.number
        with self._looking:
            if self._seen is not seen:
                # Another thread has seen another version meanwhile.
                now = self._look()
            if now != self._seen:
                manifest = Manifest.parse(manifest_json(self.table), self.uri)
                if not self._is_successor(now, manifest):
                    return None
                self.manifest, self._seen = manifest, now
                if now.number - self._connected_at >= _VERSIONS_PER_CONNECTION:
                    self.reconnect()
            return now.number

    def note(self, version: int) -> None:
        """Note a version that was committed, beside the table: without its last file, an older one would be served."""
        if self._folder is None:
            return
        # What was committed counts, even if the disk is full now.
        with suppress(OSError):
            (self._folder / _VERSION).write_text(f"{self.manifest.identity} {version}")
        with self._looking:
            seen = self._seen
            is_due = version - self._connected_at >= _VERSIONS_PER_CONNECTION
            # The version after the one that was seen, of the same index: its manifest need not be read again.
            if version == seen.number + 1 and self._file(seen.number) == seen.file is not None and not is_due:
                self._seen = _Version(version, file=self._file(version))

    def lost_versions(self) -> tuple[int, int] | None:
        """Return the newest version there is and the newest one that was noted, if the second is newer."""
        try:
            noted = "" if self._folder is None else (self._folder / _VERSION).read_text()
        except (OSError, UnicodeDecodeError):
            return None
        identity, _, version = noted.partition(" ")
        if identity != self.manifest.identity or not version.isdecimal() or int(version) <= self._seen.number:
            return None
        return self._seen.number, int(version)

    def reconnect(self) -> None:
        """Replace the connection by a new one. Snapshots keep the old one until they are dropped."""
        # A database in memory exists in its connection only.
        if self.uri.startswith("memory:"):
            return
        connection = self.connection.renewed()
        self.table = connection.documents()
        self.connection = connection
        self.centroids.reconnect(connection.database, self.table)
        self._connected_at = self._seen.number

    def is_of(self, table: Table, version: int) -> bool:
        """Return whether a handle at this version, the newest, belongs to this index."""
        seen = self._seen
        if seen.number == version and seen.file is not None:
            return self._file(version) == seen.file
        return Manifest.parse(manifest_json(table), self.uri).identity == self.manifest.identity

    def identify(self) -> None:
        """Write an identity into a manifest of format 1, which has none."""
        if self.manifest.identity:
            return
        with self._looking:
            manifest = self.manifest.identified()
            update = {"path": "tokens", "metadata": {MANIFEST_KEY: manifest.to_json()}}
            try:
                self.table.update_field_metadata(update)
            except (RuntimeError, OSError, ValueError):
                # Another process may have written one at the same time: then that one counts.
                manifest = Manifest.parse(manifest_json(self.table), self.uri)
                if not manifest.identity:
                    raise
            self.manifest = manifest

    def declare(self, columns: Mapping[str, str]) -> None:
        """Write further filter columns into the manifest."""
        with self._looking:
            self.table.checkout_latest()
            manifest = Manifest.parse(manifest_json(self.table), self.uri).with_columns(columns)
            self.table.update_field_metadata({"path": "tokens", "metadata": {MANIFEST_KEY: manifest.to_json()}})
            self.manifest = manifest

    def _look(self) -> _Version:
        place = self.connection.place
        if place.is_in_bucket or place.connection is not None:
            # A connection that a user has made does not look for commits by itself, either.
            self.table.checkout_latest()
        number = int(self.table.version)
        if place.is_in_bucket:
            return _Version(number, Manifest.parse(manifest_json(self.table), self.uri).identity)
        return _Version(number, file=self._file(number))

    def _is_successor(self, now: _Version, manifest: Manifest) -> bool:
        """Return whether a version was committed to this index after the one that was seen last."""
        seen = self._seen
        if now.number < seen.number or (self.manifest.identity and manifest.identity != self.manifest.identity):
            return False
        if self._folder is None:
            times, self._times = self._times, self._version_times()
            return all(self._times.get(number, time) == time for number, time in times.items())
        # The file of a version never changes. It may have been removed by `optimize`.
        file = self._file(seen.number)
        return file == seen.file if file is not None else self._inode() == self._folder_inode

    def _file(self, version: int) -> tuple[int, int, int] | None:
        if self._folder is None:
            return None
        # Lance's two ways to name the file of a version.
        for name in (f"{2**64 - 1 - version:020}.manifest", f"{version}.manifest"):
            try:
                stat = os.stat(f"{self._folder}/_versions/{name}")  # pathlib takes five times as long
            except OSError:
                continue
            return stat.st_ino, stat.st_mtime_ns, stat.st_size
        return None

    def _inode(self) -> int | None:
        return None if self._folder is None else self._folder.stat().st_ino

    def _version_times(self) -> dict[int, datetime]:
        """Return when each version was committed, where an index in a bucket cannot be told apart by its identity."""
        if not self.connection.place.is_in_bucket or self.manifest.identity:
            return {}
        return {version["version"]: version["timestamp"] for version in self.table.list_versions()}


def manifest_json(table: Table) -> bytes | None:
    """Return the manifest that is stored with a table; None if there is none."""
    schema = table.schema
    metadata = (schema.field("tokens").metadata or {}) if "tokens" in schema.names else {}
    written: bytes | None = metadata.get(MANIFEST_KEY.encode())
    return written
