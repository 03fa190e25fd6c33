"""Text families: tiny checkpoints in published layouts, compared with plain transformers doing the arithmetic."""

import os
import shutil

import numpy as np
import pytest
import torch
from checkpoints import Golden, edited, fresh
from checkpoints.bert import (
    BERT_VOCABULARY,
    DOCUMENTS,
    QUERIES,
    WORDS,
    embed,
)
from checkpoints.families import WRITERS, assert_golden
from numpy.testing import assert_allclose

from manyvec import EncoderError, ImageReader, InputError, MaxSimScorer, MissingPackageError, load_encoder
from manyvec.models import families
from manyvec.models.checkpoints import Checkpoint
from manyvec.models.families import FAMILIES


@pytest.mark.parametrize("name", WRITERS)
def test_a_family_gives_the_vectors_and_scores_of_its_own_code(written, name):
    folder, golden = written[name]
    assert_golden(fresh(folder), golden)


def without_markers(model):
    model.prompts = {"query": "", "document": ""}


def without_expansion(model):
    model[0].n_masks, model[0].query_expansion = 0, None


def without_mask(model):
    mask = next(module for module in model if type(module).__name__ == "MultiVectorMask")
    mask._skiplist_ids = None


def with_another_projection(model):
    dense = next(module for module in model if type(module).__name__ == "Dense")
    with torch.no_grad():
        dense.linear.weight[0] *= 1.5


def without_normalisation(model):
    """Left out where the family has it, put in where it has not."""
    from sentence_transformers.base.modules import Normalize

    position = next((key for key, module in model._modules.items() if isinstance(module, Normalize)), None)
    if position is None:
        model.append(Normalize("token_embeddings"))
    else:
        del model._modules[position]


BREAKS = {
    "markers": (without_markers, "stanford vespa dnn colbert-xm pylate"),
    "expansion": (without_expansion, "stanford vespa dnn margin-mse colbert-xm pylate"),
    "mask": (without_mask, "stanford vespa dnn colbert-xm bge-m3 pylate plain"),
    "projection": (with_another_projection, "stanford vespa dnn margin-mse colbert-xm bge-m3 pylate"),
    "normalisation": (without_normalisation, " ".join(WRITERS)),
}


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part, (_, names) in BREAKS.items() for name in names.split()]
)
def test_the_golden_test_fails_when_a_part_is_wrong(written, part, name):
    folder, golden = written[name]
    encoder = fresh(folder)
    BREAKS[part][0](encoder.model)
    with pytest.raises(AssertionError):
        assert_golden(encoder, golden)


@pytest.mark.parametrize("name", WRITERS)
def test_each_checkpoint_is_recognised_by_its_files(written, name):
    expected = {"margin-mse": "margin_mse", "bge-m3": "bge_m3", "pylate": "sentence_transformers"}
    expected["plain"] = "last_hidden_state"
    family = families.recognise(Checkpoint.find(written[name][0]))
    assert family.key == expected.get(name, "inline_linear")


@pytest.fixture
def copy(written, tmp_path):
    """A copy of a written checkpoint, to be damaged."""

    def copied(name):
        shutil.copytree(written[name][0], tmp_path / name)
        return tmp_path / name

    return copied


