"""Requests and responses of the JSON API. They are bounded, and the MCP tools use the same records.

Character positions count Unicode code points, as Python does.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_QUERY_CHARS = 4_000
MAX_HITS = 100
# Pages begin at most here: each page is searched from the first hit on.
MAX_OFFSET = 900
MAX_PASSAGE_CHARS = 4_000
MAX_TEXT_CHARS = 200_000
# Documents in one request that adds them. Their texts are bounded by the size of the body.
MAX_ADDED = 100
MAX_ID_CHARS = 1_000
# Values of a column that the page offers, and the length of the longest.
MAX_FACET_VALUES, MAX_FACET_CHARS = 50, 100
# Examples of what to search for, and the length of the longest.
N_SAMPLES, MAX_SAMPLE_CHARS = 4, 80
# Characters of each text of a comparison.
MAX_COMPARED_CHARS = 300


# Levels of lists and objects of a filter. A filter of 20 levels, the most that manyvec takes, has about twice as many.
MAX_FILTER_NESTING = 50
FILTER_DESCRIPTION = (
    'condition on the filter columns: {"year": {"$gte": 2020}, "lang": ["en", "de"]} with $eq, $ne, $gt, $gte, $lt, '
    "$lte, $in, $nin, $contains, $not_contains, $like, $ilike, $between, $exists, $not, $and, $or and $nor; or "
    '[{"column": "year", "op": ">=", "value": 2020}], all of which must hold, with ==, !=, <, <=, >, >=, in, not in, '
    "contains, like, is null and is empty. Dates are strings in ISO 8601"
)


def _check_nesting(filter: Any) -> Any:
    level = [filter]
    for _ in range(MAX_FILTER_NESTING):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return filter
    raise ValueError(f"the filter has more than {MAX_FILTER_NESTING} levels of lists and objects: flatten it")


# What `manyvec.filters.parse_filter` reads, which also names what is wrong with it.
FilterRecord = Annotated[
    dict[str, Any] | list[dict[str, Any]], AfterValidator(_check_nesting), Field(description=FILTER_DESCRIPTION)
]


class SearchRequest(BaseModel):
    """A query and what to return for it."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(max_length=MAX_QUERY_CHARS)
    k: int = Field(10, ge=1, le=MAX_HITS, description="maximum number of hits")
    offset: int = Field(0, ge=0, le=MAX_OFFSET, description="number of the best hits to leave out, for the next page")
    filter: FilterRecord | None = None
    lexical_weight: float | None = Field(
        None, ge=0, le=1, description="share of BM25 in the ranking; null for the default of the library"
    )
    passage_chars: int = Field(500, ge=1, le=MAX_PASSAGE_CHARS, description="maximum length of a passage")
    evidence: bool = Field(
        True,
        description="whether hits have `words`, `counted` and `page`; without, a search costs less",
    )


class PassageRecord(BaseModel):
    """A part of a document, from character `start` up to `end`."""

    text: str
    start: int
    end: int


class WordRecord(BaseModel):
    """A word of the query and the part of the document that matches it best."""

    word: str
    query_span: tuple[int, int] = Field(description="start and end of the word in the query")
    text: str = Field(description="matched word of the document; empty if there is none")
    span: tuple[int, int] | None = Field(description="start and end of `text` in the document")
    similarity: float
    share: float = Field(description="contribution of the word to the score")
    patch: tuple[int, int] | None = Field(None, description="row and column of the matched patch of a page image")
    map: list[list[float]] | None = Field(None, description="similarity of each patch of a page image, row by row")
    color_range: tuple[float, float] | None = Field(
        None, description="values of `map` to draw as white and as the strongest color; the same for all hits"
    )


class CountedRecord(BaseModel):
    """A word of the query that BM25 counted in the document."""

    word: str
    n: int = Field(description="number of occurrences in the document")
    spans: list[tuple[int, int]] = Field(description="start and end of the first of them in the document")


class PageRecord(BaseModel):
    """A page image, which `GET /api/images/ID` returns. Its ETag differs from `etag` once the page has changed."""

    grid: tuple[int, int] = Field(description="number of rows and columns of patches")
    is_cropped: bool = Field(description="whether the patches cover only the middle square of the image")
    etag: str
    map: list[list[float]] | None = Field(None, description="sum of the maps of all words")
    color_range: tuple[float, float] | None = Field(None, description="as in `words`")


