"""Encoders of images: tiny checkpoints in published layouts, against the arithmetic done by hand over transformers."""

import io
import json
import string
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import manyvec.models.loading
from manyvec import EncoderError, Index, InputError, MaxSimScorer, TokenBatch, load_encoder
from manyvec.cli import main
from manyvec.models.image import filip_similarity, read_image

Image = pytest.importorskip("PIL.Image", reason="needs pillow: pip install 'manyvec[images]'")

QUERIES = ["hi there", "a"]
TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = TINY | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, "vision_use_head": False}


def picture(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


PICTURES = [picture(100, 60), picture(40, 40, seed=1), picture(30, 90, seed=2)]


@dataclass
class Golden:
    """Token vectors by hand, in the order of `QUERIES` and `PICTURES`; for captions, `QUERIES` again."""

    queries: list[np.ndarray]
    images: list[np.ndarray]


def assert_golden(encoder, golden):
    queries, images = encoder.encode_queries(QUERIES), encoder.encode_images(PICTURES)
    for batch, expected in ((queries, golden.queries), (images, golden.images)):
        assert batch.lengths.tolist() == [len(vectors) for vectors in expected]
        for i, vectors in enumerate(expected):
            assert_allclose(batch[i], vectors, atol=5e-5)
    expected = [[(query @ image.T).max(axis=1).sum() for image in golden.images] for query in golden.queries]
    assert_allclose([MaxSimScorer().score(query, images) for query in queries], expected, atol=5e-4)


def fresh(folder, **options):
    manyvec.models.loading._load.cache_clear()
    return load_encoder(str(folder), device="cpu", **options)


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


def write_colqwen2(folder):
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


def write_colpali(folder):
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


def write_colmodernvbert(folder):
    """ColModernVBERT as transformers saves it: pages larger than a tile are cut into tiles."""
    from transformers import ColModernVBertConfig, ColModernVBertForRetrieval

    processor = modernvbert_processor()
    torch.manual_seed(0)
    config = ColModernVBertConfig(vlm_config=modernvbert_config(processor), embedding_dim=16)
    model = ColModernVBertForRetrieval(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return page_golden(model, processor)


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


def write_colqwen2_5(folder):
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


def write_colpali_adapter(folder):
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


def write_colmodernvbert_adapter(folder):
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


def write_clip(folder):
    """openai/clip-vit-base-patch32."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    torch.manual_seed(0)
    pieces = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=20)
    crop = {"height": 28, "width": 28}
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=crop), tokenizer)
    text = TINY | {"vocab_size": len(vocabulary), "max_position_embeddings": 20, "projection_dim": 16}
    text |= {"bos_token_id": len(pieces), "eos_token_id": len(pieces) + 1, "pad_token_id": len(pieces) + 1}
    vision = TINY | {"image_size": 28, "patch_size": 14, "projection_dim": 16}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    def of_text(text):
        inputs = tokenizer(text, return_tensors="pt")
        return model.text_model(**inputs).last_hidden_state[0, 1:-1] @ model.text_projection.weight.T

    def of_image(image):
        hidden = model.vision_model(**processor.image_processor(image, return_tensors="pt")).last_hidden_state
        return model.vision_model.post_layernorm(hidden)[0, 1:] @ model.visual_projection.weight.T

    return filip_golden(of_text, of_image)


def write_siglip(folder):
    """google/siglip-base-patch16-224: texts padded to the full length, patches through the pooling head one by one."""
    spm = pytest.importorskip("sentencepiece", reason="needs sentencepiece: pip install 'manyvec[images]'")
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor, SiglipTokenizer

    torch.manual_seed(0)
    folder.mkdir()
    sentences = ["hi there a picture of a page", "the hare and a tortoise", "there is a hit in the air"] * 10
    model_file = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=model_file, vocab_size=24, model_type="char",
        pad_id=-1, bos_id=-1, eos_id=1, unk_id=2, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model_file.getvalue())
    tokenizer = SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
    processor = SiglipProcessor(SiglipImageProcessor(size={"height": 28, "width": 28}), tokenizer)
    vision = TINY | {"image_size": 28, "patch_size": 14}
    text = TINY | {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "projection_size": 32}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    def of_text(text):
        ids = tokenizer(text, padding="max_length", max_length=16, return_tensors="pt")["input_ids"]
        hidden = model.text_model(input_ids=ids).last_hidden_state[0]
        head = model.text_model.head
        return (hidden @ head.weight.T + head.bias)[ids[0] != tokenizer.pad_token_id]

    def of_image(image):
        patches = model.vision_model(**processor.image_processor(image, return_tensors="pt")).last_hidden_state[0]
        head = model.vision_model.head
        # With one patch to attend to, attention is that patch's value, projected.
        value = patches @ head.attention.in_proj_weight[64:].T + head.attention.in_proj_bias[64:]
        attended = head.attention.out_proj(value)
        return attended + head.mlp(head.layernorm(attended))

    return filip_golden(of_text, of_image)


def filip_golden(of_text, of_image):
    with torch.inference_mode():
        texts, images = [of_text(text) for text in QUERIES], [of_image(image) for image in PICTURES]
        unit = lambda vectors: (vectors / vectors.norm(dim=-1, keepdim=True)).numpy()  # noqa: E731
        return Golden([unit(vectors) for vectors in texts], [unit(vectors) for vectors in images])


WRITERS = {
    "colpali": write_colpali,
    "colqwen2": write_colqwen2,
    "colmodernvbert": write_colmodernvbert,
    "colqwen2.5": write_colqwen2_5,
    "colpali-adapter": write_colpali_adapter,
    "colmodernvbert-adapter": write_colmodernvbert_adapter,
    "clip": write_clip,
    "siglip": write_siglip,
}
PAGES = [name for name in WRITERS if name.startswith("col")]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each checkpoint, written once: (folder, what is expected of it)."""
    root = tmp_path_factory.mktemp("images")
    return lru_cache(lambda name: (root / name, WRITERS[name](root / name)))


@pytest.mark.parametrize("name", WRITERS)
def test_a_family_gives_the_vectors_and_scores_of_its_own_code(written, name):
    folder, golden = written(name)
    assert_golden(fresh(folder), golden)


def without_markers(encoder, monkeypatch):
    prompt = encoder.processor.visual_prompt_prefix.replace("Describe the image.", "")
    monkeypatch.setattr(encoder.processor, "query_prefix", "")
    monkeypatch.setattr(encoder.processor, "visual_prompt_prefix", prompt)


def without_expansion(encoder, monkeypatch):
    if isinstance(getattr(type(encoder.processor), "query_augmentation_token", None), property):
        monkeypatch.setattr(type(encoder.processor), "query_augmentation_token", "")
    else:
        encoder.processor.query_augmentation_token = ""


def without_mask(encoder, monkeypatch):
    """Padding counts as tokens; for CLIP and SigLIP, so do the tokens around a text."""
    if hasattr(encoder, "_forward"):
        forward = encoder._forward
        everything = lambda inputs: (forward(inputs)[0], np.ones(inputs["input_ids"].shape, bool))  # noqa: E731
        monkeypatch.setattr(encoder, "_forward", everything)
    else:
        monkeypatch.setattr(np, "isin", lambda ids, _: np.zeros(ids.shape, bool))


def with_another_projection(encoder, _):
    names = ("embedding_proj_layer", "projection", "visual_projection", "vision_model.head.attention.out_proj")
    found = dict(encoder.model.named_modules())
    with torch.no_grad():
        next(found[name] for name in names if name in found).weight[0] *= -1.5


def without_normalisation(encoder, monkeypatch):
    joined = encoder._joined

    def scaled(found):
        return joined([part._replace(vectors=part.vectors * 2) for part in found])

    monkeypatch.setattr(encoder, "_joined", scaled)


BREAKS = {
    "markers": (without_markers, " ".join(PAGES)),
    "expansion": (without_expansion, " ".join(PAGES)),
    "mask": (without_mask, " ".join(WRITERS)),
    "projection": (with_another_projection, " ".join(WRITERS)),
    "normalisation": (without_normalisation, " ".join(WRITERS)),
}


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part, (_, names) in BREAKS.items() for name in names.split()]
)
def test_the_golden_test_fails_when_a_part_is_wrong(written, monkeypatch, part, name):
    folder, golden = written(name)
    encoder = fresh(folder)
    BREAKS[part][0](encoder, monkeypatch)
    # Some padding has no direction: then there are no vectors to compare.
    with pytest.raises((AssertionError, EncoderError)):
        assert_golden(encoder, golden)
    manyvec.models.loading._load.cache_clear()


