"""Which documents contain a word, and how often: the words of all documents in memory, for BM25."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from manyvec.storage.cache import CachedVersion
from manyvec.storage.states import VersionKey
from manyvec.storage.words import COUNT_BITS, MAX_COUNT, WORD_COLUMNS, Words, code_of, read_words
from manyvec.vectors.batch import document_blocks, offsets_of
from manyvec.vectors.codebook import positions_of_rows

# Share of the memory budget that words may take. A document has about as many token vectors as words, or more.
_SHARE, _BYTES_PER_WORD = 1 / 8, 8
_COUNTS = np.uint64(MAX_COUNT)
# Words that are sorted together: their numbers have to fit beside the beginning of a hash.
_POSITION_BITS = 22
_POSITIONS = np.uint64(2**_POSITION_BITS - 1)


@dataclass(frozen=True, eq=False)
class _Part:
    """The words of some rows, its members, by word.

    Attributes:
        row_ids: (n_members,) rows.
        updated: (n_members,) table version that last wrote each of them.
        lengths: (n_members,) number of words.
        codes: (n_words,) distinct words, rising; see `code_of`.
        starts: (n_words + 1,) start of each word in `members`.
        members: (n,) members that contain it.
        counts: (n,) how often.
    """

    row_ids: NDArray[np.int64]
    updated: NDArray[np.int64]
    lengths: NDArray[np.float32]
    codes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    members: NDArray[np.int32]
    counts: NDArray[np.uint16]

    @classmethod
    def of(cls, row_ids: NDArray[np.int64], updated: NDArray[np.int64], words: Words) -> Iterator[_Part]:
        """Yield the parts of rows, whose words are given in the order of the rows."""
        codes, offsets = words
        for rows in document_blocks(np.diff(offsets), 2**_POSITION_BITS):
            some = codes[offsets[rows.start] : offsets[rows.stop]]
            lengths = np.diff(offsets[rows.start : rows.stop + 1])
            counts = some.astype(np.uint16)
            n_words = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])[offsets_of(lengths)]
            order = _by_word(some)
            ordered = some[order] & ~_COUNTS
            starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])
            yield cls(
                row_ids[rows],
                updated[rows],
                np.diff(n_words).astype(np.float32),
                ordered[starts],
                np.append(starts, len(ordered)),
                np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[order],
                counts[order],
            )

    @property
    def n_bytes(self) -> int:
        return self.codes.nbytes + self.starts.nbytes + self.members.nbytes + self.counts.nbytes

    def words(self) -> Words:
        """Return the words by member, as `of` takes them."""
        words = np.repeat(self.codes, np.diff(self.starts)) | self.counts
        by_member = np.argsort(self.members, kind="stable")
        return words[by_member], offsets_of(np.bincount(self.members, minlength=len(self.row_ids)))

    def rows_of(self, code: int) -> slice:
        """Return which `members` contain a word."""
        at = int(np.searchsorted(self.codes, np.uint64(code)))
        is_known = at < len(self.codes) and int(self.codes[at]) == code
        return slice(int(self.starts[at]), int(self.starts[at + 1])) if is_known else slice(0, 0)


def _by_word(codes: NDArray[np.uint64]) -> NDArray[np.integer]:
    """Return the order that sorts words."""
    if len(codes) > 2**_POSITION_BITS:
        return np.argsort(codes & ~_COUNTS, kind="stable")
    # numpy sorts numbers many times as fast as it finds their order.
    packed = (codes & ~_POSITIONS) | np.arange(len(codes), dtype=np.uint64)
    packed.sort()
    order = (packed & _POSITIONS).astype(np.int32)
    words = codes[order] >> COUNT_BITS
    # Different words whose hashes begin alike may be mixed now.
    return order if (words[1:] >= words[:-1]).all() else np.argsort(codes & ~_COUNTS, kind="stable")


def _joined(first: Words, second: Words) -> Words:
    (codes, offsets), (more, their_offsets) = first, second
    return np.append(codes, more), np.append(offsets, offsets[-1] + their_offsets[1:])


@dataclass(frozen=True, eq=False)
class Postings:
    """The words of all documents of one version.

    Attributes:
        lengths: (n_documents,) number of words in each document, without stop words.
        parts: Words of rows, some of which may be of other versions.
        position_of: For each part, the (n_members,) positions of its members in this version; -1 for those that are
            not in it.
    """

    lengths: NDArray[np.float32]
    parts: tuple[_Part, ...]
    position_of: tuple[NDArray[np.int64], ...]

    @classmethod
    def over(cls, version: CachedVersion, held: Sequence[_Part] = ()) -> Postings:
        """Return the words of a version; what is in these parts of another version is not read again."""
        states = version.states
        lengths, is_missing = np.zeros(len(version), np.float32), np.ones(len(version), bool)
        kept: list[tuple[_Part, NDArray[np.int64]]] = []

        def keep(part: _Part, positions: NDArray[np.int64]) -> None:
            is_there = positions >= 0
            lengths[positions[is_there]] = part.lengths[is_there]
            is_missing[positions[is_there]] = False
            kept.append((part, positions))

        def positions_of(part: _Part) -> NDArray[np.int64]:
            return positions_of_rows(part.row_ids, part.updated, states.row_ids, states.updated)

        for part in held:
            positions = positions_of(part)
            # The rest of a part of which less than half is left is read anew.
            if 2 * np.count_nonzero(positions >= 0) >= len(positions):
                keep(part, positions)
        if is_missing.any():
            missing = np.flatnonzero(is_missing)
            row_ids, updated = states.row_ids[missing], states.updated[missing]
            words = read_words(version.snapshot, row_ids if kept else None)
            while kept and len(kept[-1][0].row_ids) <= 2 * len(row_ids):
                # n additions leave log n parts.
                small = kept.pop()[0]
                row_ids, updated = np.append(small.row_ids, row_ids), np.append(small.updated, updated)
                words = _joined(small.words(), words)
            for part in _Part.of(row_ids, updated, words):
                keep(part, positions_of(part))
        return cls(lengths, tuple(part for part, _ in kept), tuple(positions for _, positions in kept))

    @cached_property
    def n_words(self) -> int:
        """Number of words in all documents."""
        return int(self.lengths.sum(dtype=np.float64))

    @property
    def n_bytes(self) -> int:
        """Bytes that the words take in memory, about."""
        return sum(part.n_bytes for part in self.parts)

    def find(self, word: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the (n,) positions of the documents that contain a word, in no order, and how often they do."""
        code, positions, counts = code_of(word), [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for part, position_of in zip(self.parts, self.position_of, strict=True):
            rows = part.rows_of(code)
            of_word = position_of[part.members[rows]]
            is_there = of_word >= 0
            if is_there.all():
                positions.append(of_word)
                counts.append(part.counts[rows].astype(np.float32))
            else:
                positions.append(of_word[is_there])
                counts.append(part.counts[rows][is_there].astype(np.float32))
        return np.concatenate(positions), np.concatenate(counts)

    def n_having(self, word: str) -> int:
        """Return the number of documents that contain a word."""
        code, n = code_of(word), 0
        for part, position_of, is_whole in zip(self.parts, self.position_of, self._are_whole, strict=True):
            rows = part.rows_of(code)
            n += rows.stop - rows.start if is_whole else int(np.count_nonzero(position_of[part.members[rows]] >= 0))
        return n

    def frequencies(self, word: str, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return how often a word occurs in each of these documents: fast for few of them, however common the word."""
        code, found = code_of(word), np.zeros(len(positions), np.float32)
        parts, members = (of_document[positions] for of_document in self._places)
        for number, part in enumerate(self.parts):
            chosen = np.flatnonzero(parts == number)
            rows = part.rows_of(code)
            having = part.members[rows]
            # The members that contain a word rise.
            at = np.searchsorted(having, members[chosen])
            is_there = having.take(at, mode="clip") == members[chosen] if len(having) else np.zeros(len(at), bool)
            found[chosen[is_there]] = part.counts[rows][at[is_there]]
        return found

    @cached_property
    def _are_whole(self) -> list[bool]:
        """Whether all members of a part are in this version."""
        return [bool((positions >= 0).all()) for positions in self.position_of]

    @cached_property
    def _places(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The part of each document, and which member of it the document is."""
        parts, members = (np.zeros(len(self.lengths), np.int32) for _ in range(2))
        for number, positions in enumerate(self.position_of):
            there = np.flatnonzero(positions >= 0)
            parts[positions[there]], members[positions[there]] = number, there
        return parts, members


class PostingsLoader:
    """Loads the words of one index and moves them to newer versions of the table. May be shared by threads.

    Args:
        cache_bytes: Memory budget of the index.
    """

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._loading = threading.Lock()
        self._held: tuple[VersionKey, Postings] | None = None

    @property
    def bytes_held(self) -> int:
        """Bytes that the words take in memory, about."""
        return self._held[1].n_bytes if self._held else 0

    def over(self, version: CachedVersion) -> Postings | None:
        """Return the words of a version; None if they may not fit the budget, or an earlier manyvec made the table."""
        n_words = int(version.states.n_tokens.sum() * version.snapshot.manifest.pool_factor)
        if _BYTES_PER_WORD * n_words > _SHARE * self._cache_bytes or not version.snapshot.has_columns(WORD_COLUMNS):
            return None
        key = version.snapshot.key
        with self._loading:
            held = self._held
            if held is None or held[0] != key:
                is_same_index = held is not None and held[0].generation == key.generation
                held = self._held = key, Postings.over(version, held[1].parts if held and is_same_index else ())
            return held[1]
