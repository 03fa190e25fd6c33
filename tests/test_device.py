"""MaxSim on a device: on the CPU against the reference, and the same claims on CUDA where there is one."""

import importlib
import os
import subprocess
import sys
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from manyvec import DeviceMemoryError, F, Index, InputError, MaxSimScorer, ShapeError, TokenBatch
from manyvec.candidates import Auto
from manyvec.testing import HashEncoder
from manyvec.vectors import cuda
from manyvec.vectors.batch import CodedBatch, document_blocks, offsets_of
from manyvec.vectors.codec import STORAGES, Codec
from manyvec.vectors.cuda import DeviceDocuments, halved_until_it_fits
from manyvec.vectors.device import DeviceScorer
from manyvec.vectors.maxsim import maxsim_reference, top_k

QUERY = np.array([[1, 0], [0, 1]], np.float32)
TRITON = [int(part) for part in next((found.version for found in distributions(name="triton")), "0").split(".")[:2]]
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])


def unit_vectors(rng, n, dim):
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_queries(rng, lengths, dim):
    return TokenBatch.unchecked(unit_vectors(rng, sum(lengths), dim), offsets_of(lengths))


def random_documents(rng, lengths, dim, storage):
    """Return documents as an index stores them: float16 vectors or codes."""
    vectors, offsets = unit_vectors(rng, sum(lengths), dim), offsets_of(lengths)
    if storage == "float16":
        return TokenBatch.unchecked(vectors.astype(np.float16), offsets)
    if storage != "residual":
        codec, nearest = Codec(storage, dim), None
    else:
        codec = Codec(storage, dim, unit_vectors(rng, 300, dim))  # more than one byte can count
        nearest = (vectors @ codec.centroids.T).argmax(axis=1)
    return CodedBatch(codec.encode(vectors, nearest), offsets, codec)


def reference(queries, documents):
    """Score every query against the float32 vectors of the documents, decoded where they are codes."""
    if isinstance(documents, CodedBatch):
        documents = TokenBatch.unchecked(documents.codec.decode(documents.codes), documents.offsets)
    return np.array([maxsim_reference(query, documents) for query in queries])


def tolerance(n_query_tokens):
    """A query split in two keeps 22 bits, products are exact, and sums are float32, as in the codec's decoding."""
    return n_query_tokens * 16 * 2.0**-23


def test_each_query_tokens_best_match_is_summed_or_averaged():
    documents = DeviceDocuments.upload(TokenBatch.from_list([[[1, 0], [0.5, 0.5]], [[0, -1]]]), "cpu")
    queries = TokenBatch.from_list([QUERY])
    assert documents.score_many(queries).tolist() == [[1 + 0.5, 0 + -1]]
    assert documents.score_many(queries, reduction="mean").tolist() == [[0.75, -0.5]]
    assert documents.score_many(queries).dtype == np.float32


@pytest.mark.parametrize("storage", STORAGES)
def test_a_document_or_query_without_tokens_scores_minus_infinity(storage):
    rng = np.random.default_rng(0)
    documents = random_documents(rng, [0, 3, 0, 1, 0], 16, storage)
    queries = random_queries(rng, [2, 0, 1], 16)
    for reduction in ("sum", "mean"):
        scores = DeviceDocuments.upload(documents, "cpu").score_many(queries, reduction=reduction)
        assert np.isfinite(scores).tolist() == [
            [False, True, False, True, False],
            [False] * 5,
            [False, True] * 2 + [False],
        ]
        assert (scores[~np.isfinite(scores)] == -np.inf).all()


def test_without_documents_or_queries_there_are_no_scores():
    nothing = DeviceDocuments.upload(TokenBatch.from_list([], dim=2), "cpu")
    assert nothing.score_many(TokenBatch.from_list([QUERY])).shape == (1, 0)
    assert nothing.score_many(TokenBatch.from_list([], dim=2)).shape == (0, 0)
    assert [len(best.positions) for best in nothing.top_k(TokenBatch.from_list([QUERY]), 3)] == [0]
    some = DeviceDocuments.upload(TokenBatch.from_list([[[1, 0]], [[0, 1]]]), "cpu")
    assert some.score_many(TokenBatch.from_list([QUERY]), np.empty(0, np.int64)).shape == (1, 0)


