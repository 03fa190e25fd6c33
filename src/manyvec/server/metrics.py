"""Numbers for Prometheus. None holds queries, texts, ids or filters."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version as package_version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manyvec.server.api import Api

logger = logging.getLogger(__name__)

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Upper bounds in seconds: a search takes from 5 ms on, and fails after 30 s.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# Paths that requests are counted under; ids that follow them are left out, and other paths are the page's.
_ROUTES = ("/api/search", "/api/documents", "/api/images", "/api/info", "/api/overview", "/api/compare", "/mcp")
_UNCOUNTED = frozenset({"/metrics", "/healthz"})


class Metrics:
    """Counts of requests and searches, their times, and what the index holds. Safe to share between threads.

    Args:
        api: The index that is served. Its searches are counted from now on.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("manyvec_requests", "HTTP requests", ["route", "status"], **common)
        self._request_seconds = Histogram(
            "manyvec_request_seconds", "Time of HTTP requests", ["route"], buckets=_BUCKETS, **common
        )
        self._searches = Counter("manyvec_searches", "Queries that were searched for, over HTTP and MCP", **common)
        self._passes = Counter("manyvec_search_passes", "Passes over the index, for 1 or more queries each", **common)
        self._stage_seconds = Histogram(
            "manyvec_search_stage_seconds", "Time of each stage of a pass", ["stage"], buckets=_BUCKETS, **common
        )
        self._documents = Gauge("manyvec_documents", "Documents in the index", **common)
        self._index_version = Gauge("manyvec_index_version", "Version of the index", **common)
        self._cache_bytes = Gauge("manyvec_cache_bytes", "Memory that the index holds", **common)
        self._cache_budget_bytes = Gauge("manyvec_cache_budget_bytes", "Memory budget of the index", **common)
        self._up = Gauge("manyvec_index_up", "Whether the index can be read", **common)
        versions = Gauge("manyvec_build_info", "Versions", ["manyvec", "lancedb", "python"], **common)
        versions.labels(package_version("manyvec"), package_version("lancedb"), platform.python_version()).set(1)
        api.on_search = self._count_searches

    def _count_searches(self, n_queries: int, seconds: Mapping[str, float]) -> None:
        self._searches.inc(n_queries)
        self._passes.inc()
        for stage, taken in seconds.items():
            self._stage_seconds.labels(stage).observe(taken)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an HTTP request."""
        if path in _UNCOUNTED:
            return
        route = next((route for route in _ROUTES if path == route or path.startswith(f"{route}/")), "page")
        self._requests.labels(route, status).inc()
        self._request_seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all numbers in the text format of Prometheus."""
        try:
            info = self._api.index.info()
        except Exception as error:
            logger.warning("the index cannot be read: %s", error)
            self._up.set(0)
        else:
            self._up.set(1)
            self._documents.set(info.documents)
            self._index_version.set(info.version)
            self._cache_bytes.set(info.bytes_in_memory)
            self._cache_budget_bytes.set(info.cache_bytes)
        return generate_latest(self._registry)


class CountRequests:
    """ASGI middleware that counts requests, those included that `Guard` refuses."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        finally:
            self.metrics.count_request(scope["path"], status, time.perf_counter() - started)
