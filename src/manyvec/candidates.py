"""First stages of a search: which documents get an exact score."""

from manyvec.retrieval.candidates import (
    Auto,
    Candidates,
    CentroidLists,
    Exhaustive,
    Lexical,
    Pooled,
    Query,
    Scope,
)

__all__ = [
    "Auto",
    "Candidates",
    "CentroidLists",
    "Exhaustive",
    "Lexical",
    "Pooled",
    "Query",
    "Scope",
]
