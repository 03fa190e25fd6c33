"""`reshard` distributes the documents of a cluster over another number of shards; `check` looks for damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from manyvec.cluster.layout import Files, Layout, check_shards
from manyvec.cluster.router import Cluster
from manyvec.cluster.shards import LocalShards
from manyvec.errors import IndexNotFoundError, InputError, ManifestError, StoreError
from manyvec.filters.values import shown
from manyvec.index import DEFAULT_CACHE_BYTES, Index
from manyvec.storage.ingest.columns import token_columns
from manyvec.storage.lance import Place
from manyvec.storage.maintenance.check import CheckReport, Problem
from manyvec.storage.maintenance.check import check as check_index
from manyvec.storage.schema import to_arrow
from manyvec.storage.snapshot import BUILD_WINDOW_BYTES, Snapshot, windows
from manyvec.storage.table import Store

if TYPE_CHECKING:
    import pyarrow as pa


def reshard(
    uri: str | PathLike[str],
    *,
    shards: int,
    storage_options: Mapping[str, str] | None = None,
    show_progress: bool = False,
) -> None:
    """Distribute the documents of a cluster over another number of shards.

    The new shards are written beside the old ones, then `shards.json` names them, then the old ones are deleted: if
    interrupted, the cluster is what it was, and the same call starts again. No other program may write meanwhile.
    Searches that run at the moment of the change raise an error; the next ones see the new shards. Token vectors in
    `residual` storage are decoded, because each shard has centroids of its own, and encoded again by them.

    Args:
        uri: Folder, or a bucket's URI.
        shards: New number of shards.
        storage_options: Options for a bucket; see `Index.create`.
        show_progress: Show progress bars.

    Raises:
        InputError: The cluster has this number of shards already, or an id is stored more than once.
        StoreError: Another program has written meanwhile, or a database cannot be read or written. The old shards are
            what they were.
    """
    place = Place.of(uri, storage_options=storage_options)
    old = LocalShards(place, None, cache_bytes=DEFAULT_CACHE_BYTES, device="cpu", score_device=None)
    layout = old.layout
    new = Layout(check_shards(shards), layout.manifest, layout.generation + 1)
    if new.n_shards == layout.n_shards:
        raise InputError(f"the cluster {place} has {shards} shards already")
    with Cluster(old) as cluster:
        if repeated := cluster.duplicates():
            raise InputError(
                f"these ids are stored more than once: {shown(repeated)}. Cluster.optimize keeps the newest row of a "
                "shard; delete the others"
            )
        snapshots = [old.shard(number)._store.snapshot() for number in range(layout.n_shards)]
        files = Files(place)
        for number in range(new.n_shards):
            # What an interrupted call has left.
            files.delete_folder(new.name(number))
        stores = [Store.create(new.place(place, number), new.manifest) for number in range(new.n_shards)]
        _copy(snapshots, new, stores, show_progress=show_progress)
        for store in stores:
            Index.open(store.uri, storage_options=place.storage_options, device="cpu").optimize()
        n_copied, n_stored = (
            sum(source.count() for source in group) for group in ([s.snapshot() for s in stores], snapshots)
        )
        if n_copied != n_stored or any(
            old.shard(number)._store.key != snapshot.key for number, snapshot in enumerate(snapshots)
        ):
            raise StoreError(
                f"another program has written to the cluster {place} meanwhile: nothing was changed. Try again"
            )
        new.write(place)
    for number in range(layout.n_shards):
        # What cannot be deleted takes space, and no more.
        with suppress(StoreError):
            files.delete_folder(layout.name(number))


def check(place: Place, *, repair: bool = False, show_progress: bool = False) -> CheckReport:
    """Read all of an index, or of every shard of a cluster, and report what is wrong.

    Args:
        place: Where the index or the cluster lies.
        repair: Repair what can be repaired; see `manyvec.storage.maintenance.check`.
        show_progress: Show a progress bar for each shard.

    Raises:
        IndexNotFoundError: There is neither.
        ManifestError: Its manifest or `shards.json` is missing or damaged.
    """
    layout = None if place.uri.startswith("memory:") else Layout.read(place)
    if layout is None:
        return check_index(place, repair=repair, show_progress=show_progress)
    whole = CheckReport(place.uri, 0, 0, ())
    for number in range(layout.n_shards):
        name = layout.name(number)
        try:
            part = check_index(layout.place(place, number), repair=repair, show_progress=show_progress)
            store = Store.open(layout.place(place, number))
            layout.check(number, store.manifest, place.uri)
        except (IndexNotFoundError, ManifestError, StoreError) as error:
            part = CheckReport(place.uri, 0, 0, (Problem(f"cannot be used: {error}"),))
        else:
            ids = store.snapshot().states().ids.tolist()
            strays = [Problem("belongs to another shard", id) for id in ids if layout.shard_of(id) != number]
            part = replace(part, problems=(*part.problems, *strays))
        whole = CheckReport(
            place.uri,
            whole.documents + part.documents,
            whole.tokens + part.tokens,
            (*whole.problems, *(replace(problem, message=f"{name}: {problem.message}") for problem in part.problems)),
            (*whole.repaired, *(f"{name}: {line}" for line in part.repaired)),
        )
    return whole


def _copy(snapshots: list[Snapshot], layout: Layout, stores: list[Store], *, show_progress: bool) -> None:
    """Append the rows of all old shards to the new ones, as many at a time as fill a window."""
    import pyarrow as pa
    from tqdm.auto import tqdm

    waiting: list[list[pa.Table]] = [[] for _ in stores]
    n_documents = sum(snapshot.count() for snapshot in snapshots)
    with tqdm(total=n_documents, unit=" documents", desc="copied", disable=not show_progress) as bar:
        for snapshot in snapshots:
            for row_ids, ids in _windows(snapshot):
                for number, positions in layout.parted(zip(ids, range(len(ids)), strict=True)).items():
                    rows = _rows(snapshot, row_ids[positions], stores[number])
                    waiting[number].append(rows)
                    if sum(table.nbytes for table in waiting[number]) >= BUILD_WINDOW_BYTES:
                        stores[number].append(pa.concat_tables(waiting[number]))
                        waiting[number] = []
                bar.update(len(ids))
        for store, tables in zip(stores, waiting, strict=True):
            if tables:
                store.append(pa.concat_tables(tables))


def _windows(snapshot: Snapshot) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """Yield row ids and ids of rows whose token vectors fill a window."""
    states = snapshot.states()
    n_bytes = snapshot.token_bytes(states, np.arange(len(states.row_ids)))
    for window in windows(n_bytes, BUILD_WINDOW_BYTES):
        yield states.row_ids[window], states.ids[window].tolist()


def _rows(snapshot: Snapshot, row_ids: NDArray[np.int64], store: Store) -> pa.Table:
    """Return rows of an old shard as rows of a new one."""
    opened = store._opened
    schema = opened.table.schema
    names = [name for name in schema.names if snapshot.has_columns([name])]
    table = snapshot.take(row_ids, names)
    columns = {name: table[name] for name in names}
    if snapshot.manifest.storage == "residual":
        decoded = token_columns(snapshot.tokens(row_ids), opened, schema)
        columns |= {name: column for name, column in decoded.items() if name != "spans"}
    return to_arrow(columns, schema)
