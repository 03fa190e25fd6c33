"""Texts and filters that searches keep in memory: never of another version, never more than the budget."""

import numpy as np
import pytest

from manyvec import F, Index, timings
from manyvec.storage.rows import RecentRows
from manyvec.testing import HashEncoder

TEXTS = ["red apples", "red wine", "green pears", "red green blue"]


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder(16), filter_columns={"n": int})
    index.add({"id": f"d{n}", "text": text, "metadata": {"n": n}} for n, text in enumerate(TEXTS))
    return index


def reads(version, positions, **options):
    """Return whether LanceDB is asked for the texts of these documents."""
    with timings() as seconds:
        version.rows(np.array(positions), **options)
    return "fetch" in seconds


def test_a_text_is_read_once_and_its_spans_when_they_are_needed(index):
    version = index._reader.current()
    assert reads(version, [2, 0])
    assert not reads(version, [0, 2, 0])
    assert reads(version, [0, 1])
    assert reads(version, [0, 1], spans=True)
    assert not reads(version, [1, 0], spans=True)
    assert not reads(version, [1, 0])


def test_many_queries_find_what_each_finds_alone(index):
    queries = ["red", "green", "nothing of it", "pears"]
    found = index.search_many(queries, k=2, evidence=True)
    assert found == [Index.open(index.uri, HashEncoder(16)).search(query, k=2, evidence=True) for query in queries]


def test_changed_texts_and_metadata_are_found_at_once_from_another_handle_too(index):
    other = Index.open(index.uri, HashEncoder(16))
    for n in range(3):
        index.add([{"id": "d0", "text": f"red apples {n}", "metadata": {"n": 10 + n}}])
        for handle in (index, other):
            hit = handle.search("red apples", k=1, filter=F("n") >= 10)[0]
            assert (hit.text, hit.metadata) == (f"red apples {n}", {"n": 10 + n})
    index.delete(["d0"])
    assert [hit.id for hit in other.search("red apples", k=1)] == ["d1"]
    assert other.search("red apples", filter=F("n") >= 10) == []


def test_hits_do_not_share_their_metadata(index):
    index.search("red apples", k=1)[0].metadata["n"] = "changed by the caller"
    assert index.search("red apples", k=1)[0].metadata == {"n": 0}


def test_more_filters_than_are_remembered_find_the_same_documents(index):
    for _ in range(2):
        for n in range(20):
            expected = [f"d{i}" for i in range(4) if i >= n % 5]
            assert sorted(hit.id for hit in index.search("red", k=9, filter=F("n") >= n % 5)) == expected
            assert index.search("red", filter=F("n") == 100 + n) == []


def test_rows_stay_within_the_budget_and_the_oldest_go_first(index):
    version = index._reader.current()
    needed = RecentRows(10**6)
    needed.read(version.snapshot, version.states, np.arange(1), spans=False)
    for n_held in (1, 10):
        index.add({"id": f"e{n}", "text": "red apples", "metadata": {"n": n}} for n in range(20))
        version = index._reader.current()
        rows = RecentRows(n_held * needed.n_bytes + 99)
        for position in range(len(version)):
            row = rows.read(version.snapshot, version.states, np.array([position]), spans=False)[0]
            assert row["id"] == version.states.ids[position]
            assert rows.n_bytes <= n_held * needed.n_bytes + 99
        last = len(version) - 1
        with timings() as seconds:
            rows.read(version.snapshot, version.states, np.array([last, last]), spans=False)
        # A row that needs more than a tenth of the budget is not held.
        assert ("fetch" in seconds) == (n_held == 1)
        with timings() as seconds:
            rows.read(version.snapshot, version.states, np.array([0]), spans=False)
        assert "fetch" in seconds
