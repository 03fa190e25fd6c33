"""Mix MaxSim with BM25 into the final score of a search in which both take part.

BM25 enters as the store returns it. Its height says how much of a query the words can answer, above all names and rare
words; scaling it to the best candidate, as most hybrid searches do, discards that. On twelve judged sets of texts and
tools, one weight for all, the sum beat BM25, pooled vectors and MaxSim on nine in nDCG@10 and was 0.003, 0.004 and
0.014 below the best on three; its mean is .704, MaxSim's .660, BM25's .651. With 0.27 it beats all on eight and is
never more than 0.009 below. Scaled over the candidates, it lost 0.057 on one set (`examples/benchmarks/mix.py`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, check_fraction

LexicalWeight: TypeAlias = 'float | Literal["auto"]'
# The best mean of the weights tried, measured with `minilm`. For searches that ask for a mix whatever the model is.
LEXICAL_WEIGHT = 0.3
# BM25 score that counts as much as a similarity of 1. With the weight it makes one factor, which the benchmark varies.
BM25_UNIT = 40.0


def chosen_weight(given: LexicalWeight, of_index: float) -> float:
    """Return the share of BM25 of a search.

    Args:
        given: What the caller of the search passed.
        of_index: Share that "auto" stands for, recorded in the index.

    Raises:
        InputError: `given` is neither "auto" nor a number between 0 and 1.
    """
    if isinstance(given, str) and given == "auto":
        return of_index
    try:
        return check_fraction(given, "lexical_weight")
    except InputError as error:
        raise InputError(f'{error}. "auto", the default, is {of_index:g} in this index') from None


def mixed(similarities: NDArray[np.floating], bm25: NDArray[np.floating], weight: float) -> NDArray[np.float32]:
    """Return `(1 - weight) * similarity + weight * bm25 / 40`.

    The result for a document does not depend on the other candidates. A document that contains the words but is not
    among those that BM25 returned counts as if it had none of them; the figures above are for 300 requested documents.

    Args:
        similarities: (n,) mean MaxSim per query token; the sum of a long query would drown BM25.
        bm25: (n,) LanceDB's BM25 scores in the same order, 0 for documents that it did not find.
        weight: 0 for the order of MaxSim alone, 1 for the order of BM25 alone.

    Returns:
        (n,) float32. A document without tokens (similarity -inf) stays at -inf.

    Raises:
        InputError: `weight` is not between 0 and 1.
    """
    weight = check_fraction(weight, "lexical_weight")
    mix = np.full(len(similarities), -np.inf, np.float32)
    # Apart from the others, because 0 * -inf is NaN.
    is_scored = similarities > -np.inf
    mix[is_scored] = (1 - weight) * similarities[is_scored] + weight * bm25[is_scored] / BM25_UNIT
    return mix
