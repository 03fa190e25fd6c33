import asyncio
import time

import pytest

from manyvec.testing.contracts import LoopWatch, RetrieverContract, StoreContract, _with_free_loop


def test_a_loop_that_waits_for_one_call_from_its_start_to_its_end_is_noticed():
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
    with pytest.raises(AssertionError, match="the event loop stood still for 0.3"):
        _with_free_loop(lambda _: blocking())


@pytest.mark.parametrize(("contract", "first"), [(RetrieverContract, "aretrieve"), (StoreContract, "aadd")])
def test_a_suite_that_lacks_a_method_says_which(contract, first):
    with pytest.raises(TypeError, match=f"abstract methods? '?{first}'?"):
        contract()
