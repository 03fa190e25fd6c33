"""What runs on the machines of a Ray cluster during a build: actors that encode and write, and their check."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from manyvec.cluster.building import encode_rows
from manyvec.cluster.layout import Layout, hash_of
from manyvec.cluster.ray.dataset import documents_in
from manyvec.cluster.ray.writing import write_rows
from manyvec.cluster.router import Cluster
from manyvec.cluster.shards import LocalShards, Shard
from manyvec.errors import EncoderError, ManifestError, ManyvecError
from manyvec.models.loading import load_encoder
from manyvec.models.prefix import with_dim
from manyvec.models.protocol import Encoder
from manyvec.storage.ingest.adding import Checked, to_row
from manyvec.storage.lance import Place
from manyvec.storage.schema import Row, metadata_checksum, row_columns, to_arrow
from manyvec.types import Document

if TYPE_CHECKING:
    import pyarrow as pa
    from ray import ObjectRef

OnBlank: TypeAlias = Literal["raise", "skip"]


@dataclass(frozen=True)
class Held:
    """The documents that a shard holds, as hashes: 20 bytes for each.

    Attributes:
        ids: (n,) uint64, ascending.
        contents: (n,) uint64, of the content hashes.
        checksums: (n,) uint32, of ids and metadata.
    """

    ids: NDArray[np.uint64]
    contents: NDArray[np.uint64]
    checksums: NDArray[np.uint32]

    @classmethod
    def by(cls, shard: Shard) -> Held:
        """Read what a shard holds."""
        values = [
            (hash_of(row["id"]), hash_of(row["content_hash"]), metadata_checksum(row["id"], row["metadata"]))
            for rows in shard._store.snapshot().scan(["id", "content_hash", "metadata"])
            for row in rows
        ]
        ids, contents, checksums = ([value[i] for value in values] for i in range(3))
        order = np.argsort(np.array(ids, np.uint64), kind="stable")
        return cls(
            np.array(ids, np.uint64)[order],
            np.array(contents, np.uint64)[order],
            np.array(checksums, np.uint32)[order],
        )

    def compare(self, row: Row) -> tuple[bool, bool, bool]:
        """Return whether a document with this id is held, with this text and image, and with this metadata."""
        hashed = np.uint64(hash_of(row.id))
        position = int(np.searchsorted(self.ids, hashed))
        if position == len(self.ids) or self.ids[position] != hashed:
            return False, False, False
        has_content = self.contents[position] == hash_of(row.content_hash)
        return True, bool(has_content), bool(self.checksums[position] == metadata_checksum(row.id, row.metadata))


@dataclass
class _Part:
    """What a batch holds for one shard.

    Attributes:
        documents: Documents to encode.
        rows: Documents that are held with the same text and image, but with other metadata.
        held_ids: Ids that the shard holds.
        n_unchanged: Number of documents that are held as they are.
    """

    documents: list[Document] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    held_ids: set[str] = field(default_factory=set)
    n_unchanged: int = 0


class ShardEncoder:
    """An actor of Ray Data, which loads the encoder once, and writes the documents of each batch to their shards.

    Args:
        place: Where the cluster lies.
        encoder: Name of its model, or the encoder.
        held: What each shard holds already, in Ray's object store, from where every machine reads it once.
        on_blank: `raise` an error for a document without text or tokens, or `skip` it.
        device: Where the model runs.
    """

    def __init__(self, place: Place, encoder: str | Encoder, held: ObjectRef, on_blank: OnBlank, device: str) -> None:
        import ray

        shards = LocalShards(place, encoder, cache_bytes=0, device=device, score_device="cpu")
        self.place = place
        self.cluster = Cluster(shards)
        self.held: Mapping[int, Held] = ray.get(held)
        self.on_blank = on_blank
        _ = self.cluster.encoder

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return a row for each shard that the batch changes, and one for the whole batch, with the shard -1.

        An error of manyvec is returned too: Ray Data would show where it arose, and try again.
        """
        try:
            return _results(self._written(batch))
        except ManyvecError as error:
            return _results([{"refused": f"{type(error).__name__} {error}"}])

    def _written(self, batch: pa.Table) -> list[dict[str, Any]]:
        checked = Checked(documents_in(batch), self.on_blank)
        parts = self._compared(list(checked))
        results = []
        layout = self.cluster.layout
        changed = [document for part in parts.values() for document in part.documents]
        tables = encode_rows(self.cluster, changed, on_blank=self.on_blank) if changed else {}
        n_blank = checked.n_blank
        for number, part in parts.items():
            rows = [tables[number]] if number in tables else []
            n_blank += len(part.documents) - sum(map(len, rows))
            if part.rows:
                rows.append(_with_metadata(self.cluster._shards.shard(number), part.rows))
            written = [file for table in rows if len(table) for file in self._files(layout, number, table)]
            ids = [id for table in rows for id in table["id"].to_pylist()]
            n_held = sum(id in part.held_ids for id in ids)
            counts = {"added": len(ids) - n_held, "updated": n_held}
            results.append({"shard": number, "files": written, "ids": [hash_of(id) for id in ids], **counts})
        n_unchanged = sum(part.n_unchanged for part in parts.values())
        return [*results, {"unchanged": n_unchanged, "blank": n_blank}]

    def _compared(self, documents: Sequence[Document]) -> dict[int, _Part]:
        """Compare documents with what is held, and return them by shard."""
        layout = self.cluster.layout
        parts: dict[int, _Part] = {}
        for document in documents:
            row = to_row(document, layout.manifest.columns)
            number = layout.shard_of(row.id)
            part = parts.setdefault(number, _Part())
            is_held, has_content, has_metadata = self.held[number].compare(row)
            part.held_ids |= {row.id} if is_held else set()
            if has_content and has_metadata:
                part.n_unchanged += 1
            elif has_content:
                part.rows.append(row)
            else:
                part.documents.append(document)
        return parts

    def _files(self, layout: Layout, number: int, table: pa.Table) -> list[str]:
        return write_rows(layout.place(self.place, number), table)


