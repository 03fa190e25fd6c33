"""Test suites that every adapter of a role must pass, whatever its framework. Running them needs pytest."""

from __future__ import annotations

import asyncio
import copy
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from manyvec.errors import InputError, ManyvecError
from manyvec.filters import F, Filter
from manyvec.testing.encoders import CountingEncoder, HashEncoder, SlowEncoder

if TYPE_CHECKING:
    from manyvec.index import Index

T = TypeVar("T")


@dataclass(frozen=True)
class ScoredDocument:
    """A document as contracts exchange it with adapters, independent of any framework's classes.

    Attributes:
        id: Id of the document; None if the framework assigned none.
        text: Its text.
        metadata: Its metadata.
        score: Score of a result, on ColBERT's scale (the sum over query tokens); None for input.
    """

    id: str | None
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None


class _Contract:
    """Base of the suites. Subclass a suite, implement its abstract methods for your adapter, and run pytest.

    The abstract methods convert between `ScoredDocument` and the framework's own classes.
    """

    documents = (
        ScoredDocument("apple", "red apple", {"year": 2021}),
        ScoredDocument("pie", "green apple pie", {"year": 2022, "tags": ["sweet", None], "ünïcode": {"quote'd": 1.5}}),
        ScoredDocument("tea", "green tea", {"year": 2023}),
    )

    def _index(self, folder: Path, encoder: Any = None) -> Index:
        from manyvec.index import Index

        index = Index.create(folder, encoder or HashEncoder(), filter_columns={"year": int})
        index.add({"id": d.id, "text": d.text, "metadata": d.metadata} for d in self.documents)
        return index


class RetrieverContract(_Contract, ABC):
    """Tests for a retriever over an index."""

    @abstractmethod
    def make(self, index: Index, *, k: int = 3, filter: Filter | None = None) -> Any: ...

    @abstractmethod
    def retrieve(self, retriever: Any, query: str) -> list[ScoredDocument]: ...

    @abstractmethod
    async def aretrieve(self, retriever: Any, query: str) -> list[ScoredDocument]: ...

    def test_hits_are_ordered_by_score_and_have_the_scores_of_index_search(self, tmp_path: Path) -> None:
        index = self._index(tmp_path / "index")
        found = self.retrieve(self.make(index), "green apple")
        assert [(f.id, f.score) for f in found] == [(h.id, h.score) for h in index.search("green apple", 3)]
        # Both words are in the pie, one in each of the others; vectors are stored in half precision.
        assert found[0].id == "pie"
        assert abs((found[0].score or 0) - 2) < 2e-3

    def test_text_and_metadata_are_returned_as_stored(self, tmp_path: Path) -> None:
        retriever = self.make(self._index(tmp_path / "index"))
        expected = {d.id: d for d in self.documents}
        for found in self.retrieve(retriever, "green apple"):
            assert found.text == expected[found.id].text
            assert expected[found.id].metadata.items() <= found.metadata.items()

    def test_at_most_k_documents_are_returned(self, tmp_path: Path) -> None:
        index = self._index(tmp_path / "index")
        assert [len(self.retrieve(self.make(index, k=k), "apple")) for k in (1, 2, 50)] == [1, 2, 3]

    def test_only_documents_that_pass_the_filter_are_returned(self, tmp_path: Path) -> None:
        index = self._index(tmp_path / "index")
        found = self.retrieve(self.make(index, filter=F("year") > 2021), "red apple")
        assert {f.id for f in found} == {"pie", "tea"}

    def test_an_empty_index_and_an_empty_query_return_nothing(self, tmp_path: Path) -> None:
        from manyvec.index import Index

        assert self.retrieve(self.make(Index.create(tmp_path / "empty", HashEncoder())), "apple") == []
        assert self.retrieve(self.make(self._index(tmp_path / "index")), "") == []

    def test_changing_a_result_does_not_change_later_results(self, tmp_path: Path) -> None:
        retriever = self.make(self._index(tmp_path / "index"))
        before = self.retrieve(retriever, "green tea")
        expected = repr(before)
        cast(Any, before[0].metadata).clear()
        assert repr(self.retrieve(retriever, "green tea")) == expected

    def test_async_returns_the_same_and_does_not_block_the_event_loop(self, tmp_path: Path) -> None:
        retriever = self.make(self._index(tmp_path / "index", SlowEncoder()))
        expected = self.retrieve(retriever, "green tea")
        assert _with_free_loop(lambda _: self.aretrieve(retriever, "green tea")) == expected

    def test_twenty_concurrent_calls_return_the_results_of_twenty_single_calls(self, tmp_path: Path) -> None:
        retriever = self.make(self._index(tmp_path / "index"))
        queries = [f"{a} {b}" for a in ("red", "green", "apple", "tea") for b in ("red", "pie", "tea", "x", "apple")]

        async def together() -> list[list[ScoredDocument]]:
            return await asyncio.gather(*(self.aretrieve(retriever, query) for query in queries))

        assert asyncio.run(together()) == [self.retrieve(retriever, query) for query in queries]

    def test_an_index_deleted_while_in_use_raises_a_manyvec_error(self, tmp_path: Path) -> None:
        import pytest

        retriever = self.make(self._index(tmp_path / "index"))
        self.retrieve(retriever, "tea")
        shutil.rmtree(tmp_path / "index")
        with pytest.raises(ManyvecError):
            self.retrieve(retriever, "tea")


