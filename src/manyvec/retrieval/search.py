"""One search over one version of the table: candidates, exact scores, the mix with BM25, and hits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import InputError, check_count
from manyvec.evidence.pages import PageEvidence, explain_pages
from manyvec.evidence.passages import Passage
from manyvec.evidence.text import Evidence, best_passages, explain
from manyvec.filters.values import read_metadata
from manyvec.models.protocol import Encoder, ImageReader
from manyvec.retrieval.candidates import LEXICAL_DEPTH, Candidates, Positions, Query, Scope
from manyvec.retrieval.lexical import counted_words
from manyvec.retrieval.mixing import LexicalWeight, chosen_weight, mixed
from manyvec.retrieval.queries import AnyQuery, check_passages, check_strings
from manyvec.timing import stage
from manyvec.types import Hit
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import ScoredPositions, Scores, top_k

AnyEvidence: TypeAlias = "Evidence | PageEvidence"


@dataclass(frozen=True)
class SearchOptions:
    """Options of `Index.search`, checked.

    Attributes:
        lexical_weight: Share of BM25 in the order of the hits of a query that has words.
        passage_chars: Maximum length of each hit's passage; None for no passages.
        crops_images: Whether the encoder looks at the middle square of an image only; see `PageEvidence`.
    """

    k: int
    depth: int | None = None
    lexical_weight: float = 0
    evidence: bool = False
    crops_images: bool = False
    passage_chars: int | None = None

    @classmethod
    def checked(
        cls,
        queries: Sequence[AnyQuery] | TokenBatch,
        k: object,
        *,
        depth: object,
        lexical_weight: LexicalWeight,
        weight_of_index: float,
        evidence: bool,
        passage_chars: object,
    ) -> SearchOptions:
        """Return the options of a search that a user has called.

        Raises:
            InputError: One of them cannot be used, by itself or with these queries.
        """
        if isinstance(queries, str):
            raise InputError("search_many takes a list of queries; for one query use search")
        options = cls(
            check_count(k, "k"),
            None if depth is None else check_count(depth, "depth", minimum=1),
            lexical_weight=chosen_weight(lexical_weight, weight_of_index),
            evidence=evidence,
            passage_chars=None if passage_chars is None else check_count(passage_chars, "passage_chars", minimum=1),
        )
        check_strings(queries, lexical_weight=lexical_weight != "auto" and options.lexical_weight, evidence=evidence)
        if passage_chars is not None:
            check_passages(queries)
        return options

    def encoded(self, texts: Sequence[str], encoder: Encoder | None) -> SearchOptions:
        """Return the options once the queries are encoded.

        Args:
            texts: Text of each query, empty for those without words.
            encoder: Encoder of the index; None if there is no evidence to compute.
        """
        crops_images = isinstance(encoder, ImageReader) and encoder.crops_images
        # Without words BM25 has nothing to count.
        return replace(self, lexical_weight=self.lexical_weight if any(texts) else 0, crops_images=crops_images)

    def weight_of(self, query: str) -> float:
        """Return the share of BM25 for one query string, which is empty if the query is an image or token vectors."""
        return self.lexical_weight if query else 0


@dataclass(frozen=True)
class _Ranking:
    """The best documents for one query, best first.

    Attributes:
        positions: (n,) documents.
        scores: (n,) MaxSim.
        final_scores: (n,) what they are ordered by.
        has_bm25: (n,) whether BM25 adds to the final score.
    """

    positions: Positions
    scores: Scores
    final_scores: Scores
    has_bm25: NDArray[np.bool_]


def search(
    scope: Scope,
    candidates: Candidates,
    queries: Sequence[str],
    tokens: TokenBatch,
    options: SearchOptions,
    matches: Sequence[ScoredPositions] | None = None,
) -> list[list[Hit]]:
    """Search the documents in scope.

    Args:
        scope: Version of the table, and the documents in it that pass the filter.
        candidates: First stage that chooses the documents to score.
        queries: Query strings.
        tokens: Token vectors of the queries, in the same order.
        options: What the search is to return.
        matches: BM25's best documents for each query, where they come with statistics from outside.

    Returns:
        Hits of each query, best first.
    """
    if matches is None:
        matches = _bm25_matches(queries, scope, options)
    chosen = _candidates(candidates, queries, tokens, matches, scope, options)
    scored = _exact_scores(scope, tokens, chosen, matches, options)
    rankings = [
        _ranked(documents, matches[i], len(tokens[i]), scope, options.k, options.weight_of(queries[i]))
        for i, documents in enumerate(scored)
    ]
    # The texts of all queries in one read.
    spans = options.evidence or options.passage_chars is not None
    rows = scope.documents.rows(np.concatenate([ranking.positions for ranking in rankings]), spans=spans)
    ends = np.cumsum([len(ranking.positions) for ranking in rankings])
    return [
        _hits(scope, ranking, rows[end - len(ranking.positions) : end], queries[i], tokens.select([i]), options)
        for i, (ranking, end) in enumerate(zip(rankings, ends, strict=True))
    ]


def rank_mixed(
    scope: Scope, queries: Sequence[str], tokens: TokenBatch, weights: Sequence[float], k: int
) -> dict[float, list[list[str]]]:
    """Return the ids of the best `k` of all documents in scope for each query, best first, by each share of BM25."""
    # Of whatever weight: BM25 is asked once for each query, and every document scored once.
    options = SearchOptions(k, lexical_weight=1)
    matches = _bm25_matches(queries, scope, options)
    scored = _exact_scores(scope, tokens, [None] * len(queries), matches, options)

    def ids(i: int, weight: float) -> list[str]:
        ranking = _ranked(scored[i], matches[i], len(tokens[i]), scope, k, weight if queries[i] else 0)
        found: list[str] = scope.documents.states.ids[ranking.positions].tolist()
        return found

    return {weight: [ids(i, weight) for i in range(len(queries))] for weight in weights}


@stage("candidates")
def _bm25_matches(queries: Sequence[str], scope: Scope, options: SearchOptions) -> list[ScoredPositions]:
    """Return BM25's best documents for each query; no documents if BM25 takes no part in the score."""
    # LanceDB takes no limit beyond 64 bits.
    limit = min(max(LEXICAL_DEPTH, options.k), len(scope.documents))
    return [scope.match(query, limit if options.weight_of(query) else 0) for query in queries]


