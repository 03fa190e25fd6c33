"""manyvec: late-interaction retrieval for RAG. One vector per token, one exact score.

    index = manyvec.Index.create("./papers", encoder="minilm", filter_columns={"year": int})
    index.add([{"id": "a1", "text": "…", "metadata": {"year": 2024}}])
    hits = index.search("what is late interaction", k=5, filter=manyvec.F("year") >= 2023)

Names are imported when they are first used: `import manyvec` loads neither torch nor a database.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyvec.errors import DeviceMemoryError as DeviceMemoryError
    from manyvec.errors import EncoderError as EncoderError
    from manyvec.errors import FilterError as FilterError
    from manyvec.errors import IndexNotFoundError as IndexNotFoundError
    from manyvec.errors import InputError as InputError
    from manyvec.errors import ManifestError as ManifestError
    from manyvec.errors import ManyvecError as ManyvecError
    from manyvec.errors import MissingPackageError as MissingPackageError
    from manyvec.errors import ShapeError as ShapeError
    from manyvec.errors import StoreError as StoreError
    from manyvec.evidence.pages import PageEvidence as PageEvidence
    from manyvec.evidence.text import Evidence as Evidence
    from manyvec.evidence.text import Passage as Passage
    from manyvec.evidence.text import WordMatch as WordMatch
    from manyvec.filters import AllOf as AllOf
    from manyvec.filters import AnyOf as AnyOf
    from manyvec.filters import F as F
    from manyvec.filters import Filter as Filter
    from manyvec.filters import HasId as HasId
    from manyvec.index import FilterLike as FilterLike
    from manyvec.index import Index as Index
    from manyvec.index import IndexInfo as IndexInfo
    from manyvec.mmr import diversify as diversify
    from manyvec.models.loading import Encoder as Encoder
    from manyvec.models.loading import SentenceTransformerEncoder as SentenceTransformerEncoder
    from manyvec.models.loading import TruncationWarning as TruncationWarning
    from manyvec.models.loading import load_encoder as load_encoder
    from manyvec.reranker import Reranker as Reranker
    from manyvec.storage.ingest import AddReport as AddReport
    from manyvec.tools.catalog import ToolHit as ToolHit
    from manyvec.tools.catalog import ToolIndex as ToolIndex
    from manyvec.types import Document as Document
    from manyvec.types import Hit as Hit
    from manyvec.vectors.batch import TokenBatch as TokenBatch
    from manyvec.vectors.maxsim import MaxSimScorer as MaxSimScorer

# The same names once more, for the interpreter: a test keeps the two in step.
_MODULES = {
    "errors": "DeviceMemoryError EncoderError FilterError IndexNotFoundError InputError ManifestError ManyvecError "
    "MissingPackageError ShapeError StoreError",
    "evidence.pages": "PageEvidence",
    "evidence.text": "Evidence Passage WordMatch",
    "filters": "AllOf AnyOf F Filter HasId",
    "index": "FilterLike Index IndexInfo",
    "mmr": "diversify",
    "models.loading": "Encoder SentenceTransformerEncoder TruncationWarning load_encoder",
    "reranker": "Reranker",
    "storage.ingest": "AddReport",
    "tools.catalog": "ToolHit ToolIndex",
    "types": "Document Hit",
    "vectors.batch": "TokenBatch",
    "vectors.maxsim": "MaxSimScorer",
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("manyvec")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'manyvec' has no attribute {name!r}")
    value = getattr(import_module(f"manyvec.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
