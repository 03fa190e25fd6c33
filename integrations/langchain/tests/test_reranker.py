"""`ManyvecReranker` and `ManyvecRerankRetriever`: order, copies and traces."""

import asyncio
import copy
import json
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from pydantic import ValidationError

import manyvec
from langchain_manyvec import ManyvecReranker, ManyvecRerankRetriever, ManyvecRetriever
from manyvec.testing import HashEncoder, SlowEncoder

FLOAT16 = 2**-10
DOCUMENTS = [
    Document("blue sky", id="a", metadata={"n": 1}),
    Document("red pear", metadata={"relevance_score": 0.123}),
    Document("", id="b"),
    Document("a red apple", id="b", metadata={"nested": {"x": [1]}}),
]


class Fixed(BaseRetriever):
    """First stage that returns fixed documents."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return list(DOCUMENTS)


class BrokenEncoder(HashEncoder):
    def encode_queries(self, queries: Sequence[str]) -> manyvec.TokenBatch:
        raise manyvec.EncoderError("out of memory")


class Recorder(BaseCallbackHandler):
    """Records runs: name, inputs, outputs or error, and parent."""

    def __init__(self) -> None:
        self.runs: dict[Any, dict[str, Any]] = {}

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.runs[run_id] = {"name": kwargs.get("name"), "inputs": inputs, "parent": kwargs.get("parent_run_id")}

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: Any, **kwargs: Any) -> None:
        self.runs[run_id] = {"name": kwargs.get("name"), "inputs": query, "parent": kwargs.get("parent_run_id")}

    def on_chain_end(self, outputs: Any, *, run_id: Any, **kwargs: Any) -> None:
        self.runs[run_id]["outputs"] = outputs

    def on_chain_error(self, error: BaseException, *, run_id: Any, **kwargs: Any) -> None:
        self.runs[run_id]["error"] = error

    def only(self, name: str) -> dict[str, Any]:
        (run,) = [run for run in self.runs.values() if run["name"] == name]
        return run


def texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


@pytest.fixture
def reranker() -> ManyvecReranker:
    return ManyvecReranker(encoder=HashEncoder())


def test_documents_are_sorted_by_score_and_keep_ids_and_metadata(reranker):
    best, *_, last = found = reranker.compress_documents(DOCUMENTS, "red apple")
    assert texts(found) == ["a red apple", "red pear", "blue sky", ""]
    assert (best.id, best.metadata["nested"]) == ("b", {"x": [1]})
    assert best.metadata["score"] == pytest.approx(2, abs=2 * FLOAT16)
    assert best.metadata["relevance_score"] == pytest.approx(1, abs=FLOAT16)
    assert (last.metadata["score"], last.metadata["relevance_score"]) == (-2, 0)


def test_the_score_of_an_earlier_stage_is_replaced(reranker):
    pear = reranker.compress_documents(DOCUMENTS, "red pear")[0]
    assert pear.metadata["relevance_score"] == pytest.approx(1, abs=FLOAT16)


def test_the_given_documents_stay_as_they_are(reranker):
    before = copy.deepcopy(DOCUMENTS)
    reranker.compress_documents(DOCUMENTS, "red apple")
    assert before == DOCUMENTS


def test_scores_can_be_left_out_of_the_metadata():
    recorder = Recorder()
    reranker = ManyvecReranker(encoder=HashEncoder(), scores=False)
    found = reranker.compress_documents(DOCUMENTS, "red apple", [recorder])
    assert found == [DOCUMENTS[3], DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[2]]
    assert recorder.only("ManyvecReranker")["outputs"]["scores"][0] == pytest.approx(2, abs=2 * FLOAT16)
    found[0].metadata["nested"]["x"].clear()
    assert DOCUMENTS[3].metadata["nested"]["x"] == [1]


@pytest.mark.parametrize(("top_n", "n"), [(None, 4), (0, 0), (1, 1), (9, 4)])
def test_at_most_top_n_documents_are_returned(top_n, n):
    assert len(ManyvecReranker(encoder=HashEncoder(), top_n=top_n).compress_documents(DOCUMENTS, "red")) == n


def test_no_documents_return_an_empty_list(reranker):
    assert reranker.compress_documents([], "red") == []


def test_documents_of_an_index_get_the_scores_of_a_search(index):
    retriever = ManyvecRetriever(index=index, k=9)
    retriever.add_documents([DOCUMENTS[0], DOCUMENTS[1], DOCUMENTS[3]])
    searched = retriever.invoke("red apple")
    again = ManyvecReranker(index=index).compress_documents(searched[::-1], "red apple")
    assert [d.metadata["score"] for d in again] == [d.metadata["score"] for d in searched]
    assert texts(again) == texts(searched)


def test_wrong_arguments_are_errors(index):
    with pytest.raises(ValidationError):
        ManyvecReranker(top_n=-1)
    with pytest.raises(ValidationError):
        ManyvecReranker(topn=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="has its own encoder"):
        ManyvecReranker(encoder="minilm", index=index)


async def longest_wait(work: Coroutine[Any, Any, Any]) -> float:
    """Return the longest time in seconds that the event loop was blocked by this work."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            start = time.perf_counter()
            await asyncio.sleep(0.01)
            longest = max(longest, time.perf_counter() - start)

    ticker = asyncio.create_task(tick())
    await work
    ticker.cancel()
    return longest


