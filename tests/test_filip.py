"""FILIP's loss against its formula, and a tiny CLIP that learns to find images by words and words by images."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import manyvec
from manyvec.errors import InputError
from manyvec.models.image import filip_similarity
from manyvec.training import FilipLoss, filip_similarities

PATCHES = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.0, -1.0]]])
WORDS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[0.8, 0.6], [0.0, 0.0], [0.0, 0.0]]])
IS_WORD = torch.tensor([[True, True, False], [True, False, False]])


def test_similarities_are_those_of_the_formula_and_padding_wins_nothing():
    to_texts, to_images = filip_similarities(PATCHES, WORDS, IS_WORD)
    # Image 1: patches (.6, .8) and (0, -1); text 1 has the one word (.8, .6).
    assert_allclose(to_texts, [[1.0, 0.7], [0.4, 0.18]], atol=1e-6)
    assert_allclose(to_images, [[1.0, 0.7], [0.8, 0.96]], atol=1e-6)


def test_a_fraction_keeps_the_tokens_that_match_best():
    to_texts, _ = filip_similarities(PATCHES, WORDS, IS_WORD, top_fraction=0.5)
    # The patch (0, -1) matches nothing, so image 1 is compared by its other patch alone.
    assert_allclose(to_texts[1], [0.8, 0.96], atol=1e-6)


def test_the_loss_is_smaller_for_the_right_pairs_and_learns_its_temperature():
    loss = FilipLoss()
    right, wrong = loss(PATCHES, WORDS, IS_WORD), loss(PATCHES, WORDS.flip(0), IS_WORD.flip(0))
    assert right < wrong
    right.backward()
    assert loss.scale.grad is not None and loss.scale.grad != 0
    with pytest.raises(InputError, match="top_fraction must be above 0"):
        FilipLoss(0)


def test_a_tiny_clip_learns_both_directions_and_knows_them_under_unseen_noise(tmp_path, monkeypatch):
    pytest.importorskip("PIL", reason="needs the images extra: pip install 'manyvec[images]'")
    pytest.importorskip("datasets", reason="needs the train extra: pip install 'manyvec[train]'")
    from checkpoints.clip import write_clip
    from PIL import Image

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples" / "training")
    recipe = importlib.import_module("filip")
    write_clip(tmp_path / "clip")
    colors = {"r": (220, 30, 30), "g": (30, 200, 30), "b": (30, 30, 220), "w": (240, 240, 240), "k": (10, 10, 10)}
    colors["y"] = (230, 220, 20)
    # The text names the colors of the upper two patches; the lower two are gray.
    texts = [f"{one} {two}" for one, two in itertools.combinations(colors, 2)]

    def pictures(seed):
        rng = np.random.default_rng(seed)
        made = []
        for text in texts:
            one, two = text.split()
            tiles = np.zeros((28, 28, 3))
            tiles[:14, :14], tiles[:14, 14:], tiles[14:] = colors[one], colors[two], 128
            made.append(Image.fromarray(np.clip(tiles + rng.normal(0, 12, tiles.shape), 0, 255).astype(np.uint8)))
        return made

    n_noises = 6
    images = [image for seed in range(n_noises) for image in pictures(seed)]
    settings = {"epochs": 30, "batch_size": 15, "learning_rate": 3e-3}
    losses = recipe.train(str(tmp_path / "clip"), images, texts * n_noises, tmp_path / "out", **settings)
    assert losses[-1] < losses[0]
    found = {}
    for name in ("clip", "out"):
        encoder = manyvec.load_encoder(str(tmp_path / name), device="cpu")
        words, patches = encoder.encode_queries(texts), encoder.encode_images(pictures(seed=99))
        right = np.arange(len(texts))
        found[name] = [
            float((filip_similarity(*pair).argmax(axis=1) == right).mean())
            for pair in ((words, patches), (patches, words))
        ]
    assert max(found["clip"]) < 0.3 and min(found["out"]) > 0.95
