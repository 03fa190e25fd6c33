"""What the MCP tools return: records that agents can read whole, because each has a bounded number of characters."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, Field

from manyvec.evidence.pages import for_browser
from manyvec.filters.values import json_default
from manyvec.models.image import read_image
from manyvec.server.records import DocumentRecord, HitRecord

# Characters of the text of one result, about 10,000 tokens. Claude Code warns of results that are longer.
MAX_ANSWER_CHARS = 40_000
# Characters of JSON that the metadata of a hit, and that of a document that is read, may take.
MAX_HIT_METADATA_CHARS, MAX_METADATA_CHARS = 2_000, 8_000
# Base64 characters of an image: Claude Desktop refuses results of more than 1 MB.
MAX_IMAGE_CHARS = 700_000
_MAX_OMITTED = 20
_MAX_NAME_CHARS = 200
# An id has no limit of its own. One that is longer than this cannot be read with `get_document`.
_MAX_ID_CHARS = 2_000
_IMAGE_SIDES = (1600, 1200, 800, 400)

Record = TypeVar("Record", bound=BaseModel)


class CitedHit(BaseModel):
    """A document that matches. Hits are ordered by `final_score`, in which BM25 may take part.

    `passage` is its best matching part, from character `start` up to `end`.

    If the document is a page image, `passage` is the start of the text stored with it, and `note` says how well each
    word of the query matches the image.
    """

    id: str
    rank: int
    final_score: float | None
    score: float | None
    similarity: float | None
    passage: str
    start: int
    end: int
    n_chars: int
    metadata: dict[str, Any]
    omitted: list[str] = Field(default=[], description="keys of metadata that were too long to return")
    note: str | None = None


class SearchResult(BaseModel):
    """Hits, best first."""

    hits: list[CitedHit]
    next_offset: int | None = Field(None, description="`offset` of the next page; null if there are no more hits")


class ReadDocument(BaseModel):
    """A document, or a part of a long one: `text` begins at character `start` of `n_chars`.

    The text of a page image is the one stored with it, and may be empty.
    """

    id: str
    text: str
    start: int
    n_chars: int
    next_start: int | None = Field(description="`start` of the next part; null if this is the last")
    metadata: dict[str, Any]
    omitted: list[str] = Field(default=[], description="keys of metadata that were too long to return")
    is_page: bool = False
    note: str | None = None


class ValueCount(BaseModel):
    value: str
    n_documents: int


class ValueCounts(BaseModel):
    """Values of a metadata key, those of most documents first."""

    values: list[ValueCount]
    n_values: int = Field(description="number of different values")
    next_offset: int | None = Field(description="`offset` of the next page; null if there are no more values")


def search_result(hits: Sequence[HitRecord], k: int, offset: int, max_offset: int) -> SearchResult:
    """Return as many of the hits as fit into one result, at least one.

    Args:
        hits: The hits from rank `offset + 1` on.
        k: How many were requested. If fewer were found, there are no more.
        offset: Number of hits before these.
        max_offset: The largest offset that a search takes.
    """
    cited: list[CitedHit] = []
    n_free = MAX_ANSWER_CHARS - _size(SearchResult(hits=[], next_offset=max_offset))
    for hit in hits:
        record = _cited(hit)
        size = _size(SearchResult(hits=[record], next_offset=None))
        if cited and size > n_free:
            break
        if size > n_free:
            record = _shortened(record, "passage", size - n_free)
            record.end = record.start + len(record.passage)
        n_free -= size
        cited.append(record)
    next_offset = offset + len(cited)
    is_more = (len(cited) < len(hits) or len(hits) == k) and len(cited) > 0 and next_offset <= max_offset
    return SearchResult(hits=cited, next_offset=next_offset if is_more else None)


def read_document(document: DocumentRecord) -> ReadDocument:
    """Return as much of a document as fits into one result."""
    metadata, omitted = _limited(document.metadata, MAX_METADATA_CHARS)
    record = ReadDocument(
        id=shortened(document.id, _MAX_ID_CHARS),
        text=document.text,
        start=document.start,
        n_chars=document.n_chars,
        next_start=document.n_chars,
        metadata=metadata,
        omitted=omitted,
        is_page=document.is_page,
    )
    if (excess := _size(record) - MAX_ANSWER_CHARS) > 0:
        record = _shortened(record, "text", excess)
    end = document.start + len(record.text)
    return record.model_copy(update={"next_start": end if record.text and end < document.n_chars else None})


def value_counts(counts: Mapping[str, int], offset: int, limit: int) -> ValueCounts:
    """Return a page of the values of a metadata key, as many as fit into one result."""
    page = [*counts.items()][offset : offset + limit]
    values: list[ValueCount] = []
    n_free = MAX_ANSWER_CHARS - 200
    for value, n_documents in page:
        record = ValueCount(value=shortened(value, 2_000), n_documents=n_documents)
        n_free -= _size(ValueCounts(values=[record], n_values=0, next_offset=None))
        if values and n_free < 0:
            break
        values.append(record)
    end = offset + len(values)
    return ValueCounts(values=values, n_values=len(counts), next_offset=end if values and end < len(counts) else None)


def image_content(image: bytes) -> tuple[str, str]:
    """Return a page image as base64, at most `MAX_IMAGE_CHARS` long, and its content type."""
    content, content_type = for_browser(image)
    encoded = b64encode(content).decode()
    for side in _IMAGE_SIDES:
        if len(encoded) <= MAX_IMAGE_CHARS:
            break
        page = read_image(image, "the page image").convert("RGB")
        page.thumbnail((side, side))
        buffer = BytesIO()
        page.save(buffer, "JPEG", quality=80)
        encoded, content_type = b64encode(buffer.getvalue()).decode(), "image/jpeg"
    return encoded, content_type


def shortened(text: str, max_chars: int = _MAX_NAME_CHARS) -> str:
    """Return the start of a string that is longer than `max_chars`, with an ellipsis."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def _cited(hit: HitRecord) -> CitedHit:
    metadata, omitted = _limited(hit.metadata, MAX_HIT_METADATA_CHARS)
    return CitedHit(
        id=shortened(hit.id, _MAX_ID_CHARS),
        rank=hit.rank,
        final_score=hit.final_score,
        score=hit.score,
        similarity=hit.similarity,
        passage=hit.passage.text,
        start=hit.passage.start,
        end=hit.passage.end,
        n_chars=hit.n_chars,
        metadata=metadata,
        omitted=["(all)"] if hit.is_metadata_omitted else omitted,
        note=_note(hit) if hit.page else None,
    )


