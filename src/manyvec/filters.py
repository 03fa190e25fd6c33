"""Filters: typed comparisons over declared columns, and the one place where they become SQL.

    F("year") >= 2023
    (F("lang") == "en") & ~F("tags").contains("draft")
    HasId(["a1", "a2"]) & (F("year") >= 2023)

A filter holds two-valued logic: a comparison with a missing value is false, and `!=`, `not_in` and `~` are the exact
negations of `==`, `in_` and the filter behind them, so they keep documents whose value is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Any, Literal, TypeAlias, get_args, get_origin

from manyvec.errors import FilterError, InputError, check_unicode

Op = Literal["==", "<", "<=", ">", ">=", "in", "contains", "contains, any case", "is null", "is empty"]
Scalar: TypeAlias = "type[str] | type[int] | type[float] | type[bool] | type[datetime]"

# LanceDB 0.40 does not return from 60 nested NOTs, and its parser gives up on brackets below 48 levels.
MAX_DEPTH = 20


@dataclass(frozen=True)
class ColumnType:
    """What a declared filter column holds: one scalar, or a list of them."""

    scalar: Scalar
    is_list: bool = False

    @classmethod
    def of(cls, name: str, declared: Any) -> ColumnType:
        """Read a declaration as users write it: `int`, `str`, `datetime`, `list[str]`, …, or the same as text."""
        if isinstance(declared, str):
            return cls.parse(declared)
        is_list = get_origin(declared) is list
        scalar = get_args(declared)[0] if is_list else declared
        scalar = datetime if scalar is date else scalar
        if scalar not in _SCALARS.values():
            raise InputError(
                f"filter column {name!r} is declared as {declared!r}; "
                f"use one of {', '.join(_SCALARS)}, or list[...] of one"
            )
        return cls(scalar, is_list)

    @classmethod
    def parse(cls, written: str) -> ColumnType:
        """Read what `str` of a column type wrote, as the manifest keeps it."""
        scalar = written.removeprefix("list[").removesuffix("]")
        if scalar not in _SCALARS:
            raise InputError(f"unknown filter type {written!r}; known are {', '.join(_SCALARS)}, or list[...] of one")
        return cls(_SCALARS[scalar], written.startswith("list["))

    def __str__(self) -> str:
        return f"list[{self.scalar.__name__}]" if self.is_list else self.scalar.__name__

    def convert(self, value: Any, what: str) -> Any:
        """The value as this column stores it; `None` stays `None`.

        Raises:
            InputError: another type. `what` names the value in the message.
        """
        if value is None:
            return None
        if not self.is_list:
            return _convert(value, self.scalar, what)
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{what} must be of type {self}, got {value!r}")
        return [_convert(item, self.scalar, what) for item in value]


class Filter:
    """A condition on documents; combine with `&`, `|` and `~`."""

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
    column: str
    op: Op
    value: Any = None


@dataclass(frozen=True)
class HasId(Filter):
    """The document's id is one of these; with none of them it holds for no document."""

    ids: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.ids, str) or not all(isinstance(id, str) for id in self.ids):
            raise FilterError(f"HasId takes a list of ids, which are texts, got {self.ids!r}")


@dataclass(frozen=True)
class AllOf(Filter):
    """Every part holds; with no part it holds for every document."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class AnyOf(Filter):
    """At least one part holds; with no part it holds for none."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Not(Filter):
    part: Filter


class F:
    """A declared filter column, to be compared: `F("year") >= 2023`."""

    # == makes a filter, so columns are no dictionary keys.
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
        """Equal to one of the values; with none of them, no document fits."""
        return Comparison(self.column, "in", _values(values))

    def not_in(self, values: Iterable[Any]) -> Filter:
        return Not(self.in_(values))

    def contains(self, value: Any, *, ignore_case: bool = False) -> Filter:
        """A list column holds this value; a text column holds this piece of text, in any case if asked."""
        return Comparison(self.column, "contains, any case" if ignore_case else "contains", value)

    def is_null(self) -> Filter:
        """The document's metadata has no such key, or `None` under it."""
        return Comparison(self.column, "is null")

    def is_empty(self) -> Filter:
        """There is no value, or it is an empty text or an empty list."""
        return Comparison(self.column, "is empty")


