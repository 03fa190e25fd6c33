"""Tiny checkpoints with random weights, in the layouts in which models are published.

Each `write_*` writes one to a folder and returns the token vectors that the family's own code would compute, obtained
with plain transformers and a few lines of arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.testing import assert_allclose

from manyvec import MaxSimScorer, TokenBatch
from manyvec.models.checkpoints import LoadOptions
from manyvec.models.loading import LocalEncoder, build_encoder

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@dataclass
class Golden:
    """Expected token vectors of the queries and documents (or images) of a family's tests."""

    queries: list[np.ndarray]
    documents: list[np.ndarray]

    def check(self, queries: TokenBatch, documents: TokenBatch, *, atol: float) -> None:
        """Assert that the vectors agree, and that MaxSim over them does."""
        for batch, expected in ((queries, self.queries), (documents, self.documents)):
            assert batch.lengths.tolist() == [len(vectors) for vectors in expected]
            for i, vectors in enumerate(expected):
                assert_allclose(batch[i], vectors, atol=atol)
        scores = [[(query @ document.T).max(axis=1).sum() for document in self.documents] for query in self.queries]
        assert_allclose([MaxSimScorer().score(query, documents) for query in queries], scores, atol=10 * atol)


Writer = Callable[[Path], Golden]


def fresh(folder: str | Path, **options: Any) -> LocalEncoder:
    """Load a checkpoint anew, on the CPU: other tests cannot have changed it."""
    return build_encoder(str(folder), LoadOptions(**options))


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edited(folder: Path, file: str, **changes: Any) -> Path:
    """Change some keys of a JSON file in a folder, and return the folder."""
    write_json(folder / file, json.loads((folder / file).read_text()) | changes)
    return folder
