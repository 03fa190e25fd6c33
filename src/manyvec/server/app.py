"""`manyvec serve`: offer one index as a web page, a JSON API and an MCP server. Nothing is written to the index
unless it is told to be writable.

The server loads nothing from other sites, and pages of other sites cannot use it: it listens on a loopback address
unless a token is set, serves only its own host name, and refuses requests of foreign origins (see `Guard`). The page
inserts documents as text, never as markup, and its Content-Security-Policy allows no other scripts.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version as package_version
from typing import Annotated, Any, TypeVar

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from mcp.server.transport_security import TransportSecuritySettings
from starlette.exceptions import HTTPException as StarletteHTTPException

from manyvec.cluster import AnyIndex
from manyvec.errors import InputError
from manyvec.server.api import Api, Searches
from manyvec.server.connections import TimedProtocol
from manyvec.server.errors import ERROR_CODES, RequestError
from manyvec.server.guard import PAGE, Guard, error_response, is_local
from manyvec.server.mcp import ServedIndex, mcp_server
from manyvec.server.metrics import CONTENT_TYPE, CountRequests, Metrics
from manyvec.server.records import (
    MAX_TEXT_CHARS,
    AddRequest,
    AddResponse,
    CompareRequest,
    CompareResponse,
    DocumentRecord,
    InfoRecord,
    OverviewRecord,
    SearchRequest,
    SearchResponse,
)

MAX_BODY_BYTES = 64 * 1024
# Of a request that adds documents.
MAX_WRITE_BODY_BYTES = 2**20
MIN_TOKEN_CHARS = 16
# The largest position that a 64-bit integer holds.
MAX_START = 2**63 - 1
MAX_CONNECTIONS = 1_000

T = TypeVar("T")


def serve(
    index: AnyIndex,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    write: bool = False,
    description: str = "",
) -> None:
    """Serve an index until interrupted.

    Args:
        index: The index to serve.
        host: Address to listen on.
        port: Port to listen on; 0 selects a free one.
        token: Token that clients must send as `Authorization: Bearer TOKEN`. Required unless `host` is a loopback
            address or `write` is true.
        write: Whether clients may add and delete documents.
        description: What the index holds, for agents to decide when to search it.

    Raises:
        InputError: `host` can be reached by other machines or `write` is true, and there is no token; or the token has
            less than 16 characters.
        EncoderError: The model of the index cannot be loaded.
    """
    # Does nothing if the program that calls this has configured logging.
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app = create_app(index, host=host, token=token, write=write, description=description)
    # Load everything that a search needs before listening, so that problems with it show at once.
    index.search("manyvec", k=1, evidence=True)
    config = server_config(app, host=host, port=port)
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    # Listen before printing the address: whoever reads it may connect at once.
    listening.listen(config.backlog)
    address, bound_port = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    print(f"http://{shown}:{bound_port}/ (MCP: /mcp)", file=sys.stderr, flush=True)
    # uvicorn shuts down in order, then raises KeyboardInterrupt again.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def server_config(app: FastAPI, *, host: str = "127.0.0.1", port: int = 8765) -> uvicorn.Config:
    """Return the settings of the HTTP server that `serve` runs."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=TimedProtocol,
        ws="none",
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        # Longer than clients keep idle connections: one that the server closes just then is an error for the client.
        timeout_keep_alive=75,
        # MCP clients keep streams open that never end by themselves.
        timeout_graceful_shutdown=3,
    )


