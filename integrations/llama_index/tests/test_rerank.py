"""`ManyvecRerank`: what `RerankerContract` does not test: events, fields and the text that is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from llama_index.core import get_response_synthesizer
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.postprocessor.manyvec import ManyvecRerank
from llama_index.retrievers.manyvec import ManyvecRetriever

import manyvec
from manyvec.testing import HashEncoder


def nodes(*texts: str) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(id_=text, text=text), score=0.5) for text in texts]


@pytest.mark.parametrize("given", [[], nodes("red apple", "green apple")], ids=["nothing", "two nodes"])
def test_each_call_emits_rerank_events_and_the_callback(recorder, given) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    rerank = ManyvecRerank(HashEncoder(), top_n=1, callback_manager=CallbackManager([debug]))
    found = rerank.postprocess_nodes(given, query_str="green apple")
    start, end = recorder.events
    assert isinstance(start, ReRankStartEvent)
    assert (start.nodes, start.top_n, start.model_name) == (given, 1, "hash-64")
    assert start.query.query_str == "green apple"
    assert isinstance(end, ReRankEndEvent)
    assert end.nodes == found
    ((before, after),) = debug.get_event_pairs(CBEventType.RERANKING)
    assert before.payload[EventPayload.NODES] == given
    assert before.payload[EventPayload.QUERY_STR] == "green apple"
    assert after.payload[EventPayload.NODES] == found


def test_a_query_is_required() -> None:
    with pytest.raises(manyvec.InputError, match="query"):
        ManyvecRerank(HashEncoder()).postprocess_nodes(nodes("a"))


def test_the_retrieval_score_is_kept_on_request_and_hidden_from_models() -> None:
    given = nodes("green apple")
    (plain,) = ManyvecRerank(HashEncoder()).postprocess_nodes(given, query_str="apple")
    assert plain.node == given[0].node
    assert plain.node is not given[0].node
    (kept,) = ManyvecRerank(HashEncoder(), keep_retrieval_score=True).postprocess_nodes(given, query_str="apple")
    assert kept.node.metadata == {"retrieval_score": 0.5}
    assert kept.node.get_content(MetadataMode.LLM) == kept.node.get_content(MetadataMode.EMBED) == "green apple"
    assert given == nodes("green apple")


def test_without_an_index_the_metadata_for_embedding_models_is_scored_too() -> None:
    titled = TextNode(id_="t", text="a fruit", metadata={"title": "apple", "file": "pear"})
    titled.excluded_embed_metadata_keys = ["file"]
    given = [*nodes("pear"), NodeWithScore(node=titled)]
    found = ManyvecRerank(HashEncoder(), 1).postprocess_nodes(given, query_str="apple")
    assert [n.node_id for n in found] == ["t"]
    assert ManyvecRerank(HashEncoder(), 1).postprocess_nodes(given, query_str="pear")[0].node_id == "pear"


def test_a_node_that_holds_a_retriever_is_reranked_without_copying_that(tmp_path: Path) -> None:
    retriever = ManyvecRetriever.from_nodes([], tmp_path, HashEncoder())
    given = [NodeWithScore(node=IndexNode(id_="x", text="green apple", index_id="i", obj=retriever))]
    (found,) = ManyvecRerank(HashEncoder()).postprocess_nodes(given, query_str="apple")
    assert found.node.obj is retriever  # type: ignore[attr-defined]


def test_settings_are_fields_that_survive_to_dict_and_from_dict() -> None:
    rerank = ManyvecRerank("minilm", top_n=3, device="cpu", keep_retrieval_score=True)
    settings = {"model": "minilm", "top_n": 3, "device": "cpu", "keep_retrieval_score": True}
    assert settings.items() <= rerank.to_dict().items()
    assert ManyvecRerank.from_dict(rerank.to_dict()).to_dict() == rerank.to_dict()
    assert (ManyvecRerank().model, ManyvecRerank().top_n) == ("minilm", 5)


def test_an_index_survives_to_dict_and_from_dict(tmp_path: Path) -> None:
    index = manyvec.Index.create(tmp_path / "index", "minilm")
    rerank = ManyvecRerank(index=index, top_n=2)
    again = ManyvecRerank.from_dict(rerank.to_dict())
    assert again.to_dict() == rerank.to_dict()
    assert (again.index_uri, again.model, again.top_n) == (str(tmp_path / "index"), "minilm", 2)


def test_invalid_arguments_are_errors(tmp_path: Path) -> None:
    index = manyvec.Index.create(tmp_path, HashEncoder())
    for wrong in ({"model": "minilm"}, {"device": "cpu"}):
        with pytest.raises(manyvec.InputError, match="either an index"):
            ManyvecRerank(index=index, **wrong)
    with pytest.raises(manyvec.InputError, match="on its device already"):
        ManyvecRerank(HashEncoder(), device="cpu")
    with pytest.raises(ValueError, match="top_n"):
        ManyvecRerank(HashEncoder(), top_n=-1)
    with pytest.raises(manyvec.InputError, match="device"):
        ManyvecRerank("minilm", device="tpu").postprocess_nodes(nodes("a"), query_str="a")
    assert ManyvecRerank(index=index).model == "hash-64"


async def test_a_query_engine_reranks_what_its_retriever_found(tmp_path: Path) -> None:
    found = [TextNode(id_=str(i), text=f"apple {i}") for i in range(9)]
    retriever = ManyvecRetriever.from_nodes(found, tmp_path, HashEncoder(), similarity_top_k=9)
    engine = RetrieverQueryEngine(
        retriever,
        get_response_synthesizer(llm=MockLLM(), response_mode="compact"),
        node_postprocessors=[ManyvecRerank(index=retriever.index, top_n=1)],
    )
    assert [n.node_id for n in engine.query("apple 7").source_nodes] == ["7"]
    assert [n.node_id for n in (await engine.aquery(QueryBundle("apple 3"))).source_nodes] == ["3"]


def test_the_small_model_puts_the_answer_first() -> None:
    given = nodes("Bread is baked from flour and water.", "ColBERT keeps one vector for each token of a text.")
    found = ManyvecRerank(top_n=1).postprocess_nodes(given, query_str="late interaction with token vectors")
    assert found[0].node_id.startswith("ColBERT")


@pytest.mark.parametrize("query", ["red apple", "", " "])
def test_scores_of_blank_nodes_and_queries_are_what_json_holds(query: str) -> None:
    given = [NodeWithScore(node=TextNode(id_=str(i), text=text)) for i, text in enumerate(["", "  ", "red apple"])]
    for found in ManyvecRerank(HashEncoder(), top_n=9).postprocess_nodes(given, query_str=query):
        json.dumps([found.score, found.metadata], allow_nan=False)


def test_half_an_emoji_in_a_query_is_an_input_error(tmp_path: Path) -> None:
    node = TextNode(id_="a", text="red apple")
    retriever = ManyvecRetriever.from_nodes([node], tmp_path / "index", HashEncoder())
    for query in ("\ud83d", "red \udc00 apple"):
        with pytest.raises(manyvec.InputError, match="lone surrogate"):
            retriever.retrieve(query)
        with pytest.raises(manyvec.InputError, match="lone surrogate"):
            ManyvecRerank(HashEncoder()).postprocess_nodes([NodeWithScore(node=node)], query_str=query)
