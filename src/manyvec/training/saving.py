"""Save a tuned model so that it loads anywhere, and blend its weights with those before training.

This imports torch and sentence-transformers, so import it only when a model is trained.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder

from manyvec.errors import EncoderError, StoreError
from manyvec.models.checkpoints import LoadOptions
from manyvec.models.loading import build_encoder, quiet
from manyvec.models.text import SentenceTransformerEncoder

Weights = dict[str, torch.Tensor]
# Shares of the tuned weights that are tried. Tuning alone forgets what the model knew beside the training data, and
# weights in between often keep both (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).
SHARES = (0.3, 0.5, 0.7, 1.0)


def weights_of(model: torch.nn.Module) -> Weights:
    """Return a copy of all weights."""
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def blend(model: torch.nn.Module, before: Weights, tuned: Weights, share: float) -> None:
    """Set the weights to `(1 - share) * before + share * tuned`."""
    mixed = {
        name: torch.lerp(before[name].float(), weight.float(), share).to(weight.dtype)
        if weight.is_floating_point()
        else weight
        for name, weight in tuned.items()
    }
    model.load_state_dict(mixed)


def choose_share(
    model: torch.nn.Module, before: Weights, tuned: Weights, shares: Sequence[float], measure: Callable[[], float]
) -> tuple[float, dict[float, float]]:
    """Leave the best blend in the model; return its share, and what was measured for each."""
    measured = {}
    for share in shares:
        blend(model, before, tuned, share)
        measured[share] = measure()
    best = max(measured, key=lambda share: (measured[share], share))
    blend(model, before, tuned, best)
    return best, measured


def save(model: MultiVectorEncoder, part: Path, texts: Sequence[str]) -> None:
    """Write a model to the folder `part`, and check that what was written gives equal vectors.

    Args:
        model: Model with classes of sentence-transformers only.
        part: Folder that is emptied first.
        texts: Texts to compare the vectors of.

    Raises:
        StoreError: The disk is full, or the folder cannot be written.
        EncoderError: The saved model gives other vectors.
    """
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with quiet():
            model.save(str(part), create_model_card=False)
    # safetensors reports a full disk as an error of its own.
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        raise StoreError(f"cannot write the tuned model to {part}: {error}. Free space there and run again") from error
    expected = SentenceTransformerEncoder(model, name="tuned").encode_documents(list(texts))
    with quiet():
        again = MultiVectorEncoder(str(part), local_files_only=True, device=str(model.device))
    loaded = build_encoder(str(part), LoadOptions(device=model.device.type))
    for encoder in (SentenceTransformerEncoder(again, name="again"), loaded):
        batch = encoder.encode_documents(list(texts))
        if batch.vectors.shape != expected.vectors.shape or not np.allclose(batch.vectors, expected.vectors, atol=1e-5):
            raise EncoderError(f"the model saved in {part} does not give the vectors of the tuned model: not kept")
