"""One search over one version of the table: candidates, exact scores, the mix with BM25, and hits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from manyvec.candidates import Candidates, Places, Query, Scope
from manyvec.explain import Evidence, explain
from manyvec.mixing import mixed
from manyvec.scoring import MaxSimScorer, Scores, top_k
from manyvec.timing import stage
from manyvec.tokens import TokenBatch
from manyvec.types import Hit

# So many documents are asked of BM25 where it takes part in the score.
_LEXICAL_DEPTH = 300


@dataclass(frozen=True)
class Wanted:
    """What a search is to give; see `Index.search`."""

    k: int
    depth: int | None = None
    lexical_weight: float = 0
    evidence: bool = False


def search(
    scope: Scope,
    candidates: Candidates,
    scorer: MaxSimScorer,
    queries: Sequence[str],
    tokens: TokenBatch,
    wanted: Wanted,
) -> list[list[Hit]]:
    """Hits of each query, given as texts and as token vectors, over the version and the documents in scope."""
    resident = scope.documents
    everything = np.arange(len(resident)) if scope.passing is None else scope.passing
    with stage("candidates"):
        found = [candidates.find(Query(text, tokens[i]), scope, wanted.depth) for i, text in enumerate(queries)]
        depth = max(_LEXICAL_DEPTH, wanted.k)
        bm25 = [_lexical(text, scope, depth) if wanted.lexical_weight else {} for text in queries]
    if all(places is None for places in found):
        # The same documents for all queries, so all are scored in one pass over them.
        scored = list(resident.score(scorer, tokens, scope.passing))
        chosen = [everything] * len(queries)
    else:
        chosen = [
            everything if places is None else np.union1d(places, np.array([*words], np.int64))
            for places, words in zip(found, bm25, strict=True)
        ]
        scored = [resident.score(scorer, tokens.select([i]), places)[0] for i, places in enumerate(chosen)]
    hits = []
    for i, (places, scores) in enumerate(zip(chosen, scored, strict=True)):
        final = scores
        if wanted.lexical_weight:
            words = np.array([bm25[i].get(place, 0.0) for place in places.tolist()], np.float32)
            final = mixed(scores / max(1, len(tokens[i])), words, wanted.lexical_weight)
        best = top_k(final, resident.states.ids[places], wanted.k)
        hits.append(_hits(scope, places[best], scores[best], final[best], queries[i], tokens.select([i]), wanted))
    return hits


def _lexical(text: str, scope: Scope, depth: int) -> dict[int, float]:
    """BM25 of the documents that have the query's words best."""
    matches = scope.documents.snapshot.match(text, depth, scope.where)
    places = scope.documents.places(np.array([row_id for row_id, _ in matches], np.int64))
    return dict(zip(places.tolist(), (score for _, score in matches), strict=True))


def _hits(
    scope: Scope, places: Places, scores: Scores, final: Scores, query: str, tokens: TokenBatch, wanted: Wanted
) -> list[Hit]:
    snapshot = scope.documents.snapshot
    row_ids: NDArray[np.int64] = scope.documents.states.row_ids[places]
    rows = snapshot.texts(row_ids)
    found: Sequence[Evidence | None] = [None] * len(rows)
    if wanted.evidence and rows:
        stored = snapshot.tokens(row_ids, spans=True)
        # The spans of a page image are patches, never to be read as characters.
        texts = [None if row.get("image") else row["text"] for row in rows]
        found = explain(query, tokens, texts, stored)
    columns = zip(rows, scores.tolist(), final.tolist(), found, strict=True)
    return [
        Hit(row["id"], row["text"], json.loads(row["metadata"]), score, score / tokens.n_tokens, rank, why, order)
        for rank, (row, score, order, why) in enumerate(columns, start=1)
    ]
