"""PDFs, page by page: as text, as images, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, TypeAlias

from manyvec.errors import InputError, require
from manyvec.types import Document

Pages: TypeAlias = Literal["text", "image", "both"]
# 144 dots per inch: small print is legible, and an A4 page has 1,190 by 1,684 pixels, more than most models look at.
_SCALE = 2
# Posters, and pages whose stated size is wrong, are rendered smaller.
_MAX_SIDE = 4000


def read_pdf(path: Path, source: str, pages: Pages, on_problem: Callable[[str], None]) -> Iterator[Document]:
    """Yield the pages of a PDF, each rendered when it is needed, with ids `SOURCE#page=N`.

    Args:
        path: File to read.
        source: Name of the file in ids and metadata.
        pages: `text` yields pages with text; `image` yields every page as an image with its text beside it; `both`
            yields both kinds, images with ids `SOURCE#page=N,image`.
        on_problem: Called with the reason for each page, or run of pages, that is skipped.
    """
    blank: list[int] = []
    with _opened(path) as pdf:
        title = {"title": written} if (written := _title(pdf)) else {}
        for number in range(1, len(pdf) + 1):
            metadata = {"source": source, "page": number, **title}
            try:
                text, image = _page(pdf, number - 1, with_image=pages != "text")
            except Exception as error:
                # pdfium and its bindings raise various errors for a damaged page; the other pages are fine.
                on_problem(f"page {number} cannot be read: {error}")
                continue
            id = f"{source}#page={number}"
            if pages in ("text", "both"):
                if text.strip():
                    yield Document(id, text, metadata)
                else:
                    blank.append(number)
            if image is not None:
                shown = text if text.strip() else f"{Path(source).name}, page {number}"
                yield Document(f"{id},image" if pages == "both" else id, shown, metadata, image=image)
    if blank and pages == "text":
        plural = "s" if len(blank) > 1 else ""
        on_problem(f"page{plural} {_ranges(blank)} without text: a scan needs a model that reads images")


def n_pages(path: Path) -> int:
    """Return the number of pages of a PDF.

    Raises:
        InputError: The PDF is damaged or encrypted.
    """
    with _opened(path) as pdf:
        return len(pdf)


def _page(pdf: Any, position: int, *, with_image: bool) -> tuple[str, bytes | None]:
    page = pdf[position]
    try:
        text_page = page.get_textpage()
        text = text_page.get_text_bounded().replace("\r\n", "\n").replace("\0", "")
        # A lone surrogate stands for half of a sign outside the first plane, which some PDFs write so.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text_page.close()
        if not with_image:
            return text, None
        buffer = BytesIO()
        scale = min(_SCALE, _MAX_SIDE / max(1, *page.get_size()))
        page.render(scale=scale).to_pil().save(buffer, "PNG")
        return text, buffer.getvalue()
    finally:
        page.close()


def _title(pdf: Any) -> str:
    try:
        return str(pdf.get_metadata_value("Title") or "").strip().replace("\0", "")
    except Exception:  # a damaged description says nothing of the pages
        return ""


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    pypdfium2 = require("pypdfium2", extra="files")
    try:
        pdf = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        reason = "it needs a password" if "assword" in str(error) else "the PDF is damaged"
        raise InputError(f"{reason}: {error}") from error
    try:
        yield pdf
    finally:
        pdf.close()


def _ranges(numbers: list[int]) -> str:
    """Return `1-3, 7` for 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
