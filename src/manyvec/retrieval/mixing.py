"""The final score of a search that looks for words too: MaxSim and BM25, added.

BM25 enters as the store gives it. Its height says how much of a query the words can answer, names and rare words above
all; scaling it to the best candidate, as hybrid searches mostly do, throws that away. On twelve judged sets of texts
and tools, one weight for all, the sum beat BM25, pooled vectors and MaxSim on nine in nDCG@10 and was 0.003, 0.004 and
0.014 below the best on three; in the mean it has .704, MaxSim .660, BM25 .651. With 0.27 it beats all on eight and is
nowhere more than 0.009 below. Scaled over the candidates, it lost 0.057 on one (`examples/benchmarks/mix.py`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError

# Of the weights tried the best in the mean. Measured with `minilm`.
LEXICAL_WEIGHT = 0.3
# So much BM25 counts as a similarity of 1; with the weight it makes one factor, which the benchmark varies.
BM25_UNIT = 40.0


def mixed(similarities: NDArray[np.floating], bm25: NDArray[np.floating], weight: float) -> NDArray[np.float32]:
    """Mix MaxSim with BM25: `(1 - weight) * similarity + weight * bm25 / 40`.

    No document's mix depends on the other candidates. One that has the words but lies beyond the depth to which BM25
    was asked counts as if it had none; the figures above are for 300 deep.

    Args:
        similarities: (n,) mean MaxSim per query token; the sum of a long query would drown BM25.
        bm25: (n,) LanceDB's BM25 in the same order, 0 for documents that it did not find.
        weight: 0 for the order of MaxSim alone, 1 for that of BM25 alone.

    Returns:
        (n,) float32. A document without tokens, similarity -inf, stays -inf.

    Raises:
        InputError: `weight` is not between 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise InputError(f"lexical_weight must be between 0 and 1, got {weight!r}")
    mix = np.full(len(similarities), -np.inf, np.float32)
    # Apart, because 0 * -inf is no number.
    is_scored = similarities > -np.inf
    mix[is_scored] = (1 - weight) * similarities[is_scored] + weight * bm25[is_scored] / BM25_UNIT
    return mix
