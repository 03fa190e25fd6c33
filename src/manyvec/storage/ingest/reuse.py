"""`StoredContent`: token vectors of stored documents by their content, for documents that come under another id."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from manyvec.storage.schema import Row
from manyvec.storage.snapshot import Snapshot
from manyvec.vectors.batch import TokenBatch


class StoredContent:
    """The content of an index when it was looked at: which row holds which text and image.

    Args:
        snapshot: Version of the index. The hashes of all its rows are held in memory, some 100 bytes for each.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.generation = snapshot.key.generation
        self._snapshot = snapshot
        self._row_ids = snapshot.row_ids_by_content()

    def find(self, rows: Sequence[Row]) -> tuple[list[int], TokenBatch | None]:
        """Return the positions of rows whose content is stored, and their token vectors with spans, in this order."""
        positions = [i for i, row in enumerate(rows) if row.content_hash in self._row_ids]
        if not positions:
            return [], None
        row_ids = [self._row_ids[rows[i].content_hash] for i in positions]
        tokens = self._snapshot.tokens(row_ids)
        spans = [row["spans"] for row in self._snapshot.texts(row_ids, spans=True)]
        # Damaged rows have no vectors, or not as many as spans.
        whole = [i for i, n_tokens in enumerate(tokens.lengths) if n_tokens == len(spans[i]) > 0]
        if not whole:
            return [], None
        kept = tokens.select(whole)
        found = TokenBatch.unchecked(kept.vectors, kept.offsets, np.concatenate([spans[i] for i in whole]))
        return [positions[i] for i in whole], found
