"""One search over one version of the table: candidates, exact scores, the mix with BM25, and hits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.evidence.pages import PageEvidence, explain_pages
from manyvec.evidence.text import Evidence, explain
from manyvec.retrieval.candidates import LEXICAL_DEPTH, Candidates, Positions, Query, Scope
from manyvec.retrieval.mixing import mixed
from manyvec.timing import stage
from manyvec.types import Hit
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import ScoredPositions, Scores, top_k


@dataclass(frozen=True)
class SearchOptions:
    """What a search is to give; see `Index.search`, and for `crops_images` `PageEvidence`."""

    k: int
    depth: int | None = None
    lexical_weight: float = 0
    evidence: bool = False
    crops_images: bool = False


def search(
    scope: Scope, candidates: Candidates, queries: Sequence[str], tokens: TokenBatch, wanted: SearchOptions
) -> list[list[Hit]]:
    """Hits of each query, given as texts and as token vectors, over the version and the documents in scope."""
    with stage("candidates"):
        matched = [_lexical(text, scope, wanted) for text in queries]
        found = [
            candidates.find(Query(text, tokens[i], matched[i] if wanted.lexical_weight else None), scope, wanted.depth)
            for i, text in enumerate(queries)
        ]
    hits = []
    for i, (positions, scores) in enumerate(_scored(scope, tokens, found, matched, wanted)):
        final = scores
        if wanted.lexical_weight:
            bm25 = np.zeros(len(positions), np.float32)
            bm25[np.searchsorted(positions, matched[i].positions)] = matched[i].scores
            final = mixed(scores / max(1, len(tokens[i])), bm25, wanted.lexical_weight)
        best = top_k(final, scope.documents.states.ids[positions], wanted.k)
        hits.append(_hits(scope, positions[best], scores[best], final[best], queries[i], tokens.select([i]), wanted))
    return hits


def _scored(
    scope: Scope,
    tokens: TokenBatch,
    found: Sequence[Positions | None],
    matched: Sequence[ScoredPositions],
    wanted: SearchOptions,
) -> list[ScoredPositions]:
    """For each query documents and their MaxSim; in rising order where BM25 takes part."""
    resident, scorer = scope.documents, scope.scorer
    # Where the same documents are meant for all queries, they are scored in one pass.
    is_one_pass = all(positions is None for positions in found)
    if is_one_pass and not wanted.lexical_weight:
        return resident.best(scorer, tokens, wanted.k, scope.passing)
    everything = np.arange(len(resident)) if scope.passing is None else scope.passing
    if is_one_pass:
        return [ScoredPositions(everything, scores) for scores in resident.score(scorer, tokens, scope.passing)]
    scored = []
    for i, positions in enumerate(found):
        chosen = everything if positions is None else np.union1d(positions, matched[i].positions)
        scored.append(ScoredPositions(chosen, resident.score(scorer, tokens.select([i]), chosen)[0]))
    return scored


def _lexical(text: str, scope: Scope, wanted: SearchOptions) -> ScoredPositions:
    """The documents in scope that have the query's words best, and their BM25; none where BM25 does not take part."""
    limit = max(LEXICAL_DEPTH, wanted.k) if wanted.lexical_weight else 0
    return scope.documents.match(text, limit, scope.where)


def _hits(
    scope: Scope,
    positions: Positions,
    scores: Scores,
    final: Scores,
    query: str,
    tokens: TokenBatch,
    wanted: SearchOptions,
) -> list[Hit]:
    snapshot = scope.documents.snapshot
    row_ids: NDArray[np.int64] = scope.documents.states.row_ids[positions]
    rows = snapshot.texts(row_ids, spans=wanted.evidence)
    found: Sequence[Evidence | PageEvidence | None] = [None] * len(rows)
    if wanted.evidence and rows:
        found = _evidence(scope, positions, rows, query, tokens, wanted)
    columns = zip(rows, scores.tolist(), final.tolist(), found, strict=True)
    return [
        Hit(
            id=row["id"],
            text=row["text"],
            metadata=json.loads(row["metadata"]),
            score=score,
            similarity=score / tokens.n_tokens,
            rank=rank,
            evidence=why,
            final_score=order,
            is_page=row["is_page"],
        )
        for rank, (row, score, order, why) in enumerate(columns, start=1)
    ]


def _evidence(
    scope: Scope,
    positions: Positions,
    rows: Sequence[dict[str, Any]],
    query: str,
    tokens: TokenBatch,
    wanted: SearchOptions,
) -> list[Evidence | PageEvidence]:
    """Of each row, of the version that was searched: of a text in its characters, of a page in its patches."""
    resident = scope.documents
    held = resident.tokens(positions)
    documents = TokenBatch.unchecked(held.vectors, held.offsets, np.concatenate([row["spans"] for row in rows]))
    if not any(row["is_page"] for row in rows):
        return [*explain(query, tokens, [row["text"] for row in rows], documents)]
    found: dict[int, Evidence | PageEvidence] = {}
    if texts := [i for i, row in enumerate(rows) if not row["is_page"]]:
        written = [rows[i]["text"] for i in texts]
        found |= zip(texts, explain(query, tokens, written, documents.select(texts)), strict=True)
    if pages := [i for i, row in enumerate(rows) if row["is_page"]]:
        row_ids = resident.states.row_ids[positions[pages]]
        images = [image or b"" for image in resident.snapshot.images(row_ids)]
        pairs = [(rows[i]["text"], image) for i, image in zip(pages, images, strict=True)]
        explained = explain_pages(query, tokens, pairs, documents.select(pages), are_cropped=wanted.crops_images)
        found |= zip(pages, explained, strict=True)
    return [found[i] for i in range(len(rows))]
