"""Pickled and deep-copied components keep their settings, encoder and index, or raise; they never lose one silently."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.embeddings.manyvec import ManyvecEmbedding
from llama_index.postprocessor.manyvec import ManyvecRerank
from llama_index.retrievers.manyvec import ManyvecToolRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

from manyvec import EncoderError
from manyvec.testing import HashEncoder

GIVEN = [NodeWithScore(node=TextNode(id_=text, text=text)) for text in ("red apple", "green apple", "green tea")]


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


copies = pytest.mark.parametrize("copied", [pickled, copy.deepcopy], ids=["pickle", "deepcopy"])


@copies
def test_a_reranker_keeps_its_encoder_and_settings(copied: Callable[[Any], Any]) -> None:
    rerank = ManyvecRerank(HashEncoder(), top_n=2, keep_retrieval_score=True)
    again = copied(rerank)

    assert again.to_dict() == rerank.to_dict()
    found, expected = (r.postprocess_nodes(GIVEN, query_str="green tea") for r in (again, rerank))
    assert [(n.node_id, n.score) for n in found] == [(n.node_id, n.score) for n in expected]


@copies
def test_an_embedding_keeps_its_encoder(copied: Callable[[Any], Any]) -> None:
    embedding = ManyvecEmbedding(HashEncoder())

    assert copied(embedding).get_text_embedding("green tea") == embedding.get_text_embedding("green tea")


class Unpicklable(HashEncoder):
    """Holds a lock, which cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "lock", threading.Lock())


@pytest.mark.parametrize("component", [ManyvecRerank, ManyvecEmbedding])
def test_an_encoder_that_cannot_be_pickled_is_an_error_and_not_dropped(component: type) -> None:
    with pytest.raises((TypeError, EncoderError), match="pickle"):
        pickle.dumps(component(Unpicklable()))


@copies
def test_a_store_and_a_reranker_keep_their_index(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    store = ManyvecVectorStore.create(tmp_path / "index", HashEncoder())
    store.add([found.node for found in GIVEN])
    query = VectorStoreQuery(query_str="green tea", similarity_top_k=3)
    rerank = ManyvecRerank(index=store.client)
    other_store, other_rerank = copied(store), copied(rerank)
    assert other_store.query(query).ids == store.query(query).ids
    assert [n.score for n in other_rerank.postprocess_nodes(GIVEN, query_str="green tea")] == [
        n.score for n in rerank.postprocess_nodes(GIVEN, query_str="green tea")
    ]


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return f"sunny in {city}"


def get_time(city: str) -> str:
    """Tell the time in a city."""
    return f"noon in {city}"


def test_a_deep_copy_of_a_tool_retriever_keeps_its_tools() -> None:
    # LlamaIndex's tools cannot be pickled themselves.
    again = copy.deepcopy(ManyvecToolRetriever([get_weather, get_time], 1, encoder=HashEncoder()))

    (tool,) = again.retrieve("the weather in Lima")
    assert isinstance(tool, FunctionTool)
    assert tool.call("Lima").content == "sunny in Lima"
    again.add([FunctionTool.from_defaults(get_weather, name="forecast")])
    assert again.retrieve("forecast")[0].metadata.name == "forecast"
