"""`manyvec mcp`: offer an index to an agent."""

from __future__ import annotations

from manyvec.cli.options import (
    DEFAULT_INDEX,
    DeviceOption,
    IndexOption,
    ScoreDeviceOption,
    check_exists,
    open_index,
)
from manyvec.errors import require

EXAMPLES = "Example, as an agent's configuration starts it: manyvec mcp --index /home/me/papers"


def run(
    index: IndexOption = DEFAULT_INDEX,
    device: DeviceOption = "auto",
    score_device: ScoreDeviceOption = None,
) -> None:
    """Offer an index to an agent as an MCP server on standard input and output.

    Its tools are `search` and `get_document`.
    """
    check_exists(index)
    require("mcp", extra="serve")
    from manyvec.server.mcp import serve_stdio

    serve_stdio(open_index(index, device, score_device))