def parse_filter(spec: Mapping[str, Any] | Filter) -> Filter:
    """Read the short form `{"lang": "en", "year": [2023, 2024]}`: every key equals its value, or one of its values."""
    if isinstance(spec, Filter):
        return spec
    if not isinstance(spec, Mapping):
        raise FilterError(f"a filter is made with manyvec.F or is a dict of equal values, got {type(spec).__name__}")
    return AllOf(tuple(F(k).in_(v) if isinstance(v, (list, tuple, set)) else F(k) == v for k, v in spec.items()))


def to_sql(condition: Filter, columns: Mapping[str, ColumnType], prefix: str = "") -> str:
    """Write a filter as one boolean SQL expression for LanceDB.

    Args:
        columns: the declared columns; a filter can name no other.
        prefix: stands before each column's name in the table.

    Raises:
        FilterError: an undeclared column, a value of another type, or more than 20 levels of nesting.
    """
    return _compile(condition, columns, prefix, negated=False, depth=0)


def quote(text: str) -> str:
    """Write a text as an SQL literal. In DataFusion a backslash is an ordinary character."""
    return "'" + text.replace("'", "''") + "'"


def _compile(node: Filter, columns: Mapping[str, ColumnType], prefix: str, *, negated: bool, depth: int) -> str:
    if depth > MAX_DEPTH:
        raise FilterError(f"the filter is nested deeper than {MAX_DEPTH} levels: flatten it, or use in_([...])")
    # Negations move down to the comparisons, where SQL's NULL can be told from false and indexes still apply.
    if isinstance(node, Not):
        return _compile(node.part, columns, prefix, negated=not negated, depth=depth + 1)
    if isinstance(node, (AllOf, AnyOf)):
        if not node.parts:
            return "true" if isinstance(node, AllOf) != negated else "false"
        parts = [_compile(part, columns, prefix, negated=negated, depth=depth + 1) for part in _flat(node)]
        return "(" + (" AND " if isinstance(node, AllOf) != negated else " OR ").join(parts) + ")"
    if isinstance(node, Comparison):
        return _compile_comparison(node, columns, prefix, negated=negated)
    if isinstance(node, HasId):
        try:
            return _one_of("id", [_literal(_convert(id, str, "an id")) for id in node.ids], negated=negated)
        except InputError as error:
            raise FilterError(str(error)) from None
    raise FilterError(f"a filter is made with manyvec.F, got {type(node).__name__}")


def _flat(node: AllOf | AnyOf) -> list[Filter]:
    """The parts, with those of equal kind taken apart: a & b & c is one level, not two."""
    flat: list[Filter] = []
    stack: list[Filter] = list(reversed(node.parts))
    while stack:
        part = stack.pop()
        if isinstance(part, type(node)) and part.parts:
            stack.extend(reversed(part.parts))
        else:
            flat.append(part)
    return flat


