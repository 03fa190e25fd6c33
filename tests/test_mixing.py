from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manyvec import Index, TokenBatch, Vectors
from manyvec.candidates import Auto
from manyvec.errors import InputError
from manyvec.retrieval.lexical import Lexicon
from manyvec.retrieval.mixing import mixed
from manyvec.storage.cache import CachedVersion
from manyvec.storage.schema import Manifest
from manyvec.testing import ColorEncoder, HashEncoder

SIMILARITIES = np.array([0.5, 0.75, -0.25], np.float32)
BM25 = np.array([20.0, 0.0, 10.0], np.float32)


def test_a_bm25_of_40_counts_as_a_similarity_of_1():
    # 0.75 * 0.5 + 0.25 * 0.5, 0.75 * 0.75, 0.75 * -0.25 + 0.25 * 0.25
    np.testing.assert_allclose(mixed(SIMILARITIES, BM25, 0.25), [0.5, 0.5625, -0.125])


def test_weight_0_is_maxsim_and_weight_1_is_bm25():
    np.testing.assert_array_equal(mixed(SIMILARITIES, BM25, 0), SIMILARITIES)
    np.testing.assert_allclose(mixed(SIMILARITIES, BM25, 1), [0.5, 0.0, 0.25])


def test_words_overtake_a_similarity_once_they_weigh_enough():
    # Equal where 0.25 * (1 - w) = 0.5 * w, which is w = 1/3.
    assert mixed(SIMILARITIES, BM25, 0.3)[:2].argmax() == 1
    assert mixed(SIMILARITIES, BM25, 0.35)[:2].argmax() == 0


def test_a_document_is_mixed_the_same_whatever_stands_beside_it():
    whole = mixed(SIMILARITIES, BM25, 0.3)
    for i in range(3):
        np.testing.assert_array_equal(mixed(SIMILARITIES[i : i + 1], BM25[i : i + 1], 0.3), whole[i : i + 1])


@pytest.mark.parametrize("weight", [0, 0.3, 1])
def test_a_document_without_tokens_stays_unfound(weight):
    mix = mixed(np.array([-np.inf, 0.5], np.float32), np.array([20.0, 0.0], np.float32), weight)
    assert mix[0] == -np.inf and np.isfinite(mix[1])


def test_nothing_mixed_is_nothing():
    empty = mixed(np.empty(0, np.float32), np.empty(0, np.float32), 0.3)
    assert empty.shape == (0,) and empty.dtype == np.float32


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_weight_outside_0_to_1_is_refused(weight):
    with pytest.raises(InputError, match="between 0 and 1"):
        mixed(SIMILARITIES, BM25, weight)


class Measured(HashEncoder):
    """Has plain scores, and the name of a model for which a weight was measured."""

    @property
    def name(self) -> str:
        return "minilm"


TEXTS = {"long": "green apple juice tea milk", "short": "juice juice juice", "other": "red wine"}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = Index.create(tmp_path / "index", Measured())
    index.add({"id": id, "text": text} for id, text in TEXTS.items())
    return index


def test_a_search_mixes_by_the_weight_that_was_measured_for_the_model(index: Index) -> None:
    hits = index.search("green juice")
    assert index.info().lexical_weight == 0.27
    assert (
        hits == index.search("green juice", lexical_weight="auto") == index.search("green juice", lexical_weight=0.27)
    )
    assert hits != index.search("green juice", lexical_weight=0)
    # The last hit shares no word with the query.
    assert hits[-1].id == "other" and hits[-1].final_score == pytest.approx(0.73 * hits[-1].similarity)


def test_scores_stay_those_of_maxsim_and_hits_are_ordered_by_the_final_score(index: Index) -> None:
    pure = {hit.id: (hit.score, hit.similarity) for hit in index.search("green juice", lexical_weight=0)}
    hits = index.search("green juice")
    assert {hit.id: (hit.score, hit.similarity) for hit in hits} == pure
    finals = [hit.final_score for hit in hits]
    assert finals == sorted(finals, reverse=True)


def test_other_models_and_given_vectors_rank_by_maxsim_alone_until_somebody_measures(tmp_path: Path) -> None:
    for i, encoder in enumerate((HashEncoder(), Vectors("minilm", 384))):
        assert Index.create(tmp_path / str(i), encoder).info().lexical_weight == 0
    index = Index.open(tmp_path / "0", HashEncoder())
    index.add([{"id": "a", "text": "green juice"}])
    assert [hit.final_score == hit.score for hit in index.search("juice")] == [True]


