"""Print the version that the three packages share, or set it.

    python scripts/version.py          # exit with 1 if a file disagrees
    python scripts/version.py 0.2.0    # write it to every file

`__version__` in `src/manyvec/__init__.py` is the source. The packages for LangChain and LlamaIndex state it once more,
and the range of manyvec that they accept.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "manyvec" / "__init__.py"
ADAPTERS = [ROOT / "integrations" / name / "pyproject.toml" for name in ("langchain", "llama_index")]


def accepted(version: str) -> str:
    """The range of manyvec that adapters of this version accept; before 1.0 a minor version may break them."""
    major, minor, _ = map(int, version.split("."))
    return f"manyvec>={major}.{minor},<{major + 1}" if major else f"manyvec>=0.{minor},<0.{minor + 1}"


def with_version(path: Path, version: str) -> str:
    """The text of the file, stating this version."""
    text = path.read_text(encoding="utf8")
    if path == SOURCE:
        return re.sub(r'^__version__ = ".*"$', f'__version__ = "{version}"', text, flags=re.MULTILINE)
    text = re.sub(r'^version = ".*"$', f'version = "{version}"', text, flags=re.MULTILINE)
    return re.sub(r'"manyvec>=[^"]*"', f'"{accepted(version)}"', text)


def main(arguments: list[str]) -> int:
    stated = re.search(r'^__version__ = "(.*)"$', SOURCE.read_text(encoding="utf8"), flags=re.MULTILINE)
    version = arguments[0] if arguments else stated and stated[1]
    if not version or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        sys.exit(f"expected a version such as 0.2.0, got {version!r}")
    differing = [path for path in (SOURCE, *ADAPTERS) if with_version(path, version) != path.read_text(encoding="utf8")]
    for path in differing:
        if arguments:
            path.write_text(with_version(path, version), encoding="utf8")
        else:
            print(f"{path.relative_to(ROOT)} does not state {version}", file=sys.stderr)
    print(version)
    return bool(differing) and not arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
