"""A cluster takes the place of an index: the same documents, scores and ids as with one index."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document

import manyvec
from langchain_manyvec import ManyvecReranker, ManyvecRetriever, ManyvecVectorStore
from manyvec import cluster
from manyvec.testing import HashEncoder

COLORS = ["red", "green", "blue", "white"]
DOCUMENTS = [
    Document(f"{COLORS[i % 4]} {COLORS[i % 3]} fruit number {i}", id=f"d{i}", metadata={"year": 2000 + i % 5})
    for i in range(40)
]


@pytest.fixture
def both(index: manyvec.Index, tmp_path: Path) -> tuple[manyvec.Index, cluster.Cluster]:
    """The same documents in an index and in three shards."""
    of_shards = cluster.create_local(tmp_path / "shards", HashEncoder(), shards=3, filter_columns={"year": int})
    for each in (index, of_shards):
        assert len(ManyvecRetriever(index=each).add_documents(DOCUMENTS)) == 40
    return index, of_shards


@pytest.mark.parametrize(
    "options", [{"filter": {"year": 2001}}, {"lexical_weight": 0.5, "k": 9}, {"evidence": True, "passage_chars": 9}]
)
def test_a_retriever_finds_in_shards_what_it_finds_in_one_index(both: tuple, options: dict[str, Any]) -> None:
    in_index, in_shards = (ManyvecRetriever(index=each, **options) for each in both)
    for queries in (["red fruit"], ["blue green", "number 7"]):
        assert in_shards.batch(queries) == in_index.batch(queries)
    assert pickle.loads(pickle.dumps(in_shards)).invoke("white") == in_index.invoke("white")


async def test_a_vector_store_reads_and_writes_shards(both: tuple, tmp_path: Path) -> None:
    in_index, in_shards = (ManyvecVectorStore(each) for each in both)
    assert in_shards.similarity_search_with_score("red 7", k=5) == in_index.similarity_search_with_score("red 7", k=5)
    assert in_shards.max_marginal_relevance_search("red", k=3) == in_index.max_marginal_relevance_search("red", k=3)
    assert in_shards.get_by_ids(["d5", "d2"]) == in_index.get_by_ids(["d5", "d2"])
    for store in (in_index, in_shards):
        assert store.delete(["d5"])
    assert await in_shards.asimilarity_search("fruit 5", k=40) == await in_index.asimilarity_search("fruit 5", k=40)
    opened = ManyvecVectorStore.from_uri(tmp_path / "shards", encoder=HashEncoder())
    assert isinstance(opened.index, cluster.Cluster) and opened.index.count() == 39
    added = ManyvecVectorStore.from_texts(["violet"], HashEncoder(), uri=str(tmp_path / "shards"), ids=["new"])
    assert isinstance(added.index, cluster.Cluster) and opened.similarity_search("violet", k=1)[0].id == "new"


def test_a_reranker_uses_vectors_that_lie_in_shards(both: tuple) -> None:
    candidates = [*DOCUMENTS[:9], Document("red red 7", id="unknown")]
    orders = [ManyvecReranker(index=each).compress_documents(candidates, "red number 7") for each in both]
    assert orders[0] == orders[1] and len(orders[0]) == 10
