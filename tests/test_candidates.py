"""Codebooks and centroid lists: what they find, against what scoring everything finds."""

import json
import logging
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import lancedb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyvec import F, Index, InputError, TokenBatch
from manyvec.candidates import Auto, Exhaustive
from manyvec.retrieval.centroid_lists import _largest
from manyvec.storage import cache
from manyvec.storage.cache import CachedVersion
from manyvec.storage.maintenance.optimize import extend_lists
from manyvec.testing import HashEncoder
from manyvec.vectors.codebook import _unit

ENCODER = HashEncoder(32)
N = 500
# Small enough for a small index to have candidates at all.
SMALL = Auto(exhaustive_tokens=2_000, depth_tokens=3_000, min_depth=50)


def texts(n, seed=0):
    """Thirty words each, of a thousand."""
    words = np.random.default_rng(seed).integers(0, 1_000, size=(n, 30))
    return [" ".join(f"w{word}" for word in row) for row in words]


TEXTS = texts(N)
QUERIES = [" ".join(text.split()[5:12]) for text in TEXTS[:40]]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An index with centroid lists, not to be changed."""
    index = Index.create(tmp_path_factory.mktemp("lists") / "index", ENCODER, filter_columns={"n": int})
    index.candidates = SMALL
    index.add({"id": f"{i:05d}", "text": text, "metadata": {"n": i}} for i, text in enumerate(TEXTS))
    index.optimize()
    return index


@pytest.fixture
def index(built, tmp_path):
    """A copy of it, to be changed."""
    import shutil

    shutil.copytree(built.uri, tmp_path / "index")
    return opened(tmp_path / "index")


def opened(uri, candidates=SMALL):
    index = Index.open(uri, ENCODER)
    index.candidates = candidates
    return index


def exhaustive(index):
    return opened(index.uri, Exhaustive())


def overlap(found, expected):
    pairs = zip(found, expected, strict=True)
    return np.mean([len({hit.id for hit in a} & {hit.id for hit in b}) / len(b) for a, b in pairs])


def log_of(index, caplog, **options):
    with caplog.at_level(logging.DEBUG, logger="manyvec.retrieval.candidates"):
        caplog.clear()
        hits = index.search(QUERIES[0], k=10, **options)
    return hits, caplog.messages[-1]


def test_an_index_is_built_and_searched_without_llvmlite_as_with_it(index):
    """In a process that cannot import it, over the same documents: lists, candidates and scores are torch's."""
    code = f"""
import json, sys
sys.modules["llvmlite"] = None
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_candidates import QUERIES, opened
from manyvec.vectors.backend import default_backend
from manyvec.vectors.torch_backend import TorchBackend
assert default_backend() == TorchBackend()
index = opened({index.uri!r})
kept = [[(hit.id, hit.score) for hit in hits] for hits in index.search_many(QUERIES[:8])]
texts = [f"novel{{i}} " + query for i, query in enumerate(QUERIES)]
index.add({{"id": f"new-{{i}}", "text": text, "metadata": {{"n": i}}}} for i, text in enumerate(texts))
index.optimize()
print(json.dumps([kept, [[hit.id for hit in index.search(f"novel{{i}}", 1)] for i in range(8)]]))
"""
    expected = [[(hit.id, hit.score) for hit in hits] for hits in index.search_many(QUERIES[:8])]
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    kept, new = json.loads(process.stdout)
    for theirs, ours in zip(kept, expected, strict=True):
        assert [id for id, _ in theirs] == [id for id, _ in ours]
        np.testing.assert_allclose([score for _, score in theirs], [score for _, score in ours], rtol=1e-5)
    assert new == [[f"new-{i}"] for i in range(8)]


def test_lists_find_what_scoring_everything_finds(built):
    expected = exhaustive(built).search_many(QUERIES, k=10)
    found = built.search_many(QUERIES, k=10)
    assert overlap(found, expected) >= 0.985
    assert [hits[0] for hits in found] == [hits[0] for hits in expected]
    shuffled = expected[1:] + expected[:1]
    assert overlap(found, shuffled) < 0.5


def test_deeper_looks_find_more(built):
    expected = exhaustive(built).search_many(QUERIES, k=10)
    overlaps = [overlap(built.search_many(QUERIES, k=10, depth=depth), expected) for depth in (10, 30, 200)]
    assert overlaps == sorted(overlaps)
    assert overlaps[-1] > overlaps[0]