def test_each_part_of_the_recipe_changes_the_fingerprint_and_the_same_again_does_not(copy):
    folder = copy("stanford")
    prints = [fresh(str(folder)).fingerprint, fresh(str(folder)).fingerprint]
    for changes in (
        {"query_token_id": "[unused1]"},
        {"doc_maxlen": 24},
        {"query_maxlen": 16},
        {"attend_to_mask_tokens": True},
        {"mask_punctuation": False},
    ):
        prints += [fresh(str(edited(folder, "artifact.metadata", **changes))).fingerprint]
    (folder / "vocab.txt").write_text("\n".join([*BERT_VOCABULARY[:-1], "question"]))
    prints.append(fresh(str(folder)).fingerprint)
    with torch.no_grad():
        encoder = fresh(str(folder))
        encoder.model[1].linear.weight[0, 0] += 1
    prints.append(encoder.fingerprint)
    assert prints[0] == prints[1]
    assert len(set(prints)) == len(prints) - 1


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.05)])
def test_half_precision_is_passed_through_and_comes_out_as_float32(written, dtype, tolerance):
    folder, golden = written["stanford"]
    encoder = fresh(folder, dtype=dtype)
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {getattr(torch, dtype)}
    batch = encoder.encode_documents(DOCUMENTS)
    assert batch.vectors.dtype == np.float32
    for i, vectors in enumerate(golden.documents):
        assert_allclose(batch[i], vectors, atol=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of float32, float16, bfloat16, got 'int8'"),
        ({"backend": "tensorrt"}, "backend must be one of auto, torch, onnx, openvino, got 'tensorrt'"),
    ],
)
def test_an_unknown_dtype_or_backend_is_an_error_that_lists_them(written, options, message):
    with pytest.raises(InputError, match=message):
        load_encoder(written["plain"][0], **options)


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_backend_gives_the_vectors_of_torch(written, runtime):
    package = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel"}[runtime]
    pytest.importorskip(package, reason=f"needs {package}, whose releases do not take transformers 5.23 yet")
    folder, golden = written["stanford"]
    assert_golden(fresh(folder, backend=runtime), golden)


def test_a_backend_that_is_not_installed_says_what_to_install(written):
    from importlib.util import find_spec

    if find_spec("optimum"):
        pytest.skip("shows the error without optimum, which is installed")
    with pytest.raises(MissingPackageError, match=r"pip install 'sentence-transformers\[onnx\]'"):
        load_encoder(written["plain"][0], backend="onnx")


def test_bge_m3_gives_token_vectors_lexical_weights_and_a_dense_vector_in_one_pass(written):
    from transformers import AutoTokenizer, XLMRobertaModel

    folder, golden = written["bge-m3"]
    encoder = fresh(folder)
    output = encoder.encode_all([*DOCUMENTS, "one one unknown"])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), XLMRobertaModel.from_pretrained(folder)
    sparse = torch.load(f"{folder}/sparse_linear.pt", weights_only=True)
    for i, text in enumerate([*DOCUMENTS, "one one unknown"]):
        if i < len(DOCUMENTS):
            assert_allclose(output.tokens[i], golden.documents[i], atol=2e-5)
        with torch.inference_mode():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert_allclose(output.dense[i], torch.nn.functional.normalize(hidden[0], dim=0), atol=2e-5)
        weights = torch.relu(hidden @ sparse["weight"].T + sparse["bias"])[:, 0].tolist()
        expected = {}
        for id, weight in zip(tokenizer(text)["input_ids"], weights, strict=True):
            if id not in tokenizer.all_special_ids and weight > 0:
                expected[id] = max(weight, expected.get(id, 0.0))
        assert output.lexical[i] == pytest.approx(expected, abs=2e-5)
    assert encoder.encode_all([]).dense.shape == (0, 32)


def test_dense_and_lexical_outputs_of_bge_m3_are_candidate_stages_of_an_index(written, tmp_path, stages):
    from manyvec import Index
    from manyvec.models.m3 import lexical_score

    encoder = fresh(written["bge-m3"][0])
    index = Index.create(tmp_path / "index", encoder, filter_columns={"n": int})
    texts = [f"{a} {b}" for a in WORDS for b in WORDS[:3]]
    index.add([{"id": f"{i:02}", "text": text, "metadata": {"n": i}} for i, text in enumerate(texts)])
    vectors = stages.M3Vectors(encoder)
    output, query = encoder.encode_all(texts), encoder.encode_all(QUERIES)
    by_dense = np.argsort(-(output.dense @ query.dense[0]), kind="stable")
    by_words = np.argsort([-lexical_score(query.lexical[0], weights) for weights in output.lexical], kind="stable")
    for stage, expected in ((stages.M3Dense(vectors), by_dense), (stages.M3Lexical(vectors), by_words)):
        assert index.rank(QUERIES[:1], stage, 5)[0] == [f"{i:02}" for i in expected[:5]]
    index.candidates = stages.M3Dense(vectors)
    assert [hit.metadata["n"] for hit in index.search(QUERIES[0], 1, filter={"n": 7})] == [7]
    # A changed document is made anew.
    index.add([{"id": "00", "text": QUERIES[0], "metadata": {"n": 0}}])
    assert index.rank(QUERIES[:1], stages.M3Dense(vectors), 1)[0] == ["00"]


