"""Encoders of images: tiny checkpoints in published layouts, compared with transformers and arithmetic by hand."""

import io
import shutil
from functools import lru_cache

import numpy as np
import pytest
import torch
from checkpoints import edited, fresh
from checkpoints.adapters import write_colmodernvbert_adapter, write_colpali_adapter, write_colqwen2_5
from checkpoints.clip import write_clip, write_siglip
from checkpoints.pages import PICTURES, QUERIES, picture, write_colmodernvbert, write_colpali, write_colqwen2
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file

from manyvec import EncoderError, InputError, MaxSimScorer, TokenBatch
from manyvec.models.image import filip_similarity, read_image

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


def assert_golden(encoder, golden):
    golden.check(encoder.encode_queries(QUERIES), encoder.encode_images(PICTURES), atol=5e-5)


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
        monkeypatch.setattr(torch, "isin", lambda ids, _: torch.zeros(ids.shape, dtype=torch.bool))


def with_another_projection(encoder, _):
    names = ("embedding_proj_layer", "projection", "visual_projection", "vision_model.head.attention.out_proj")
    found = dict(encoder.model.named_modules())
    with torch.no_grad():
        next(found[name] for name in names if name in found).weight[0] *= -1.5


def without_normalisation(encoder, monkeypatch):
    to_batch = encoder._to_batch

    def scaled(found):
        return to_batch([part._replace(vectors=part.vectors * 2) for part in found])

    monkeypatch.setattr(encoder, "_to_batch", scaled)


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
    by_hand = [[(i @ q.T).max(axis=1).mean() for q in golden.queries] for i in golden.documents]
    assert_allclose(filip_similarity(images, captions), by_hand, atol=5e-5)
    by_hand = [[(q @ i.T).max(axis=1).mean() for i in golden.documents] for q in golden.queries]
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
        (b"no image at all", "image 1 is damaged or not an image that PIL can read"),
        (as_bytes(picture(200, 200))[:3000], "image 1 is damaged or not an image that PIL can read"),
        ("nowhere.png", "image 1: the file 'nowhere.png' does not exist"),
        (17, "image 1 must be a path, the bytes of a file or a PIL image, got int"),
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
    with pytest.raises(InputError, match=r"reads strings, got Image at position 0"):
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


def changed(folder, to, edit):
    """A copy of a checkpoint whose adapter_config.json is edited."""
    shutil.copytree(folder, to)
    return edited(to, "adapter_config.json", **edit)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"base_model_name_or_path": "/etc"}, "outside the checkpoint"),
        ({"base_model_name_or_path": "../base"}, "outside the checkpoint"),
        ({"base_model_name_or_path": "a/b/c"}, "neither a folder inside it nor a repository on the hub"),
        ({"base_model_name_or_path": "vidore/colqwen2.5-base"}, "its base is 'vidore/colqwen2.5-base'.*hf download"),
        ({"peft_type": "IA3"}, "must be plain LORA, got 'IA3'"),
        ({"use_dora": True}, "must be plain LORA, got 'DoRA'"),
    ],
)
def test_adapters_that_cannot_be_merged_are_errors(written, tmp_path, monkeypatch, edit, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=message):
        fresh(changed(written("colqwen2.5")[0], tmp_path / "model", edit))


def test_the_base_of_adapters_is_found_in_the_hubs_cache(written, tmp_path, monkeypatch):
    """The published adapters name their base on the hub; offline it is what was downloaded before."""
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
    shutil.copytree(written("colqwen2")[0], tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    del weights["embedding_proj_layer.weight"]
    save_file(weights, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match="1 tensors are missing from its weights, such as 'embedding_proj"):
        fresh(tmp_path / "model")