@stage("candidates")
def _candidates(
    candidates: Candidates,
    queries: Sequence[str],
    tokens: TokenBatch,
    matches: Sequence[ScoredPositions],
    scope: Scope,
    options: SearchOptions,
) -> list[Positions | None]:
    """Return the positions to score for each query; None for all documents in scope."""
    return [
        candidates.find(Query(text, tokens[i], matches[i] if options.weight_of(text) else None), scope, options.depth)
        for i, text in enumerate(queries)
    ]


def _exact_scores(
    scope: Scope,
    tokens: TokenBatch,
    chosen: Sequence[Positions | None],
    matches: Sequence[ScoredPositions],
    options: SearchOptions,
) -> list[ScoredPositions]:
    """Return documents and their MaxSim for each query: all that were chosen, or at least the best `k` of them.

    Positions rise where BM25 takes part.
    """
    documents, scorer = scope.documents, scope.scorer
    # Documents that all queries share are scored in one pass.
    is_one_pass = all(positions is None for positions in chosen)
    if is_one_pass and not options.lexical_weight:
        return documents.best(scorer, tokens, options.k, scope.passing)
    everything = np.arange(len(documents)) if scope.passing is None else scope.passing
    if is_one_pass:
        return [ScoredPositions(everything, scores) for scores in documents.score(scorer, tokens, scope.passing)]
    scored = []
    for i, positions in enumerate(chosen):
        query = tokens.select([i])
        # A first stage of the user's may return a position twice.
        best = everything if positions is None else np.unique(positions)
        scores = documents.score(scorer, query, best)[0]
        promising = _promising(ScoredPositions(best, scores), matches[i], query.n_tokens, options)
        if len(promising):
            best = np.concatenate([best, promising])
            scores = np.concatenate([scores, documents.score(scorer, query, promising)[0]])
            order = np.argsort(best)
            best, scores = best[order], scores[order]
        scored.append(ScoredPositions(best, scores))
    return scored


def _promising(
    scored: ScoredPositions, matches: ScoredPositions, n_query_tokens: int, options: SearchOptions
) -> Positions:
    """Return the rising positions of BM25's best documents that may be hits and were not scored.

    A first stage leaves out documents because they are less similar than the k-th best that it found. Those whose
    final score would not suffice even with that similarity need no exact score.
    """
    left = ~np.isin(matches.positions, scored.positions)
    if len(scored.positions) > options.k > 0:
        similarities = scored.scores / max(1, n_query_tokens)
        final_scores = mixed(similarities, _bm25_of(scored.positions, matches), options.lexical_weight)
        as_similar = np.full(len(left), _kth(similarities, options.k))
        left &= mixed(as_similar, matches.scores, options.lexical_weight) >= _kth(final_scores, options.k)
    return np.sort(matches.positions[left])


def _kth(scores: NDArray[np.floating], k: int) -> float:
    """Return the k-th highest score."""
    return float(np.partition(scores, -k)[-k])


