"""For tests, yours and ours: an encoder that needs no model and never changes its mind."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from manyvec.tokens import TokenBatch, offsets_of

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class HashEncoder:
    """Equal words get equal unit vectors, different words nearly orthogonal ones; case does not count.

    A document that holds every word of a query scores the query's number of tokens, so expected scores can be counted
    by hand. Words are runs of letters and digits; each punctuation mark is a token of its own.
    """

    dim: int = 64

    @property
    def name(self) -> str:
        return f"hash-{self.dim}"

    @property
    def fingerprint(self) -> str:
        return f"hash-{self.dim}-1"

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        return self.encode_documents(queries)

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        matches = [list(_WORD.finditer(text)) for text in texts]
        words = [match for found in matches for match in found]
        vectors = [_vector(match.group().lower(), self.dim) for match in words]
        return TokenBatch(
            np.array(vectors, np.float32).reshape(-1, self.dim),
            offsets_of([len(found) for found in matches]),
            np.array([match.span() for match in words], np.int32).reshape(-1, 2),
            allow_empty=True,
        )


@lru_cache(maxsize=65536)
def _vector(word: str, dim: int) -> NDArray[np.float32]:
    seed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
    vector = np.random.default_rng(seed).standard_normal(dim)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)
