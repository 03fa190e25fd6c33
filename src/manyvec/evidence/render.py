"""Marked text for people: HTML and the terminal. A text's own markup and control characters never take effect."""

from __future__ import annotations

import html
import itertools
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Backgrounds from pale to strong, under black letters: they read on dark and light terminals alike.
_BACKGROUNDS = (230, 229, 228, 220, 214)
_HUE = "255, 176, 0"


@dataclass(frozen=True)
class Mark:
    """A stretch of a text worth seeing: how much, in [0, 1], and why."""

    start: int
    end: int
    strength: float
    label: str


def to_html(text: str, marks: Sequence[Mark]) -> str:
    """The text with each mark as a `<mark>`, the stronger the more opaque; its labels show under the pointer."""
    parts = []
    for start, end, covering in _segments(len(text), marks):
        shown = html.escape(text[start:end])
        if covering:
            strength = max(mark.strength for mark in covering)
            title = html.escape(", ".join(dict.fromkeys(mark.label for mark in covering)))
            shown = (
                f'<mark title="{title}" style="color: inherit; background: rgba({_HUE}, {strength:.2f})">{shown}</mark>'
            )
        parts.append(shown)
    return "".join(parts)


def to_terminal(text: str, marks: Sequence[Mark], *, color: bool) -> str:
    """The text in one line, marks on a coloured ground or, without colour, in square brackets."""
    parts = []
    for start, end, covering in _segments(len(text), marks):
        shown = printable(text[start:end])
        if covering and color:
            level = round(max(mark.strength for mark in covering) * (len(_BACKGROUNDS) - 1))
            shown = f"\033[38;5;16;48;5;{_BACKGROUNDS[level]}m{shown}\033[0m"
        elif covering:
            shown = f"[{shown}]"
        parts.append(shown)
    return "".join(parts)


def has_color() -> bool:
    """Whether standard output is a terminal that shows colour, and nobody set NO_COLOR (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """The text with line breaks and tabs as spaces, and a sign for whatever would steer a terminal."""
    steering = {
        ord(c): " " if c.isspace() else "\ufffd"
        for c in set(text)
        # Bidirectional overrides would reorder what is printed after the text.
        if unicodedata.category(c) in ("Cc", "Zl", "Zp") or "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"
    }
    return text.translate(steering)


def _segments(n_chars: int, marks: Sequence[Mark]) -> Iterator[tuple[int, int, list[Mark]]]:
    """The text cut wherever a mark starts or ends: (start, end, the marks that cover it)."""
    borders = sorted({0, n_chars, *(mark.start for mark in marks), *(mark.end for mark in marks)})
    for start, end in itertools.pairwise(borders):
        yield start, end, [mark for mark in marks if mark.start <= start and end <= mark.end]
