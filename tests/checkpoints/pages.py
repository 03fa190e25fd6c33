"""Checkpoints of page models as transformers saves them: ColPali, ColQwen2, ColModernVBert."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints import TINY, Golden

Image = pytest.importorskip("PIL.Image", reason="needs pillow: pip install 'manyvec[images]'")

QUERIES = ["hi there", "a"]
VISION = TINY | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "vision_use_head": False}


def picture(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


PICTURES = [picture(100, 60), picture(40, 40, seed=1), picture(30, 90, seed=2)]


def page_vectors(model, layer, inputs):
    """Unit vectors of one page or query: the hidden states that reach `layer`, projected and scaled by hand."""
    seen = []
    handle = layer.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0][0]))
    with torch.inference_mode():
        model(**{name: value for name, value in inputs.items() if name != "labels"})
        vectors = seen[0] @ layer.weight.T + layer.bias
    handle.remove()
    vectors = vectors[inputs["attention_mask"][0].bool()]
    return (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()


def page_golden(model, processor):
    layer = model.embedding_proj_layer
    return Golden(
        [page_vectors(model, layer, processor.process_queries(text=[query])) for query in QUERIES],
        [page_vectors(model, layer, processor.process_images(images=[image])) for image in PICTURES],
    )


def qwen_processor():
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import ColQwen2Processor, Qwen2Tokenizer, Qwen2VLImageProcessor

    specials = ["im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[], extra_special_tokens=[f"<|{name}|>" for name in specials], model_max_length=512
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 8 * 28 * 28}
    pixels = Qwen2VLImageProcessor(patch_size=14, merge_size=2, temporal_patch_size=2, size=size)
    return ColQwen2Processor(pixels, tokenizer)


def qwen_config(tokenizer, *, second=False):
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in (
        ("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end")
    )}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
    text = TINY | {"num_key_value_heads": 1, "vocab_size": len(tokenizer), "rope_parameters": rope}
    text |= {"bos_token_id": None, "eos_token_id": None}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 14}
    vision |= {"out_hidden_size": 32, "intermediate_size": 48, "fullatt_block_indexes": [0]} if second else {
        "embed_dim": 32, "mlp_ratio": 2
    }  # fmt: skip
    return ids | {"text_config": text, "vision_config": vision}


def write_colqwen2(folder: Path) -> Golden:
    """vidore/colqwen2-v1.0-hf."""
    from transformers import ColQwen2Config, ColQwen2ForRetrieval

    torch.manual_seed(0)
    processor = qwen_processor()
    vlm = {"model_type": "qwen2_vl"} | qwen_config(processor.tokenizer)
    model = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=vlm, embedding_dim=16)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return page_golden(model, processor)


def gemma_processor():
    from transformers import ColPaliProcessor, GemmaTokenizer, SiglipImageProcessor

    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁\n", *string.ascii_letters, *":."]
    tokenizer = GemmaTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=512)
    pixels = SiglipImageProcessor(size={"height": 28, "width": 28})
    pixels.image_seq_length = 4
    return ColPaliProcessor(pixels, tokenizer)


def gemma_config(processor):
    text = TINY | {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16}
    text["vocab_size"] = len(processor.tokenizer)
    config = {"model_type": "paligemma", "text_config": text, "vision_config": VISION, "projection_dim": 32}
    return config | {"hidden_size": 32, "image_token_index": processor.image_token_id}


def write_colpali(folder: Path) -> Golden:
    """vidore/colpali-v1.3-hf."""
    from transformers import ColPaliConfig, ColPaliForRetrieval

    torch.manual_seed(0)
    processor = gemma_processor()
    model = ColPaliForRetrieval(ColPaliConfig(vlm_config=gemma_config(processor), embedding_dim=16)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return page_golden(model, processor)


def modernvbert_processor():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import ColModernVBertProcessor, Idefics3ImageProcessor, PreTrainedTokenizerFast

    names = ["unk", "cls", "sep", "pad", "mask"]
    specials = [f"[{name.upper()}]" for name in names] + ["<|begin_of_text|>", "<fake_token_around_image>", "<image>"]
    specials += ["<end_of_utterance>", "<global-img>"]
    specials += [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(specials)
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in names}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **tokens)
    tile = {"longest_edge": 32}
    pixels = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size=tile, do_image_splitting=True)
    return ColModernVBertProcessor(pixels, tokenizer, image_seq_len=4)


def modernvbert_config(processor):
    tokenizer = processor.tokenizer
    text = TINY | {"model_type": "modernbert", "vocab_size": len(tokenizer), "max_position_embeddings": 512}
    text["pad_token_id"] = tokenizer.pad_token_id
    config = {"model_type": "modernvbert", "text_config": text, "pixel_shuffle_factor": 2}
    vision = VISION | {"image_size": 32, "patch_size": 8}
    return config | {"vision_config": vision, "image_token_id": processor.image_token_id}


def write_colmodernvbert(folder: Path) -> Golden:
    """ColModernVBERT as transformers saves it: pages larger than a tile are cut into tiles."""
    from transformers import ColModernVBertConfig, ColModernVBertForRetrieval

    processor = modernvbert_processor()
    torch.manual_seed(0)
    config = ColModernVBertConfig(vlm_config=modernvbert_config(processor), embedding_dim=16)
    model = ColModernVBertForRetrieval(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return page_golden(model, processor)
