"""Awaitable twins of the methods that wait for a model or a disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from manyvec import Document, F, Index, InputError, Reranker, in_thread
from manyvec.testing import HashEncoder, LoopWatch, SlowEncoder

DOCUMENTS = [{"id": f"d{i}", "text": f"word{i} common", "metadata": {"year": i}} for i in range(20)]


async def test_every_twin_does_what_its_method_does(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder())
    assert (await index.aadd(DOCUMENTS)).added == 20
    assert await index.aadd_filter_columns({"year": int}) == {"year": 20}
    condition = F("year") < 5
    assert await index.aids(condition) == index.ids(condition)
    assert await index.acount(filter=condition) == 5
    assert await index.aget(["d3"]) == index.get(["d3"])
    assert await index.asearch("word3", k=2, filter=condition) == index.search("word3", k=2, filter=condition)
    assert await index.asearch_many(["word3", "word4"], 1) == index.search_many(["word3", "word4"], 1)
    np.testing.assert_array_equal(await index.ascore("word3", ["d3", "x"]), index.score("word3", ["d3", "x"]))
    assert await index.adelete(["d3"]) == 1
    await index.aoptimize()
    texts = [Document("a", "red apples"), Document("b", "word3")]
    assert await Reranker(HashEncoder()).arerank("word3", texts) == Reranker(HashEncoder()).rerank("word3", texts)
    assert [i for i, *_ in await Reranker(index=index).aorder("word3", ["x", "word3"])] == [1, 0]
    with pytest.raises(InputError, match="k must be"):
        await index.asearch("word3", k=-1)


async def test_concurrent_searches_each_get_their_own_hits(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder())
    await index.aadd(DOCUMENTS)
    found = await asyncio.gather(*(index.asearch(f"word{i}", 1) for i in range(20)))
    assert [hits[0].id for hits in found] == [f"d{i}" for i in range(20)]


async def test_the_event_loop_goes_on_while_documents_are_encoded(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", SlowEncoder())
    async with LoopWatch() as watch:
        await index.aadd(DOCUMENTS[:2])
    assert watch.longest < 0.8 * SlowEncoder.seconds


async def test_a_twin_calls_the_method_of_a_subclass() -> None:
    class Greeter:
        def greet(self, name: str, *, mark: str = ".") -> str:
            """Greet someone."""
            return f"Hello, {name}{mark}"

        agreet = in_thread(greet)

    class Polite(Greeter):
        def greet(self, name: str, *, mark: str = ".") -> str:
            return f"Good day, {name}{mark}"

    assert await Polite().agreet("Ada", mark="!") == "Good day, Ada!"
    assert Greeter.agreet.__name__ == "agreet"
    assert Greeter.agreet.__doc__ == "Run `greet` in a thread, see there."
