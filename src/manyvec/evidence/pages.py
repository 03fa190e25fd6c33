"""Evidence on page images: where on the page each word of the query matched, as numbers and as a picture.

sentence-transformers' `maxsim_heatmap` wants every patch of a page, row by row; here pooling may have left few of them,
and some models cut pages into tiles. It also lays an even dark veil over the page, which is hard on black letters.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, require
from manyvec.evidence.text import Explanation, QueryWords, compare_tokens
from manyvec.models.image import image_header, read_image
from manyvec.timing import stage
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    from PIL.Image import Image

# A page of the published models has at most some thousand patches; more is what another tool took for spans.
_MAX_PATCHES = 8_192
_MAX_SIDE = 1600
_HTML_SIDE = 800
# What a similarity, from the least on the page to the most, multiplies white paper by; letters stay black.
_STRENGTHS = (0.0, 0.35, 0.7, 1.0)
_TINTS = ((255, 255, 255), (255, 244, 190), (255, 196, 64), (255, 96, 48))
_SAFE_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True, kw_only=True)
class PageEvidence(Explanation):
    """Why a page image matched: `WordMatch.patch` says where.

    Attributes:
        text: the document's text beside the image, which was not encoded; it may be empty.
        image: the bytes of the page's file, as it was when the search scored it.
        similarities: (n_query_tokens, n_patches) float32.
        patches: (n_patches, 2) the row and column of each of these on the page.
        tokens_of_words: for each of `words`, its rows of `similarities`.
        is_cropped: the model saw only the middle square of the image, as CLIP does; the patches divide that.
    """

    image: bytes = field(repr=False)
    similarities: NDArray[np.float32] = field(repr=False, compare=False)
    patches: NDArray[np.int32] = field(repr=False, compare=False)
    tokens_of_words: tuple[list[int], ...] = field(repr=False, compare=False)
    is_cropped: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """How many rows and columns of patches there are; (0, 0) if they are unknown."""
        rows, columns = (self.patches.max(axis=0, initial=-1) + 1).tolist()
        return rows, columns

    def heatmap(self, word: int | None = None) -> NDArray[np.float32]:
        """How similar each patch is to a word of the query.

        Args:
            word: its place in `words`. By default the maps of all words, summed; of a query whose words are unknown,
                because its encoder gives no spans, the similarities of all tokens, summed.

        Returns:
            (rows, columns) float32, the mean over the word's tokens. A patch that pooling left no vector of its own has
            the similarity of the nearest patch that has one.

        Raises:
            InputError: there is no such word; or this document has a `problem`.
        """
        if self.problem:
            raise InputError(self.problem)
        if word is not None and not (isinstance(word, int) and 0 <= word < len(self.words)):
            raise InputError(f"word must be a place in the {len(self.words)} words of the query, got {word!r}")
        chosen = self.tokens_of_words if word is None else self.tokens_of_words[word : word + 1]
        values = sum((self.similarities[own].mean(axis=0) for own in chosen), np.zeros(len(self.patches), np.float32))
        if not self.words:
            values = self.similarities.sum(axis=0)
        heat = np.full(self.grid, -np.inf, np.float32)
        np.maximum.at(heat, tuple(self.patches.T), values)
        known = np.argwhere(np.isfinite(heat))
        missing = np.argwhere(~np.isfinite(heat))
        rows, columns = (np.subtract.outer(missing[:, axis], known[:, axis]) for axis in (0, 1))
        distances = rows**2 + columns**2
        heat[tuple(missing.T)] = heat[tuple(known[distances.argmin(axis=1)].T)]
        return heat

    def to_png(self, word: int | None = None, *, max_side: int = _MAX_SIDE) -> bytes:
        """The page with the heat map of a word, or of all, laid over it, as a PNG file.

        Args:
            word: as in `heatmap`.
            max_side: a larger page is scaled down until neither side has more pixels than this.

        Raises:
            InputError: as in `heatmap`; or the image is damaged.
        """
        if isinstance(max_side, bool) or not isinstance(max_side, int) or max_side < 1:
            raise InputError(f"max_side must be a whole number of pixels, 1 or more, got {max_side!r}")
        return _file(self._painted(self.heatmap(word), max_side), "PNG")

    def best_passage(self, n_chars: int = 300) -> NoReturn:
        """Refused: what matched is the image, and no characters of the text beside it.

        Raises:
            InputError: always.
        """
        raise InputError("this document is a page image, which has no passage to quote: see its words' patches, to_png")

    def to_dict(self) -> dict[str, Any]:
        """For JSON and metadata: as of a text, and `grid` (rows, columns), and the `patch` of each word."""
        record = super().to_dict()
        for word, match in zip(record["words"], self.words, strict=True):
            word["patch"] = list(match.patch) if match.patch else None
        return record | {"grid": list(self.grid)}

    def to_html(self) -> str:
        """The page with all that matched laid over it, beside a table of the query's words; everything is escaped.

        The page is part of it, as a JPEG of at most 800 pixels a side.
        """
        painted = self._painted(None if self.problem else self.heatmap(), _HTML_SIDE)
        source = base64.b64encode(_file(painted, "JPEG")).decode()
        cells = [(match.word, f"{match.similarity:.2f}") for match in self.words]
        rows = "".join(f"<tr><td>{html.escape(word)}</td><td>{similarity}</td></tr>" for word, similarity in cells)
        note = f"<p><em>{html.escape(self.problem)}</em></p>" if self.problem else ""
        return (
            f'{note}<div style="display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start">'
            f'<img alt="the page and where it matched" src="data:image/jpeg;base64,{source}" style="max-width: 100%">'
            f"<table><tr><th>word</th><th>similarity</th></tr>{rows}</table></div>"
        )

    def to_terminal(self, n_chars: int = 300, *, color: bool | None = None) -> str:
        """Two lines: that it is a page image, and the (row, column) of the patch that each word of the query found."""
        rows, columns = self.grid
        found = self._found([f"patch {match.patch}" if match.patch else "(no patch)" for match in self.words])
        return f"page image of {rows} × {columns} patches\n{found}"

    def _painted(self, heat: NDArray[np.float32] | None, max_side: int) -> Image:
        page = read_image(self.image, "the page image")
        page.thumbnail((max_side, max_side))
        if heat is None:
            return page
        pillow, chops = require("PIL.Image", extra="images"), require("PIL.ImageChops", extra="images")
        box = (0, 0, *page.size)
        if self.is_cropped:
            side = min(page.size)
            left, top = (page.width - side) // 2, (page.height - side) // 2
            box = (left, top, left + side, top + side)
        spread = float(heat.max() - heat.min()) or 1.0
        size = (box[2] - box[0], box[3] - box[1])
        strengths = pillow.fromarray((heat - heat.min()) / spread).resize(size, pillow.Resampling.BILINEAR)
        tints = np.stack([np.interp(strengths, _STRENGTHS, channel) for channel in zip(*_TINTS, strict=True)], axis=2)
        page.paste(chops.multiply(page.crop(box), pillow.fromarray(tints.round().astype(np.uint8))), box)
        return page


@stage("evidence")
def explain_pages(
    query: str,
    tokens: TokenBatch,
    pages: Sequence[tuple[str, bytes]],
    documents: TokenBatch,
    *,
    are_cropped: bool = False,
) -> list[PageEvidence]:
    """`explain` for page images.

    Args:
        pages: the text beside each image, and its bytes; at least one.
        documents: their token vectors; spans are (row, column).
        are_cropped: see `PageEvidence`.
    """
    compared = compare_tokens(query, tokens, documents)
    return [
        _explain(text, image, *one, is_cropped=are_cropped) for (text, image), one in zip(pages, compared, strict=True)
    ]


def _explain(
    text: str,
    image: bytes,
    query_words: QueryWords,
    similarities: NDArray[np.float32],
    spans: NDArray[np.int32],
    *,
    is_cropped: bool,
) -> PageEvidence:
    problem = None
    if spans.max(initial=-1) < 0:
        problem = "this page image was stored without the rows and columns of its patches: see TokenBatch.spans"
    elif np.prod(spans.max(axis=0) + 1.0) > _MAX_PATCHES:
        problem = f"this page image would have {spans.max(axis=0) + 1} rows and columns of patches: add it again"
    if problem:
        spans = np.full_like(spans, -1)
    placed = np.flatnonzero(spans[:, 0] >= 0)
    patches, of_patches = spans[placed], similarities[:, placed]

    def position(own: list[int]) -> dict[str, Any]:
        return {"patch": tuple(patches[of_patches[own].mean(axis=0).argmax()].tolist())} if len(patches) else {}

    return PageEvidence(
        text=text,
        image=image,
        similarities=of_patches,
        patches=patches,
        tokens_of_words=tuple(own for _, _, own in query_words.words),
        is_cropped=is_cropped,
        problem=problem,
        **query_words.matches(similarities.max(axis=1).tolist(), position),
    )


def for_browser(image: bytes) -> tuple[bytes, str]:
    """A page image as browsers may be sent it, and its content type.

    It is as stored if it is a PNG, JPEG, WebP or GIF of at most 1,600 pixels a side, and else a PNG made of it.

    Raises:
        InputError: it is damaged, or PIL refuses its size.
    """
    kind, size = image_header(image, "the page image")
    if kind in _SAFE_TYPES and max(size) <= _MAX_SIDE:
        return image, _SAFE_TYPES[kind]
    page = read_image(image, "the page image")
    page.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return _file(page, "PNG"), _SAFE_TYPES["PNG"]


def _file(image: Image, kind: str) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
