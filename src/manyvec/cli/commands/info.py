"""`manyvec info`: describe an index."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from manyvec.cli.options import DEFAULT_INDEX, IndexOption, JsonOption, open_index

EXAMPLES = "Example: manyvec info --index ./papers --json"


def run(index: IndexOption = DEFAULT_INDEX, as_json: JsonOption = False) -> None:
    """Show what an index holds: documents, model, storage, filter columns, bytes."""
    info = asdict(open_index(index).info())
    from manyvec.cli.output import print_json, print_table

    if as_json:
        print_json(info)
    else:
        print_table(["", ""], [(name.replace("_", " "), _shown(value)) for name, value in info.items()])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={kind}" for name, kind in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) else "unknown" if value is None else str(value)
