"""Declared filter columns: their types, and which values fit them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, TypeAlias, get_args, get_origin

from manyvec.errors import InputError, check_unicode
from manyvec.filters.values import native, shown, utc

Scalar: TypeAlias = "type[str] | type[int] | type[float] | type[bool] | type[datetime]"
_SCALARS: dict[str, Scalar] = {"str": str, "int": int, "float": float, "bool": bool, "datetime": datetime}
_MAX_INFERRED = 64
_INTEGER, _NUMBER = re.compile(r"[+-]?\d{1,19}(\.0+)?"), re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class ColumnType:
    """Type of a declared filter column: a scalar type, or lists of it."""

    scalar: Scalar
    is_list: bool = False

    @classmethod
    def of(cls, name: str, declared: Any) -> ColumnType:
        """Return the type that a user declared: `int`, `str`, `datetime`, `list[str]`, …, or the same as a string."""
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
        """Return the type that `str` wrote, as it stands in the manifest."""
        scalar = written.removeprefix("list[").removesuffix("]")
        if scalar not in _SCALARS:
            raise InputError(f"unknown filter type {written!r}; known are {', '.join(_SCALARS)}, or list[...] of one")
        return cls(_SCALARS[scalar], written.startswith("list["))

    def __str__(self) -> str:
        return f"list[{self.scalar.__name__}]" if self.is_list else self.scalar.__name__

    def convert(self, value: Any, what: str, *, reads_strings: bool = False) -> Any:
        """Return a metadata value as this column stores it. Missing values (None, NaN, NaT) are None.

        Args:
            value: Value of a document's metadata.
            what: Name of the value in the error message.
            reads_strings: Whether a string is read as in a filter, and an empty one counts as missing.

        Raises:
            InputError: The value has another type.
        """
        value = native(value)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return None
        if reads_strings and value == "" and self.scalar is not str:
            return None
        fit = fitted_in_filter if reads_strings else fitted
        if not self.is_list:
            return fit(value, self.scalar, what)
        if not isinstance(value, (list, tuple, set, frozenset)):
            raise InputError(f"{what} must be of type {self}, got {shown(value)}")
        return [fit(item, self.scalar, what) for item in value]


def parse_columns(declared: Mapping[str, Any]) -> dict[str, ColumnType]:
    """Return the types of columns that a user declared.

    Raises:
        InputError: They are not a dict, or a type is unknown.
    """
    if not isinstance(declared, Mapping):
        raise InputError(f"filter columns must be a dict such as {{'year': int}}, got {shown(declared)}")
    return {name: ColumnType.of(name, kind) for name, kind in declared.items()}


def value_at(metadata: Mapping[str, Any], name: str) -> Any:
    """Return the metadata value of a column: that of the key `name`, else of the path through dicts that it spells.

    Under "a.b" both {"a.b": 1} and {"a": {"b": 1}} hold 1; the first wins. None if there is neither.
    """
    if name in metadata or "." not in name:
        return metadata.get(name)
    value: Any = metadata
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def infer_columns(metadata: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the columns that documents could be filtered on, with their types, sorted by name.

    A key becomes a column if all its values that are not missing are of one type; integers among floats are floats.
    Keys inside dicts are written with dots. Left out are keys that start with "_" or that no column can be called, and
    all beyond the first 64.
    """
    found: dict[str, set[tuple[type, bool]]] = {}
    for values in metadata:
        for name, value in _leaves(values, ""):
            found.setdefault(name, set()).update(_types(value))
    columns = {}
    for name, types in found.items():
        scalars, are_lists = {scalar for scalar, _ in types}, {is_list for _, is_list in types}
        scalars = {float} if scalars == {int, float} else scalars
        fitting = [scalar for scalar in _SCALARS.values() if scalars == {scalar}]
        if fitting and len(are_lists) == 1 and is_column_name(name):
            columns[name] = str(ColumnType(fitting[0], are_lists.pop()))
    return dict(sorted(columns.items())[:_MAX_INFERRED])


