"""`Layout`: what the file `shards.json` of a cluster says, and which shard a document belongs to; and that file."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from manyvec.errors import InputError, ManifestError, StoreError, check_count
from manyvec.storage.lance import Place, translated
from manyvec.storage.schema import Manifest

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

FILE = "shards.json"
MAX_SHARDS = 10_000
_FORMAT = 1
_HASH = "blake2b-64"
_FIELDS = {"format", "shards", "hash", "generation", "index"}

# Names of LanceDB's options for S3, without `aws_`, and what pyarrow calls them.
_S3_OPTIONS = {
    "access_key_id": "access_key",
    "secret_access_key": "secret_key",
    "session_token": "session_token",
    "region": "region",
    "endpoint": "endpoint_override",
    "endpoint_url": "endpoint_override",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Layout:
    """How many shards a cluster has, and what each of them is.

    Attributes:
        n_shards: Number of shards.
        manifest: What the manifests of all shards say, except for their identities.
        generation: 1, and one more after each `reshard`, which writes new shards beside the old ones.
    """

    n_shards: int
    manifest: Manifest
    generation: int = 1

    def name(self, shard: int) -> str:
        """Return the name of a shard's folder."""
        return f"shard-{shard:04d}" if self.generation == 1 else f"shard-{shard:04d}-{self.generation}"

    def place(self, place: Place, shard: int) -> Place:
        """Return where a shard lies."""
        return replace(place, uri=f"{place.uri.rstrip('/')}/{self.name(shard)}")

    def shard_of(self, id: str) -> int:
        """Return the number of the shard that holds a document: a hash of its id, so nothing is looked up."""
        return hash_of(id) % self.n_shards

    def parted(self, items: Iterable[tuple[str, T]]) -> dict[int, list[T]]:
        """Return items, each with its id before it, by the shard that they belong to, in their order."""
        parts: dict[int, list[T]] = {}
        for id, item in items:
            parts.setdefault(self.shard_of(id), []).append(item)
        return parts

    def check(self, shard: int, manifest: Manifest, uri: str) -> None:
        """Raise a `ManifestError` if the index that lies where a shard should be is another one."""
        names = ("model", "fingerprint", "dim", "storage", "pool_factor", "images", "lexical_weight", "filter_columns")
        for name in names:
            found, wanted = getattr(manifest, name), getattr(self.manifest, name)
            if found != wanted:
                raise ManifestError(
                    f"{self.name(shard)} of the cluster {uri} has the {name} {found!r}, and {FILE} says {wanted!r}: "
                    + (
                        "call add_filter_columns again"
                        if name == "filter_columns"
                        else "restore the shard, or build the cluster again"
                    )
                )

    def to_json(self) -> str:
        """Return the layout as `parse` reads it."""
        return json.dumps(
            {
                "format": _FORMAT,
                "shards": self.n_shards,
                "hash": _HASH,
                "generation": self.generation,
                "index": asdict(replace(self.manifest, identity="")),
            },
            indent=2,
        )

    @classmethod
    def parse(cls, written: bytes, uri: str) -> Layout:
        """Read `shards.json`.

        Raises:
            ManifestError: It is damaged, or another version of manyvec wrote it.
        """
        try:
            values: dict[str, Any] = json.loads(written)
            if values["format"] != _FORMAT or values["hash"] != _HASH:
                raise ManifestError(
                    f"{FILE} of the cluster {uri} has format {values['format']!r} and hash {values['hash']!r}, this "
                    f"manyvec reads format {_FORMAT} with {_HASH}: install the manyvec that wrote it"
                )
            if unknown := set(values) ^ _FIELDS:
                raise ValueError(f"the field {sorted(unknown)[0]!r} is missing or unknown")
            check_count(values["shards"], "shards", minimum=1)
            check_count(values["generation"], "generation", minimum=1)
            manifest = Manifest.parse(json.dumps(values["index"]).encode(), uri)
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, ManifestError) and "manifest" not in str(error):
                raise
            raise ManifestError(
                f"{FILE} of the cluster {uri} is damaged: {error}. Restore it from a copy: it cannot be guessed"
            ) from error
        return cls(values["shards"], manifest, values["generation"])

    @classmethod
    def read(cls, place: Place) -> Layout | None:
        """Read the `shards.json` of a cluster; return None if there is none.

        Raises:
            ManifestError: It is damaged, or another version of manyvec wrote it.
            StoreError: It cannot be read.
        """
        written = Files(place).read(FILE)
        return None if written is None else cls.parse(written, place.uri)

    def write(self, place: Place) -> None:
        """Write `shards.json`. Readers see the old file or the new one."""
        Files(place).write(FILE, self.to_json().encode())


