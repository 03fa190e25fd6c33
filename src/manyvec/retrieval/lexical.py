"""BM25 as LanceDB computes it, from words in memory, with statistics that may come from several indexes.

The scores are those of LanceDB's full-text index, within float32, if the index holds no rows that were added, deleted
or replaced since `Index.optimize`: the statistics are those of all documents, and LanceDB scores rows before and after
`optimize` with different ones. Where documents are spread over tables, an index tells what BM25 needs to know of it,
and its best documents are scored again with the sums over all indexes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from manyvec.evidence.text import CountedWord
from manyvec.retrieval.postings import Postings, PostingsLoader
from manyvec.storage.cache import CachedVersion
from manyvec.storage.words import words_of
from manyvec.vectors.maxsim import ScoredPositions, Scores, top_k

# Constants of lance-index, and how it rounds: all of its arithmetic is float32.
K1, B = np.float32(1.2), np.float32(0.75)
# A word in more documents than this is worth leaving out of the sum over all, if so few documents are wanted.
_MANY, _MAX_CONTENDERS = 2**15, 10_000
_ROUNDING = 1e-5
# Documents whose scores tell the average length.
_N_SAMPLED = 5


@dataclass(frozen=True)
class WordStatistics:
    """What BM25 needs to know of a collection. The sum of two describes both collections together.

    Attributes:
        n_documents: Number of documents.
        n_words: Number of words in all of them, as LanceDB counts words: stop words are left out.
        counts: For each word, as `word_of` returns it, how many documents contain it.
    """

    n_documents: int
    n_words: int
    counts: dict[str, int]

    def __add__(self, other: WordStatistics) -> WordStatistics:
        counts = {word: self.counts.get(word, 0) + other.counts.get(word, 0) for word in self.counts | other.counts}
        return WordStatistics(self.n_documents + other.n_documents, self.n_words + other.n_words, counts)

    @property
    def average_length(self) -> np.float32:
        """Average number of words in a document; 1 for an empty collection."""
        return np.float32(self.n_words) / np.float32(self.n_documents) if self.n_words else np.float32(1)

    def weight(self, word: str) -> np.float32:
        """Return the inverse document frequency of a word; 0 for a word that no document contains."""
        if not (count := self.counts.get(word, 0)):
            return np.float32(0)
        n, has = np.float32(self.n_documents), np.float32(count)
        return np.log((n - has + np.float32(0.5)) / (has + np.float32(0.5)) + np.float32(1))

    def norms(self, lengths: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the frequency of a word is compared with in documents of these numbers of words."""
        return K1 * (np.float32(1) - B + B * lengths / self.average_length)

    def gains(self, word: str, frequencies: NDArray[np.float32], norms: NDArray[np.float32]) -> Scores:
        """Return the (n,) scores that a word of the query adds to documents that contain it this often."""
        return self.weight(word) * ((K1 + np.float32(1)) * frequencies / (frequencies + norms))


@dataclass(frozen=True)
class RowScores:
    """BM25 scores of rows of an index.

    Attributes:
        row_ids: (n,) rows.
        ids: (n,) ids of their documents.
        scores: (n,) their scores.
    """

    row_ids: NDArray[np.int64]
    ids: NDArray[np.object_]
    scores: Scores

    def in_version(self, version: CachedVersion) -> ScoredPositions:
        """Return the documents of a version that these rows are, best first, then by id, without unknown rows."""
        positions, scores = _known(version, self.row_ids, self.scores)
        order = top_k(scores, version.states.ids[positions], len(positions))
        return ScoredPositions(positions[order], scores[order])


@dataclass(frozen=True)
class WordMatches:
    """The documents of one index that match the words of a query best, and what BM25 needs to know of them.

    Attributes:
        row_ids: (n,) rows of the index.
        ids: (n,) ids of the documents.
        frequencies: (n, n_words) how often a document contains each word of the query.
        lengths: (n,) number of words in a document.
        bound: Upper bound on the score that the index itself gives to matches that are not among these; 0 if there are
            none.
    """

    row_ids: NDArray[np.int64]
    ids: NDArray[np.object_]
    frequencies: NDArray[np.float32]
    lengths: NDArray[np.float32]
    bound: float

    def scores(self, words: Sequence[str], statistics: WordStatistics) -> Scores:
        """Return the (n,) BM25 scores of the documents for a query of these words, each as often as it occurs."""
        norms = statistics.norms(self.lengths)
        scores = np.zeros(len(self.row_ids), np.float32)
        for word, frequencies in zip(words, self.frequencies.T, strict=True):
            scores += statistics.gains(word, frequencies, norms)
        return scores


@lru_cache(maxsize=2048)
def counts_of(text: str) -> Counter[str]:
    """Return how often each word occurs in a text. Not to be changed: the documents found last are remembered."""
    return Counter(words_of(text))


def spellings(text: str) -> dict[str, str]:
    """Return a spelling in the text for each of its words. A word itself may be stemmed again into another one."""
    return {word: spelling for spelling in _spelled(text) if (word := word_of(spelling)) is not None}