def test_page_spans_are_the_rows_and_columns_of_the_patch_grid(written):
    """60 rows of 100 pixels become 56 by 112: 2 by 4 merged patches of 28."""
    batch = fresh(written("colqwen2")[0]).encode_images(PICTURES[:1])
    assert [span for span in batch.spans.tolist() if span[0] >= 0] == [[i, j] for i in range(2) for j in range(4)]


def test_spans_of_a_page_in_tiles_run_over_the_whole_page_and_the_small_copy_has_none(written):
    batch = fresh(written("colmodernvbert")[0]).encode_images(PICTURES[:1])
    found = [tuple(span) for span in batch.spans.tolist() if span[0] >= 0]
    # Two by two tiles of two by two patches, tile after tile.
    assert found[:4] == [(0, 0), (0, 1), (1, 0), (1, 1)] and found[4] == (0, 2)
    assert sorted(found) == [(i, j) for i in range(4) for j in range(4)]


def test_spans_of_a_query_are_its_characters(written):
    for name in ("colpali", "colqwen2", "colmodernvbert", "colqwen2.5", "clip"):
        spans = fresh(written(name)[0]).encode_queries(["hi there"]).spans.tolist()
        words = "".join("hi there"[begin:end] for begin, end in spans if begin >= 0)
        assert words.replace(" ", "") == "hithere"


