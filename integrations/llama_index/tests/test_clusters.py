"""A cluster takes the place of an index: the same nodes, scores and ids as with one index."""

from __future__ import annotations

from pathlib import Path

import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.postprocessor.manyvec import ManyvecRerank
from llama_index.retrievers.manyvec import ManyvecRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

import manyvec
from manyvec import cluster
from manyvec.testing import HashEncoder

COLORS = ["red", "green", "blue", "white"]
NODES = [
    TextNode(id_=f"n{i}", text=f"{COLORS[i % 4]} {COLORS[i % 3]} fruit number {i}", metadata={"year": 2000 + i % 5})
    for i in range(40)
]


@pytest.fixture
def both(tmp_path: Path) -> tuple[manyvec.Index, cluster.Cluster]:
    """The same nodes in an index and in three shards."""
    columns = {"year": int, "ref_doc_id": str}
    index = manyvec.Index.create(tmp_path / "index", HashEncoder(), filter_columns=columns)
    of_shards = cluster.create_local(tmp_path / "shards", HashEncoder(), shards=3, filter_columns=columns)
    for each in (index, of_shards):
        assert len(ManyvecRetriever(each).add_nodes(NODES)) == 40
    return index, of_shards


def test_a_retriever_finds_in_shards_what_it_finds_in_one_index(both: tuple, tmp_path: Path) -> None:
    for options in ({"filters": {"year": 2001}}, {"lexical_weight": 0.5, "similarity_top_k": 9, "evidence": True}):
        in_index, in_shards = (ManyvecRetriever(each, **options) for each in both)
        for query in ("red fruit", "blue number 7"):
            assert in_shards.retrieve(query) == in_index.retrieve(query)
    opened = ManyvecRetriever.from_uri(tmp_path / "shards", HashEncoder())
    assert isinstance(opened.index, cluster.Cluster)
    more = ManyvecRetriever.from_nodes([TextNode(id_="new", text="violet")], tmp_path / "shards", HashEncoder())
    assert isinstance(more.index, cluster.Cluster) and opened.retrieve("violet")[0].node.node_id == "new"


@pytest.mark.parametrize("mode", ["default", "hybrid", "text_search", "mmr"])
def test_a_vector_store_answers_from_shards_in_every_mode(both: tuple, mode: str) -> None:
    query = VectorStoreQuery(query_str="blue number 7", similarity_top_k=5, mode=VectorStoreQueryMode(mode))
    in_index, in_shards = (ManyvecVectorStore(each).query(query) for each in both)
    assert in_shards.ids == in_index.ids and in_shards.ids
    assert in_shards.similarities == pytest.approx(in_index.similarities, rel=1e-5)


def test_a_vector_store_of_shards_is_searched_by_a_mean_vector_and_deletes(both: tuple) -> None:
    mean = HashEncoder().encode_queries(["red number 7"]).pooled()[0].tolist()
    query = VectorStoreQuery(query_embedding=mean, similarity_top_k=1)
    in_index, in_shards = (ManyvecVectorStore(each) for each in both)
    assert in_shards.query(query).ids == in_index.query(query).ids
    for store in (in_index, in_shards):
        store.delete_nodes(["n7"])
    assert in_shards.query(query).ids == in_index.query(query).ids != ["n7"]


def test_a_reranker_uses_vectors_that_lie_in_shards(both: tuple) -> None:
    nodes = [NodeWithScore(node=node, score=0.5) for node in [*NODES[:9], TextNode(id_="unknown", text="red red 7")]]
    orders = [ManyvecRerank(index=each, top_n=10).postprocess_nodes(nodes, query_str="red number 7") for each in both]
    assert orders[0] == orders[1] and len(orders[0]) == 10
