"""`manyvec delete`: remove documents from an index."""

from __future__ import annotations

from typing import Annotated

import typer

from manyvec.cli.options import DEFAULT_INDEX, IndexOption, JsonOption, WhereOption, open_index

EXAMPLES = """Examples:

manyvec delete --id 'docs/old.md' --id 'report.pdf#page=3'

manyvec delete --where 'year<2000' --dry-run"""


def run(
    index: IndexOption = DEFAULT_INDEX,
    id: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="ID", help="Id of a document. May be repeated.", show_default=False),
    ] = None,
    where: WhereOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count the documents, and delete none.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete documents by id, or all that meet conditions. Files stay as they are.

    To delete what came from files that are gone, run `manyvec index PATH --sync`.
    """
    if bool(id) == bool(where):
        raise typer.BadParameter("name documents with --id, or conditions with --where")
    opened = open_index(index)
    from manyvec.cli.conditions import parse_where
    from manyvec.cli.output import print_json

    condition = parse_where(where or [], opened.filter_columns)
    if dry_run:
        n_deleted = opened.count(condition) if condition is not None else len(opened.get(id or []))
    else:
        n_deleted = opened.delete(filter=condition) if condition is not None else opened.delete(id)
    if as_json:
        print_json({"deleted": n_deleted, "documents": opened.count(), "dry_run": dry_run})
    else:
        print(f"{n_deleted:,} {'would be ' if dry_run else ''}deleted; {opened.count():,} documents in {index}")
