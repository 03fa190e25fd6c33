"""For tests, yours and ours: encoders that need no model, and contracts that adapters must fulfil."""

from manyvec.testing.contracts import (
    Found,
    LoopWatch,
    RerankerContract,
    RetrieverContract,
    StoreContract,
    ToolRetrieverContract,
)
from manyvec.testing.encoders import ColorEncoder, CountingEncoder, HashEncoder, SlowEncoder

__all__ = [
    "ColorEncoder",
    "CountingEncoder",
    "Found",
    "HashEncoder",
    "LoopWatch",
    "RerankerContract",
    "RetrieverContract",
    "SlowEncoder",
    "StoreContract",
    "ToolRetrieverContract",
]
