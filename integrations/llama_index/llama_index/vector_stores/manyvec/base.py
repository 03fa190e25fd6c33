"""`ManyvecVectorStore`: a manyvec index as a LlamaIndex vector store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypeVar

import numpy as np
from llama_index.core.bridge.pydantic import BaseModel, PrivateAttr
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
    add_nodes,
    open_or_create,
    to_filter,
    to_node,
    to_node_with_score,
    to_nodes,
)

from manyvec import LEXICAL_WEIGHT, AllOf, Encoder, F, Filter, HasId, Hit, InputError, diversify, in_thread
from manyvec.candidates import Lexical, Pooled
from manyvec.cluster import AnyIndex, open_index

_Store = TypeVar("_Store", bound="ManyvecVectorStore")

# Number of nodes that BM25 finds for a text search, before late interaction ranks them.
_TEXT_DEPTH = 300
# Values of LanceDB's `query_type` option, which LlamaIndex users pass in `vector_store_kwargs`.
_QUERY_TYPES = {
    "vector": VectorStoreQueryMode.DEFAULT,
    "fts": VectorStoreQueryMode.TEXT_SEARCH,
    "hybrid": VectorStoreQueryMode.HYBRID,
}
_OPTIONS = (
    "depth", "evidence", "lexical_weight", "mmr_prefetch_factor", "mmr_threshold", "passage_chars", "query_type"
)  # fmt: skip
# Ranks nodes by their mean token vectors, which it computes once per version of an index.
_POOLED = Pooled()
# MMR chooses from this many times the number of nodes asked for.
_MMR_FACTOR = 4


class ManyvecVectorStore(BasePydanticVectorStore):
    """Vector store over a manyvec index, searched by exact late interaction.

        store = ManyvecVectorStore.create("./papers", "minilm", filter_columns={"year": int})
        store.add(nodes)
        index = VectorStoreIndex.from_vector_store(store, embed_model=ManyvecEmbedding())

    The index keeps one vector per token and is searched by the text of the query; embeddings of nodes are ignored. A
    query with an embedding but without text, as in a `PropertyGraphIndex`, is compared with the mean token vectors of
    the nodes. Nodes are returned as they were added, without their embedding. Async methods run in a thread.

    Supported query modes:
    - `default`: late interaction, mixed with BM25 as `lexical_weight` says.
    - `text_search`: late interaction over the nodes that share a word with the query.
    - `hybrid`: late interaction and BM25 whatever `lexical_weight` is. `alpha` is the share of late interaction, from 0
      to 1 and 0.7 by default.
    - `mmr`: nodes that match the query and differ from each other. `mmr_threshold` 1 ranks by the query alone, 0 by how
      different the nodes are.

    Similarities of a result are what nodes are ordered by (`Hit.final_score`): MaxSim, or its mix with BM25. With the
    option `evidence`, MaxSim is in the metadata too (`evidence["score"]`). `mmr` compares nodes by MaxSim alone.

    A query without words finds nothing. With filters it returns the first nodes by id that pass, with score 0, as a
    `VectorIndexAutoRetriever` asks for "papers of 2024".

    An empty list of `node_ids` or `doc_ids` is no restriction, because LlamaIndex passes it by default.

    Args:
        index: Index or cluster to search and write. It can be shared with retrievers, other stores and threads.
        uri: URI of the index to open if `index` is not given; `from_dict` passes it.
        table_name: Name of its table, if several indexes share the database; `from_dict` passes it.
        passage_chars: Maximum length of the text of a node that a query returns: the passage that matches best, with
            `start`, `end`, `n_chars` (of the whole text) and `source` in the metadata. `get_nodes` returns the whole
            text. By default queries return it, too.
        lexical_weight: Share of BM25 in the modes `default` and `mmr`, from 0 to 1; 0 ranks by late interaction alone.
            "auto" is what was measured for the model of the index, see `manyvec.Index.search`.

    Raises:
        InputError: Neither `index` nor `uri` is given.
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    uri: str = ""
    table_name: str | None = None
    passage_chars: int | None = None
    lexical_weight: float | Literal["auto"] = "auto"
    _index: AnyIndex = PrivateAttr()

    def __init__(
        self,
        index: AnyIndex | None = None,
        *,
        uri: str | None = None,
        table_name: str | None = None,
        passage_chars: int | None = None,
        lexical_weight: float | Literal["auto"] = "auto",
        **_fields: Any,
    ) -> None:
        if index is None and not uri:
            raise InputError("ManyvecVectorStore needs an index, or the uri of one")
        index = open_index(str(uri), table_name=table_name) if index is None else index
        super().__init__(stores_text=True, is_embedding_query=False)
        self.uri, self.table_name, self.passage_chars = index.uri, index.table_name, passage_chars
        self.lexical_weight = lexical_weight
        self._index = index

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex drops what cannot be pickled, and with it the index: a copy would search nothing.
        return BaseModel.__getstate__(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseModel.__setstate__(self, state)

    @classmethod
    def class_name(cls) -> str:
        return "ManyvecVectorStore"

    @classmethod
    def create(
        cls: type[_Store],
        uri: str | PathLike[str] | None = None,
        encoder: str | Encoder = "minilm",
        *,
        filter_columns: Mapping[str, Any] | Literal["infer"] | None = None,
        dim: int | None = None,
        **place: Any,
    ) -> _Store:
        """Create an index, or open an existing one.

        Args:
            uri: Folder, or `s3://`, `gs://`, `az://` URI.
            encoder: Encoder, or a name for `manyvec.load_encoder`. An existing index must have been built with it.
            filter_columns: Metadata keys that filters can use, with their types: `{"year": int, "tags": list[str]}`.
                "infer" declares those of the first batch. An existing index must have the same ones.
            dim: Number of dimensions to keep in a new index; see `manyvec.Index.create`.
            **place: `storage_options`, `connection` and `table_name`, see `manyvec.Index.create`.

        Raises:
            ManifestError: The existing index has another encoder or other filter columns.
        """
        return cls(open_or_create(uri, encoder, filter_columns, dim, **place))

    @classmethod
    def from_uri(
        cls: type[_Store], uri: str | PathLike[str] | None = None, encoder: str | Encoder | None = None, **place: Any
    ) -> _Store:
        """Open an existing index or cluster, by default with the encoder it was built with.

        Args:
            uri: Folder, or `s3://`, `gs://`, `az://` URI.
            encoder: Encoder or its name.
            **place: `storage_options`, `connection` and `table_name`, see `manyvec.Index.create`.
        """
        return cls(open_index(uri, encoder, **place))

    @property
    def client(self) -> AnyIndex:
        return self._index

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Add nodes. A node whose id exists is replaced; unchanged nodes are not re-encoded.

        Only a node's text is encoded, not its metadata. Of an `ImageNode`, an `ImageDocument` or a `Node` with an
        `image_resource` the image is encoded instead, if the model of the index reads images. If an id occurs more than
        once in a call, the last node wins. Nodes without text and image are left out and logged.

        Args:
            nodes: Nodes with text or an image, and with metadata that JSON can represent.
            **kwargs: Not accepted.

        Returns:
            The ids, in the order of the nodes.

        Raises:
            InputError: A node has only an image, which the model does not read, its image is a URL, which is never
                fetched, or its metadata cannot be written as JSON; none is added.
        """
        _reject("add", kwargs)
        return add_nodes(nodes, self._index)

    def get_nodes(self, node_ids: list[str] | None = None, filters: Filters | None = None) -> list[BaseNode]:
        """Return the nodes with these ids that pass the filters.

        Args:
            node_ids: Ids, which also determine the order; unknown ids are skipped. Defaults to all, sorted by id.
            filters: Condition that nodes must pass.
        """
        ids = node_ids
        if ids is None or filters is not None:
            passing = self._index.ids(self._where(filters, node_ids))
            ids = passing if node_ids is None else [id for id in dict.fromkeys(node_ids) if id in set(passing)]
        return [to_node(document) for document in self._index.get(ids)]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes split from this document, or the document itself if it was stored whole.

        Args:
            ref_doc_id: Id of the source document.
            **delete_kwargs: Not accepted.
        """
        _reject("delete", delete_kwargs)
        self._index.delete(filter=self._split_from([ref_doc_id]))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: Filters | None = None, **delete_kwargs: Any
    ) -> None:
        """Delete the nodes with these ids that pass the filters.

        Args:
            node_ids: Ids to delete; unknown ids are ignored, and an empty list deletes nothing.
            filters: Condition on the nodes to delete.
            **delete_kwargs: Not accepted.

        Raises:
            InputError: Neither ids nor filters are given; use `clear` to delete all.
        """
        _reject("delete_nodes", delete_kwargs)
        if node_ids is None and filters is None:
            raise InputError("delete_nodes takes node_ids, filters, or both; to delete all nodes use clear()")
        self._index.delete(filter=self._where(filters, node_ids))

    def clear(self) -> None:
        """Delete all nodes, but keep the index and its filter columns."""
        self._index.delete(filter={})

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Return the nodes that match best, best first, with the scores they are ranked by.

        Args:
            query: Query with `query_str` or `query_embedding`; optionally `similarity_top_k`, `filters`, `node_ids`,
                `doc_ids`, `mode`, `alpha`, `hybrid_top_k` and `mmr_threshold`. See the class for the modes.
            **kwargs: `mmr_prefetch_factor` and `mmr_threshold`, as for LlamaIndex's own stores; `query_type` (`vector`,
                `fts` or `hybrid`), which replaces the mode of the query; `depth` and `evidence`, see
                `manyvec.Index.search`; and `passage_chars` and `lexical_weight`, see the class.

        Raises:
            InputError: The query has neither text nor an embedding of the index's dimension, its mode is not supported,
                or an argument is unknown.
            FilterError: A filter names an undeclared column, or its value has another type.
        """
        _reject("query", kwargs, _OPTIONS)
        where = self._where(query.filters, query.node_ids or None)
        if query.doc_ids:
            where = AllOf((where, self._split_from(query.doc_ids)))
        if query.query_str is None:
            return self._query_by_embedding(query, where)
        hits = self._search(query.query_str, query, where, kwargs)
        if not hits and isinstance(query.filters, MetadataFilters) and not query.query_str.strip():
            ids = self._index.ids(where)[: query.similarity_top_k] if query.filters.filters else []
            nodes = [to_node(document) for document in self._index.get(ids)]
            return VectorStoreQueryResult(nodes=nodes, similarities=[0.0] * len(nodes), ids=[n.node_id for n in nodes])
        return VectorStoreQueryResult(
            nodes=[
                to_node_with_score(hit, node).node for hit, node in zip(hits, to_nodes(hits, self._index), strict=True)
            ],
            similarities=[hit.final_score for hit in hits],
            ids=[hit.id for hit in hits],
        )

    aget_nodes = in_thread(get_nodes)
    async_add = in_thread(add)
    adelete = in_thread(delete)
    adelete_nodes = in_thread(delete_nodes)
    aclear = in_thread(clear)
    aquery = in_thread(query)

    def _query_by_embedding(self, query: VectorStoreQuery, where: Filter) -> VectorStoreQueryResult:
        """Rank nodes by the cosine of the query embedding and their mean token vectors."""
        if query.query_embedding is None:
            raise InputError("the query has neither query_str nor query_embedding")
        try:
            vector = np.array(query.query_embedding, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"query_embedding must be a list of numbers: {error}") from error
        dim = self._index.info().dim
        if vector.shape != (dim,):
            raise InputError(
                f"the query has no text, and an embedding of {vector.size} dimensions where the index has {dim}: pass "
                f"query_str, or use ManyvecEmbedding with the model {self._index.model}"
            )
        k = query.similarity_top_k
        # All zeros is the embedding of a text without tokens, which finds nothing.
        ids = self._index.rank([vector[None]], _POOLED, k, filter=where)[0][:k] if k and vector.any() else []
        if not ids:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        means = self._index.token_vectors(ids).pooled()
        similarities = dict(zip(ids, (means @ (vector / np.linalg.norm(vector))).tolist(), strict=True))
        nodes = [to_node(document) for document in self._index.get(ids)]
        found = [node.node_id for node in nodes]
        return VectorStoreQueryResult(nodes=nodes, similarities=[similarities[id] for id in found], ids=found)

    def _search(self, text: str, query: VectorStoreQuery, where: Filter, options: Mapping[str, Any]) -> list[Hit]:
        k, mode = query.similarity_top_k, _mode(query, options.get("query_type"))
        search: dict[str, Any] = {"depth": options.get("depth"), "evidence": options.get("evidence", False)}
        search["passage_chars"] = options.get("passage_chars", self.passage_chars)
        lexical_weight = options.get("lexical_weight", self.lexical_weight)
        if mode == VectorStoreQueryMode.HYBRID:
            k = query.hybrid_top_k if query.hybrid_top_k is not None else k
            alpha = query.alpha if query.alpha is not None else 1 - LEXICAL_WEIGHT
            if not 0 <= alpha <= 1:
                raise InputError(f"alpha must be between 0 (BM25 only) and 1 (late interaction only), got {alpha!r}")
            return self._index.search(text, k, filter=where, lexical_weight=1 - alpha, **search)
        if mode == VectorStoreQueryMode.DEFAULT:
            return self._index.search(text, k, filter=where, lexical_weight=lexical_weight, **search)
        if mode == VectorStoreQueryMode.TEXT_SEARCH:
            ids = self._index.rank([text], Lexical(), max(k, _TEXT_DEPTH), filter=where)[0]
            return self._index.search(text, k, filter=HasId(ids), lexical_weight=0, **search)
        if mode == VectorStoreQueryMode.MMR:
            threshold = options.get("mmr_threshold", query.mmr_threshold)
            n_choices = round(k * options.get("mmr_prefetch_factor", _MMR_FACTOR))
            hits = self._index.search(text, max(k, n_choices), filter=where, lexical_weight=lexical_weight, **search)
            return diversify(self._index, hits, k, threshold if threshold is not None else 0.5)
        raise InputError(f"unsupported query mode {mode.value!r}; use default, text_search, hybrid or mmr")

    def _where(self, filters: Filters | None, node_ids: Sequence[str] | None) -> Filter:
        parts = [to_filter(filters, self._index.filter_columns), None if node_ids is None else HasId(node_ids)]
        return AllOf(tuple(part for part in parts if part is not None))

    def _split_from(self, ref_doc_ids: Sequence[str]) -> Filter:
        """Return a filter for the nodes split from these documents, and for these documents themselves."""
        if REF_DOC_KEY in self._index.filter_columns:
            return F(REF_DOC_KEY).in_(ref_doc_ids) | (HasId(ref_doc_ids) & F(REF_DOC_KEY).is_null())
        # The index was created elsewhere, without this column: read the source document from every node.
        wanted = set(ref_doc_ids)
        ids = self._index.ids()
        # In parts, because pages are read with their images.
        parts = (ids[start : start + 256] for start in range(0, len(ids), 256))
        nodes = (to_node(document) for part in parts for document in self._index.get(part))
        return HasId([node.node_id for node in nodes if (node.ref_doc_id or node.node_id) in wanted])


def _mode(query: VectorStoreQuery, query_type: str | None) -> VectorStoreQueryMode:
    if query_type is None:
        return query.mode
    if query_type not in _QUERY_TYPES:
        raise InputError(f"unknown query_type {query_type!r}; use {', '.join(_QUERY_TYPES)}")
    return _QUERY_TYPES[query_type]


def _reject(method: str, options: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Raise on unknown arguments: an option that is not supported must not be ignored."""
    if unknown := sorted(set(options) - set(known)):
        hint = f"; known are {', '.join(known)}" if known else ""
        raise InputError(f"{method} takes no argument {unknown[0]!r}{hint}")