class HitRecord(BaseModel):
    """A document that matches. The shares of its words and `unattributed` add up to its score."""

    rank: int
    id: str
    final_score: float | None = Field(
        description="what hits are ordered by: the mix of similarity and BM25, or score if BM25 took no part; null if "
        "the document has no tokens"
    )
    score: float | None = Field(description="null if the document has no tokens")
    similarity: float | None = Field(description="null if the document has no tokens")
    metadata: dict[str, Any]
    is_metadata_omitted: bool = Field(default=False, description="whether the metadata was too long for the response")
    n_chars: int = Field(description="length of the document's text")
    passage: PassageRecord = Field(description="the part of the text that matches best")
    words: list[WordRecord] = Field(description="matched words; in long responses those with the largest shares")
    unattributed: float = Field(description="contribution of query tokens that belong to none of `words`")
    counted: list[CountedRecord] = Field(description="words that BM25 counted, if it took part in the order of hits")
    problem: str | None = Field(None, description="reason why matched words are unknown")
    page: PageRecord | None = Field(
        None, description="set if the document is a page image; `passage` is then the start of the text stored with it"
    )


class SearchResponse(BaseModel):
    """Hits, best first, and the time of each stage of the search."""

    query: str
    hits: list[HitRecord]
    next_offset: int | None = Field(None, description="`offset` of the next page; null if there are no more hits")
    milliseconds: dict[str, float] = Field(
        description="time by stage; `total` is the whole search. Searches that were done together have equal parts"
    )


class DocumentRecord(BaseModel):
    """A document, or a part of a long one: `text` begins at character `start` of `n_chars`.

    The text of a page image is the one stored with it, and may be empty.
    """

    id: str
    text: str
    start: int
    n_chars: int
    metadata: dict[str, Any]
    is_metadata_omitted: bool = Field(default=False, description="whether the metadata was too long for the response")
    is_page: bool = False


class NewDocument(BaseModel):
    """A document to add. Its text is encoded; files, images and token vectors cannot be added over HTTP."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=MAX_ID_CHARS)
    text: str = Field(min_length=1)
    metadata: dict[str, Any] = {}


class AddRequest(BaseModel):
    """Documents to add; those whose ids exist are replaced."""

    model_config = ConfigDict(extra="forbid")

    documents: list[NewDocument] = Field(min_length=1, max_length=MAX_ADDED)


class AddResponse(BaseModel):
    """Numbers of documents."""

    added: int
    updated: int
    unchanged: int


class FacetValue(BaseModel):
    value: str
    documents: int = Field(description="number of documents with this value")


class FacetRecord(BaseModel):
    """The most frequent values of a filter column, those of most documents first."""

    values: list[FacetValue]
    n_values: int = Field(description="number of different values")


class OverviewRecord(BaseModel):
    """What helps people to search: values of the filter columns of strings and booleans, and what to search for."""

    facets: dict[str, FacetRecord]
    samples: list[str] = Field(description="titles or beginnings of a few documents")


class CompareRequest(BaseModel):
    """A query to rank in three ways."""

    model_config = ConfigDict(extra="forbid")

    query: str = Field(max_length=MAX_QUERY_CHARS)
    k: int = Field(10, ge=1, le=MAX_HITS, description="number of documents that count as found by a method")
    filter: FilterRecord | None = None


class StandingRecord(BaseModel):
    """A document that at least one method found."""

    id: str
    text: str = Field(description="the beginning of its text")
    ranks: dict[str, int | None] = Field(description="rank by method; null if it is not among the first 100")


class CompareResponse(BaseModel):
    """What `bm25`, `pooled` and `late` (late interaction) find among their first `k` documents."""

    query: str
    k: int
    standings: list[StandingRecord]
    missed: dict[str, list[str]] = Field(description="ids that another method found, by method")


class InfoRecord(BaseModel):
    """The contents of the index."""

    name: str
    documents: int
    tokens: int
    model: str
    dim: int
    filter_columns: dict[str, str] = Field(description="declared filter columns and their types")
    lexical_weight: float = Field(description="share of BM25 in the order of hits, for this model")
    version: int
    is_writable: bool = Field(default=False, description="whether this server adds and deletes documents")
