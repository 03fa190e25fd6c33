"""From a checkpoint to an encoder of images: transformers' own classes, or LoRA adapters merged into their base."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from manyvec.errors import require
from manyvec.models.checkpoints import CODE, Checkpoint
from manyvec.models.image import ImageEncoder, ImageTextEncoder, PageEncoder
from manyvec.models.text_layouts import Loading

if TYPE_CHECKING:
    import torch

# How the backbones were called when adapters for them were trained.
_COMPONENTS = ("base_model", "model", "language_model")
_PROCESSORS = {
    "paligemma": "ColPaliProcessor",
    "qwen2_vl": "ColQwen2Processor",
    "qwen2_5_vl": "ColQwen2Processor",
    "modernvbert": "ColModernVBertProcessor",
}


def load_image_encoder(checkpoint: Checkpoint, name: str, loading: Loading) -> ImageEncoder:
    """A page encoder or an image-text encoder, as the checkpoint has it."""
    import transformers

    require("PIL", extra="images")
    folder = str(checkpoint.folder)
    if checkpoint.has("adapter_config.json"):
        model, processor = _adapted(checkpoint, loading)
        return PageEncoder(model.to(loading.device), processor, name=name, is_adapted=True)
    is_page = any(architecture.endswith("ForRetrieval") for architecture in checkpoint.architectures)
    model_class: Any = transformers.AutoModel
    if is_page:
        class_name = checkpoint.architectures[0]
        model_class = getattr(transformers, class_name, None)
        if model_class is None and "auto_map" not in checkpoint.config:
            raise checkpoint.error(f"this transformers ({transformers.__version__}) does not know {class_name}")
        if model_class is None:
            if not loading.trust_remote_code:
                raise checkpoint.error(f"{class_name} comes with code of its own. {CODE}")
            model_class = transformers.AutoModel
    options = {"local_files_only": True, "trust_remote_code": loading.trust_remote_code}
    model, info = model_class.from_pretrained(folder, dtype=loading.torch_dtype, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise checkpoint.error(f"its weights lack {len(missing)} tensors, such as {missing[0]!r}, and would be made up")
    processor = transformers.AutoProcessor.from_pretrained(folder, **options)
    encoder = PageEncoder if is_page else ImageTextEncoder
    return encoder(model.to(loading.device), processor, name=name)


def _adapted(checkpoint: Checkpoint, loading: Loading) -> tuple[torch.nn.Module, Any]:
    """A base with LoRA adapters merged in, and its processor.

    Adding the product of the two small matrices to the large one is all that LoRA is at inference.
    """
    import torch
    import transformers

    from manyvec.models.torch_modules import AdaptedPages, from_weights

    settings = checkpoint.json("adapter_config.json")
    base = checkpoint.base(settings["base_model_name_or_path"], local_files_only=loading.local_files_only)
    if base.model_type not in _PROCESSORS:
        raise checkpoint.error(f"its base is a {base.model_type!r}; known are {', '.join(_PROCESSORS)}")
    weights = base.weights()
    file = "adapter_model.safetensors" if checkpoint.has("adapter_model.safetensors") else "adapter_model.bin"
    merge_adapters(weights, checkpoint.tensors(file), settings, checkpoint)
    projection = {name: weights.pop(name) for name in list(weights) if "custom_text_proj." in name}
    head = {name.rpartition(".")[2]: tensor for name, tensor in projection.items()}
    if "weight" not in head:
        raise checkpoint.error("neither it nor its base has the token projection custom_text_proj")
    linear = torch.nn.Linear(head["weight"].shape[1], head["weight"].shape[0], bias="bias" in head)
    linear.load_state_dict(head)
    config = transformers.AutoConfig.from_pretrained(str(base.folder), local_files_only=True)
    weights = {name: tensor for name, tensor in weights.items() if not name.endswith("lm_head.weight")}
    vlm, info = from_weights(config, _renamed(weights), dtype=loading.torch_dtype, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"])
    if missing or info["unexpected_keys"]:
        wrong = missing[0] if missing else sorted(info["unexpected_keys"])[0]
        raise checkpoint.error(
            f"the weights of its base do not fit a {type(vlm).__name__}: {wrong!r} is {'missing' if missing else 'new'}"
        )
    processor_class = getattr(transformers, _PROCESSORS[base.model_type])
    has_processor = checkpoint.has("preprocessor_config.json") or checkpoint.has("processor_config.json")
    source = checkpoint if has_processor else base
    processor = processor_class.from_pretrained(str(source.folder), local_files_only=True)
    return AdaptedPages(vlm, linear.to(loading.torch_dtype)).eval(), processor


def merge_adapters(
    weights: dict[str, torch.Tensor],
    adapters: Mapping[str, torch.Tensor],
    settings: Mapping[str, Any],
    checkpoint: Checkpoint,
) -> None:
    """Add LoRA adapters to the weights of their base, in place.

    Raises:
        EncoderError: adapters of another kind, or for a tensor that the base has not, or of another shape.
    """
    if settings.get("peft_type") != "LORA" or settings.get("use_dora"):
        raise checkpoint.error(f"its adapters are {settings.get('peft_type')!r}; only plain LORA can be merged")
    positions = {_canonical(name): name for name in weights}
    for name, tensor in adapters.items():
        module, _, kind = name.removesuffix(".weight").partition(".lora_")
        if kind == "B":
            continue
        target = positions.get(_canonical(f"{module}.weight" if kind else name))
        if kind not in ("A", ""):
            raise checkpoint.error(f"its adapter {name!r} is of a kind that cannot be merged")
        if not kind:
            # A layer that was trained whole.
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
                f"its adapter {name!r} makes a {(other.shape[0], tensor.shape[1])} matrix, its base has "
                f"{tuple(weights[target].shape)}"
            )
        weights[target] = weights[target].float() + scale * (other.float() @ tensor.float())


def _canonical(name: str) -> str:
    """A tensor's name without the parts that differ between versions of transformers and of peft."""
    return ".".join(part for part in name.split(".") if part not in (*_COMPONENTS, "modules_to_save", "default"))


def _renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the names that transformers gives them now."""
    text = re.compile(r"^(layers|embed_tokens|norm)\b")
    renamed = {text.sub(r"language_model.\1", _canonical(name)): tensor for name, tensor in weights.items()}
    return {name.replace("vision_model.vision_model.", "vision_model."): tensor for name, tensor in renamed.items()}
