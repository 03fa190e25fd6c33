"""Split long documents into passages at headings, paragraphs and sentences."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from manyvec.errors import InputError
from manyvec.types import Document

if TYPE_CHECKING:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter
    from tokenizers import Tokenizer

# With 128, a prompt of 2,000 characters and the first three passages hold the answer most often
# (`examples/benchmarks/splitting.py`).
DEFAULT_TOKENS = 128
# Longer texts are cut at line ends into parts of this many characters first: the splitter keeps all passages of a
# text in memory.
_PART = 2**20
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t#]*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"\w+|[^\w\s]")
_MARKDOWN = (".md", ".markdown", ".docx", ".pptx", ".html", ".htm", ".ipynb", ".epub")


@dataclass(frozen=True)
class Splitter:
    """Splits documents into passages of at most `max_tokens` tokens, each a document of its own.

    A passage keeps the metadata of its document, and gets `start` and `end`, its characters in the document's text, and
    `heading`, the Markdown headings above it. Its id is that of the document followed by `#` and a hash of its text, so
    that a change in one part of a file does not touch the passages of the others. A document that fits into one passage
    stays as it is.

    Args:
        max_tokens: Maximum length of a passage.
        overlap: Number of tokens that a passage repeats of the one before, at most.
        tokenizer: The model's tokenizer, which tokens are counted with; by default, words and signs are counted.
    """

    max_tokens: int = DEFAULT_TOKENS
    overlap: int = 0
    tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("overlap", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.overlap >= self.max_tokens:
            raise InputError(f"overlap must be less than max_tokens ({self.max_tokens}), got {self.overlap}")

    def __call__(self, document: Document) -> Iterator[Document]:
        """Yield the passages of a document, in order."""
        text, source = document.text, str(document.metadata.get("source", ""))
        is_markdown = source.lower().endswith(_MARKDOWN)
        spans = list(self._spans(text, is_markdown))
        if len(spans) <= 1 or document.image is not None:
            yield document
            return
        headings = _headings(text) if is_markdown else []
        seen: Counter[str] = Counter()
        for start, end in spans:
            passage = text[start:end]
            name = hashlib.blake2b(passage.encode(), digest_size=6).hexdigest()
            seen[name] += 1
            # The same words may stand twice in a file, as in its header and footer.
            id = f"{document.id}#{name}" + (f"-{seen[name]}" if seen[name] > 1 else "")
            heading = _heading_at(headings, start)
            metadata = {**document.metadata, "start": start, "end": end} | ({"heading": heading} if heading else {})
            yield replace(document, id=id, text=passage, metadata=metadata)

    def _spans(self, text: str, is_markdown: bool) -> Iterator[tuple[int, int]]:
        splitter = self._splitters[is_markdown]
        for start, end in _parts(text):
            for offset, passage in splitter.chunk_indices(text[start:end]):
                if passage.strip():
                    yield start + offset, start + offset + len(passage)

    @cached_property
    def _splitters(self) -> tuple[TextSplitter, MarkdownSplitter]:
        from semantic_text_splitter import MarkdownSplitter, TextSplitter

        if self.tokenizer is None:
            count = _count_words
            return (
                TextSplitter.from_callback(count, self.max_tokens, self.overlap),
                MarkdownSplitter.from_callback(count, self.max_tokens, self.overlap),
            )
        return (
            TextSplitter.from_huggingface_tokenizer(self.tokenizer, self.max_tokens, self.overlap),
            MarkdownSplitter.from_huggingface_tokenizer(self.tokenizer, self.max_tokens, self.overlap),
        )


def split(
    documents: Iterable[Document],
    *,
    max_tokens: int = DEFAULT_TOKENS,
    overlap: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Iterator[Document]:
    """Split long documents into passages; see `Splitter`.

    Raises:
        InputError: `max_tokens` or `overlap` cannot be used.
    """
    splitter = Splitter(max_tokens, overlap, tokenizer)
    for document in documents:
        yield from splitter(document)


def tokenizer_of(encoder: Any) -> Tokenizer | None:
    """Return the tokenizer of an encoder, or None if it shows none."""
    from tokenizers import Tokenizer

    tokenizer = getattr(encoder, "tokenizer", None)
    return tokenizer if isinstance(tokenizer, Tokenizer) else None


def _count_words(text: str) -> int:
    return len(_WORD.findall(text))


def _parts(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = min(start + _PART, len(text))
        if end < len(text):
            end = max(text.rfind("\n\n", start, end), text.rfind("\n", start + _PART // 2, end), start) + 1
            end = end if end > start + 1 else min(start + _PART, len(text))
        yield start, end
        start = end


def _headings(text: str) -> list[tuple[int, str]]:
    """Return the position and the path of headings from there on: `Setup > Linux`."""
    fences = [match.span() for match in _FENCE.finditer(text)]
    found: list[tuple[int, str]] = []
    path: list[tuple[int, str]] = []
    for match in _HEADING.finditer(text):
        if any(start <= match.start() < end for start, end in fences):
            continue
        level = len(match[1])
        path = [*(item for item in path if item[0] < level), (level, match[2].strip())]
        found.append((match.start(), " > ".join(name for _, name in path)))
    return found


def _heading_at(headings: list[tuple[int, str]], position: int) -> str:
    return next((path for start, path in reversed(headings) if start <= position), "")