class RerankerContract(_Contract, ABC):
    """Tests for a reranker. `make` gets an encoder, or an index that holds some of the documents."""

    @abstractmethod
    def make(self, *, encoder: Any = None, index: Index | None = None, top_n: int = 10) -> Any: ...

    @abstractmethod
    def to_inputs(self, documents: Sequence[ScoredDocument]) -> list[Any]:
        """Convert to the framework's classes, with the scores of a first stage if that is usual there."""

    @abstractmethod
    def rerank(self, reranker: Any, inputs: list[Any], query: str) -> list[ScoredDocument]: ...

    @abstractmethod
    async def arerank(self, reranker: Any, inputs: list[Any], query: str) -> list[ScoredDocument]: ...

    def test_documents_are_ordered_by_exact_score(self) -> None:
        found = self.rerank(self.make(encoder=HashEncoder()), self.to_inputs(self.documents), "green apple")
        assert found[0].id == "pie"
        assert abs((found[0].score or 0) - 2) < 2e-3
        scores = [f.score or 0 for f in found]
        assert scores == sorted(scores, reverse=True)
        assert {f.id for f in found} == {"apple", "pie", "tea"}

    def test_at_most_top_n_documents_are_returned_and_no_input_returns_nothing(self) -> None:
        reranker = self.make(encoder=HashEncoder(), top_n=2)
        assert len(self.rerank(reranker, self.to_inputs(self.documents), "green apple")) == 2
        assert self.rerank(reranker, [], "green apple") == []

    def test_equal_scores_keep_the_input_order_and_empty_documents_come_last(self) -> None:
        inputs = self.to_inputs([ScoredDocument("none", ""), ScoredDocument("b", "tea"), ScoredDocument("a", "tea")])
        assert [f.id for f in self.rerank(self.make(encoder=HashEncoder()), inputs, "tea")] == ["b", "a", "none"]

    def test_the_input_is_not_modified(self) -> None:
        inputs = self.to_inputs(self.documents)
        before = copy.deepcopy(inputs)
        found = self.rerank(self.make(encoder=HashEncoder()), inputs, "green apple")
        assert inputs == before
        for f in found:
            cast(Any, f.metadata).clear()
        assert inputs == before

    def test_metadata_is_kept(self) -> None:
        expected = {d.id: d.metadata for d in self.documents}
        for f in self.rerank(self.make(encoder=HashEncoder()), self.to_inputs(self.documents), "green apple"):
            assert expected[f.id].items() <= f.metadata.items()

    def test_documents_in_the_index_are_not_encoded_again_and_score_the_same(self, tmp_path: Path) -> None:
        import pytest

        encoder = CountingEncoder()
        index = self._index(tmp_path / "index", encoder)
        encoder.texts.clear()
        others = [ScoredDocument("new", "green apple tree"), ScoredDocument("tea", "another green apple text")]
        # Without metadata, because a reranker without an index may encode it as well.
        inputs = self.to_inputs([*(ScoredDocument(document.id, document.text) for document in self.documents), *others])
        found = self.rerank(self.make(index=index), inputs, "green apple")
        assert encoder.texts == [document.text for document in others]
        alone = self.rerank(self.make(encoder=HashEncoder()), inputs, "green apple")
        scores = {(f.id, f.text): f.score for f in found}
        assert len(scores) == len(inputs)
        assert scores == pytest.approx({(f.id, f.text): f.score for f in alone}, abs=1e-5)

    def test_async_returns_the_same_and_does_not_block_the_event_loop(self) -> None:
        reranker, inputs = self.make(encoder=SlowEncoder()), self.to_inputs(self.documents)
        expected = self.rerank(reranker, inputs, "green tea")
        assert _with_free_loop(lambda _: self.arerank(reranker, inputs, "green tea")) == expected


