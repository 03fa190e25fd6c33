"""TokenBatch and CodedBatch: ragged, without padding, validated once."""

import numpy as np
import pytest

from manyvec import ShapeError, TokenBatch
from manyvec.vectors.batch import CodedBatch, concatenated, offsets_of, ragged_rows
from manyvec.vectors.codec import Codec

THREE = TokenBatch.from_list([[[1, 0], [2, 0], [3, 0]], [[4, 0]], [[5, 0], [6, 0]]])


def test_items_come_back_as_they_went_in():
    assert len(THREE) == 3
    assert THREE.n_tokens == 6
    assert THREE.dim == 2
    assert THREE.lengths.tolist() == [3, 1, 2]
    np.testing.assert_array_equal(THREE[1], [[4, 0]])
    np.testing.assert_array_equal(THREE[-1], [[5, 0], [6, 0]])
    assert [len(item) for item in THREE] == [3, 1, 2]


def test_select_takes_items_in_any_order_and_twice():
    chosen = THREE.select([2, 0, 2])
    assert chosen.lengths.tolist() == [2, 3, 2]
    assert chosen.vectors[:, 0].tolist() == [5, 6, 1, 2, 3, 5, 6]


def test_select_keeps_each_tokens_span():
    spans = np.array([[0, 1], [2, 3], [4, 5]], np.int32)
    batch = TokenBatch(np.eye(3, dtype=np.float32), offsets_of([2, 1]), spans)
    assert batch.select([1, 0]).spans.tolist() == [[4, 5], [0, 1], [2, 3]]


def test_concatenation_keeps_the_order_of_items():
    both = TokenBatch.concatenate([THREE.select([1]), THREE.select([0])])
    assert both.vectors[:, 0].tolist() == [4, 1, 2, 3]
    assert both.offsets.tolist() == [0, 1, 4]


def test_float16_stays_float16_and_mixed_becomes_float32():
    half, single = np.ones((1, 2), np.float16), np.ones((1, 2), np.float32)
    assert TokenBatch.from_list([half, half]).vectors.dtype == np.float16
    assert TokenBatch.from_list([half, single]).vectors.dtype == np.float32
    assert TokenBatch.from_list([[[1.0, 2.0]]]).vectors.dtype == np.float32


def test_pooled_is_the_mean_direction_of_each_item():
    batch = TokenBatch.from_list([[[1, 0], [0, 1]], [[0, 2]]])
    np.testing.assert_allclose(batch.pooled(), [[0.5**0.5, 0.5**0.5], [0, 1]], atol=1e-6)


def test_a_batch_without_items_needs_only_its_dim():
    assert len(TokenBatch.from_list([], dim=7)) == 0
    with pytest.raises(ShapeError, match="pass dim="):
        TokenBatch.from_list([])


def test_an_empty_item_is_refused_unless_asked_for():
    with pytest.raises(ShapeError, match="item 1 of the batch has no token vectors"):
        TokenBatch.from_list([[[1, 0]], []])
    assert TokenBatch.from_list([[[1, 0]], []], allow_empty=True).lengths.tolist() == [1, 0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused_and_its_item_named(value):
    with pytest.raises(ShapeError, match="item 1 of the batch has a token vector with NaN or infinity"):
        TokenBatch.from_list([[[1, 0], [0, 1]], [[1, 0], [0, value]]])


def test_infinities_that_would_cancel_are_refused_too():
    with pytest.raises(ShapeError, match="NaN or infinity"):
        TokenBatch.from_list([[[np.inf, -np.inf]]])


@pytest.mark.parametrize(
    ("vectors", "offsets", "said"),
    [
        (np.zeros((2, 3, 4), np.float32), [0, 2], "must be \\(n_tokens, dim\\)"),
        (np.zeros((2, 3), np.int8), [0, 2], "float32 or float16, got \\(2, 3\\) int8"),
        (np.zeros((2, 0), np.float32), [0, 2], "dim 0"),
        (np.zeros((2, 3), np.float32), [0, 1], "offsets must run from 0 to the number of tokens \\(2\\)"),
        (np.zeros((2, 3), np.float32), [1, 2], "offsets must run"),
        (np.zeros((2, 3), np.float32), [0, 3, 2], "must not decrease"),
    ],
)
def test_wrong_shapes_are_refused(vectors, offsets, said):
    with pytest.raises(ShapeError, match=said):
        TokenBatch(vectors, np.array(offsets, np.int64))


def test_items_of_unlike_dims_are_refused():
    with pytest.raises(ShapeError, match=r"share one dim, got \[2, 3\]"):
        TokenBatch.from_list([[[1, 0]], [[1, 0, 0]]])
    with pytest.raises(ShapeError, match="share one dim"):
        TokenBatch.concatenate([TokenBatch.from_list([[[1, 0]]]), TokenBatch.from_list([[[1, 0, 0]]])])


INT8 = Codec("int8", 2)
CODED = CodedBatch(INT8.encode(THREE.vectors), THREE.offsets, INT8)


def test_codes_are_selected_and_joined_as_vectors_are_and_decode_to_them():
    assert (len(CODED), CODED.n_tokens, CODED.dim, CODED.nbytes) == (3, 6, 2, 6 * 4)
    np.testing.assert_array_equal(CODED.decoded().vectors, THREE.vectors)
    np.testing.assert_array_equal(CODED.select([2, 0]).decoded().vectors, THREE.select([2, 0]).vectors)
    both = concatenated(CODED, CODED.select([1]))
    assert both.lengths.tolist() == [3, 1, 2, 1]
    np.testing.assert_array_equal(both.decoded().vectors[-1], [4, 0])


def test_codes_are_never_taken_for_vectors():
    assert not hasattr(CODED, "vectors") and not hasattr(THREE, "codec")
    with pytest.raises(ShapeError, match="float32 or float16, got \\(6, 4\\) uint8"):
        TokenBatch(CODED.codes, CODED.offsets)
    with pytest.raises(ShapeError, match="cannot be joined: decode the codes first"):
        concatenated(THREE, CODED)


@pytest.mark.parametrize(
    ("codes", "offsets", "said"),
    [
        (CODED.codes[:, :3], [0, 6], "int8 codes must be \\(n_tokens, 4\\) uint8, got \\(6, 3\\) uint8"),
        (CODED.codes.astype(np.int8), [0, 6], "got \\(6, 4\\) int8"),
        (CODED.codes, [0, 5], "offsets must run from 0 to the number of tokens \\(6\\)"),
        (CODED.codes, [0, 4, 2, 6], "must not decrease"),
    ],
)
def test_codes_of_wrong_shapes_are_refused(codes, offsets, said):
    with pytest.raises(ShapeError, match=said):
        CodedBatch(codes, np.array(offsets, np.int64), INT8)


def test_ragged_rows_lay_ranges_end_to_end():
    assert ragged_rows(np.array([10, 3, 7]), np.array([2, 0, 3])).tolist() == [10, 11, 7, 8, 9]
    assert ragged_rows(np.array([], np.int64), np.array([], np.int64)).tolist() == []