def is_column_name(name: str) -> bool:
    """Return whether a filter column can be called so: LanceDB's updates fail on names with a backtick."""
    return bool(name) and "`" not in name and name.isprintable() and all(name.split("."))


def _leaves(metadata: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in metadata.items():
        if not isinstance(key, str) or key.startswith("_"):
            continue
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, native(value)


def _types(value: Any) -> set[tuple[type, bool]]:
    """Return the types of a value that is not missing, or of the items of a list, each with whether it is a list."""
    if isinstance(value, (list, tuple, set, frozenset)):
        return {(_type(item), True) for item in map(native, value)}
    is_missing = value is None or (isinstance(value, float) and math.isnan(value))
    return set() if is_missing else {(_type(value), False)}


def _type(value: Any) -> type:
    return datetime if isinstance(value, date) else float if isinstance(value, Decimal) else type(value)


def fitted(value: Any, scalar: Scalar, what: str) -> Any:
    """Return a value as the type of a column: 2020.0 as the int 2020, an ISO 8601 string as a datetime in UTC.

    Raises:
        InputError: The value has another type, or is out of the type's range.
    """
    value = native(value)
    # bool is an int in Python and not in SQL.
    if isinstance(value, bool) is not (scalar is bool):
        raise InputError(f"{what} must be of type {scalar.__name__}, got {shown(value)}")
    try:
        return _FITTING[scalar](value, what)
    except OverflowError:
        raise InputError(f"{what} is out of the range of {scalar.__name__}: {shown(value)}") from None


def fitted_in_filter(value: Any, scalar: Scalar, what: str) -> Any:
    """Return a filter's value as the type of a column; a string is read where it can mean only one value.

    Language models write "2020" for 2020 and "true" for True.
    """
    value = native(value)
    if isinstance(value, str) and scalar is int and _INTEGER.fullmatch(value):
        value = int(value.partition(".")[0])
    elif isinstance(value, str) and scalar is float and _NUMBER.fullmatch(value):
        value = float(value)
    elif isinstance(value, str) and scalar is bool and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    return fitted(value, scalar, what)


def _int(value: Any, what: str) -> int:
    if isinstance(value, (float, Decimal)) and math.isfinite(value) and value == int(value):
        value = int(value)
    if not isinstance(value, int):
        raise InputError(f"{what} must be of type int, got {shown(value)}")
    if not -(2**63) <= value < 2**63:
        raise InputError(f"{what} must fit into 64 bits, got {shown(value)}")
    return value


def _float(value: Any, what: str) -> float:
    if not isinstance(value, (int, float, Decimal)):
        raise InputError(f"{what} must be of type float, got {shown(value)}")
    if not math.isfinite(value):
        raise InputError(f"{what} must be a finite number, got {shown(value)}")
    return float(value)


def _str(value: Any, what: str) -> str:
    if isinstance(value, (Decimal, datetime, date)):
        value = value.isoformat() if isinstance(value, date) else str(value)
    if not isinstance(value, str):
        raise InputError(f"{what} must be of type str, got {shown(value)}")
    check_unicode(value, what)
    return value


def _datetime(value: Any, what: str) -> datetime:
    if isinstance(value, str):
        try:
            # Python 3.10 reads no trailing Z.
            value = datetime.fromisoformat(value[:-1] + "+00:00" if value.endswith(("Z", "z")) else value)
        except ValueError:
            raise InputError(f"{what} must be a date or time in ISO 8601, got {shown(value)}") from None
    if not isinstance(value, date):
        raise InputError(f"{what} must be a datetime, got {shown(value)}")
    return utc(value)


def _bool(value: Any, _what: str) -> bool:
    return bool(value)


_FITTING: dict[Scalar, Callable[[Any, str], Any]] = {
    str: _str,
    int: _int,
    float: _float,
    bool: _bool,
    datetime: _datetime,
}
