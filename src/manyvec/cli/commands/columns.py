"""`manyvec columns`: show the filter columns of an index, and add further ones."""

from __future__ import annotations

from typing import Annotated

import typer

from manyvec.cli.options import DEFAULT_INDEX, ColumnOption, IndexOption, JsonOption, open_index

EXAMPLES = """Examples:

manyvec columns --index ./papers

manyvec columns --index ./papers --column year=int --column author.name=str

manyvec columns --index ./papers --infer"""


def run(
    index: IndexOption = DEFAULT_INDEX,
    column: ColumnOption = None,
    infer: Annotated[
        bool, typer.Option("--infer", help="Add all metadata whose stored values are of one type.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the filter columns of an index, or add some from the stored metadata. Nothing is encoded again."""
    opened = open_index(index)
    from manyvec.cli.conditions import parse_columns
    from manyvec.cli.output import print_json, print_table

    if infer and column:
        raise typer.BadParameter("name columns with --column, or add all with --infer")
    counts = opened.add_filter_columns("infer" if infer else parse_columns(column or [])) if infer or column else {}
    if as_json:
        print_json({"filter_columns": opened.filter_columns, "documents_with_a_value": counts})
        return
    rows = [
        (name, kind, f"{counts[name]:,} documents have a value" if name in counts else "")
        for name, kind in opened.filter_columns.items()
    ]
    print_table(["", "", ""], rows or [("no filter columns", "", "")])
