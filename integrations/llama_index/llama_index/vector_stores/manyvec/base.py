"""`ManyvecVectorStore`: a manyvec index as a LlamaIndex vector store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.retrievers.manyvec._convert import (
    REF_DOC_KEY,
    Filters,
    open_or_create,
    to_document,
    to_filter,
    to_node,
    to_nodes,
)

from manyvec import LEXICAL_WEIGHT, AllOf, Encoder, F, Filter, HasId, Hit, Index, InputError, diversify
from manyvec.candidates import Lexical

_Store = TypeVar("_Store", bound="ManyvecVectorStore")

# Nodes that a text search finds by words before it puts them in order.
_TEXT_DEPTH = 300
# Of so many times the nodes asked for MMR makes its choice.
_MMR_FACTOR = 4


class ManyvecVectorStore(BasePydanticVectorStore):
    """Nodes in a manyvec index, found by exact late interaction, for everything that takes a vector store.

        store = ManyvecVectorStore.create("./papers", "minilm", filter_columns={"year": int})
        store.add(nodes)
        index = VectorStoreIndex.from_vector_store(store, embed_model=ManyvecEmbedding())

    It searches by the query's text and keeps one vector per token, so that embeddings of nodes and queries are left
    aside. Nodes come back equal to what went in, without their embedding. Async methods work in a thread.

    The modes of a query: `default`; `text_search`, nodes that share a word with the query; `hybrid`, late interaction
    and BM25 added (`Hit.final_score`), with `alpha` 1 for the order of the one, 0 for that of the other, and 0.7, which
    measured best, for None; `mmr`, with `mmr_threshold` 1 for the query alone and 0 for nodes unlike each other.

    An empty list of `node_ids` or `doc_ids` restricts nothing, as LlamaIndex passes it.

    Args:
        index: the index; retrievers, other stores and threads may share it.
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    _index: Index = PrivateAttr()

    def __init__(self, index: Index) -> None:
        super().__init__(stores_text=True, is_embedding_query=False)
        self._index = index

    @classmethod
    def class_name(cls) -> str:
        return "ManyvecVectorStore"

    @classmethod
    def create(
        cls: type[_Store],
        uri: str | PathLike[str],
        encoder: str | Encoder = "minilm",
        *,
        filter_columns: Mapping[str, Any] | None = None,
    ) -> _Store:
        """Make an index, or open the one that is there.

        Args:
            uri: a folder, or `s3://`, `gs://`, `az://`.
            encoder: a name for `manyvec.load_encoder`, or an encoder.
            filter_columns: metadata keys that filters can name, with their types: `{"year": int, "tags": list[str]}`.

        Raises:
            ManifestError: the index there has another encoder, or other filter columns.
        """
        return cls(open_or_create(uri, encoder, filter_columns))

    @classmethod
    def from_uri(cls: type[_Store], uri: str | PathLike[str], encoder: str | Encoder | None = None) -> _Store:
        """Open an index that is there, by default with the encoder it was built with; see `manyvec.Index.open`."""
        return cls(Index.open(uri, encoder))

    @property
    def client(self) -> Index:
        return self._index

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes; one whose id is there already replaces the old one. Of equal ids in one call the last wins.

        A node's own text is encoded, without its metadata; of an `ImageNode` its image, where the index's model reads
        images. What is there as it is, is not encoded again.

        Returns:
            The nodes' ids, in their order.

        Raises:
            InputError: a node has neither text nor image, an image at a URL, which is never fetched, or metadata that
                JSON cannot hold; none of the nodes is added.
        """
        documents = [to_document(node, self._index) for node in nodes]
        self._index.add(documents)
        return [document.id for document in documents]

    def get_nodes(self, node_ids: list[str] | None = None, filters: Filters | None = None) -> list[BaseNode]:
        """The nodes with these ids, in their order, that pass the filters; unknown ids are left out.

        Without ids, all nodes that pass, in the order of ids.
        """
        ids = node_ids
        if ids is None or filters is not None:
            passing = self._index.ids(self._where(filters, node_ids))
            ids = passing if node_ids is None else [id for id in dict.fromkeys(node_ids) if id in set(passing)]
        return [to_node(document) for document in self._index.get(ids)]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes that were cut from this document, or the document itself if it was stored whole."""
        self._index.delete(filter=self._cut_from([ref_doc_id]))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: Filters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete the nodes with these ids that pass the filters; unknown ids do no harm, and no ids delete nothing.

        Raises:
            InputError: neither ids nor filters are given; `clear` deletes all.
        """
        if node_ids is None and filters is None:
            raise InputError("delete_nodes takes node_ids, filters, or both; to delete all nodes use clear()")
        self._index.delete(filter=self._where(filters, node_ids))

    def clear(self) -> None:
        """Delete all nodes; the index and its filter columns stay."""
        self._index.delete(filter={})

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes that match best, best first, with the score that orders them; see the class for the modes.

        Args:
            query: `query_str`, `similarity_top_k`, `filters`, `node_ids`, `doc_ids`, `mode`, `alpha`, `hybrid_top_k`
                and `mmr_threshold` are heeded.
            **kwargs: `mmr_prefetch_factor` and `mmr_threshold`, as LlamaIndex's own stores take them.

        Raises:
            InputError: there is no text to search by, or the mode is not one of the four.
            FilterError: a filter that the index cannot answer.
        """
        if query.query_str is None:
            raise InputError("the query has no text: query_str is searched by, an embedding alone finds nothing here")
        where = self._where(query.filters, query.node_ids or None)
        if query.doc_ids:
            where = AllOf((where, self._cut_from(query.doc_ids)))
        found = self._found(query.query_str, query, where, kwargs)
        return VectorStoreQueryResult(
            nodes=to_nodes(found, self._index),
            similarities=[hit.final_score for hit in found],
            ids=[hit.id for hit in found],
        )

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        await asyncio.to_thread(self.clear)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        return await asyncio.to_thread(self.query, query, **kwargs)

    def _found(self, text: str, query: VectorStoreQuery, where: Filter, options: Mapping[str, Any]) -> list[Hit]:
        k = query.similarity_top_k
        if query.mode == VectorStoreQueryMode.HYBRID:
            k = query.hybrid_top_k if query.hybrid_top_k is not None else k
            alpha = query.alpha if query.alpha is not None else 1 - LEXICAL_WEIGHT
            if not 0 <= alpha <= 1:
                raise InputError(f"alpha must be between 0, BM25 alone, and 1, late interaction alone; got {alpha!r}")
            hits = self._index.search(text, k, filter=where, lexical_weight=1 - alpha)
        elif query.mode == VectorStoreQueryMode.DEFAULT:
            hits = self._index.search(text, k, filter=where)
        elif query.mode == VectorStoreQueryMode.TEXT_SEARCH:
            sharing = self._index.rank([text], Lexical(), max(k, _TEXT_DEPTH), filter=where)[0]
            hits = self._index.search(text, k, filter=HasId(sharing))
        elif query.mode == VectorStoreQueryMode.MMR:
            threshold = options.get("mmr_threshold", query.mmr_threshold)
            n_choices = round(k * options.get("mmr_prefetch_factor", _MMR_FACTOR))
            hits = self._index.search(text, max(k, n_choices), filter=where)
            hits = diversify(self._index, hits, k, threshold if threshold is not None else 0.5)
        else:
            raise InputError(f"manyvec has no query mode {query.mode.value!r}; use default, text_search, hybrid or mmr")
        return hits

    def _where(self, filters: Filters | None, node_ids: Sequence[str] | None) -> Filter:
        named = None if node_ids is None else HasId(node_ids)
        return AllOf(
            tuple(part for part in (to_filter(filters, self._index.filter_columns), named) if part is not None)
        )

    def _cut_from(self, ref_doc_ids: Sequence[str]) -> Filter:
        """The nodes that were cut from these documents, and these documents themselves."""
        whole = HasId(ref_doc_ids)
        if REF_DOC_KEY in self._index.filter_columns:
            return F(REF_DOC_KEY).in_(ref_doc_ids) | (whole & F(REF_DOC_KEY).is_null())
        # An index that something else made: what its nodes were cut from has to be read from each of them.
        wanted = set(ref_doc_ids)
        ids = self._index.ids()
        # Not all at once: pages come with their images.
        parts = (ids[start : start + 256] for start in range(0, len(ids), 256))
        nodes = (to_node(document) for part in parts for document in self._index.get(part))
        return HasId([node.node_id for node in nodes if (node.ref_doc_id or node.node_id) in wanted])
