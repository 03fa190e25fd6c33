"""`ManyvecRetriever` with many queries at once: batches, threads and event loops."""

import asyncio
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import ClassVar

import pytest
from langchain_core.documents import Document

import manyvec
from langchain_manyvec import ManyvecRetriever
from manyvec import F
from manyvec.testing import HashEncoder, LoopWatch, SlowEncoder

DOCUMENTS = [
    Document("a late interaction", id="a/1", metadata={"year": 2020}),
    Document("an early interaction", id="b 2", metadata={"year": 2024, "nested": {"tags": ["x", None]}}),
    Document("O'Neill; 延迟交互", id="ç'3", metadata={}),
]


@pytest.fixture
def retriever(index: manyvec.Index) -> ManyvecRetriever:
    retriever = ManyvecRetriever(index=index)
    retriever.add_documents(DOCUMENTS)
    return retriever


def ids(documents: Sequence[Document]) -> list[str | None]:
    return [document.id for document in documents]


async def test_fifty_concurrent_queries_each_get_their_own_result(index):
    index.add([{"id": f"d{i}", "text": f"word{i} interaction", "metadata": {"year": i}} for i in range(50)])
    retriever = ManyvecRetriever(index=index, k=1)

    found = await asyncio.gather(*(retriever.ainvoke(f"word{i}") for i in range(50)))

    assert [ids(documents) for documents in found] == [[f"d{i}"] for i in range(50)]


async def test_k_and_filter_of_an_async_call_are_used(retriever):
    assert await retriever.ainvoke("interaction", k=0) == []
    assert ids(await retriever.ainvoke("late interaction", filter=F("year") > 2020)) == ["b 2"]


async def test_abatch_returns_results_in_the_order_of_the_queries(retriever):
    found = await retriever.abatch(["late", "early", "延迟交互"], k=1)

    assert [ids(documents) for documents in found] == [["a/1"], ["b 2"], ["ç'3"]]


class CountingEncoder(HashEncoder):
    """Records which queries were encoded together."""

    passes: ClassVar[list[list[str]]] = []

    def encode_queries(self, queries: Sequence[str]) -> manyvec.TokenBatch:
        self.passes.append(list(queries))
        if "unlucky" in queries:
            raise manyvec.EncoderError("unlucky")
        return super().encode_queries(queries)


@pytest.fixture
def counting(retriever) -> ManyvecRetriever:
    CountingEncoder.passes.clear()
    return ManyvecRetriever.from_uri(retriever.index.uri, encoder=CountingEncoder(), k=1)


async def test_a_batch_encodes_all_its_queries_in_one_pass(counting):
    queries = ["late", "early", "延迟交互", "late"]
    expected = [["a/1"], ["b 2"], ["ç'3"], ["a/1"]]

    assert [ids(found) for found in counting.batch(queries)] == expected
    assert [ids(found) for found in await counting.abatch(queries)] == expected
    assert [ids(found) for found in counting.batch(queries, {"max_concurrency": 1})] == expected
    assert CountingEncoder.passes == [queries] * 3
    assert counting.batch([]) == await counting.abatch([]) == []


async def test_a_batch_returns_what_invoke_returns_with_the_same_options(retriever):
    queries = ["late interaction", "early", "交互", "nothing"]
    for options in (
        {},
        {"k": 0},
        {"k": 2},
        {"filter": F("year") > 2020},
        {"score_threshold": 0.4},
        {"depth": 1, "evidence": True},
    ):
        expected = [retriever.invoke(query, **options) for query in queries]
        assert retriever.batch(queries, **options) == expected
        assert await retriever.abatch(queries, **options) == expected
    assert retriever.bind(k=1).batch(queries) == retriever.batch(queries, k=1)


async def test_equal_queries_of_a_batch_share_no_document(retriever):
    first, second = retriever.batch(["early", "early"], k=1)
    first[0].metadata["nested"]["tags"].clear()

    assert second[0].metadata["nested"] == {"tags": ["x", None]}


