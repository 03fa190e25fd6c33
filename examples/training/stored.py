"""Token vectors of judged data sets, as `../benchmarks/encoded.py` stores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from manyvec import TokenBatch

Sides = dict[str, TokenBatch]


def read(folder: Path) -> Sides:
    """Return the token vectors of a set's `documents` and `queries`, mapped into memory."""
    sides = {}
    for side in ("documents", "queries"):
        offsets = np.append(0, np.cumsum(np.load(folder / f"{side}_lengths.npy"), dtype=np.int64))
        sides[side] = TokenBatch.unchecked(np.load(folder / f"{side}.npy", mmap_mode="r"), offsets)
    return sides


def projected(tokens: TokenBatch, projection: np.ndarray) -> TokenBatch:
    """Return token vectors along a (dim, width) projection, with unit length again."""
    rows = np.empty((tokens.n_tokens, len(projection)), np.float16)
    for start in range(0, tokens.n_tokens, 65_536):
        part = tokens.vectors[start : start + 65_536].astype(np.float32) @ projection.T
        rows[start : start + 65_536] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return TokenBatch.unchecked(rows, tokens.offsets)
