"""Static token vectors: model2vec's layouts, against model2vec itself and by hand."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import manyvec.models.loading
from manyvec import EncoderError, InputError, MaxSimScorer, load_encoder

WORDS = ["[UNK]", "late", "interaction", "keeps", "one", "vector", "the"]
# Directions times weights: "the" is light.
VECTORS = np.array([[9, 9], [3, 4], [0, 2], [1, 0], [2, 2], [5, 0], [0.06, 0.08]], np.float32)


def write_tokenizer(path):
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))


def write_model2vec(folder, tensors):
    """minishlab/potion-*: `embeddings`, and in newer models `weights` and `mapping`."""
    write_tokenizer(folder / "tokenizer.json")
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": True, "seq_length": 1000000}
    (folder / "config.json").write_text(json.dumps(config))
    modules = [{"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}]
    modules.append({"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"})
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def write_static_embedding(folder):
    """sentence-transformers' own static models, such as static-retrieval-mrl-en-v1."""
    write_tokenizer(folder / "0_StaticEmbedding" / "tokenizer.json")
    save_file({"embedding.weight": VECTORS}, folder / "0_StaticEmbedding" / "model.safetensors")
    kind = "sentence_transformers.models.StaticEmbedding"
    modules = [{"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": kind}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def weighted():
    """The same vectors as directions, weights, and rows that a mapping looks up."""
    weights = np.linalg.norm(VECTORS, axis=1)
    order = np.array([2, 0, 1, 3, 4, 6, 5])
    return {
        "embeddings": (VECTORS / weights[:, None])[order],
        "weights": weights,
        "mapping": np.argsort(order).astype(np.int64),
    }


LAYOUTS = {
    "plain": lambda folder: write_model2vec(folder, {"embeddings": VECTORS}),
    "float16": lambda folder: write_model2vec(folder, {"embeddings": VECTORS.astype(np.float16)}),
    "weights and mapping": lambda folder: write_model2vec(folder, weighted()),
    "sentence-transformers": write_static_embedding,
}


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
    encoder = load_encoder(str(LAYOUTS[layout](tmp_path / "model")), device="cpu")
    assert_golden(encoder, 2e-3 if layout == "float16" else 1e-5)
    assert (encoder.dim, encoder.device) == (2, "cpu")


@pytest.mark.parametrize("layout", ["plain", "weights and mapping"])
def test_vectors_are_model2vecs_own(tmp_path, layout, model2vec):
    folder = LAYOUTS[layout](tmp_path / "model")
    theirs = model2vec.StaticModel.from_pretrained(folder).encode_as_sequence("late one unknown the vector")
    ours = load_encoder(str(folder), device="cpu").encode_documents(["late one unknown the vector"])[0]
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
    assert_golden(load_encoder(str(tmp_path / "model"), device="cpu"))


def test_an_image_given_to_a_static_model_is_an_error(tmp_path):
    encoder = load_encoder(str(LAYOUTS["plain"](tmp_path / "model")), device="cpu")
    with pytest.raises(InputError, match="text 1 is a bytes: .* reads text given as str"):
        encoder.encode_documents(["late", b"\x89PNG"])


def without_mask(encoder):
    encoder._unknown = None


def without_weights(encoder):
    encoder._weights = np.ones(len(VECTORS), np.float32)


def with_other_vectors(encoder):
    encoder._vectors = encoder._vectors[:, ::-1]


@pytest.mark.parametrize("part", [without_mask, without_weights, with_other_vectors])
def test_the_golden_test_fails_when_a_part_is_wrong(tmp_path, part):
    encoder = load_encoder(str(LAYOUTS["plain"](tmp_path / "model")), device="cpu")
    part(encoder)
    with pytest.raises(AssertionError):
        assert_golden(encoder)
    manyvec.models.loading._load.cache_clear()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"table": VECTORS}, r"model.safetensors holds \['table'\], not model2vec's `embeddings`"),
        ({"embeddings": VECTORS[:3]}, r"its table of vectors is \(3, 2\), its tokenizer has 7 tokens"),
        ({"embeddings": VECTORS, "weights": np.ones(3, np.float32)}, r"\(3,\) weights for a table of \(7, 2\)"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error(tmp_path, tensors, message):
    with pytest.raises(EncoderError, match=message):
        load_encoder(str(write_model2vec(tmp_path / "model", tensors)), device="cpu")


def test_the_fingerprint_tells_tables_and_tokenizers_apart(tmp_path):
    prints = {
        load_encoder(str(LAYOUTS[name](tmp_path / name)), device="cpu").fingerprint for name in ("plain", "float16")
    }
    other = write_model2vec(tmp_path / "other", {"embeddings": VECTORS + 1})
    assert load_encoder(str(other), device="cpu").fingerprint not in prints


def test_a_static_model_is_an_indexs_encoder(tmp_path):
    from manyvec import Index

    index = Index.create(tmp_path / "index", str(LAYOUTS["plain"](tmp_path / "model")))
    index.add([{"id": "a", "text": "late interaction"}, {"id": "b", "text": "one vector"}])
    hit = Index.open(tmp_path / "index").search("the vector", 1)[0]
    assert hit.id == "b" and -1 <= hit.similarity <= 1