def test_unlike_dims_and_unknown_reductions_are_refused():
    documents = DeviceDocuments.upload(TokenBatch.from_list([[[1, 0, 0]]]), "cpu")
    with pytest.raises(ShapeError, match="queries have dim 2, documents 3"):
        documents.score_many(TokenBatch.from_list([QUERY]))
    with pytest.raises(InputError, match="'sum' or 'mean', got 'max'"):
        documents.score_many(TokenBatch.from_list([[[1, 0, 0]]]), reduction="max")


@devices
@settings(max_examples=80, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    n_query=st.integers(1, 20),
    dim=st.sampled_from([3, 48, 96, 128]),
    storage=st.sampled_from(STORAGES),
    scratch_bytes=st.sampled_from([1, 20_000, 100_000, 2**29]),
    seed=st.integers(0, 2**16),
)
def test_any_corpus_codec_subset_and_budget_agrees_with_the_reference(
    device, lengths, n_query, dim, storage, scratch_bytes, seed
):
    rng = np.random.default_rng(seed)
    documents = random_documents(rng, lengths, dim, storage)
    queries = random_queries(rng, [n_query, 3], dim)
    subset = np.flatnonzero(rng.random(len(lengths)) < 0.5)
    there = DeviceDocuments.upload(documents, device, scratch_bytes=scratch_bytes)
    expected = reference(queries, documents)
    atol = tolerance(n_query)
    assert_allclose(there.score_many(queries), expected, rtol=0, atol=atol)
    assert_allclose(there.score_many(queries, subset), expected[:, subset], rtol=0, atol=atol)
    assert_allclose(there.score_many(queries, reduction="mean")[0], expected[0] / n_query, rtol=0, atol=atol)


@devices
@pytest.mark.parametrize("dim", [128, 384])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_device_agrees_with_the_cpu_and_shuffled_scores_would_not(device, storage, dim):
    rng = np.random.default_rng(1)
    documents = random_documents(rng, rng.integers(0, 60, size=200).tolist(), dim, storage)
    queries = random_queries(rng, [17, 5], dim)
    scores = DeviceDocuments.upload(documents, device, scratch_bytes=2**22).score_many(queries)
    expected = MaxSimScorer().score_many(queries, documents)
    # The scorer multiplies codes with query tokens in int8.
    atol = 17 * 2.0 ** (-11 if storage == "float16" else -9)
    assert_allclose(scores, expected, rtol=0, atol=atol)
    finite = np.isfinite(expected[0])
    assert np.abs(scores[0, finite] - rng.permutation(expected[0, finite])).max() > 10 * atol


@devices
def test_centroids_beyond_32767_are_found(device):
    rng = np.random.default_rng(8)
    codec = Codec("residual", 16, unit_vectors(rng, 40_000, 16))
    codes = codec.encode(unit_vectors(rng, 9, 16), np.arange(9) * 4_999)
    documents = CodedBatch(codes, offsets_of([4, 5]), codec)
    queries = random_queries(rng, [3], 16)
    scores = DeviceDocuments.upload(documents, device).score_many(queries)
    assert_allclose(scores, reference(queries, documents), rtol=0, atol=tolerance(3) * 3)  # residuals longer than 1


@devices
def test_a_document_larger_than_the_scratch_memory_is_scored_whole(device):
    rng = np.random.default_rng(2)
    documents = random_documents(rng, [1, 5000, 2], 128, "int4")
    queries = random_queries(rng, [7], 128)
    scores = DeviceDocuments.upload(documents, device, scratch_bytes=1000).score_many(queries)
    assert_allclose(scores, reference(queries, documents), rtol=0, atol=tolerance(7))


@devices
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("scratch_bytes", [100_000, 2**29])
def test_equal_documents_tie_and_results_repeat(device, storage, scratch_bytes):
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 30, size=500)
    positions = [0, 3, 77, 201, 499]
    lengths[positions] = 7
    documents = random_documents(rng, lengths.tolist(), 128, storage)
    for position in positions[1:]:
        documents.rows[documents.offsets[position] :][:7] = documents[positions[0]]
    there = DeviceDocuments.upload(documents, device, scratch_bytes=scratch_bytes)
    queries = random_queries(rng, [5, 9], 128)
    scores = there.score_many(queries)
    assert [len(set(row[positions].tolist())) for row in scores] == [1, 1]
    assert_array_equal(there.score_many(queries), scores)


