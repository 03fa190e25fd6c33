"""Write a filter as SQL for LanceDB; the only place that does."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from manyvec.errors import FilterError, InputError
from manyvec.filters.columns import ColumnType, fitted, fitted_in_filter
from manyvec.filters.conditions import AllOf, AnyOf, Comparison, Filter, HasId, Not
from manyvec.filters.values import native, shown

# LanceDB 0.40 does not return from 60 nested NOTs, and its parser fails on brackets below 48 levels.
MAX_DEPTH = 20
# 1,000 comparisons take LanceDB 0.4 s, 3,000 take 1.9 s; 100,000 values in a list take 3.3 s.
MAX_COMPARISONS, MAX_VALUES = 1_000, 100_000
_SQL = {"==": ("=", "!="), "<": ("<", ">="), "<=": ("<=", ">"), ">": (">", "<="), ">=": (">=", "<")}


def to_sql(
    condition: Filter, columns: Mapping[str, ColumnType], stored_as: Callable[[str], str] = lambda name: name
) -> str:
    """Return a filter as one boolean SQL expression.

    Args:
        condition: The filter.
        columns: Declared columns; a filter can name no other.
        stored_as: Returns what a column is called in the table.

    Raises:
        FilterError: The filter names an undeclared column, has a value of another type, is nested deeper than 20
            levels, or has more than 1,000 comparisons or 100,000 values.
    """
    return _Writer(columns, stored_as).write(condition, negated=False, depth=0)


def quote(text: str) -> str:
    """Return a string as an SQL literal. In DataFusion a backslash is an ordinary character."""
    return "'" + text.replace("'", "''") + "'"


class _Writer:
    """Writes one filter, and counts what is in it."""

    def __init__(self, columns: Mapping[str, ColumnType], stored_as: Callable[[str], str]) -> None:
        self._columns = columns
        self._stored_as = stored_as
        self._n_comparisons = 0
        self._n_values = 0

    def write(self, node: Filter, *, negated: bool, depth: int) -> str:
        if depth > MAX_DEPTH:
            raise FilterError(f"the filter is nested deeper than {MAX_DEPTH} levels: flatten it, or use in_([...])")
        # Negations move down to the comparisons, where SQL's NULL can be told from false and indexes still apply.
        if isinstance(node, Not):
            return self.write(node.part, negated=not negated, depth=depth + 1)
        if isinstance(node, (AllOf, AnyOf)):
            if not node.parts:
                return "true" if isinstance(node, AllOf) != negated else "false"
            parts = [self.write(part, negated=negated, depth=depth + 1) for part in _flat(node)]
            return "(" + (" AND " if isinstance(node, AllOf) != negated else " OR ").join(parts) + ")"
        if not isinstance(node, (Comparison, HasId)):
            raise FilterError(f"a filter is made with manyvec.F, got {type(node).__name__}")
        self._count(node)
        try:
            if isinstance(node, HasId):
                return _one_of("id", [_literal(fitted(id, str, "an id")) for id in node.ids], negated=negated)
            return self._comparison(node, negated=negated)
        except FilterError:
            raise
        except InputError as error:
            raise FilterError(str(error)) from None

    def _count(self, node: Comparison | HasId) -> None:
        self._n_comparisons += 1
        self._n_values += len(node.ids) if isinstance(node, HasId) else len(node.value) if node.op == "in" else 1
        if self._n_comparisons > MAX_COMPARISONS:
            raise FilterError(f"the filter has more than {MAX_COMPARISONS:,} comparisons: use in_([...])")
        if self._n_values > MAX_VALUES:
            raise FilterError(f"the filter has more than {MAX_VALUES:,} values: search in parts")

    def _comparison(self, node: Comparison, *, negated: bool) -> str:
        kind = self._kind(node.column)
        name = f"`{self._stored_as(node.column)}`"
        if node.op == "is null" or (node.op == "is empty" and not kind.is_list and kind.scalar is not str):
            return f"{name} IS NOT NULL" if negated else f"{name} IS NULL"
        if node.op == "is empty":
            is_blank = f"array_length({name}) = 0" if kind.is_list else f"{name} = ''"
            return f"({name} IS NOT NULL AND NOT {is_blank})" if negated else f"({name} IS NULL OR {is_blank})"
        if kind.is_list and node.op != "contains":
            raise FilterError(f"{node.column!r} is a {kind}: use F({node.column!r}).contains(value)")
        if kind.scalar is int and node.op in _SQL and isinstance(native(node.value), float):
            node = _with_integer(node)
        positive, negative = _predicate(node, kind, name)
        if node.op == "in" and not node.value:
            return negative if negated else positive
        return f"({negative} OR {name} IS NULL)" if negated else positive

    def _kind(self, column: str) -> ColumnType:
        if column in self._columns:
            return self._columns[column]
        declared = ", ".join(f"{name}: {kind}" for name, kind in self._columns.items()) or "none"
        near = difflib.get_close_matches(str(column), self._columns, 1)
        raise FilterError(
            f"there is no filter column {shown(column)}; declared are: {declared}. "
            + (f"Did you mean {near[0]!r}? " if near else "")
            + f"To add it, call index.add_filter_columns({{{shown(column)}: str}}), or another type."
        )


def _predicate(node: Comparison, kind: ColumnType, name: str) -> tuple[str, str]:
    """Return a comparison with a value, and its negation, as SQL for rows whose value is not missing."""
    what = f"the filter value of {node.column!r}"
    if node.op == "in":
        literals = [_literal(fitted_in_filter(value, kind.scalar, what)) for value in node.value]
        return _one_of(name, literals, negated=False), _one_of(name, literals, negated=True)
    if node.op in _SQL:
        literal = _literal(fitted_in_filter(node.value, kind.scalar, what))
        positive, negative = _SQL[node.op]
        return f"{name} {positive} {literal}", f"{name} {negative} {literal}"
    if not kind.is_list and kind.scalar is not str:
        operator, of = node.op.partition(",")[0], "lists and strings" if node.op.startswith("contains") else "strings"
        raise FilterError(f"{operator} works on {of}; {node.column!r} is a {kind}")
    literal = _literal(fitted_in_filter(node.value, kind.scalar, what))
    if node.op.endswith(", any case"):
        # Both sides by the same function: databases and Python do not agree on every letter.
        name, literal = f"lower({name})", f"lower({literal})"
    if node.op.startswith("like"):
        return f"{name} LIKE {literal}", f"{name} NOT LIKE {literal}"
    positive = f"array_has({name}, {literal})" if kind.is_list else f"contains({name}, {literal})"
    return positive, f"NOT {positive}"


def _flat(node: AllOf | AnyOf) -> list[Filter]:
    """Return the parts, with parts of the same kind taken apart: a & b & c is one level, not two."""
    flat: list[Filter] = []
    stack: list[Filter] = list(reversed(node.parts))
    while stack:
        part = stack.pop()
        if isinstance(part, type(node)) and part.parts:
            stack.extend(reversed(part.parts))
        else:
            flat.append(part)
    return flat


def _one_of(name: str, literals: Sequence[str], *, negated: bool) -> str:
    if not literals:
        return "true" if negated else "false"
    return f"{name} {'NOT IN' if negated else 'IN'} ({', '.join(literals)})"


def _with_integer(node: Comparison) -> Comparison:
    """Return the same comparison of an int column with an integer: n > 2.5 is n > 2, and n == 2.5 holds for none."""
    value = native(node.value)
    if not math.isfinite(value):
        raise FilterError(f"the filter value of {node.column!r} must be a finite number, got {value!r}")
    if value.is_integer() or node.op in (">", "<="):
        return Comparison(node.column, node.op, math.floor(value))
    return Comparison(node.column, "in", ()) if node.op == "==" else Comparison(node.column, node.op, math.ceil(value))


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, datetime):
        # Not strftime, which writes the year 999 with three digits.
        return f"timestamp '{value.isoformat(sep=' ', timespec='microseconds')}'"
    if value == -(2**63) and isinstance(value, int):
        # DataFusion reads the digits before the sign, and 2**63 as a float.
        return f"({value + 1} - 1)"
    return repr(value)
