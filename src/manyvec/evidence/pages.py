"""Evidence on page images: which patches of the page matched each word of the query, as numbers and as a picture.

sentence-transformers' `maxsim_heatmap` requires all patches of a page, row by row; here pooling may have left only a
few, and some models cut pages into tiles. It also darkens the whole page, which makes black letters hard to read.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, check_count, require
from manyvec.evidence.text import Explanation, QueryWords, compare_tokens
from manyvec.models.image import image_header, read_image
from manyvec.timing import stage
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    from PIL.Image import Image

# A page has at most a few thousand patches with the published models; spans beyond this belong to something else.
_MAX_PATCHES = 8_192
_MAX_SIDE = 1600
_HTML_SIDE = 800
_STRENGTHS = (0.0, 0.35, 0.7, 1.0)
# A heat map that spans less than this, per word, is drawn as if it did: its differences are noise.
_MIN_SPREAD = 0.2
# Colours of these strengths. Light parts of a page are multiplied by a tint, so black letters stay black. Dark parts,
# where no tint shows, are lit by a glow (`screen`), so white letters stay white. The strongest colour has a contrast of
# at least 3 against white and black, and of 1.9 against every grey.
_TINTS = ((255, 255, 255), (255, 244, 190), (255, 196, 64), (255, 96, 48))
_GLOWS = ((0, 0, 0), (64, 44, 0), (136, 72, 0), (192, 64, 16))
# Parts along each side of a page, larger than letters and smaller than figures, and the brightness of a dark one.
_N_PARTS = 16
_DARK = 0.4
_SAFE_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif"}


@dataclass(frozen=True, kw_only=True)
class PageEvidence(Explanation):
    """Why a page image matched. `WordMatch.patch` is the patch that matched each word.

    Attributes:
        text: Text stored with the image, which was not encoded. It may be empty.
        image: Bytes of the image file in the version that was searched.
        similarities: (n_query_tokens, n_patches) float32.
        patches: (n_patches, 2) row and column of each patch on the page.
        tokens_of_words: Rows of `similarities` that belong to each of `words`.
        is_cropped: Whether the model read only the central square of the image, as CLIP does. The patches divide that
            square.
        ranges: Lowest and highest value of the heat map of each word, and of that of all words, over all pages of the
            search; see `color_range`.
    """

    image: bytes = field(repr=False)
    similarities: NDArray[np.float32] = field(repr=False, compare=False)
    patches: NDArray[np.int32] = field(repr=False, compare=False)
    tokens_of_words: tuple[list[int], ...] = field(repr=False, compare=False)
    is_cropped: bool = False
    ranges: tuple[tuple[float, float], ...] = field(default=(), repr=False, compare=False)

    @property
    def grid(self) -> tuple[int, int]:
        """Number of rows and columns of patches; (0, 0) if they are unknown."""
        rows, columns = (self.patches.max(axis=0, initial=-1) + 1).tolist()
        return rows, columns

    def heatmap(self, word: int | None = None) -> NDArray[np.float32]:
        """Return the similarity of each patch to a word of the query, averaged over the tokens of the word.

        Args:
            word: Position in `words`. Default: the sum of the maps of all words, or of all query tokens if the query
                has no words.

        Returns:
            (rows, columns) float32. A patch whose vector was pooled away has the similarity of the nearest patch that
            has one.

        Raises:
            InputError: There is no such word, or this document has a `problem`.
        """
        self._check_word(word)
        heat = np.full(self.grid, -np.inf, np.float32)
        np.maximum.at(heat, tuple(self.patches.T), self._patch_values(word))
        known = np.argwhere(np.isfinite(heat))
        missing = np.argwhere(~np.isfinite(heat))
        rows, columns = (np.subtract.outer(missing[:, axis], known[:, axis]) for axis in (0, 1))
        distances = rows**2 + columns**2
        heat[tuple(missing.T)] = heat[tuple(known[distances.argmin(axis=1)].T)]
        return heat

    def color_range(self, word: int | None = None) -> tuple[float, float]:
        """Return the heat-map values that are drawn as white and as the strongest colour.

        All pages of a search have the same range, so that a page which barely matches looks paler than one that matches
        well. It spans at least 0.2 per word.

        Args:
            word: See `heatmap`.

        Raises:
            InputError: As in `heatmap`.
        """
        self._check_word(word)
        lowest, highest = (self.ranges or self._page_ranges())[len(self.words) if word is None else word]
        n_summed = 1 if word is not None else len(self.words) or len(self.similarities)
        return lowest, max(highest, lowest + _MIN_SPREAD * n_summed)

    def to_png(self, word: int | None = None, *, max_side: int = _MAX_SIDE) -> bytes:
        """Return the page with the heat map of a word, or of all words, drawn over it, as a PNG file.

        Args:
            word: See `heatmap`.
            max_side: Maximum width and height in pixels. A larger page is scaled down.

        Raises:
            InputError: As in `heatmap`, or the image is damaged.
        """
        n_pixels = check_count(max_side, "max_side", minimum=1)
        return _file(self._painted(self.heatmap(word), self.color_range(word), n_pixels), "PNG")

    def best_passage(self, n_chars: int = 300) -> NoReturn:
        """Raise `InputError`: what matched is the image, which has no passage."""
        raise InputError("this document is a page image and has no passage to quote: use heatmap or to_png")

    def to_dict(self) -> dict[str, Any]:
        """Return a dict like that of `Evidence`, with the page's `grid` (rows, columns) and the `patch` of words."""
        record = super().to_dict()
        for word, match in zip(record["words"], self.words, strict=True):
            word["patch"] = list(match.patch) if match.patch else None
        return record | {"grid": list(self.grid)}

    def to_html(self) -> str:
        """Return the page with its heat map, a table of the query's words and those that BM25 counted, as HTML.

        All text is escaped.

        The page is embedded as a JPEG of at most 800 pixels a side.
        """
        if self.problem:
            painted = self._page(_HTML_SIDE)
        else:
            painted = self._painted(self.heatmap(), self.color_range(), _HTML_SIDE)
        source = base64.b64encode(_file(painted, "JPEG")).decode()
        cells = [(match.word, f"{match.similarity:.2f}") for match in self.words]
        rows = "".join(f"<tr><td>{html.escape(word)}</td><td>{similarity}</td></tr>" for word, similarity in cells)
        note = f"<p><em>{html.escape(self.problem)}</em></p>" if self.problem else ""
        if self.counted:
            note += f"<p>{html.escape(self._counted_words())}</p>"
        return (
            f'{note}<div style="display: flex; flex-wrap: wrap; gap: 1em; align-items: flex-start">'
            f'<img alt="heat map of the page" src="data:image/jpeg;base64,{source}" style="max-width: 100%">'
            f"<table><tr><th>word</th><th>similarity</th></tr>{rows}</table></div>"
        )

    def to_terminal(self, n_chars: int = 300, *, color: bool | None = None) -> str:
        """Return two lines: the number of patches of the page, and the (row, column) that matched each query word."""
        rows, columns = self.grid
        summary = self._summary([f"patch {match.patch}" if match.patch else "(no patch)" for match in self.words])
        return f"page image of {rows} × {columns} patches\n{summary}"

    def _check_word(self, word: int | None) -> None:
        if self.problem:
            raise InputError(self.problem)
        if word is not None and not (isinstance(word, int) and 0 <= word < len(self.words)):
            raise InputError(f"word must be a position in the {len(self.words)} words of the query, got {word!r}")

    def _patch_values(self, word: int | None) -> NDArray[np.float32]:
        """Return the heat-map value of each patch that has a vector, (n_patches,)."""
        if not self.words:
            return self.similarities.sum(axis=0)
        chosen = self.tokens_of_words if word is None else self.tokens_of_words[word : word + 1]
        return sum((self.similarities[rows].mean(axis=0) for rows in chosen), np.zeros(len(self.patches), np.float32))

    def _page_ranges(self) -> tuple[tuple[float, float], ...]:
        """Return the lowest and highest value of each heat map of this page alone, in the order of `ranges`."""
        maps = [self._patch_values(word) for word in (*range(len(self.words)), None)]
        return tuple((float(values.min()), float(values.max())) for values in maps)

    def _page(self, max_side: int) -> Image:
        page = read_image(self.image, "the page image")
        page.thumbnail((max_side, max_side))
        return page

    def _painted(self, heat: NDArray[np.float32], color_range: tuple[float, float], max_side: int) -> Image:
        page = self._page(max_side)
        pillow, chops = require("PIL.Image", extra="images"), require("PIL.ImageChops", extra="images")
        box = (0, 0, *page.size)
        if self.is_cropped:
            side = min(page.size)
            left, top = (page.width - side) // 2, (page.height - side) // 2
            box = (left, top, left + side, top + side)
        lowest, highest = color_range
        area = page.crop(box)
        parts = area.convert("L").resize((_N_PARTS, _N_PARTS), pillow.Resampling.BOX)
        strengths, light = (
            np.asarray(pillow.fromarray(values.astype(np.float32)).resize(area.size, pillow.Resampling.BILINEAR))
            for values in ((heat - lowest) / (highest - lowest), np.asarray(parts) > 255 * _DARK)
        )
        tinted = chops.multiply(area, pillow.fromarray(_colored(strengths, light, _TINTS)))
        page.paste(chops.screen(tinted, pillow.fromarray(_colored(strengths, 1 - light, _GLOWS))), box)
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
    """Explain why each page image matches a query. See `explain`.

    Args:
        query: Text of the query.
        tokens: Token vectors of the query with spans, as a batch of one.
        pages: Text and image bytes of each page, at least one.
        documents: Token vectors of the pages, in the same order. Spans are (row, column).
        are_cropped: See `PageEvidence.is_cropped`.
    """
    compared = compare_tokens(query, tokens, documents)
    evidence = [
        _explain(text, image, *one, is_cropped=are_cropped) for (text, image), one in zip(pages, compared, strict=True)
    ]
    of_pages = [page._page_ranges() for page in evidence if not page.problem]
    ranges = tuple(
        (min(lowest for lowest, _ in pairs), max(highest for _, highest in pairs))
        for pairs in zip(*of_pages, strict=True)
    )
    return [replace(page, ranges=ranges) for page in evidence]


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
        problem = (
            f"the spans of this page image would mean {spans.max(axis=0) + 1} rows and columns of patches: add it again"
        )
    if problem:
        spans = np.full_like(spans, -1)
    is_patch = np.flatnonzero(spans[:, 0] >= 0)
    patches, of_patches = spans[is_patch], similarities[:, is_patch]

    def locate(word_tokens: list[int]) -> dict[str, Any]:
        if not len(patches):
            return {}
        return {"patch": tuple(patches[of_patches[word_tokens].mean(axis=0).argmax()].tolist())}

    return PageEvidence(
        text=text,
        image=image,
        similarities=of_patches,
        patches=patches,
        tokens_of_words=tuple(word_tokens for _, _, word_tokens in query_words.words),
        is_cropped=is_cropped,
        problem=problem,
        **query_words.matches(similarities.max(axis=1).tolist(), locate),
    )


def _colored(
    strengths: NDArray[np.float32], shares: NDArray[np.float32], colors: Sequence[Sequence[int]]
) -> NDArray[np.uint8]:
    """Return the colour of each strength, mixed by its share with the colour of strength 0, (height, width, 3)."""
    channels = [
        none + shares * (np.interp(strengths, _STRENGTHS, (none, *others)) - none)
        for none, *others in zip(*colors, strict=True)
    ]
    return np.stack(channels, axis=2).round().astype(np.uint8)


def for_browser(image: bytes) -> tuple[bytes, str]:
    """Return a page image in a format that is safe to send to a browser, and its content type.

    A PNG, JPEG, WebP or GIF of at most 1,600 pixels a side is returned unchanged, anything else as a PNG.

    Raises:
        InputError: The image is damaged, or PIL refuses its size.
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
