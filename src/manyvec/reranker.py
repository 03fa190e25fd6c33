"""`Reranker`: reorder documents from any first stage by their exact MaxSim scores.

Documents that an index stores with the same id and text are scored from their stored vectors; the others are encoded.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from manyvec.errors import EncoderError, InputError, check_count, check_query, check_unicode
from manyvec.evidence.passages import Passage
from manyvec.evidence.text import explain
from manyvec.models.image import encode_pages, image_bytes
from manyvec.models.loading import load_encoder
from manyvec.models.protocol import Encoder, ImageReader
from manyvec.retrieval.handle import check_pickles
from manyvec.retrieval.queries import AnyQuery, check_passages, encode
from manyvec.retrieval.threads import in_thread
from manyvec.types import Document, Hit, Hits
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import MaxSimScorer, Scores

if TYPE_CHECKING:
    from manyvec.cluster import AnyIndex

# Text and image of a document.
_Content: TypeAlias = "tuple[str, bytes | None]"


class Reranker:
    """Reorders documents by their exact MaxSim scores for a query. May be shared by threads.

    Args:
        encoder: Name of a model for `load_encoder`, or an encoder, loaded at the first use. By default the encoder of
            `index`, or `minilm` without an index.
        index: Index or cluster whose stored vectors are used for documents that it holds with the same id and text.
        device: Where a model named by a string runs: `cpu`, `cuda`, `mps` or `auto`.

    Raises:
        InputError: Both an encoder and an index are passed: pass the encoder to `Index.open`.
    """

    def __init__(
        self, encoder: str | Encoder | None = None, *, index: AnyIndex | None = None, device: str = "auto"
    ) -> None:
        if encoder is not None and index is not None:
            raise InputError("an index has its own encoder: pass one of the two, or use Index.open(uri, encoder)")
        self.index = index
        self._device = device
        self._given_encoder = encoder if encoder is not None else "minilm"
        self._loaded_encoder: Encoder | None = None
        self._scorer = MaxSimScorer()

    def __getstate__(self) -> dict[str, Any]:
        check_pickles(self._given_encoder)
        return {**self.__dict__, "_loaded_encoder": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Reranker:
        # With the same encoder, whether or not that can be copied.
        copied = Reranker.__new__(type(self))
        copied.__dict__.update({**self.__dict__, "index": copy.deepcopy(self.index, memo)})
        return copied

    def __repr__(self) -> str:
        return f"Reranker({self.model!r}, index={self.index!r})"

    @property
    def model(self) -> str:
        """Name of the encoder; reading it does not load the encoder."""
        if self.index is not None:
            return self.index.model
        return self._given_encoder if isinstance(self._given_encoder, str) else self._given_encoder.name

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded at the first use."""
        if self.index is not None:
            return self.index.encoder
        if self._loaded_encoder is None:
            given = self._given_encoder
            self._loaded_encoder = load_encoder(given, device=self._device) if isinstance(given, str) else given
        return self._loaded_encoder

    def rerank(
        self,
        query: AnyQuery,
        documents: Iterable[str | Document],
        top_n: int | None = None,
        *,
        passage_chars: int | None = None,
    ) -> list[Hit]:
        """Return documents in the order of their scores.

        Args:
            query: String, image, token vectors or a tuple of these, as for `Index.search`. A query without tokens
                scores every document 0 and keeps the order.
            documents: Strings or `Document`s. The id of a string is its position ("0", "1", ...). Ids may repeat. Of a
                document with an image the image counts, if the model reads images, else the text. A page that the
                index holds needs no image here: its id and text are enough.
            top_n: Maximum number of hits; None for all documents.
            passage_chars: Maximum length of the passage to return with each hit (`Hit.passage`), see `passages`.

        Returns:
            Hits, best first; equal scores keep the order of `documents`. A text without tokens comes last, with the
            lowest score that there is: minus the number of query tokens, a similarity of -1. Metadata is copied.

        Raises:
            InputError: The query is of another type, a document is neither a string nor a `Document`, an image cannot
                be read, or `top_n` is not a non-negative integer.
        """
        given = list(documents)
        for position, document in enumerate(given):
            if not isinstance(document, (str, Document)):
                raise InputError(f"document {position} must be a string or a Document, got {type(document).__name__}")
        texts = [document if isinstance(document, str) else document.text for document in given]
        ids = [None if isinstance(document, str) else document.id for document in given]
        images = [None if isinstance(document, str) else document.image for document in given]
        metadata = [{} if isinstance(d, str) else copy.deepcopy(dict(d.metadata)) for d in given]
        order = self.order(query, texts, top_n, ids=ids, images=images)
        passages: list[Passage | None] = [None] * len(order)
        if passage_chars is not None:
            best = [i for i, _, _ in order]
            are_pages = [images[i] is not None for i in best]
            passages = self.passages(query, [texts[i] for i in best], passage_chars, ids=[ids[i] for i in best])
            passages = [None if is_page else p for p, is_page in zip(passages, are_pages, strict=True)]
        return Hits(
            Hit(
                id=str(i) if (id := ids[i]) is None else id,
                text=texts[i],
                metadata=metadata[i],
                score=score,
                similarity=similarity,
                rank=rank,
                passage=passages[rank - 1],
            )
            for rank, (i, score, similarity) in enumerate(order, start=1)
        )

    def order(
        self,
        query: AnyQuery,
        texts: Sequence[str],
        top_n: int | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        images: Sequence[bytes | Path | None] | None = None,
    ) -> list[tuple[int, float, float]]:
        """Return positions and scores instead of hits, for callers with documents of their own; see `rerank`.

        Args:
            query: Query as in `rerank`.
            texts: (n,) texts of the documents.
            top_n: Maximum number of results; None for all documents.
            ids: (n,) ids under which the index may hold the documents; None for one that it does not hold.
            images: (n,) images of pages; None for a text.

        Returns:
            (position in `texts`, score, similarity) of the best, in the order of `rerank`.
        """
        top_n = None if top_n is None else check_count(top_n, "top_n")
        for position, text in enumerate(texts):
            check_unicode(text, f"document {position}")
        if isinstance(query, str):
            check_query(query)
        if not texts or top_n == 0:
            return []
        tokens = encode([query], lambda: self.encoder, self.encoder.dim)[1]
        pages = images if images is not None and isinstance(self.encoder, ImageReader) else [None] * len(texts)
        contents = [
            (text, None if image is None else image_bytes(image, f"document {i}: its image"))
            for i, (text, image) in enumerate(zip(texts, pages, strict=True))
        ]
        # Not -inf, which JSON cannot hold: frameworks and web servers send scores as they are.
        scores = np.maximum(self._scores(tokens, contents, ids), -tokens.n_tokens)
        best = np.argsort(-scores, kind="stable")[:top_n]
        return [(int(i), float(scores[i]), float(scores[i]) / max(1, tokens.n_tokens)) for i in best]

    def passages(
        self, query: AnyQuery, texts: Sequence[str], n_chars: int, *, ids: Sequence[str | None] | None = None
    ) -> list[Passage | None]:
        """Return the passage of each text that matches a query best.

        Texts that the index holds are not encoded again; the others are, so pass only those that are to be shown.

        Args:
            query: String, or token vectors.
            texts: (n,) texts of the documents.
            n_chars: Maximum number of characters of a passage.
            ids: (n,) ids under which the index may hold the texts; None for one that it does not hold.

        Returns:
            (n,) passages; None for a page image, and where it is not known which characters a token covers.
        """
        n_chars = check_count(n_chars, "passage_chars", minimum=1)
        check_passages([query])
        words, tokens = encode([query], lambda: self.encoder, self.encoder.dim)
        stored: dict[str, Document] = {}
        if self.index is not None and ids is not None:
            stored = {document.id: document for document in self.index.get([id for id in ids if id], vectors=True)}
        known = [stored.get(id) if id else None for id in (ids or [None] * len(texts))]
        known = [d if d is not None and d.text == text else None for d, text in zip(known, texts, strict=True)]
        unknown = list(dict.fromkeys(t for t, d in zip(texts, known, strict=True) if d is None and t.strip()))
        batches: dict[str, TokenBatch] = {}
        if unknown:
            encoded = self.encoder.encode_documents(unknown)
            batches = {text: encoded.select([i]) for i, text in enumerate(unknown)}
        found: list[Passage | None] = []
        for text, document in zip(texts, known, strict=True):
            batch = batches.get(text) if document is None else _batch_of(document)
            evidence = None if batch is None or not batch.n_tokens else explain(words[0], tokens, [text], batch)[0]
            found.append(None if evidence is None or evidence.problem else evidence.best_passage(n_chars))
        return found

    arerank, aorder, apassages = in_thread(rerank), in_thread(order), in_thread(passages)

    def _scores(self, query: TokenBatch, contents: Sequence[_Content], ids: Sequence[str | None] | None) -> Scores:
        scores = np.full(len(contents), np.nan, np.float32)
        if self.index is not None and ids is not None and (named := [i for i, id in enumerate(ids) if id]):
            texts, images = zip(*(contents[i] for i in named), strict=True)
            scores[named] = self.index.score(query, [str(ids[i]) for i in named], texts=texts, images=images)
        # Equal documents are encoded once.
        unknown = dict.fromkeys(contents[i] for i in np.flatnonzero(np.isnan(scores)).tolist())
        score_of: dict[_Content, float] = {}
        for are_pages in (False, True):
            group = [c for c in unknown if (c[1] is not None) is are_pages and (are_pages or c[0].strip())]
            score_of |= zip(group, self._encoded_scores(query, group, are_pages=are_pages).tolist(), strict=True)
        for i in np.flatnonzero(np.isnan(scores)).tolist():
            scores[i] = score_of.get(contents[i], -np.inf)
        return scores

    def _encoded_scores(self, query: TokenBatch, contents: Sequence[_Content], *, are_pages: bool) -> Scores:
        if not contents:
            return np.empty(0, np.float32)
        if are_pages:
            names = [f"the image of a document ({text[:40]!r})" for text, _ in contents]
            tokens = encode_pages(cast("ImageReader", self.encoder), [image or b"" for _, image in contents], names)
        else:
            tokens = self.encoder.encode_documents([text for text, _ in contents])
        if len(tokens) != len(contents):
            raise EncoderError(f"{self.model} returned {tokens!r} for {len(contents)} documents")
        with np.errstate(over="ignore"):
            # float16 like stored vectors, so that new and stored documents compare fairly and equal texts tie.
            half = TokenBatch(tokens.vectors.astype(np.float16), tokens.offsets, allow_empty=True)
        return self._scorer.score(query[0], half)


def _batch_of(document: Document) -> TokenBatch | None:
    """Return the token vectors of a stored text; None for a page."""
    if document.image is not None or document.vectors is None or document.spans is None:
        return None
    return TokenBatch(document.vectors, np.array([0, len(document.vectors)]), document.spans, allow_empty=True)
