"""Stages are counted once each, and only for whoever asks."""

import threading
import time

import pytest

from manyvec.timing import stage, timings


def test_a_stage_within_another_counts_for_itself_only():
    started = time.perf_counter()
    with timings() as seconds, stage("outer"):
        time.sleep(0.02)
        with stage("inner"):
            time.sleep(0.1)
        with stage("inner"):
            time.sleep(0.1)
    assert seconds["inner"] >= 0.2
    assert seconds["outer"] >= 0.02
    assert sum(seconds.values()) <= time.perf_counter() - started


def test_a_function_is_a_stage_and_one_that_fails_is_counted_too():
    @stage("work")
    def work(fails):
        if fails:
            raise ValueError("failed")
        return 5

    with timings() as seconds:
        assert work(fails=False) == 5
        first = seconds["work"]
        with pytest.raises(ValueError, match="failed"):
            work(fails=True)
    assert 0 < first < seconds["work"]
    assert work(fails=False) == 5


def test_threads_are_timed_apart():
    def worker(found):
        with timings() as seconds, stage("mine"):
            time.sleep(0.01)
        found.append(seconds)

    found = []
    with timings() as seconds:
        threads = [threading.Thread(target=worker, args=(found,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seconds == {}
    assert [set(taken) for taken in found] == [{"mine"}] * 3
