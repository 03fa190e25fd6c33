"""What metadata may hold, and how it is kept: the only place that decides it.

| value | kept as |
| --- | --- |
| None, bool, int, finite float, str | itself; 2020.0 as 2020 where the key is a declared `int` column |
| NaN, NaT, pandas.NA | None: a missing value |
| numpy and pandas scalars | the Python value they stand for |
| datetime, date, time | ISO 8601 string; datetime in UTC again where the key is a declared `datetime` column |
| UUID, Path | string |
| Decimal | string; a number where the key is a declared `int` or `float` column |
| Enum | its value |
| list, tuple, set, numpy array | list; sets sorted |
| dict, dataclass, pydantic model | dict with string keys |

Everything else is refused with the key, the type and what to write instead.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timezone
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np

from manyvec.errors import InputError, check_unicode

MAX_NESTING = 100
# Key that marks a datetime in stored metadata.
_DATETIME_KEY = "$datetime"
_INSTEAD = {
    "bytes": "store a string, for example base64 or a path",
    "bytearray": "store a string, for example base64 or a path",
    "timedelta": "store its total_seconds()",
    "complex": "store its parts",
    "DataFrame": "store its to_dict()",
    "Series": "store its to_list()",
    "Tensor": "store its tolist()",
    "generator": "store a list",
    "function": "store its result",
}


def native(value: Any) -> Any:
    """Return the plain Python value that a scalar of numpy, pandas, enum, uuid or pathlib stands for.

    NaT and pandas.NA become None; other values are returned as they are.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return native(value.value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.datetime64):
        # item() of a nanosecond value would be an int; NaT becomes None.
        value = value.astype("datetime64[us]").item()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (UUID, PurePath)):
        return str(value)
    # pandas.NA, without importing pandas.
    if type(value).__name__ == "NAType":
        return None
    if isinstance(value, Decimal):
        return None if value.is_nan() else value
    if isinstance(value, datetime):
        # NaT is a datetime that does not equal itself. A Timestamp becomes a plain datetime.
        if value != value:
            return None
        return value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value
    for plain in (str, int, float):
        if isinstance(value, plain) and not isinstance(value, bool):
            return plain(value)
    return value


