"""FILIP's loss against its formula."""

from __future__ import annotations

import pytest
import torch
from numpy.testing import assert_allclose

from manyvec.errors import InputError
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
