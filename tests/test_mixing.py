import numpy as np
import pytest

from manyvec.errors import InputError
from manyvec.retrieval.mixing import mixed

SIMILARITIES = np.array([0.5, 0.75, -0.25], np.float32)
BM25 = np.array([20.0, 0.0, 10.0], np.float32)


def test_a_bm25_of_40_counts_as_a_similarity_of_1():
    # 0.75 * 0.5 + 0.25 * 0.5, 0.75 * 0.75, 0.75 * -0.25 + 0.25 * 0.25
    np.testing.assert_allclose(mixed(SIMILARITIES, BM25, 0.25), [0.5, 0.5625, -0.125])


def test_weight_0_is_maxsim_and_weight_1_is_bm25():
    np.testing.assert_array_equal(mixed(SIMILARITIES, BM25, 0), SIMILARITIES)
    np.testing.assert_allclose(mixed(SIMILARITIES, BM25, 1), [0.5, 0.0, 0.25])


def test_words_overtake_a_similarity_once_they_weigh_enough():
    # Equal where 0.25 * (1 - w) = 0.5 * w, which is w = 1/3.
    assert mixed(SIMILARITIES, BM25, 0.3)[:2].argmax() == 1
    assert mixed(SIMILARITIES, BM25, 0.35)[:2].argmax() == 0


def test_a_document_is_mixed_the_same_whatever_stands_beside_it():
    whole = mixed(SIMILARITIES, BM25, 0.3)
    for i in range(3):
        np.testing.assert_array_equal(mixed(SIMILARITIES[i : i + 1], BM25[i : i + 1], 0.3), whole[i : i + 1])


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_a_document_without_tokens_stays_unfound(weight):
    mix = mixed(np.array([-np.inf, 0.5], np.float32), np.array([20.0, 0.0], np.float32), weight)
    assert mix[0] == -np.inf and np.isfinite(mix[1])


def test_nothing_mixed_is_nothing():
    empty = mixed(np.empty(0, np.float32), np.empty(0, np.float32), 0.3)
    assert empty.shape == (0,) and empty.dtype == np.float32


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_0_to_1_is_refused(weight):
    with pytest.raises(InputError, match="between 0 and 1"):
        mixed(SIMILARITIES, BM25, weight)
