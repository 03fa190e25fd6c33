"""`build` encodes documents on the machines of a Ray cluster, and adds them to the shards, each in one commit."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from manyvec.cluster.layout import Files
from manyvec.cluster.local import create_local
from manyvec.cluster.ray.dataset import Source, check_ids, dataset_of
from manyvec.cluster.ray.joining import join
from manyvec.cluster.ray.workers import Held, OnBlank, ShardEncoder, check_workers, in_one_line
from manyvec.cluster.ray.writing import commit, delete_leftovers
from manyvec.cluster.router import Cluster
from manyvec.errors import InputError, ManyvecError, StoreError, check_count, require
from manyvec.models.protocol import Encoder
from manyvec.storage.ingest.adding import AddReport
from manyvec.storage.lance import Place

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

# In the folder of a cluster while a build runs, and after one that has not ended.
_MARK = "build.json"
_DEFAULT_SHARDS = 8


def build(
    uri: str | PathLike[str],
    dataset: Source,
    *,
    encoder: str | Encoder = "minilm",
    shards: int | None = None,
    encoders: int | None = None,
    filter_columns: Mapping[str, Any] | None = None,
    storage: str = "float16",
    pool_factor: float = 1,
    on_blank: OnBlank = "raise",
    batch_size: int = 1024,
    num_cpus: float = 0.75,
    num_gpus: float = 0,
    device: str = "auto",
    storage_options: Mapping[str, str] | None = None,
) -> AddReport:
    """Encode documents with Ray Data, and add them to a cluster, which is created if there is none.

    Documents are known by their ids: unchanged ones are not encoded again, changed ones replace those that are stored.
    Nothing of a build is visible before all of it is encoded; then each shard gets one new version. If a worker dies,
    Ray encodes its batch again. If this program dies, the cluster is what it was, and the same call starts again.

    Args:
        uri: Folder that every machine sees under this path, or a bucket's URI.
        dataset: Ray Dataset, a path or URI of files (`.jsonl`, anything else as Parquet), or documents of this process.
            A row has an `id` (or `_id`), a `text` (or a key that `manyvec index` takes for it), and perhaps `title`,
            `image`, and `metadata` as a struct or as JSON; other columns are metadata. Nulls count as missing.
        encoder: Name of a model that every machine can load, or an encoder that can be pickled.
        shards: Number of shards of a new cluster, by default 8.
        encoders: Number of actors that encode; by default one for each GPU with `num_gpus`, else one for each CPU
            but one. A dataset of yours needs room for its tasks beside them: Ray waits for it without a word.
        filter_columns: Filter columns of a new cluster; see `Index.create`.
        storage: How a new cluster stores token vectors; see `Index.create`. `residual` stores float16 until `optimize`.
        pool_factor: Share of token vectors that a new cluster keeps; see `Index.create`.
        on_blank: `raise` an error for a document without text or tokens, or `skip` and count it.
        batch_size: Documents that an actor encodes and writes at a time. Each shard gets a file of each batch.
        num_cpus: CPUs of an actor. With less than 1, tasks that read the dataset find room on a machine of one CPU.
        num_gpus: GPUs of an actor.
        device: Where actors run the model.
        storage_options: Options for a bucket; see `Index.create`. They travel to the workers, and are not stored.

    Returns:
        Numbers of added, updated, unchanged and blank documents.

    Raises:
        InputError: A document has no id or cannot be stored, an id occurs more than once, the cluster has another
            number of shards, or another build of it is running. Nothing was written.
        ManifestError: The cluster has another encoder or other filter columns, or a worker has another encoder or
            another version of manyvec. Nothing was encoded.
        StoreError: A shard could not be written. Shards before it have their new version. Or there is no Ray cluster
            at `RAY_ADDRESS`.
        MissingPackageError: Ray is not installed: `pip install 'manyvec[ray]'`.
    """
    ray = require("ray", extra="ray")
    require("lance", extra="ray")
    for name, count in {"encoders": encoders, "batch_size": batch_size}.items():
        if count is not None:
            check_count(count, name, minimum=1)
    join()
    options: dict[str, Any] = {"filter_columns": filter_columns, "storage": storage, "pool_factor": pool_factor}
    cluster = create_local(
        uri,
        encoder,
        shards=_DEFAULT_SHARDS if shards is None else shards,
        exist_ok=True,
        storage_options=storage_options,
        **options,
    )
    layout = cluster.layout
    if shards not in (None, layout.n_shards):
        raise InputError(f"the cluster {cluster.uri} has {layout.n_shards} shards: reshard changes that")
    if encoders is None:
        resources = ray.cluster_resources()
        encoders = max(1, int(resources.get("GPU", 0) if num_gpus else resources.get("CPU", 0) - 1))
    from ray.data import ActorPoolStrategy

    place = Place.of(uri, storage_options=storage_options)
    with cluster, _only_build(cluster.uri):
        check_workers(encoder, layout, cluster.uri, needs_gpu=num_gpus > 0)
        documents = dataset_of(dataset, batch_size)
        check_ids(documents)
        actor = {
            "place": place,
            "encoder": encoder,
            "held": ray.put(cluster._asker.all(Held.by)),
            "on_blank": on_blank,
            "device": device,
        }
        with _marked(cluster, place) as is_current:
            written = documents.map_batches(
                ShardEncoder,
                fn_constructor_kwargs=actor,
                batch_size=batch_size,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=encoders),
                num_cpus=num_cpus,
                num_gpus=num_gpus,
            )
            parts, report = _collected(written)
            if cluster._shards.refresh() or not is_current():
                raise StoreError(
                    f"another program has begun a build of the cluster {cluster.uri}, or added filter columns or "
                    "changed its shards: nothing was committed. Try again"
                )
            for number, (files, hashes) in sorted(parts.items()):
                cluster._asker.one(number, partial(commit, files=files, hashes=hashes))
    return report


@contextmanager
def _only_build(uri: str) -> Iterator[None]:
    """Keep other builds of this cluster on the same Ray cluster out during the block."""
    import ray

    try:
        # Dies with this program.
        lock = ray.remote(_Lock).options(name=f"build {uri}", namespace="manyvec", num_cpus=0).remote()
    except ValueError as error:
        raise InputError(f"another build of the cluster {uri} is running: wait for its end") from error
    try:
        yield
    finally:
        ray.kill(lock)


@contextmanager
def _marked(cluster: Cluster, place: Place) -> Iterator[Callable[[], bool]]:
    """Mark the cluster during the block, and before it delete what a build that died has left.

    Yields:
        Function that returns whether no build has begun since: one of another Ray cluster takes this one for dead.
    """
    files, name = Files(place), secrets.token_hex(8).encode()
    if files.read(_MARK) is not None:
        cluster._asker.all(delete_leftovers)
    files.write(_MARK, name)
    yield lambda: files.read(_MARK) == name
    # Not after an error: the next build then deletes what this one has written.
    files.delete(_MARK)


class _Lock:
    """Exists while a build runs."""


def _collected(written: Dataset) -> tuple[dict[int, tuple[list[str], Any]], AddReport]:
    """Run a build's actors, and return the files and the hashes of ids that they wrote for each shard, and counts."""
    files: dict[int, list[str]] = {}
    hashes: dict[int, list[Any]] = {}
    report = AddReport()
    for batch in _batches(written):
        for row in batch.to_pylist():
            if row["refused"]:
                _refuse(row["refused"])
            report += AddReport(row["added"], row["updated"], row["unchanged"], row["blank"])
            if row["files"]:
                files.setdefault(row["shard"], []).extend(row["files"])
                hashes.setdefault(row["shard"], []).append(np.array(row["ids"], np.uint64))
    parts = {number: (files[number], np.concatenate(hashes[number])) for number in files}
    for number, (_, of_shard) in parts.items():
        if len(np.unique(of_shard)) < len(of_shard):
            raise InputError(
                f"documents of shard {number} came twice: the dataset returned others than when its ids were read"
            )
    return parts, report


def _batches(written: Dataset) -> Iterator[pa.Table]:
    from ray.exceptions import RayError

    try:
        yield from written.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayError as error:
        raise StoreError(f"the build failed in Ray, nothing was committed: {in_one_line(error)}") from error


def _refuse(refused: str) -> None:
    """Raise an error of manyvec that an actor has returned."""
    from manyvec import errors

    name, _, message = refused.partition(" ")
    kind = getattr(errors, name, StoreError)
    raise (kind if issubclass(kind, ManyvecError) else StoreError)(message)
