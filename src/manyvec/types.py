"""The records users hold: `Document` is added, `Hit` is found, `IndexInfo` describes an index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from manyvec.errors import InputError, check_unicode
from manyvec.evidence.pages import PageEvidence
from manyvec.evidence.passages import Passage
from manyvec.evidence.text import Evidence
from manyvec.filters.values import kept_metadata, shown, write_metadata


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

    Raises:
        InputError: One of them cannot be stored; the message names the id and, for metadata, the key.
    """

    id: str
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    image: bytes | Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            hint = f" of type {type(self.id).__name__}: use str(id)" if isinstance(self.id, (int, float)) else ""
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

    @classmethod
    def of(cls, value: Document | Mapping[str, Any]) -> Document:
        """Return a document unchanged; make one from a dict with `id`, `text` and optionally `metadata` and `image`."""
        if isinstance(value, Document):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"a document must be a dict or a Document, got {type(value).__name__}")
        if unknown := set(value) - {"id", "text", "metadata", "image"}:
            raise InputError(
                f"document {value.get('id')!r}: unknown key {sorted(map(str, unknown))[0]!r}. "
                "A document has id, text, metadata and image; everything else belongs in metadata."
            )
        image = value.get("image")
        if missing := {"id", *(["text"] if image is None else [])} - set(value):
            raise InputError(f"document {value.get('id')!r}: {sorted(missing)[0]!r} is missing")
        metadata = value.get("metadata")
        return cls(value["id"], value.get("text", ""), {} if metadata is None else metadata, image=image)

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
        final_score: What hits are ordered by: `score`, or the mix of `similarity` and BM25 if the search had a
            `lexical_weight`.
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
    version: int
    bytes_on_disk: int | None
    bytes_in_memory: int
    cache_bytes: int
