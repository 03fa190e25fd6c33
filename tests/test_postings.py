"""BM25 from words in memory: right in every version, and wherever the words come from."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from manyvec import F, Index
from manyvec.retrieval import lexical
from manyvec.retrieval.lexical import Lexicon, WordStatistics
from manyvec.retrieval.postings import _by_word, _Part
from manyvec.storage.words import CHECKSUM, COUNT_BITS, MAX_COUNT, WORDS, code_of, coded, words_of
from manyvec.testing import HashEncoder

QUERIES = ["w3x the running w50x w3x", "café w1x", "w99x", "unknown", "the"]


def documents(n: int, seed: int, prefix: str = "d") -> list[dict[str, Any]]:
    draw = random.Random(seed)
    words = [*(f"w{i}x" for i in range(100)), "running", "runs", "the", "café"]
    weights = [1 / (i + 1) for i in range(len(words))]
    texts = [" ".join(draw.choices(words, weights, k=draw.randint(1, 40))) for _ in range(n)]
    return [{"id": f"{prefix}{i:03}", "text": text, "metadata": {"n": i}} for i, text in enumerate(texts)]


def reference(texts: dict[str, str], query: str) -> dict[str, float]:
    """Score texts as the formula reads."""
    counts = {id: Counter(words_of(text)) for id, text in texts.items()}
    average = sum(of_text.total() for of_text in counts.values()) / len(texts)
    scores = dict.fromkeys(texts, 0.0)
    for word in words_of(query):
        n_having = sum(word in of_text for of_text in counts.values())
        weight = np.log((len(texts) - n_having + 0.5) / (n_having + 0.5) + 1)
        for id, of_text in counts.items():
            norm = 1.2 * (0.25 + 0.75 * of_text.total() / average)
            scores[id] += weight * 2.2 * of_text[word] / (of_text[word] + norm)
    return {id: score for id, score in scores.items() if score}


def check(index: Index) -> None:
    """Compare the matches of an index with those of the formula, and with those of a new index."""
    version = index._reader.current()
    texts = {document.id: document.text for document in index.get(index.ids())}
    for query in QUERIES:
        found = index._reader.lexicon.match(version, query, 400)
        expected = reference(texts, query)
        ids = version.states.ids[found.positions].tolist()
        assert {*ids} == {*expected}
        np.testing.assert_allclose(found.scores, [expected[id] for id in ids], rtol=1e-5)
        assert ids == sorted(ids, key=dict(zip(ids, zip(-found.scores, ids, strict=True), strict=True)).get)
        again = Lexicon(2**30).match(version, query, 400)
        assert again.positions.tolist() == found.positions.tolist() and again.scores.tolist() == found.scores.tolist()
        assert index._reader.lexicon.match(version, query, 7).positions.tolist() == found.positions[:7].tolist()


def test_matches_are_right_in_every_version(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder(), filter_columns={"n": int})
    index.add(documents(300, 1))
    check(index)
    for i in range(12):
        index.add(documents(1 + 2 * i, 2 + i, f"e{i}"))
        check(index)
    # n additions are held in about log n parts.
    assert len(index._reader.lexicon._postings._held[1].parts) <= 4
    index.delete([f"d{i:03}" for i in range(0, 300, 3)])
    check(index)
    report = index.add([{**documents(300, 1)[1], "metadata": {"n": 7}}, {**documents(7, 5, "e3")[1], "metadata": {}}])
    assert report.updated == 2
    check(index)
    index.add([{"id": "d002", "text": "w99x w99x"}, {"id": "new", "text": "w99x"}])
    check(index)
    index.optimize()
    check(index)
    index.delete(index.ids()[10:])
    check(index)


def test_a_filter_chooses_among_the_matches_and_changes_no_score(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", HashEncoder(), filter_columns={"n": int})
    index.add(documents(300, 1))
    (everything,), (some,) = (
        index._reader.word_matches(["w3x w50x"], [300], where) for where in (None, "meta_n < 100")
    )
    assert some.ids.tolist() == [id for id in everything.ids.tolist() if id < "d100"]
    hits = index.search("w3x w50x", 300, filter=F("n") < 100, lexical_weight=1)
    unfiltered = {hit.id: hit.final_score for hit in index.search("w3x w50x", 300, lexical_weight=1)}
    assert len(hits) == 100 and all(hit.final_score == unfiltered[hit.id] for hit in hits)


@pytest.mark.parametrize("written", ["without the columns", "by other programs", "damaged"])
def test_words_that_are_missing_or_damaged_do_not_count_as_none(tmp_path: Path, written: str) -> None:
    index = Index.create(tmp_path / "i", HashEncoder())
    index.add(documents(60, 1))
    table = lancedb.connect(index.uri).open_table("documents")
    if written == "without the columns":
        table.drop_columns([WORDS, CHECKSUM])
    else:
        rows = table.search().where("id < 'd020'").limit(None).to_arrow()
        field = rows.schema.field(WORDS)
        wrong = [[code_of("other") | 1]] * len(rows) if written == "damaged" else [None] * len(rows)
        rows = rows.set_column(rows.schema.get_field_index(WORDS), field, pa.array(wrong, field.type))
        table.merge_insert("id").when_matched_update_all().execute(rows)
    opened = Index.open(index.uri, HashEncoder())
    check(opened)
    opened.add(documents(10, 2, "e"))
    opened.add([{"id": "d001", "text": "café café"}])
    if written != "without the columns":
        check(opened)
    # An index of an earlier manyvec is left to LanceDB, whose scores are those of the formula now.
    opened.optimize()
    check(opened)
    assert (opened._reader.lexicon.bytes_held > 0) == (written != "without the columns")


def test_words_that_do_not_fit_the_budget_stay_on_disk(tmp_path: Path) -> None:
    found = []
    for cache_bytes in (0, 2**30):
        index = Index.create(tmp_path / "i", HashEncoder(), cache_bytes=cache_bytes, exist_ok=True)
        index.add(documents(100, 1))
        index.optimize()
        found.append([(hit.id, round(hit.final_score, 5)) for hit in index.search(QUERIES[0], lexical_weight=0.5)])
        assert (index._reader.lexicon.bytes_held > 0) == (cache_bytes > 0)
    assert found[0] == found[1]


def test_a_word_may_occur_more_often_than_can_be_counted() -> None:
    codes, offsets = coded(["ab " * 70_000 + "cd", "", "cd"])
    assert codes.tolist() == [code_of("ab") | MAX_COUNT, code_of("cd") | 1, code_of("cd") | 1]
    (part,) = _Part.of(np.arange(3), np.ones(3, np.int64), (codes, offsets))
    assert offsets.tolist() == [0, 2, 2, 3] and part.lengths.tolist() == [MAX_COUNT + 1, 0, 1]
    assert part.members[part.rows_of(code_of("cd"))].tolist() == [0, 2]
    assert part.rows_of(code_of("unknown")) == slice(0, 0)
    weight = WordStatistics(3, 4, {"cd": 2}).weight("cd")
    assert weight == pytest.approx(np.log(1.5 / 2.5 + 1))


def test_words_whose_hashes_begin_alike_are_not_mixed() -> None:
    # Five words that differ in the last of 48 bits only, which sorting by the first 42 does not see.
    words = np.array([7 << 40 | i % 5 for i in range(1000)], np.uint64) << np.uint64(COUNT_BITS)
    codes = words | np.uint64(1)
    assert (np.diff(words[_by_word(codes)].astype(np.int64)) >= 0).all()
    (part,) = _Part.of(np.arange(10), np.ones(10, np.int64), (codes, np.arange(0, 1001, 100)))
    assert part.codes.tolist() == [7 << 40 << COUNT_BITS | i << COUNT_BITS for i in range(5)]
    assert all(np.diff(part.starts) == 200)


def test_common_words_are_left_out_only_where_they_change_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    index = Index.create(tmp_path / "i", HashEncoder(), filter_columns={"n": int})
    index.add(documents(400, 1))
    index.optimize()
    index.add(documents(90, 2, "e") + documents(30, 3))
    index.delete([f"d{i:03}" for i in range(60, 90)])
    reader, skipped = index._reader, []
    version = reader.current()
    passing = np.arange(len(version))[::3]
    queries = [*QUERIES, "w0x w1x w2x w40x", "w0x", "w0x w0x w77x w80x", "w5x w6x unknown", documents(1, 9)[0]["text"]]
    for query in queries:
        for limit, some in product((1, 5, 16, 60, 1_000), (None, passing)):
            found = []
            for many in (10**9, 10):
                monkeypatch.setattr(lexical, "_MANY", many)
                found.append(reader.lexicon.match(version, query, limit, passing=some))
            assert found[0].positions.tolist() == found[1].positions.tolist()
            assert found[0].scores.tolist() == found[1].scores.tolist()
            postings, words = reader.lexicon._postings.over(version), words_of(query)
            counts = {word: postings.n_having(word) for word in words}
            statistics = WordStatistics(len(version), postings.n_words, counts)
            contenders = lexical._contenders(postings, words, statistics, limit, some)
            having = reader.lexicon.match(version, query, len(version), passing=some).positions
            skipped.append(0 if contenders is None else len(having) - len(contenders))
    # Otherwise this would compare a thing with itself.
    assert max(skipped) > 100
