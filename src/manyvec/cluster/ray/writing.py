"""Rows on their way into a shard: files that workers write, and the one commit that makes them visible."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.cluster.layout import file_system, hash_of
from manyvec.cluster.shards import Shard
from manyvec.errors import StoreError, WriteConflictError
from manyvec.storage.lance import Place, translated
from manyvec.storage.maintenance.optimize import remove_duplicates
from manyvec.storage.table import Store

if TYPE_CHECKING:
    import pyarrow as pa
    from lance import LanceDataset

# Versions of a shard are never this old: only files that belong to none of them are deleted.
_FOREVER = timedelta(days=36_500)
_ATTEMPTS = 5


def write_rows(place: Place, rows: pa.Table) -> list[str]:
    """Write rows into files of a shard, which nobody sees before `commit`; return what describes the files, as JSON."""
    from lance.fragment import write_fragments

    with translated(f"write to the index {place.uri}"):
        fragments = write_fragments(rows, _dataset(place), mode="append", storage_options=dict(place.storage_options))
        return [json.dumps(fragment.to_json()) for fragment in fragments]


def commit(shard: Shard, files: Sequence[str], hashes: NDArray[np.uint64]) -> None:
    """Make rows visible in one version, in which they replace those with their ids.

    In a bucket, where writers do not take turns, it is tried again if another program's writer came first.

    Args:
        shard: The shard.
        files: What `write_rows` returned.
        hashes: (n,) hashes of the ids of these rows.

    Raises:
        StoreError: Nothing was committed.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _commit_once(shard._store, files, hashes)
            return
        except WriteConflictError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(random.uniform(0, 0.1 * 2**attempt))


def _commit_once(store: Store, files: Sequence[str], hashes: NDArray[np.uint64]) -> None:
    from lance import LanceDataset, LanceOperation
    from lance.fragment import FragmentMetadata

    new = [FragmentMetadata.from_json(file) for file in files]
    with store.turn():
        dataset = _dataset(store.place)
        if not _exist(store.place, [file.path for fragment in new for file in fragment.files]):
            raise StoreError(
                f"cannot write to the index {store.uri}: files of this build are gone, as optimize(keep=timedelta(0)) "
                "deletes what is not committed. Build again"
            )
        updated, removed = _without(dataset, hashes)
        operation = (
            LanceOperation.Update(removed_fragment_ids=removed, updated_fragments=updated, new_fragments=new)
            if updated or removed
            else LanceOperation.Append(new)
        )
        committed = LanceDataset.commit(dataset, operation, read_version=dataset.version)
    if committed.version != dataset.version + 1:
        # In a bucket writers do not take turns, and an append is not compared with one that came just before.
        remove_duplicates(store)


def delete_leftovers(shard: Shard) -> None:
    """Delete the files that a build has written and not committed; those of a bucket are left to `optimize`.

    Only while no writer of manyvec is between writing its files and committing them, which is known in a folder.
    """
    store = shard._store
    if store.place.folder is not None:
        with store.optimizing() as is_alone, store.turn():
            if is_alone:
                _dataset(store.place).cleanup_old_versions(older_than=_FOREVER, delete_unverified=True)


def _dataset(place: Place) -> LanceDataset:
    """Open the table of a shard at its newest version."""
    import lance

    return lance.dataset(f"{place.uri}/{place.table}.lance", storage_options=dict(place.storage_options))


def _exist(place: Place, names: Sequence[str]) -> bool:
    """Return whether the shard has all of these data files."""
    from pyarrow.fs import FileSelector

    system, path = file_system(place)
    found = system.get_file_info(FileSelector(f"{path}/{place.table}.lance/data"))
    return {*names} <= {info.base_name for info in found}


def _without(dataset: LanceDataset, hashes: NDArray[np.uint64]) -> tuple[list[Any], list[int]]:
    """Return the table's fragments that hold these ids, marked as deleted there, and numbers of those left empty."""
    rows = dataset.to_table(columns=["id"], with_row_address=True)
    stored = np.fromiter((hash_of(id) for id in rows["id"].to_pylist()), np.uint64, len(rows))
    addresses = rows["_rowaddr"].to_numpy()[np.isin(stored, hashes)]
    updated, removed = [], []
    # An address is the number of a fragment and a position in it, 32 bits each.
    for number in np.unique(addresses >> 32).tolist():
        fragment = dataset.get_fragment(number)
        if fragment is None:
            raise StoreError(f"{dataset.uri} has no fragment {number}, which holds a row")
        marked = fragment.delete_rows((addresses[addresses >> 32 == number] & 0xFFFFFFFF).tolist())
        if marked is None:
            removed.append(number)
        else:
            updated.append(marked)
    return updated, removed
