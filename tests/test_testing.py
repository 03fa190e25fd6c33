"""`manyvec.testing`: the loop watch, and suites that are not complete."""

import asyncio
import time

import pytest

from manyvec.testing.contracts import LoopWatch, RetrieverContract, StoreContract, _with_free_loop


def test_loop_watch_measures_a_single_blocking_call():
    async def waiting():
        async with LoopWatch() as watch:
            time.sleep(0.1)
        return watch.longest

    assert 0.09 < asyncio.run(waiting()) < 5


def test_work_that_blocks_the_loop_fails_and_work_in_a_thread_passes():
    async def blocking():
        time.sleep(0.3)

    async def threaded(i):
        return await asyncio.to_thread(lambda: time.sleep(0.3) or i)

    assert _with_free_loop(threaded) in (0, 1, 2)
    with pytest.raises(AssertionError, match="the event loop was blocked for 0.3"):
        _with_free_loop(lambda _: blocking())


@pytest.mark.parametrize(("contract", "first"), [(RetrieverContract, "aretrieve"), (StoreContract, "aadd")])
def test_a_suite_without_a_required_method_names_that_method(contract, first):
    with pytest.raises(TypeError, match=f"abstract methods? '?{first}'?"):
        contract()