def _spelled(text: str) -> list[str]:
    """Return the words of a text as they are written there, stop words too."""
    import lancedb

    raw = lancedb.tokenize(text, lower_case=False, stem=False, remove_stop_words=False, ascii_folding=False)
    return [token.text for token in raw]


@lru_cache(maxsize=65536)
def word_of(spelling: str) -> str | None:
    """Return what the full-text index makes of one spelling; None for a stop word."""
    return next(iter(words_of(spelling)), None)


def counted_words(query: str, text: str) -> tuple[CountedWord, ...]:
    """Return the words of a query that BM25 counts in a document, in the order of the query."""
    import lancedb

    spelling_of = spellings(query)
    spans: dict[str, list[tuple[int, int]]] = {word: [] for word in spelling_of}
    # Stop words stay in, as in the spellings: positions that LanceDB tells count from the first word that is none.
    in_text = lancedb.tokenize(text, remove_stop_words=False)
    end = 0
    for spelling, token in zip(_spelled(text), in_text, strict=True):
        start = text.find(spelling, end)
        end = start + len(spelling)
        if token.text in spans:
            spans[token.text].append((start, end))
    return tuple(CountedWord(spelling_of[word], tuple(found)) for word, found in spans.items() if found)


class Lexicon:
    """BM25 over an index. May be shared by threads.

    The words of all documents are held in memory where the budget allows. Where it does not, LanceDB's full-text index
    answers from disk, and what was counted in a version is remembered.

    Args:
        cache_bytes: Memory budget of the index; see `PostingsLoader`.
    """

    def __init__(self, cache_bytes: int = 0) -> None:
        self._postings = PostingsLoader(cache_bytes)
        # By version object, which belongs to one index; see `candidates.Pooled`.
        self._averages: WeakKeyDictionary[CachedVersion, float] = WeakKeyDictionary()
        self._counts: WeakKeyDictionary[CachedVersion, dict[str, int]] = WeakKeyDictionary()

    @property
    def bytes_held(self) -> int:
        """Bytes that the words take in memory, about."""
        return self._postings.bytes_held

    def match(
        self,
        version: CachedVersion,
        query: str,
        limit: int,
        where: str | None = None,
        passing: NDArray[np.int64] | None = None,
    ) -> ScoredPositions:
        """Return the best documents by BM25 with their scores, best first, then by id.

        Args:
            version: Version of the index.
            query: Query string.
            limit: Maximum number of documents.
            where: Filter as SQL.
            passing: (n,) positions that pass the filter; None for all documents.
        """
        if limit < 1 or (postings := self._postings.over(version)) is None:
            return version.match(query, limit, where)
        words = words_of(query)
        statistics = WordStatistics(len(version), postings.n_words, {word: postings.n_having(word) for word in words})
        chosen = _contenders(postings, words, statistics, limit, passing)
        if chosen is None:
            scores = np.zeros(len(version), np.float32)
            for word in words:
                _add(scores, postings, word, statistics)
            chosen = np.flatnonzero(scores) if passing is None else passing[scores[passing] > 0]
            scores = scores[chosen]
        else:
            frequencies = np.stack([postings.frequencies(word, chosen) for word in words], axis=1)
            found = WordMatches(chosen, version.states.ids[chosen], frequencies, postings.lengths[chosen], 0)
            scores = found.scores(words, statistics)
        if len(chosen) > limit:
            is_best = scores >= np.partition(scores, -limit)[-limit]
            chosen, scores = chosen[is_best], scores[is_best]
        order = top_k(scores, version.states.ids[chosen], limit)
        return ScoredPositions(chosen[order], scores[order])

    def statistics(self, version: CachedVersion, texts: Iterable[str]) -> WordStatistics:
        """Return the statistics of a version for all words of some texts."""
        counts = self._counts.setdefault(version, {})
        postings = self._postings.over(version)
        wanted: dict[str, int] = {}
        for text in texts:
            for word, spelling in spellings(text).items():
                if word not in counts:
                    if postings is not None:
                        counts[word] = postings.n_having(word)
                    else:
                        counts[word] = len(_matching(version, spelling).positions)
                wanted[word] = counts[word]
        if postings is not None:
            return WordStatistics(len(version), postings.n_words, wanted)
        return WordStatistics(len(version), round(self._average(version) * len(version)), wanted)

    def best_matches(
        self,
        version: CachedVersion,
        query: str,
        limit: int,
        where: str | None = None,
        passing: NDArray[np.int64] | None = None,
    ) -> WordMatches:
        """Return the documents that match a query best by the statistics of this index; arguments as for `match`."""
        positions, scores = self.match(version, query, min(limit, len(version)), where, passing)
        words = words_of(query)
        frequencies = np.zeros((len(positions), len(words)), np.float32)
        if (postings := self._postings.over(version)) is not None:
            lengths = postings.lengths[positions]
            of_all = np.zeros(len(version), np.float32)
            for i, word in enumerate(words):
                having, counts = postings.find(word)
                of_all[having] = counts
                frequencies[:, i] = of_all[positions]
                of_all[having] = 0
        else:
            lengths = np.zeros(len(positions), np.float32)
            for i, row in enumerate(version.rows(positions)):
                of_text = counts_of(row["text"] or "")
                frequencies[i] = [of_text[word] for word in words]
                lengths[i] = of_text.total()
        states = version.states
        bound = float(scores.min()) if 0 < limit <= len(positions) else 0.0
        return WordMatches(states.row_ids[positions], states.ids[positions], frequencies, lengths, bound)

    def _average(self, version: CachedVersion) -> float:
        average = self._averages.get(version)
        if average is None:
            average = self._averages[version] = _average_length(version)
        return average


