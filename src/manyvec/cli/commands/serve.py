"""`manyvec serve`: offer an index over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from manyvec.cli.options import (
    DEFAULT_INDEX,
    DeviceOption,
    IndexOption,
    ScoreDeviceOption,
    check_exists,
    open_index,
)
from manyvec.errors import require

EXAMPLES = "Example: manyvec serve --index ./papers --port 8000"


def run(
    index: IndexOption = DEFAULT_INDEX,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for any free one.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="MANYVEC_TOKEN",
            help="Token that clients must send. Prefer the environment variable: other users can see options in `ps`.",
            show_default=False,
        ),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Let clients that send the token add and delete documents.")
    ] = False,
    description: Annotated[
        str, typer.Option(metavar="TEXT", help="What the index holds, for agents to decide when to search it.")
    ] = "",
    device: DeviceOption = "auto",
    score_device: ScoreDeviceOption = None,
) -> None:
    """Offer an index as a web page, a JSON API (described at /openapi.json) and an MCP server (at /mcp).

    The numbers at /metrics are for Prometheus, and /healthz says whether the index can be read.
    """
    check_exists(index)
    require("fastapi", extra="serve")
    require("mcp", extra="serve")
    from manyvec.server.app import serve

    serve(
        open_index(index, device, score_device), host=host, port=port, token=token, write=write, description=description
    )
