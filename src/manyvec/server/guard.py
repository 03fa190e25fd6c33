"""Refuse requests that the server must not answer, and add headers that restrict what browsers may do."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manyvec.server.errors import RequestError, request_error

# The page and the health check hold nothing of the index; every other path needs the token.
PAGE = Path(__file__).parent / "page"
_PUBLIC_PATHS = frozenset({"/", "/healthz", *(f"/{path.name}" for path in PAGE.iterdir())})
# A URL is kept in histories and logs, so a token in it is refused, also on public paths.
_TOKEN_PARAMETERS = frozenset({"token", "access_token", "api_key", "key"})
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """ASGI middleware that checks the host, the origin and the token of every request.

    Args:
        app: The application to protect.
        token: Bearer token that requests must carry; None if none is needed.
        is_local: Whether the server is for programs of this machine only. It then accepts only clients and host names
            of this machine, so that a page of another site cannot reach it by pointing its own host name here (DNS
            rebinding), nor another machine where a proxy in this process listens on all addresses, as Ray's may.
    """

    def __init__(self, app: ASGIApp, token: str | None, is_local: bool) -> None:
        self.app = app
        self.expected = None if token is None else f"Bearer {token}".encode()
        self.is_local = is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            # Only lifespan events; the application has no websockets.
            await self.app(scope, receive, send)
            return

        is_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_started
            if message["type"] == "http.response.start":
                is_started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refusal(scope, Headers(scope=scope))
        try:
            await (refusal or self.app)(scope, receive, send_with_headers)
        except Exception as error:
            # An error that no route expected: clients see an id, and the log has the details.
            if is_started:
                raise
            await error_response(request_error(error))(scope, receive, send_with_headers)

    def _refusal(self, scope: MutableMapping[str, Any], headers: Headers) -> JSONResponse | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        client = scope.get("client")
        if self.is_local and client is not None and client[0] and not is_local(client[0]):
            return error_response(
                RequestError(403, "without a token, only its own machine may ask this server", "other_machine")
            )
        if self.is_local and not is_local(_host_name(host)):
            return error_response(RequestError(421, f"this server does not serve the host name {host!r}"))
        if origin is not None and _netloc(origin) != host:
            return error_response(RequestError(403, "requests from pages of other sites are refused"))
        named = {name for name, _ in parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)}
        if not _TOKEN_PARAMETERS.isdisjoint(name.lower() for name in named):
            detail = "a token in a URL is refused, because URLs are logged: send it as the header Authorization"
            return error_response(RequestError(400, detail, "token_in_url"))
        if self.expected is not None and scope["path"] not in _PUBLIC_PATHS:
            credentials = headers.get("authorization", "").encode()
            if not hmac.compare_digest(credentials, self.expected):
                return error_response(RequestError(401, "a token is needed"))
        return None


def error_response(error: RequestError) -> JSONResponse:
    """Return the response to a request that failed."""
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(error.status)
    return JSONResponse(error.body(), error.status, headers)


def is_local(host: str) -> bool:
    """Return whether a host name or address is a loopback one, which other machines cannot reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_name(host: str) -> str:
    """Return a Host header without its port: `::1` for `[::1]:8765`."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str | None:
    """Return host and port of an Origin header, or None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None
