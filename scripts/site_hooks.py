"""Fill in what the docs site generates: the reference of the command line, other public names, and all measurements.

`mkdocs.yml` names this file as a hook. Nothing of it is committed, so it cannot be out of date.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
RESULTS = ROOT / "examples" / "benchmarks" / "results"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of generated parts; MkDocs calls this for every page."""
    for mark, generate in {"commands": commands, "names": names, "results": results}.items():
        if f"<!-- {mark} -->" in markdown:
            markdown = markdown.replace(f"<!-- {mark} -->", generate())
    return markdown


def public_names() -> list[str]:
    """Every public name of manyvec, with its module: `manyvec.Index`, `manyvec.files.read`."""
    import manyvec

    found: list[str] = []
    for name in dir(manyvec):
        if name.startswith("__"):
            continue
        value = getattr(manyvec, name)
        if isinstance(value, ModuleType):
            found += [f"manyvec.{name}.{inner}" for inner in import_module(f"manyvec.{name}").__all__]
        else:
            found.append(f"manyvec.{name}")
    return sorted(found)


def names() -> str:
    """Reference of the public names that no page mentions by itself."""
    pages = "\n".join(path.read_text(encoding="utf8") for path in sorted(REFERENCE.glob("*.md")))
    mentioned = set(re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE))
    return "\n\n".join(f"::: {name}" for name in public_names() if name not in mentioned)


def commands() -> str:
    """Every command with its arguments and options, as Markdown."""
    import typer
    from typer.cli import get_docs_for_click

    from manyvec.cli.app import app

    command = typer.main.get_command(app)
    with command.make_context("manyvec", ["search", "query"], resilient_parsing=True) as context:
        text = get_docs_for_click(obj=command, ctx=context, name="manyvec", indent=1)
    # Metadata columns such as list[str] are no links.
    return text.replace("list[str]", r"list\[str]")


def results() -> str:
    """A table of all results with the command, the date and the versions of each."""
    lines = ["| result | command | date | manyvec, torch |", "| --- | --- | --- | --- |"]
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf8"))
        versions = ", ".join(record["versions"].get(name, "–") for name in ("manyvec", "torch"))
        lines.append(f"| `{path.name}` | `{record['command']}` | {record['date']} | {versions} |")
    return "\n".join(lines)
