"""Create and open clusters in one process, without Ray."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal, TypeAlias

from manyvec.cluster.layout import FILE, Layout, check_shards, folder_of
from manyvec.cluster.router import Cluster
from manyvec.cluster.shards import LocalShards, Shard
from manyvec.errors import IndexNotFoundError, InputError, ManifestError
from manyvec.index import DEFAULT_CACHE_BYTES, Index
from manyvec.models.loading import load_encoder
from manyvec.models.prefix import with_dim
from manyvec.models.protocol import Encoder
from manyvec.storage.lance import Place
from manyvec.storage.schema import Manifest

AnyIndex: TypeAlias = Index | Cluster


def create_local(
    uri: str | PathLike[str],
    encoder: str | Encoder = "minilm",
    *,
    shards: int = 8,
    filter_columns: Mapping[str, Any] | None = None,
    storage: str = "float16",
    pool_factor: float = 1,
    dim: int | None = None,
    exist_ok: bool = False,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    device: str = "auto",
    score_device: str | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> Cluster:
    """Create an empty cluster, and open it in this process.

    Args:
        uri: Folder, or a bucket's URI.
        encoder: Name of a model for `load_encoder`, an encoder, or `Vectors`.
        shards: Number of shards. `reshard` changes it later.
        filter_columns: Metadata keys that searches can filter on, with their types; see `Index.create`.
        storage: How token vectors are stored; see `Index.create`.
        pool_factor: Share of token vectors kept; see `Index.create`.
        dim: Number of dimensions kept; see `Index.create`.
        exist_ok: Open the cluster if there is one already, with the number of shards that it has.
        cache_bytes: Memory budget of all shards of this process together.
        device: Where a model named by a string runs and where documents are scored.
        score_device: Where documents are scored, if not on `device`.
        storage_options: Options for a bucket; see `Index.create`.

    Raises:
        InputError: There is a cluster or an index already, or an argument cannot be used.
        ManifestError: With `exist_ok`, the existing cluster has another encoder, dim or other filter columns.
        StoreError: A database could not be written.
    """
    shards = check_shards(shards)
    place = Place.of(uri, storage_options=storage_options)
    options: dict[str, Any] = {"cache_bytes": cache_bytes, "device": device, "score_device": score_device}
    loaded = load_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
    loaded = with_dim(loaded, dim)
    manifest = Manifest.of(loaded, filter_columns or {}, storage=storage, pool_factor=pool_factor)
    columns = manifest.filter_columns
    if (existing := Layout.read(place)) is not None:
        if not exist_ok:
            raise InputError(
                f"there is a cluster in {place} already: use open_local, or create_local(..., exist_ok=True)"
            )
        existing.manifest.check_dim(dim, place.uri)
        cluster = Cluster(LocalShards(place, loaded, **options))
        if filter_columns is not None and columns != existing.manifest.filter_columns:
            raise ManifestError(
                f"the cluster {place} has the filter columns {existing.manifest.filter_columns}, not {columns}: leave "
                "filter_columns out, or add the missing ones with add_filter_columns"
            )
        return cluster
    layout = Layout(shards, manifest)
    folder_of(place)
    for number in range(shards):
        # Empty ones are what an interrupted call has left.
        there = layout.place(place, number)
        shard = Shard.create(
            there.uri,
            loaded,
            filter_columns=columns,
            storage=storage,
            pool_factor=pool_factor,
            exist_ok=True,
            storage_options=there.storage_options,
        )
        if n_documents := shard.count():
            raise InputError(
                f"there is an index with {n_documents:,} documents in {there} already, and no {FILE}: restore it, "
                "or choose another folder"
            )
        layout.check(number, shard._store.manifest, place.uri)
    layout.write(place)
    return Cluster(LocalShards(place, loaded, **options))


def open_local(
    uri: str | PathLike[str],
    encoder: str | Encoder | None = None,
    *,
    allow_partial: bool = False,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    device: str = "auto",
    score_device: str | None = None,
    storage_options: Mapping[str, str] | None = None,
) -> Cluster:
    """Open a cluster in this process, which searches and writes all of its shards.

    Args:
        uri: Folder, or a bucket's URI.
        encoder: Name of a model or an encoder. By default the model that the cluster was built with; see `Index.open`.
        allow_partial: Whether searches leave out shards that cannot be reached or read; see `Cluster`.
        cache_bytes: Memory budget of all shards together.
        device: Where a model named by a string runs and where documents are scored.
        score_device: Where documents are scored, if not on `device`.
        storage_options: Options for a bucket; see `Index.create`.

    Raises:
        IndexNotFoundError: There is no cluster.
        MissingShardError: A shard is missing or cannot be read, and `allow_partial` is False.
        ManifestError: `shards.json` is damaged, or the encoder is another one.
    """
    place = Place.of(uri, storage_options=storage_options)
    options: dict[str, Any] = {"cache_bytes": cache_bytes, "device": device, "score_device": score_device}
    cluster = Cluster(LocalShards(place, encoder, **options), allow_partial=allow_partial)
    if not allow_partial:
        cluster.check()
    return cluster


def open_or_create(
    uri: str | PathLike[str] | None = None,
    encoder: str | Encoder = "minilm",
    *,
    filter_columns: Mapping[str, Any] | Literal["infer"] | None = None,
    **options: Any,
) -> AnyIndex:
    """Open what lies at a URI, an index or a cluster, or create an index.

    Args:
        uri: Folder, or a bucket's URI; None with the option `connection`.
        encoder: Name of a model or an encoder, which an existing index or cluster must have been built with.
        filter_columns: Filter columns; see `Index.create`. A cluster keeps the ones that it has if they are "infer".
        **options: Options of `Index.create`.

    Raises:
        ManifestError: What lies there has another encoder or other filter columns.
    """
    if uri is not None and _is_cluster(uri, options):
        columns = None if filter_columns == "infer" else filter_columns
        return create_local(uri, encoder, filter_columns=columns, exist_ok=True, **_for_cluster(uri, options))
    return Index.create(uri, encoder, filter_columns=filter_columns, exist_ok=True, **options)


def open_index(
    uri: str | PathLike[str] | None = None, encoder: str | Encoder | None = None, **options: Any
) -> AnyIndex:
    """Open what lies at a URI: an index, or a cluster in this process.

    Args:
        uri: Folder, or a bucket's URI; None with the option `connection`.
        encoder: Name of a model or an encoder; by default the model that it was built with.
        **options: Options of `Index.open`.

    Raises:
        IndexNotFoundError: There is neither.
    """
    try:
        return Index.open(uri, encoder, **options)
    except IndexNotFoundError:
        if uri is None or not _is_cluster(uri, options):
            raise
    return open_local(uri, encoder, **_for_cluster(uri, options))


def _is_cluster(uri: str | PathLike[str], options: Mapping[str, Any]) -> bool:
    place = Place.of(uri, storage_options=options.get("storage_options"))
    return not place.uri.startswith("memory:") and Layout.read(place) is not None


def _for_cluster(uri: str | PathLike[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of an index as those of a cluster."""
    if any(options.get(name) is not None for name in ("table_name", "connection")):
        raise InputError(
            f"{os.fspath(uri)} is a cluster, whose shards have databases of their own: leave table_name out"
        )
    return {name: value for name, value in options.items() if name not in ("table_name", "connection")}
