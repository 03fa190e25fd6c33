"""The loss of a training step: sentence-transformers' own, for whole vectors and for their prefixes.

This imports torch and sentence-transformers, so import it only when a model is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.losses import (
    CachedMultiVectorMultipleNegativesRankingLoss,
    MultiVectorDistillKLDivLoss,
    MultiVectorMultipleNegativesRankingLoss,
)

from manyvec.training.preparing import activation_bytes

# What the activations of a step may take before they are computed twice instead of kept.
_MAX_ACTIVATION_BYTES = 4 * 2**30
_CHUNK_ROWS = 32


class PrefixLoss(torch.nn.Module):
    """The sum of a loss over prefixes of the token vectors, each made a unit vector again (Matryoshka).

    The model runs once; the loss is then computed from parts of what it returned (https://arxiv.org/abs/2205.13147).

    Args:
        loss: A loss that calls `loss.model` for queries and then for documents.
        dims: Lengths of the prefixes, the whole vector last.
    """

    def __init__(self, loss: Any, dims: Sequence[int]) -> None:
        super().__init__()
        self.loss = loss
        self.dims = list(dims)
        self.loss.model = _Replay(loss.model)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: torch.Tensor | None = None) -> torch.Tensor:
        features, replay = list(sentence_features), self.loss.model
        replay.outputs = []
        parts = []
        for dim in reversed(self.dims):
            replay.start(dim)
            parts.append(self.loss(features, labels))
        replay.outputs = []
        return torch.stack(parts).sum()


class _Replay(torch.nn.Module):
    """Runs a model at the first pass over a step's inputs, and returns prefixes of the same outputs at later passes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.outputs: list[dict[str, Any]] = []
        self._position = 0
        self._dim = 0

    def start(self, dim: int) -> None:
        """Begin a pass that returns the first `dim` dims."""
        self._position, self._dim = 0, dim

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        if self._position == len(self.outputs):
            self.outputs.append(self.model(features, **kwargs))
        output = self.outputs[self._position]
        self._position += 1
        prefix = output["token_embeddings"][..., : self._dim]
        return {**output, "token_embeddings": torch.nn.functional.normalize(prefix, dim=-1)}


def loss_for(
    model: MultiVectorEncoder, *, has_teacher: bool, dims: Sequence[int], n_rows: int, n_tokens: int
) -> torch.nn.Module:
    """Return the loss to train with.

    Args:
        model: Model that is trained.
        has_teacher: Whether rows carry a teacher's scores, to be distilled (KL divergence), or the loss is contrastive.
        dims: Prefixes to train; one for whole vectors only.
        n_rows: Number of documents in a batch.
        n_tokens: Maximum number of tokens of each.
    """
    if has_teacher:
        loss: Any = MultiVectorDistillKLDivLoss(model)
    elif len(dims) == 1 and activation_bytes(model, n_rows, n_tokens) > _MAX_ACTIVATION_BYTES:
        return CachedMultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=_CHUNK_ROWS)
    else:
        loss = MultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=_CHUNK_ROWS)
    return PrefixLoss(loss, dims) if len(dims) > 1 else loss