class StoreContract(_Contract, ABC):
    """Tests for a document store: add, replace, get, delete, search."""

    @abstractmethod
    def make(self, folder: Path, encoder: Any) -> Any:
        """Open the store in the folder, or create one with the int filter column `year`."""

    @abstractmethod
    def add(self, store: Any, documents: Sequence[ScoredDocument]) -> list[str]: ...

    @abstractmethod
    def get(self, store: Any, ids: list[str]) -> list[ScoredDocument]: ...

    @abstractmethod
    def delete(self, store: Any, ids: list[str]) -> None: ...

    @abstractmethod
    def search(self, store: Any, query: str, k: int, filter: Filter | None = None) -> list[ScoredDocument]: ...

    @abstractmethod
    async def aadd(self, store: Any, documents: Sequence[ScoredDocument]) -> list[str]: ...

    @abstractmethod
    async def asearch(self, store: Any, query: str, k: int) -> list[ScoredDocument]: ...

    def _filled(self, folder: Path) -> Any:
        store = self.make(folder, HashEncoder())
        assert self.add(store, self.documents) == ["apple", "pie", "tea"]
        return store

    def test_stored_documents_are_returned_by_get_and_search(self, tmp_path: Path) -> None:
        store = self._filled(tmp_path / "store")
        assert self.get(store, ["tea", "unknown", "pie"]) == [self.documents[2], self.documents[1]]
        found = self.search(store, "green apple", 1)[0]
        assert (found.id, found.text, found.metadata) == ("pie", "green apple pie", self.documents[1].metadata)

    def test_adding_an_id_again_replaces_the_document(self, tmp_path: Path) -> None:
        store = self._filled(tmp_path / "store")
        self.add(store, [*self.documents, ScoredDocument("tea", "black coffee", {"new key": 1})])
        assert len(self.search(store, "green apple", 99)) == 3
        assert self.get(store, ["tea"]) == [ScoredDocument("tea", "black coffee", {"new key": 1})]
        assert self.search(store, "black coffee", 1)[0].id == "tea"

    def test_deleted_documents_are_not_found_and_unknown_ids_are_ignored(self, tmp_path: Path) -> None:
        store = self._filled(tmp_path / "store")
        self.delete(store, ["pie", "unknown"])
        assert {f.id for f in self.search(store, "green apple", 9)} == {"apple", "tea"}
        assert self.get(store, ["pie"]) == []
        self.delete(store, [])
        assert len(self.search(store, "green apple", 9)) == 2

    def test_only_documents_that_pass_the_filter_are_returned(self, tmp_path: Path) -> None:
        store = self._filled(tmp_path / "store")
        found = self.search(store, "red apple", 9, F("year").in_([2022, 2023]))
        assert {f.id for f in found} == {"pie", "tea"}

    def test_a_second_store_on_the_same_folder_finds_the_same(self, tmp_path: Path) -> None:
        first = self._filled(tmp_path / "store")
        second = self.make(tmp_path / "store", HashEncoder())
        assert self.search(second, "green apple", 3) == self.search(first, "green apple", 3)

    def test_a_document_that_cannot_be_stored_is_named_and_nothing_is_stored(self, tmp_path: Path) -> None:
        import pytest

        store = self.make(tmp_path / "store", HashEncoder())
        for bad in (
            ScoredDocument("bad", "text", {"an object": object()}),
            ScoredDocument("bad", "text", {"year": "x"}),
        ):
            with pytest.raises(InputError, match="'bad'"):
                self.add(store, [ScoredDocument("good", "text"), bad])
        assert self.search(store, "text", 9) == []

    def test_a_document_without_text_is_left_out(self, tmp_path: Path) -> None:
        store = self.make(tmp_path / "store", HashEncoder())
        self.add(store, [ScoredDocument("good", "text"), ScoredDocument("blank", " \n")])
        assert [found.id for found in self.search(store, "text", 9)] == ["good"]

    def test_async_does_the_same_and_does_not_block_the_event_loop(self, tmp_path: Path) -> None:
        stores = [self.make(tmp_path / str(i), SlowEncoder()) for i in range(3)]
        assert _with_free_loop(lambda i: self.aadd(stores[i], self.documents)) == ["apple", "pie", "tea"]
        expected = self.search(stores[0], "green tea", 2)
        assert _with_free_loop(lambda _: self.asearch(stores[0], "green tea", 2)) == expected


