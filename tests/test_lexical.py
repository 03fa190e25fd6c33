"""BM25 with statistics from outside, and what an index tells other programs of itself."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from manyvec import Index, InputError
from manyvec.retrieval.lexical import Lexicon, WordStatistics, counted_words, growth
from manyvec.storage.words import words_of
from manyvec.testing import HashEncoder

QUERY = "the running w3x and w50x, Cafés w3x"


def _texts(n: int, seed: int) -> list[str]:
    """Texts of 3 to 40 words whose frequencies fall like those of a language."""
    draw = random.Random(seed)
    words = [*(f"w{i}x" for i in range(100)), "running", "runs", "the", "café"]
    weights = [1 / (i + 1) for i in range(len(words))]
    return [" ".join(draw.choices(words, weights, k=draw.randint(3, 40))) for _ in range(n)]


def _documents(n: int, seed: int, prefix: str = "d") -> list[dict]:
    return [{"id": f"{prefix}{i}", "text": text, "metadata": {"n": i}} for i, text in enumerate(_texts(n, seed))]


@pytest.fixture(params=[0, 2**30], ids=["on disk", "in memory"])
def index(tmp_path: Path, request: pytest.FixtureRequest) -> Index:
    options = {"filter_columns": {"n": int}, "cache_bytes": request.param}
    index = Index.create(tmp_path / "i", HashEncoder(), **options)
    index.add(_documents(300, 1))
    return index


def _relative_difference(index: Index, where: str | None = None) -> float:
    version = index._reader.current()
    lancedb = version.match(QUERY, len(version), where)
    matches = index._reader.word_matches([QUERY], [len(version)], where)[0]
    ours = matches.scores(words_of(QUERY), index.statistics(QUERY))
    assert len(ours) > 20 and matches.bound == 0
    scores_of = dict(zip(matches.ids.tolist(), ours.tolist(), strict=True))
    assert sorted(scores_of) == sorted(version.states.ids[lancedb.positions].tolist())
    expected = np.array([scores_of[id] for id in version.states.ids[lancedb.positions]])
    return float(np.abs(expected / lancedb.scores - 1).max())


def test_scores_with_an_indexs_own_statistics_are_lancedbs(index: Index) -> None:
    assert _relative_difference(index) < 1e-6
    index.optimize()
    assert _relative_difference(index) < 1e-6
    assert _relative_difference(index, "meta_n < 200") < 1e-6
    index.delete([f"d{i}" for i in range(50)])
    index.add(_documents(60, 2))
    # LanceDB scores rows before and after `optimize` with other statistics; ours are those of all.
    assert 1e-6 < _relative_difference(index) < 0.25
    index.optimize()
    assert _relative_difference(index) < 1e-6


def test_the_statistics_of_parts_add_up(tmp_path: Path, index: Index) -> None:
    parts = []
    for position in range(2):
        parts.append(Index.create(tmp_path / f"part-{position}", HashEncoder()))
        parts[-1].add(_documents(300, 1)[position::2])
    whole, both = index.statistics(QUERY), parts[0].statistics(QUERY) + parts[1].statistics([QUERY])
    assert both == whole
    words = [words_of(document["text"]) for document in _documents(300, 1)]
    assert whole.n_words == sum(map(len, words))
    counts = Counter(word for document in words for word in {*document})
    assert whole.counts == {word: counts[word] for word in ("run", "w3x", "w50x", "cafe")}


def test_a_bound_holds_for_matches_that_were_left_out(index: Index) -> None:
    version, mine = index._reader.current(), index.statistics(QUERY)
    all_statistics = mine + WordStatistics(500, 20_000, {"w3x": 5, "w50x": 1, "run": 400, "cafe": 3})
    words = words_of(QUERY)
    few, many = (index._reader.lexicon.best_matches(version, QUERY, n) for n in (10, 300))
    assert len(few.ids) == 10 < len(many.ids)
    left_out = ~np.isin(many.ids, few.ids)
    highest = many.scores(words, all_statistics)[left_out].max()
    assert highest <= few.bound * growth(mine, all_statistics, words)


def test_an_index_without_words_has_statistics(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "empty", HashEncoder())
    assert index.statistics("w3x").counts == {"w3x": 0}
    found = Lexicon().best_matches(index._reader.current(), "w3x", 10)
    assert found.scores(["w3x"], index.statistics("w3x")).shape == (0,)
    index.add([{"id": "a", "text": "the and of"}, {"id": "b", "text": "."}])
    statistics = index.statistics(["w3x the", ""])
    assert (statistics.n_documents, statistics.n_words, statistics.counts) == (2, 0, {"w3x": 0})
    assert statistics.weight("w3x") == 0


@pytest.mark.parametrize("storage", ["float16", "int8", "residual"])
def test_appended_rows_are_what_add_writes(tmp_path: Path, storage: str) -> None:
    options = {"encoder": HashEncoder(), "storage": storage, "filter_columns": {"n": int}}
    added, appended = (Index.create(tmp_path / name, **options) for name in ("added", "appended"))
    documents = _documents(30, 3)
    added.add(documents)
    rows = appended.rows(documents)
    assert isinstance(rows, pa.Table) and appended.count() == 0
    appended._store.append(rows)
    tables = [index._store._opened.table.to_arrow().sort_by("id") for index in (added, appended)]
    assert tables[0].equals(tables[1])
    assert [(h.id, h.score) for h in added.search(QUERY)] == [(h.id, h.score) for h in appended.search(QUERY)]
    assert appended.rows([]).num_rows == 0 and appended.rows([]).schema == rows.schema


def test_rows_of_one_call_have_distinct_ids_and_appended_ones_are_found_and_repaired(index: Index) -> None:
    with pytest.raises(InputError, match=r"ids must be distinct, but these occur more than once: \['d1'\]"):
        index.rows([*_documents(3, 1), *_documents(2, 2)[1:]])
    assert index.duplicates() == []
    index._store.append(index.rows(_documents(2, 4)))
    assert index.duplicates() == ["d0", "d1"]
    index.optimize()
    assert index.duplicates() == []
    assert index.get("d1")[0].text == _texts(2, 4)[1]


def test_a_batch_of_token_vectors_is_a_list_of_queries(index: Index) -> None:
    queries = ["w3x w50x", "w7x", "running w12x w13x"]
    tokens = HashEncoder().encode_queries(queries)
    by_vectors, by_strings = index.search_many(tokens, 5), index.search_many(queries, 5)
    assert [[hit.id for hit in hits] for hits in by_vectors] == [[hit.id for hit in hits] for hits in by_strings]
    assert index.search_many(tokens.select([]), 5) == []


def test_the_words_that_bm25_counts_are_found_in_any_form_where_they_are_written():
    text = "The Pumps of E71: pumping, PUMP. A pumpkin is none, the the"
    counted = counted_words("the pump of e71 valves", text)
    assert [(c.word, [text[start:end] for start, end in c.spans]) for c in counted] == [
        ("pump", ["Pumps", "pumping", "PUMP"]),
        ("e71", ["E71"]),
    ]
    # Words that LanceDB leaves out, because they are long, move none of the others.
    long = f"{'pump' * 20} é\u0301 pumped 🚰pump's"
    ((_, spans),) = [(c.word, c.spans) for c in counted_words("pump", long)]
    assert [long[start:end] for start, end in spans] == ["pumped", "pump"] and spans[0][0] > 80
    assert counted_words("", text) == counted_words("the of", text) == counted_words("pump", "") == ()
