"""Print the structure of `src/manyvec` from its imports, and every rule of CONTRIBUTING.md that it breaks.

    python scripts/structure.py

A room is a folder or a module at the top level. Only imports at the top of a module count: those inside functions, and
those for type checkers, load nothing when the module is imported. Exits with 1 if a rule is broken.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "manyvec"
MAX_ENTRIES, MAX_LINES, MAX_ROOMS = 22, 450, 24
# These re-export names or start the program, and may import every room.
_DOORS = {"__init__", "__main__", "candidates"}
_MARKERS = {"__init__.pyi", "__main__.py", "__pycache__", "py.typed"}


def order(contributing: Path = ROOT / "CONTRIBUTING.md") -> dict[str, int]:
    """The rank of each room, from the line in CONTRIBUTING.md that starts with `errors`."""
    line = next(line for line in contributing.read_text(encoding="utf8").splitlines() if line.startswith("`errors"))
    ranks = line.strip("`. ").split("<")
    return {room.strip(): rank for rank, rooms in enumerate(ranks) for room in rooms.split(",")}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`vectors.codec` for `src/manyvec/vectors/codec.py`; a folder's `__init__` has the folder's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imports(path: Path) -> Iterator[str]:
    """Modules of manyvec that a module imports at its top, without `manyvec.`."""
    known = {name_of(module) for module in modules()}
    for node in ast.parse(path.read_text(encoding="utf8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "manyvec":
            module = (node.module or "").removeprefix("manyvec").removeprefix(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix(".")
                yield inner if inner in known else module
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("manyvec.") for alias in node.names if alias.name.startswith("manyvec.")
            )


def graph() -> dict[str, set[str]]:
    return {name_of(path): set(imports(path)) - {""} for path in modules()}


def circle(edges: dict[str, set[str]]) -> list[str] | None:
    """Modules that import each other in a circle; None if there is none."""
    done: set[str] = set()

    def search(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(edges.get(node, ())):
            if found := search(target, [*path, node]):
                return found
        done.add(node)
        return None

    return next((found for node in edges if (found := search(node, []))), None)


def room(module: str) -> str:
    return module.partition(".")[0]


def entries() -> list[str]:
    """Folders and modules at the top level of the package, without the files that Python or type checkers ask for."""
    return sorted(path.name for path in PACKAGE.iterdir() if path.name not in _MARKERS)


def problems() -> list[str]:
    """Every rule that the code breaks, in one sentence each."""
    ranks, edges = order(), graph()
    rooms = {room(module) for module in edges} - _DOORS
    found = [f"the room {name} has no place in CONTRIBUTING.md's order" for name in sorted(rooms - set(ranks))]
    found += [f"CONTRIBUTING.md's order names {name}, which does not exist" for name in sorted(set(ranks) - rooms)]
    for module, targets in edges.items():
        for target in sorted(targets):
            here, there = room(module), room(target)
            if here in _DOORS or here == there or not {here, there} <= set(ranks):
                continue
            if there in _DOORS or ranks[there] >= ranks[here]:
                found.append(f"{module} imports {target}, which stands beside or after it in the order")
    if loop := circle(edges):
        found.append(f"a circle of imports: {' → '.join(loop)}")
    if len(entries()) > MAX_ENTRIES:
        found.append(f"src/manyvec has {len(entries())} entries, more than {MAX_ENTRIES}")
    if len(rooms) > MAX_ROOMS:
        found.append(f"src/manyvec has {len(rooms)} rooms, more than {MAX_ROOMS}")
    for path in modules():
        if (n_lines := len(path.read_text(encoding="utf8").splitlines())) > MAX_LINES:
            found.append(f"{path.relative_to(ROOT)} has {n_lines} lines, more than {MAX_LINES}")
    return found


def main() -> int:
    edges = graph()
    rooms = sorted({room(module) for module in edges} - _DOORS, key=lambda name: (order().get(name, 99), name))
    sizes = {
        name: [len(path.read_text(encoding="utf8").splitlines()) for path in modules() if room(name_of(path)) == name]
        for name in rooms
    }
    print(f"{len(entries())} entries at the top level, {len(rooms)} rooms, {len(edges)} modules")
    for name in rooms:
        targets = {room(target) for module, found in edges.items() if room(module) == name for target in found}
        listed = ", ".join(sorted(targets - {name}, key=lambda target: order().get(target, 99))) or "nothing"
        print(f"  {name:<11} {len(sizes[name]):>2} modules {sum(sizes[name]):>5} lines  imports {listed}")
    found = problems()
    print("\n".join(["", *found] if found else ["", "no rule is broken"]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