def test_the_log_says_what_was_chosen_and_why(built, index, tmp_path, caplog):
    assert log_of(built, caplog)[1] == "centroid lists and BM25 choose 100 of 500 documents in scope"
    assert "they are few" in log_of(built, caplog, filter=F("n") < 60)[1]
    index.add({"id": f"new {i}", "text": text} for i, text in enumerate(texts(200, seed=1)))
    assert "less than three quarters" in log_of(index, caplog)[1]
    plain = Index.create(tmp_path / "plain", ENCODER)
    plain.candidates = SMALL
    plain.add({"id": str(i), "text": text} for i, text in enumerate(TEXTS))
    assert "there are no centroid lists" in log_of(plain, caplog)[1]


@pytest.mark.parametrize(("condition", "n"), [(F("n") < 0, 0), (F("n") == 7, 1), (F("n") < 10, 10), (F("n") < 490, 10)])
def test_a_filter_that_keeps_few_or_many_gives_exact_results(built, condition, n):
    expected = exhaustive(built).search_many(QUERIES[:10], k=10, filter=condition)
    found = built.search_many(QUERIES[:10], k=10, filter=condition)
    assert all(len(hits) == n for hits in found)
    if n:
        assert overlap(found, expected) >= 0.985


def test_new_changed_and_deleted_documents_are_right_before_and_after_the_next_optimize(index):
    index.search(QUERIES[0])
    index.add([{"id": "new", "text": QUERIES[0]}, {"id": "00001", "text": QUERIES[0] + " changed"}])
    index.delete("00000")
    for _ in range(2):
        hits = index.search(QUERIES[0], k=5)
        assert [hit.id for hit in hits[:2]] == ["00001", "new"]
        assert "00000" not in [hit.id for hit in hits]
        assert overlap([hits], [exhaustive(index).search(QUERIES[0], k=5)]) == 1
        index.optimize()
    lists = index._reader.lists.over(index._reader.current())
    assert len(lists.uncovered) == 0


def test_a_codebook_is_drawn_anew_when_the_corpus_has_outgrown_it(index):
    before = index._store.snapshot().assignments().codebook
    index.add({"id": f"more {i}", "text": text} for i, text in enumerate(texts(2_000, seed=2)))
    index.optimize()
    after = index._store.snapshot().assignments()
    assert len(after.codebook) == 2 * len(before)
    assert len(after) == index.count()
    tables = lancedb.connect(index.uri).list_tables().tables
    assert sum(table.startswith("codebook_") for table in tables) == 1
    expected = exhaustive(index).search_many(QUERIES, k=10)
    assert overlap(index.search_many(QUERIES, k=10, depth=200), expected) >= 0.985


class StopError(Exception):
    pass


def test_an_optimize_that_is_stopped_half_way_leaves_the_old_lists_and_the_next_completes_it(index, monkeypatch):
    expected = index.search(QUERIES[0], k=10)
    index.add({"id": f"more {i}", "text": text} for i, text in enumerate(texts(2_000, seed=2)))
    calls = []

    def stop_at_the_third(assignments, add=index._store.centroids.add_assignments):
        calls.append(assignments)
        if len(calls) == 3:
            raise StopError
        add(assignments)

    monkeypatch.setattr(index._store.centroids, "add_assignments", stop_at_the_third)
    old = index._store.snapshot().assignments().codebook.fingerprint
    with pytest.raises(StopError):
        extend_lists(index._store, more_than=0, window_bytes=2**20)
    again = opened(index.uri)
    assert again._store.snapshot().assignments().codebook.fingerprint == old
    assert again.search(QUERIES[0], k=1)[0].id == expected[0].id
    again.optimize()
    assert again._store.snapshot().assignments().codebook.fingerprint != old
    assert len(again._store.snapshot().assignments()) == again.count()
    tables = lancedb.connect(index.uri).list_tables().tables
    assert sum(table.startswith(("codebook_", "assigned_")) for table in tables) == 2
    assert overlap([again.search(QUERIES[0], k=10)], [exhaustive(again).search(QUERIES[0], k=10)]) >= 0.9


