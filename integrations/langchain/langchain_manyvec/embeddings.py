"""`ManyvecEmbeddings`: mean-pooled token vectors, for the parts of LangChain that need one vector per text."""

from __future__ import annotations

import numpy as np
from langchain_core.embeddings import Embeddings

from manyvec import Encoder, TokenBatch, load_encoder


class ManyvecEmbeddings(Embeddings):
    """Embedding model that averages the token vectors of a late-interaction encoder.

    It serves what compares texts by a single vector: `EmbeddingsFilter`, semantic chunkers, example selectors and
    embedding caches. A `ManyvecVectorStore` takes it as well, and then uses its encoder for token vectors.

    Args:
        encoder: Encoder, or a name for `manyvec.load_encoder`, which is loaded at the first use.
    """

    def __init__(self, encoder: str | Encoder = "minilm") -> None:
        self.encoder = encoder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the normalized mean token vector of each text; a text without tokens gets zeros."""
        return _pooled(self._loaded().encode_documents(texts)) if texts else []

    def embed_query(self, text: str) -> list[float]:
        """Return the normalized mean token vector of a query."""
        return _pooled(self._loaded().encode_queries([text]))[0]

    def _loaded(self) -> Encoder:
        if isinstance(self.encoder, str):
            self.encoder = load_encoder(self.encoder)
        return self.encoder


def _pooled(tokens: TokenBatch) -> list[list[float]]:
    vectors = np.zeros((len(tokens), tokens.dim), np.float32)
    if len(kept := np.flatnonzero(tokens.lengths)):
        vectors[kept] = tokens.select(kept).pooled()
    return [[float(x) for x in vector] for vector in vectors]
