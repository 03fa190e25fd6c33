"""First stages of a search: which documents get an exact score."""

from manyvec.retrieval.candidates import (
    Auto,
    Candidates,
    CentroidTerms,
    Exhaustive,
    Fuse,
    Lexical,
    NativeMultivector,
    Pooled,
    Query,
    Scope,
)

__all__ = [
    "Auto",
    "Candidates",
    "CentroidTerms",
    "Exhaustive",
    "Fuse",
    "Lexical",
    "NativeMultivector",
    "Pooled",
    "Query",
    "Scope",
]
