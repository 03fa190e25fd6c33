"""Token vectors of CLIP and SigLIP from pixels and ids: one computation for encoding and for training (FILIP).

FILIP compares patches and words token by token (https://arxiv.org/abs/2111.07783). This imports torch, so import it
only when a model runs.
"""

from __future__ import annotations

from typing import Any

import torch


def patch_vectors(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """Return (n_images, n_patches, dim) float32 unit vectors, the patches row by row.

    Args:
        model: transformers' `CLIPModel` or `SiglipModel`.
        pixels: (n_images, 3, height, width), as the model's processor makes them.
    """
    hidden = model.vision_model(pixel_values=pixels).last_hidden_state
    if hasattr(model, "visual_projection"):
        # The first token is [CLS].
        patches = model.visual_projection(model.vision_model.post_layernorm(hidden[:, 1:]))
    elif model.vision_model.use_head:
        # SigLIP projects in its attention pooling. Applied to a single patch, the pooling is the projection.
        patches = model.vision_model.head(hidden.reshape(-1, 1, hidden.shape[-1])).reshape(hidden.shape)
    else:
        patches = hidden
    return torch.nn.functional.normalize(patches.float(), dim=-1)


def word_vectors(model: Any, ids: torch.Tensor, attention: torch.Tensor | None) -> torch.Tensor:
    """Return (n_texts, n_tokens, dim) float32 unit vectors, padding and outer tokens included.

    Args:
        model: transformers' `CLIPModel` or `SiglipModel`.
        ids: (n_texts, n_tokens) token ids.
        attention: (n_texts, n_tokens) which tokens are seen; None for all, as SigLIP was trained.
    """
    project = model.text_projection if hasattr(model, "text_projection") else model.text_model.head
    hidden = model.text_model(input_ids=ids, attention_mask=attention).last_hidden_state
    return torch.nn.functional.normalize(project(hidden).float(), dim=-1)


def word_mask(tokenizer: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return (n_texts, n_tokens) whether a token stands for a word: not padding, nor what opens and closes a text."""
    outer = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    return ~torch.isin(ids, torch.tensor(sorted(outer), device=ids.device))