@devices
@settings(max_examples=100, deadline=None)
@given(
    words=st.lists(st.sampled_from([[1, 0], [0, 1], [-1, 0], [0.6, 0.8]]), max_size=30),
    k=st.integers(0, 35),
    chosen=st.integers(0, 2**30 - 1),
)
def test_the_k_best_come_with_all_that_tie_so_that_ids_decide_as_in_a_full_sort(device, words, k, chosen):
    documents = TokenBatch.from_list([[word] for word in words] + [[]], dim=2, allow_empty=True)
    there = DeviceDocuments.upload(documents, device)
    queries = TokenBatch.from_list([[[1, 0]], [[0, 1], [1, 0]], []], allow_empty=True)
    ids = np.array([f"{37 * i % 31:02d}" for i in range(len(documents))], object)
    for subset in (None, np.array([i for i in range(len(words)) if chosen >> i & 1], np.int64)):
        own_ids = ids if subset is None else ids[subset]
        for best, scores in zip(there.top_k(queries, k, subset), there.score_many(queries, subset), strict=True):
            assert_array_equal(best.scores, scores[best.positions])
            assert k == 0 or set(best.scores) <= set(np.sort(scores)[::-1][:k])
            ranked = best.positions[top_k(best.scores, own_ids[best.positions], k)]
            assert ranked.tolist() == top_k(scores, own_ids, k)


@pytest.mark.parametrize("storage", STORAGES)
def test_documents_take_the_bytes_of_their_codes_and_little_more(storage):
    documents = random_documents(np.random.default_rng(4), [400, 601], 128, storage)
    centroids = 4 * 304 * 128 if storage == "residual" else 0
    held = DeviceDocuments.upload(documents, "cpu").bytes_held - documents.nbytes - centroids
    assert 0 <= held - documents.offsets.nbytes <= 15 * documents.rows.shape[1] + 256 * 8 * 2


def test_float32_and_read_only_vectors_are_accepted():
    documents = TokenBatch.from_list([[[1, 0]]])
    documents.vectors.flags.writeable = False
    there = DeviceDocuments.upload(documents, "cpu")
    assert there.packed.dtype == torch.float16
    assert there.score_many(TokenBatch.from_list([QUERY])).tolist() == [[1]]


def test_blocks_are_halved_until_memory_suffices():
    asked = []

    def work(size):
        asked.append(size)
        if size > 1500:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return f"done with {size}"

    assert halved_until_it_fits(work, 10_000, least=1000) == "done with 1250"
    assert asked == [10_000, 5000, 2500, 1250]
    with pytest.raises(torch.OutOfMemoryError):
        halved_until_it_fits(work, 10_000, least=1501)
    assert asked[4:] == [10_000, 5000, 2500, 1501]


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(0, 120))
def test_blocks_hold_every_document_with_tokens_once_and_no_more_tokens_than_allowed(lengths, max_tokens):
    lengths = np.array(lengths, np.int64)
    blocks = document_blocks(lengths, max_tokens)
    covered = [position for block in blocks for position in range(block.start, block.stop)]
    assert covered == sorted(set(covered))
    assert set(np.flatnonzero(lengths)) <= set(covered)
    assert all(lengths[block].sum() <= max_tokens or np.count_nonzero(lengths[block]) == 1 for block in blocks)


@pytest.fixture
def kernel():
    """The module of the kernel, which is tried for all rows again afterwards."""
    yield importlib.import_module("manyvec.vectors.triton_kernel")
    cuda._REFUSED.clear()


def compare_the_kernel_with_the_reference():
    """Run in a process of its own, because Triton reads TRITON_INTERPRET when it is imported."""
    torch.cuda.get_device_properties = lambda _: SimpleNamespace(shared_memory_per_block_optin=0)
    kernel = importlib.import_module("manyvec.vectors.triton_kernel")
    for storage, dim in product(STORAGES, (3, 96, 384)):
        rng = np.random.default_rng(11)
        documents = random_documents(rng, [5, 0, 70, 130, 1], dim, storage)
        queries = random_queries(rng, [7, 70], dim)
        there = DeviceDocuments.upload(documents, "cpu")
        vectors, to_centroids = there._turned(queries)
        to_centroids = None if to_centroids is None else to_centroids[:, : len(vectors)].contiguous()
        scores = kernel.scores(there, vectors, queries.offsets, None, to_centroids).numpy()
        assert_allclose(scores, reference(queries, documents), rtol=0, atol=tolerance(70))
        some = kernel.scores(there, vectors, queries.offsets, torch.tensor([3, 0]), to_centroids).numpy()
        assert_array_equal(some, scores[:, [3, 0]])
        print(storage, dim)


