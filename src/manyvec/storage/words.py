"""The words of documents, as LanceDB's full-text index splits texts, stored beside the texts for BM25 in memory.

The column `words` holds a number for each word of a document: 48 bits of a hash of the word, and 16 bits for how often
it occurs. Two of a million different words share a hash with a probability of 0.2 %.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.vectors.batch import checksums, offsets_of, ragged_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from manyvec.storage.snapshot import Snapshot

COUNT_BITS = 16
MAX_COUNT = 2**COUNT_BITS - 1
WORDS, CHECKSUM = "words", "words_checksum"
WORD_COLUMNS = [WORDS, CHECKSUM]
# Numbers of the words of several texts end to end, and the (n_texts + 1,) offsets of the texts.
Words = tuple[NDArray[np.uint64], NDArray[np.int64]]


def words_of(text: str) -> list[str]:
    """Return the words of a string in their order, as the full-text index of the column `text` sees them."""
    import lancedb

    # The defaults are those of `lancedb.index.FTS`, which `search_indexes` uses.
    return [token.text for token in lancedb.tokenize(text)]


@lru_cache(maxsize=65536)
def code_of(word: str) -> int:
    """Return the number of a word that occurs 0 times."""
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=6).digest(), "big") << COUNT_BITS


def coded(texts: Sequence[str]) -> Words:
    """Return the words of texts as the column holds them."""
    lists = [[code_of(w) | min(n, MAX_COUNT) for w, n in Counter(words_of(text)).items()] for text in texts]
    return np.array([code for codes in lists for code in codes], np.uint64), offsets_of([*map(len, lists)])


def word_columns(texts: Sequence[str]) -> dict[str, Any]:
    """Return the columns of the words of texts."""
    import pyarrow as pa

    codes, offsets = coded(texts)
    lists = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(codes))
    return {WORDS: lists, CHECKSUM: checksums(codes, offsets)}


def word_fields() -> list[pa.Field]:
    """Return the fields of these columns; they are null in rows of other programs."""
    import pyarrow as pa

    # Hashes do not compress.
    none = {"lance-encoding:compression": "none"}
    return [pa.field(WORDS, pa.list_(pa.uint64()), metadata=none), pa.field(CHECKSUM, pa.uint32())]


def read_words(snapshot: Snapshot, row_ids: NDArray[np.int64] | None = None) -> Words:
    """Read the words of rows, in this order, or of all rows in the order of `RowStates`.

    Where they are missing or damaged, they are made from the text.
    """
    if row_ids is None:
        row_ids, _, table = snapshot.read_all(WORD_COLUMNS)
    else:
        table = snapshot.take(row_ids, WORD_COLUMNS)
    if not len(row_ids):
        return coded([])
    lists = table[WORDS].combine_chunks()
    codes = lists.flatten().to_numpy()
    offsets = offsets_of(lists.value_lengths().fill_null(0).to_numpy())
    is_wrong = table[CHECKSUM].fill_null(0).to_numpy() != checksums(codes, offsets)
    wrong = np.flatnonzero(is_wrong | lists.is_null().to_numpy(zero_copy_only=False))
    if not len(wrong):
        return codes, offsets
    texts = snapshot.take(row_ids[wrong], ["text"])["text"].to_pylist()
    return _replaced(codes, offsets, wrong, *coded([text or "" for text in texts]))


def _replaced(
    codes: NDArray[np.uint64],
    offsets: NDArray[np.int64],
    items: NDArray[np.int64],
    new_codes: NDArray[np.uint64],
    new_offsets: NDArray[np.int64],
) -> Words:
    """Return lists with others in the place of some items."""
    starts, lengths = offsets[:-1].copy(), np.diff(offsets)
    starts[items], lengths[items] = len(codes) + new_offsets[:-1], np.diff(new_offsets)
    return np.concatenate([codes, new_codes])[ragged_rows(starts, lengths)], offsets_of(lengths)
