"""Static token vectors: model2vec's layouts, compared with model2vec itself and with arithmetic by hand."""

import numpy as np
import pytest
from checkpoints import fresh
from checkpoints.static import LAYOUTS, VECTORS, weighted, write_model2vec, write_tokenizer
from numpy.testing import assert_allclose
from tokenizers import Tokenizer

from manyvec import EncoderError, Index, InputError, MaxSimScorer


@pytest.fixture
def model2vec():
    return pytest.importorskip("model2vec", reason="needs model2vec: pip install 'manyvec[dev]'")


def unit(rows):
    vectors = VECTORS[rows]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_golden(encoder, tolerance=1e-5):
    documents = encoder.encode_documents(["late interaction, the vector", "", "unknown words"])
    assert documents.lengths.tolist() == [4, 0, 0]
    assert_allclose(documents[0], unit([1, 2, 6, 5]), atol=tolerance)
    assert documents.spans.tolist() == [[0, 4], [5, 16], [18, 21], [22, 28]]
    # The weights of "the vector" are 0.1 and 5: 2.55 on average.
    queries = encoder.encode_queries(["the vector"])
    assert_allclose(queries[0], unit([6, 5]) * [[0.1 / 2.55], [5 / 2.55]], atol=tolerance)
    score = MaxSimScorer().score(queries[0], encoder.encode_documents(["late one"]))
    # "late" is (.6, .8), as "the" is; (1, 0) fits "one" best.
    assert_allclose(score, [0.1 / 2.55 * 1.0 + 5 / 2.55 * np.sqrt(0.5)], atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_directions_for_documents_and_weights_for_queries(tmp_path, layout):
    encoder = fresh(LAYOUTS[layout](tmp_path / "model"))
    assert_golden(encoder, 2e-3 if layout == "float16" else 1e-5)
    assert (encoder.dim, encoder.device) == (2, "cpu")


@pytest.mark.parametrize("layout", ["plain", "weights and mapping"])
def test_vectors_are_model2vecs_own(tmp_path, layout, model2vec):
    folder = LAYOUTS[layout](tmp_path / "model")
    theirs = model2vec.StaticModel.from_pretrained(folder).encode_as_sequence("late one unknown the vector")
    ours = fresh(folder).encode_documents(["late one unknown the vector"])[0]
    assert_allclose(ours, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-6)


def test_what_model2vec_saves_is_loaded(tmp_path, model2vec):
    """As `distill` and training leave a model: written by model2vec itself, here with a smaller, weighted table."""
    write_tokenizer(tmp_path / "tokenizer.json")
    tensors = weighted()
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = model2vec.StaticModel(
        tensors["embeddings"], tokenizer, weights=tensors["weights"], token_mapping=tensors["mapping"], normalize=True
    )
    model.save_pretrained(tmp_path / "model")
    assert_golden(fresh(tmp_path / "model"))


def test_an_image_given_to_a_static_model_is_an_error(tmp_path):
    encoder = fresh(LAYOUTS["plain"](tmp_path / "model"))
    with pytest.raises(InputError, match="reads strings, got bytes at position 1"):
        encoder.encode_documents(["late", b"\x89PNG"])


def without_mask(encoder):
    encoder._unknown = None


def without_weights(encoder):
    encoder._weights = np.ones(len(VECTORS), np.float32)


def with_other_vectors(encoder):
    encoder._vectors = encoder._vectors[:, ::-1]


@pytest.mark.parametrize("part", [without_mask, without_weights, with_other_vectors])
def test_the_golden_test_fails_when_a_part_is_wrong(tmp_path, part):
    encoder = fresh(LAYOUTS["plain"](tmp_path / "model"))
    part(encoder)
    with pytest.raises(AssertionError):
        assert_golden(encoder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"table": VECTORS}, r"model.safetensors must hold model2vec's `embeddings`, got \['table'\]"),
        ({"embeddings": VECTORS[:3]}, r"a row for each of the 7 tokens of its tokenizer, got the shape \(3, 2\)"),
        (
            {"embeddings": VECTORS, "weights": np.ones(3, np.float32)},
            r"weights must have the shape \(7,\), got \(3,\)",
        ),
    ],
)
def test_a_table_that_does_not_fit_is_an_error(tmp_path, tensors, message):
    with pytest.raises(EncoderError, match=message):
        fresh(write_model2vec(tmp_path / "model", tensors))


def test_the_fingerprint_tells_tables_and_tokenizers_apart(tmp_path):
    prints = {fresh(LAYOUTS[name](tmp_path / name)).fingerprint for name in ("plain", "float16")}
    other = write_model2vec(tmp_path / "other", {"embeddings": VECTORS + 1})
    assert fresh(other).fingerprint not in prints


def test_a_static_model_is_an_indexs_encoder(tmp_path):
    index = Index.create(tmp_path / "index", str(LAYOUTS["plain"](tmp_path / "model")))
    index.add([{"id": "a", "text": "late interaction"}, {"id": "b", "text": "one vector"}])
    hit = Index.open(tmp_path / "index").search("the vector", 1)[0]
    assert hit.id == "b" and -1 <= hit.similarity <= 1
