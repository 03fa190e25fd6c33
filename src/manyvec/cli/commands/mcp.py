"""`manyvec mcp`: offer indexes to an agent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeAlias

import typer

from manyvec.cli.options import (
    DEFAULT_INDEX,
    DeviceOption,
    ScoreDeviceOption,
    check_exists,
    open_index,
    place_options,
)
from manyvec.errors import InputError, require

EXAMPLES = """Examples:

manyvec mcp --index ./papers --description 'papers on late interaction' --print-config claude-desktop

manyvec mcp --index ./papers --index ./notes"""

Client: TypeAlias = Literal["claude-desktop", "claude-code", "cursor", "vscode"]
# Where each client looks for the block that is printed.
_FILES: dict[Client, str] = {
    "claude-desktop": "claude_desktop_config.json (Settings, Developer, Edit Config)",
    "claude-code": ".mcp.json in the project's folder",
    "cursor": ".cursor/mcp.json in the project's folder, or ~/.cursor/mcp.json",
    "vscode": ".vscode/mcp.json in the project's folder",
}


def run(
    index: Annotated[
        list[str] | None,
        typer.Option(
            "--index",
            "-i",
            metavar="DIR",
            help="Folder of the index, or its URI in a bucket. May be repeated: tools then take the name of an index. "
            f"By default that of MANYVEC_INDEX, or {DEFAULT_INDEX}.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="What agents call the index (default: the name of its folder). May be repeated, in the order of "
            "--index.",
            show_default=False,
        ),
    ] = None,
    description: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What the index holds, for agents to decide when to search it. May be repeated, in the order of "
            "--index.",
            show_default=False,
        ),
    ] = None,
    print_config: Annotated[
        Client | None,
        typer.Option(
            metavar="CLIENT",
            help="Print the configuration of a client that starts this server, instead of serving: claude-desktop, "
            "claude-code, cursor or vscode.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
    score_device: ScoreDeviceOption = None,
) -> None:
    """Offer indexes to an agent as an MCP server on standard input and output.

    Its tools are `search`, `get_document` and `list_sources`.
    """
    uris = index or [os.environ.get("MANYVEC_INDEX") or DEFAULT_INDEX]
    names = _for_each(uris, name, "--name") or [PurePath(uri).name or "manyvec" for uri in map(_absolute, uris)]
    descriptions = _for_each(uris, description, "--description") or [""] * len(uris)
    for uri in uris:
        check_exists(uri)
    require("mcp", extra="serve")
    if print_config is not None:
        _print_config(print_config, uris, names, descriptions)
        return
    from manyvec.server.mcp import serve_stdio

    opened = [open_index(uri, device, score_device) for uri in uris]
    serve_stdio([*zip(opened, names, descriptions, strict=True)])


def _for_each(uris: Sequence[str], given: Sequence[str] | None, option: str) -> list[str] | None:
    """Return the values of an option if there is one for each index; None if there are none."""
    if given and len(given) != len(uris):
        raise InputError(f"{option} is given {len(given)} times for {len(uris)} indexes: pass one for each --index")
    return [*given] if given else None


def _absolute(uri: str) -> str:
    """Return a folder's absolute path: clients start servers in a folder of their own."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def _print_config(client: Client, uris: Sequence[str], names: Sequence[str], descriptions: Sequence[str]) -> None:
    """Print a block of JSON that a client reads, and on standard error the file that it belongs into."""
    arguments = ["-m", "manyvec", "mcp"]
    for uri, name, description in zip(uris, names, descriptions, strict=True):
        arguments += ["--index", _absolute(uri), "--name", name, "--description", description]
    # Not the storage options, which may hold credentials.
    arguments += ["--table-name", table] if (table := place_options()["table_name"]) else []
    server: dict[str, Any] = {"command": sys.executable, "args": arguments}
    if client in ("claude-code", "vscode"):
        server = {"type": "stdio", **server}
    key = "servers" if client == "vscode" else "mcpServers"
    print(json.dumps({key: {"-".join(names): server}}, indent=2, ensure_ascii=False))
    print(f"manyvec: paste this into {_FILES[client]}", file=sys.stderr)
