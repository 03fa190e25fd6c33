"""Errors as clients of the HTTP and MCP servers see them."""

from __future__ import annotations

import logging
from typing import Any
from uuid import uuid4

from manyvec.errors import IndexNotFoundError, InputError, ManifestError, StoreError
from manyvec.server.batching import BusyError

logger = logging.getLogger(__name__)

# What a client can tell errors apart by, for each HTTP status.
ERROR_CODES = {
    400: "invalid_input",
    401: "token_needed",
    403: "other_site",
    404: "not_found",
    405: "method_not_allowed",
    421: "unknown_host",
    422: "invalid_request",
    499: "client_closed",
    500: "internal",
    503: "index_unavailable",
}


class RequestError(Exception):
    """An error as clients see it. It tells nothing about the machine that the server runs on.

    Attributes:
        status: HTTP status.
        detail: One sentence for the client.
        code: What went wrong, for programs; see `ERROR_CODES`.
        error_id: What to look for in the server's log, if the details are there.
    """

    def __init__(self, status: int, detail: str, code: str | None = None, error_id: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code or ERROR_CODES.get(status, "error")
        self.error_id = error_id

    def body(self) -> dict[str, Any]:
        """Return what the response of an HTTP request holds."""
        return {"detail": self.detail, "code": self.code} | ({"error_id": self.error_id} if self.error_id else {})


def request_error(error: Exception) -> RequestError:
    """Return what to tell clients about an error. Unless they caused it, the details are logged under an id."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, InputError):
        return RequestError(400, str(error))
    if isinstance(error, BusyError):
        return RequestError(503, "the server is busy: try again later", "busy")
    error_id = uuid4().hex[:12]
    logger.error("error %s", error_id, exc_info=error)
    if isinstance(error, (StoreError, IndexNotFoundError, ManifestError)):
        detail = f"the index cannot be read at the moment: try again later (error {error_id})"
        return RequestError(503, detail, error_id=error_id)
    return RequestError(500, f"the server failed to answer this request (error {error_id})", error_id=error_id)