def create_app(
    index: AnyIndex,
    *,
    host: str = "127.0.0.1",
    token: str | None = None,
    write: bool = False,
    description: str = "",
) -> FastAPI:
    """Return the ASGI application that `serve` runs, to run it in another server.

    Args:
        index: The index to serve.
        host: Address that the server will listen on.
        token: As for `serve`.
        write: As for `serve`.
        description: As for `serve`.

    Raises:
        InputError: As for `serve`.
    """
    if write and token is None:
        raise InputError(
            "documents can be added and deleted only with a token (--token or MANYVEC_TOKEN) that clients must send"
        )
    if token is None and not is_local(host):
        raise InputError(
            f"listening on {host} lets other machines read the index: set a token (--token or MANYVEC_TOKEN) that "
            "clients must send, or listen on 127.0.0.1"
        )
    if token is not None and len(token) < MIN_TOKEN_CHARS:
        raise InputError(
            f"the token has {len(token)} characters, at least {MIN_TOKEN_CHARS} are needed. "
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    api = Api(index)
    metrics = Metrics(api)
    searches = Searches(api)
    agents = mcp_server(ServedIndex(api, searches, api.name, description))
    agents_app = agents.streamable_http_app(
        stateless_http=True,
        json_response=True,
        max_request_body_size=MAX_BODY_BYTES,
        # `Guard` checks hosts and origins for all paths.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with agents.session_manager.run():
            yield

    app = FastAPI(
        title="manyvec",
        version=package_version("manyvec"),
        description="Late-interaction search over one index, with evidence for every hit.",
        # FastAPI's documentation pages load scripts from other sites.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        max_body_size=MAX_WRITE_BODY_BYTES if write else MAX_BODY_BYTES,
    )
    app.add_middleware(Guard, token=token, is_local=is_local(host))
    app.add_middleware(CountRequests, metrics=metrics)
    _add_error_handlers(app)
    _add_routes(app, api, searches, is_writable=write)
    _add_operations(app, api, metrics)
    if write:
        _add_writes(app, api)
    app.router.routes.extend(agents_app.routes)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    def handle_request_error(_: Request, error: RequestError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(StarletteHTTPException)
    def handle_http_exception(_: Request, error: StarletteHTTPException) -> JSONResponse:
        response = error_response(RequestError(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(RequestValidationError)
    def handle_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        # The input is left out: it may be long, and a lone surrogate in it cannot be encoded.
        problems = [{"loc": problem["loc"], "msg": problem["msg"]} for problem in error.errors()]
        return JSONResponse({"detail": problems, "code": ERROR_CODES[422]}, status_code=422)


def _add_routes(app: FastAPI, api: Api, searches: Searches, *, is_writable: bool) -> None:
    # Models are written as JSON by pydantic itself, which is several times faster than FastAPI's encoder.
    @app.post(
        "/api/search",
        summary="Search the documents, with evidence",
        response_model=SearchResponse,
        max_body_size=MAX_BODY_BYTES,
    )
    async def search(body: SearchRequest, request: Request) -> Response:
        response = await _unless_disconnected(request, searches.submit(body))
        return Response(response.model_dump_json(), media_type="application/json")

    @app.get(
        "/api/documents/{id:path}",
        summary="Read a document",
        response_model=DocumentRecord,
        responses={404: {"description": "unknown id"}},
    )
    def document(
        id: str,
        start: Annotated[int, Query(ge=0, le=MAX_START)] = 0,
        n_chars: Annotated[int, Query(ge=1, le=MAX_TEXT_CHARS)] = MAX_TEXT_CHARS,
    ) -> Response:
        record = api.document(id, start, n_chars)
        if record is None:
            raise HTTPException(404, f"there is no document {id!r}")
        return Response(record.model_dump_json(), media_type="application/json")

    @app.get(
        "/api/images/{id:path}",
        summary="Read a page image",
        response_class=Response,
        responses={404: {"description": "unknown id, or the document has no image"}},
    )
    def image(id: str) -> Response:
        image = api.image(id)
        if image is None:
            raise HTTPException(404, f"there is no page image {id!r}")
        content, content_type, etag = image
        return Response(content, media_type=content_type, headers={"ETag": etag})

    @app.get("/api/info", summary="Describe the index")
    def info() -> InfoRecord:
        return api.info().model_copy(update={"is_writable": is_writable})

    @app.get("/api/overview", summary="List the values of filter columns, and a few things to search for")
    def overview() -> OverviewRecord:
        return api.overview()

    @app.post("/api/compare", summary="Compare BM25, pooled vectors and late interaction", max_body_size=MAX_BODY_BYTES)
    def compare(body: CompareRequest) -> CompareResponse:
        return api.compare(body)


def _add_operations(app: FastAPI, api: Api, metrics: Metrics) -> None:
    @app.get("/healthz", summary="Say whether the index can be read; needs no token")
    def healthz() -> dict[str, str]:
        api.count()
        return {"status": "ok"}

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=Response)
    def numbers() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _add_writes(app: FastAPI, api: Api) -> None:
    @app.post("/api/documents", summary="Add documents, or replace them")
    def add(body: AddRequest) -> AddResponse:
        return api.add(body)

    @app.delete("/api/documents/{id:path}", summary="Delete a document", responses={404: {"description": "unknown id"}})
    def delete(id: str) -> dict[str, int]:
        if not api.delete(id):
            raise HTTPException(404, f"there is no document {id!r}")
        return {"deleted": 1}


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it if the client disconnects.

    Raises:
        RequestError: The client is gone. Nobody receives this response.
    """

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RequestError(499, "the client closed the connection")
    finally:
        task.cancel()
        watch.cancel()
