"""Between LlamaIndex's nodes, queries and filters and manyvec's documents, texts and filters."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

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
    Index,
    IndexNotFoundError,
    InputError,
    parse_filter,
)

Filters = MetadataFilters | Filter | Mapping[str, Any]

# Under this metadata key lies what a node holds beyond id, text and metadata: relationships, templates, its class.
# A plain TextNode has no such key, so other readers of the index see its metadata and nothing else.
NODE_KEY = "_llama_index"
# And under this one the id of the document that a node was cut from, where the index has a filter column of that name.
REF_DOC_KEY = "_ref_doc_id"
EVIDENCE_KEY = "evidence"

_CLASSES = {kind.class_name(): kind for kind in (TextNode, ImageNode, IndexNode, Node, schema.Document)}
_KEPT_BESIDE: Any = {"id_": True, "text": True, "text_resource": {"text"}, "metadata": True, "embedding": True}


def open_or_create(uri: str | PathLike[str], encoder: str | Encoder, filter_columns: Mapping[str, Any] | None) -> Index:
    """The index at `uri`, or a new one there: with these filter columns, and one for the documents nodes were cut from.

    Raises:
        ManifestError: the index there has another encoder, or other filter columns than are asked for.
    """
    try:
        # Other writers' indexes have no such column.
        own = {REF_DOC_KEY: str} if REF_DOC_KEY in Index.open(uri).filter_columns else {}
        columns = None if filter_columns is None else {**filter_columns, **own}
    except IndexNotFoundError:
        columns = {**(filter_columns or {}), REF_DOC_KEY: str}
    return Index.create(uri, encoder, filter_columns=columns, exist_ok=True)


def to_document(node: BaseNode, index: Index) -> Document:
    """The node as manyvec stores it. A dense embedding is left out, as LlamaIndex's own stores leave it out.

    The image of an `ImageNode` becomes the document's where the index reads images; elsewhere the node is its text.

    Raises:
        InputError: there is neither text nor image, the image is at a URL, JSON cannot hold the metadata, or the
            metadata uses a reserved key.
    """
    for key in (NODE_KEY, REF_DOC_KEY):
        if key in node.metadata:
            raise InputError(f"node {node.node_id!r}: the metadata key {key!r} is reserved, use another")
    # In JSON's types, as LlamaIndex's own stores write it: there are bytes and paths in some nodes.
    rest = node.model_dump(mode="json", exclude=_KEPT_BESIDE, exclude_defaults=True)
    if not any((rest.get("text_resource") or {}).values()):
        rest.pop("text_resource", None)
    image = _image(node) if index.reads_images and isinstance(node, ImageNode) else None
    if image is not None:
        rest.pop("image", None)
    is_plain = rest == {"class_name": TextNode.class_name()}
    metadata = node.metadata if is_plain else {**node.metadata, NODE_KEY: rest}
    if REF_DOC_KEY in index.filter_columns and node.ref_doc_id is not None:
        metadata = {**metadata, REF_DOC_KEY: node.ref_doc_id}
    return Document(node.node_id, node.get_content(MetadataMode.NONE), metadata, image=image)


def _image(node: ImageNode) -> bytes | Path | None:
    if node.image:
        try:
            return base64.b64decode(node.image, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"node {node.node_id!r}: its image is not base64: {error}") from error
    if node.image_path:
        return Path(node.image_path)
    if node.image_url:
        raise InputError(
            f"node {node.node_id!r}: its image is at {node.image_url}, and nothing is fetched from there: load it, and "
            "give it as image (base64) or image_path"
        )
    return None


def to_nodes(hits: Sequence[Hit], index: Index) -> list[BaseNode]:
    """The nodes found, pages with their images; the image of one that was deleted meanwhile is missing."""
    pages = [hit.id for hit in hits if hit.is_page]
    images = {document.id: document.image for document in index.get(pages)} if pages else {}
    return [to_node(hit, images.get(hit.id)) for hit in hits]


def to_node_with_score(hit: Hit, node: BaseNode) -> NodeWithScore:
    """The node with its score and, hidden from models, its evidence; metadata stored under that key stays."""
    if hit.evidence is not None and EVIDENCE_KEY not in node.metadata:
        node.metadata[EVIDENCE_KEY] = hit.evidence.to_dict()
        node.excluded_embed_metadata_keys.append(EVIDENCE_KEY)
        node.excluded_llm_metadata_keys.append(EVIDENCE_KEY)
    return NodeWithScore(node=node, score=hit.final_score)


def to_node(document: Document | Hit, image: bytes | Path | None = None) -> BaseNode:
    """The node as it was stored, with its image; what another writer stored is a TextNode, or an ImageNode."""
    rest = document.metadata.get(NODE_KEY)
    image = document.image if isinstance(document, Document) else image
    pixels = {"image": base64.b64encode(image).decode()} if isinstance(image, bytes) else {}
    plain = ImageNode if pixels else TextNode
    # A document that something else wrote may use the key for something else.
    if not isinstance(rest, dict) or "class_name" not in rest:
        return plain(id_=document.id, text=document.text, metadata=dict(document.metadata), **pixels)
    own = {key: value for key, value in document.metadata.items() if key not in (NODE_KEY, REF_DOC_KEY)}
    # A class of the user's own comes back as a TextNode, as from LlamaIndex's own stores.
    kind = _CLASSES.get(rest["class_name"], plain)
    fields = {**rest, **pixels, "id_": document.id, "metadata": own}
    if issubclass(kind, Node):
        return kind.from_dict({**fields, "text_resource": {**rest.get("text_resource", {}), "text": document.text}})
    return kind.from_dict({**fields, "text": document.text})


def to_query(query: QueryBundle) -> str:
    """The text to encode: what a query transform such as HyDE wrote, or else the question itself."""
    return "\n".join(query.embedding_strs)


def to_filter(filters: Filters | None, columns: Mapping[str, str]) -> Filter | None:
    """Write LlamaIndex's filters in manyvec's terms; manyvec's own mean what they mean there.

    The meaning is that of LlamaIndex's in-memory store (`build_metadata_filter_fn`), nested filters included: a missing
    value fits `!=`, `nin` and `is_empty` only, and NOT asks that none of the filters fits.

    Args:
        columns: the index's filter columns and their types; `manyvec.Index.filter_columns`.

    Raises:
        FilterError: an operator that manyvec lacks, or one that the column or the value does not fit.
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
    raise FilterError(f"manyvec has no filter condition {filters.condition!r}; use and, or, not")


