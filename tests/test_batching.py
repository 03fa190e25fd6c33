"""Requests that arrive together: `Batcher`, and `Api.search_many`, which answers them."""

import asyncio
import threading
import time

import pytest

from manyvec import Index, TokenBatch
from manyvec.testing import HashEncoder

pytest.importorskip("pydantic")

from manyvec.server.api import Api, RequestError, Searches
from manyvec.server.batching import Batcher, BusyError
from manyvec.server.records import SearchRequest


class Doubler:
    """Doubles numbers, and records the requests of each call. Negative numbers fail."""

    def __init__(self, seconds=0.0):
        self.calls = []
        self.seconds = seconds

    def __call__(self, requests):
        self.calls.append(list(requests))
        time.sleep(self.seconds)
        return [ValueError(request) if request < 0 else 2 * request for request in requests]


async def test_requests_that_arrive_together_are_answered_in_one_call():
    doubler = Doubler()
    results = await asyncio.gather(*map(Batcher(doubler).submit, range(8)))
    assert results == [0, 2, 4, 6, 8, 10, 12, 14]
    assert doubler.calls == [[0, 1, 2, 3, 4, 5, 6, 7]]


async def test_requests_that_arrive_during_a_call_share_the_next_one():
    doubler = Doubler(seconds=0.1)
    batcher = Batcher(doubler, max_threads=1)
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.05)
    others = [asyncio.create_task(batcher.submit(i)) for i in (2, 3, 4)]
    assert [await first, *await asyncio.gather(*others)] == [2, 4, 6, 8]
    assert doubler.calls == [[1], [2, 3, 4]]


async def test_a_call_answers_only_requests_with_the_same_key_in_the_order_of_the_oldest():
    doubler = Doubler()
    batcher = Batcher(doubler, key=lambda request: request % 3, max_threads=1)
    assert await asyncio.gather(*map(batcher.submit, range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert doubler.calls == [[0, 3, 6], [1, 4], [2, 5]]


async def test_a_slow_call_does_not_delay_requests_with_another_key():
    def answer(requests):
        time.sleep(0.5 * (requests[0] == "slow"))
        return requests

    batcher = Batcher(answer, key=str)
    slow = asyncio.create_task(batcher.submit("slow"))
    await asyncio.sleep(0)
    assert await batcher.submit("fast") == "fast"
    assert not slow.done()
    assert await slow == "slow"


async def test_a_call_takes_at_most_max_batch_requests():
    doubler = Doubler()
    await asyncio.gather(*map(Batcher(doubler, max_batch=3, max_threads=1).submit, range(7)))
    assert [len(call) for call in doubler.calls] == [3, 3, 1]


async def test_at_most_max_threads_calls_run_at_once():
    n_running, most = 0, 0
    lock = threading.Lock()

    def answer(requests):
        nonlocal n_running, most
        with lock:
            n_running += 1
            most = max(most, n_running)
        time.sleep(0.02)
        with lock:
            n_running -= 1
        return requests

    await asyncio.gather(*map(Batcher(answer, max_batch=1, max_threads=2).submit, range(8)))
    assert most == 2


async def test_a_request_that_fails_fails_alone():
    results = await asyncio.gather(*map(Batcher(Doubler()).submit, (1, -2, 3)), return_exceptions=True)
    assert results[::2] == [2, 6]
    assert isinstance(results[1], ValueError)


async def test_a_call_that_fails_fails_its_requests_and_no_later_ones():
    is_broken = True

    def answer(requests):
        if is_broken:
            raise ValueError("broken")
        return requests

    batcher = Batcher(answer)
    with pytest.raises(ValueError, match="broken"):
        await batcher.submit(1)
    is_broken = False
    assert await batcher.submit(2) == 2


async def test_a_request_cancelled_before_its_call_is_dropped_and_the_others_are_answered():
    doubler = Doubler(seconds=0.05)
    batcher = Batcher(doubler, max_threads=1)
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.02)
    others = [asyncio.create_task(batcher.submit(i)) for i in (2, 3, 4)]
    await asyncio.sleep(0)
    others[1].cancel()
    assert await asyncio.gather(first, *others[::2]) == [2, 4, 8]
    assert doubler.calls == [[1], [2, 4]]


async def test_a_request_cancelled_during_its_call_does_not_disturb_the_others():
    batcher = Batcher(Doubler(seconds=0.05))
    tasks = [asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3)]
    await asyncio.sleep(0.02)
    tasks[1].cancel()
    assert await asyncio.gather(*tasks[::2]) == [2, 6]
    assert await batcher.submit(5) == 10


async def test_too_many_waiting_requests_are_refused_and_the_others_are_answered():
    batcher = Batcher(Doubler(seconds=0.05), max_waiting=3, max_threads=1)
    results = await asyncio.gather(*map(batcher.submit, range(5)), return_exceptions=True)
    assert results[:3] == [0, 2, 4]
    assert [type(result) for result in results[3:]] == [BusyError, BusyError]


