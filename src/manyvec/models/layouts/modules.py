"""torch modules that sentence-transformers lacks. This imports torch, so import it only when loading a model."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.modules import Dense, Transformer
from transformers import MODEL_MAPPING

from manyvec.errors import EncoderError


def from_weights(config: Any, weights: dict[str, torch.Tensor], **options: Any) -> Any:
    """Build the model of a config from weights; their names are translated as for a checkpoint."""
    if type(config) not in MODEL_MAPPING:
        raise EncoderError(f"transformers has no model for a {type(config).__name__}")
    kept = {name: value for name, value in options.items() if name in ("dtype", "output_loading_info")}
    model_class: Any = MODEL_MAPPING[type(config)]
    return model_class.from_pretrained(None, config=config, state_dict=weights, **kept)


def token_projection(weight: torch.Tensor, bias: torch.Tensor | None = None) -> Dense:
    """Return the module that multiplies token vectors with a (dim, width) matrix and adds a bias of (dim,)."""
    return Dense(
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        activation_function=torch.nn.Identity(),
        init_weight=weight,
        init_bias=bias,
        module_input_name="token_embeddings",
    )


class Backbone(Transformer):
    """A `Transformer` that raises an error if a weight is missing, instead of initialising it at random.

    Args:
        model_name_or_path: Folder of the checkpoint.
        weights: Weights to use instead of those in the checkpoint, by the names that the model uses.
        n_masks: Number of mask tokens that are appended to every query and attended to, regardless of its length.
    """

    def __init__(
        self,
        model_name_or_path: str,
        *,
        weights: dict[str, torch.Tensor] | None = None,
        n_masks: int = 0,
        **options: Any,
    ) -> None:
        self._weights = weights
        self.n_masks = n_masks
        super().__init__(model_name_or_path, **options)
        self._weights = None

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: Any,
        config: Any,
        backend: str,
        is_peft_model: bool,
        **model_kwargs: Any,
    ) -> Any:
        arguments = (model_name_or_path, transformer_task, config, backend, is_peft_model)
        if backend != "torch":
            return super()._load_model(*arguments, **model_kwargs)
        model_kwargs["output_loading_info"] = True
        if self._weights is None:
            loaded: Any = super()._load_model(*arguments, **model_kwargs)
        else:
            loaded = from_weights(config, self._weights, **model_kwargs)
        model, info = loaded
        # The pooler is not used: token vectors come from the layer below it. One that the checkpoint lacks was made up
        # at random, and would give the model another fingerprint each time.
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
        if len(missing) < len(info["missing_keys"]):
            model.pooler = None
        if missing:
            code = " It requires code that comes with it: see trust_remote_code." if hasattr(config, "auto_map") else ""
            raise EncoderError(
                f"{len(missing)} tensors of its {type(model).__name__} are missing from its weights, such as "
                f"{missing[0]!r}.{code}"
            )
        return model

    def preprocess(self, inputs: Any, prompt: str | None = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not self.n_masks or kwargs.get("task") != "query":
            return super().preprocess(inputs, prompt, *args, **kwargs)
        tokenizer: Any = self.tokenizer
        kwargs["max_length"] = tokenizer.model_max_length - self.n_masks
        features = super().preprocess(inputs, prompt, *args, **kwargs)
        ids, attention = features["input_ids"], features["attention_mask"]
        lengths = attention.sum(dim=1, keepdim=True)
        ids, attention = (torch.nn.functional.pad(tensor, (0, self.n_masks)) for tensor in (ids, attention))
        positions = torch.arange(ids.shape[1])
        is_mask = (positions >= lengths) & (positions < lengths + self.n_masks)
        features["input_ids"] = ids.masked_fill(is_mask, tokenizer.mask_token_id)
        features["attention_mask"] = attention.masked_fill(is_mask, 1)
        # DistilBERT takes no token types, and BERT uses zeros where none are passed.
        features.pop("token_type_ids", None)
        return features


class AdaptedPages(torch.nn.Module):
    """A vision-language model with merged adapters, and the projection of its last hidden state (colpali-engine)."""

    def __init__(self, vlm: Any, projection: torch.nn.Linear) -> None:
        super().__init__()
        self.vlm = vlm
        self.projection = projection
        self.config = vlm.config

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Return unit vectors, (n_inputs, n_tokens, dim)."""
        if "image_grid_thw" in inputs:
            # The processor padded the patches of each image to those of the largest.
            counts = inputs["image_grid_thw"][:, 1] * inputs["image_grid_thw"][:, 2]
            patches = [rows[:count] for rows, count in zip(inputs["pixel_values"], counts, strict=True)]
            inputs["pixel_values"] = torch.cat(patches)
        hidden = self.vlm(**inputs).last_hidden_state
        return torch.nn.functional.normalize(self.projection(hidden.to(self.projection.weight.dtype)), dim=-1)
