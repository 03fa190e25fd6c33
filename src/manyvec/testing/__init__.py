"""Helpers for tests: encoders that need no model, and test suites that adapters must pass."""

from manyvec.testing.contracts import (
    LoopWatch,
    RerankerContract,
    RetrieverContract,
    ScoredDocument,
    StoreContract,
    ToolRetrieverContract,
)
from manyvec.testing.encoders import ColorEncoder, CountingEncoder, HashEncoder, SlowEncoder

__all__ = [
    "ColorEncoder",
    "CountingEncoder",
    "HashEncoder",
    "LoopWatch",
    "RerankerContract",
    "RetrieverContract",
    "ScoredDocument",
    "SlowEncoder",
    "StoreContract",
    "ToolRetrieverContract",
]
