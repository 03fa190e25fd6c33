"""Print docstrings chosen at random, to read them as a stranger would; or look for wording that the project avoids.

python scripts/docstrings.py [SEED] [N]    # N docstrings, 20 by default; the same seed prints the same ones
python scripts/docstrings.py --check       # exit with 1 if phrases below are found more than five times
"""

from __future__ import annotations

import ast
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["src", "integrations", "examples", "tests", "scripts", "docs"]
# Phrases that are grammatical but that no engineer writes; the right word stands behind each.
AVOIDED = {
    r"answers? (how|whether)": "return",
    r"a text,": "a string, a document",
    r"so many": "at most N, at least N, N",
    r"whole number": "integer",
    r"is to be": "must be, will be, or the verb itself",
    r"gives (the|a|an) ": "returns",
    r"processor at hand": "CPU",
}
# Where a phrase is right for once, it may stay.
MAX_FOUND = 5
# Text that is data: licences, and the phrases above.
ALLOWED = ("LICENSE", "docstrings.py")


def files() -> list[Path]:
    suffixes = {".py", ".pyi", ".md", ".js", ".html", ".css"}
    found = (path for folder in SOURCES for path in (ROOT / folder).rglob("*") if path.suffix in suffixes)
    return sorted(path for path in found if path.name not in ALLOWED)


def docstrings() -> Iterator[tuple[str, str]]:
    """The address and the docstring of every module, class and function, tests left out."""
    for path in files():
        if path.suffix != ".py" or "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                name = "" if isinstance(node, ast.Module) else f" {node.name}"
                line = 1 if isinstance(node, ast.Module) else node.lineno
                if text := ast.get_docstring(node):
                    yield f"{path.relative_to(ROOT)}:{line}{name}", text


def check() -> int:
    n_found = 0
    for path in files():
        for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), start=1):
            for phrase, better in AVOIDED.items():
                if found := re.search(rf"\b{phrase}", line):
                    n_found += 1
                    print(
                        f"{path.relative_to(ROOT)}:{number}: {found[0].strip()!r}, better: {better}\n    {line.strip()}"
                    )
    print(f"{n_found} phrases that the project avoids")
    return n_found > MAX_FOUND


def main(arguments: list[str]) -> int:
    if "--check" in arguments:
        return check()
    seed, n = [*map(int, arguments), *(0, 20)[len(arguments) :]][:2]
    found = list(docstrings())
    for address, text in random.Random(seed).sample(found, min(n, len(found))):
        print(f"── {address}\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
