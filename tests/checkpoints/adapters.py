"""Checkpoints of page models as colpali-engine saves them: LoRA adapters over a base model."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from checkpoints import Golden
from checkpoints.pages import (
    PICTURES,
    QUERIES,
    gemma_config,
    gemma_processor,
    modernvbert_config,
    modernvbert_processor,
    qwen_config,
    qwen_processor,
)


def lora(module, weight, rank, generator):
    """Adapters of one layer by the names that peft gives them, and the layer's weight with them merged in."""
    a, b = (torch.randn(size, generator=generator) * 0.2 for size in ((rank, weight.shape[1]), (weight.shape[0], rank)))
    prefix = f"base_model.model.{module}"
    # lora_alpha 8 over rank 4.
    return {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, weight + 2.0 * (b @ a)


def write_adapters(folder, base_name, model, projection, targets):
    """adapter_config.json and adapter_model.safetensors; merges the adapters into `model` and `projection`."""
    from safetensors.torch import save_file

    settings = {"peft_type": "LORA", "base_model_name_or_path": base_name, "r": 4, "lora_alpha": 8}
    settings |= {"lora_dropout": 0.1, "bias": "none", "task_type": "FEATURE_EXTRACTION", "use_rslora": False}
    settings["target_modules"] = "(.*(model).*(q_proj|v_proj).*$|.*(custom_text_proj).*$)"
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    generator, adapters = torch.Generator().manual_seed(1), {}
    for published, own in targets.items():
        layer = model.get_submodule(own) if own else projection
        added, merged = lora(published, layer.weight.data, 4, generator)
        adapters |= added
        layer.weight.data = merged
    save_file(adapters, folder / "adapter_model.safetensors")


def adapted_golden(model, projection, processor, query_text):
    def vectors(inputs):
        inputs = {name: value for name, value in inputs.items() if name != "labels"}
        if "image_grid_thw" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"][0]
        with torch.inference_mode():
            found = projection(model(**inputs).last_hidden_state[0])
        return (found / found.norm(dim=-1, keepdim=True)).numpy()

    queries = [processor.tokenizer(query_text(query), return_tensors="pt") for query in QUERIES]
    images = [processor.process_images(images=[image]) for image in PICTURES]
    return Golden([vectors(inputs) for inputs in queries], [vectors(inputs) for inputs in images])


def write_colqwen2_5(folder: Path) -> Golden:
    """vidore/colqwen2.5-v0.2: adapters trained with colpali-engine, over tensors named as Qwen named them then."""
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel

    torch.manual_seed(0)
    processor = qwen_processor()
    config = Qwen2_5_VLConfig(**qwen_config(processor.tokenizer, second=True))
    model, projection = Qwen2_5_VLModel(config).eval(), torch.nn.Linear(32, 16)
    base = folder / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["ColQwen2_5"]}))
    weights = {name.replace("language_model.", "model."): value for name, value in model.state_dict().items()}
    weights |= {f"custom_text_proj.{name}": value.data for name, value in projection.named_parameters()}
    half = sorted(weights)[: len(weights) // 2]
    shards = {
        f"model-0000{i + 1}-of-00002.safetensors": names for i, names in enumerate((half, set(weights) - set(half)))
    }
    for file, names in shards.items():
        save_file({name: weights[name].clone() for name in names}, base / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    targets = {"model.layers.0.self_attn.q_proj": "language_model.layers.0.self_attn.q_proj", "custom_text_proj": ""}
    write_adapters(folder, "base", model, projection, targets)
    text = lambda query: f"Query: {query}" + "<|endoftext|>" * 10  # noqa: E731
    return adapted_golden(model, projection, processor, text)


def write_colpali_adapter(folder: Path) -> Golden:
    """vidore/colpali-v1.3: adapters over vidore/colpaligemma-3b-pt-448-base, with its older names."""
    from safetensors.torch import save_file
    from transformers import PaliGemmaConfig, PaliGemmaModel

    torch.manual_seed(0)
    processor = gemma_processor()
    settings = gemma_config(processor)
    config = PaliGemmaConfig(**{name: value for name, value in settings.items() if name != "model_type"})
    model, projection = PaliGemmaModel(config).eval(), torch.nn.Linear(32, 16)
    base = folder / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps(config.to_dict() | {"architectures": ["ColPali"]}))
    weights = {}
    for name, value in model.state_dict().items():
        name = name.replace("language_model.", "language_model.model.").replace(
            "vision_tower.", "vision_tower.vision_model."
        )
        weights[f"model.{name}"] = value
    weights |= {f"custom_text_proj.{name}": value.data for name, value in projection.named_parameters()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    processor.image_processor.save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    targets = {
        "model.language_model.model.layers.0.self_attn.v_proj": "language_model.layers.0.self_attn.v_proj",
        "custom_text_proj": "",
    }
    write_adapters(folder, "base", model, projection, targets)
    pad = processor.tokenizer.pad_token
    return adapted_golden(model, projection, processor, lambda query: f"<bos>Question: {query}{pad * 10}\n")


def write_colmodernvbert_adapter(folder: Path) -> Golden:
    """ModernVBERT/colmodernvbert: adapters over ModernVBERT/colmodernvbert-base, whose projection is in `model.`."""
    from safetensors.torch import save_file
    from transformers import ModernVBertConfig, ModernVBertModel

    torch.manual_seed(0)
    processor = modernvbert_processor()
    settings = modernvbert_config(processor)
    config = ModernVBertConfig(**{name: value for name, value in settings.items() if name != "model_type"})
    model, projection = ModernVBertModel(config).eval(), torch.nn.Linear(32, 16)
    base = folder / "base"
    base.mkdir(parents=True)
    (base / "config.json").write_text(json.dumps(config.to_dict()))
    weights = {
        f"model.{name}".replace("vision_model.", "vision_model.vision_model."): value
        for name, value in model.state_dict().items()
    }
    weights |= {f"model.custom_text_proj.{name}": value.data for name, value in projection.named_parameters()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    processor.save_pretrained(folder)
    targets = {"model.text_model.layers.0.attn.Wqkv": "text_model.layers.0.attn.Wqkv", "custom_text_proj": ""}
    write_adapters(folder, "base", model, projection, targets)
    return adapted_golden(model, projection, processor, lambda query: query + "<end_of_utterance>" * 10)
