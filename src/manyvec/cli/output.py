"""Print results: JSON, tables and texts on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from manyvec.evidence.render import printable
from manyvec.filters.values import json_default

if TYPE_CHECKING:
    from rich.console import Console

# Without a terminal, lines are not wrapped: another program may read them.
_UNLIMITED_WIDTH = 100_000


def console() -> Console:
    """A console on standard output, without colors if it is not a terminal or NO_COLOR is set."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _UNLIMITED_WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False, soft_wrap=False)


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False, default=json_default))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Container[int] = ()) -> None:
    """Print a table no wider than the terminal; cells that do not fit are wrapped.

    Args:
        columns: Headings; no heading line is printed if all are empty.
        rows: Cells of each row, as many as there are columns. Control characters in them are replaced.
        right: Positions of columns that are aligned right.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns), header_style="bold")
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console().print(table)


def print_indented(text: str, indent: int) -> None:
    """Print lines that may hold colors of their own, indented, and wrapped at the width of a terminal."""
    from rich.padding import Padding
    from rich.text import Text

    if sys.stdout.isatty():
        console().print(Padding(Text.from_ansi(text), (0, 0, 0, indent), expand=False))
    else:
        print(textwrap.indent(text, " " * indent))


def say(text: str) -> None:
    """Print a line about progress on standard error, so that standard output holds only results."""
    print(text, file=sys.stderr)


def megabytes(n_bytes: float) -> str:
    """Format a number of bytes: `12.3 MB`."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Format a duration: `42 s`, `12 min`."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
