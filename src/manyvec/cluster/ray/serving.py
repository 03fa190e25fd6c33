"""`app`: what Ray Serve runs of a cluster: a deployment for each shard, and a router, which holds the encoder.

The router also answers HTTP requests, as `manyvec serve` does: with the same application, over the shards' replicas.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from manyvec.cluster.layout import FILE, Layout
from manyvec.cluster.ray.served import METHODS, ServedEncoder, ServedShards, router_of
from manyvec.cluster.router import Cluster
from manyvec.cluster.shards import LocalShards
from manyvec.errors import IndexNotFoundError, InputError, ManifestError, check_count, require
from manyvec.index import DEFAULT_CACHE_BYTES
from manyvec.models.protocol import Encoder
from manyvec.storage.lance import Place
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

# What others call of a router.
_ROUTED = frozenset({"encode", "describe", "write_layout"})
# Seconds that a shard waits for token vectors of the documents that are added to it.
_ENCODING_TIMEOUT = 600
# Seconds that an HTTP request waits for a shard, as for a search of `manyvec serve`.
_HTTP_TIMEOUT = 30


def app(
    uri: str | PathLike[str],
    encoder: str | Encoder | None = None,
    *,
    replicas: int = 2,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    device: str = "auto",
    score_device: str | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> Application:
    """Return an application of Ray Serve that serves a cluster: `serve.run(app(uri))`, then `connect()`.

    Replicas see what others commit, and search it with the next request. Running the application again replaces them
    one after the other, without a failed request; after `reshard` it must be run again.

    Ray Serve also answers over HTTP what `manyvec serve` answers without `--write`: the JSON API, a page and MCP, at
    http://127.0.0.1:8000 by default. Only programs of the same machine are answered, unless the environment of the
    replicas has a `MANYVEC_TOKEN`, which clients must send then.

    Args:
        uri: Folder that every machine sees under this path, or a bucket's URI. Credentials and an endpoint come from
            the environment of the replicas, because Ray Serve stores what an application is made of.
        encoder: Name of a model or an encoder; by default the model that the cluster was built with.
        replicas: Number of replicas of each shard, and of the router.
        cache_bytes: Memory budget of a replica, which holds one shard.
        device: Where the router runs the model, and where replicas score documents.
        score_device: Where documents are scored, if not on `device`.
        num_cpus: CPUs of a replica.
        num_gpus: GPUs of a replica.

    Raises:
        IndexNotFoundError: There is no cluster.
        ManifestError: `shards.json` is damaged.
        MissingPackageError: Ray or a package of the server is not installed: `pip install 'manyvec[ray]'`.
    """
    serve = require("ray.serve", extra="ray")
    require("mcp", extra="ray")
    check_count(replicas, "replicas", minimum=1)
    place = Place.of(uri)
    if (layout := Layout.read(place)) is None:
        raise IndexNotFoundError(f"there is no cluster at {place}: no {FILE}. build makes one")
    placed: dict[str, Any] = {
        "num_replicas": replicas,
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": num_gpus},
    }
    options = {"cache_bytes": cache_bytes, "device": device, "score_device": score_device}
    shards = [
        serve.deployment(ShardReplica, name=layout.name(number), **placed).bind(place, number, options)
        for number in range(layout.n_shards)
    ]
    # The shards are arguments, so that they run before the router does.
    router = serve.deployment(serve.ingress()(Router), name="Router", **placed)
    return router.bind(place, layout, encoder, options, shards)


class ShardReplica:
    """A replica of one shard.

    Args:
        place: Where the cluster lies.
        number: Number of the shard.
        options: Options of `LocalShards`, with the memory budget of this shard.
    """

    def __init__(self, place: Place, number: int, options: Mapping[str, Any]) -> None:
        from ray import serve

        self.number = number
        layout = Layout.read(place)
        if layout is None:
            raise IndexNotFoundError(f"there is no cluster at {place}: no {FILE}")
        router = router_of(serve.get_replica_context().app_name, _ENCODING_TIMEOUT)
        encoder = ServedEncoder.of(layout.manifest, router)
        budget = options["cache_bytes"] * layout.n_shards
        self.shards = LocalShards(place, encoder, **{**options, "cache_bytes": budget})
        # A shard that is missing keeps the application from starting.
        self.shards.shard(number).use(encoder)

    async def call(self, method: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        """Call a method of the shard, in a thread, because methods wait for disks and other replicas."""
        if method not in METHODS:
            raise InputError(f"a shard has no method {method!r}")
        return await asyncio.to_thread(self._call, method, arguments, options)

    def _call(self, method: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> Any:
        value = getattr(self.shards.shard(self.number), method)
        return value(*arguments, **options) if callable(value) else value


class Router:
    """A replica of the router: it encodes, and knows the layout.

    Args:
        place: Where the cluster lies.
        layout: What `shards.json` says.
        encoder: Name of a model, an encoder, or None for the model in `shards.json`.
        options: Options of `LocalShards`.
        shards: Handles of the shards' deployments.
    """

    def __init__(
        self,
        place: Place,
        layout: Layout,
        encoder: str | Encoder | None,
        options: Mapping[str, Any],
        shards: list[Any],
    ) -> None:
        del shards
        self.place = place
        self.generation = layout.generation
        self.encoder = LocalShards(place, encoder, **options).encoder

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of this router, in a thread."""
        if method not in _ROUTED:
            raise InputError(f"a router has no method {method!r}")
        return await asyncio.to_thread(self._call, method, *arguments)

    def _call(self, method: str, *arguments: Any) -> Any:
        return getattr(self, method)(*arguments)

    def encode(self, method: str, items: Any) -> TokenBatch | bool:
        """Return the token vectors of queries, documents or images, or whether the encoder crops images."""
        value = getattr(self.encoder, method)
        return value(items) if callable(value) else value

    def describe(self) -> tuple[str, Layout]:
        """Return the cluster's URI, and what `shards.json` says now."""
        layout = Layout.read(self.place)
        if layout is None or layout.generation != self.generation:
            raise ManifestError(f"the cluster {self.place} has other shards now: run cluster.app(...) again")
        return self.place.uri, layout

    def write_layout(self, layout: Layout) -> None:
        """Write `shards.json`."""
        layout.write(self.place)

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Return what Ray Serve asks for HTTP requests."""
        from ray import serve

        app = serve.get_replica_context().app_name
        return await asyncio.to_thread(self._http_app, app)

    def _http_app(self, app: str) -> FastAPI:
        from manyvec.server.app import create_app

        token = os.environ.get("MANYVEC_TOKEN") or None
        # Ray's proxy listens, and does not say where. With a token, all host names of it are served.
        host = "127.0.0.1" if token is None else "0.0.0.0"
        # Not through Ray Serve, which does not call a replica that is starting.
        return create_app(Cluster(ServedShards(app, _HTTP_TIMEOUT, self._call)), host=host, token=token)