def _compile_comparison(node: Comparison, columns: Mapping[str, ColumnType], prefix: str, *, negated: bool) -> str:
    if node.column not in columns:
        declared = ", ".join(f"{name}: {kind}" for name, kind in columns.items()) or "none"
        raise FilterError(
            f"there is no filter column {node.column!r}; declared are: {declared}. "
            'Filter columns are declared when the index is created: Index.create(..., filter_columns={"year": int}).'
        )
    kind = columns[node.column]
    name = f"`{prefix}{node.column}`"
    what = f"the filter value of {node.column!r}"
    if node.op == "is null" or (node.op == "is empty" and not kind.is_list and kind.scalar is not str):
        return f"{name} IS NOT NULL" if negated else f"{name} IS NULL"
    if node.op == "is empty":
        is_blank = f"array_length({name}) = 0" if kind.is_list else f"{name} = ''"
        return f"({name} IS NOT NULL AND NOT {is_blank})" if negated else f"({name} IS NULL OR {is_blank})"
    if kind.is_list and node.op != "contains":
        raise FilterError(f"{node.column!r} is a {kind}: use F({node.column!r}).contains(value)")
    try:
        if node.op == "in":
            literals = [_literal(_convert(value, kind.scalar, what)) for value in node.value]
            if not literals:
                return _one_of(name, literals, negated=negated)
            positive, negative = (_one_of(name, literals, negated=is_negated) for is_negated in (False, True))
        elif node.op in ("contains", "contains, any case"):
            if not kind.is_list and kind.scalar is not str:
                raise FilterError(f"contains works on lists and text; {node.column!r} is a {kind}")
            literal = _literal(_convert(node.value, kind.scalar, what))
            positive = f"array_has({name}, {literal})" if kind.is_list else f"contains({name}, {literal})"
            if node.op == "contains, any case":
                # Both sides by the same function: databases and Python do not agree on every letter.
                positive = f"contains(lower({name}), lower({literal}))"
            negative = f"NOT {positive}"
        else:
            if kind.scalar is int and isinstance(node.value, float):
                return _compile_comparison(_whole(node), columns, prefix, negated=negated)
            literal = _literal(_convert(node.value, kind.scalar, what))
            positive, negative = f"{name} {_SQL[node.op][0]} {literal}", f"{name} {_SQL[node.op][1]} {literal}"
    except FilterError:
        raise
    except InputError as error:
        raise FilterError(str(error)) from None
    return f"({negative} OR {name} IS NULL)" if negated else positive


def _one_of(name: str, literals: Sequence[str], *, negated: bool) -> str:
    if not literals:
        return "true" if negated else "false"
    return f"{name} {'NOT IN' if negated else 'IN'} ({', '.join(literals)})"


def _whole(node: Comparison) -> Comparison:
    """The same comparison of an int column with a whole number: n > 2.5 is n > 2, and n == 2.5 holds for none."""
    value = node.value
    if not math.isfinite(value):
        raise FilterError(f"the filter value of {node.column!r} must be a finite number, got {value!r}")
    if value.is_integer() or node.op in (">", "<="):
        return Comparison(node.column, node.op, math.floor(value))
    return Comparison(node.column, "in", ()) if node.op == "==" else Comparison(node.column, node.op, math.ceil(value))


def _convert(value: Any, scalar: Scalar, what: str) -> Any:
    if scalar is datetime:
        return _convert_datetime(value, what)
    # bool is an int to Python and not to SQL.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if scalar is float and is_number:
        if math.isfinite(value):
            return float(value)
        raise InputError(f"{what} must be a finite number, got {value!r}")
    if not isinstance(value, scalar) or isinstance(value, bool) is not (scalar is bool):
        raise InputError(f"{what} must be of type {scalar.__name__}, got {value!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InputError(f"{what} must fit into 64 bits, got {value!r}")
    if isinstance(value, str):
        check_unicode(value, what)
    return value


def _convert_datetime(value: Any, what: str) -> datetime:
    if isinstance(value, str):
        try:
            # Python 3.10 reads neither a trailing Z nor a date alone.
            value = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
        except ValueError:
            raise InputError(f"{what} must be a date or time in ISO 8601, got {value!r}") from None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if not isinstance(value, datetime):
        raise InputError(f"{what} must be a datetime, got {value!r}")
    # Stored in UTC; a time without a zone is taken as UTC, so that it means the same on every machine.
    return value.astimezone(timezone.utc) if value.tzinfo else value.replace(tzinfo=timezone.utc)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, datetime):
        return f"timestamp '{value.strftime('%Y-%m-%d %H:%M:%S.%f')}+00:00'"
    return repr(value)


def _values(values: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise FilterError(f"in_ takes a list of values, got {values!r}")
    return tuple(values)


def _filter(value: Any) -> Filter:
    if not isinstance(value, Filter):
        raise FilterError(f"a filter can only be combined with another filter, got {type(value).__name__}")
    return value


_SCALARS: dict[str, Scalar] = {"str": str, "int": int, "float": float, "bool": bool, "datetime": datetime}
_SQL = {"==": ("=", "!="), "<": ("<", ">="), "<=": ("<=", ">"), ">": (">", "<="), ">=": (">=", "<")}