async def test_encoding_documents_does_not_block_the_event_loop():
    reranker = ManyvecReranker(encoder=SlowEncoder())

    async def three_at_once() -> None:
        found = await asyncio.gather(*(reranker.acompress_documents(DOCUMENTS, "red pear") for _ in range(3)))
        assert [texts(documents)[0] for documents in found] == ["red pear"] * 3

    # A blocked loop would show the encoder's 0.5 s in each run; a busy machine may cause one or two slow runs.
    assert 0 < min([await longest_wait(three_at_once()) for _ in range(3)]) < 0.25


async def test_a_tracer_sees_a_run_with_the_model_and_the_order_before_and_after(reranker):
    for is_async in (False, True):
        recorder = Recorder()
        if is_async:
            await reranker.acompress_documents(DOCUMENTS, "red apple", [recorder])
        else:
            reranker.compress_documents(DOCUMENTS, "red apple", [recorder])
        run = recorder.only("ManyvecReranker")
        assert run["inputs"] == {"query": "red apple", "model": "hash-64", "top_n": None, "ids": ["a", None, "b", "b"]}
        assert run["outputs"]["ids"] == ["b", None, "a", "b"]
        assert run["outputs"]["scores"][0] == pytest.approx(2, abs=2 * FLOAT16)


async def test_an_error_reaches_the_caller_and_the_tracer():
    reranker = ManyvecReranker(encoder=BrokenEncoder())

    async def sync(*arguments: Any) -> Any:
        return reranker.compress_documents(*arguments)

    for call in (sync, reranker.acompress_documents):
        recorder = Recorder()
        with pytest.raises(manyvec.EncoderError):
            await call(DOCUMENTS, "red", [recorder])
        assert isinstance(recorder.only("ManyvecReranker")["error"], manyvec.EncoderError)


async def test_the_runnable_maps_a_query_and_documents_to_documents(reranker):
    recorder = Recorder()
    chain = reranker.as_runnable() | RunnableLambda(texts)
    question = {"query": "red pear", "documents": DOCUMENTS}
    assert chain.invoke(question, {"callbacks": [recorder]})[0] == "red pear"
    assert (await chain.ainvoke(question))[0] == "red pear"
    assert recorder.runs[recorder.only("ManyvecReranker")["parent"]]["name"] == "rerank"


async def test_two_stages_work_as_one_retriever():
    retriever = ManyvecRerankRetriever(retriever=Fixed(), reranker=ManyvecReranker(encoder=HashEncoder(), top_n=2))
    recorder = Recorder()
    assert texts(retriever.invoke("red apple", {"callbacks": [recorder]})) == ["a red apple", "red pear"]
    assert texts(await retriever.ainvoke("red apple")) == ["a red apple", "red pear"]
    names = {run["name"] for run in recorder.runs.values()}
    assert names == {"ManyvecRerankRetriever", "Fixed", "ManyvecReranker"}


@pytest.mark.parametrize("query", ["red apple", "", " "])
def test_scores_of_blank_documents_and_queries_are_what_json_holds(query: str) -> None:
    for found in ManyvecReranker(encoder=HashEncoder(), top_n=9).compress_documents(DOCUMENTS, query):
        json.dumps(found.metadata, allow_nan=False)
