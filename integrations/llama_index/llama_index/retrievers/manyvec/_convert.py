"""Convert between the nodes, queries and filters of LlamaIndex and the documents, strings and filters of manyvec."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from llama_index.core import schema
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters

from manyvec import (
    AllOf,
    AnyOf,
    Document,
    Encoder,
    F,
    Filter,
    FilterError,
    Hit,
    IndexNotFoundError,
    InputError,
    Passage,
    cluster,
    parse_filter,
)
from manyvec.cluster import AnyIndex

logger = logging.getLogger(__name__)

Filters = MetadataFilters | Filter | Mapping[str, Any]

# Metadata key for what a node has beyond id, text and metadata: relationships, templates, its class. A plain TextNode
# is stored without it, so other readers of the index see its metadata and nothing else.
NODE_KEY = "_llama_index"
# Metadata key for the id of a node's source document, in indexes that have a filter column of this name.
REF_DOC_KEY = "_ref_doc_id"
EVIDENCE_KEY = "evidence"
# Blank nodes that a warning describes one by one.
_MAX_NAMED = 5

_CLASSES = {
    kind.class_name(): kind for kind in (TextNode, ImageNode, IndexNode, Node, schema.Document, schema.ImageDocument)
}
_STORED_APART: Any = {"id_": True, "text": True, "text_resource": {"text"}, "metadata": True, "embedding": True}


def open_or_create(
    uri: str | PathLike[str] | None,
    encoder: str | Encoder,
    filter_columns: Mapping[str, Any] | Literal["infer"] | None,
    dim: int | None,
    **place: Any,
) -> AnyIndex:
    """Open the index at `uri` or create it, with a further filter column for the ids of source documents.

    Args:
        uri: Folder, or `s3://`, `gs://`, `az://` URI.
        encoder: Encoder, or a name for `manyvec.load_encoder`.
        filter_columns: Metadata keys that filters can use, with their types; "infer" for those of the first batch.
        dim: Number of dimensions to keep in a new index; see `manyvec.Index.create`.
        **place: `storage_options`, `connection` and `table_name`, see `manyvec.Index.create`.

    Raises:
        ManifestError: The existing index has another encoder or other filter columns.
    """
    if filter_columns == "infer":
        index = cluster.open_or_create(uri, encoder, filter_columns="infer", dim=dim, **place)
        if not index.count():
            index.add_filter_columns({REF_DOC_KEY: str})
        return index
    try:
        # An index that another framework created does not have this column.
        ref_doc_column = {REF_DOC_KEY: str} if REF_DOC_KEY in cluster.open_index(uri, **place).filter_columns else {}
        columns = None if filter_columns is None else {**filter_columns, **ref_doc_column}
    except IndexNotFoundError:
        columns = {**(filter_columns or {}), REF_DOC_KEY: str}
    return cluster.open_or_create(uri, encoder, filter_columns=columns, dim=dim, **place)


def add_nodes(nodes: Iterable[BaseNode], index: AnyIndex, *, show_progress: bool = False) -> list[str]:
    """Add nodes to an index and return their ids, in the order of the nodes.

    Nodes without text and image are left out and logged as a warning: one blank page must not stop an ingestion. Their
    ids are returned as well, because LlamaIndex matches ids with nodes by position.

    Raises:
        InputError: A node cannot be stored, see `to_document`; none is added.
    """
    nodes = list(nodes)
    kept = [node for node in nodes if not _is_blank(node)]
    if len(kept) < len(nodes):
        _log_blank(nodes)
    index.add([to_document(node, index) for node in kept], show_progress=show_progress)
    return [node.node_id for node in nodes]


def to_document(node: BaseNode, index: AnyIndex) -> Document:
    """Convert a node to the document to store. Its dense embedding is dropped, as in LlamaIndex's own stores.

    The image of an `ImageNode`, an `ImageDocument` or a `Node` with an `image_resource` becomes the image of the
    document if the index reads images. Otherwise the text is stored, and the image is kept with the node.

    Raises:
        InputError: The node has no text and no image that the index reads, its image is a URL, its metadata cannot be
            written as JSON, or the metadata uses a reserved key.
    """
    for key in (NODE_KEY, REF_DOC_KEY):
        if key in node.metadata:
            raise InputError(f"node {node.node_id!r}: the metadata key {key!r} is reserved, use another one")
    # In JSON types, as LlamaIndex's own stores write it: some nodes hold bytes and paths.
    rest = node.model_dump(mode="json", exclude=_STORED_APART, exclude_defaults=True)
    if not any((rest.get("text_resource") or {}).values()):
        rest.pop("text_resource", None)
    image = image_of(node) if index.reads_images else None
    text = node.get_content(MetadataMode.NONE)
    if image is None and not text.strip() and _has_image(node):
        raise InputError(
            f"node {node.node_id!r} has an image but no text, and {index.model} reads no images: add text, or build "
            "the index with a model that reads images, such as ColPali"
        )
    if image is not None:
        rest.pop("image", None)
    elif isinstance(node, Node) and node.image_resource is not None and node.image_resource.data is not None:
        # LlamaIndex leaves these bytes out of model_dump.
        rest.setdefault("image_resource", {})["data"] = node.image_resource.data.decode()
    is_plain = rest == {"class_name": TextNode.class_name()}
    metadata = node.metadata if is_plain else {**node.metadata, NODE_KEY: rest}
    if REF_DOC_KEY in index.filter_columns and node.ref_doc_id is not None:
        metadata = {**metadata, REF_DOC_KEY: node.ref_doc_id}
    return Document(node.node_id, text, metadata, image=image)


def image_of(node: BaseNode) -> bytes | Path | None:
    """Return the image of a node: its bytes, or the path of the file."""
    data, path, url = _image_source(node)
    if data:
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"node {node.node_id!r}: its image is not base64: {error}") from error
    if path:
        return Path(path)
    if url:
        raise InputError(
            f"node {node.node_id!r}: its image is the URL {url}, which is not fetched: load it and pass "
            "it as image (base64) or image_path"
        )
    return None


def _image_source(node: BaseNode) -> tuple[str | bytes | None, str | Path | None, str | None]:
    """Return the image of a node as base64, path and URL, each of which may be missing."""
    if isinstance(node, ImageNode):
        return node.image, node.image_path, node.image_url
    resource = node.image_resource if isinstance(node, Node) else None
    if resource is None:
        return None, None, None
    return resource.data, resource.path, str(resource.url) if resource.url else None


def _has_image(node: BaseNode) -> bool:
    return any(_image_source(node))


def _is_blank(node: BaseNode) -> bool:
    return not node.get_content(MetadataMode.NONE).strip() and not _has_image(node)


def _log_blank(nodes: Sequence[BaseNode]) -> None:
    """Log how many nodes have no text and no image, and position, id and source of the first of them."""
    blank = []
    for position, node in enumerate(nodes):
        if _is_blank(node):
            keys = ("file_name", "source", "page_label", "page")
            fields = [f"{key}={node.metadata[key]!r}" for key in keys if key in node.metadata]
            blank.append(" ".join([f"position {position} id={node.node_id!r}", *fields]))
    named = ", ".join(blank[:_MAX_NAMED]) + (", ..." if len(blank) > _MAX_NAMED else "")
    logger.warning("left out %d of %d nodes, which have no text and no image: %s", len(blank), len(nodes), named)


def to_nodes(hits: Sequence[Hit], index: AnyIndex) -> list[BaseNode]:
    """Convert hits to nodes, pages with their images. A page that was deleted since the search has no image."""
    pages = [hit.id for hit in hits if hit.is_page]
    images = {document.id: document.image for document in index.get(pages)} if pages else {}
    return [with_passage(to_node(hit, images.get(hit.id)), hit.passage) for hit in hits]


def with_passage(node: BaseNode, passage: Passage | None) -> BaseNode:
    """Copy a node with a passage in place of its text, and with where that is from in the metadata.

    Where it starts and ends is hidden from models; its source is not.
    """
    if passage is None:
        return node
    where = passage.origin(node.node_id, node.get_content(MetadataMode.NONE), node.metadata)
    hidden = [key for key in where if key != "source"]
    changes: dict[str, Any] = {
        "metadata": {**node.metadata, **where},
        "excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, *hidden],
        "excluded_llm_metadata_keys": [*node.excluded_llm_metadata_keys, *hidden],
    }
    if isinstance(node, Node):
        text = node.text_resource.model_copy(update={"text": passage.text}) if node.text_resource else None
        return node.model_copy(update={**changes, "text_resource": text})
    return node.model_copy(update={**changes, "text": passage.text})


def to_node_with_score(hit: Hit, node: BaseNode) -> NodeWithScore:
    """Attach the score and, hidden from models, the evidence. Metadata under the evidence key is kept instead."""
    if hit.evidence is not None and EVIDENCE_KEY not in node.metadata:
        node.metadata[EVIDENCE_KEY] = hit.evidence.to_dict()
        node.excluded_embed_metadata_keys.append(EVIDENCE_KEY)
        node.excluded_llm_metadata_keys.append(EVIDENCE_KEY)
    return NodeWithScore(node=node, score=hit.final_score)


def to_node(document: Document | Hit, image: bytes | Path | None = None) -> BaseNode:
    """Restore a stored node with its image. Documents of other writers become a `TextNode`, or an `ImageNode`."""
    rest = document.metadata.get(NODE_KEY)
    image = document.image if isinstance(document, Document) else image
    pixels = base64.b64encode(image).decode() if isinstance(image, bytes) else None
    plain = ImageNode if pixels else TextNode
    image_fields = {"image": pixels} if pixels else {}
    # Another writer may use the key for something else.
    if not isinstance(rest, dict) or "class_name" not in rest:
        return plain(id_=document.id, text=document.text, metadata=dict(document.metadata), **image_fields)
    metadata = {key: value for key, value in document.metadata.items() if key not in (NODE_KEY, REF_DOC_KEY)}
    # A class that users define is restored as a TextNode, as by LlamaIndex's own stores.
    kind = _CLASSES.get(rest["class_name"], plain)
    fields = {**rest, "id_": document.id, "metadata": metadata}
    if issubclass(kind, Node):
        if pixels:
            fields["image_resource"] = {**rest.get("image_resource", {}), "data": pixels}
        return kind.from_dict({**fields, "text_resource": {**rest.get("text_resource", {}), "text": document.text}})
    return kind.from_dict({**fields, **image_fields, "text": document.text})


def to_query(query: QueryBundle) -> str | Path | tuple[str, Path]:
    """Return what to search for: text, image, or both.

    The text is what a query transform such as HyDE wrote, else the query string.
    """
    text = "\n".join(query.embedding_strs)
    if not query.image_path:
        return text
    return (text, Path(query.image_path)) if text else Path(query.image_path)


def to_filter(filters: Filters | None, columns: Mapping[str, str]) -> Filter | None:
    """Convert LlamaIndex filters, or a dict, to a manyvec filter. A manyvec filter is returned unchanged.

    Semantics are those of LlamaIndex's in-memory store (`build_metadata_filter_fn`), also for nested filters: a missing
    value passes `!=`, `nin` and `is_empty` only, and NOT passes documents that none of the filters match.

    Args:
        filters: Filters to convert, or None.
        columns: Filter columns of the index with their types, see `manyvec.Index.filter_columns`.

    Raises:
        FilterError: An operator is unknown, or does not fit the column or the value.
    """
    if not isinstance(filters, MetadataFilters):
        return None if filters is None else parse_filter(filters)
    return _all_conditions(filters, columns)


def _all_conditions(filters: MetadataFilters, columns: Mapping[str, str]) -> Filter:
    parts = tuple(
        _all_conditions(part, columns) if isinstance(part, MetadataFilters) else _condition(part, columns)
        for part in filters.filters
    )
    if not parts or filters.condition in (None, FilterCondition.AND):
        return AllOf(parts)
    if filters.condition == FilterCondition.OR:
        return AnyOf(parts)
    if filters.condition == FilterCondition.NOT:
        return ~AnyOf(parts)
    raise FilterError(f"unknown filter condition {filters.condition!r}; use and, or, not")


def _condition(part: MetadataFilter, columns: Mapping[str, str]) -> Filter:
    column, kind, operator = F(part.key), columns.get(part.key), part.operator
    if kind is None:
        declared = ", ".join(f"{name}: {of}" for name, of in columns.items() if name != REF_DOC_KEY) or "none"
        raise FilterError(
            f"there is no filter column {part.key!r}; declared columns: {declared}. To add it, call "
            f"index.add_filter_columns({{{part.key!r}: str}}), or another type."
        )
    if operator == FilterOperator.IS_EMPTY:
        return column.is_empty()
    if operator in _TEXT_OPERATORS and kind != "str":
        raise FilterError(f"{operator.value} needs a str column; {part.key!r} is a {kind}: use contains, ==, in")
    if part.value is None:
        raise FilterError(f"{operator.value} on {part.key!r} needs a value; to find missing values use is_empty")
    value = _value(part.value, kind)
    if operator in (FilterOperator.ANY, FilterOperator.ALL):
        if not isinstance(value, list):
            raise FilterError(f"{operator.value} on {part.key!r} takes a list of values, got {value!r}")
        holds = tuple(column.contains(item) for item in value)
        return AnyOf(holds) if operator == FilterOperator.ANY else AllOf((~column.is_null(), *holds))
    if operator not in _COMPARISONS:
        raise FilterError(f"unknown filter operator {operator!r} for {part.key!r}")
    return _COMPARISONS[operator](column, value)


def _value(value: Any, kind: str | None) -> Any:
    """Convert 0 and 1 to booleans for a boolean column: a `MetadataFilter` does not accept True and False."""
    if kind not in ("bool", "list[bool]"):
        return value
    if isinstance(value, list):
        return [_value(item, kind) for item in value]
    return bool(value) if isinstance(value, int) and value in (0, 1) else value


_TEXT_OPERATORS = (FilterOperator.TEXT_MATCH, FilterOperator.TEXT_MATCH_INSENSITIVE)
_COMPARISONS: dict[FilterOperator, Callable[[F, Any], Filter]] = {
    FilterOperator.EQ: F.__eq__,
    FilterOperator.NE: F.__ne__,
    FilterOperator.LT: F.__lt__,
    FilterOperator.LTE: F.__le__,
    FilterOperator.GT: F.__gt__,
    FilterOperator.GTE: F.__ge__,
    FilterOperator.IN: F.in_,
    FilterOperator.NIN: F.not_in,
    FilterOperator.CONTAINS: F.contains,
    FilterOperator.TEXT_MATCH: F.contains,
    FilterOperator.TEXT_MATCH_INSENSITIVE: lambda column, value: column.contains(value, ignore_case=True),
}