@pytest.mark.parametrize("name", ["colpali", "colqwen2", "colmodernvbert", "clip"])
def test_vectors_of_an_image_do_not_depend_on_its_neighbours(written, name):
    encoder = fresh(written(name)[0])
    together = encoder.encode_images(PICTURES)
    encoder.batch_tokens = 1
    for i, alone in enumerate(encoder.encode_images(PICTURES)):
        assert_allclose(together[i], alone, atol=5e-5)


def test_filip_is_the_mean_of_maxima_in_both_directions():
    images = TokenBatch.from_list([np.eye(3, dtype=np.float32)[:2]])
    texts = TokenBatch.from_list([np.array([[1, 0, 0]], np.float32), np.array([[0, 0.6, 0.8], [0, 0, 1]], np.float32)])
    # Image to text: patches 1 and 2 each take the word that fits best; text to image: words take patches.
    assert_allclose(filip_similarity(images, texts), [[0.5, 0.3]])
    assert_allclose(filip_similarity(texts, images), [[1.0], [0.3]])
    assert_allclose(MaxSimScorer().score(images[0], texts) / 2, [0.5, 0.3], atol=1e-6)


def test_clip_finds_captions_by_image_and_images_by_caption(written):
    encoder = fresh(written("clip")[0])
    images, captions = encoder.encode_images(PICTURES), encoder.encode_documents(QUERIES)
    golden = written("clip")[1]
    by_hand = [[(i @ q.T).max(axis=1).mean() for q in golden.queries] for i in golden.images]
    assert_allclose(filip_similarity(images, captions), by_hand, atol=5e-5)
    by_hand = [[(q @ i.T).max(axis=1).mean() for i in golden.images] for q in golden.queries]
    assert_allclose(filip_similarity(captions, images), by_hand, atol=5e-5)


