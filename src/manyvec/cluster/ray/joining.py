"""`join` connects this process to a Ray cluster, or says in one line why it cannot."""

from __future__ import annotations

import socket

from manyvec.errors import StoreError, require

_SECONDS = 5


def join(address: str | None = None) -> None:
    """Connect this process to a Ray cluster, unless it is connected to one already.

    Args:
        address: `auto` for a cluster that runs on this machine, `local` to start one, `HOST:PORT`, or `ray://HOST:PORT`.
            By default the one that `RAY_ADDRESS` names or that runs on this machine; if there is none, one is started.

    Raises:
        StoreError: There is no Ray cluster at the address.
        MissingPackageError: Ray is not installed: `pip install 'manyvec[ray]'`.
    """
    ray = require("ray", extra="ray")
    if ray.is_initialized():
        return
    try:
        if address is not None:
            _check_port(address)
        ray.init(address)
    # Of a text that is no address, Ray says it with a ValueError.
    except (OSError, ValueError, RuntimeError) as error:
        problem = str(error).partition("\n")[0].rstrip(".")
        raise StoreError(
            f"there is no Ray cluster at {address or 'RAY_ADDRESS'}: {problem}. Start one with `ray start --head`, or "
            "let `local` start one for this program"
        ) from error


def _check_port(address: str) -> None:
    """Raise an OSError if nobody listens at an address: Ray would try for 80 s, and then end the program."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _SECONDS).close()