def _note(hit: HitRecord) -> str:
    similarities = ", ".join(f"{word.word} {word.similarity:.2f}" for word in hit.words)
    return shortened(
        f"This is a page image. Similarity of each word of the query to its best matching patch: {similarities}", 2_000
    )


def _limited(metadata: Mapping[str, Any], max_chars: int) -> tuple[dict[str, Any], list[str]]:
    """Return the values that fit, the shortest first, and the keys of the others."""
    sizes = {key: len(json.dumps({key: value}, default=json_default, indent=2)) for key, value in metadata.items()}
    kept = set()
    for key in sorted(sizes, key=lambda key: sizes[key]):
        max_chars -= sizes[key]
        if max_chars < 0:
            break
        kept.add(key)
    omitted = [shortened(key) for key in metadata if key not in kept]
    more = [f"and {len(omitted) - _MAX_OMITTED} more"] if len(omitted) > _MAX_OMITTED else []
    return {key: value for key, value in metadata.items() if key in kept}, omitted[:_MAX_OMITTED] + more


def _shortened(record: Record, field: str, excess: int) -> Record:
    """Cut a string of a record so that its JSON loses `excess` characters, or the whole string if it has fewer.

    A line break, a quote or another control character takes 2 to 6 characters of JSON.
    """
    text: str = getattr(record, field)
    while text and excess > 0:
        before = _json_chars(text)
        text = text[: max(0, min(len(text) - 1, len(text) * (before - excess) // before))]
        excess -= before - _json_chars(text)
    return record.model_copy(update={field: text})


def _json_chars(text: str) -> int:
    return len(pydantic_core.to_json(text).decode())


def _size(record: BaseModel) -> int:
    """Return the number of characters of the text that the MCP library makes of a record."""
    return len(pydantic_core.to_json(record, indent=2).decode())
