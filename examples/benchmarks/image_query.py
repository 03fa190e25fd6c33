"""Measure what an image query costs, compared with a text query of as many tokens, over synthetic pages.

    python examples/benchmarks/image_query.py [--pages 10000] [--tokens 64] [--rounds 30]

The encoder is synthetic: a page is read as `tokens` unit vectors around 500 centers, chosen by a hash of its bytes, and
a query of n words, or an image query, as 32 such vectors. Both kinds of query go through the same candidates; only a
text query also asks BM25 for documents. Encoding takes no time here, so that the search itself is compared.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import report
from PIL import Image

from manyvec import Document, Index, TokenBatch
from manyvec.testing import HashEncoder

_QUERY_TOKENS = 32
_CENTERS = np.random.default_rng(0).standard_normal((500, 128))


@dataclass(frozen=True)
class PageEncoder(HashEncoder):
    """Reads every text and every image as vectors around one of 500 centers each, chosen by a hash."""

    dim: int = 128
    n_tokens: int = 64

    @property
    def name(self) -> str:
        return "synthetic-pages"

    @property
    def crops_images(self) -> bool:
        return False

    def _vectors(self, seed: int, n_tokens: int) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(seed)
        vectors = _CENTERS[rng.integers(0, 500, n_tokens)] + 0.5 * rng.standard_normal((n_tokens, self.dim))
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)

    def encode_images(self, images: Sequence[Any]) -> TokenBatch:
        # Queries come as the bytes of a file, pages decoded.
        contents = [image if isinstance(image, bytes) else image.tobytes() for image in images]
        rows = [self._vectors(zlib.crc32(content), self.n_tokens) for content in contents]
        spans = np.array([(i // 8, i % 8) for _ in rows for i in range(self.n_tokens)], np.int32)
        return TokenBatch(np.concatenate(rows), np.arange(len(rows) + 1) * self.n_tokens, spans)

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        lengths = [len(query.split()) for query in queries]
        rows = [self._vectors(zlib.crc32(query.encode()), n) for query, n in zip(queries, lengths, strict=True)]
        return TokenBatch(np.concatenate(rows), np.concatenate([[0], np.cumsum(lengths)]))


@dataclass(frozen=True)
class QueryImages(PageEncoder):
    """The same encoder, which reads images as queries of 32 tokens, as long as the text queries."""

    n_tokens: int = _QUERY_TOKENS


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array([[[number & 255, number >> 8, 7]]], np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "index", PageEncoder(n_tokens=arguments.tokens))
        index.add(Document(f"p{i}", f"page {i}", image=picture(i)) for i in range(arguments.pages))
        index.optimize()
        index = Index.open(index.uri, QueryImages())
        text = " ".join(f"word{i}" for i in range(_QUERY_TOKENS))
        image = picture(65_000)
        results = report.medians(
            {
                "text query": lambda: index.search(text),
                "image query": lambda: index.search(image),
                "text query, lexical_weight=0.3": lambda: index.search(text, lexical_weight=0.3),
            },
            rounds=arguments.rounds,
        )
        report.write(
            "image-query",
            {
                "pages": arguments.pages,
                "token_vectors": index.info().tokens,
                "query_tokens": _QUERY_TOKENS,
                "milliseconds": results,
                "image / text": round(results["image query"] / results["text query"], 3),
            },
        )


if __name__ == "__main__":
    main()