def _bm25_of(positions: Positions, matches: ScoredPositions) -> Scores:
    """Return the (n,) BM25 scores of rising positions; 0 for those that do not match."""
    bm25 = np.zeros(len(positions), np.float32)
    at = np.searchsorted(positions, matches.positions)
    is_known = at < len(positions)
    is_known[is_known] = positions[at[is_known]] == matches.positions[is_known]
    bm25[at[is_known]] = matches.scores[is_known]
    return bm25


def _ranked(
    scored: ScoredPositions, matches: ScoredPositions, n_query_tokens: int, scope: Scope, k: int, lexical_weight: float
) -> _Ranking:
    """Order documents by MaxSim, or by its mix with BM25, and keep the best `k`."""
    positions, scores = scored
    bm25 = _bm25_of(positions, matches) if lexical_weight else np.zeros(len(positions), np.float32)
    final_scores = mixed(scores / max(1, n_query_tokens), bm25, lexical_weight) if lexical_weight else scores
    best = top_k(final_scores, scope.documents.states.ids[positions], k)
    return _Ranking(positions[best], scores[best], final_scores[best], bm25[best] > 0)


def _hits(
    scope: Scope,
    ranking: _Ranking,
    rows: Sequence[dict[str, Any]],
    query: str,
    tokens: TokenBatch,
    options: SearchOptions,
) -> list[Hit]:
    evidence: Sequence[AnyEvidence | None] = [None] * len(rows)
    passages: Sequence[Passage | None] = [None] * len(rows)
    if rows and options.evidence:
        explained = _evidence(scope, ranking.positions, rows, query, tokens, options)
        evidence = [
            replace(why, counted=counted_words(query, row["text"])) if has_bm25 else why
            for why, row, has_bm25 in zip(explained, rows, ranking.has_bm25.tolist(), strict=True)
        ]
        passages = [_passage(why, options.passage_chars) for why in evidence]
    elif rows and options.passage_chars is not None:
        passages = _passages(scope, ranking.positions, rows, tokens, options.passage_chars)
    columns = zip(rows, ranking.scores.tolist(), ranking.final_scores.tolist(), evidence, passages, strict=True)
    return [
        Hit(
            id=row["id"],
            text=row["text"],
            metadata=read_metadata(row["metadata"]),
            score=score,
            similarity=score / tokens.n_tokens,
            rank=rank,
            evidence=why,
            final_score=final_score,
            is_page=row["is_page"],
            passage=passage,
        )
        for rank, (row, score, final_score, why, passage) in enumerate(columns, start=1)
    ]


def _passage(evidence: AnyEvidence | None, n_chars: int | None) -> Passage | None:
    if n_chars is None or not isinstance(evidence, Evidence) or evidence.problem:
        return None
    return evidence.best_passage(n_chars)


def _evidence(
    scope: Scope,
    positions: Positions,
    rows: Sequence[dict[str, Any]],
    query: str,
    tokens: TokenBatch,
    options: SearchOptions,
) -> list[AnyEvidence]:
    """Explain each row from the version that was searched: a text by its characters, a page by its patches."""
    documents = _documents(scope, positions, rows)
    texts = [i for i, row in enumerate(rows) if not row["is_page"]]
    pages = [i for i, row in enumerate(rows) if row["is_page"]]
    if len(texts) == len(rows):
        return [*explain(query, tokens, [row["text"] for row in rows], documents)]
    explained: dict[int, AnyEvidence] = {}
    if texts:
        explained |= zip(
            texts, explain(query, tokens, [rows[i]["text"] for i in texts], documents.select(texts)), strict=True
        )
    images = scope.documents.snapshot.images(scope.documents.states.row_ids[positions[pages]])
    captioned = [(rows[i]["text"], image or b"") for i, image in zip(pages, images, strict=True)]
    explained |= zip(
        pages,
        explain_pages(query, tokens, captioned, documents.select(pages), are_cropped=options.crops_images),
        strict=True,
    )
    return [explained[i] for i in range(len(rows))]


def _passages(
    scope: Scope, positions: Positions, rows: Sequence[dict[str, Any]], tokens: TokenBatch, n_chars: int
) -> list[Passage | None]:
    """Return the best passage of each row; None for a page."""
    texts = [i for i, row in enumerate(rows) if not row["is_page"]]
    if not texts:
        return [None] * len(rows)
    some = [rows[i] for i in texts]
    documents = _documents(scope, positions[texts], some)
    found = iter(best_passages(tokens, [row["text"] for row in some], documents, n_chars))
    return [None if row["is_page"] else next(found) for row in rows]


def _documents(scope: Scope, positions: Positions, rows: Sequence[dict[str, Any]]) -> TokenBatch:
    """Return the token vectors of rows with their spans."""
    vectors = scope.documents.tokens(positions)
    return TokenBatch.unchecked(vectors.vectors, vectors.offsets, np.concatenate([row["spans"] for row in rows]))
