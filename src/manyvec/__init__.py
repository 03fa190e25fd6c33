"""manyvec: late-interaction retrieval for RAG. One vector per token, one exact score.

    index = manyvec.Index.create("./papers", encoder="minilm", filters={"year": int})
    index.add([{"id": "a1", "text": "…", "metadata": {"year": 2024}}])
    hits = index.search("what is late interaction", k=5, filter=manyvec.F("year") >= 2023)

Names are imported when they are first used: `import manyvec` loads neither torch nor a database.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyvec.encoders import Encoder, SentenceTransformerEncoder, TruncationWarning, load_encoder
    from manyvec.errors import (
        EncoderError,
        FilterError,
        IndexNotFoundError,
        InputError,
        ManifestError,
        ManyvecError,
        MissingPackageError,
        ShapeError,
        StoreError,
    )
    from manyvec.filters import F, Filter
    from manyvec.index import AddReport, Index, IndexInfo
    from manyvec.scoring import MaxSimScorer
    from manyvec.tokens import TokenBatch
    from manyvec.types import Document, Hit

_MODULES = {
    "encoders": ("Encoder", "SentenceTransformerEncoder", "TruncationWarning", "load_encoder"),
    "errors": (
        "EncoderError",
        "FilterError",
        "IndexNotFoundError",
        "InputError",
        "ManifestError",
        "ManyvecError",
        "MissingPackageError",
        "ShapeError",
        "StoreError",
    ),
    "filters": ("F", "Filter"),
    "index": ("AddReport", "Index", "IndexInfo"),
    "scoring": ("MaxSimScorer",),
    "tokens": ("TokenBatch",),
    "types": ("Document", "Hit"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("manyvec")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'manyvec' has no attribute {name!r}")
    value = getattr(import_module(f"manyvec.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