@pytest.mark.parametrize("weight", [0, 0.3])
def test_a_document_that_a_first_stage_returns_twice_is_one_hit(built, weight):
    class Twice:
        def find(self, query, scope, depth):
            return np.array([7, 3, 5, 3, 7])

    found = opened(built.uri, Twice()).search(QUERIES[0], k=N, lexical_weight=weight)
    assert len({hit.id for hit in found}) == len(found) and {"00003", "00005", "00007"} <= {hit.id for hit in found}
    assert weight or len(found) == 3


def slow_down(monkeypatch):
    """Read a document at a time, each in 10 ms; return a list that grows with each."""
    read, windows = cache._read_window, []

    def slow(*args, **options):
        windows.append(args)
        time.sleep(0.01)
        return read(*args, **options)

    monkeypatch.setattr(cache, "LOAD_WINDOW_BYTES", 64)
    monkeypatch.setattr(cache, "_read_window", slow)
    return windows


def wait_until_filled(index):
    index._reader._filling.join(timeout=60)
    assert not index._reader._filling.is_alive()


def test_an_index_with_lists_answers_from_disk_first_and_its_vectors_follow(built, monkeypatch):
    seen, refreshed = [], CachedVersion.refreshed

    def watched(self, snapshot, budget, **options):
        seen.append(refreshed(self, snapshot, budget, **options))
        return seen[-1]

    monkeypatch.setattr(CachedVersion, "refreshed", watched)
    index = opened(built.uri)
    first = index.search_many(QUERIES)
    wait_until_filled(index)
    assert index.info().bytes_in_memory == index.info().tokens * 64
    assert [version.bytes_held for version in seen] == [0, index.info().bytes_in_memory]
    assert index.search_many(QUERIES) == first == built.search_many(QUERIES)


def test_documents_that_are_added_while_the_memory_fills_are_found(index, monkeypatch):
    slow_down(monkeypatch)
    for i in range(10):
        index.add([{"id": f"new {i}", "text": f"{TEXTS[i]} new{i}"}])
        assert index.search(f"new{i} {QUERIES[i]}", k=1)[0].id == f"new {i}"
    wait_until_filled(index)
    index.add([{"id": "last", "text": "quite new"}])
    assert index.search("quite new", k=1)[0].id == "last"
    assert index.info().bytes_in_memory == index.info().tokens * 64


def test_an_index_that_is_closed_or_removed_is_not_filled_any_further(index, monkeypatch):
    import shutil

    windows = slow_down(monkeypatch)
    index.search(QUERIES[0])
    filling = index._reader._filling
    index.close()
    filling.join(timeout=60)
    assert not filling.is_alive() and len(windows) < N / 10
    other = opened(index.uri)
    other.search(QUERIES[0])
    shutil.rmtree(index.uri)
    wait_until_filled(other)


def test_an_index_that_is_rebuilt_while_its_memory_fills_is_served_anew(index, monkeypatch):
    import shutil

    windows = slow_down(monkeypatch)
    index.search(QUERIES[0])
    filling = index._reader._filling
    shutil.rmtree(index.uri)
    new = Index.create(index.uri, ENCODER)
    new.add([{"id": "new", "text": QUERIES[0]}])
    assert [hit.id for hit in index.search(QUERIES[0])] == ["new"]
    filling.join(timeout=60)
    assert not filling.is_alive() and windows
    assert [hit.id for hit in index.search(QUERIES[0])] == ["new"]


def test_a_program_that_ends_does_not_wait_for_its_memory_to_be_filled(index):
    code = f"""
import time
from manyvec import Index
from manyvec.candidates import Auto
from manyvec.storage import cache
from manyvec.testing import HashEncoder
read = cache._read_window
cache.LOAD_WINDOW_BYTES = 64
cache._read_window = lambda *args, **options: time.sleep(1) or read(*args, **options)
index = Index.open({str(index.uri)!r}, HashEncoder(32))
index.candidates = Auto(exhaustive_tokens=2_000, depth_tokens=3_000, min_depth=50)
print(index.search({QUERIES[0]!r}, k=1)[0].id)
"""
    # To read all would take 500 seconds.
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (run.stdout.strip(), run.returncode) == (index.search(QUERIES[0], k=1)[0].id, 0), run.stderr