@pytest.mark.parametrize(("model", "weight"), [("minilm", 0.27), ("colbert-ir/colbertv2.0", 0), ("another", 0)])
def test_an_index_of_before_takes_the_weight_of_its_model(model: str, weight: float) -> None:
    written = asdict(Manifest(model, "fingerprint", 8))
    del written["lexical_weight"]
    assert Manifest.parse(json.dumps(written).encode(), "index").lexical_weight == weight


def test_a_query_without_words_is_ranked_by_maxsim_beside_one_with_words(index: Index) -> None:
    vectors = HashEncoder().encode_queries(["green juice"])
    both = index.search_many([vectors, "green juice"])
    assert both == [index.search(vectors), index.search("green juice")]
    assert not any(hit.is_mixed or "final_score" in repr(hit) or "BM25" in hit._repr_html_() for hit in both[0])
    assert all(hit.is_mixed and "final_score" in repr(hit) and "BM25" in hit._repr_html_() for hit in both[1][:2])
    assert index.search_many([]) == [] and index.search("") == []


def test_an_image_has_no_words(tmp_path: Path) -> None:
    class Pictures(ColorEncoder):
        @property
        def name(self) -> str:
            return "minilm"

    index = Index.create(tmp_path / "index", Pictures())
    index.add([{"id": "a", "text": "red"}, {"id": "b", "text": "blue"}])
    picture = TokenBatch.from_list([ColorEncoder().encode_queries(["red"])[0]])
    assert index.info().lexical_weight == 0.27
    assert index.search(picture) == index.search(picture, lexical_weight=0)


def test_an_error_says_what_auto_means_for_this_index(index: Index) -> None:
    with pytest.raises(InputError, match='between 0 and 1, got 2. "auto", the default, is 0.27 in this index'):
        index.search("juice", lexical_weight=2)


@pytest.mark.parametrize("k", [2, 400])
def test_no_word_is_looked_up_twice(index: Index, monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    asked: list[Any] = []
    match = Lexicon.match

    def counted(self: Lexicon, *arguments: Any) -> Any:
        asked.append(arguments)
        return match(self, *arguments)

    monkeypatch.setattr(Lexicon, "match", counted)
    index.add({"id": f"{i:03}", "text": f"apple {i} pear"} for i in range(500))
    index.optimize()
    # The lists and BM25 choose candidates, as in a large index.
    index.candidates = Auto(exhaustive_tokens=10, min_depth=3, depth_tokens=10)
    asked.clear()
    assert len(index.search("apple 7", k)) == k
    assert len(asked) == 1


@pytest.mark.parametrize("weight", [0.1, 0.27, 0.6, 1])
def test_matches_that_cannot_be_hits_need_no_exact_score(
    index: Index, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    random = np.random.default_rng(0)
    words = [[f"w{number}" for number in np.minimum(random.zipf(1.3, 12), 200)] for _ in range(600)]
    index.add({"id": f"{i:03}", "text": " ".join(row)} for i, row in enumerate(words))
    index.candidates = Auto(exhaustive_tokens=10, min_depth=20, depth_tokens=100)
    index.optimize()
    queries = [" ".join(row[2:8]) for row in words[:30]]
    scored: list[int] = []
    score = CachedVersion.score

    def counted(self: CachedVersion, *arguments: Any) -> Any:
        scored.append(len(arguments[2]))
        return score(self, *arguments)

    monkeypatch.setattr(CachedVersion, "score", counted)
    found, n_scored = index.search_many(queries, lexical_weight=weight), sum(scored)
    scored.clear()
    # As if a match could always be a hit.
    monkeypatch.setattr("manyvec.retrieval.search._kth", lambda *_: np.float32(-1))
    assert index.search_many(queries, lexical_weight=weight) == found
    assert n_scored < 0.6 * sum(scored)


def test_documents_are_ranked_at_many_weights_as_searches_rank_them(index: Index) -> None:
    queries = ["juice", "green juice", "wine", ""]
    ranked = index.rank_mixed(queries, [0, 0.3, 1])
    for weight in (0, 0.3, 1):
        found = index.search_many(queries, lexical_weight=weight)
        assert ranked[weight] == [[hit.id for hit in hits] for hits in found]
    # Both texts hold the word, which makes equal scores of MaxSim; BM25 prefers the short one, which repeats it.
    assert (ranked[0][0][:2], ranked[1][0][:2]) == (["long", "short"], ["short", "long"])
    with pytest.raises(InputError, match="between 0 and 1"):
        index.rank_mixed(queries, [2])
