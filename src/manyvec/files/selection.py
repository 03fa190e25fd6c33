"""Choose the files of folders: no hidden, vendored or ignored ones, each file once, however it is named."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from manyvec.errors import InputError
from manyvec.files.report import FileReport

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Folders that tools fill with files of other people, or with what they built.
VENDORED = frozenset(("node_modules", "bower_components", "__pycache__", "site-packages", "venv", "env", "target"))
# These are ordinary names too, so the folder must also hold the file that the tool puts there.
_MARKERS = {"venv": "pyvenv.cfg", "env": "pyvenv.cfg", "target": "CACHEDIR.TAG"}


@dataclass(frozen=True)
class Selection:
    """Which files of a folder to read.

    Args:
        include: Globs as in a .gitignore file; if there are any, only files that match one are read.
        exclude: Globs of files and folders to leave out.
        everything: Whether to read hidden, vendored and ignored files as well.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    everything: bool = False

    @cached_property
    def _included(self) -> GitIgnoreSpec:
        return _spec(self.include)

    @cached_property
    def _excluded(self) -> GitIgnoreSpec:
        return _spec(self.exclude)

    def find(self, paths: Iterable[str | os.PathLike[str]], report: FileReport) -> Iterator[Path]:
        """Yield the files to read, in the order of `paths` and, inside folders, by name.

        A file named explicitly is read even if it is hidden or ignored. Symbolic links are followed, but no folder is
        entered twice and no file is yielded twice.

        Raises:
            InputError: One of `paths` does not exist; raised before the first file is yielded.
        """
        given = [Path(os.path.expanduser(path)) for path in paths]
        for path in given:
            if not os.path.lexists(path):
                raise InputError(f"{path}: no such file or folder")
        walk = _Walk(self, report)
        for path in given:
            if path.is_dir():
                yield from walk.folder(path)
            else:
                yield from walk.file(path)


@dataclass
class _Walk:
    """One walk over all paths, which remembers what it has seen."""

    selection: Selection
    report: FileReport
    seen: set[tuple[int, int]] = field(default_factory=set)

    def file(self, path: Path) -> Iterator[Path]:
        try:
            status = path.stat()
        except OSError as error:
            reason = "a symbolic link to nothing" if path.is_symlink() else str(error.strerror)
            self.report.add_problem(path.as_posix(), reason)
            return
        if not stat.S_ISREG(status.st_mode):
            self.report.add_problem(path.as_posix(), "not a regular file (a pipe, socket or device)")
        elif self._is_new(status):
            yield path

    def folder(self, top: Path) -> Iterator[Path]:
        rules = [] if self.selection.everything else _rules_above(top)
        yield from self._walk(top, top, rules)

    def _walk(self, folder: Path, top: Path, rules: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
        try:
            if not self._is_new(folder.stat()):
                return
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.report.add_problem(folder.as_posix(), f"the folder cannot be read: {error.strerror}")
            return
        names = {entry.name for entry in entries}
        if any(name.endswith(".lance") for name in names):
            self.report.left_out["indexes"] += 1
            return
        if not self.selection.everything and ".gitignore" in names:
            rules = [*rules, *_rules_of(folder)]
        for entry in entries:
            path = Path(entry.path)
            is_folder = _is_folder(entry)
            if reason := self._reason_to_leave_out(path, top, rules, is_folder=is_folder):
                self.report.left_out[reason] += 1
            elif is_folder:
                yield from self._walk(path, top, rules)
            else:
                yield from self.file(path)

    def _reason_to_leave_out(
        self, path: Path, top: Path, rules: list[tuple[Path, GitIgnoreSpec]], *, is_folder: bool
    ) -> str | None:
        chosen = self.selection
        inside = _relative(path, top, is_folder)
        if chosen.exclude and chosen._excluded.match_file(inside):
            return "excluded"
        if not chosen.everything:
            if path.name.startswith("."):
                return "hidden"
            if is_folder and path.name in VENDORED and _has_marker(path):
                return "vendored"
            if _is_ignored(path, rules, is_folder):
                return "named by a .gitignore file"
        if chosen.include and not is_folder and not chosen._included.match_file(inside):
            return "not included"
        return None

    def _is_new(self, status: os.stat_result) -> bool:
        key = (status.st_dev, status.st_ino)
        if key in self.seen:
            return False
        self.seen.add(key)
        return True


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _has_marker(folder: Path) -> bool:
    marker = _MARKERS.get(folder.name)
    return marker is None or (folder / marker).exists()


def _spec(lines: Iterable[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec

    return GitIgnoreSpec.from_lines(lines)


def _relative(path: Path, base: Path, is_folder: bool) -> str:
    return path.relative_to(base).as_posix() + ("/" if is_folder else "")


def _rules_of(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """Return the rules of a folder's .gitignore file, if it has a readable one."""
    try:
        lines = (folder / ".gitignore").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    return [(folder, _spec(lines))]


def _rules_above(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """Return the rules that hold in a folder because of .gitignore files above it, up to the root of its repository."""
    absolute = Path(os.path.abspath(folder))
    above = list(absolute.parents)
    if (absolute / ".git").exists():
        return []
    root = next((position for position, parent in enumerate(above) if (parent / ".git").exists()), None)
    if root is None:
        return []
    return [rule for parent in reversed(above[: root + 1]) for rule in _rules_of(parent)]


def _is_ignored(path: Path, rules: list[tuple[Path, GitIgnoreSpec]], is_folder: bool) -> bool:
    """Whether .gitignore rules leave a path out; those of deeper folders take precedence."""
    for base, spec in reversed(rules):
        full = Path(os.path.abspath(path)) if base.is_absolute() else path
        verdict = spec.check_file(_relative(full, base, is_folder)).include
        if verdict is not None:
            return verdict
    return False
