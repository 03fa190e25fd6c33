"""What can go wrong, as one tree; and two checks that many modules share.

    ManyvecError
    ├── InputError (ValueError)          a document, query or argument cannot be used
    │   ├── ShapeError                   token vectors of the wrong shape, dim or value
    │   └── FilterError                  a filter the index cannot answer
    ├── EncoderError (RuntimeError)      a model could not be loaded, or gave unusable vectors
    ├── IndexNotFoundError (FileNotFoundError)
    ├── ManifestError (ValueError)       an index and its encoder, or its own description, disagree
    ├── StoreError (OSError)             reading or writing the database failed
    ├── DeviceMemoryError (MemoryError)  a GPU is too small for what it was asked to hold
    └── MissingPackageError (ImportError)

Each class is also the built-in it resembles, so `except ValueError` keeps working.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class ManyvecError(Exception):
    """Every error this library raises on purpose."""


class InputError(ManyvecError, ValueError):
    """A document, query or argument cannot be used as it came."""


class ShapeError(InputError):
    """Token vectors have the wrong shape, dim or values."""


class FilterError(InputError):
    """A filter names an undeclared column, or compares it with a value of another type."""


class EncoderError(ManyvecError, RuntimeError):
    """A model could not be loaded, or gave unusable vectors."""


class IndexNotFoundError(ManyvecError, FileNotFoundError):
    """There is no index at this place."""


class ManifestError(ManyvecError, ValueError):
    """The index's own description is missing, damaged or does not fit the encoder."""


class StoreError(ManyvecError, OSError):
    """Reading or writing the database failed."""


class DeviceMemoryError(ManyvecError, MemoryError):
    """A GPU has too little memory left; the CPU can do the same work."""


class MissingPackageError(ManyvecError, ImportError):
    """An optional package is not installed."""


def check_unicode(text: str, what: str) -> None:
    """Refuse text that cannot be written as UTF-8, and so neither be stored nor searched for."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} holds a lone surrogate at character {error.start}, which is not valid text") from None


def require(module: str, *, extra: str) -> ModuleType:
    """Import `module`, or say which extra of manyvec brings it.

    Raises:
        MissingPackageError: the package is not installed. One that is installed but broken raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingPackageError(f"{module} is not installed. Run: pip install 'manyvec[{extra}]'") from error
