"""MaxSim in one pass over documents on a CUDA device, in Triton: no similarity is ever written to memory.

A program scores one document against one query. It reads the document's rows where they lie, as they are stored,
unpacks codes in registers, multiplies them with the query in tensor cores, and keeps the best match of each query
token. Query tokens are split into a float16 value and a float16 remainder, so that products are exact and sums float32.

This imports triton, which torch brings where it supports CUDA on Linux, so import it only there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

if TYPE_CHECKING:
    from manyvec.vectors.cuda import DeviceDocuments

# Tokens of a document that a program multiplies at once. Fastest on an H200 of 32, 64 and 128 (`gpu_kernel.py`).
BLOCK_TOKENS = 64
N_WARPS = 4
MAX_STAGES = 3
# Query tokens at once; a longer query reads the documents again, mostly from the cache.
_MAX_BLOCK_QUERY = 64
_MAX_BLOCK_COLUMNS = 128


def scores(
    documents: DeviceDocuments,
    queries: NDArray[np.float32],
    query_offsets: NDArray[np.int64],
    subset: torch.Tensor | None = None,
    to_centroids: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return (n_queries, n_documents) float32 sums over the query tokens; -inf for an empty or damaged document.

    Args:
        documents: What to score.
        queries: (n_query_tokens, dim) vectors, rotated as the codec's integers are.
        query_offsets: (n_queries + 1,) start of each query.
        subset: (n,) int64 positions of the documents to score. Defaults to all.
        to_centroids: (n_centroids, n_query_tokens) float32 similarities of the codec's centroids, unless it has none.
    """
    packed, bits, offsets = documents.packed, documents.bits, documents.device_offsets
    device, width = packed.device, packed.shape[1]
    per_column = max(1, 8 // bits)
    block = _block_width(width)
    padded_width = triton.cdiv(width, block) * block
    padded = np.zeros((len(queries), padded_width * per_column), np.float32)
    padded[:, : queries.shape[1]] = queries
    high = padded.astype(np.float16)
    halves = np.stack([high, (padded - high).astype(np.float16)])
    # Plane p holds the dims of the p-th integer of each byte.
    planes = halves.reshape(2, len(queries), padded_width, per_column).transpose(0, 3, 1, 2)
    n_queries = len(query_offsets) - 1
    n_documents = len(documents) if subset is None else len(subset)
    longest = int(np.diff(query_offsets).max())
    block_query = min(_MAX_BLOCK_QUERY, max(16, triton.next_power_of_2(longest)))
    bytes_of_stage = BLOCK_TOKENS * width * packed.itemsize + 4 * block_query * padded_width * per_column
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]
    result = torch.empty(n_queries, n_documents, device=device)
    with torch.cuda.device(packed.get_device()):
        _score[(n_documents * n_queries,)](
            packed,
            # Where there is none, any tensor stands for it.
            offsets if documents.scales is None else documents.scales,
            offsets if documents.nearest is None else documents.nearest,
            offsets,
            offsets if subset is None else subset,
            torch.from_numpy(np.ascontiguousarray(planes)).to(device),
            torch.from_numpy(query_offsets).to(device),
            offsets if to_centroids is None else to_centroids,
            result,
            n_queries,
            n_documents,
            len(queries),
            documents.unit,
            WIDTH=width,
            BITS=bits,
            PER_COLUMN=per_column,
            PADDED_WIDTH=padded_width,
            BLOCK_WIDTH=block,
            HAS_SCALES=documents.scales is not None,
            HAS_CENTROIDS=to_centroids is not None,
            HAS_SUBSET=subset is not None,
            BLOCK_TOKENS=BLOCK_TOKENS,
            BLOCK_QUERY=block_query,
            num_warps=N_WARPS,
            # All stages but one lie in shared memory.
            num_stages=max(1, min(MAX_STAGES, 1 + (shared - 1024) // bytes_of_stage)),
        )
    return result


def _block_width(width: int) -> int:
    """Return the power of two, at least 16, that a row is read in: one that divides it, or that holds all of it."""
    dividing = width & -width
    if dividing >= 16:
        return min(_MAX_BLOCK_COLUMNS, dividing)
    return min(_MAX_BLOCK_COLUMNS, max(16, triton.next_power_of_2(width)))


@triton.jit(do_not_specialize=["n_queries", "n_documents", "n_query_tokens"])  # type: ignore[untyped-decorator]
def _score(  # type: ignore[no-untyped-def]
    packed,
    scales,
    nearest,
    offsets,
    subset,
    queries,
    query_offsets,
    to_centroids,
    result,
    n_queries,
    n_documents,
    n_query_tokens,
    unit,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    PER_COLUMN: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    HAS_CENTROIDS: tl.constexpr,
    HAS_SUBSET: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_QUERY: tl.constexpr,
):
    # Programs of one document run beside each other, so that all queries read it from the cache.
    query, document = tl.program_id(0) % n_queries, tl.program_id(0) // n_queries
    position = tl.load(subset + document) if HAS_SUBSET else document
    start = tl.load(offsets + position)
    length = (tl.load(offsets + position + 1) - start).to(tl.int32)
    first_query_token = tl.load(query_offsets + query)
    query_length = (tl.load(query_offsets + query + 1) - first_query_token).to(tl.int32)
    total = 0.0
    for first in range(0, query_length, BLOCK_QUERY):
        query_token = first + tl.arange(0, BLOCK_QUERY)
        is_query_token = query_token < query_length
        query_row = first_query_token + query_token
        best = tl.full([BLOCK_QUERY], float("-inf"), tl.float32)
        for first_token in range(0, length, BLOCK_TOKENS):
            token = first_token + tl.arange(0, BLOCK_TOKENS)
            is_token = token < length
            row = start + token
            dots = tl.zeros([BLOCK_TOKENS, BLOCK_QUERY], tl.float32)
            for first_column in tl.static_range(0, PADDED_WIDTH, BLOCK_WIDTH):
                column = first_column + tl.arange(0, BLOCK_WIDTH)
                is_value = is_token[:, None] & (column < WIDTH)[None, :]
                values = tl.load(packed + row[:, None] * WIDTH + column[None, :], mask=is_value, other=0)
                for plane in tl.static_range(PER_COLUMN):
                    if BITS == 16:
                        integers = values
                    elif BITS == 8:
                        integers = values.to(tl.int8, bitcast=True).to(tl.float16)
                    else:
                        code = (values >> (plane * BITS)) & (2**BITS - 1)
                        integers = (2 * code.to(tl.int16) - (2**BITS - 1)).to(tl.float16)
                    for half in tl.static_range(2):
                        part_row = (half * PER_COLUMN + plane) * n_query_tokens + query_row
                        part = tl.load(
                            queries + part_row[:, None] * PADDED_WIDTH + column[None, :],
                            mask=is_query_token[:, None],
                            other=0,
                        )
                        dots = tl.dot(integers, tl.trans(part), dots)
            if HAS_SCALES:
                dots *= tl.load(scales + row, mask=is_token, other=0).to(tl.float32)[:, None]
            else:
                dots *= unit
            if HAS_CENTROIDS:
                centroid = tl.load(nearest + row, mask=is_token, other=0).to(tl.int32) & 0xFFFF
                at = to_centroids + centroid[:, None] * n_query_tokens.to(tl.int64) + query_row[None, :]
                dots += tl.load(at, mask=is_query_token[None, :], other=0)
            # A maximum leaves NaN out, but a damaged document has no score.
            dots = tl.where(dots == dots, dots, float("inf"))
            best = tl.maximum(best, tl.max(tl.where(is_token[:, None], dots, float("-inf")), axis=0))
        total += tl.sum(tl.where(is_query_token, best, 0.0))
    total = tl.where(tl.abs(total) < float("inf"), total, float("-inf"))
    tl.store(result + query.to(tl.int64) * n_documents + document, total)
