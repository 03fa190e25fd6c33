"""`connect`: a `Cluster` whose shards are replicas of Ray Serve, wherever they run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from manyvec.cluster.layout import Layout
from manyvec.cluster.ray.joining import join
from manyvec.cluster.ray.workers import in_one_line
from manyvec.cluster.router import Cluster
from manyvec.cluster.shards import Shard
from manyvec.errors import InputError, ManyvecError, StoreError, require
from manyvec.models.precomputed import Vectors
from manyvec.models.protocol import Encoder
from manyvec.retrieval.candidates import Auto, Candidates
from manyvec.storage.schema import Manifest
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    from PIL.Image import Image

# What `Cluster` calls, or reads, of a shard.
METHODS = frozenset(
    "add add_filter_columns count delete duplicates find get ids info model optimize rank score statistics "
    "token_vectors value_counts word_matches".split()
)
_SECONDS_BETWEEN_TRIES = 0.2

# Calls a method of a router, wherever it runs: method, arguments → result.
AskRouter = Callable[..., Any]


def connect(name: str = "default", *, allow_partial: bool = False, timeout: float = 60) -> Cluster:
    """Return the cluster that Ray Serve runs, with the methods of one that `open_local` opens.

    A request whose replica dies is sent to another one.

    Args:
        name: Name of the application, as in `serve.run(app(uri), name=...)`.
        allow_partial: Whether searches leave out shards that do not answer; see `Cluster`.
        timeout: Seconds to wait for a shard.

    Raises:
        StoreError: There is no such application, or it does not answer, or no Ray cluster runs on this machine.
        MissingPackageError: Ray is not installed: `pip install 'manyvec[ray]'`.
    """
    require("ray.serve", extra="ray")
    if not timeout > 0:
        raise InputError(f"timeout must be positive, got {timeout!r}")
    join("auto")
    return Cluster(ServedShards(name, timeout, router_of(name, timeout)), allow_partial=allow_partial)


def router_of(app: str, timeout: float) -> AskRouter:
    """Return a function that asks the router of an application. May be pickled."""
    return partial(Deployment(app, "Router", timeout).call, "call")


class Deployment:
    """Passes calls on to the replicas of a deployment. May be pickled.

    Args:
        app: Name of the application.
        name: Name of the deployment.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, app: str, name: str, timeout: float) -> None:
        self.app, self.name, self.timeout = app, name, timeout

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of a replica.

        Raises:
            StoreError: No replica has answered in time.
            ManyvecError: The method raised it.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return self._call(method, *arguments)
        # Ray does not wait in a thread that runs an event loop, as that of a notebook does.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._call, method, *arguments).result()

    def _call(self, method: str, *arguments: Any) -> Any:
        from ray import serve
        from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError
        from ray.serve.exceptions import RayServeException, ReplicaUnavailableError

        until = time.monotonic() + self.timeout
        while True:
            try:
                # Ray keeps the connections.
                handle = serve.get_deployment_handle(self.name, self.app)
                response = getattr(handle, method).remote(*arguments)
                return response.result(timeout_s=max(0.001, until - time.monotonic()))
            except TimeoutError as error:
                raise StoreError(
                    f"no replica of {self.name} has answered within {self.timeout:g} s: `serve status` shows them"
                ) from error
            except RayTaskError as error:
                if isinstance(error.cause, ManyvecError):
                    raise error.cause from None
                raise StoreError(f"a replica of {self.name} failed: {in_one_line(error)}") from error
            except (ActorDiedError, ActorUnavailableError, ReplicaUnavailableError):
                if time.monotonic() > until:
                    raise StoreError(f"replicas of {self.name} keep dying: `serve status` tells why") from None
                time.sleep(_SECONDS_BETWEEN_TRIES)
            # Of a deployment that there is not, Ray says it with a KeyError.
            except (RayError, RayServeException, KeyError) as error:
                raise StoreError(f"{self.name} cannot be reached: {in_one_line(error)}") from error


class ServedShard:
    """Passes the methods of a shard on to one of its replicas."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment

    @property
    def model(self) -> str:
        """Name of the encoder that the shard was built with."""
        return str(self._deployment.call("call", "model", (), {}))

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method not in METHODS:
            raise AttributeError(method)
        return partial(self._call, method)

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return self._deployment.call("call", method, arguments, options)


class ServedEncoder:
    """The encoder of a router, called from elsewhere.

    Attributes:
        name: Name of the model.
        dim: Dimension of its token vectors.
        fingerprint: Hash of its weights and settings.
    """

    def __init__(self, manifest: Manifest, ask: AskRouter) -> None:
        self.name, self.dim, self.fingerprint = manifest.model, manifest.dim, manifest.fingerprint
        self._ask = ask

    @classmethod
    def of(cls, manifest: Manifest, ask: AskRouter) -> Encoder:
        """Return the encoder of a router, or `Vectors` for a cluster whose vectors are computed elsewhere."""
        if (outside := Vectors.of(manifest.model, manifest.dim, manifest.fingerprint)) is not None:
            return outside
        return ServedImageReader(manifest, ask) if manifest.images else cls(manifest, ask)

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each query."""
        return cast(TokenBatch, self._ask("encode", "encode_queries", list(queries)))

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each document."""
        return cast(TokenBatch, self._ask("encode", "encode_documents", list(texts)))


class ServedImageReader(ServedEncoder):
    """The encoder of a router that reads images too."""

    @property
    def crops_images(self) -> bool:
        """Whether the model reads only the central square of an image."""
        return bool(self._ask("encode", "crops_images", None))

    def encode_images(self, images: Sequence[Image]) -> TokenBatch:
        """Return the token vectors of each image."""
        return cast(TokenBatch, self._ask("encode", "encode_images", list(images)))


class ServedShards:
    """The shards of an application of Ray Serve; see `Shards`.

    Args:
        app: Name of the application.
        timeout: Seconds to wait for a shard.
        ask: Asks the router of the application.

    Attributes:
        cache_bytes: 0: replicas have budgets of their own.
    """

    def __init__(self, app: str, timeout: float, ask: AskRouter) -> None:
        self.app, self.timeout = app, timeout
        self.cache_bytes = 0
        self.candidates: Candidates = Auto()
        self._ask = ask
        self.uri, self.layout = cast("tuple[str, Layout]", ask("describe"))

    @property
    def encoder(self) -> Encoder:
        """The encoder of the router."""
        return ServedEncoder.of(self.layout.manifest, self._ask)

    def shard(self, number: int) -> Shard:
        """Return what passes calls on to a shard's replicas."""
        return cast(Shard, ServedShard(Deployment(self.app, self.layout.name(number), self.timeout)))

    def refresh(self) -> bool:
        """Ask for `shards.json` again, and return whether it has changed; it has not if nobody can be asked."""
        before = self.layout
        with suppress(StoreError):
            self.layout = cast("tuple[str, Layout]", self._ask("describe"))[1]
        return self.layout != before

    def write_layout(self, layout: Layout) -> None:
        """Write `shards.json`, where the router runs."""
        self._ask("write_layout", layout)
        self.layout = layout

    def choose(self, candidates: Candidates) -> None:
        """Use another first stage in the searches of this object."""
        self.candidates = candidates

    def anew(self, *, by_manifest: bool = False) -> ServedShards:
        """Return the same shards, asked for their layout again."""
        other = ServedShards(self.app, self.timeout, self._ask)
        other.candidates = self.candidates
        return other

    def close(self) -> None:
        """Do nothing: others use the replicas."""