def _add(scores: Scores, postings: Postings, word: str, statistics: WordStatistics) -> None:
    """Add what a word gives to the score of every document."""
    positions, frequencies = postings.find(word)
    norms = statistics.norms(postings.lengths[positions])
    scores[positions] += statistics.gains(word, frequencies, norms)


def _contenders(
    postings: Postings,
    words: Sequence[str],
    statistics: WordStatistics,
    limit: int,
    passing: NDArray[np.int64] | None,
) -> NDArray[np.int64] | None:
    """Return rising positions among which the `limit` best documents are; None if all have to be scored.

    A common word adds little to a score. Documents that rarer words put so far behind that the common ones cannot
    bring them back need not be scored, and those that have no rarer word neither (MaxScore, Turtle and Flood 1995,
    https://doi.org/10.1016/0306-4573(95)00020-H).
    """
    counts = statistics.counts
    if limit > _MAX_CONTENDERS or max(counts.values(), default=0) <= _MANY:
        return None
    by_rarity, scores = sorted(words, key=counts.__getitem__), np.zeros(len(postings.lengths), np.float32)
    # No frequency gives more than these. Sums of float32 in another order differ a little.
    most = [float((K1 + 1) * statistics.weight(word)) * (1 + _ROUNDING) for word in by_rarity]
    chosen: NDArray[np.int64] | None = None
    for done, word in enumerate([*by_rarity, ""]):
        rest = sum(most[done:])
        if counts.get(word, 0) > _MANY or not rest:
            having = chosen
            if having is None:
                having = np.flatnonzero(scores) if passing is None else passing[scores[passing] > 0]
            lowest = float(np.partition(scores[having], -limit)[-limit]) if len(having) >= limit else 0.0
            if rest < lowest or not rest:
                chosen = having[scores[having] * (1 + _ROUNDING) + rest >= lowest]
        if not rest:
            break
        if chosen is None:
            _add(scores, postings, word, statistics)
        else:
            norms = statistics.norms(postings.lengths[chosen])
            scores[chosen] += statistics.gains(word, postings.frequencies(word, chosen), norms)
    return chosen


def growth(mine: WordStatistics, all: WordStatistics, words: Sequence[str]) -> float:
    """Return the largest factor by which a score can grow from the statistics of one index to those of all."""
    weights = [float(all.weight(word) / own) for word in words if (own := mine.weight(word))]
    return max(weights, default=1.0) * max(1.0, float(all.average_length / mine.average_length))


def _matching(version: CachedVersion, spelling: str) -> ScoredPositions:
    """Return all documents that contain a word, with LanceDB's scores, in no order."""
    # The full-text index keeps rows that were deleted, until it is merged with new ones.
    return _known(version, *version.snapshot.match(spelling, len(version)))


def _known(version: CachedVersion, row_ids: NDArray[np.int64], scores: Scores) -> ScoredPositions:
    """Return the rows that are in a version as positions, in the same order."""
    positions = version.positions(row_ids)
    is_known = version.states.row_ids.take(positions, mode="clip") == row_ids if len(version) else row_ids < 0
    return ScoredPositions(positions[is_known], scores[is_known])


def _average_length(version: CachedVersion) -> float:
    """Return the average number of words in a document, solved from LanceDB's scores of a few documents.

    To count them all takes 1 µs a word, minutes in a large index. LanceDB knows the sum and does not tell it, but in
    the score of one word everything else is known.
    """
    # Those written last: in an index that has grown since `optimize`, LanceDB scores them with all statistics, and
    # older rows with those of older rows.
    newest = np.argsort(-version.states.updated, kind="stable")[:_N_SAMPLED]
    averages, lengths = [], []
    for position, row in zip(newest.tolist(), version.rows(newest), strict=True):
        counts = counts_of(row["text"] or "")
        lengths.append(counts.total())
        # A long word is likely to be rare, and quick to look for.
        spelling_of = spellings(row["text"] or "")
        if not (word := max(spelling_of, key=len, default=None)):
            continue
        positions, scores = _matching(version, spelling_of[word])
        if not len(at := np.flatnonzero(positions == position)):
            continue
        statistics = WordStatistics(len(version), 0, {word: len(positions)})
        frequency = counts[word]
        norm = frequency * (float(K1 + 1) * float(statistics.weight(word)) / float(scores[at[0]]) - 1)
        share = norm / float(K1) - float(1 - B)
        if share > 0:
            averages.append(float(B) * counts.total() / share)
    if averages:
        return float(np.median(averages))
    return float(np.mean(lengths)) if lengths else 0.0
