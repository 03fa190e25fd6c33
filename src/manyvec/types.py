"""The records users hold: `Document` goes in, `Hit` comes out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from manyvec.errors import InputError, check_unicode
from manyvec.evidence.pages import PageEvidence
from manyvec.evidence.text import Evidence, Passage


@dataclass(frozen=True)
class Document:
    """A text or a page image, with an id and metadata.

    Args:
        id: not empty; adding an id again replaces the document.
        text: shown in hits and encoded whole, however long; not blank, unless there is an image. Beside an image, which
            is encoded in its place, it is what BM25 and the frameworks see: a caption, or the page's own text.
        metadata: anything JSON can hold, and it comes back exactly as it went in: `None`, bool, int, float, str,
            lists and dicts with text keys.
        image: of a page, for an index whose encoder reads images: the bytes of a PNG, JPEG, WebP or other file, or a
            `Path` that they are read from when the document is added.

    Raises:
        InputError: one of them cannot be stored; the message names the id and, for metadata, the key.
    """

    id: str
    text: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    image: bytes | Path | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise InputError(f"a document's id must be a text of at least one character, got {self.id!r}")
        check_unicode(self.id, f"the id {self.id!r}")
        if not isinstance(self.text, str):
            raise InputError(f"document {self.id!r}: text must be a str, got {type(self.text).__name__}")
        # A str may come from a stranger, who must not choose the file that is read.
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
        for path, problem in _json_problems(self.metadata):
            raise InputError(f"document {self.id!r}: metadata[{path!r}] {problem}")

    @classmethod
    def of(cls, value: Document | Mapping[str, Any]) -> Document:
        """Make a document of a dict with the keys `id`, `text` and, if wanted, `metadata` and `image`."""
        if isinstance(value, Document):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"a document is a dict or a Document, got {type(value).__name__}")
        if unknown := set(value) - {"id", "text", "metadata", "image"}:
            raise InputError(
                f"document {value.get('id')!r}: unknown key {sorted(map(str, unknown))[0]!r}. "
                "A document has id, text, metadata and image; everything else belongs into metadata."
            )
        image = value.get("image")
        if missing := {"id", *(["text"] if image is None else [])} - set(value):
            raise InputError(f"document {value.get('id')!r}: {sorted(missing)[0]!r} is missing")
        metadata = value.get("metadata")
        return cls(value["id"], value.get("text", ""), {} if metadata is None else metadata, image=image)

    def metadata_json(self) -> str:
        """The metadata as JSON text, keys in the order they came."""
        return json.dumps(self.metadata, ensure_ascii=False, allow_nan=False, default=dict)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A document found, and how well it matched.

    Attributes:
        score: ColBERT's MaxSim, the best match of every query token, summed; at most the number of query tokens.
        similarity: the mean instead of the sum (FILIP), in [-1, 1]: comparable between queries of unlike length.
        rank: 1 is best. Equal scores are ordered by id.
        evidence: which words matched, if the search was asked for it; of a page, where on its image.
        final_score: what the hits are ordered by: the score, or the mix of similarity and BM25 that the search was
            asked for (`lexical_weight`).
        is_page: it is a page image; `Index.get` gives it.
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

    def __post_init__(self) -> None:
        if math.isnan(self.final_score):
            object.__setattr__(self, "final_score", self.score)

    def best_passage(self, n_chars: int = 300) -> Passage:
        """The stretch of the text, at most `n_chars` long, that carries most of the score: what to quote and cite.

        Raises:
            InputError: the search was not asked for evidence, or this is a page image.
        """
        if self.evidence is None:
            raise InputError(f"the hit {self.id!r} has no evidence: search with evidence=True")
        return self.evidence.best_passage(n_chars)


def _json_problems(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Each place that JSON would refuse, or would give back as something else, with what is wrong there."""
    if value is None or isinstance(value, (bool, int)):
        return
    if isinstance(value, str):
        check_unicode(value, f"metadata[{path!r}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield path, f"is {value}, which JSON cannot hold: use None"
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _json_problems(item, f"{path}[{i}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                yield path or str(key), f"has the key {key!r}: keys must be text"
            else:
                yield from _json_problems(key, path or "a key")
                yield from _json_problems(item, f"{path}.{key}" if path else key)
    else:
        yield path, f"is a {type(value).__name__}, which JSON cannot hold: store a text, number, list or dict"
