"""MaxSim: numbers done by hand, and every backend against the slow reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from manyvec import InputError, MaxSimScorer, ShapeError, TokenBatch
from manyvec.vectors.maxsim import maxsim_reference, top_k
from manyvec.vectors.torch_backend import TorchBackend

QUERY = np.array([[1, 0], [0, 1]], np.float32)


def random_batch(rng, lengths, dim, dtype=np.float32):
    texts = [rng.standard_normal((n, dim)) for n in lengths]
    return TokenBatch.from_list(
        [(t / np.linalg.norm(t, axis=1, keepdims=True)).astype(dtype) for t in texts], dim=dim, allow_empty=True
    )


def in_blocks(backend, block_tokens):
    return TorchBackend(block_tokens=block_tokens) if isinstance(backend, TorchBackend) else backend


def tolerance(n_query_tokens):
    """Bound the error of n maxima, summed: dot products of unit vectors in float32 are off by a few steps of 2^-23."""
    return n_query_tokens * 8 * 2.0**-23


def test_each_query_tokens_best_match_is_summed():
    documents = TokenBatch.from_list([[[1, 0], [0.5, 0.5]], [[0, -1]]])
    assert_allclose(MaxSimScorer().score(QUERY, documents), [1 + 0.5, 0 + -1], atol=1e-6)


def test_mean_divides_by_the_querys_tokens():
    documents = TokenBatch.from_list([[[1, 0], [0.5, 0.5]]])
    assert_allclose(MaxSimScorer("mean").score(QUERY, documents), [0.75], atol=1e-6)


def test_a_short_document_keeps_its_negative_score_beside_a_long_one():
    documents = TokenBatch.from_list([[[-0.5, 0.0]], [[-0.5, 0.0], [-0.3, 0.0]]])
    assert_allclose(MaxSimScorer().score(QUERY[:1], documents), [-0.5, -0.3], atol=1e-6)


def test_an_empty_document_or_query_scores_minus_infinity():
    documents = TokenBatch.from_list([[], [[1, 0]], [], [[0, 1]], []], allow_empty=True)
    assert MaxSimScorer().score(QUERY[:1], documents).tolist() == [-np.inf, 1, -np.inf, 0, -np.inf]
    queries = TokenBatch.from_list([[[1, 0]], [], [[0, 1]]], allow_empty=True)
    scores = MaxSimScorer().score_many(queries, documents.select([1, 3]))
    assert scores.tolist() == [[1, 0], [-np.inf, -np.inf], [0, 1]]


def test_without_documents_or_queries_there_are_no_scores():
    documents = TokenBatch.from_list([], dim=2)
    assert MaxSimScorer().score(QUERY, documents).shape == (0,)
    assert MaxSimScorer().score_many(TokenBatch.from_list([], dim=2), documents).shape == (0, 0)


def test_positions_below_zero_count_from_the_end_and_none_is_read_beyond_it(backend):
    documents = TokenBatch.from_list([[[1, 0]], [[0, 1], [0, 0.5]], [[0.5, 0]]])
    scorer = MaxSimScorer(backend=backend)
    assert scorer.score(QUERY[:1], documents, np.array([-3, -2, -1])).tolist() == [1, 0, 0.5]
    assert documents.select([-1, -3]).vectors.tolist() == [[0.5, 0], [1, 0]]
    for position in (3, 4, -4):
        with pytest.raises(IndexError):
            scorer.score(QUERY, documents, np.array([position]))


def test_a_query_without_two_axes_is_refused():
    documents = TokenBatch.from_list([[[1, 0]]])
    for query in (QUERY[0], QUERY[None], np.float32(1)):
        with pytest.raises(ShapeError, match=r"a query must be \(n_query_tokens, dim\), got"):
            MaxSimScorer().score(query, documents)


def test_unlike_dims_are_refused():
    with pytest.raises(ShapeError, match="queries have dim 2, documents 3"):
        MaxSimScorer().score(QUERY, TokenBatch.from_list([[[1, 0, 0]]]))


def test_an_unknown_reduction_is_refused():
    with pytest.raises(InputError, match="'sum' or 'mean', got 'max'"):
        MaxSimScorer("max")


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    n_query=st.integers(1, 9),
    dim=st.sampled_from([3, 48, 128]),
    half=st.booleans(),
    block_tokens=st.integers(1, 100),
    seed=st.integers(0, 2**16),
)
def test_blocks_of_any_size_agree_with_the_reference(backend, lengths, n_query, dim, half, block_tokens, seed):
    rng = np.random.default_rng(seed)
    documents = random_batch(rng, lengths, dim, np.float16 if half else np.float32)
    queries = random_batch(rng, [n_query, 3], dim)
    subset = np.flatnonzero(rng.random(len(lengths)) < 0.5)
    expected = np.array([maxsim_reference(queries[i], documents) for i in range(2)])
    scorer = MaxSimScorer(backend=in_blocks(backend, block_tokens), scratch_bytes=80 * block_tokens)
    scores, some = (scorer.score_many(queries, documents, of) for of in (None, subset))
    assert_allclose(scores, expected, rtol=0, atol=tolerance(n_query))
    assert_allclose(some, expected[:, subset], rtol=0, atol=tolerance(n_query))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_scores_agree_with_sentence_transformers_and_shuffled_scores_would_not(dtype):
    from sentence_transformers.util.similarity import maxsim

    rng = np.random.default_rng(0)
    documents = random_batch(rng, rng.integers(3, 60, size=200), 96, dtype)
    query = random_batch(rng, [17], 96)[0]
    scores = MaxSimScorer().score(query, documents)
    theirs = maxsim([query], [document.astype(np.float32) for document in documents]).numpy()[0]
    assert_allclose(scores, theirs, rtol=0, atol=tolerance(17))
    assert_allclose(scores, maxsim_reference(query, documents), rtol=0, atol=tolerance(17))
    shuffled = rng.permutation(theirs)
    assert np.abs(scores - shuffled).max() > 1000 * tolerance(17)


def test_float16_documents_are_scored_in_float32():
    """Sums near 16 differ by less than a step of float16."""
    rng = np.random.default_rng(1)
    documents = random_batch(rng, [50] * 400, 64, np.float16)
    query = random_batch(rng, [32], 64)[0]
    scores = MaxSimScorer().score(query, documents)
    assert scores.dtype == np.float32
    assert len(np.unique(scores)) > len(np.unique(scores.astype(np.float16)))


def test_read_only_vectors_are_scored_without_a_copy_or_a_warning():
    documents = TokenBatch.from_list([[[1, 0]]])
    documents.vectors.flags.writeable = False
    assert MaxSimScorer().score(QUERY, documents).tolist() == [1]


def test_equal_documents_score_equally_wherever_they_are(backend):
    scorer = MaxSimScorer(backend=in_blocks(backend, 100), scratch_bytes=2000)
    rng = np.random.default_rng(2)
    one = random_batch(rng, [7], 128)
    others = random_batch(rng, rng.integers(1, 30, size=500), 128)
    positions = [0, 3, 77, 201, 499]
    texts = [one[0] if i in positions else others[i] for i in range(500)]
    scores = scorer.score(random_batch(rng, [5], 128)[0], TokenBatch.from_list(texts))
    assert len(set(scores[positions].tolist())) == 1


def test_top_k_orders_by_score_then_id():
    scores = np.array([1, 3, 2, 3, 3, 0], np.float32)
    ids = ["a", "z", "b", "y", "x", "c"]
    assert [ids[i] for i in top_k(scores, ids, 4)] == ["x", "y", "z", "b"]
    assert [ids[i] for i in top_k(scores, ids, 2)] == ["x", "y"]


def test_top_k_returns_fewer_where_there_are_fewer_and_never_minus_infinity():
    scores = np.array([1, -np.inf, 2], np.float32)
    assert top_k(scores, ["a", "b", "c"], 10) == [2, 0]
    assert top_k(scores, ["a", "b", "c"], 0) == []
    assert top_k(np.empty(0, np.float32), [], 5) == []


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 50)), max_size=40), st.integers(0, 45))
def test_top_k_equals_a_full_sort(pairs, k):
    scores = np.array([score for score, _ in pairs], np.float32)
    ids = [f"{name:02d}-{i}" for i, (_, name) in enumerate(pairs)]
    expected = sorted(range(len(pairs)), key=lambda i: (-scores[i], ids[i]))[:k]
    assert top_k(scores, ids, k) == expected
