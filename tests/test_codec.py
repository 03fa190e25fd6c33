import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from manyvec import InputError, MaxSimScorer, TokenBatch
from manyvec.vectors.batch import CodedBatch, offsets_of
from manyvec.vectors.codec import STORAGES, Codec, bytes_per_token, check_range, rotation
from manyvec.vectors.llvm_backend import LlvmBackend
from manyvec.vectors.maxsim import maxsim_reference
from manyvec.vectors.torch_backend import TorchBackend

CODED = STORAGES[1:]
DIMS = (5, 48, 64, 96, 128, 384, 1024)


def unit_vectors(rng, n, dim):
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def encoded(rng, storage, lengths, dim):
    """Return random documents and their codes."""
    vectors = unit_vectors(rng, sum(lengths), dim)
    centroids = unit_vectors(rng, 7, dim) if storage == "residual" else None
    codec = Codec(storage, dim, centroids)
    nearest = None if centroids is None else (vectors @ centroids.T).argmax(axis=1)
    offsets = offsets_of(lengths)
    codes = CodedBatch(codec.encode(vectors, nearest), offsets, codec)
    return TokenBatch(vectors, offsets, allow_empty=True), codes


def test_a_token_of_128_dims_takes_the_documented_bytes():
    assert {s: bytes_per_token(s, 128) for s in STORAGES} == {
        "float16": 256,
        "int8": 128 + 2,
        "int4": 64 + 2,
        "residual": 32 + 4,
        "binary": 16,
    }
    with pytest.raises(InputError, match="storage must be one of float16, int8, int4, residual, binary, got 'int3'"):
        bytes_per_token("int3", 128)


@pytest.mark.parametrize("dim", DIMS)
def test_codes_have_the_documented_width_and_are_closer_the_more_bits_they_have(dim):
    errors = {}
    for storage in ("int8", "int4", "residual", "binary"):
        documents, codes = encoded(np.random.default_rng(dim), storage, [50], dim)
        assert codes.codes.shape == (50, bytes_per_token(storage, dim)) and codes.codes.dtype == np.uint8
        errors[storage] = float(np.square(codes.codec.decode(codes.codes) - documents.vectors).sum(axis=1).mean())
    assert errors["int8"] < 1e-3 < errors["int4"] < 0.03 < errors["binary"] < 0.7
    assert errors["int4"] < errors["residual"] < errors["binary"]


def test_int8_and_signs_by_hand():
    vectors = np.array([[127.0, -64.0, 1.0, 0.0]], np.float32)
    int8 = Codec("int8", 4)
    assert int8.decode(int8.encode(vectors)).tolist() == vectors.tolist()
    binary = Codec("binary", 4)
    assert binary.encode(vectors).tolist() == [[0b1101]]
    assert binary.decode(binary.encode(vectors)).tolist() == [[0.5, -0.5, 0.5, 0.5]]


def test_a_token_at_its_centroid_is_kept_as_it_is():
    rng = np.random.default_rng(1)
    centroids = unit_vectors(rng, 300, 64)
    codec, nearest = Codec("residual", 64, centroids), np.array([299, 0, 7])
    codes = codec.encode(centroids[nearest], nearest)
    assert codec.nearest(codes).tolist() == [299, 0, 7]
    assert_allclose(codec.decode(codes), centroids[nearest], rtol=0, atol=1e-6)


@pytest.mark.parametrize("storage", CODED)
def test_vectors_of_zeros_and_no_vectors_at_all_have_codes_too(storage):
    codec = Codec(storage, 48, np.zeros((1, 48), np.float32) if storage == "residual" else None)
    zeros = codec.encode(np.zeros((2, 48), np.float32), np.zeros(2, np.int64))
    assert np.isfinite(codec.decode(zeros)).all()
    assert codec.decode(codec.encode(np.empty((0, 48), np.float32), np.empty(0, np.int64))).shape == (0, 48)


@pytest.mark.parametrize("dim", DIMS)
def test_the_rotation_keeps_lengths_and_angles(dim):
    assert_allclose(rotation(dim) @ rotation(dim).T, np.eye(dim), rtol=0, atol=1e-5)


def rounding(query, codes):
    """Bound the change of a score when query tokens are rounded to int8, each by its own scale (Cauchy-Schwarz)."""
    codec = codes.codec
    rotated = query @ rotation(codec.dim) if codec.is_rotated else query
    steps = np.abs(rotated).max(axis=1, keepdims=True) / 127
    lost = np.linalg.norm(rotated - np.rint(rotated / steps) * steps, axis=1).sum()
    integers = codec.integers(codes.codes) * codec.scales(codes.codes)[:, None]
    return 1e-5 + lost * np.linalg.norm(integers, axis=1).max()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    storage=st.sampled_from(CODED),
    dim=st.sampled_from(DIMS),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    n_query_tokens=st.integers(1, 7),
)
def test_codes_score_as_their_decoded_vectors_do(backend, seed, storage, dim, lengths, n_query_tokens):
    rng = np.random.default_rng(seed)
    _, codes = encoded(rng, storage, lengths, dim)
    decoded = TokenBatch(codes.codec.decode(codes.codes), codes.offsets, allow_empty=True)
    query = unit_vectors(rng, n_query_tokens, dim)
    expected = maxsim_reference(query, decoded)
    is_rounded = isinstance(backend, LlvmBackend) and backend.cpu.has_int8
    tolerance = rounding(query, codes) if is_rounded else 1e-5
    subset = np.flatnonzero(rng.random(len(lengths)) < 0.5)
    scores, some = (MaxSimScorer(backend=backend).score(query, codes, of) for of in (None, subset))
    assert_allclose(scores, expected, rtol=0, atol=tolerance)
    assert_allclose(some, expected[subset], rtol=0, atol=tolerance)


@pytest.mark.parametrize("storage", CODED)
def test_scores_of_codes_tell_documents_apart(storage):
    rng = np.random.default_rng(3)
    documents, codes = encoded(rng, storage, [30] * 40, 128)
    query = documents[17][:8]
    scores = MaxSimScorer().score(query, codes)
    assert scores.argmax() == 17
    others = np.delete(scores, 17)
    assert scores[17] - others.max() > 10 * rounding(query, codes)
    assert np.abs(scores - np.roll(scores, 1)).max() > 1


@pytest.mark.parametrize("storage", CODED)
def test_equal_documents_tie_wherever_they_are(backend, storage):
    backend = TorchBackend(block_tokens=20) if isinstance(backend, TorchBackend) else backend
    documents, codes = encoded(np.random.default_rng(4), storage, [9, 5, 30, 7], 96)
    again = codes.select([0, 1, 0, 2, 3, 0, 1])
    scores = MaxSimScorer(backend=backend).score(documents[2][:7], again)
    assert scores[0] == scores[2] == scores[5] and scores[1] == scores[6]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_range_is_checked_without_a_warning_in_any_precision(dtype):
    check_range(np.array([[65_504, -65_504]], dtype), "float16")
    with pytest.raises(InputError, match="65,504"):
        check_range(np.array([[0, np.inf]], dtype), "float16")
    with pytest.raises(InputError, match="65,504"):
        check_range(np.array([[np.nan, 0]], dtype), "int8")