def as_bytes(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_an_image_may_be_a_path_its_bytes_or_opened(written, tmp_path):
    encoder = fresh(written("clip")[0])
    PICTURES[0].save(tmp_path / "page.png")
    forms = [PICTURES[0], as_bytes(PICTURES[0]), tmp_path / "page.png", str(tmp_path / "page.png")]
    batch = encoder.encode_images(forms)
    assert all(np.array_equal(batch[i], batch[0]) for i in range(4))
    assert len(encoder.encode_images([])) == 0
    assert PICTURES[0].getpixel((0, 0))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image at all", "image 1 is no image that PIL can read"),
        (as_bytes(picture(200, 200))[:3000], "image 1 is no image that PIL can read, or a damaged one"),
        ("nowhere.png", "image 1: there is no file 'nowhere.png'"),
        (17, "image 1 is a int: give a path"),
    ],
)
def test_an_image_that_cannot_be_read_is_an_error_that_names_it(written, image, message):
    with pytest.raises(InputError, match=message):
        fresh(written("clip")[0]).encode_images([PICTURES[0], image])


def test_pictures_with_transparency_and_palettes_become_rgb():
    for mode in ("RGBA", "L", "P", "1", "CMYK"):
        assert read_image(PICTURES[0].convert("L").convert(mode)).mode == "RGB"


def test_text_documents_for_a_page_model_and_images_for_a_text_model_are_errors(written):
    with pytest.raises(InputError, match="reads documents as images"):
        fresh(written("colqwen2")[0]).encode_documents(["a text"])
    with pytest.raises(InputError, match=r"text 0 is a Image: .* reads text given as str"):
        fresh(written("colqwen2")[0]).encode_queries([PICTURES[0]])


def test_the_fingerprint_of_a_page_model_tells_weights_pixels_and_prompts_apart(written):
    folder = written("colqwen2")[0]
    first = fresh(folder).fingerprint
    assert fresh(folder).fingerprint == first
    found = {first}
    for change in (
        lambda encoder: setattr(encoder.processor, "query_prefix", "Question: "),
        lambda encoder: setattr(encoder.processor.image_processor, "image_mean", [0.0, 0.0, 0.0]),
        lambda encoder: encoder.model.embedding_proj_layer.bias.data.add_(1.0),
        lambda encoder: encoder.processor.tokenizer.add_tokens(["new"]),
    ):
        encoder = fresh(folder)
        change(encoder)
        found.add(encoder.fingerprint)
    assert len(found) == 5
    manyvec.models.loading._load.cache_clear()


def changed(folder, to, edit):
    """A copy of a checkpoint whose adapter_config.json is edited."""
    import shutil

    shutil.copytree(folder, to)
    path = to / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    return to


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"base_model_name_or_path": "/etc"}, "outside the checkpoint"),
        ({"base_model_name_or_path": "../base"}, "outside the checkpoint"),
        ({"base_model_name_or_path": "a/b/c"}, "neither a folder in it nor a hub's repository"),
        ({"base_model_name_or_path": "vidore/colqwen2.5-base"}, "it builds on 'vidore/colqwen2.5-base'.*hf download"),
        ({"peft_type": "IA3"}, "'IA3'; only plain LORA"),
        ({"use_dora": True}, "only plain LORA"),
    ],
)
def test_adapters_that_cannot_be_merged_are_errors(written, tmp_path, monkeypatch, edit, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=message):
        fresh(changed(written("colqwen2.5")[0], tmp_path / "model", edit))