@pytest.mark.skipif(TRITON < [3, 6], reason="needs triton 3.6, which torch 2.11 for CUDA brings on Linux")
def test_the_kernel_in_tritons_interpreter_agrees_with_the_reference():
    code = "import test_device; test_device.compare_the_kernel_with_the_reference()"
    env = os.environ | {"TRITON_INTERPRET": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=env, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 15


@pytest.mark.gpu
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dim", [128, 384, 1024])
def test_where_the_kernel_cannot_be_compiled_torch_gives_the_same_scores(kernel, storage, dim, monkeypatch, caplog):
    rng = np.random.default_rng(6)
    documents = random_documents(rng, rng.integers(0, 200, size=300).tolist(), dim, storage)
    queries = random_queries(rng, [70, 5], dim)
    there = DeviceDocuments.upload(documents, "cuda")
    subset = np.array([7, 0, 299])
    scores, some = there.score_many(queries), there.score_many(queries, subset)
    assert not cuda._REFUSED
    assert_array_equal(some, scores[:, subset])
    monkeypatch.setattr(kernel, "N_WARPS", 3)  # Triton refuses this: no power of two
    assert_allclose(there.score_many(queries), scores, rtol=0, atol=tolerance(70))
    assert len(cuda._REFUSED) == 1
    assert "Triton cannot score these documents, so torch does, more slowly" in caplog.text


@pytest.mark.gpu
def test_a_document_with_a_damaged_token_has_no_score_on_a_gpu():
    rng = np.random.default_rng(7)
    documents = random_documents(rng, [70, 3, 5], 128, "float16")
    documents.vectors[40, 9] = np.nan
    documents.vectors[71, 0] = np.inf
    queries = random_queries(rng, [4], 128)
    assert np.isfinite(DeviceDocuments.upload(documents, "cuda").score_many(queries)).tolist() == [[False, False, True]]


@pytest.mark.gpu
def test_a_gpu_without_memory_is_a_clear_error_after_smaller_blocks_were_tried(monkeypatch):
    monkeypatch.setattr(cuda, "_REFUSED", {(8, 128)})
    rng = np.random.default_rng(5)
    documents = random_documents(rng, [200] * 500, 128, "int8")
    queries = random_queries(rng, [32] * 20, 128)
    there = DeviceDocuments.upload(documents, "cuda", scratch_bytes=2**40)
    too_many = TokenBatch.unchecked(np.zeros((2**20, 512), np.float16), offsets_of([2**20]))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    try:
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
        assert_allclose(there.score_many(queries), reference(queries, documents), rtol=0, atol=tolerance(32))
        with pytest.raises(
            DeviceMemoryError, match="1.00 GiB of token vectors do not fit on cuda: score them on the CPU"
        ):
            DeviceDocuments.upload(too_many, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


ENCODER = HashEncoder(48)


def random_texts(n):
    rng = np.random.default_rng(7)
    words = np.array([f"w{i}" for i in range(300)])
    return [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(n)]


TEXTS = random_texts(150)


def filled(uri, storage="float16", device="cpu"):
    index = Index.create(uri, ENCODER, storage=storage, filter_columns={"n": int}, device=device)
    index.add({"id": str(i), "text": text, "metadata": {"n": i}} for i, text in enumerate(TEXTS))
    return index


def opened(uri, device, **options):
    """The index with a scorer of the device; `Index.open` itself takes the CPU's own scorer for `cpu`."""
    index = Index.open(uri, ENCODER, device=device, **options)
    index._reader._scorer = DeviceScorer(device)
    return index


def assert_same_hits(found, expected):
    # Documents whose scores differ in the last digits may swap ranks.
    assert {hit.id for hit in found} == {hit.id for hit in expected}
    by_id = {hit.id: hit for hit in expected}
    assert_allclose([hit.score for hit in found], [by_id[hit.id].score for hit in found], rtol=0, atol=0.05)


@devices
@pytest.mark.parametrize("cache_bytes", [2**30, 60_000, 0])
@pytest.mark.parametrize("storage", ["float16", "int8", "binary"])
def test_an_index_on_a_device_finds_what_it_finds_on_the_cpu_whatever_its_cache_holds(
    tmp_path, device, storage, cache_bytes
):
    on_cpu = filled(tmp_path / "index", storage)
    there = opened(on_cpu.uri, device, cache_bytes=cache_bytes)
    for options in ({}, {"filter": F("n") < 60}, {"lexical_weight": 0.3}, {"filter": F("n") < 0}):
        for query in (TEXTS[3], "w1 w2 w3", ""):
            wanted = on_cpu.search(query, k=150, **options)
            assert_same_hits(there.search(query, k=150, **options), wanted)
    assert [hits[0].id for hits in there.search_many([TEXTS[3], TEXTS[99]], k=1)] == ["3", "99"]
    assert_allclose(there.score(TEXTS[3], ["3", "99"]), on_cpu.score(TEXTS[3], ["3", "99"]), rtol=0, atol=0.05)


@devices
def test_changes_are_seen_at_once_and_replaced_documents_leave_the_device(tmp_path, device):
    index = opened(filled(tmp_path / "index").uri, device)
    assert index.search(TEXTS[3], k=1)[0].id == "3"
    index.delete("3")
    index.add([{"id": "4", "text": TEXTS[3], "metadata": {"n": 4}}])
    assert [hit.id for hit in index.search(TEXTS[3], k=150)].count("4") == 1
    assert index.search(TEXTS[3], k=1)[0].id == "4"
    assert set(index._reader._scorer._held) == set(index._reader._cached.segments)


@devices
def test_an_index_on_the_device_is_scored_whole_where_the_cpu_would_look_for_candidates(tmp_path, device, caplog):
    index = filled(tmp_path / "index")
    index.candidates = Auto(exhaustive_tokens=500, min_depth=10, depth_tokens=100)
    index.optimize()
    there = opened(index.uri, device)
    there.candidates = index.candidates
    for searched, reason in ((index, "centroid lists and BM25 choose"), (there, "they are few for a GPU")):
        caplog.clear()
        with caplog.at_level("DEBUG", logger="manyvec"):
            searched.search(TEXTS[3])
        assert reason in caplog.text
    partly = opened(index.uri, device, cache_bytes=60_000)
    partly.candidates = index.candidates
    with caplog.at_level("DEBUG", logger="manyvec"):
        caplog.clear()
        partly.search(TEXTS[3])
    assert "centroid lists and BM25 choose" in caplog.text


@devices
def test_documents_that_do_not_fit_on_the_device_are_scored_on_the_cpu_and_logged(
    tmp_path, device, monkeypatch, caplog
):
    index = filled(tmp_path / "index")
    expected = index.search(TEXTS[3], k=20)
    there = opened(index.uri, device)

    def full(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch, "zeros", full)
    assert [hit.id for hit in there.search(TEXTS[3], k=20)] == [hit.id for hit in expected]
    assert "they are scored on the CPU instead" in caplog.text
    monkeypatch.undo()
    caplog.clear()
    assert [hit.id for hit in there.search(TEXTS[3], k=20)] == [hit.id for hit in expected]
    assert not caplog.text  # said once, and not tried at every search


def test_a_device_that_does_not_exist_is_a_clear_error(tmp_path):
    for device in ("abacus", "cuda:99"):
        for options in ({"device": device}, {"score_device": device}):
            with pytest.raises(InputError, match="cannot be used"):
                Index.create(tmp_path / "index", ENCODER, **options)
    with pytest.raises(InputError, match="on the CPU or on CUDA"):
        Index.create(tmp_path / "index", ENCODER, score_device="mps")
    assert not (tmp_path / "index").exists()


def test_one_device_is_where_the_model_runs_and_where_documents_are_scored(tmp_path, monkeypatch):
    loaded = []

    def load(name, **options):
        loaded.append((name, options["device"]))
        return ENCODER

    monkeypatch.setattr("manyvec.retrieval.handle.load_encoder", load)
    uri = filled(tmp_path / "index").uri
    assert Index.open(uri, "by name", device="cpu").search(TEXTS[3], k=1)
    # Opened without a name, the model is loaded by the manifest's at its first use.
    on_mps = Index.open(uri, device="mps")
    assert on_mps.search(TEXTS[3], k=1)[0].id == "3"
    assert type(on_mps._reader.scorer) is MaxSimScorer
    assert loaded == [("by name", "cpu"), (ENCODER.name, "mps")]
    parted = Index.open(uri, "by name", device="abacus", score_device="cpu")
    assert parted.search(TEXTS[3], k=1)[0].id == "3"
    assert loaded[2:] == [("by name", "abacus")]


@pytest.mark.parametrize("scorer", [MaxSimScorer, pytest.param(DeviceScorer, marks=pytest.mark.gpu)])
def test_auto_scores_on_cuda_where_there_is_one_and_asks_when_documents_are_first_scored(tmp_path, scorer):
    index = filled(tmp_path / "index", device="auto")
    assert index._open_reader is None
    index.search(TEXTS[3])
    assert type(index._reader.scorer) is scorer
