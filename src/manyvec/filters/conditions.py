"""Conditions of a search: comparisons of declared columns, and their combinations.

    F("year") >= 2023
    (F("lang") == "en") & ~F("tags").contains("draft")
    HasId(["a1", "a2"]) & (F("year") >= 2023)

Filters use two-valued logic: a comparison with a missing value is false, and `!=`, `not_in` and `~` are the exact
negations of `==`, `in_` and the filter behind them, so they keep documents whose value is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from manyvec.errors import FilterError
from manyvec.filters.values import shown

Op = Literal[
    "==",
    "<",
    "<=",
    ">",
    ">=",
    "in",
    "contains",
    "contains, any case",
    "like",
    "like, any case",
    "is null",
    "is empty",
]


class Filter:
    """A condition on documents. Combine filters with `&`, `|` and `~`."""

    def __and__(self, other: Filter) -> Filter:
        return AllOf((self, _filter(other)))

    def __or__(self, other: Filter) -> Filter:
        return AnyOf((self, _filter(other)))

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> bool:
        # `a and b` would silently be just b, and `1 < F("n") < 5` just its second half.
        raise FilterError("a filter has no truth value: combine filters with & | ~ and brackets, not with and/or/not")


@dataclass(frozen=True)
class Comparison(Filter):
    """A comparison of one column with a value. `F` makes them."""

    column: str
    op: Op
    value: Any = None


@dataclass(frozen=True)
class HasId(Filter):
    """Keep the documents with these ids; an empty list keeps none."""

    ids: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.ids, str) or not isinstance(self.ids, Iterable):
            raise FilterError(f"HasId takes a list of ids, which are strings, got {shown(self.ids)}")
        if wrong := [id for id in self.ids if not isinstance(id, str)]:
            raise FilterError(f"HasId takes a list of ids, which are strings, got {shown(wrong[0])}: use str(id)")


@dataclass(frozen=True)
class AllOf(Filter):
    """Keep the documents that every part keeps; without parts, all documents."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf(Filter):
    """Keep the documents that at least one part keeps; without parts, none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not(Filter):
    """Keep the documents that the part does not keep."""

    part: Filter


class F:
    """A declared filter column, to compare with values: `F("year") >= 2023`."""

    # == returns a filter, so columns cannot be dictionary keys.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, column: str) -> None:
        self.column = column

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return self.is_null() if value is None else Comparison(self.column, "==", value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return Not(self == value)

    def __lt__(self, value: Any) -> Filter:
        return Comparison(self.column, "<", value)

    def __le__(self, value: Any) -> Filter:
        return Comparison(self.column, "<=", value)

    def __gt__(self, value: Any) -> Filter:
        return Comparison(self.column, ">", value)

    def __ge__(self, value: Any) -> Filter:
        return Comparison(self.column, ">=", value)

    def in_(self, values: Iterable[Any]) -> Filter:
        """Keep documents whose value equals one of `values`; an empty list keeps none."""
        return Comparison(self.column, "in", _values(values))

    def not_in(self, values: Iterable[Any]) -> Filter:
        """Keep documents whose value equals none of `values`, or is missing."""
        return Not(self.in_(values))

    def contains(self, value: Any, *, ignore_case: bool = False) -> Filter:
        """Keep documents whose list holds `value`, or whose string contains it as a substring."""
        return Comparison(self.column, "contains, any case" if ignore_case else "contains", value)

    def like(self, pattern: str, *, ignore_case: bool = False) -> Filter:
        """Keep documents whose string matches an SQL pattern as a whole: `%` is any run of characters, `_` is one."""
        return Comparison(self.column, "like, any case" if ignore_case else "like", pattern)

    def is_null(self) -> Filter:
        """Keep documents whose metadata lacks the key, or has `None` under it."""
        return Comparison(self.column, "is null")

    def is_empty(self) -> Filter:
        """Keep documents whose value is missing, an empty string or an empty list."""
        return Comparison(self.column, "is empty")


def _values(values: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise FilterError(f"in_ takes a list of values, got {shown(values)}")
    return tuple(values)


def _filter(value: Any) -> Filter:
    if not isinstance(value, Filter):
        raise FilterError(f"a filter can only be combined with another filter, got {type(value).__name__}")
    return value