class ToolRetrieverContract(ABC):
    """Tests for a component that selects the tools that fit a request."""

    @abstractmethod
    def make(self, tools: Sequence[Callable[..., Any]], k: int, encoder: Any) -> Any: ...

    @abstractmethod
    def select(self, retriever: Any, request: str) -> list[str]:
        """Return the names of the selected tools, in any order."""

    @abstractmethod
    async def aselect(self, retriever: Any, request: str) -> list[str]: ...

    def test_the_tool_that_fits_is_selected(self) -> None:
        retriever = self.make(_tools(), 1, HashEncoder())
        assert self.select(retriever, "what will the weather be in Lima") == ["get_weather"]
        assert self.select(retriever, "please send a letter to my aunt") == ["send_letter"]

    def test_a_tool_is_selected_by_its_exact_name(self) -> None:
        tools = _tools()
        retriever = self.make(tools, 1, HashEncoder())
        names = [tool.__name__ for tool in tools]
        assert [self.select(retriever, name) for name in names] == [[name] for name in names]

    def test_at_most_k_tools_are_selected(self) -> None:
        assert [len(self.select(self.make(_tools(), k, HashEncoder()), "the weather")) for k in (1, 3, 7)] == [1, 3, 7]

    def test_async_selects_the_same_and_does_not_block_the_event_loop(self) -> None:
        retriever = self.make(_tools(), 2, SlowEncoder())
        expected = self.select(retriever, "the weather in Lima")
        assert sorted(asyncio.run(self.aselect(retriever, "the weather in Lima"))) == sorted(expected)
        # A different request each time, because a selection may be cached.
        found = _with_free_loop(lambda i: self.aselect(retriever, f"the weather in Lima, day {i}"))
        assert "get_weather" in found


class LoopWatch:
    """Measure how long the event loop is blocked.

        async with LoopWatch() as watch:
            await retriever.ainvoke("query")
        assert watch.longest < 0.05

    Attributes:
        longest: Longest time that the loop was blocked, in seconds.
    """

    longest = 0.0

    async def __aenter__(self) -> LoopWatch:
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *error: object) -> None:
        # Blocking up to the very end is only seen at the next tick.
        await asyncio.sleep(2 * _TICK)
        self._task.cancel()

    async def _tick(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(_TICK)
            self.longest = max(self.longest, time.perf_counter() - started - _TICK)


_TICK = 0.005


def _with_free_loop(work: Callable[[int], Coroutine[Any, Any, T]]) -> T:
    """Run `work` and return its result, requiring that it does not block the event loop.

    `work` gets up to three attempts: work that waits for `SlowEncoder` on the loop blocks it every time, while on a
    busy machine any work may do so once or twice.
    """

    async def watched(i: int) -> tuple[T, float]:
        async with LoopWatch() as watch:
            result = await work(i)
        return result, watch.longest

    for i in range(3):
        result, longest = asyncio.run(watched(i))
        if longest < SlowEncoder.seconds / 2:
            return result
    raise AssertionError(f"the event loop was blocked for {longest:.2f} s in each of three attempts")


def _tools() -> list[Callable[..., Any]]:
    def tool_of(name: str, description: str) -> Callable[..., Any]:
        def tool(text: str) -> str:
            return f"{name}: {text}"

        tool.__name__ = tool.__qualname__ = name
        tool.__doc__ = description
        return tool

    described = {"get_weather": "Tell the weather in a city", "send_letter": "Send a letter to somebody"}
    described |= {f"job_{i}": f"Do the job number {i}" for i in range(20)}
    # Its name occurs in the descriptions of others.
    described |= {"job": "Anything else"}
    return [tool_of(name, description) for name, description in described.items()]