def test_a_bge_m3_without_heads_gives_its_last_hidden_state_and_no_made_up_projection(copy):
    """BAAI/bge-m3-unsupervised comes before the training of the heads."""
    from transformers import AutoTokenizer, XLMRobertaModel

    folder = copy("bge-m3")
    for file in ("colbert_linear.pt", "sparse_linear.pt"):
        (folder / file).unlink()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), XLMRobertaModel.from_pretrained(folder)
    vectors = [
        [embed(model, ids, [], keep=range(1, len(ids) - 1)) for ids in tokenizer(texts)["input_ids"]]
        for texts in (QUERIES, DOCUMENTS)
    ]
    assert_golden(fresh(str(folder)), Golden(*vectors))


def test_bge_m3_without_its_sparse_head_says_so_when_asked_for_it(copy):
    folder = copy("bge-m3")
    (folder / "sparse_linear.pt").unlink()
    encoder = fresh(str(folder))
    assert len(encoder.encode_queries(QUERIES)) == 2
    with pytest.raises(EncoderError, match=r"no sparse_linear.pt"):
        encoder.encode_all(QUERIES)


@pytest.mark.parametrize("name", ["stanford", "bge-m3"])
def test_an_image_given_to_a_text_model_is_an_error_that_names_models_for_images(written, name):
    encoder = fresh(written[name][0])
    for encode in ["encode_queries", "encode_documents"] + ["encode_all"] * (name == "bge-m3"):
        with pytest.raises(InputError, match="reads strings, got bytes at position 1. For images load a model"):
            getattr(encoder, encode)(["one", b"\x89PNG"])


@pytest.fixture
def reachable():
    if os.environ.get("MANYVEC_HUB") != "1":
        pytest.skip("downloads models from the Hugging Face hub: set MANYVEC_HUB=1 where it can be reached")


@pytest.mark.hub
@pytest.mark.usefixtures("reachable")
def test_lateon_gives_the_scores_of_sentence_transformers_documentation():
    encoder = load_encoder("lightonai/LateOn", device="cpu")
    query = encoder.encode_queries(["What is the capital of France?"])[0]
    documents = encoder.encode_documents(["Paris is the capital of France.", "Berlin is the capital of Germany."])
    assert query.shape == (10, 128)
    assert_allclose(MaxSimScorer().score(query, documents), [9.1129, 8.8769], atol=0.02)


@pytest.mark.hub
@pytest.mark.usefixtures("reachable")
def test_bge_m3_gives_the_scores_of_its_model_card():
    from manyvec.models.m3 import lexical_score

    encoder = load_encoder("BAAI/bge-m3", device="cpu")
    questions = encoder.encode_all(["What is BGE M3?", "Defination of BM25"])
    first = "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction."
    second = (
        "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms appearing "
    )
    answers = encoder.encode_all([first, second + "in each document"])
    assert_allclose(questions.dense @ answers.dense.T, [[0.6265, 0.3477], [0.3499, 0.678]], atol=0.01)
    assert lexical_score(questions.lexical[0], answers.lexical[0]) == pytest.approx(0.1955, abs=0.01)
    colbert = MaxSimScorer().score(questions.tokens[0], answers.tokens) / len(questions.tokens[0])
    assert_allclose(colbert, [0.7797, 0.4620], atol=0.01)


@pytest.mark.hub
@pytest.mark.usefixtures("reachable")
@pytest.mark.parametrize(
    ("name", "dim"),
    [
        (model.name, model.dim)
        for family in FAMILIES
        for model in family.published
        if "/" in model.name and (model.millions or 0) < 300 and "jina" not in model.name
    ],
)
def test_a_published_checkpoint_prefers_the_answer(name, dim):
    encoder = load_encoder(name, device="cpu")
    assert dim in (None, encoder.dim)
    if not isinstance(encoder, ImageReader):
        query = encoder.encode_queries(["what is the capital of France"])[0]
        scores = MaxSimScorer().score(query, encoder.encode_documents(["Paris is the capital of France.", "Bread."]))
        assert scores[0] > scores[1]
