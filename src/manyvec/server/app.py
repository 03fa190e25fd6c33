"""`manyvec serve`: one process that offers an index as a web page, a JSON API and an MCP server. It only reads.

Nothing is fetched from elsewhere, and nobody else's page can use it: it listens on this machine only unless given a
token, answers to its own host name only (a page elsewhere could point its name here), and takes requests from its own
page only. The page puts documents' texts in as text, and its policy lets no other script run.
"""

from __future__ import annotations

import hmac
import ipaddress
import sys
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from mcp.server.transport_security import TransportSecuritySettings
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manyvec.errors import InputError, ManyvecError
from manyvec.index import Index
from manyvec.server.api import MAX_TEXT_CHARS, Api, DocumentRecord, InfoRecord, SearchRequest, SearchResponse
from manyvec.server.mcp import mcp_server

MAX_BODY_BYTES = 64 * 1024
MIN_TOKEN_CHARS = 16
# The page itself holds nothing of the index; every other path needs the token.
_PAGE = frozenset({"/", "/page.css", "/page.js", "/icon.svg"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(index: Index, *, host: str = "127.0.0.1", port: int = 8765, token: str | None = None) -> None:
    """Serve an index until interrupted.

    Args:
        host: address to listen on.
        port: 0 for any that is free.
        token: what clients must send as `Authorization: Bearer TOKEN`; needed on any address that other machines reach.

    Raises:
        InputError: such an address without a token, or a token of less than 16 characters.
        EncoderError: the index's model cannot be loaded.
    """
    app = create_app(index, host=host, token=token)
    # The model and the token vectors are loaded now, and what is wrong with them shows now.
    index.search("manyvec", k=1)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        # Agents keep streams open that would never end by themselves.
        timeout_graceful_shutdown=3,
    )
    server = uvicorn.Server(config)
    listening = config.bind_socket()
    # Whoever reads the address may connect at once.
    listening.listen(config.backlog)
    shown, bound_port = listening.getsockname()[:2]
    print(f"http://{f'[{shown}]' if ':' in shown else shown}:{bound_port}/ (MCP: /mcp)", file=sys.stderr, flush=True)
    # uvicorn raises it again after it has stopped in order.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def create_app(index: Index, *, host: str = "127.0.0.1", token: str | None = None) -> FastAPI:
    """The application that `serve` runs, for a server of your own; arguments and errors as there."""
    is_local = _is_local(host)
    if token is None and not is_local:
        raise InputError(
            f"listening on {host} lets other machines read the index: give a token (--token or MANYVEC_TOKEN) that "
            "they must send, or listen on 127.0.0.1"
        )
    if token is not None and len(token) < MIN_TOKEN_CHARS:
        raise InputError(
            f"the token has {len(token)} characters, at least {MIN_TOKEN_CHARS} are needed. "
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    api = Api(index)
    agents = mcp_server(api)
    agents_app = agents.streamable_http_app(
        stateless_http=True,
        json_response=True,
        max_request_body_size=MAX_BODY_BYTES,
        # `_Guard` checks hosts and origins for all paths.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with agents.session_manager.run():
            yield

    app = FastAPI(
        title="manyvec",
        version=package_version("manyvec"),
        description="Late-interaction search over one index, with the evidence of every hit.",
        # FastAPI's own pages of the description fetch their scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        max_body_size=MAX_BODY_BYTES,
    )
    app.add_middleware(_Guard, token=token, is_local=is_local)

    @app.exception_handler(ManyvecError)
    def refuse(_: Request, error: ManyvecError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=400 if isinstance(error, InputError) else 500)

    @app.exception_handler(RequestValidationError)
    def refuse_malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        # Without what came: it may be long, and a lone surrogate in it cannot be written back.
        problems = [{"loc": problem["loc"], "msg": problem["msg"]} for problem in error.errors()]
        return JSONResponse({"detail": problems}, status_code=422)

    @app.post("/api/search", summary="Find documents, with evidence")
    def search(request: SearchRequest) -> SearchResponse:
        return api.search(request)

    @app.get("/api/documents/{id:path}", summary="Read a document", responses={404: {"description": "no such id"}})
    def document(
        id: str,
        start: Annotated[int, Query(ge=0)] = 0,
        n_chars: Annotated[int, Query(ge=1, le=MAX_TEXT_CHARS)] = MAX_TEXT_CHARS,
    ) -> DocumentRecord:
        found = api.document(id, start, n_chars)
        if found is None:
            raise HTTPException(404, f"there is no document {id!r}")
        return found

    @app.get(
        "/api/images/{id:path}",
        summary="Read a page image",
        response_class=Response,
        responses={404: {"description": "no such page"}},
    )
    def image(id: str) -> Response:
        found = api.image(id)
        if found is None:
            raise HTTPException(404, f"there is no page image {id!r}")
        content, content_type, etag = found
        return Response(content, media_type=content_type, headers={"ETag": etag})

    @app.get("/api/info", summary="What the index holds")
    def info() -> InfoRecord:
        return api.info()

    app.router.routes.extend(agents_app.routes)
    app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
    return app


class _Guard:
    """Refuses requests for other hosts, from other sites, without the token; adds the headers that bind browsers."""

    def __init__(self, app: ASGIApp, token: str | None, is_local: bool) -> None:
        self.app = app
        self.expected = None if token is None else f"Bearer {token}".encode()
        self.is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Lifespan passes; there are no websockets here.
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: MutableMapping[str, Any], headers: Headers) -> JSONResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.is_local and not _is_local(_host_name(host)):
            return JSONResponse({"detail": f"this server does not answer to the host name {host!r}"}, 421)
        if origin is not None and urlsplit(origin).netloc != host:
            return JSONResponse({"detail": "requests from pages of other sites are refused"}, 403)
        if self.expected is not None and scope["path"] not in _PAGE:
            given = headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, self.expected):
                return JSONResponse({"detail": "a token is needed"}, 401, headers={"WWW-Authenticate": "Bearer"})
        return None


def _host_name(host: str) -> str:
    """A Host header without its port: `[::1]:8765` is `::1`."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_local(host: str) -> bool:
    """Whether this names the machine itself, and no other can reach it there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
