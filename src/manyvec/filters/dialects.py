"""Read filters as people, frameworks and language models write them: dicts, operators with `$`, and JSON.

{"lang": "en", "year": [2023, 2024]}
{"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"tags": {"$contains": "draft"}}]}
[{"column": "year", "op": ">=", "value": 2020}]
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from manyvec.errors import FilterError
from manyvec.filters.conditions import AllOf, AnyOf, Comparison, F, Filter, HasId, Not
from manyvec.filters.sql import MAX_COMPARISONS, MAX_DEPTH
from manyvec.filters.values import shown

FilterLike: TypeAlias = Filter | Mapping[str, Any] | list[Any] | tuple[Any, ...]

_OPERATORS: dict[str, Callable[[F, Any], Filter]] = {
    "$eq": lambda column, value: column == value,
    "$ne": lambda column, value: column != value,
    "$gt": lambda column, value: column > value,
    "$gte": lambda column, value: column >= value,
    "$lt": lambda column, value: column < value,
    "$lte": lambda column, value: column <= value,
    "$in": lambda column, value: column.in_(_listed("$in", value)),
    "$nin": lambda column, value: column.not_in(_listed("$nin", value)),
    "$contains": lambda column, value: column.contains(value),
    "$not_contains": lambda column, value: ~column.contains(value),
    "$like": lambda column, value: column.like(value),
    "$ilike": lambda column, value: column.like(value, ignore_case=True),
    "$between": lambda column, value: _between(column, value),
    "$exists": lambda column, value: ~column.is_null() if _flag("$exists", value) else column.is_null(),
}
_CONNECTIVES = ("$and", "$or", "$not", "$nor")
# Operators of our own conditions in JSON; the first ones are those of `Comparison`.
_WRITTEN = ("==", "<", "<=", ">", ">=", "in", "contains", "contains, any case", "like", "like, any case")
_NEGATED = {"!=": "==", "not in": "in"}
# Other spellings in use, and the operators that each may mean.
_SPELLINGS = {
    "=": ("==", "$eq"),
    "==": ("$eq",),
    "!=": ("$ne",),
    "<>": ("!=", "$ne"),
    ">": ("$gt",),
    ">=": ("$gte",),
    "=>": (">=", "$gte"),
    "<": ("$lt",),
    "<=": ("$lte",),
    "=<": ("<=", "$lte"),
    "$ge": ("$gte",),
    "$le": ("$lte",),
    "$neq": ("$ne",),
    "$notin": ("$nin",),
    "$not_in": ("$nin",),
    "$regex": ("$like",),
    "$startswith": ("$like",),
}


def parse_filter(spec: FilterLike) -> Filter:
    """Return a filter that was written in any of the forms that manyvec reads.

    Args:
        spec: One of
            - a filter made with `manyvec.F`, returned as it is;
            - a dict of columns and values, all of which must be equal (`None`: missing; a list: one of them);
            - the same with operators in place of values: `$eq`, `$ne`, `$gt`, `$gte`, `$lt`, `$lte`, `$in`, `$nin`,
              `$contains`, `$not_contains`, `$like`, `$ilike`, `$between`, `$exists`, `$not`, and `$and`, `$or`, `$not`,
              `$nor` in place of columns;
            - `{"column": …, "op": …, "value": …}` with the operators of `manyvec.F`; without `op`, both must be equal;
            - a list of these, all of which must hold.

    Raises:
        FilterError: An operator is unknown (the message names the nearest one) or has no fitting value, or the filter
            is nested deeper than 20 levels or has more than 1,000 parts.
    """
    return _Reader().read(spec, 0)


class _Reader:
    """Reads one filter, and counts its parts before any of them is written as SQL."""

    def __init__(self) -> None:
        self._n_parts = 0

    def read(self, spec: Any, depth: int) -> Filter:
        if isinstance(spec, Filter):
            return spec
        if depth > MAX_DEPTH:
            raise FilterError(f"the filter is nested deeper than {MAX_DEPTH} levels: flatten it, or use $in")
        if isinstance(spec, (list, tuple)):
            return AllOf(self._all(spec, depth))
        if not isinstance(spec, Mapping):
            raise FilterError(
                f"a filter is made with manyvec.F, or is a dict such as {{'year': {{'$gte': 2020}}}}, "
                f"got {type(spec).__name__}"
            )
        if spec.keys() in ({"column", "op"}, {"column", "value"}, {"column", "op", "value"}):
            return _condition(spec)
        parts = tuple(self._entry(key, value, depth) for key, value in spec.items())
        return parts[0] if len(parts) == 1 else AllOf(parts)

    def _all(self, specs: Any, depth: int) -> tuple[Filter, ...]:
        return tuple(self.read(spec, depth + 1) for spec in specs)

    def _entry(self, key: Any, value: Any, depth: int) -> Filter:
        self._n_parts += 1
        if self._n_parts > MAX_COMPARISONS:
            raise FilterError(f"the filter has more than {MAX_COMPARISONS:,} parts: use $in")
        if not isinstance(key, str):
            raise FilterError(f"a filter column must be a string, got {shown(key)}")
        if key.startswith("$"):
            return self._connective(key, value, depth)
        if isinstance(value, Mapping):
            return self._operators(key, value, depth)
        if isinstance(value, (list, tuple, set, frozenset)):
            return F(key).in_(value)
        return F(key) == value

    def _connective(self, key: str, value: Any, depth: int) -> Filter:
        if key not in _CONNECTIVES:
            raise _unknown(key, _CONNECTIVES, f"{key!r} stands where a column or a connective is expected")
        if key != "$not" and not isinstance(value, (list, tuple)):
            raise FilterError(f"{key} takes a list of filters, got {shown(value)}: write {{{key!r}: [{{…}}, {{…}}]}}")
        if isinstance(value, (Mapping, Filter)):
            return Not(self.read(value, depth + 1))
        if not isinstance(value, (list, tuple)):
            raise FilterError(f"$not takes a filter, got {shown(value)}: write {{'$not': {{…}}}}")
        parts = self._all(value, depth)
        if key == "$or":
            return AnyOf(parts)
        if key == "$nor":
            return Not(AnyOf(parts))
        return AllOf(parts) if key == "$and" else Not(AllOf(parts))

    def _operators(self, column: str, operators: Mapping[Any, Any], depth: int) -> Filter:
        if depth > MAX_DEPTH:
            raise FilterError(f"the filter is nested deeper than {MAX_DEPTH} levels: flatten it")
        if not operators:
            raise FilterError(f"the filter of {column!r} is an empty dict: write {{{column!r}: {{'$eq': value}}}}")
        parts = tuple(self._operator(column, operator, value, depth) for operator, value in operators.items())
        return parts[0] if len(parts) == 1 else AllOf(parts)

    def _operator(self, column: str, operator: Any, value: Any, depth: int) -> Filter:
        self._n_parts += 1
        if self._n_parts > MAX_COMPARISONS:
            raise FilterError(f"the filter has more than {MAX_COMPARISONS:,} parts: use $in")
        if operator == "$not":
            if isinstance(value, Mapping):
                return Not(self._operators(column, value, depth + 1))
            return F(column) != value
        if not isinstance(operator, str) or operator not in _OPERATORS:
            what = f"the filter of {column!r} has the operator {shown(operator)}"
            more = ""
            if isinstance(operator, str) and not operator.startswith("$"):
                more = f"; a key of nested metadata is written {f'{column}.{operator}'[:80]!r}"
            raise _unknown(operator, (*_OPERATORS, "$not"), what, more)
        return _OPERATORS[operator](F(column), value)


def _condition(spec: Mapping[str, Any]) -> Filter:
    """Return a condition of our own that was written as JSON."""
    column, op, value = spec["column"], spec.get("op", "=="), spec.get("value")
    if not isinstance(column, str):
        raise FilterError(f"a filter column must be a string, got {shown(column)}")
    if not isinstance(op, str):
        raise FilterError(f"an operator must be a string, got {shown(op)}")
    if op == "has id":
        return HasId(_listed(op, value))
    if op in ("is null", "is empty"):
        return F(column).is_null() if op == "is null" else F(column).is_empty()
    if op in _NEGATED:
        return Not(_condition({**spec, "op": _NEGATED[op]}))
    if op == "in":
        return F(column).in_(_listed(op, value))
    if op in _OPERATORS:
        return _OPERATORS[op](F(column), value)
    if op not in _WRITTEN:
        known = (*_WRITTEN, *_NEGATED, "is null", "is empty")
        raise _unknown(op, known, f"the filter of {column!r} has the operator {op!r}")
    if op == "==":
        return F(column) == value
    return Comparison(column, op, value)  # type: ignore[arg-type]


def _unknown(written: Any, known: tuple[str, ...], what: str, more: str = "") -> FilterError:
    text = str(written)[:40]
    meant = [*_SPELLINGS.get(text.lower(), ()), f"${text.lstrip('$').lower()}"]
    near = [operator for operator in meant if operator in known] or difflib.get_close_matches(text.lower(), known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return FilterError(f"{what}, which does not exist: {hint}Operators are {', '.join(known)}{more}")


def _listed(operator: str, value: Any) -> list[Any]:
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(value)
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        return list(value.tolist())
    raise FilterError(f"{operator} takes a list of values, got {shown(value)}")


def _between(column: F, value: Any) -> Filter:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise FilterError(f"$between takes [lowest, highest], got {shown(value)}")
    return AllOf((column >= value[0], column <= value[1]))


def _flag(operator: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise FilterError(f"{operator} takes true or false, got {shown(value)}")
    return value
