"""The records users hold: `Document` is added, `Hit` is found, `IndexInfo` describes an index."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from manyvec.errors import InputError, ShapeError, check_unicode
from manyvec.evidence.pages import PageEvidence
from manyvec.evidence.passages import Passage
from manyvec.evidence.text import Evidence
from manyvec.filters.values import kept_metadata, shown, write_metadata
from manyvec.vectors.batch import all_finite

# Characters of a text in the repr of a hit, and in a notebook where it has no evidence.
_REPR_CHARS, _HTML_CHARS = 60, 600


@dataclass(frozen=True)
class Document:
    """A text or a page image, with an id and metadata.

    Args:
        id: Non-empty string. Adding an id again replaces the document.
        text: Returned with hits, and encoded in full however long it is. It may be blank only if there is an image.
            Beside an image, which is encoded instead, it is what BM25 and the frameworks see: a caption, or the text on
            the page.
        metadata: Dict with string keys. What JSON can hold is returned as it was added. Dates, UUIDs, paths, decimals,
            enums, sets, dataclasses and the scalars of numpy and pandas are converted; `manyvec.filters.values` has
            the table. NaN and NaT are missing values, None. The document keeps a copy.
        image: Image of a page, for an index whose encoder reads images: the bytes of a PNG, JPEG, WebP or other file,
            or a `Path` to read them from when the document is added.
        vectors: (n_tokens, dim) float token vectors that were computed elsewhere, for an index made with `Vectors`; the
            document is not encoded. Leave padding and masked tokens out.
        spans: (n_tokens, 2) integers, the characters of `text` that each of these tokens covers, or row and column of a
            patch of the image; (-1, -1) for a token that covers none. Without them no passage can be shown.

    Raises:
        InputError: One of them cannot be stored; the message names the id and, for metadata, the key.
        ShapeError: The same for vectors and spans; the message names the token.
    """

    id: str
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    image: bytes | Path | None = field(default=None, repr=False)
    vectors: NDArray[np.floating] | None = field(default=None, repr=False, compare=False)
    spans: NDArray[np.int32] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            hint = (
                f" of type {type(self.id).__name__}: use str(id)" if not isinstance(self.id, (str, type(None))) else ""
            )
            raise InputError(f"a document's id must be a non-empty string, got {shown(self.id)}{hint}")
        check_unicode(self.id, f"the id {self.id!r}")
        if not isinstance(self.text, str):
            raise InputError(f"document {self.id!r}: text must be a string, got {type(self.text).__name__}")
        # Not a string: it may come from a stranger, who must not choose which file is read.
        if self.image is not None and not isinstance(self.image, (bytes, Path)):
            raise InputError(
                f"document {self.id!r}: image must be the bytes of a file or a pathlib.Path, "
                f"got {type(self.image).__name__}"
            )
        if not self.text.strip() and self.image is None:
            raise InputError(f"document {self.id!r} has no text: leave it out, or put its title or description there")
        check_unicode(self.text, f"document {self.id!r}: its text")
        if not isinstance(self.metadata, Mapping):
            raise InputError(f"document {self.id!r}: metadata must be a dict, got {type(self.metadata).__name__}")
        try:
            object.__setattr__(self, "metadata", kept_metadata(self.metadata))
        except InputError as error:
            raise InputError(f"document {self.id!r}: {error}") from None
        if self.vectors is not None:
            object.__setattr__(self, "vectors", _checked_vectors(self.vectors, f"document {self.id!r}"))
        if self.spans is not None:
            object.__setattr__(self, "spans", self._checked_spans(self.spans))

    def _checked_spans(self, spans: ArrayLike) -> NDArray[np.int32]:
        if self.vectors is None:
            raise ShapeError(f"document {self.id!r} has spans without vectors: they belong to its vectors")
        checked = np.asarray(spans)
        if checked.dtype.kind not in "iu" or checked.shape != (len(self.vectors), 2):
            raise ShapeError(
                f"document {self.id!r}: spans must be (n_tokens, 2) = ({len(self.vectors)}, 2) integers, "
                f"got {checked.shape} {checked.dtype}"
            )
        start, end = checked[:, 0], checked[:, 1]
        fits = (start >= 0) & (start <= end) & (end <= len(self.text)) if self.image is None else (start | end) >= 0
        if len(wrong := np.flatnonzero(~fits & ~((start == -1) & (end == -1)))):
            raise ShapeError(
                f"document {self.id!r}: the span {checked[wrong[0]].tolist()} at position {wrong[0]} does not lie in "
                f"its {'image' if self.image is not None else f'text of {len(self.text):,} characters'}: "
                "start and end are positions of characters, not bytes, and [-1, -1] stands for none"
            )
        return checked.astype(np.int32)

    @classmethod
    def of(cls, value: Document | Mapping[str, Any]) -> Document:
        """Return a document unchanged; make one from a dict of its arguments, `id` and `text` at least."""
        if isinstance(value, Document):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"a document must be a dict or a Document, got {type(value).__name__}")
        if unknown := set(value) - {"id", "text", "metadata", "image", "vectors", "spans"}:
            raise InputError(
                f"document {value.get('id')!r}: unknown key {sorted(map(str, unknown))[0]!r}. "
                "A document has id, text, metadata, image, vectors and spans; everything else belongs in metadata."
            )
        image = value.get("image")
        if missing := {"id", *(["text"] if image is None else [])} - set(value):
            raise InputError(f"document {value.get('id')!r}: {sorted(missing)[0]!r} is missing")
        metadata = value.get("metadata")
        given = {"image": image, "vectors": value.get("vectors"), "spans": value.get("spans")}
        return cls(value["id"], value.get("text", ""), {} if metadata is None else metadata, **given)

    def metadata_json(self) -> str:
        """Return the metadata as a JSON string, keys in their order, dates as ISO 8601 strings."""
        return write_metadata(self.metadata)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A document that a search found, and how well it matches.

    Attributes:
        id: Id of the document.
        text: Text of the document.
        metadata: Metadata as it was added.
        score: ColBERT's MaxSim: the best match of every query token, summed. At most the number of query tokens.
        similarity: The mean instead of the sum (FILIP), in [-1, 1]: comparable between queries of different length.
        rank: 1 is best. Equal scores are ordered by id.
        evidence: Which words matched, or where on the page, if the search was called with `evidence=True`.
        final_score: What hits are ordered by: the mix of `similarity` and BM25, or `score` if BM25 took no part (see
            `lexical_weight` in `Index.search`).
        is_page: Whether the document is a page image; `Index.get` returns the image.
        passage: Passage that matches best, if the search was called with `passage_chars`. None for a page image, and
            for a document stored without the characters of its tokens.
    """

    id: str
    text: str
    metadata: dict[str, Any]
    score: float
    similarity: float
    rank: int
    evidence: Evidence | PageEvidence | None = None
    final_score: float = math.nan
    is_page: bool = False
    passage: Passage | None = None

    def __post_init__(self) -> None:
        if math.isnan(self.final_score):
            object.__setattr__(self, "final_score", self.score)

    def __repr__(self) -> str:
        """Show what tells hits apart, in one line however long the text is."""
        shown = self.text if len(self.text) <= _REPR_CHARS else f"{self.text[:_REPR_CHARS]}…"
        kind = ", is_page=True" if self.is_page else ""
        mix = f"final_score={self.final_score:.4g}, " if self.is_mixed else ""
        return (
            f"Hit(rank={self.rank}, id={self.id!r}, {mix}score={self.score:.4g}, "
            f"similarity={self.similarity:.4g}, text={shown!r}{kind})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook displays: where the hit is from, and its text or page with what matched marked."""
        if self.evidence is not None:
            content = self.evidence.to_html()
        else:
            text = self.passage.text if self.passage is not None else self.text
            cut = text if len(text) <= _HTML_CHARS else f"{text[:_HTML_CHARS]}…"
            content = f'<div dir="auto" style="white-space: pre-wrap">{html.escape(cut)}</div>'
        # First the number that orders hits.
        numbers = f"with BM25 {self.final_score:.3f}, " * self.is_mixed + f"similarity {self.similarity:.3f}"
        heading = f"{self.rank}. <b>{html.escape(self.citation())}</b> <small>{numbers}</small>"
        # A long text scrolls in place, so that the other hits stay in view.
        content = f'<div style="max-height: 24em; overflow: auto">{content}</div>'
        return f'<div style="margin-bottom: 1em"><div>{heading}</div>{content}</div>'

    @property
    def is_mixed(self) -> bool:
        """Whether BM25 took part in the order of the hits, so that it is not that of `score`."""
        return self.final_score != self.score

    def best_passage(self, n_chars: int = 300) -> Passage:
        """Return the passage of at most `n_chars` characters that carries most of the score, to quote and cite.

        Raises:
            InputError: The search was called without `evidence=True`, or the hit is a page image.
        """
        if self.evidence is None:
            raise InputError(f"the hit {self.id!r} has no evidence: search with evidence=True")
        return self.evidence.best_passage(n_chars)

    def citation(self) -> str:
        """Return where the hit is from, such as "report.pdf, p. 12": `source` and `page` or `sheet` of its metadata.

        A document without a `source` is cited by its id.
        """
        source = str(self.metadata.get("source") or self.id)
        if (page := self.metadata.get("page")) is not None:
            return f"{source}, p. {page}"
        sheet = self.metadata.get("sheet")
        return source if sheet is None else f"{source}, sheet {sheet}"


class Hits(list[Hit]):
    """A list of hits that a notebook displays one below the other."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return "".join(hit._repr_html_() for hit in self) or "<p><em>nothing found</em></p>"


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds, and how much space it takes.

    Attributes:
        documents: Number of stored rows.
        duplicates: Rows that other programs have appended with an id that exists; `Index.optimize` removes them.
        tokens: Number of stored token vectors.
        model: Name of the encoder.
        dim: Dimensions of a token vector.
        storage: How token vectors are stored; see `Index.create`.
        pool_factor: One in `pool_factor` token vectors was kept; see `Index.create`.
        filter_columns: Declared filter columns and their types.
        lexical_weight: Share of BM25 in the order of hits where a search names none: what "auto" stands for.
        version: Version of the table; every commit raises it.
        bytes_on_disk: Size of the folder, including old versions that are still kept; None for a bucket.
        bytes_in_memory: Size of the token vectors that this process holds in memory.
        cache_bytes: Memory budget for searches.
    """

    uri: str
    documents: int
    duplicates: int
    tokens: int
    model: str
    dim: int
    storage: str
    pool_factor: float
    filter_columns: dict[str, str]
    lexical_weight: float
    version: int
    bytes_on_disk: int | None
    bytes_in_memory: int
    cache_bytes: int


def _checked_vectors(vectors: ArrayLike, name: str) -> NDArray[np.floating]:
    """Return token vectors of a user as float16 or float32.

    Raises:
        ShapeError: They have another shape or type, or one of them is not finite or zero.
    """
    try:
        checked = np.asarray(vectors)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"{name}: vectors must be an array of rows of equal length ({error})") from error
    if checked.ndim != 2 or 0 in checked.shape or checked.dtype.kind != "f":
        raise ShapeError(
            f"{name}: vectors must be (n_tokens, dim) floats with at least one row, got {checked.shape} {checked.dtype}"
        )
    checked = checked if checked.dtype == np.float16 else checked.astype(np.float32, copy=False)
    is_wrong = np.zeros(len(checked), np.bool_) if all_finite(checked) else ~np.isfinite(checked).all(axis=1)
    if len(wrong := np.flatnonzero(is_wrong)):
        raise ShapeError(f"{name}: the vector at position {wrong[0]} holds NaN or infinity")
    if len(wrong := np.flatnonzero(~checked.any(axis=1))):
        raise ShapeError(f"{name}: the vector at position {wrong[0]} is zero: leave padding out")
    return checked