async def test_a_request_that_takes_too_long_fails_and_later_ones_do_not():
    doubler = Doubler(seconds=0.3)
    batcher = Batcher(doubler, timeout=0.05)
    with pytest.raises(BusyError, match=r"0\.05 seconds"):
        await batcher.submit(1)
    doubler.seconds = 0
    assert await batcher.submit(2) == 4


class RecordingEncoder(HashEncoder):
    """Records the queries of each call."""

    calls: list[list[str]] = []  # noqa: RUF012  # shared on purpose: encoders are frozen

    def encode_queries(self, queries) -> TokenBatch:
        self.calls.append(list(queries))
        return super().encode_queries(queries)


@pytest.fixture
def api(tmp_path):
    index = Index.create(tmp_path / "index", RecordingEncoder(), filter_columns={"year": int})
    colors = ("red", "green", "blue")
    index.add({"id": color, "text": f"a {color} word", "metadata": {"year": i}} for i, color in enumerate(colors))
    RecordingEncoder.calls.clear()
    return Api(index)


def hits(response):
    return [(hit.id, hit.score, hit.passage.text, [word.share for word in hit.words]) for hit in response.hits]


def test_queries_with_equal_options_are_encoded_in_one_pass_with_the_results_of_single_searches(api):
    requests = [SearchRequest(query=query, k=2) for query in ("red", "green word", "", "blue a word")]
    together = api.search_many(requests)
    assert RecordingEncoder.calls == [["red", "green word", "", "blue a word"]]
    assert [hits(response) for response in together] == [hits(api.search(request)) for request in requests]
    assert [response.query for response in together] == ["red", "green word", "", "blue a word"]


async def test_queries_with_different_options_keep_their_own(api):
    later = [{"column": "year", "op": ">=", "value": 1}]
    requests = [
        SearchRequest(query="word", k=1),
        SearchRequest(query="word", k=3, filter=later),
        SearchRequest(query="word", k=3, passage_chars=1),
        SearchRequest(query="word", k=3),
    ]
    first, filtered, short, full = await asyncio.gather(*map(Searches(api).submit, requests))
    assert [len(response.hits) for response in (first, filtered, short, full)] == [1, 2, 3, 3]
    assert {hit.id for hit in filtered.hits} == {"green", "blue"}
    assert [max(len(hit.passage.text) for hit in response.hits) for response in (short, full)] == [1, 12]
    # Two searches share an encoder's call only where they share everything else.
    assert sorted(map(len, RecordingEncoder.calls)) == [1, 1, 2]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (SearchRequest(query="x " * 2000, k=11), "2000 words can have at most 10 hits, got k=11"),
        (SearchRequest.model_construct(query="\ud800", k=10, filter=[], passage_chars=9), "surrogate"),
        (
            SearchRequest(query="a", filter=[{"column": "author", "op": "==", "value": "me"}]),
            "no filter column 'author'",
        ),
        (SearchRequest(query="a", filter=[{"column": "year", "op": "==", "value": 2**70}]), "64 bits"),
    ],
)
async def test_a_search_that_fails_does_not_fail_its_neighbors(api, bad, message):
    requests = [SearchRequest(query="red", k=bad.k), bad, SearchRequest(query="blue", k=bad.k)]
    results = await asyncio.gather(*map(Searches(api).submit, requests), return_exceptions=True)
    assert [result.hits[0].id for result in results[::2]] == ["red", "blue"]
    assert isinstance(results[1], RequestError)
    assert results[1].status == 400 and message in results[1].detail


def test_a_query_that_fails_does_not_fail_those_that_are_encoded_with_it(api):
    queries = ["red", "x " * 2000, "blue"]
    before, failed, after = api.search_many([SearchRequest(query=query, k=11) for query in queries])
    assert (before.hits[0].id, after.hits[0].id) == ("red", "blue")
    assert failed.status == 400


async def test_concurrent_searches_return_the_results_of_single_searches(api):
    requests = [SearchRequest(query=f"{a} {b}") for a in ("red", "green", "blue", "x") for b in ("a", "word", "red")]
    searches = Searches(api)
    together = await asyncio.gather(*map(searches.submit, requests))
    assert len(RecordingEncoder.calls) < len(requests)
    assert [hits(response) for response in together] == [hits(api.search(request)) for request in requests]


async def test_a_search_that_takes_too_long_is_an_error_that_says_the_server_is_busy(tmp_path):
    from manyvec.testing import SlowEncoder

    index = Index.create(tmp_path / "index", SlowEncoder())
    index.add([{"id": "a", "text": "text"}])
    with pytest.raises(RequestError, match="busy") as error:
        await Searches(Api(index), timeout=0.05).submit(SearchRequest(query="text"))
    assert error.value.status == 503
