"""`manyvec check`: read an index once and report what is wrong with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from manyvec.cli.options import DEFAULT_INDEX, IndexOption, JsonOption, check_exists, place_options

EXAMPLES = """Examples:

manyvec check --index ./papers

manyvec check --index ./papers --repair"""


def run(
    index: IndexOption = DEFAULT_INDEX,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Repair duplicates, centroid lists and search indexes, and delete leftover files. "
            "Nothing else may write to the index meanwhile.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read everything of an index once and report what is wrong. Exits with 1 if a problem remains."""
    check_exists(index)
    from manyvec import cluster
    from manyvec.cli.output import print_json
    from manyvec.storage.lance import Place

    report = cluster.check(Place.of(index, **place_options()), repair=repair, show_progress=not as_json)
    remaining = report.lost if repair else report.problems
    if as_json:
        print_json(asdict(report))
    else:
        for problem in report.problems:
            name = "" if problem.document is None else f"{problem.document}: "
            hint = " (--repair can mend this)" if problem.is_repairable and not repair else ""
            print(f"{name}{problem.message}{hint}")
        for line in report.repaired:
            print(f"repaired: {line}")
        print(f"{report.documents:,} documents and {report.tokens:,} token vectors read, {len(remaining):,} problems")
    if remaining:
        raise typer.Exit(1)
