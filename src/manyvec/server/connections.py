"""HTTP connections that slow clients cannot hold open."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TIMEOUT_RESPONSE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class TimedProtocol(H11Protocol):
    """An HTTP/1.1 connection that is closed if its client is slow.

    uvicorn itself only limits the idle time between two requests.

    Attributes:
        request_seconds: Maximum time from the first byte of a request, or from connecting, to its last byte.
        response_seconds: Maximum time that a client may take to make room for more of a response.
    """

    request_seconds = 20.0
    response_seconds = 60.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._request_timer: asyncio.TimerHandle | None = None
        self._response_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_request_timer()

    def data_received(self, data: bytes) -> None:
        if not self.flow.write_paused:
            self._stop_response_timer()
        super().data_received(data)
        # IDLE: the headers are incomplete. SEND_BODY: the body is.
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._start_request_timer()
        else:
            self._stop_request_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # Closing waits until the client has read what is left in the write buffer.
        if self.transport.get_write_buffer_size():
            self._start_response_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_response_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_response_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_request_timer()
        self._stop_response_timer()
        super().connection_lost(exc)

    def _start_request_timer(self) -> None:
        if self._request_timer is None:
            self._request_timer = self.loop.call_later(self.request_seconds, self._end_request)

    def _end_request(self) -> None:
        self._request_timer = None
        if self.transport.is_closing():
            return
        # A response to a request with an incomplete body may have been sent already.
        if self.conn.their_state is h11.IDLE or not self.cycle.response_started:
            self.transport.write(_TIMEOUT_RESPONSE)
        self.transport.close()

    def _start_response_timer(self) -> None:
        if self._response_timer is None:
            self._response_timer = self.loop.call_later(self.response_seconds, self._end_response)

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def _stop_response_timer(self) -> None:
        if self._response_timer is not None:
            self._response_timer.cancel()
            self._response_timer = None

    def _end_response(self) -> None:
        self._response_timer = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()
