"""`ManyvecRerank`: sort the nodes of any retriever by exact MaxSim scores."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from llama_index.core import instrumentation
from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from llama_index.retrievers.manyvec._convert import image_of, with_passage

from manyvec import Encoder, ImageReader, InputError, Reranker, load_encoder
from manyvec.cluster import AnyIndex, open_index

dispatcher = instrumentation.get_dispatcher(__name__)  # type: ignore[attr-defined]

RETRIEVAL_SCORE = "retrieval_score"
_MUTABLE = ("metadata", "relationships", "excluded_embed_metadata_keys", "excluded_llm_metadata_keys")


class ManyvecRerank(BaseNodePostprocessor):
    """Postprocessor that sorts nodes by exact late-interaction scores and keeps the best.

        ManyvecRerank(top_n=5, model="minilm").postprocess_nodes(nodes, query_str="what is late interaction")
        ManyvecRerank(top_n=5, index=index)     # nodes that the index holds are not re-encoded

    Returned nodes are copies; their score is ColBERT's MaxSim, summed over the query's tokens. A node without text
    has the lowest score there is and comes last, and equal scores keep their order. Each call emits LlamaIndex's rerank
    events.

    With an index, a node is scored by its text, which is what the index stores. Without one, it is scored by what
    LlamaIndex shows an embedding model: the text with the metadata that is not excluded. A page, such as an
    `ImageNode`, is scored by its image if the model reads images; so is a query with an `image_path`.

    Args:
        model: Encoder, or a name for `manyvec.load_encoder`. Defaults to the encoder of `index`, or to `minilm`.
        top_n: Maximum number of nodes to return.
        device: Device that the model runs on: `cpu`, `cuda`, `mps` or `auto`.
        keep_retrieval_score: Whether to keep the previous score in the metadata as `retrieval_score`, hidden from
            language and embedding models.
        index: Index or cluster whose stored vectors are used for nodes that it holds with the same id and text.
        passage_chars: Maximum length of the text of a returned node: the passage that matches the query best, with
            `start`, `end`, `n_chars` (of the whole text) and `source` in the metadata. Nodes that the index does not
            hold are encoded once more for that.
        index_uri, index_table_name: Index to open if `index` is not given; `from_dict` passes them.
        callback_manager: LlamaIndex callback manager.

    Raises:
        InputError: An index is given together with a model or device.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", protected_namespaces=())

    model: str = Field(description="Name of the late-interaction model.")
    top_n: int = Field(default=5, ge=0, description="Maximum number of nodes to return.")
    device: str | None = Field(default=None, description="Device that the model runs on.")
    keep_retrieval_score: bool = Field(default=False, description="Whether to keep the previous score in the metadata.")
    passage_chars: int | None = Field(default=None, ge=1, description="Maximum length of a returned node's text.")
    index_uri: str | None = Field(default=None, description="URI of the index whose stored vectors are used.")
    index_table_name: str | None = Field(default=None, description="Name of its table, if it is not the usual one.")
    _index: AnyIndex | None = PrivateAttr(default=None)
    _reranker: Reranker | None = PrivateAttr(default=None)

    def __init__(
        self,
        model: str | Encoder | None = None,
        top_n: int = 5,
        device: str | None = None,
        keep_retrieval_score: bool = False,
        *,
        index: AnyIndex | None = None,
        passage_chars: int | None = None,
        index_uri: str | None = None,
        index_table_name: str | None = None,
        callback_manager: CallbackManager | None = None,
        **kwargs: Any,
    ) -> None:
        if index is None and index_uri is not None:
            index = open_index(index_uri, table_name=index_table_name)
            # to_dict writes the name of the index's model.
            model = None if model == index.model else model
        if index is not None and (model is not None or device is not None):
            raise InputError("pass either an index, which has an encoder, or a model: Index.open takes an encoder")
        if device is not None and model is not None and not isinstance(model, str):
            raise InputError("device needs the name of a model: an encoder object is on its device already")
        name = index.model if index is not None else "minilm" if model is None else model
        kwargs |= {"model": name if isinstance(name, str) else name.name, "top_n": top_n, "device": device}
        kwargs |= {"keep_retrieval_score": keep_retrieval_score, "index_uri": None if index is None else index.uri}
        kwargs["passage_chars"] = passage_chars
        kwargs["index_table_name"] = None if index is None else index.table_name
        super().__init__(callback_manager=callback_manager or CallbackManager(), **kwargs)
        self._index = index
        if index is not None or not isinstance(name, str):
            self._reranker = Reranker(None if isinstance(name, str) else name, index=index)

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex drops what cannot be pickled, and with it the index: a copy would order nodes by another model.
        state = BaseModel.__getstate__(self)
        # Callback handlers belong to this process.
        return {**state, "__dict__": {**state["__dict__"], "callback_manager": CallbackManager()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseModel.__setstate__(self, state)

    @classmethod
    def class_name(cls) -> str:
        return "ManyvecRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("reranking needs a query: pass query_str or query_bundle")
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query_bundle.query_str,
            EventPayload.TOP_K: self.top_n,
        }
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=self.top_n, model_name=self.model))
        with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            ranked = self._rerank(nodes, query_bundle)
            event.on_end(payload={EventPayload.NODES: ranked})
        dispatcher.event(ReRankEndEvent(nodes=ranked))
        return ranked

    def _rerank(self, nodes: list[NodeWithScore], query: QueryBundle) -> list[NodeWithScore]:
        if not nodes:
            return []
        mode = MetadataMode.EMBED if self._index is None else MetadataMode.NONE
        texts = [found.node.get_content(mode) for found in nodes]
        reranker, ids = self._loaded(), [found.node.node_id for found in nodes]
        reads_images = isinstance(reranker.encoder, ImageReader)
        images = [image_of(found.node) if reads_images else None for found in nodes]
        # Unlike a retriever's query, not what a transform such as HyDE wrote.
        parts = (query.query_str, Path(query.image_path)) if query.image_path else query.query_str
        best = reranker.order(parts, texts, self.top_n, ids=ids, images=images)
        scored = [self._scored(nodes[position], score) for position, score, _ in best]
        if self.passage_chars is None:
            return scored
        bare = [found.node.get_content(MetadataMode.NONE) for found in scored]
        passages = reranker.passages(query.query_str, bare, self.passage_chars, ids=[f.node.node_id for f in scored])
        for found, passage, (position, _, _) in zip(scored, passages, best, strict=True):
            if images[position] is None:
                found.node = with_passage(found.node, passage)
        return scored

    def _loaded(self) -> Reranker:
        # If two threads get here, both rerankers share the encoder: a model is loaded once per process.
        if self._reranker is None:
            self._reranker = Reranker(load_encoder(self.model, device=self.device or "auto"))
        return self._reranker

    def _scored(self, found: NodeWithScore, score: float) -> NodeWithScore:
        # A deep copy of the node itself could copy a whole retriever that an IndexNode holds.
        copies = {name: copy.deepcopy(getattr(found.node, name)) for name in _MUTABLE}
        if self.keep_retrieval_score:
            copies["metadata"][RETRIEVAL_SCORE] = found.score
            copies["excluded_embed_metadata_keys"].append(RETRIEVAL_SCORE)
            copies["excluded_llm_metadata_keys"].append(RETRIEVAL_SCORE)
        return NodeWithScore(node=found.node.model_copy(update=copies), score=score)
