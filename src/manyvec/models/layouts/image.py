"""Build the encoder of an image checkpoint: a transformers class, or LoRA adapters merged into their base."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manyvec.errors import require
from manyvec.models.checkpoints import TRUST_HINT, Checkpoint, LoadOptions
from manyvec.models.image import ImageEncoder, ImageTextEncoder, PageEncoder

if TYPE_CHECKING:
    import torch

# Name parts that differ between the backbones of today and those that the adapters were trained on.
_COMPONENTS = ("base_model", "model", "language_model")
_PROCESSORS = {
    "paligemma": "ColPaliProcessor",
    "qwen2_vl": "ColQwen2Processor",
    "qwen2_5_vl": "ColQwen2Processor",
    "modernvbert": "ColModernVBertProcessor",
}


def load_image_encoder(checkpoint: Checkpoint, name: str, options: LoadOptions) -> ImageEncoder:
    """Return a `PageEncoder` or an `ImageTextEncoder`, depending on the checkpoint."""
    import transformers

    require("PIL", extra="images")
    folder = str(checkpoint.folder)
    if checkpoint.has("adapter_config.json"):
        model, processor = _adapted(checkpoint, options)
        return PageEncoder(model.to(options.device), processor, name=name, is_adapted=True)
    is_page = any(architecture.endswith("ForRetrieval") for architecture in checkpoint.architectures)
    model_class: Any = transformers.AutoModel
    if is_page:
        class_name = checkpoint.architectures[0]
        model_class = getattr(transformers, class_name, None)
        if model_class is None and "auto_map" not in checkpoint.config:
            raise checkpoint.error(f"transformers {transformers.__version__} does not have the class {class_name}")
        if model_class is None:
            if not options.trust_remote_code:
                raise checkpoint.error(f"{class_name} requires Python code that comes with it. {TRUST_HINT}")
            model_class = transformers.AutoModel
    source = {"local_files_only": True, "trust_remote_code": options.trust_remote_code}
    model, info = model_class.from_pretrained(folder, dtype=options.torch_dtype, output_loading_info=True, **source)
    if missing := sorted(info["missing_keys"]):
        raise checkpoint.error(f"{len(missing)} tensors are missing from its weights, such as {missing[0]!r}")
    processor = transformers.AutoProcessor.from_pretrained(folder, **source)
    encoder = PageEncoder if is_page else ImageTextEncoder
    return encoder(model.to(options.device), processor, name=name)


def _adapted(checkpoint: Checkpoint, options: LoadOptions) -> tuple[torch.nn.Module, Any]:
    """Return a base model with its LoRA adapters merged in, and its processor.

    At inference LoRA is the sum of the large matrix and the product of the two small ones.
    """
    import torch
    import transformers

    from manyvec.models.layouts.modules import AdaptedPages, from_weights

    settings = checkpoint.json("adapter_config.json")
    base = checkpoint.base(settings["base_model_name_or_path"], local_files_only=options.local_files_only)
    if base.model_type not in _PROCESSORS:
        raise checkpoint.error(f"the type of its base must be one of {', '.join(_PROCESSORS)}, got {base.model_type!r}")
    weights = base.weights()
    file = "adapter_model.safetensors" if checkpoint.has("adapter_model.safetensors") else "adapter_model.bin"
    merge_adapters(weights, checkpoint.tensors(file), settings, checkpoint)
    projection = {name: weights.pop(name) for name in list(weights) if "custom_text_proj." in name}
    head = {name.rpartition(".")[2]: tensor for name, tensor in projection.items()}
    if "weight" not in head:
        raise checkpoint.error("the token projection custom_text_proj is missing from it and from its base")
    linear = torch.nn.Linear(head["weight"].shape[1], head["weight"].shape[0], bias="bias" in head)
    linear.load_state_dict(head)
    config = transformers.AutoConfig.from_pretrained(str(base.folder), local_files_only=True)
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("lm_head.weight")}
    vlm, info = from_weights(config, _renamed(weights), dtype=options.torch_dtype, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"])
    if missing or info["unexpected_keys"]:
        wrong = missing[0] if missing else sorted(info["unexpected_keys"])[0]
        raise checkpoint.error(
            f"the weights of its base do not fit {type(vlm).__name__}: "
            f"{wrong!r} is {'missing' if missing else 'unexpected'}"
        )
    processor_class = getattr(transformers, _PROCESSORS[base.model_type])
    has_processor = checkpoint.has("preprocessor_config.json") or checkpoint.has("processor_config.json")
    source = checkpoint if has_processor else base
    processor = processor_class.from_pretrained(str(source.folder), local_files_only=True)
    return AdaptedPages(vlm, linear.to(options.torch_dtype)).eval(), processor


def merge_adapters(
    weights: dict[str, torch.Tensor],
    adapters: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    checkpoint: Checkpoint,
) -> None:
    """Add LoRA adapters to the weights of their base, in place.

    Raises:
        EncoderError: The adapters are not plain LoRA, or one of them fits no tensor of the base.
    """
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        kind = "DoRA" if settings.get("use_dora") else settings.get("peft_type")
        raise checkpoint.error(f"its adapters must be plain LORA, got {kind!r}")
    name_of = {_canonical(name): name for name in weights}
    for name, tensor in adapters.items():
        module, _, kind = name.removesuffix(".weight").partition(".lora_")
        if kind == "B":
            continue
        target = name_of.get(_canonical(f"{module}.weight" if kind else name))
        if kind not in ("A", ""):
            raise checkpoint.error(f"its adapter {name!r} is not one of LoRA's and cannot be merged")
        if not kind:
            # A layer that was trained in full.
            weights[target or _canonical(name)] = tensor.float()
            continue
        other = adapters.get(f"{module}.lora_B.weight")
        if target is None or other is None:
            raise checkpoint.error(f"its adapter {name!r} has no counterpart in {'it' if target else 'its base'}")
        rank = len(tensor)
        alpha = float((settings.get("alpha_pattern") or {}).get(module, settings.get("lora_alpha", rank)))
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        if (other.shape[0], tensor.shape[1]) != tuple(weights[target].shape):
            raise checkpoint.error(
                f"its adapter {name!r} must have the shape {tuple(weights[target].shape)} of the layer in its base, "
                f"got {(other.shape[0], tensor.shape[1])}"
            )
        weights[target] = weights[target].float() + scale * (other.float() @ tensor.float())


def _canonical(name: str) -> str:
    """Return the name of a tensor without the parts that differ between versions of transformers and peft."""
    return ".".join(part for part in name.split(".") if part not in (*_COMPONENTS, "modules_to_save", "default"))


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights under the names that the installed transformers uses."""
    text = re.compile(r"^(layers|embed_tokens|norm)\b")
    renamed = {text.sub(r"language_model.\1", _canonical(name)): tensor for name, tensor in weights.items()}
    return {name.replace("vision_model.vision_model.", "vision_model."): tensor for name, tensor in renamed.items()}
