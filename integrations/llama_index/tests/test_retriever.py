"""`ManyvecRetriever` over a real index; with `HashEncoder` a node's score is the number of query words it holds."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import get_response_synthesizer
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.indices.query.query_transform.base import BaseQueryTransform
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine, TransformQueryEngine
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    ObjectType,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.vector_stores.types import VectorStoreQuery
from llama_index.postprocessor.manyvec import ManyvecRerank
from llama_index.retrievers.manyvec import ManyvecRetriever
from llama_index.vector_stores.manyvec import ManyvecVectorStore

import manyvec
from manyvec import F, TokenBatch
from manyvec.testing import HashEncoder

PLAIN = TextNode(id_="plain", text="red apple", metadata={"year": 2021})
UNUSUAL = TextNode(
    id_="a 'quoted' id",
    text="  green apple pie\n",
    metadata={"id": 7, "text": ["x", None, {"deep": 1.5}], "score": "own", "_node": {"k": 1}, "日本": True},
)
LINKED = TextNode(
    id_="linked",
    text="green tea",
    metadata={"year": 2023, "page": "3"},
    relationships={
        NodeRelationship.SOURCE: RelatedNodeInfo(
            node_id="menu.pdf", node_type=ObjectType.DOCUMENT, metadata={"page": None}, hash="h"
        ),
        NodeRelationship.NEXT: RelatedNodeInfo(node_id="plain", node_type=ObjectType.TEXT),
        NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
    },
    excluded_embed_metadata_keys=["page"],
    excluded_llm_metadata_keys=["year", "page"],
    metadata_template="{key} = {value}",
    metadata_separator=" | ",
    text_template="{content} ({metadata_str})",
    start_char_idx=0,
    end_char_idx=9,
    mimetype="text/markdown",
)
NODES = [PLAIN, UNUSUAL, LINKED]


@pytest.fixture
def retriever(tmp_path: Path) -> ManyvecRetriever:
    return ManyvecRetriever.from_nodes(NODES, tmp_path / "index", HashEncoder(), filter_columns={"year": int})


def ids(found: Sequence[NodeWithScore]) -> list[str]:
    return [node.node_id for node in found]


def test_a_lexical_weight_adds_bm25_to_the_score(tmp_path: Path) -> None:
    texts = {"long": "green juice " + "of many fruits " * 9, "short": "juice juice", "tea": "green tea"}
    nodes = [TextNode(id_=id, text=text) for id, text in texts.items()]
    retriever = ManyvecRetriever.from_nodes(nodes, tmp_path, HashEncoder(), similarity_top_k=3, lexical_weight=1)
    assert ids(retriever.retrieve("green juice"))[0] == "short"
    for weight in (0.3, 1):
        hits = retriever.index.search("green juice", 3, lexical_weight=weight)
        found = retriever.with_options(lexical_weight=weight).retrieve("green juice")
        assert [(node.node_id, node.score) for node in found] == [(hit.id, hit.final_score) for hit in hits]
    exact = ManyvecRetriever.from_uri(tmp_path, HashEncoder(), lexical_weight=0).retrieve("green juice")
    assert exact[0].node_id == "long"
    assert exact[0].score == pytest.approx(2, abs=2e-3)
    assert retriever.with_options(lexical_weight=0).retrieve("green juice")[0].node_id == "long"
    with pytest.raises(manyvec.InputError, match="lexical_weight"):
        retriever.with_options(lexical_weight=2).retrieve("green juice")


def test_retrievers_and_stores_mix_by_what_was_measured_for_the_model(tmp_path: Path) -> None:
    class Measured(HashEncoder):
        @property
        def name(self) -> str:
            return "minilm"

    nodes = [TextNode(id_=id, text=text) for id, text in {"short": "juice juice", "tea": "green tea"}.items()]
    retriever = ManyvecRetriever.from_nodes(nodes, tmp_path, Measured())
    hits = {query: retriever.index.search(query, 2) for query in ("green juice", "tea")}
    assert all(hit.final_score != hit.score for hit in hits["green juice"])
    for query, expected in hits.items():
        assert [node.score for node in retriever.retrieve(query)] == [hit.final_score for hit in expected]
        store = ManyvecVectorStore(retriever.index)
        found = store.query(VectorStoreQuery(query_str=query, similarity_top_k=2))
        assert found.similarities == [hit.final_score for hit in expected]
        pure = store.query(VectorStoreQuery(query_str=query, similarity_top_k=2), lexical_weight=0)
        assert sorted(pure.similarities or ()) == sorted(hit.score for hit in expected)
    # With evidence, MaxSim is there; without, a node has one hash whatever finds it, which fusion retrievers rely on.
    (best, *_) = retriever.with_options(evidence=True).retrieve("green juice")
    assert best.metadata["evidence"]["score"] == pytest.approx(hits["green juice"][0].score, abs=1e-3)
    hashes = [{node.node_id: node.node.hash for node in retriever.retrieve(query)} for query in hits]
    assert hashes[0] == hashes[1]


def found_again(node: BaseNode, folder: Path) -> BaseNode:
    """Store the node in a new index and retrieve it through a second retriever."""
    ManyvecRetriever.from_nodes([node], folder, HashEncoder())
    (found,) = ManyvecRetriever.from_uri(folder, HashEncoder()).retrieve("anything")
    return found.node


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_text_node_is_restored_unchanged(tmp_path: Path, node: TextNode) -> None:
    found = found_again(node, tmp_path)
    assert type(found) is TextNode
    assert found == node
    assert list(found.metadata) == list(node.metadata)
    assert found.ref_doc_id == node.ref_doc_id
    assert found.hash == node.hash


@pytest.mark.parametrize(
    "node",
    [
        Document(id_="d", text="a whole document", metadata={"file": "a.txt"}),
        Document(id_="d", text_resource=MediaResource(text="a page", path=Path("a.md"), mimetype="text/markdown")),
        Node(id_="n", text_resource=MediaResource(text="a node")),
        ImageNode(id_="i", text="a caption", image_path="a.png"),
        IndexNode(id_="x", text="ask the other index", index_id="other"),
    ],
    ids=lambda node: node.class_name(),
)
def test_a_node_of_another_class_is_restored_unchanged(tmp_path: Path, node: BaseNode) -> None:
    found = found_again(node, tmp_path)
    assert type(found) is type(node)
    assert found == node


def test_an_index_node_is_replaced_by_the_node_it_holds(tmp_path: Path) -> None:
    assert found_again(IndexNode(id_="x", text="a summary", index_id="other", obj=LINKED), tmp_path) == LINKED


def test_the_chunks_of_a_splitter_are_restored_unchanged(tmp_path: Path) -> None:
    document = Document(id_="story", text="One sentence here. " * 40, metadata={"author": "A. N. Other"})
    chunks = SentenceSplitter(chunk_size=64, chunk_overlap=0).get_nodes_from_documents([document])
    retriever = ManyvecRetriever.from_nodes(chunks, tmp_path, HashEncoder(), similarity_top_k=99)
    assert len(chunks) > 2
    found = {node.node_id: node.node for node in retriever.retrieve("sentence")}
    assert found == {chunk.node_id: chunk for chunk in chunks}
    assert {chunk.ref_doc_id for chunk in found.values()} == {"story"}


def test_an_embedding_is_not_stored(tmp_path: Path) -> None:
    node = TextNode(id_="dense", text="some text", embedding=[0.5, 0.5])
    assert found_again(node, tmp_path).embedding is None
    assert node.embedding == [0.5, 0.5]


def test_a_linked_node_has_two_additional_metadata_keys_and_a_plain_one_none(retriever: ManyvecRetriever) -> None:
    plain, linked = retriever.index.get(["plain", "linked"])
    assert plain == manyvec.Document("plain", "red apple", {"year": 2021})
    assert linked.text == "green tea"
    assert set(linked.metadata) == {"year", "page", "_llama_index", "_ref_doc_id"}
    assert linked.metadata["_ref_doc_id"] == "menu.pdf"


def test_documents_of_other_writers_are_retrieved_as_text_nodes(tmp_path: Path) -> None:
    index = manyvec.Index.create(tmp_path, HashEncoder())
    index.add(
        [
            {"id": "other", "text": "red wine", "metadata": {"id": 3, "_llama_index": "a value of its own"}},
            manyvec.Document("none", "white wine"),
        ]
    )
    first, second = ManyvecRetriever(index).retrieve("red wine")
    assert first.node == TextNode(
        id_="other", text="red wine", metadata={"id": 3, "_llama_index": "a value of its own"}
    )
    assert second.node == TextNode(id_="none", text="white wine")


def test_nodes_are_sorted_by_the_scores_of_the_index(retriever: ManyvecRetriever) -> None:
    found = retriever.retrieve("green apple")
    # The first node holds both words, the others one each; vectors are stored in half precision.
    assert ids(found)[0] == "a 'quoted' id"
    assert found[0].score == pytest.approx(2.0, abs=2e-3)
    assert found[0].score > found[1].score
    assert [(node.node_id, node.score) for node in found] == [
        (hit.id, hit.score) for hit in retriever.index.search("green apple", 2)
    ]


@pytest.mark.parametrize(("k", "n_found"), [(0, 0), (1, 1), (3, 3), (50, 3)])
def test_at_most_similarity_top_k_nodes_are_returned(retriever: ManyvecRetriever, k: int, n_found: int) -> None:
    retriever.similarity_top_k = k
    assert len(retriever.retrieve("apple")) == n_found


def test_two_nodes_are_returned_by_default_as_elsewhere_in_llamaindex(retriever: ManyvecRetriever) -> None:
    assert len(retriever.retrieve("apple")) == 2


def test_a_negative_similarity_top_k_is_an_error(retriever: ManyvecRetriever) -> None:
    with pytest.raises(manyvec.InputError, match="-1"):
        retriever.with_options(similarity_top_k=-1).retrieve("apple")


def test_with_options_does_not_modify_the_retriever(retriever: ManyvecRetriever) -> None:
    assert ids(retriever.with_options(similarity_top_k=9, filters={"year": 2023}).retrieve("apple")) == ["linked"]
    assert (retriever.similarity_top_k, retriever.filters) == (2, None)
    filtered = retriever.with_options(filters=F("year") < 2023)
    assert ids(filtered.with_options(similarity_top_k=1).retrieve("tea")) == ["plain"]
    assert len(filtered.with_options(filters={}).retrieve("tea")) == 2
    assert filtered.with_options(similarity_top_k=0).retrieve("tea") == []


def test_nodes_and_query_are_not_modified_and_results_are_new_objects(tmp_path: Path) -> None:
    nodes, query = copy.deepcopy(NODES), QueryBundle("green tea")
    retriever = ManyvecRetriever.from_nodes(nodes, tmp_path, HashEncoder())
    found = retriever.retrieve(query)[0]
    assert nodes == NODES
    assert query == QueryBundle("green tea")
    found.node.metadata["year"] = 1
    found.node.relationships.clear()
    assert retriever.retrieve(query)[0].node == LINKED


def test_an_empty_index_returns_no_nodes(tmp_path: Path) -> None:
    retriever = ManyvecRetriever.from_nodes([], tmp_path, HashEncoder())
    assert retriever.retrieve("anything") == []
    assert asyncio.run(retriever.aretrieve("anything")) == []


def test_an_empty_query_returns_no_nodes(retriever: ManyvecRetriever) -> None:
    assert retriever.retrieve("") == []


def test_an_image_query_is_an_error_if_the_model_reads_no_images(retriever: ManyvecRetriever) -> None:
    with pytest.raises(manyvec.InputError, match="hash-64 reads no images: search with text"):
        retriever.retrieve(QueryBundle("", image_path="a.png"))


def test_evidence_names_the_matched_words_and_is_hidden_from_models(retriever: ManyvecRetriever) -> None:
    (found,) = retriever.with_options(similarity_top_k=1, evidence=True).retrieve("green tea")
    words = found.node.metadata["evidence"]["words"]
    assert [(word["word"], word["text"], word["span"]) for word in words] == [
        ("green", "green", [0, 5]),
        ("tea", "tea", [6, 9]),
    ]
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert "evidence" not in found.node.get_content(mode)
    assert retriever.retrieve("green tea")[0].node == LINKED
    assert retriever.evidence is False


def test_add_nodes_returns_ids_in_order_and_replaces_nodes_with_the_same_id(retriever: ManyvecRetriever) -> None:
    newer = TextNode(id_="plain", text="yellow banana")
    assert retriever.add_nodes(node for node in (newer, LINKED)) == ["plain", "linked"]
    assert retriever.index.count() == 3
    assert retriever.retrieve("yellow banana")[0].node == newer


def test_from_nodes_called_twice_stores_and_encodes_each_node_once(tmp_path: Path) -> None:
    class Counting(HashEncoder):
        n_encoded = 0

        def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
            Counting.n_encoded += len(texts)
            return super().encode_documents(texts)

    for _ in range(2):
        ManyvecRetriever.from_nodes(NODES, tmp_path, Counting(), filter_columns={"year": int})
    assert Counting.n_encoded == 3
    assert ManyvecRetriever.from_uri(tmp_path, HashEncoder()).index.count() == 3


def test_a_node_that_cannot_be_stored_is_named_in_the_error_and_nothing_is_stored(retriever: ManyvecRetriever) -> None:
    new = TextNode(id_="new", text="fine")
    with pytest.raises(manyvec.InputError, match="'object'"):
        retriever.add_nodes([new, TextNode(id_="bad", text="fine", metadata={"object": object()})])
    with pytest.raises(manyvec.InputError, match="'_llama_index' is reserved"):
        retriever.add_nodes([new, TextNode(id_="bad", text="fine", metadata={"_llama_index": 1})])
    assert retriever.index.count() == 3


def test_a_missing_index_and_another_encoder_are_errors(tmp_path: Path) -> None:
    ManyvecRetriever.from_nodes(NODES, tmp_path / "index", HashEncoder())
    with pytest.raises(manyvec.IndexNotFoundError):
        ManyvecRetriever.from_uri(tmp_path / "nowhere", HashEncoder())
    with pytest.raises(manyvec.ManifestError):
        ManyvecRetriever.from_uri(tmp_path / "index", HashEncoder(dim=32))


async def test_fifty_concurrent_calls_return_what_single_calls_return(tmp_path: Path) -> None:
    nodes = [TextNode(id_=f"n{i}", text=f"common word{i}") for i in range(50)]
    retriever = ManyvecRetriever.from_nodes(nodes, tmp_path, HashEncoder(), similarity_top_k=3)
    queries = [f"word{i} common" for i in range(50)]
    answers = await asyncio.gather(*map(retriever.aretrieve, queries))
    assert [ids(answer)[0] for answer in answers] == [f"n{i}" for i in range(50)]
    assert answers == [retriever.retrieve(query) for query in queries]


def test_a_query_engine_answers_from_the_nodes_without_an_api_key(retriever: ManyvecRetriever) -> None:
    engine = RetrieverQueryEngine(
        retriever.with_options(similarity_top_k=1), get_response_synthesizer(llm=MockLLM(), response_mode="compact")
    )
    response = engine.query("green tea")
    assert [node.node for node in response.source_nodes] == [LINKED]
    assert "green tea" in str(response)
    assert ids(asyncio.run(engine.aquery("red apple")).source_nodes) == ["plain"]


def test_the_text_of_a_query_transform_is_searched_for(retriever: ManyvecRetriever) -> None:
    class Hypothetical(BaseQueryTransform):
        def _get_prompts(self) -> dict[str, object]:
            return {}

        def _update_prompts(self, prompts: dict[str, object]) -> None:
            pass

        def _run(self, query_bundle: QueryBundle, metadata: dict[str, object]) -> QueryBundle:
            return QueryBundle(query_bundle.query_str, custom_embedding_strs=["green tea", "steeped"])

    engine = RetrieverQueryEngine(
        retriever.with_options(similarity_top_k=1), get_response_synthesizer(llm=MockLLM(), response_mode="compact")
    )
    response = TransformQueryEngine(engine, Hypothetical()).query("a hot drink")
    assert ids(response.source_nodes) == ["linked"]


def test_retrieval_events_carry_the_query_and_the_nodes(retriever: ManyvecRetriever, recorder: Any) -> None:
    found = [retriever.retrieve("green tea"), asyncio.run(retriever.aretrieve("green tea"))]
    kinds = [type(event) for event in recorder.events]
    assert kinds == [RetrievalStartEvent, RetrievalEndEvent] * 2
    assert {event.str_or_query_bundle for event in recorder.events} == {"green tea"}
    assert [event.nodes for event in recorder.events[1::2]] == found


def test_a_callback_manager_is_notified_of_the_retrieval(retriever: ManyvecRetriever) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    ManyvecRetriever(retriever.index, callback_manager=CallbackManager([debug])).retrieve("green tea")
    assert len(debug.get_event_pairs(CBEventType.RETRIEVE)) == 1


def test_an_index_node_leads_to_the_retriever_in_the_object_map(tmp_path: Path, retriever: ManyvecRetriever) -> None:
    router = ManyvecRetriever.from_nodes(
        [IndexNode(id_="x", text="about drinks", index_id="menu")], tmp_path / "router", HashEncoder()
    )
    recursive = ManyvecRetriever(router.index, object_map={"menu": retriever})
    assert ids(recursive.retrieve("green tea")) == ids(retriever.retrieve("green tea"))


LONG = "Cheese is made of milk. The red apple fell from the tree. Nobody saw it fall, because it was night."


def test_passages_are_returned_in_place_of_texts_by_retriever_store_and_reranker(tmp_path: Path) -> None:
    metadata = {"source": "fruit.pdf", "page": 3}
    nodes = [TextNode(id_="t", text=LONG, metadata=metadata), Document(id_="d", text=LONG, metadata=metadata)]
    retriever = ManyvecRetriever.from_nodes(nodes, tmp_path, HashEncoder(), passage_chars=40)
    store = ManyvecVectorStore(retriever.index, passage_chars=40)
    whole = retriever.with_options(passage_chars=1_000).retrieve("red apple")
    assert [found.node.get_content() for found in whole] == [LONG, LONG]
    plain = ManyvecRetriever(retriever.index).retrieve("red apple")
    results = [
        [found.node for found in retriever.retrieve("red apple")],
        store.query(VectorStoreQuery(query_str="red apple", similarity_top_k=2)).nodes,
        ManyvecVectorStore(retriever.index)
        .query(VectorStoreQuery(query_str="red apple", similarity_top_k=2), passage_chars=40)
        .nodes,
        [
            f.node
            for f in ManyvecRerank(index=retriever.index, passage_chars=40).postprocess_nodes(
                plain, query_str="red apple"
            )
        ],
        [
            f.node
            for f in ManyvecRerank(HashEncoder(), passage_chars=40).postprocess_nodes(plain, query_str="red apple")
        ],
    ]
    for found in results:
        assert [node.node_id for node in found or []] == ["d", "t"]
        for node in found or []:
            assert node.get_content() == "The red apple fell from the tree." == LONG[24:57]
            assert node.metadata == {**metadata, "start": 24, "end": 57, "n_chars": len(LONG)}
            shown = node.get_content(MetadataMode.LLM)
            assert "fruit.pdf" in shown and "n_chars" not in shown
    assert plain[0].node.get_content() == LONG
    assert store.get_nodes(["t"])[0].get_content() == LONG
    assert ManyvecVectorStore.from_dict(store.to_dict()).passage_chars == 40
