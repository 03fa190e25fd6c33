"""Every kind of row on every backend against ten lines of numpy: odd dims, odd lengths, and rows in any order."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose

from manyvec import InputError, TokenBatch
from manyvec.vectors.backend import default_backend
from manyvec.vectors.batch import CodedBatch, offsets_of
from manyvec.vectors.codec import STORAGES, Codec
from manyvec.vectors.kernels import Layout, maxsim_builder, nearest_builder, products_builder
from manyvec.vectors.llvm import host_cpu
from manyvec.vectors.llvm_backend import LlvmBackend
from manyvec.vectors.torch_backend import TorchBackend

ODD = (1, 3, 5, 7, 17)
KINDS = ("float32", *STORAGES)
LENGTHS = np.array([*ODD, 8, 9, 1])


def unit_vectors(rng, n, dim):
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def documents_of(kind, rng, dim):
    vectors, offsets = unit_vectors(rng, LENGTHS.sum(), dim), offsets_of(LENGTHS)
    if kind.startswith("float"):
        return TokenBatch(vectors.astype(kind), offsets)
    centroids = unit_vectors(rng, 300, dim) if kind == "residual" else None  # numbers of more than one byte
    codec = Codec(kind, dim, centroids)
    nearest = None if centroids is None else (vectors @ centroids.T).argmax(axis=1)
    return CodedBatch(codec.encode(vectors, nearest), offsets, codec)


def best_matches(queries, vectors, starts, lengths):
    """Return the reference: (n_documents, n_query_tokens)."""
    return np.array(
        [
            (vectors[start : start + length] @ queries.T).max(axis=0)
            for start, length in zip(starts, lengths, strict=True)
        ]
    )


def is_int8(backend):
    return isinstance(backend, LlvmBackend) and backend.cpu.has_int8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [*ODD, 48, 64])
def test_the_best_match_of_each_query_token_is_that_of_numpy(backend, kind, dim):
    rng = np.random.default_rng(dim)
    documents = documents_of(kind, rng, dim)
    vectors = documents.codec.decode(documents.codes) if isinstance(documents, CodedBatch) else documents.vectors
    order = rng.permutation(len(LENGTHS))
    starts, lengths = documents.offsets[order], LENGTHS[order]
    # Queries rounded to int8 are off by up to half a step per dimension, a step being 1/127 of the largest value.
    atol = 0.5 / 127 * dim**0.5 * 1.5 if is_int8(backend) and isinstance(documents, CodedBatch) else 1e-5
    for n_query_tokens in ODD:
        queries = unit_vectors(rng, n_query_tokens, dim)
        best = backend.match_vectors(queries, documents).best(starts, lengths)
        expected = best_matches(queries, vectors.astype(np.float32), starts, lengths)
        assert best.dtype == np.float32
        assert_allclose(best, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("kind", KINDS)
def test_shuffled_matches_would_be_noticed(backend, kind):
    rng = np.random.default_rng(0)
    documents, queries = documents_of(kind, rng, 48), unit_vectors(rng, 5, 48)
    best = backend.match_vectors(queries, documents).best(documents.offsets[:-1], LENGTHS)
    for axis in (0, 1):
        assert np.abs(best - np.roll(best, 1, axis)).max() > 0.2


@pytest.mark.parametrize("n_centroids", [*ODD, 300, 65_536])
def test_the_best_centroid_of_each_query_token_is_that_of_numpy(backend, n_centroids):
    rng = np.random.default_rng(n_centroids)
    centroids = rng.integers(n_centroids, size=LENGTHS.sum()).astype(np.uint16)
    centroids[0] = n_centroids - 1
    starts = offsets_of(LENGTHS)[:-1]
    for n_query_tokens in ODD:
        similarities = rng.standard_normal((n_query_tokens, n_centroids)).astype(np.float32)
        best = backend.match_centroids(similarities, centroids).best(starts, LENGTHS)
        expected = np.maximum.reduceat(similarities[:, centroids], starts, axis=1).T
        np.testing.assert_array_equal(best, expected)


@pytest.mark.parametrize(("dim", "dtype"), [*product([*ODD, 48], [np.float32, np.float16])])
def test_the_nearest_centroid_of_each_vector_is_that_of_numpy(backend, dim, dtype):
    rng = np.random.default_rng(dim)
    for n_centroids, n_vectors in product([1, 3, 17, 40], ODD):
        centroids = unit_vectors(rng, n_centroids, dim)
        vectors = unit_vectors(rng, n_vectors, dim).astype(dtype)
        search = backend.search_centroids(centroids)
        similarities = vectors.astype(np.float32) @ centroids.T
        highest = similarities.max(axis=1)
        nearest = search.nearest(vectors)
        # Both sides are rounded to int8 there: of two nearly equal centroids either may be found.
        atol = 2 / 127 if is_int8(backend) else 1e-6
        assert_allclose(similarities[np.arange(n_vectors), nearest], highest, rtol=0, atol=atol)
        atol = 0.02 if is_int8(backend) else 1e-5
        assert_allclose(search.similarities(vectors.astype(np.float32)), similarities, rtol=0, atol=atol)


@pytest.mark.parametrize(("dim", "dtype"), [*product([*ODD, 100], [np.float32, np.float16])])
def test_products_are_those_of_numpy_whatever_the_number_of_vectors(backend, dim, dtype):
    rng = np.random.default_rng(dim)
    for n, n_others in product([0, 1, 33, 2_000], [0, *ODD, 50]):
        vectors, others = unit_vectors(rng, n, dim), unit_vectors(rng, n_others, dim).astype(dtype)
        products = backend.products(vectors)(others)
        assert products.dtype == np.float32
        assert_allclose(products, others.astype(np.float32) @ vectors.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("has_int8", [False, True])
@pytest.mark.parametrize("build", [maxsim_builder, nearest_builder, products_builder])
def test_a_kernel_of_many_dims_is_as_short_and_soon_compiled_as_one_of_few(build, has_int8):
    if (cpu := host_cpu()) is None:
        pytest.skip("kernels are not compiled for this CPU, or llvmlite is not installed")
    cpu = replace(cpu, has_int8=has_int8)
    for dtype in (np.float16, np.float32):
        few, many = (len(build(cpu, Layout.of_floats(np.zeros((1, dim), dtype))).ir_text) for dim in (256, 1024))
        assert many < 1.02 * few


def test_the_first_of_equal_centroids_is_the_nearest(backend):
    centroids = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 2] * 7]
    vectors = np.eye(3, dtype=np.float32)
    assert backend.search_centroids(centroids).nearest(vectors).tolist() == [0, 1, 4]
    assert backend.search_centroids(centroids).subset(np.array([3, 2, 1, 4])).nearest(vectors).tolist() == [0, 1, 3]


def test_the_environment_chooses_the_backend(monkeypatch):
    monkeypatch.setenv("MANYVEC_BACKEND", "torch")
    assert default_backend() == TorchBackend()
    for name in ("auto", ""):
        monkeypatch.setenv("MANYVEC_BACKEND", name)
        assert default_backend() == (LlvmBackend(host_cpu()) if host_cpu() else TorchBackend())
    monkeypatch.setenv("MANYVEC_BACKEND", "cuda")
    with pytest.raises(InputError, match="MANYVEC_BACKEND must be auto, llvm or torch, got 'cuda'"):
        default_backend()


def test_kernels_write_their_code_where_they_are_asked_to(tmp_path, monkeypatch):
    if not host_cpu():
        pytest.skip("needs llvmlite and a CPU that kernels are written for")
    monkeypatch.setenv("MANYVEC_DUMP_IR", str(tmp_path / "ir"))
    documents = documents_of("int4", np.random.default_rng(0), 74)
    LlvmBackend(host_cpu()).match_vectors(np.ones((1, 74), np.float32), documents)
    name = f"maxsim-int4-74d-{host_cpu().name}"
    assert "define void @run" in (tmp_path / "ir" / f"{name}.ll").read_text()
    assert "run:" in (tmp_path / "ir" / f"{name}.s").read_text()
    monkeypatch.setenv("MANYVEC_DUMP_IR", str(tmp_path / "ir" / f"{name}.s" / "file"))
    with pytest.raises(InputError, match="MANYVEC_DUMP_IR must name a folder that can be written to"):
        LlvmBackend(host_cpu()).match_vectors(
            np.ones((1, 73), np.float32), documents_of("int4", np.random.default_rng(0), 73)
        )
