"""`Reranker`: puts documents that something else found into the order of their exact MaxSim scores.

Documents that an index holds with the same id and text are scored from their stored vectors; the others are encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from manyvec.errors import EncoderError, InputError, check_unicode
from manyvec.index import Index
from manyvec.models.loading import Encoder, load_encoder
from manyvec.types import Document, Hit
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import MaxSimScorer, Scores


class Reranker:
    """Scores any documents against a query with exact MaxSim. May be shared by threads.

    Args:
        encoder: a name for `load_encoder`, or an encoder; loaded when it is first needed. Without one the index's, or
            `minilm` where there is no index either.
        index: documents that it holds with the same id and text are not encoded again. It brings its own encoder.

    Raises:
        InputError: an encoder and an index are given: `Index.open` takes the encoder.
    """

    def __init__(self, encoder: str | Encoder | None = None, *, index: Index | None = None) -> None:
        if encoder is not None and index is not None:
            raise InputError("an index brings its own encoder: give one of the two, or Index.open(uri, encoder)")
        self.index = index
        self._encoder = encoder if encoder is not None else "minilm"
        self._scorer = MaxSimScorer()

    def __repr__(self) -> str:
        return f"Reranker({self.model!r}, index={self.index!r})"

    @property
    def model(self) -> str:
        """Name of the encoder, which need not be loaded for it."""
        if self.index is not None:
            return self.index.model
        return self._encoder if isinstance(self._encoder, str) else self._encoder.name

    @property
    def encoder(self) -> Encoder:
        if self.index is not None:
            return self.index.encoder
        if isinstance(self._encoder, str):
            self._encoder = load_encoder(self._encoder)
        return self._encoder

    def rerank(self, query: str, documents: Iterable[str | Document], top_n: int | None = None) -> list[Hit]:
        """Put documents in the order of their scores.

        Args:
            query: a text; one without any token scores every document -inf, and leaves the order as it is.
            documents: texts or `Document`s; a text's id is its place ("0", "1", ...). Equal ids do no harm. The
                image of a page counts where the index holds it under this id and text; elsewhere only its text does.
            top_n: how many to return, the best; all by default.

        Returns:
            Hits, best first; equal scores in the order the documents came in. A text without any token scores -inf
            and so comes last. Metadata is a copy.

        Raises:
            InputError: the query or a document is no text, or `top_n` is negative.
        """
        given = list(documents)
        for position, document in enumerate(given):
            if not isinstance(document, (str, Document)):
                raise InputError(f"document {position}: a text or a Document is needed, got {type(document).__name__}")
        texts = [document if isinstance(document, str) else document.text for document in given]
        ids = [None if isinstance(document, str) else document.id for document in given]
        metadata = [{} if isinstance(d, str) else json.loads(d.metadata_json()) for d in given]
        return [
            Hit(
                id=str(i) if (id := ids[i]) is None else id,
                text=texts[i],
                metadata=metadata[i],
                score=score,
                similarity=similarity,
                rank=rank,
            )
            for rank, (i, score, similarity) in enumerate(self.order(query, texts, top_n, ids=ids), start=1)
        ]

    def order(
        self, query: str, texts: Sequence[str], top_n: int | None = None, *, ids: Sequence[str | None] | None = None
    ) -> list[tuple[int, float, float]]:
        """`rerank` for those who keep their own documents.

        Args:
            ids: (n,) what the index may hold the texts under; None for a text that it does not hold.

        Returns:
            (place in `texts`, score, similarity) of the best, in the order of `rerank`.
        """
        if not isinstance(query, str):
            raise InputError(f"a query is a text, got {type(query).__name__}")
        if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 0):
            raise InputError(f"top_n must be a whole number, 0 or more, or None for all, got {top_n!r}")
        for position, text in enumerate(texts):
            check_unicode(text, f"document {position}")
        if not texts or top_n == 0:
            return []
        query_tokens = self.encoder.encode_queries([query])
        scores = self._scores(query_tokens, texts, ids)
        best = np.argsort(-scores, kind="stable")[:top_n]
        return [(int(i), float(scores[i]), float(scores[i]) / max(1, query_tokens.n_tokens)) for i in best]

    def _scores(self, query: TokenBatch, texts: Sequence[str], ids: Sequence[str | None] | None) -> Scores:
        scores = np.full(len(texts), np.nan, np.float32)
        if self.index is not None and ids is not None and (named := [i for i, id in enumerate(ids) if id]):
            scores[named] = self.index.score(query, [str(ids[i]) for i in named], texts=[texts[i] for i in named])
        # Equal texts are encoded once.
        unknown = list(dict.fromkeys(texts[i] for i in np.flatnonzero(np.isnan(scores)).tolist() if texts[i].strip()))
        found = dict(zip(unknown, self._encoded_scores(query, unknown), strict=True))
        for i in np.flatnonzero(np.isnan(scores)).tolist():
            scores[i] = found.get(texts[i], -np.inf)
        return scores

    def _encoded_scores(self, query: TokenBatch, texts: Sequence[str]) -> Scores:
        if not texts:
            return np.empty(0, np.float32)
        tokens = self.encoder.encode_documents(texts)
        if len(tokens) != len(texts):
            raise EncoderError(f"{self.model} gave {tokens!r} for {len(texts)} documents")
        with np.errstate(over="ignore"):
            # As an index stores them, so that new and stored documents compare fairly, and equal texts tie.
            half = TokenBatch(tokens.vectors.astype(np.float16), tokens.offsets, allow_empty=True)
        return self._scorer.score(query[0], half)
