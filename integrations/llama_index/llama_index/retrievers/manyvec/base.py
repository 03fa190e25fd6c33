"""`ManyvecRetriever`: a manyvec index as an ordinary LlamaIndex retriever."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.retrievers.manyvec._convert import (
    Filters,
    open_or_create,
    to_document,
    to_filter,
    to_node,
    to_node_with_score,
    to_nodes,
    to_query,
)

from manyvec import Encoder, Filter, Index, InputError


class ManyvecRetriever(BaseRetriever):
    """Retrieve nodes by exact late interaction (ColBERT's MaxSim). No embedding model is asked for.

        retriever = ManyvecRetriever.from_nodes(nodes, "./papers", filter_columns={"year": int})
        retriever.retrieve("what is late interaction")
        retriever.with_options(similarity_top_k=20, filters={"year": [2023, 2024]}).retrieve("the same, in two years")

    A node's score is ColBERT's sum over the query's tokens, so it grows with the query: a cutoff in a
    `SimilarityPostprocessor` holds for queries of one length. Its id, text and metadata are as stored, whoever stored
    them: any manyvec index can be read, also one that LangChain or the command line has filled.

    Args:
        index: made with `manyvec.Index.create` or `manyvec.Index.open`.
        similarity_top_k: how many nodes, at most; an attribute, as in LlamaIndex's own retrievers.
        filters: LlamaIndex's `MetadataFilters`, a filter made with `manyvec.F`, or a dict of equal values such as
            `{"lang": "en"}`. Only declared filter columns can be named. An attribute too.
        object_map: what the `IndexNode`s found stand for, by `index_id`.
        evidence: put into the metadata, as `evidence`, which words of the node matched which of the query; it is hidden
            from language and embedding models. An attribute too.
        lexical_weight: of BM25 in a node's score, 0 to 1: 0.3 where names and rare words decide, see
            `manyvec.Index.search`. The score is then `manyvec.Hit.final_score`. An attribute too.

    A query without text that has an `image_path` is searched by the image, where the index's model reads images.
    """

    def __init__(
        self,
        index: Index,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: Filters | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
        *,
        evidence: bool = False,
        lexical_weight: float = 0,
    ) -> None:
        super().__init__(callback_manager=callback_manager, object_map=object_map, verbose=verbose)
        self.index = index
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.evidence = evidence
        self.lexical_weight = lexical_weight

    @classmethod
    def from_uri(
        cls,
        uri: str | PathLike[str],
        encoder: str | Encoder | None = None,
        *,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: Filters | None = None,
        callback_manager: CallbackManager | None = None,
        evidence: bool = False,
        lexical_weight: float = 0,
    ) -> ManyvecRetriever:
        """Open an index that is there; see `manyvec.Index.open` for the encoder and the errors."""
        index = Index.open(uri, encoder)
        return cls(index, similarity_top_k, filters, callback_manager, evidence=evidence, lexical_weight=lexical_weight)

    @classmethod
    def from_nodes(
        cls,
        nodes: Iterable[BaseNode],
        uri: str | PathLike[str],
        encoder: str | Encoder = "minilm",
        *,
        filter_columns: Mapping[str, Any] | None = None,
        show_progress: bool = False,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: Filters | None = None,
        callback_manager: CallbackManager | None = None,
        evidence: bool = False,
        lexical_weight: float = 0,
    ) -> ManyvecRetriever:
        """Create an index, or open the one that is there, and add nodes to it.

        Running it again with the same nodes encodes nothing again.

        Args:
            filter_columns: metadata keys that `filters` can name, with their types: `{"year": int, "tags": list[str]}`.
                An index that is there must have been created with the same ones, and with this encoder.
        """
        index = open_or_create(uri, encoder, filter_columns)
        retriever = cls(
            index, similarity_top_k, filters, callback_manager, evidence=evidence, lexical_weight=lexical_weight
        )
        retriever.add_nodes(nodes, show_progress=show_progress)
        return retriever

    def add_nodes(self, nodes: Iterable[BaseNode], *, show_progress: bool = False) -> list[str]:
        """Add nodes; one whose id is there already replaces the old one.

        A node's own text is encoded, without its metadata: what searches should find belongs into the text. Of an
        `ImageNode` it is the image (`image` or `image_path`), where the index's model reads images.

        Returns:
            The nodes' ids, in their order.

        Raises:
            manyvec.InputError: a node has neither text nor image, an image at a URL, which is never fetched, or
                metadata that JSON cannot hold.
        """
        documents = [to_document(node, self.index) for node in nodes]
        self.index.add(documents, show_progress=show_progress)
        return [document.id for document in documents]

    def with_options(
        self,
        *,
        similarity_top_k: int | None = None,
        filters: Filters | None = None,
        evidence: bool | None = None,
        lexical_weight: float | None = None,
    ) -> ManyvecRetriever:
        """The same retriever over the same index with other options, for one call or for a thread of its own.

        What is left out stays as it is; `filters={}` lifts the filter.
        """
        retriever = copy.copy(self)
        if similarity_top_k is not None:
            retriever.similarity_top_k = similarity_top_k
        if filters is not None:
            retriever.filters = filters
        if evidence is not None:
            retriever.evidence = evidence
        if lexical_weight is not None:
            retriever.lexical_weight = lexical_weight
        return retriever

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        where = to_filter(self.filters, self.index.filter_columns)
        if query_bundle.image_path and not query_bundle.embedding_strs:
            return self._like_image(query_bundle.image_path, where)
        hits = self.index.search(
            to_query(query_bundle),
            self.similarity_top_k,
            filter=where,
            lexical_weight=self.lexical_weight,
            evidence=self.evidence,
        )
        return [to_node_with_score(hit, node) for hit, node in zip(hits, to_nodes(hits, self.index), strict=True)]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)

    def _like_image(self, path: str, where: Filter | None) -> list[NodeWithScore]:
        encode_images = getattr(self.index.encoder, "encode_images", None)
        if encode_images is None:
            raise InputError(
                f"the query is the image {path}, and {self.index.model} reads no images: ask with a text, or build the "
                "index with a model that reads them, such as ColPali"
            )
        ids = self.index.ids(where)
        scores = self.index.score(encode_images([path]), ids)
        best = np.argsort(-scores, kind="stable")[: self.similarity_top_k]
        # What another process has deleted meanwhile has no score.
        found = {ids[i]: float(scores[i]) for i in best if not np.isnan(scores[i])}
        return [NodeWithScore(node=to_node(d), score=found[d.id]) for d in self.index.get(list(found))]
