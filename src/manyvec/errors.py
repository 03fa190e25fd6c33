"""Every exception that manyvec raises on purpose, and the argument checks that several modules share.

    ManyvecError
    ├── InputError (ValueError)          a document, query or argument cannot be used
    │   ├── ShapeError                   token vectors with the wrong shape, dim or values
    │   └── FilterError                  a filter that the index cannot evaluate
    ├── EncoderError (RuntimeError)      a model could not be loaded, or returned unusable vectors
    ├── IndexNotFoundError (FileNotFoundError)
    ├── ManifestError (ValueError)       an index does not fit its encoder or its own manifest
    ├── StoreError (OSError)             the database could not be read or written
    │   ├── WriteConflictError           other writers committed first; the same call may succeed later
    │   └── MissingShardError            a shard of a cluster cannot be reached or read
    ├── DeviceMemoryError (MemoryError)  a GPU has too little memory
    └── MissingPackageError (ImportError)

Each class also derives from the built-in exception that it resembles, so `except ValueError` keeps working.
"""

from __future__ import annotations

import importlib
import math
import numbers
import operator
from collections.abc import Iterable
from types import ModuleType


class ManyvecError(Exception):
    """Base class of all errors that this library raises on purpose."""


class InputError(ManyvecError, ValueError):
    """A document, query or argument cannot be used as it is."""


class ShapeError(InputError):
    """Token vectors have the wrong shape, dim or values."""


class FilterError(InputError):
    """A filter names an undeclared column, or compares a column with a value of another type."""


class EncoderError(ManyvecError, RuntimeError):
    """A model could not be loaded, or returned unusable vectors."""


class IndexNotFoundError(ManyvecError, FileNotFoundError):
    """There is no index at this URI."""


class ManifestError(ManyvecError, ValueError):
    """The manifest of an index is missing or damaged, or does not fit the encoder."""


class StoreError(ManyvecError, OSError):
    """The database could not be read or written."""


class WriteConflictError(StoreError):
    """Other writers committed first, again and again. The same call may succeed later."""


class MissingShardError(StoreError):
    """A shard of a cluster cannot be reached or read."""


class DeviceMemoryError(ManyvecError, MemoryError):
    """A GPU has too little free memory; the CPU can do the same work."""


class MissingPackageError(ManyvecError, ImportError):
    """An optional package is not installed."""


def check_count(value: object, name: str, *, minimum: int = 0) -> int:
    """Return an argument as an int if it is an integer of at least `minimum`; numpy integers count.

    Raises:
        InputError: It is of another type (True and 3.0 included) or too small.
    """
    try:
        # operator.index takes every integer type, and of the others only bool.
        count = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        count = -1
    if count < minimum:
        wanted = {0: "a non-negative integer", 1: "a positive integer"}.get(minimum, f"an integer >= {minimum}")
        raise InputError(f"{name} must be {wanted}, got {value!r}")
    return count


def check_fraction(value: object, name: str) -> float:
    """Return an argument as a float if it is a number between 0 and 1; numpy numbers count.

    Raises:
        InputError: It is of another type, NaN or outside [0, 1].
    """
    fraction = float(value) if isinstance(value, numbers.Real) else math.nan
    if not 0 <= fraction <= 1:
        raise InputError(f"{name} must be between 0 and 1, got {value!r}")
    return fraction


def check_ids(ids: str | Iterable[str]) -> list[str]:
    """Return one or several ids as a list.

    Raises:
        InputError: An id is not a string, or contains a lone surrogate.
    """
    listed = [ids] if isinstance(ids, str) else list(ids)
    for id in listed:
        if not isinstance(id, str):
            raise InputError(f"an id must be a string, got {id!r} of type {type(id).__name__}: use str(id)")
        check_unicode(id, f"the id {id!r}")
    return listed


def check_query(query: object) -> str:
    """Return a query if it is a string that can be encoded as UTF-8.

    Raises:
        InputError: It is of another type, or contains a lone surrogate.
    """
    if not isinstance(query, str):
        raise InputError(f"query must be a string, got {type(query).__name__}")
    check_unicode(query, "the query")
    return query


def check_unicode(text: str, what: str) -> None:
    """Raise an `InputError` if a string cannot be encoded as UTF-8, and so can be neither stored nor searched for.

    Args:
        text: String to check.
        what: Name of the string in the error message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} contains a lone surrogate at character {error.start}, which is not valid Unicode"
        ) from None


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: Full name of the module.
        extra: Extra of manyvec that installs it.

    Raises:
        MissingPackageError: The package is not installed. One that is installed but broken raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingPackageError(f"{module} is not installed. Run: pip install 'manyvec[{extra}]'") from error