def _condition(part: MetadataFilter, columns: Mapping[str, str]) -> Filter:
    column, kind, operator = F(part.key), columns.get(part.key), part.operator
    if kind is None:
        declared = ", ".join(f"{name}: {of}" for name, of in columns.items() if name != REF_DOC_KEY) or "none"
        raise FilterError(
            f"there is no filter column {part.key!r}; declared are: {declared}. Metadata keys to filter on are "
            f"declared when the index is made: filter_columns={{{part.key!r}: str}}, or int, float, list[str], ..."
        )
    if operator == FilterOperator.IS_EMPTY:
        return column.is_empty()
    if operator in _TEXT_OPERATORS and kind != "str":
        raise FilterError(f"{operator.value} works on text; {part.key!r} is a {kind}: use contains, ==, in")
    if part.value is None:
        raise FilterError(f"{operator.value} on {part.key!r} needs a value; to find missing values use is_empty")
    value = _value(part.value, kind)
    if operator in (FilterOperator.ANY, FilterOperator.ALL):
        if not isinstance(value, list):
            raise FilterError(f"{operator.value} on {part.key!r} takes a list of values, got {value!r}")
        holds = tuple(column.contains(item) for item in value)
        return AnyOf(holds) if operator == FilterOperator.ANY else AllOf((~column.is_null(), *holds))
    if operator not in _COMPARISONS:
        raise FilterError(f"manyvec has no filter operator {operator!r}, asked for {part.key!r}")
    return _COMPARISONS[operator](column, value)


def _value(value: Any, kind: str | None) -> Any:
    """The value, with 0 and 1 as truth values where the column has those: a `MetadataFilter` refuses True and False."""
    if kind not in ("bool", "list[bool]"):
        return value
    if isinstance(value, list):
        return [_value(item, kind) for item in value]
    return bool(value) if value in (0, 1) else value


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
