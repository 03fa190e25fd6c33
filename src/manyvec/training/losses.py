"""Losses: sentence-transformers' own, for whole vectors and for their prefixes, and FILIP's of images and texts.

This imports torch and sentence-transformers, so import it only when a model is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.losses import (
    CachedMultiVectorMultipleNegativesRankingLoss,
    MultiVectorDistillKLDivLoss,
    MultiVectorMultipleNegativesRankingLoss,
)
from sentence_transformers.multi_vector_encoder.scoring import mean_colbert_scores

from manyvec.errors import InputError
from manyvec.models.filip import patch_vectors, word_mask, word_vectors
from manyvec.training.preparing import activation_bytes

__all__ = ["FilipLoss", "PrefixLoss", "filip_similarities", "loss_for", "patch_vectors", "word_mask", "word_vectors"]

# What the activations of a step may take before they are computed twice instead of kept.
_MAX_ACTIVATION_BYTES = 4 * 2**30
_CHUNK_ROWS = 32
# Scale of the mean similarity of a query's tokens before the softmax. The sum of similarities, usual for ColBERT's 32
# tokens, is a scale of 12 for a question of 12 tokens: all weights trained with it rank held-out questions worse
# (docs/decisions.md).
SCALE = 50.0
# The paper's start, and the bound of CLIP that it keeps.
_FIRST_TEMPERATURE, _LAST_TEMPERATURE = 0.07, 0.01


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
    contrast: dict[str, Any] = {"scale": SCALE, "similarity_fct": mean_colbert_scores, "mini_batch_size": _CHUNK_ROWS}
    if has_teacher:
        loss: Any = MultiVectorDistillKLDivLoss(model)
    elif len(dims) == 1 and activation_bytes(model, n_rows, n_tokens) > _MAX_ACTIVATION_BYTES:
        return CachedMultiVectorMultipleNegativesRankingLoss(model, **contrast)
    else:
        loss = MultiVectorMultipleNegativesRankingLoss(model, **contrast)
    return PrefixLoss(loss, dims) if len(dims) > 1 else loss


class FilipLoss(torch.nn.Module):
    """Cross-entropy of each image against the texts of a batch, and of each text against the images, averaged.

    The similarity of an image and a text is the best match of each patch among the words, averaged; of a text and an
    image, the best match of each word among the patches, averaged. The temperature is learned
    (https://arxiv.org/abs/2111.07783).

    Args:
        top_fraction: Share of an item's tokens that are compared: those that match anything in the batch best. The
            paper takes a quarter, which saves memory and leaves out patches of background.
    """

    def __init__(self, top_fraction: float = 1.0) -> None:
        super().__init__()
        if not 0 < top_fraction <= 1:
            raise InputError(f"top_fraction must be above 0 and at most 1, got {top_fraction}")
        self.top_fraction = top_fraction
        self.scale = torch.nn.Parameter(torch.tensor(math.log(1 / _FIRST_TEMPERATURE)))

    def forward(self, patches: torch.Tensor, words: torch.Tensor, is_word: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch in which image i belongs to text i.

        Args:
            patches: (n, n_patches, dim) unit vectors.
            words: (n, n_tokens, dim) unit vectors.
            is_word: (n, n_tokens) whether a token counts.
        """
        to_texts, to_images = filip_similarities(patches, words, is_word, self.top_fraction)
        scale = self.scale.clamp(max=math.log(1 / _LAST_TEMPERATURE)).exp()
        labels = torch.arange(len(patches), device=patches.device)
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(scale * to_texts, labels) + cross_entropy(scale * to_images, labels)) / 2


def filip_similarities(
    patches: torch.Tensor, words: torch.Tensor, is_word: torch.Tensor, top_fraction: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (n_images, n_texts) similarities from images to texts, and the (n_texts, n_images) ones back.

    Args:
        patches: (n_images, n_patches, dim) unit vectors.
        words: (n_texts, n_tokens, dim) unit vectors.
        is_word: (n_texts, n_tokens) whether a token counts; each text has at least one.
        top_fraction: Share of the tokens of an item that are compared.
    """
    # (n_images, n_texts, n_patches, n_tokens)
    similarities = torch.einsum("ipd,twd->itpw", patches, words)
    similarities = similarities.masked_fill(~is_word[None, :, None, :], -math.inf)
    of_patches = similarities.amax(dim=3)
    of_words = similarities.amax(dim=2).transpose(0, 1).masked_fill(~is_word[:, None, :], 0)
    is_patch = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)
    kept_patches = _best(of_patches.amax(dim=1), is_patch, top_fraction)
    kept_words = _best(of_words.amax(dim=1), is_word, top_fraction)
    return _mean(of_patches, kept_patches), _mean(of_words, kept_words)


def _best(scores: torch.Tensor, counts: torch.Tensor, fraction: float) -> torch.Tensor:
    """Return (n, n_tokens) which tokens to keep: of those that count, the best-scored share, at least one."""
    n_kept = (counts.sum(dim=1, keepdim=True) * fraction).ceil().clamp(min=1)
    ranks = scores.masked_fill(~counts, -math.inf).argsort(dim=1, descending=True).argsort(dim=1)
    return counts & (ranks < n_kept)


def _mean(matches: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the mean of (n, n_other, n_tokens) matches over the kept tokens of each of the n items."""
    weights = kept[:, None, :].to(matches.dtype)
    return (matches * weights).sum(dim=2) / weights.sum(dim=2)
