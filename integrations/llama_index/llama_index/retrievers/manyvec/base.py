"""`ManyvecRetriever`: search a manyvec index as a LlamaIndex retriever."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, Literal

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager
from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle
from llama_index.retrievers.manyvec._convert import (
    Filters,
    add_nodes,
    open_or_create,
    to_filter,
    to_node_with_score,
    to_nodes,
    to_query,
)

from manyvec import Encoder, in_thread
from manyvec.cluster import AnyIndex, open_index


class ManyvecRetriever(BaseRetriever):
    """Retriever that ranks nodes by exact late interaction (ColBERT's MaxSim), mixed with BM25 where that was measured.

    It needs no embedding model.

        retriever = ManyvecRetriever.from_nodes(nodes, "./papers", filter_columns={"year": int})
        retriever.retrieve("what is late interaction")
        retriever.with_options(similarity_top_k=20, filters={"year": [2023, 2024]}).retrieve("the same, in two years")

    Nodes are ordered by their score: the mix of late interaction and BM25, or MaxSim if BM25 takes no part. MaxSim is a
    sum over the query's tokens: the cutoff of a `SimilarityPostprocessor` then fits queries of one length only. With
    `evidence`, MaxSim is in the metadata in either case (`evidence["score"]`). Nothing is added without it, because a
    `QueryFusionRetriever` tells nodes apart by their metadata.

    Any manyvec index can be searched, also one filled by LangChain or the command line. A query with an `image_path` is
    searched by the image, and a query with text and image by both, whose scores add up; the model of the index must
    read images.

    Args:
        index: Index from `manyvec.Index.create` or `manyvec.Index.open`, or a cluster of `manyvec.cluster`.
        similarity_top_k: Maximum number of nodes to return.
        filters: LlamaIndex's `MetadataFilters`, a filter made with `manyvec.F`, or a dict such as `{"lang": "en"}`.
            They can use declared filter columns only.
        callback_manager: LlamaIndex callback manager.
        object_map: Objects that retrieved `IndexNode`s stand for, by `index_id`.
        verbose: Whether LlamaIndex prints what recursive retrieval does.
        evidence: Whether to add `evidence` to the metadata, hidden from language and embedding models: which words of
            the node matched which words of the query.
        lexical_weight: Share of BM25 in the score (`manyvec.Hit.final_score`), from 0 to 1; 0 ranks by late interaction
            alone. "auto" is what was measured for the model of the index, see `manyvec.Index.search`.
        passage_chars: Maximum length of the text of a returned node: the passage that matches the query best, with
            `start`, `end`, `n_chars` (of the whole text) and `source` in the metadata. The whole text is
            `retriever.index.get(node.node_id)`. By default the whole text is returned.
    """

    def __init__(
        self,
        index: AnyIndex,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: Filters | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
        *,
        evidence: bool = False,
        lexical_weight: float | Literal["auto"] = "auto",
        passage_chars: int | None = None,
    ) -> None:
        super().__init__(callback_manager=callback_manager, object_map=object_map, verbose=verbose)
        self.index = index
        self.similarity_top_k = similarity_top_k
        self.filters = filters
        self.evidence = evidence
        self.lexical_weight = lexical_weight
        self.passage_chars = passage_chars

    @classmethod
    def from_uri(
        cls,
        uri: str | PathLike[str] | None = None,
        encoder: str | Encoder | None = None,
        *,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: Filters | None = None,
        callback_manager: CallbackManager | None = None,
        evidence: bool = False,
        lexical_weight: float | Literal["auto"] = "auto",
        passage_chars: int | None = None,
        **place: Any,
    ) -> ManyvecRetriever:
        """Open an existing index or cluster.

        Args:
            uri: Folder, or `s3://`, `gs://`, `az://` URI.
            encoder: Encoder or its name. Defaults to the one the index was built with.
            similarity_top_k, filters, callback_manager, evidence, lexical_weight, passage_chars: See the class.
            **place: `storage_options`, `connection` and `table_name`, see `manyvec.Index.create`.

        Raises:
            IndexNotFoundError: There is no index at `uri`.
            ManifestError: The index was built with another encoder.
        """
        index = open_index(uri, encoder, **place)
        options: dict[str, Any] = {"evidence": evidence, "lexical_weight": lexical_weight}
        return cls(index, similarity_top_k, filters, callback_manager, passage_chars=passage_chars, **options)

    @classmethod
    def from_nodes(
        cls,
        nodes: Iterable[BaseNode],
        uri: str | PathLike[str] | None = None,
        encoder: str | Encoder = "minilm",
        *,
        filter_columns: Mapping[str, Any] | Literal["infer"] | None = None,
        dim: int | None = None,
        show_progress: bool = False,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: Filters | None = None,
        callback_manager: CallbackManager | None = None,
        evidence: bool = False,
        lexical_weight: float | Literal["auto"] = "auto",
        passage_chars: int | None = None,
        **place: Any,
    ) -> ManyvecRetriever:
        """Create an index, or open an existing one, and add nodes to it. Unchanged nodes are not re-encoded.

        Args:
            nodes: Nodes to add, see `add_nodes`.
            uri: Folder, or `s3://`, `gs://`, `az://` URI.
            encoder: Encoder, or a name for `manyvec.load_encoder`. An existing index must have been built with it.
            filter_columns: Metadata keys that filters can use, with their types: `{"year": int, "tags": list[str]}`.
                "infer" declares those of the first batch. An existing index must have the same ones.
            dim: Number of dimensions to keep in a new index; see `manyvec.Index.create`.
            show_progress: Whether to draw a progress bar.
            similarity_top_k, filters, callback_manager, evidence, lexical_weight, passage_chars: See the class.
            **place: `storage_options`, `connection` and `table_name`, see `manyvec.Index.create`.

        Raises:
            InputError: A node cannot be stored.
            ManifestError: The existing index has another encoder or other filter columns.
        """
        index = open_or_create(uri, encoder, filter_columns, dim, **place)
        options: dict[str, Any] = {"evidence": evidence, "lexical_weight": lexical_weight}
        retriever = cls(index, similarity_top_k, filters, callback_manager, passage_chars=passage_chars, **options)
        retriever.add_nodes(nodes, show_progress=show_progress)
        return retriever

    def add_nodes(self, nodes: Iterable[BaseNode], *, show_progress: bool = False) -> list[str]:
        """Add nodes to the index. A node whose id exists is replaced.

        Only a node's text is encoded, not its metadata. Of an `ImageNode`, an `ImageDocument` or a `Node` with an
        `image_resource` the image is encoded instead, if the model of the index reads images. Nodes without text and
        image are left out and logged.

        Args:
            nodes: Nodes with text or an image, and with metadata that JSON can represent.
            show_progress: Whether to draw a progress bar.

        Returns:
            The ids, in the order of the nodes.

        Raises:
            InputError: A node has only an image, which the model does not read, its image is a URL, which is never
                fetched, or its metadata cannot be written as JSON; none is added.
        """
        return add_nodes(nodes, self.index, show_progress=show_progress)

    def with_options(
        self,
        *,
        similarity_top_k: int | None = None,
        filters: Filters | None = None,
        evidence: bool | None = None,
        lexical_weight: float | Literal["auto"] | None = None,
        passage_chars: int | None = None,
    ) -> ManyvecRetriever:
        """Return a copy over the same index with other options, for a single call or another thread.

        Args:
            similarity_top_k, evidence, lexical_weight, passage_chars: See the class. None keeps the current value.
            filters: See the class. None keeps the current filters, `{}` removes them.
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
        if passage_chars is not None:
            retriever.passage_chars = passage_chars
        return retriever

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        hits = self.index.search(
            to_query(query_bundle),
            self.similarity_top_k,
            filter=None if self.filters is None else to_filter(self.filters, self.index.filter_columns),
            lexical_weight=self.lexical_weight,
            evidence=self.evidence,
            # Only words, or token vectors, match a passage.
            passage_chars=None if query_bundle.image_path else self.passage_chars,
        )
        return [to_node_with_score(hit, node) for hit, node in zip(hits, to_nodes(hits, self.index), strict=True)]

    _aretrieve = in_thread(_retrieve)
