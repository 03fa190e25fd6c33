"""What became of each file: read, left out on purpose, or not readable and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from manyvec.errors import InputError

# A file with a million bad lines is described by its first ones.
_MAX_PROBLEMS_PER_FILE = 5


@dataclass(frozen=True)
class Problem:
    """A file, or a part of one, that was not read.

    Attributes:
        path: Path of the file.
        reason: Why it was not read, in one sentence.
        is_whole_file: Whether nothing of the file was read.
    """

    path: str
    reason: str
    is_whole_file: bool = True


@dataclass
class FileReport:
    """What `read` did. Pass one to `read`, and look at it when all documents were consumed.

    Attributes:
        files: Number of files read, by suffix.
        documents: Number of documents made of them, by suffix.
        problems: Files, lines and pages that could not be read.
        left_out: Number of files and folders left out on purpose, by reason.
        notes: Decisions that a user may want to know of, such as which column of a table became the text.
    """

    files: Counter[str] = field(default_factory=Counter)
    documents: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    _problems_of: Counter[str] = field(default_factory=Counter, repr=False)

    def add_file(self, path: str, n_documents: int) -> None:
        """Count a file from which `n_documents` documents were read."""
        self.files[suffix(path)] += 1
        self.documents[suffix(path)] += n_documents

    def add_problem(self, path: str, reason: str, *, is_whole_file: bool = True) -> None:
        """Record that a file, or a part of it, was not read."""
        self._problems_of[path] += 1
        n = self._problems_of[path]
        if n <= _MAX_PROBLEMS_PER_FILE or is_whole_file:
            self.problems.append(Problem(path, reason, is_whole_file))

    def add_repeated(self, ids: Sequence[str]) -> None:
        """Note ids that more than one document had."""
        if ids:
            self.notes.append(f"{len(ids):,} ids came more than once, such as {ids[0]!r}: the last document is stored")

    @property
    def n_files(self) -> int:
        """Number of files from which documents were read."""
        return sum(self.files.values())

    @property
    def n_problems(self) -> int:
        """Number of problems, those that are not listed included."""
        return sum(self._problems_of.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold."""
        return {
            "files": dict(self.files),
            "documents": dict(self.documents),
            "problems": [{"path": p.path, "reason": p.reason} for p in self.problems],
            "n_problems": self.n_problems,
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }


class StrictReport(FileReport):
    """A report that raises `InputError` at the first problem."""

    def add_problem(self, path: str, reason: str, *, is_whole_file: bool = True) -> None:
        raise InputError(f"{path}: {reason}")


def suffix(path: str) -> str:
    """Return what files are counted by: the suffix in lower case, with the one before `.gz`; or `(no suffix)`."""
    name = PurePath(path.partition(", line ")[0]).name.lower()
    parts = PurePath(name).suffixes
    kept = parts[-2:] if parts[-1:] == [".gz"] else parts[-1:]
    return "".join(kept) or "(no suffix)"
