"""Build a cluster with other programs: workers encode documents to rows, and one program appends them to the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from manyvec.cluster.router import Cluster
from manyvec.cluster.shards import LocalShards, Shard
from manyvec.errors import InputError
from manyvec.filters.values import shown
from manyvec.storage.ingest.adding import encoded_rows
from manyvec.storage.schema import MANIFEST_KEY, Manifest
from manyvec.types import Document

if TYPE_CHECKING:
    import pyarrow as pa

# Ids that are looked up at a time.
_IDS_PER_LOOKUP = 10_000


def encode_rows(
    cluster: Cluster,
    documents: Iterable[Document | Mapping[str, Any]],
    *,
    on_blank: Literal["raise", "skip"] = "raise",
    adopt_vectors: bool = False,
) -> dict[int, pa.Table]:
    """Return documents as rows, by the shard that they belong to, checked and encoded. Nothing is written.

    What workers of another engine do, such as actors of Ray Data: each opens the cluster once, and returns the rows of
    its documents.

    Args:
        cluster: The cluster.
        documents: Documents with distinct ids, as many as fit into memory with their token vectors.
        on_blank: `raise` an error for a document without text or tokens, or `skip` it.
        adopt_vectors: Whether to take vectors that come with documents; see `Index.add`.

    Raises:
        InputError: A document cannot be stored, or an id occurs more than once.
    """
    # In one pass for all shards: their rows differ only in where they go.
    store = cluster._asker.one(0, lambda shard: shard._store)
    options: dict[str, Any] = {"on_blank": on_blank, "adopts_vectors": adopt_vectors}
    rows, tokens = encoded_rows(store, documents, lambda: cluster.encoder, **options)
    parts = cluster.layout.parted((row.id, position) for position, row in enumerate(rows))
    return cluster._asker.parts(
        parts,
        lambda shard, positions: shard._store.rows([rows[i] for i in positions], tokens.select(np.array(positions))),
    )


def append_rows(cluster: Cluster, rows: Iterable[Mapping[int, pa.Table]]) -> int:
    """Append rows to the shards, in one commit for each shard.

    Nothing is written before all rows have been compared with each other and with what is stored. If a commit fails,
    shards before it have theirs: `Cluster.add` with the same documents completes it.

    Args:
        cluster: The cluster.
        rows: What each call of `encode_rows` returned.

    Returns:
        Number of rows.

    Raises:
        InputError: An id occurs more than once or is stored already, or rows are of another cluster or another layout.
        StoreError: A shard could not be written.
    """
    if not isinstance(cluster._shards, LocalShards):
        raise InputError("append_rows needs the shards in this process: open the cluster with open_local")
    parts: dict[int, list[pa.Table]] = {}
    for tables in rows:
        for number, table in tables.items():
            parts.setdefault(number, []).append(table)
    layout = cluster.layout
    ids = {number: [id for table in tables for id in table["id"].to_pylist()] for number, tables in parts.items()}
    if strays := [id for number, of_shard in ids.items() for id in of_shard if layout.shard_of(id) != number]:
        raise InputError(f"these rows were made for another number of shards: {shown(strays)}. Encode them again")
    counts = Counter(id for of_shard in ids.values() for id in of_shard)
    if repeated := [id for id, count in counts.items() if count > 1]:
        raise InputError(f"ids must be distinct, but these occur more than once: {shown(sorted(repeated))}")
    stored = cluster._asker.parts(ids, _stored)
    if known := sorted(id for of_shard in stored.values() for id in of_shard):
        raise InputError(f"these ids are stored already: {shown(known)}. Cluster.add replaces documents")
    cluster._asker.parts(parts, _check_rows)
    cluster._asker.parts(parts, _append)
    return counts.total()


def _stored(shard: Shard, ids: Sequence[str]) -> list[str]:
    """Return the ids that a shard holds already."""
    snapshot = shard._store.snapshot()
    starts = range(0, len(ids), _IDS_PER_LOOKUP)
    return [id for start in starts for id in snapshot.find(ids[start : start + _IDS_PER_LOOKUP])]


def _check_rows(shard: Shard, tables: Sequence[pa.Table]) -> None:
    """Refuse rows that were made for another cluster, or before a filter column was added."""
    wanted = shard.rows([]).schema
    for table in tables:
        if not table.schema.equals(wanted):
            raise InputError(
                f"rows have the columns {table.schema.names}, and the cluster has {wanted.names}: encode them again"
            )
        written = (table.schema.field("tokens").metadata or {}).get(MANIFEST_KEY.encode())
        # Some engines drop it.
        if written and Manifest.parse(written, shard.uri).identity != shard._store.manifest.identity:
            raise InputError(f"rows were made for another cluster than {shard.uri}: encode them again")


def _append(shard: Shard, tables: Sequence[pa.Table]) -> None:
    import pyarrow as pa

    shard._store.append(pa.concat_tables([table.combine_chunks() for table in tables]))