@pytest.mark.parametrize("damage", ["missing", "half-written", "other"])
def test_a_damaged_codebook_is_a_warning_and_exact_search(index, damage, caplog):
    database = lancedb.connect(index.uri)
    name = next(table for table in database.list_tables().tables if table.startswith("codebook_"))
    if damage == "missing":
        database.drop_table(name)
    elif damage == "half-written":
        database.open_table(name).delete("true")
    else:
        table = database.open_table(name).to_arrow()
        database.create_table(name, table.slice(0, 100), mode="overwrite")
    again = opened(index.uri)
    assert again.search(QUERIES[0], k=10) == exhaustive(index).search(QUERIES[0], k=10)
    assert "cannot be read" in caplog.text
    again.optimize()
    assert len(Index.open(index.uri, ENCODER)._store.snapshot().assignments()) == N


def test_documents_all_alike_come_in_the_order_of_their_ids(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.candidates = SMALL
    index.add({"id": f"{i:05d}", "text": "same words again " * 10} for i in range(N))
    index.optimize()
    assert [hit.id for hit in index.search("words", k=3, depth=N)] == ["00000", "00001", "00002"]
    assert len(index.search("never seen", k=10)) == 10


def test_documents_of_one_token_and_queries_of_one_token_are_found(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.candidates = SMALL
    index.add({"id": str(i), "text": f"w{i}" if i % 2 else f"w{i} " * 20} for i in range(600))
    index.optimize()
    for i in (1, 2, 599):
        assert index.search(f"w{i}", k=1)[0].id == str(i)


@pytest.mark.parametrize("depth", [0, -1, 1.5, True])
def test_a_depth_that_is_no_count_is_refused(built, depth):
    with pytest.raises(InputError, match="depth must be a positive integer"):
        built.search("w1", depth=depth)


def test_more_hits_than_candidates_are_still_as_many_as_asked_for(built):
    assert len(built.search(QUERIES[0], k=20, depth=5)) == 20
    assert len(built.search(QUERIES[0], k=400)) == 400
    assert len(built.search(QUERIES[0], k=10_000)) == N


class InContext(HashEncoder):
    """A query's word is not quite the document's, as in models that read a word with those around it."""

    def encode_queries(self, queries):
        tokens = super().encode_queries(queries)
        context = super().encode_queries([" ".join(f"asked {word}" for word in query.split()) for query in queries])
        return TokenBatch.unchecked(_unit(tokens.vectors + context.vectors[1::2]), tokens.offsets)


def test_a_rare_word_is_found_though_no_centroid_is_near_it(tmp_path):
    rare = [f"rare{i}" for i in range(40)]
    index = Index.create(tmp_path / "index", InContext(32))
    index.add({"id": word, "text": f"{text} {word}"} for word, text in zip(rare, TEXTS, strict=False))
    index.add({"id": str(i), "text": text} for i, text in enumerate(TEXTS))
    index.candidates = few = Auto(exhaustive_tokens=2_000, depth_tokens=300, min_depth=5)
    index.optimize()

    def n_found(candidates):
        index.candidates = candidates
        return sum(index.search(word, k=1)[0].id == word for word in rare)

    assert n_found(replace(few, lexical_depth=0, margin=0)) < n_found(Exhaustive()) == n_found(few)


def test_more_candidates_are_taken_where_many_are_much_alike(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    alike = [f"{TEXTS[0]} w{i}" for i in range(60)]
    index.add({"id": str(i), "text": text} for i, text in enumerate(alike + TEXTS))
    index.candidates = SMALL
    index.optimize()
    lists = index._reader.lists.over(index._reader.current())
    tokens = ENCODER.encode_queries([TEXTS[0], TEXTS[1]])
    n_found = [[len(lists.find(t, None, 10, most, k=1, margin=0.05)) for most in (0, 30, 300)] for t in tokens]
    assert n_found[0][:2] == [10, 30]
    assert 61 <= n_found[0][2] < 300
    assert n_found[1] == [10, 10, 10]


@settings(deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]) | st.floats(-1, 1, width=32), min_size=1),
    repeats=st.integers(1, 200),
    n=st.integers(1, 300),
)
def test_the_largest_values_are_those_of_a_full_sort_also_where_only_a_sample_was_sorted(values, repeats, n):
    values = np.array(values * repeats, np.float32)
    positions = _largest(values, n)
    assert len(set(positions)) == min(n, len(values))
    np.testing.assert_array_equal(values[positions], np.sort(values)[::-1][:n])