def _with_metadata(shard: Shard, rows: Sequence[Row]) -> pa.Table:
    """Return stored rows with new metadata, and with the token vectors that they have.

    Raises:
        ManifestError: One is stored no longer, or with another text.
    """
    snapshot = shard._store.snapshot()
    stored = snapshot.find([row.id for row in rows])
    if gone := [row.id for row in rows if row.id not in stored or stored[row.id].content_hash != row.content_hash]:
        raise ManifestError(f"another program has changed {gone[0]!r} in {shard.uri} meanwhile: build again")
    schema = shard.rows([]).schema
    table = snapshot.take([stored[row.id].row_id for row in rows], schema.names)
    columns = {name: table[name] for name in schema.names}
    return to_arrow({**columns, **row_columns(rows, snapshot.manifest)}, schema)


def _results(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    nothing = {"shard": -1, "files": [], "ids": [], "added": 0, "updated": 0, "unchanged": 0, "blank": 0, "refused": ""}
    kinds = [pa.int64(), pa.list_(pa.string()), pa.list_(pa.uint64()), *[pa.int64()] * 4, pa.string()]
    schema = pa.schema(list(zip(nothing, kinds, strict=True)))
    return pa.Table.from_pylist([nothing | dict(row) for row in rows], schema=schema)


def check_workers(encoder: str | Encoder, layout: Layout, uri: str, *, needs_gpu: bool) -> None:
    """Compare manyvec and the encoder on every machine that can encode with this one's, before any work.

    Raises:
        ManifestError: A machine has another version of manyvec, or an encoder with another fingerprint.
        EncoderError: A machine cannot load the encoder.
    """
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def version() -> str:
        # Travels by value: it must run where manyvec is another version, or missing.
        from importlib.metadata import version as package_version

        return package_version("manyvec")

    resource = "GPU" if needs_gpu else "CPU"
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(resource)]
    placed = [
        {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}
        for node in nodes
    ]
    ours = package_version("manyvec")
    try:
        versions = ray.get([ray.remote(version).options(**where).remote() for where in placed])
        if other := [(node, found) for node, found in zip(nodes, versions, strict=True) if found != ours]:
            raise ManifestError(
                f"the worker {other[0][0]['NodeManagerHostname']} has manyvec {other[0][1]}, and this program {ours}: "
                "install the same everywhere, or pass runtime_env to ray.init"
            )
        dim = layout.manifest.dim
        fingerprints = ray.get([ray.remote(_fingerprint).options(**where).remote(encoder, dim) for where in placed])
    except RayError as error:
        raise EncoderError(f"the workers cannot encode for the cluster {uri}: {in_one_line(error)}") from error
    for node, found in zip(nodes, fingerprints, strict=True):
        if found != layout.manifest.fingerprint:
            raise ManifestError(
                f"the worker {node['NodeManagerHostname']} loads {layout.manifest.model} with other weights or "
                f"settings than those that the cluster {uri} is built with: install the same model everywhere"
            )


def _fingerprint(encoder: str | Encoder, dim: int) -> str:
    loaded = load_encoder(encoder, device="cpu") if isinstance(encoder, str) else encoder
    return (with_dim(loaded, dim) if loaded.dim > dim else loaded).fingerprint


def in_one_line(error: BaseException) -> str:
    """Return what Ray says of an error in a worker, without where it arose."""
    text = str(error).strip()
    raised = re.search(r"^[\w.]*(?:Error|Exception): .*", text, re.MULTILINE)
    return raised[0] if raised else text.partition("\n")[0]
