"""Codebooks: training, and the nearest centroids on every backend."""

import numpy as np
import pytest

from manyvec import InputError, ShapeError, TokenBatch
from manyvec.testing import HashEncoder
from manyvec.vectors.codebook import Assignments, Codebook, n_centroids_for
from manyvec.vectors.torch_backend import TorchBackend


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def words(n):
    """Return token vectors of n texts of thirty words each, of a thousand."""
    numbers = np.random.default_rng(0).integers(0, 1_000, size=(n, 30))
    return HashEncoder(32).encode_documents([" ".join(f"w{number}" for number in row) for row in numbers]).vectors


def test_k_grows_with_the_square_root_of_the_tokens():
    assert [n_centroids_for(n) for n in (0, 1, 10_000, 1_000_000, 16_000_000, 10**12)] == [
        16,
        16,
        2048,
        16384,
        65536,
        65536,
    ]


def test_k_means_moves_centroids_to_the_middle_of_their_vectors():
    rng = np.random.default_rng(0)
    corners = np.eye(4, dtype=np.float32)[[0] * 50 + [1] * 50 + [2] * 50 + [3] * 50]
    vectors = unit(corners + 0.1 * rng.standard_normal(corners.shape).astype(np.float32))
    codebook = Codebook.train(vectors, 16, iterations=5)
    np.testing.assert_allclose(np.linalg.norm(codebook.centroids, axis=1), 1, atol=1e-5)
    nearest = codebook.assign(vectors)
    assert ((vectors * codebook.centroids[nearest]).sum(axis=1) > 0.8).all()
    start = Codebook.train(vectors, 16, iterations=0)
    gained = (vectors * codebook.centroids[nearest]).sum() - (vectors * start.centroids[start.assign(vectors)]).sum()
    assert gained > 0


def test_training_repeats_and_its_fingerprint_tells_codebooks_apart():
    vectors = words(50)
    one, same = Codebook.train(vectors, 64), Codebook.train(vectors, 64)
    assert one.fingerprint == same.fingerprint
    assert Codebook.train(vectors, 64, seed=1).fingerprint != one.fingerprint


def test_assignment_takes_the_nearest_centroid_in_blocks_of_any_size(backend):
    vectors = words(30)
    codebook = Codebook.train(vectors, 32, backend=backend)
    expected = (vectors @ codebook.centroids.T).argmax(axis=1)
    assigned = codebook.assign(vectors.astype(np.float16))
    # Those between two centroids may go to either.
    assert (assigned == expected).mean() > 0.99
    in_small_blocks = Codebook(codebook.centroids, TorchBackend(block_bytes=4 * 32 * 7))
    assert (in_small_blocks.assign(vectors.astype(np.float16)) == expected).mean() > 0.99


def test_many_centroids_of_few_unlike_vectors_are_assigned_too():
    corners = unit(np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32))
    vectors = corners[np.arange(2048) % 20]
    codebook = Codebook.train(vectors, 2048)
    np.testing.assert_allclose(codebook.centroids[codebook.assign(vectors)], vectors, atol=1e-5)


@pytest.mark.parametrize("dim", [38, 128])
def test_many_vectors_find_the_nearest_of_many_centroids_or_one_as_near(dim, backend):
    rng = np.random.default_rng(0)
    topics = unit(rng.standard_normal((50, dim)).astype(np.float32))
    noise = rng.standard_normal((9_000, dim)).astype(np.float32) * 0.7 / dim**0.5
    vectors = unit(topics[rng.integers(50, size=9_000)] + noise)
    codebook, vectors = Codebook(vectors[:2048], backend), vectors[2048:]
    similarities = vectors @ codebook.centroids.T
    found = np.take_along_axis(similarities, codebook.assign(vectors)[:, None], axis=1)[:, 0]
    assert (found == similarities.max(axis=1)).mean() > 0.9
    assert (similarities.max(axis=1) - found).max() < 0.05
    assert np.abs(codebook.similarities(vectors[:500]) - similarities[:500]).max() < 0.02
    # Few are compared with all.
    assert np.abs(similarities[:9].max(axis=1) - similarities[np.arange(9), codebook.assign(vectors[:9])]).max() < 0.02


def test_too_few_vectors_or_another_dim_are_refused():
    with pytest.raises(InputError, match="16 centroids need at least as many vectors to start from, got 3"):
        Codebook.train(np.eye(3, dtype=np.float32), 16)
    with pytest.raises(ShapeError, match="vectors have dim 3, the codebook 4"):
        Codebook(np.eye(4, dtype=np.float32)).assign(np.eye(3, dtype=np.float32))


def test_each_document_keeps_each_of_its_centroids_once():
    codebook = Codebook(np.eye(4, dtype=np.float32))
    eye = np.eye(4, dtype=np.float32)
    tokens = TokenBatch.from_list([eye[[2, 0, 2, 2]], eye[[3]], eye[[1, 1]]])
    assigned = Assignments.of(codebook, np.array([10, 20, 30]), np.array([1, 1, 2]), tokens)
    assert assigned.offsets.tolist() == [0, 2, 3, 4]
    assert assigned.centroids.tolist() == [0, 2, 3, 1]
    assert assigned.positions_in(np.array([5, 10, 30]), np.array([1, 1, 9])).tolist() == [1, -1, -1]
