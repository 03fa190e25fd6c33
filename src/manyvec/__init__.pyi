"""Public names of manyvec, declared once: type checkers read this file, and so does `__init__.py` at run time."""

from . import candidates as candidates
from . import evaluation as evaluation
from . import files as files
from . import testing as testing
from .errors import DeviceMemoryError as DeviceMemoryError
from .errors import EncoderError as EncoderError
from .errors import FilterError as FilterError
from .errors import IndexNotFoundError as IndexNotFoundError
from .errors import InputError as InputError
from .errors import ManifestError as ManifestError
from .errors import ManyvecError as ManyvecError
from .errors import MissingPackageError as MissingPackageError
from .errors import ShapeError as ShapeError
from .errors import StoreError as StoreError
from .errors import WriteConflictError as WriteConflictError
from .evidence.pages import PageEvidence as PageEvidence
from .evidence.passages import Passage as Passage
from .evidence.text import Evidence as Evidence
from .evidence.text import WordMatch as WordMatch
from .filters import AllOf as AllOf
from .filters import AnyOf as AnyOf
from .filters import F as F
from .filters import Filter as Filter
from .filters import FilterLike as FilterLike
from .filters import HasId as HasId
from .filters import parse_filter as parse_filter
from .index import Index as Index
from .mmr import diversify as diversify
from .models.loading import load_encoder as load_encoder
from .models.protocol import Encoder as Encoder
from .models.protocol import ImageReader as ImageReader
from .models.text import SentenceTransformerEncoder as SentenceTransformerEncoder
from .models.windowed import TruncationWarning as TruncationWarning
from .reranker import Reranker as Reranker
from .retrieval.mixing import LEXICAL_WEIGHT as LEXICAL_WEIGHT
from .storage.ingest import AddReport as AddReport
from .timing import timings as timings
from .tools.catalog import ToolHit as ToolHit
from .tools.catalog import ToolIndex as ToolIndex
from .types import Document as Document
from .types import Hit as Hit
from .types import IndexInfo as IndexInfo
from .vectors.batch import TokenBatch as TokenBatch
from .vectors.maxsim import MaxSimScorer as MaxSimScorer

__version__: str