async def test_each_query_of_a_batch_has_its_own_run(counting, new_recorder):
    for call in (counting.batch, counting.abatch):
        recorder = new_recorder()
        found = call(["late", "early"], [{"callbacks": [recorder], "metadata": {"n": n}} for n in (1, 2)], k=1)
        if call == counting.abatch:
            await found

        assert sorted((query, metadata["n"]) for query, metadata in recorder.started) == [("early", 2), ("late", 1)]
        assert sorted(recorder.ended) == [["a/1"], ["b 2"]]


async def test_a_failing_query_does_not_affect_the_others_of_its_batch(counting, new_recorder):
    for call in (counting.batch, counting.abatch):
        recorder = new_recorder()
        found = call(["late", "unlucky", 5], {"callbacks": [recorder]}, return_exceptions=True)
        late, unlucky, number = await found if call == counting.abatch else found

        assert ids(late) == ["a/1"]
        assert isinstance(unlucky, manyvec.EncoderError) and isinstance(number, manyvec.InputError)
        assert len(recorder.started) == 3 and len(recorder.errors) == 2 and recorder.ended == [["a/1"]]
    with pytest.raises(manyvec.EncoderError):
        counting.batch(["late", "unlucky"])


async def test_a_batch_with_a_wrong_filter_or_argument_is_an_error(retriever):
    with pytest.raises(manyvec.FilterError, match="'lang'"):
        retriever.batch(["late", "early"], filter={"lang": "en"})
    with pytest.raises(TypeError, match="filters"):
        await retriever.abatch(["late", "early"], filters={"year": 2024})


async def test_encoding_queries_does_not_block_the_event_loop(retriever):
    slow = ManyvecRetriever.from_uri(retriever.index.uri, encoder=SlowEncoder())
    longest = []
    for _ in range(3):
        async with LoopWatch() as watch:
            found = await asyncio.gather(*(slow.ainvoke("early interaction", k=1) for _ in range(3)))
            found += await slow.abatch(["early interaction"] * 3, k=1)
        assert [ids(documents) for documents in found] == [["b 2"]] * 6
        longest.append(watch.longest)

    # A blocked loop would show the encoder's 0.5 s in each run; a busy machine may cause one or two slow runs.
    assert 0 < min(longest) < 0.25


class NapEncoder(HashEncoder):
    """Takes 20 ms to encode a query."""

    def encode_queries(self, queries: Sequence[str]) -> manyvec.TokenBatch:
        time.sleep(0.02)
        return super().encode_queries(queries)


async def test_two_hundred_concurrent_calls_are_correct_and_do_not_block_the_event_loop(tmp_path):
    index = manyvec.Index.create(tmp_path / "many", NapEncoder())
    index.add([{"id": f"d{i}", "text": f"word{i} interaction"} for i in range(200)])
    retriever = ManyvecRetriever(index=index, k=1)
    # The first search of a process imports modules and loads the index.
    retriever.invoke("word0")

    longest = []
    for _ in range(3):
        async with LoopWatch() as watch:
            found = await asyncio.gather(*(retriever.ainvoke(f"word{i}") for i in range(200)))
        assert [ids(documents) for documents in found] == [[f"d{i}"] for i in range(200)]
        longest.append(watch.longest)

    # A blocked loop would show 4 s in each run; a busy machine may cause one or two slow runs.
    assert 0 < min(longest) < 0.25


REQUEST: ContextVar[str] = ContextVar("REQUEST", default="none")


class ListeningEncoder(HashEncoder):
    """Encodes the context variable `REQUEST` instead of the query."""

    def encode_queries(self, queries: Sequence[str]) -> manyvec.TokenBatch:
        return super().encode_queries([REQUEST.get()] * len(queries))


async def test_an_async_search_runs_in_the_context_of_its_caller(retriever):
    listening = ManyvecRetriever.from_uri(retriever.index.uri, encoder=ListeningEncoder())
    REQUEST.set("early")

    assert ids(await listening.ainvoke("late", k=1)) == ["b 2"]
