"""Render text with highlights as HTML and for the terminal. Markup and control characters in the text are escaped."""

from __future__ import annotations

import html
import itertools
import os
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Backgrounds from pale to strong for black letters: readable on dark and light terminals.
_BACKGROUNDS = (230, 229, 228, 220, 214)
_HUE = "255, 176, 0"


@dataclass(frozen=True)
class Mark:
    """A highlight from character `start` to `end`, with a strength in [0, 1] and a label that says why.

    One that is underlined has no background.
    """

    start: int
    end: int
    strength: float
    label: str
    is_underlined: bool = False


def to_html(text: str, marks: Sequence[Mark]) -> str:
    """Return the text as HTML, with a `<mark>` for each highlight: opacity is the strength, the tooltip its label."""
    parts = []
    for start, end, covering in _segments(len(text), marks):
        shown = html.escape(text[start:end])
        if covering:
            strength = max(mark.strength for mark in covering)
            title = html.escape(", ".join(dict.fromkeys(mark.label for mark in covering)))
            line = "; text-decoration: underline" if any(mark.is_underlined for mark in covering) else ""
            style = f"color: inherit; background: rgba({_HUE}, {strength:.2f}){line}"
            shown = f'<mark title="{title}" style="{style}">{shown}</mark>'
        parts.append(shown)
    return "".join(parts)


def to_terminal(text: str, marks: Sequence[Mark], *, color: bool) -> str:
    """Return the text as one line, with highlights on a coloured background, or in square brackets without colour."""
    parts = []
    for start, end, covering in _segments(len(text), marks):
        shown = printable(text[start:end])
        matched = [mark.strength for mark in covering if not mark.is_underlined]
        if covering and color:
            codes = ["4"] * (len(matched) < len(covering))
            if matched:
                codes.append(f"38;5;16;48;5;{_BACKGROUNDS[round(max(matched) * (len(_BACKGROUNDS) - 1))]}")
            shown = f"\033[{';'.join(codes)}m{shown}\033[0m"
        elif matched:
            shown = f"[{shown}]"
        parts.append(shown)
    return "".join(parts)


def has_color() -> bool:
    """Whether standard output is a terminal with colours and NO_COLOR is not set (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Return the text with whitespace as spaces, and U+FFFD for each character that would control a terminal."""
    replacements = {
        ord(c): " " if c.isspace() else "\ufffd"
        for c in set(text)
        # Bidirectional overrides would reorder what is printed next.
        if unicodedata.category(c) in ("Cc", "Zl", "Zp") or "\u202a" <= c <= "\u202e" or "\u2066" <= c <= "\u2069"
    }
    return text.translate(replacements)


def _segments(n_chars: int, marks: Sequence[Mark]) -> Iterator[tuple[int, int, list[Mark]]]:
    """Cut the text wherever a mark starts or ends. Yields (start, end, marks that cover it)."""
    borders = sorted({0, n_chars, *(mark.start for mark in marks), *(mark.end for mark in marks)})
    for start, end in itertools.pairwise(borders):
        yield start, end, [mark for mark in marks if mark.start <= start and end <= mark.end]
