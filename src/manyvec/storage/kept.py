"""Token vectors of an index in a bucket, kept on this machine's disk for the next process that opens the index.

Only in the folder that the environment variable `MANYVEC_CACHE_FOLDER` names: vectors tell what documents say. What is
kept is never out of date, because a row has the same token vectors wherever it has the same row id and was written by
the same table version of the same index. The archive has a CRC of every array, which is compared when it is read.
"""

from __future__ import annotations

import logging
import os
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import ShapeError
from manyvec.storage.snapshot import Snapshot
from manyvec.vectors.batch import CodedBatch, StoredBatch, TokenBatch, check_offsets, offsets_of

logger = logging.getLogger(__name__)

VARIABLE = "MANYVEC_CACHE_FOLDER"
# Of all indexes together; those that were used least recently are deleted.
_MAX_BYTES = 20 * 2**30
_SUFFIX = ".manyvec.npz"
# Arrays of a segment.
_NAMES = ("row_ids", "updated", "positions", "lengths", "rows")


@dataclass(frozen=True)
class KeptSegment:
    """Token vectors of some rows.

    Attributes:
        row_ids: (n,) row ids, ascending.
        updated: (n,) table version that last wrote the row.
        positions: (n,) position of the row in `tokens`, ascending.
        tokens: Token vectors of these and perhaps of other rows.
    """

    row_ids: NDArray[np.int64]
    updated: NDArray[np.int64]
    positions: NDArray[np.int64]
    tokens: StoredBatch


def kept_file(snapshot: Snapshot) -> Path | None:
    """Return the file for an index; None if it is not in a bucket, or no folder is named."""
    folder, identity = os.environ.get(VARIABLE), snapshot.manifest.identity
    if not folder or not identity or "://" not in snapshot.uri or snapshot.uri.startswith("memory:"):
        return None
    return Path(folder).expanduser() / f"{identity}{_SUFFIX}"


def read_kept(path: Path, snapshot: Snapshot, budget: float) -> list[KeptSegment]:
    """Return what is kept of an index; nothing if it takes more bytes than a budget, or is damaged, which is logged."""
    try:
        if not path.exists() or path.stat().st_size > budget:
            return []
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            segments = list(_segments(arrays, snapshot))
        path.touch()
        return segments
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, ShapeError) as error:
        logger.warning("%s cannot be used, and is written again: %s", path, error)
        return []


def write_kept(path: Path, segments: Sequence[KeptSegment]) -> None:
    """Keep the token vectors of an index. What cannot be written is logged, and changes nothing."""
    if sum(segment.tokens.nbytes for segment in segments) > _MAX_BYTES:
        return
    arrays: dict[str, NDArray[Any]] = {}
    for number, segment in enumerate(segments):
        parts = (segment.row_ids, segment.updated, segment.positions, segment.tokens.lengths, segment.tokens.rows)
        arrays |= {f"{number}.{name}": part for name, part in zip(_NAMES, parts, strict=True)}
    # Renamed when it is whole: other processes may read or write the same file.
    part = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(part, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        part.replace(path)
        _delete_oldest(path.parent)
    except OSError as error:
        logger.warning("token vectors of a bucket cannot be kept in %s: %s", path.parent, error)
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _segments(arrays: Any, snapshot: Snapshot) -> Iterator[KeptSegment]:
    for number in range(len(arrays.files) // len(_NAMES)):
        row_ids, updated, positions, lengths, rows = (arrays[f"{number}.{name}"] for name in _NAMES)
        if len(row_ids) and not 0 <= positions.min() <= positions.max() < len(lengths):
            raise ShapeError("it names rows that it does not hold")
        if not (np.diff(row_ids) > 0).all():
            raise ShapeError("its rows are not in order")
        offsets = offsets_of(lengths)
        check_offsets(offsets, len(rows))
        if rows.dtype == np.float16:
            tokens: StoredBatch = TokenBatch.unchecked(rows, offsets)
            width = snapshot.manifest.dim
        elif (codec := snapshot.centroids.codec()) is not None and rows.dtype == np.uint8:
            tokens, width = CodedBatch.unchecked(rows, offsets, codec), codec.width
        else:
            raise ShapeError(f"it holds {rows.dtype}")
        if rows.shape[1:] != (width,) or tokens.damage():
            raise ShapeError("it holds no token vectors of this index")
        yield KeptSegment(row_ids, updated, positions, tokens)


def _delete_oldest(folder: Path) -> None:
    """Delete the files that were read or written least recently until the others fit."""
    files = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime, reverse=True)
    n_bytes = 0
    for file in files:
        n_bytes += file.stat().st_size
        if n_bytes > _MAX_BYTES:
            file.unlink(missing_ok=True)
