"""`token_columns`: token vectors as the columns of an index's table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from manyvec.storage.opened import OpenedIndex
from manyvec.storage.schema import ragged, span_steps
from manyvec.vectors.batch import CodedBatch, StoredBatch, TokenBatch
from manyvec.vectors.codec import check_range

if TYPE_CHECKING:
    import pyarrow as pa


def token_columns(tokens: TokenBatch, opened: OpenedIndex, schema: pa.Schema) -> dict[str, Any]:
    """Return the columns of token vectors, encoded as the index stores new ones."""
    import pyarrow as pa

    storage, codec = opened.manifest.storage, opened.centroids.codec()
    spans = tokens.spans if tokens.spans is not None else np.full((tokens.n_tokens, 2), -1, np.int32)
    columns = {"n_tokens": tokens.lengths, "spans": span_steps(spans, tokens.offsets)}
    if codec is None:
        check_range(tokens.vectors, "float16")
        stored: StoredBatch
        stored = TokenBatch.unchecked(tokens.vectors.astype(np.float16, copy=False), tokens.offsets)
        columns["tokens"] = ragged(stored.vectors, tokens.offsets)
        codes = None
    else:
        columns["tokens"] = pa.nulls(len(tokens), schema.field("tokens").type)
        codebook = opened.centroids.codec_codebook()
        codes = codec.encode(tokens.vectors, None if codebook is None else codebook.assign(tokens.vectors))
        stored = CodedBatch.unchecked(codes, tokens.offsets, codec)
    columns["vectors_checksum"] = stored.checksums()
    if storage != "float16":
        kind = schema.field("codes").type
        columns["codes"] = pa.nulls(len(tokens), kind) if codes is None else ragged(codes, tokens.offsets)
    if storage == "residual":
        columns["is_coded"] = [codes is not None] * len(tokens)
    return columns
