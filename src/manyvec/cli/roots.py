"""Remember, beside an index on disk, which folder the ids of its files are relative to."""

from __future__ import annotations

import json
import os
from pathlib import Path

from manyvec.errors import InputError

_FILE = "files.json"


def remembered_root(uri: str, given: str | None) -> Path:
    """Return the folder that ids are relative to: the one remembered, else the one given, else the working folder.

    Args:
        uri: Folder or URI of the index.
        given: Value of `--root`, if any.

    Raises:
        InputError: The index remembers another root than the one given.
    """
    chosen = Path(os.path.realpath(os.path.expanduser(given or ".")))
    if (file := _file(uri)) is None or not file.exists():
        return chosen
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))["root"]
        remembered = Path(os.path.normpath(file.parent / stored))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise InputError(f"{file} is damaged ({error!r}): delete it, and name the root with --root") from error
    if given is not None and remembered != chosen:
        raise InputError(f"the ids of {uri} are relative to {remembered}: leave out --root, or build a new index")
    return remembered


def remember_root(uri: str, root: Path) -> None:
    """Keep a root with an index, relative to it, so that an index and its files can be moved together.

    An index in a bucket remembers nothing.
    """
    if (file := _file(uri)) is not None and not file.exists():
        file.write_text(json.dumps({"root": _relative(root, file.parent)}), encoding="utf-8")


def _file(uri: str) -> Path | None:
    return None if "://" in uri else Path(os.path.realpath(os.path.expanduser(uri))) / _FILE


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