def kept_metadata(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return metadata as it is kept, copied; dates and decimals stay objects until they are written.

    Raises:
        InputError: A value cannot be kept. The message names its key, its type and what to store instead.
    """
    return {
        _key(key, "metadata"): _kept(value, key if isinstance(key, str) else str(key), 1)
        for key, value in metadata.items()
    }


def _kept(value: Any, path: str, depth: int) -> Any:
    if depth > MAX_NESTING:
        raise InputError(f"metadata[{path[:60]!r}…] is nested deeper than {MAX_NESTING} levels")
    value = native(value)
    if value is None or isinstance(value, (bool, datetime, date, time)):
        return value
    if isinstance(value, str):
        check_unicode(value, f"metadata[{path!r}]")
        return value
    if isinstance(value, int):
        # json writes and reads an int by its digits, which Python limits.
        if value.bit_length() > 3 * (sys.get_int_max_str_digits() or 10**9):
            raise InputError(f"metadata[{path!r}] is an integer of {value.bit_length():,} bits: store a string")
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise InputError(f"metadata[{path!r}] is {value}, which JSON cannot hold: store None or a string")
        return None if math.isnan(value) else value
    if isinstance(value, Decimal):
        if value.is_infinite():
            raise InputError(f"metadata[{path!r}] is {value}: store None or a string")
        return value
    return _kept_container(value, path, depth)


def _kept_container(value: Any, path: str, depth: int) -> Any:
    if hasattr(type(value), "model_dump"):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (set, frozenset)):
        value = _sorted(value)
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple, deque)):
        return [_kept(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        if _DATETIME_KEY in value:
            raise InputError(f"metadata[{path!r}] has the key {_DATETIME_KEY!r}, which is reserved: use another")
        return {
            _key(key, f"metadata[{path!r}]"): _kept(item, f"{path}.{key}", depth + 1) for key, item in value.items()
        }
    name = type(value).__name__
    instead = _INSTEAD.get(name, "store a string, number, list or dict")
    raise InputError(f"metadata[{path!r}] is of type {name}, which metadata cannot hold: {instead}")


def _key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise InputError(f"{where} has the key {shown(key)}: keys must be strings, use {str(key)[:60]!r}")
    check_unicode(key, f"a key of {where}")
    return str(key)


def _sorted(values: Iterable[Any]) -> list[Any]:
    """Sort a set, so that equal sets are kept alike; values that cannot be compared are sorted as strings."""
    items = [native(value) for value in values]
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=lambda item: (type(item).__name__, str(item)))


def write_metadata(metadata: Mapping[str, Any], typed: Mapping[str, Any] | None = None) -> str:
    """Return kept metadata as JSON.

    Args:
        metadata: Result of `kept_metadata`.
        typed: Values of the declared columns, as `ColumnType.convert` returns them. Dates and numbers under these keys
            are written so that `read_metadata` returns them as filters see them. Other dates and decimals become
            strings.
    """
    seen = dict(metadata)
    for name, value in (typed or {}).items():
        if value is not None:
            _write_typed(seen, [name] if name in seen else name.split("."), value)
    return json.dumps(seen, ensure_ascii=False, allow_nan=False, default=json_default)


def _write_typed(metadata: dict[str, Any], path: Sequence[str], typed: Any) -> None:
    """Replace the value at a path through dicts, which are copied, by what `_as_filtered` makes of it."""
    key, *rest = path
    if key not in metadata:
        return
    if rest:
        metadata[key] = dict(metadata[key])
        _write_typed(metadata[key], rest, typed)
    else:
        metadata[key] = _as_filtered(metadata[key], typed)


def _as_filtered(value: Any, typed: Any) -> Any:
    if isinstance(value, list) and isinstance(typed, list):
        return [_as_filtered(item, typed_item) for item, typed_item in zip(value, typed, strict=True)]
    # Marked, so that a string that looks like a date is returned as a string.
    if isinstance(value, date) and isinstance(typed, datetime):
        return {_DATETIME_KEY: typed.isoformat()}
    if isinstance(value, (float, Decimal)) and isinstance(typed, (int, float)):
        return typed
    return value


def json_default(value: Any) -> str:
    """Return a date or decimal of metadata as the string that stands for it, as the `default` of `json.dumps`."""
    return value.isoformat() if isinstance(value, (date, time)) else str(value)


def read_metadata(written: str) -> dict[str, Any]:
    """Return the metadata that `write_metadata` wrote."""
    metadata: dict[str, Any] = json.loads(written)
    if _DATETIME_KEY in written:
        return {key: _unmarked(value) for key, value in metadata.items()}
    return metadata


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(item) for item in value]
    if isinstance(value, dict) and value.keys() == {_DATETIME_KEY}:
        return datetime.fromisoformat(value[_DATETIME_KEY])
    if isinstance(value, dict):
        return {key: _unmarked(item) for key, item in value.items()}
    return value


def utc(value: date) -> datetime:
    """Return a date or datetime as a datetime in UTC; one without a zone is in UTC already.

    Raises:
        OverflowError: In UTC it lies before the year 1 or after 9999.
    """
    if not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    # Without a zone it means UTC, so that it means the same on every machine.
    return value.astimezone(timezone.utc) if value.tzinfo else value.replace(tzinfo=timezone.utc)


def shown(value: Any) -> str:
    """Return a value as it is shown in an error message: its repr, shortened."""
    try:
        text = repr(value)
    # Python refuses to write an int of more than 4,300 digits.
    except (ValueError, RecursionError):
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 200 else text[:200] + "…"