def hash_of(text: str) -> int:
    """Return 64 bits that depend on a string alone, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def check_shards(shards: object) -> int:
    """Return a number of shards.

    Raises:
        InputError: It is not an integer from 1 to 10,000.
    """
    count = check_count(shards, "shards", minimum=1)
    if count > MAX_SHARDS:
        raise InputError(f"shards must be at most {MAX_SHARDS:,}, got {count:,}")
    return count


class Files:
    """Reads and writes whole files under a URI.

    Args:
        place: Where they lie.

    Raises:
        InputError: The URI is `memory://`, where there are no files.
    """

    def __init__(self, place: Place) -> None:
        if place.uri.startswith("memory:"):
            raise InputError("a cluster needs a folder or a bucket's URI: memory:// holds one index only")
        self._place = place
        self._folder = place.folder

    def read(self, name: str) -> bytes | None:
        """Return a file; None if there is none."""
        import pyarrow.fs as pafs

        if self._folder is not None:
            try:
                return (self._folder / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                raise StoreError(f"cannot read {name} of {self._place.uri}: {error}") from error
        # Whoever opens an index that is no cluster has not heard of this file.
        with translated(action := f"open the index {self._place.uri}"):
            system, path = file_system(self._place)
            if system.get_file_info(f"{path}/{name}").type == pafs.FileType.NotFound:
                if system.get_file_info(path.partition("/")[0]).type == pafs.FileType.NotFound:
                    raise StoreError(f"cannot {action}: there is no such bucket")
                return None
            with system.open_input_file(f"{path}/{name}") as file:
                return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Write a file; readers see the old one or the new one."""
        with translated(f"write {name} of {self._place.uri}"):
            if self._folder is not None:
                # Written beside it and renamed, so that a crash leaves the old file.
                part = self._folder / f".{name}-{secrets.token_hex(4)}"
                part.write_bytes(content)
                os.replace(part, self._folder / name)
                return
            system, path = file_system(self._place)
            with system.open_output_stream(f"{path}/{name}") as file:
                file.write(content)

    def delete(self, name: str) -> None:
        """Delete a file; do nothing if there is none."""
        with translated(f"delete {name} of {self._place.uri}"):
            if self._folder is not None:
                (self._folder / name).unlink(missing_ok=True)
                return
            system, path = file_system(self._place)
            if self.read(name) is not None:
                system.delete_file(f"{path}/{name}")

    def delete_folder(self, name: str) -> None:
        """Delete a folder with all that is in it; do nothing if there is none."""
        with translated(f"delete {name} of {self._place.uri}"):
            if self._folder is not None:
                shutil.rmtree(self._folder / name, ignore_errors=True)
                return
            system, path = file_system(self._place)
            system.delete_dir_contents(f"{path}/{name}", missing_dir_ok=True)


def file_system(place: Place) -> tuple[FileSystem, str]:
    """Return pyarrow's file system of a database that is not in memory, and the database's path there."""
    import pyarrow.fs as pafs

    if place.folder is not None:
        return pafs.LocalFileSystem(), str(place.folder)
    scheme, _, path = place.uri.partition("://")
    if scheme == "s3":
        return pafs.S3FileSystem(**_s3_options(place)), path.rstrip("/")
    if place.storage_options:
        raise InputError(f"a cluster in {scheme}:// takes its credentials from the environment")
    return pafs.FileSystem.from_uri(place.uri)


def _s3_options(place: Place) -> dict[str, Any]:
    """Return LanceDB's options for S3, from the environment and from storage options, as pyarrow's."""
    options = {name.lower(): value for name, value in os.environ.items() if name.startswith("AWS_")}
    options |= {name.lower(): value for name, value in place.storage_options.items()}
    plain = {name.removeprefix("aws_"): value for name, value in options.items()}
    chosen: dict[str, Any] = {theirs: plain[ours] for ours, theirs in _S3_OPTIONS.items() if plain.get(ours)}
    if plain.get("allow_http", "").lower() in ("1", "true") and "endpoint_override" in chosen:
        chosen["scheme"] = "http"
    return chosen


def folder_of(place: Place) -> Path | None:
    """Return the folder of a cluster, made if it is missing; None for a bucket."""
    if place.folder is not None:
        with translated(f"create a cluster in {place.uri}"):
            place.folder.mkdir(parents=True, exist_ok=True)
    return place.folder
