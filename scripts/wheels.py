"""Build the wheels and source archives of the three packages, and check what is in them.

    python scripts/wheels.py [FOLDER]    # dist/ by default; exits with 1 if a file is missing or does not belong there

hatchling must be installed (extra `dev`); nothing is downloaded. The workflow `publish` builds the same packages.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
# What nobody who installs a package needs.
UNWANTED = {"tests", "benchmarks", "campaigns", "examples", "docs", "integrations", "scripts", ".github", "__pycache__"}


@dataclass(frozen=True)
class Package:
    """A distribution of this repository.

    Attributes:
        name: Name on the package index.
        folder: Folder of its pyproject.toml.
        source: Folder of its modules; the wheel has its files under the folder's name.
    """

    name: str
    folder: Path
    source: Path


PACKAGES = (
    Package("manyvec", ROOT, ROOT / "src" / "manyvec"),
    Package("langchain-manyvec", ROOT / "integrations/langchain", ROOT / "integrations/langchain/langchain_manyvec"),
    Package(
        "llama-index-retrievers-manyvec",
        ROOT / "integrations/llama_index",
        ROOT / "integrations/llama_index/llama_index",
    ),
)


def build(package: Package, folder: Path) -> tuple[Path, Path]:
    """Build a package without a network and return its wheel and its source archive."""
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=package.folder, check=True, capture_output=True)
    stem = package.name.replace("-", "_")
    return next(folder.glob(f"{stem}-*.whl")), next(folder.glob(f"{stem}-*.tar.gz"))


def problems(package: Package, wheel: Path, archive: Path) -> Iterator[str]:
    """Yield what is wrong with the built files of a package, in one sentence each."""
    with zipfile.ZipFile(wheel) as opened:
        in_wheel = opened.namelist()
        metadata = opened.read(next(name for name in in_wheel if name.endswith(".dist-info/METADATA"))).decode()
    modules = {name for name in in_wheel if ".dist-info/" not in name}
    expected = {
        path.relative_to(package.source.parent).as_posix()
        for path in package.source.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    yield from (f"{wheel.name} lacks {name}" for name in sorted(expected - modules))
    yield from (f"{wheel.name} holds {name}" for name in sorted(modules - expected))
    if not any(name.endswith(".dist-info/licenses/LICENSE") for name in in_wheel):
        yield f"{wheel.name} lacks its licence"
    if not any(name.endswith("py.typed") for name in in_wheel):
        yield f"{wheel.name} lacks py.typed: type checkers would ignore its types"
    for field in (
        "License-Expression: Apache-2.0",
        "Project-URL: Repository",
        "Description-Content-Type: text/markdown",
    ):
        if field not in metadata:
            yield f"{wheel.name}: its metadata lacks {field!r}"

    with tarfile.open(archive) as opened_archive:
        in_archive = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in opened_archive.getnames()]
    inner = package.source.relative_to(package.folder).parent
    wanted = [PurePosixPath(inner.as_posix()) / name for name in sorted(expected)]
    wanted += [PurePosixPath(name) for name in ("pyproject.toml", "README.md", "LICENSE")]
    yield from (f"{archive.name} lacks {path}" for path in wanted if path not in in_archive)
    for name, paths in ((wheel.name, [PurePosixPath(name) for name in in_wheel]), (archive.name, in_archive)):
        yield from (f"{name} holds {path}" for path in paths if UNWANTED & set(path.parts))


def main(arguments: list[str]) -> int:
    folder = Path(arguments[0] if arguments else ROOT / "dist").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for package in PACKAGES:
        wheel, archive = build(package, folder)
        found += problems(package, wheel, archive)
        print(f"{wheel.name} {wheel.stat().st_size:,} bytes, {archive.name} {archive.stat().st_size:,} bytes")
    print("\n".join(found) or "all files are where they belong")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