def test_the_base_of_adapters_is_found_in_the_hubs_cache(written, tmp_path, monkeypatch):
    """The published adapters name their base on the hub; offline it is what was downloaded before."""
    import shutil

    folder, golden = written("colqwen2.5")
    snapshot = tmp_path / "hub" / "models--vidore--colqwen2.5-base" / "snapshots" / ("0" * 40)
    shutil.copytree(folder / "base", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    edit = {"base_model_name_or_path": "vidore/colqwen2.5-base"}
    model = changed(folder, tmp_path / "model", edit)
    shutil.rmtree(model / "base")
    assert_golden(fresh(model), golden)


def test_a_page_model_without_its_projection_is_an_error(written, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(written("colqwen2")[0], tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["embedding_proj_layer.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match=r"its weights lack 1 tensors, such as 'embedding_proj_layer.weight'"):
        fresh(tmp_path / "model")


FILES = [as_bytes(image) for image in PICTURES]
PAGE_DOCUMENTS = [{"id": f"page {i}", "image": file, "text": f"caption {i}"} for i, file in enumerate(FILES)]


@pytest.mark.parametrize("name", ["colpali", "colqwen2", "colmodernvbert", "siglip"])
def test_an_index_of_pages_scores_them_as_the_model_does_and_maps_every_patch(written, tmp_path, name):
    encoder = fresh(written(name)[0])
    index = Index.create(tmp_path / "index", encoder)
    index.add(PAGE_DOCUMENTS)
    query, images = encoder.encode_queries(QUERIES[:1]), encoder.encode_images(FILES)
    hits = {hit.id: hit for hit in index.search(QUERIES[0], evidence=True)}
    expected = MaxSimScorer().score(query[0], images)
    # float16 storage keeps 11 bits of each of 16 numbers.
    assert_allclose([hits[f"page {i}"].score for i in range(3)], expected, atol=query.n_tokens * 2**-9)
    for i in range(3):
        evidence = hits[f"page {i}"].evidence
        assert evidence.problem is None and evidence.image == FILES[i]
        spans = images.spans[images.offsets[i] : images.offsets[i + 1]]
        own = evidence.tokens_of_words[0] if evidence.words else np.arange(query.n_tokens)
        similarities = (query[0][own] @ images[i].T).mean(axis=0) * (1 if evidence.words else query.n_tokens)
        heat = evidence.heatmap(0 if evidence.words else None)
        assert heat.shape == evidence.grid == tuple(spans.max(axis=0) + 1)
        placed = spans[:, 0] >= 0
        assert_allclose(heat[tuple(spans[placed].T)], similarities[placed], atol=query.n_tokens * 2**-9)
        total = sum(match.share for match in evidence.words) + evidence.unshown
        assert_allclose(total, hits[f"page {i}"].score, atol=1e-4)
        assert Image.open(io.BytesIO(evidence.to_png())).size == PICTURES[i].size


@pytest.mark.parametrize("storage", ["int8", "binary"])
def test_pooled_pages_in_few_bytes_keep_their_images_and_whole_grids(written, tmp_path, storage):
    index = Index.create(tmp_path / "index", fresh(written("colqwen2")[0]), storage=storage, pool_factor=2)
    index.add(PAGE_DOCUMENTS)
    index.optimize()
    assert [document.image for document in index.get([f"page {i}" for i in range(3)])] == FILES
    hits = {hit.id: hit.evidence for hit in index.search("hi there", evidence=True)}
    # 60 rows of 100 pixels are 2 by 4 merged patches of 28.
    assert hits["page 0"].grid == (2, 4) and len(hits["page 0"].patches) < 8
    assert np.isfinite(hits["page 0"].heatmap()).all()


def test_an_index_of_clip_holds_pictures_and_texts(written, tmp_path):
    encoder = fresh(written("clip")[0])
    index = Index.create(tmp_path / "index", encoder)
    index.add([{"id": "text", "text": "hi there"}, PAGE_DOCUMENTS[0]])
    text, picture_hit = sorted(index.search("hi there", evidence=True), key=lambda hit: hit.is_page)
    assert (text.evidence.words[0].text, text.best_passage(20).text) == ("hi", "hi there")
    assert (picture_hit.evidence.words[0].patch is None, picture_hit.evidence.grid) == (False, (2, 2))
    index.add([{"id": "words", "text": "a hint"}])
    assert Index.open(index.uri).get("page 0")[0].image == FILES[0]


def test_the_map_of_a_model_that_crops_lies_over_the_middle_square(written, tmp_path):
    encoder = fresh(written("clip")[0])
    assert encoder.crops_images and not fresh(written("siglip")[0]).crops_images
    index = Index.create(tmp_path / "index", encoder)
    index.add([{"id": "wide", "image": as_bytes(Image.new("RGB", (300, 100), "white"))}])
    (hit,) = index.search("hi", evidence=True)
    pixels = np.asarray(Image.open(io.BytesIO(hit.evidence.to_png(0))))
    assert (pixels[:, :100] == 255).all() and (pixels[:, 200:] == 255).all()
    assert (pixels[:, 100:200] != 255).any()


def test_a_model_of_pages_refuses_a_text_and_stores_nothing_of_its_batch(written, tmp_path):
    index = Index.create(tmp_path / "index", fresh(written("colqwen2")[0]))
    with pytest.raises(InputError, match="reads documents as images"):
        index.add([PAGE_DOCUMENTS[0], {"id": "a", "text": "a text"}])
    assert index.count() == 0


def two_pages(path):
    PICTURES[0].save(path, "PDF", save_all=True, append_images=[PICTURES[1]])


def test_the_command_indexes_and_finds_the_pages_of_a_pdf(written, tmp_path, capsys):
    pytest.importorskip("pypdfium2")
    two_pages(tmp_path / "report.pdf")
    PICTURES[2].save(tmp_path / "photo.png")
    model, db, files = str(written("colqwen2")[0]), str(tmp_path / "db"), str(tmp_path)
    assert main(["index", files, "--index", db, "--encoder", model, "--device", "cpu", "--estimate", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["documents"] == 3 and estimate["tokens"] > 3 and not (tmp_path / "db").exists()
    for expected in ("3 added, 0 updated, 0 unchanged", "0 added, 0 updated, 3 unchanged"):
        assert main(["index", files, "--index", db, "--encoder", model, "--device", "cpu"]) == 0
        assert capsys.readouterr().out.startswith(expected)
    assert main(["search", "hi there", "--index", db, "--device", "cpu", "--evidence"]) == 0
    out = capsys.readouterr().out
    assert f"{(tmp_path / 'report.pdf').as_posix()}#page=2" in out
    assert "page image of " in out and "hi → patch (" in out
    assert main(["search", "hi", "--index", db, "--device", "cpu"]) == 0
    assert "page image: photo.png" in capsys.readouterr().out
    assert main(["search", "hi", "--index", db, "--device", "cpu", "--evidence", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {tuple(hit["evidence"]["words"][0]) for hit in hits} == {
        ("word", "query_span", "text", "span", "similarity", "share", "patch")
    }


def test_a_broken_pdf_stops_the_command_with_its_name(written, tmp_path, capsys):
    pytest.importorskip("pypdfium2")
    two_pages(tmp_path / "report.pdf")
    (tmp_path / "report.pdf").write_bytes((tmp_path / "report.pdf").read_bytes()[:200])
    options = ["--index", str(tmp_path / "db"), "--encoder", str(written("colqwen2")[0]), "--device", "cpu"]
    assert main(["index", str(tmp_path), *options]) == 1
    assert "report.pdf: the PDF is damaged" in capsys.readouterr().err


@pytest.mark.data
def test_real_pdf_pages_are_indexed_and_mapped(written, tmp_path, data_dir):
    from itertools import islice

    from manyvec.files.readers import read_file

    pytest.importorskip("pypdfium2")
    paths = sorted((data_dir / "mmlongbench-pages").rglob("*.pdf"))
    if not paths:
        pytest.skip("needs mmlongbench-pages with its PDFs")
    index = Index.create(tmp_path / "index", fresh(written("colqwen2")[0]))
    documents = list(islice(read_file(paths[0]), 2))
    index.add(documents)
    assert index.get([d.id for d in documents]) == documents
    for hit in index.search("what does it say", evidence=True):
        rows, columns = hit.evidence.grid
        # Pages are higher than wide, and so are their grids.
        assert rows > columns > 1
        picture_of_map = Image.open(io.BytesIO(hit.evidence.to_png(max_side=400)))
        assert picture_of_map.size[1] == 400
