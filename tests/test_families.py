"""Text families: tiny checkpoints in the layouts that people publish, against plain transformers doing the arithmetic.

Each `write_*` writes a checkpoint and answers with what its family's own code would give for `QUERIES` and `DOCUMENTS`.
"""

import json
import os
import string
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file

import manyvec.models.loading
from manyvec import EncoderError, InputError, MaxSimScorer, MissingPackageError, load_encoder
from manyvec.models import checkpoints, families
from manyvec.models.families import FAMILIES

WORDS = "late interaction keeps one vector for each token of the text a query".split()
BERT_VOCABULARY = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", *WORDS]
QUERIES = ["a query", "the text"]
DOCUMENTS = ["late interaction , one vector.", "keeps each token of the text", "one"]
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


@dataclass
class Golden:
    """Token vectors that a family's own code gives, in the order of `QUERIES` and `DOCUMENTS`."""

    queries: list[np.ndarray]
    documents: list[np.ndarray]

    def scores(self):
        """Each query against each document: the best match of every query token, summed."""
        return [[(query @ document.T).max(axis=1).sum() for document in self.documents] for query in self.queries]


def assert_golden(encoder, golden):
    queries, documents = encoder.encode_queries(QUERIES), encoder.encode_documents(DOCUMENTS)
    for batch, expected in ((queries, golden.queries), (documents, golden.documents)):
        assert batch.lengths.tolist() == [len(vectors) for vectors in expected]
        for i, vectors in enumerate(expected):
            assert_allclose(batch[i], vectors, atol=2e-5)
    scorer = MaxSimScorer()
    assert_allclose([scorer.score(query, documents) for query in queries], golden.scores(), atol=2e-4)


def embed(model, ids, projections, *, attended=None, keep=None, unit=True):
    """Token vectors by hand: `attended` tokens are seen by the others, those in `keep` come out."""
    mask = torch.tensor([[int(i < (len(ids) if attended is None else attended)) for i in range(len(ids))]])
    with torch.inference_mode():
        vectors = model(input_ids=torch.tensor([ids]), attention_mask=mask).last_hidden_state[0]
        for project in projections:
            vectors = project(vectors)
    vectors = vectors[range(len(ids)) if keep is None else keep]
    return (torch.nn.functional.normalize(vectors, dim=-1) if unit else vectors).numpy()


def linear(n_in, n_out, *, bias=False):
    torch.manual_seed(n_in + n_out)
    return torch.nn.Linear(n_in, n_out, bias=bias).eval()


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def bert_ids(text, *, marker=None):
    words = text.replace(",", " ,").replace(".", " .").split()
    return [BERT_VOCABULARY.index(word) for word in ["[CLS]", *([marker] if marker else []), *words, "[SEP]"]]


def tiny_bert(folder, architecture):
    """config.json, vocab.txt and tokenizer_config.json of a BERT, and its model."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(BERT_VOCABULARY))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "model_max_length": 64})
    config = BertConfig(vocab_size=len(BERT_VOCABULARY), max_position_embeddings=64, **TINY)
    write_json(folder / "config.json", config.to_dict() | {"architectures": [architecture]})
    return BertModel(config).eval()


def colbert(model, ids_of, mask_id, projection, *, length=32, skipped=()):
    """Stanford's arithmetic: queries filled up with [MASK]s that nothing attends to, documents without punctuation."""
    queries, documents = [], []
    for text in QUERIES:
        ids = ids_of(text, "query")
        queries.append(embed(model, ids + [mask_id] * (length - len(ids)), [projection], attended=len(ids)))
    for text in DOCUMENTS:
        ids = ids_of(text, "document")
        keep = [i for i, id in enumerate(ids) if id not in skipped]
        documents.append(embed(model, ids, [projection], keep=keep))
    return Golden(queries, documents)


def bert_colbert(model, projection, *, length=32):
    markers = {"query": "[unused0]", "document": "[unused1]"}
    # Of the characters in string.punctuation the vocabulary has two; colbert-ai skips [UNK] for the others.
    skipped = [BERT_VOCABULARY.index(word) for word in (".", ",", "[UNK]")]
    ids_of = lambda text, task: bert_ids(text, marker=markers[task])  # noqa: E731
    return colbert(model, ids_of, BERT_VOCABULARY.index("[MASK]"), projection, length=length, skipped=skipped)


def write_stanford(folder: Path) -> Golden:
    """colbert-ir/colbertv2.0: HF_ColBERT, bert.* and linear.weight in one file, artifact.metadata beside it."""
    model, projection = tiny_bert(folder, "HF_ColBERT"), linear(32, 8)
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    save_file(weights | {"linear.weight": projection.weight.data}, folder / "model.safetensors", {"format": "pt"})
    settings = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_token": "[Q]", "doc_token": "[D]"}
    settings |= {"query_maxlen": 12, "doc_maxlen": 20, "dim": 8, "mask_punctuation": True, "similarity": "cosine"}
    settings |= {"attend_to_mask_tokens": False, "checkpoint": "/future/u/someone/colbert.dnn", "root": "/etc"}
    write_json(folder / "artifact.metadata", settings)
    return bert_colbert(model, projection, length=12)


def write_vespa(folder: Path) -> Golden:
    """vespa-engine/col-minilm: ColBERT's first version as a pickle, 32 dims, vocab.txt, no artifact.metadata."""
    model, projection = tiny_bert(folder, "ColBERT"), linear(32, 16)
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    torch.save(weights | {"linear.weight": projection.weight.data}, folder / "pytorch_model.bin")
    return bert_colbert(model, projection)


def write_dnn(folder: Path) -> Golden:
    """ColBERT's first version as its training wrote it: a .dnn file with the weights and the training's state."""
    model, projection = tiny_bert(folder, "BertForMaskedLM"), linear(32, 8)
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    state = {"epoch": 0, "batch": 150000, "arguments": {"model": "bert-base-multilingual-uncased", "dim": 8}}
    state["model_state_dict"] = weights | {"linear.weight": projection.weight.data}
    torch.save(state, folder / "mColBERT.dnn")
    return bert_colbert(model, projection)


def write_margin_mse(folder: Path) -> Golden:
    """sebastian-hofstaetter/colbert-distilbert-margin_mse-T2-msmarco: bert_model.* and compressor over a named base."""
    from transformers import DistilBertConfig, DistilBertModel

    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=len(BERT_VOCABULARY), dim=32, n_layers=1, n_heads=2, hidden_dim=48, max_position_embeddings=64
    )
    model, compressor = DistilBertModel(config).eval(), linear(32, 8, bias=True)
    # What the hub's cache keeps of distilbert-base-uncased.
    base = folder / "distilbert-base-uncased"
    base.mkdir(parents=True)
    write_json(base / "config.json", config.to_dict() | {"architectures": ["DistilBertForMaskedLM"]})
    (base / "vocab.txt").write_text("\n".join(BERT_VOCABULARY))
    write_json(base / "tokenizer_config.json", {"tokenizer_class": "DistilBertTokenizer", "model_max_length": 64})
    settings = {"architectures": ["ColBERT"], "model_type": "ColBERT", "bert_model": "distilbert-base-uncased"}
    settings |= {"compression_dim": 8, "dropout": 0.0, "return_vecs": False, "trainable": True}
    write_json(folder / "config.json", settings)
    weights = {f"bert_model.{name}": value for name, value in model.state_dict().items()}
    weights |= {f"compressor.{name}": value.data for name, value in compressor.named_parameters()}
    torch.save(weights, folder / "pytorch_model.bin")
    masks = [BERT_VOCABULARY.index("[MASK]")] * 8
    return Golden(
        [embed(model, bert_ids(text) + masks, [compressor], unit=False) for text in QUERIES],
        [embed(model, bert_ids(text), [compressor], unit=False) for text in DOCUMENTS],
    )


def write_xlm_r_tokenizer(folder):
    """tokenizer.json and tokenizer_config.json of an XLM-RoBERTa; answers with the tokenizer."""
    from transformers import XLMRobertaTokenizer

    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = ["▁" + word for word in WORDS] + ["▁.", ".", "▁,", "▁", ","]
    vocabulary = [(piece, 0.0) for piece in specials] + [(piece, -float(i + 1)) for i, piece in enumerate(pieces)]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = XLMRobertaTokenizer(vocab=[*vocabulary, ("<mask>", 0.0)], model_max_length=64)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_colbert_xm(folder: Path) -> Golden:
    """antoinelouis/colbert-xm: XMOD, whose vocabulary has neither marker: colbert-ai puts in the id of <unk>."""
    from transformers import XmodConfig, XmodModel

    tokenizer = write_xlm_r_tokenizer(folder)
    torch.manual_seed(0)
    languages = {"languages": ["en_XX", "de_DE"], "default_language": "en_XX", "pad_token_id": 1}
    config = XmodConfig(vocab_size=len(tokenizer), max_position_embeddings=66, **languages, **TINY)
    write_json(folder / "config.json", config.to_dict() | {"architectures": ["HF_ColBERT"]})
    model, projection = XmodModel(config).eval(), linear(32, 8)
    weights = {f"roberta.{name}": value for name, value in model.state_dict().items()}
    save_file(weights | {"linear.weight": projection.weight.data}, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "artifact.metadata", {"query_maxlen": 12, "doc_maxlen": 20, "dim": 8})

    def ids_of(text, _):
        ids = tokenizer(text)["input_ids"]
        return [ids[0], tokenizer.unk_token_id, *ids[1:]]

    skipped = {tokenizer(symbol, add_special_tokens=False)["input_ids"][0] for symbol in string.punctuation}
    return colbert(model, ids_of, tokenizer.mask_token_id, projection, length=12, skipped=skipped)


def write_bge_m3(folder: Path) -> Golden:
    """BAAI/bge-m3: XLM-RoBERTa as a pickle, colbert_linear.pt and sparse_linear.pt, and modules.json for one vector."""
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = write_xlm_r_tokenizer(folder)
    torch.manual_seed(0)
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=66, pad_token_id=1, **TINY)
    write_json(folder / "config.json", config.to_dict() | {"architectures": ["XLMRobertaModel"]})
    model, projection, sparse = XLMRobertaModel(config).eval(), linear(32, 32, bias=True), linear(32, 1, bias=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    torch.save(projection.state_dict(), folder / "colbert_linear.pt")
    torch.save(sparse.state_dict(), folder / "sparse_linear.pt")
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    vectors = [
        [embed(model, ids, [projection], keep=range(1, len(ids))) for ids in tokenizer(texts)["input_ids"]]
        for texts in (QUERIES, DOCUMENTS)
    ]
    return Golden(*vectors)


def write_pylate(folder: Path) -> Golden:
    """mixedbread-ai/mxbai-edge-colbert-v0-17m: ModernBERT, two Dense layers of PyLate's, the first with a residual."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import ModernBertConfig, ModernBertModel

    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", ".", ",", *WORDS, "[Q] ", "[D] "]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFC(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $0 [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.add_tokens(["[Q] ", "[D] "])
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("unk", "cls", "sep", "pad", "mask")
    settings = {f"{name}_token": f"[{name.upper()}]" for name in names}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    write_json(folder / "tokenizer_config.json", settings)
    torch.manual_seed(0)
    config = ModernBertConfig(vocab_size=len(vocabulary), pad_token_id=3, max_position_embeddings=64, **TINY)
    model = ModernBertModel(config).eval()
    model.save_pretrained(folder)
    first, residual, second = linear(32, 48), linear(32, 48), linear(48, 6)
    residual.weight.data *= -0.5
    for name, n_in, n_out, weights in (
        ("1_Dense", 32, 48, {"linear.weight": first.weight.data, "residual.weight": residual.weight.data}),
        ("2_Dense", 48, 6, {"linear.weight": second.weight.data}),
    ):
        dense = {"in_features": n_in, "out_features": n_out, "bias": False, "use_residual": len(weights) == 2}
        write_json(folder / name / "config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
        save_file(weights, folder / name / "model.safetensors")
    modules = [("", "sentence_transformers.models.Transformer"), ("1_Dense", "pylate.models.Dense.Dense")]
    modules.append(("2_Dense", "pylate.models.Dense.Dense"))
    entries = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    write_json(folder / "modules.json", entries)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 20, "do_lower_case": False})
    recipe = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 12, "document_length": 20}
    recipe |= {"attend_to_expansion_tokens": False, "skiplist_words": [".", ","], "do_query_expansion": True}
    recipe |= {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "MaxSim", "model_type": "ColBERT"}
    write_json(folder / "config_sentence_transformers.json", recipe)

    def ids_of(text, task):
        words = text.replace(",", " ,").replace(".", " .").split()
        return [vocabulary.index(w) for w in ["[CLS]", "[Q] " if task == "query" else "[D] ", *words, "[SEP]"]]

    project = lambda vectors: second(first(vectors) + residual(vectors))  # noqa: E731
    return colbert(model, ids_of, 4, project, length=12, skipped=[5, 6])


def write_plain(folder: Path) -> Golden:
    """Any other transformer: its last hidden state, without [CLS] and [SEP]."""
    model = tiny_bert(folder, "BertModel")
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    inner = [
        [embed(model, bert_ids(text), [], keep=range(1, len(bert_ids(text)) - 1)) for text in texts]
        for texts in (QUERIES, DOCUMENTS)
    ]
    return Golden(*inner)


WRITERS = {
    "stanford": write_stanford,
    "vespa": write_vespa,
    "dnn": write_dnn,
    "margin-mse": write_margin_mse,
    "colbert-xm": write_colbert_xm,
    "bge-m3": write_bge_m3,
    "pylate": write_pylate,
    "plain": write_plain,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each checkpoint, written once: (folder, what is expected of it)."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: (str(root / name), write(root / name)) for name, write in WRITERS.items()}


def fresh(folder, **options):
    manyvec.models.loading._load.cache_clear()
    return load_encoder(folder, device="cpu", **options)


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
    manyvec.models.loading._load.cache_clear()


@pytest.mark.parametrize("name", WRITERS)
def test_each_checkpoint_is_recognised_by_its_files(written, name):
    from manyvec.models.checkpoints import Checkpoint

    expected = {"margin-mse": "margin_mse", "bge-m3": "bge_m3", "pylate": "sentence_transformers"}
    expected["plain"] = "last_hidden_state"
    family = families.recognise(Checkpoint.find(written[name][0]))
    assert family.key == expected.get(name, "inline_linear")


# What each checkpoint's recipe is made of, and what goes wrong.


@pytest.fixture
def copy(written, tmp_path):
    """A copy of a written checkpoint, to be damaged."""
    import shutil

    def copied(name):
        shutil.copytree(written[name][0], tmp_path / name)
        return tmp_path / name

    return copied


def edited(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


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
    manyvec.models.loading._load.cache_clear()


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
        ({"backend": "tensorrt"}, "backend must be one of torch, onnx, openvino, got 'tensorrt'"),
    ],
)
def test_an_unknown_dtype_or_backend_is_an_error_that_lists_them(written, options, message):
    with pytest.raises(InputError, match=message):
        load_encoder(written["plain"][0], **options)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_backend_gives_the_vectors_of_torch(written, backend):
    package = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel"}[backend]
    pytest.importorskip(package, reason=f"needs {package}, whose releases do not take transformers 5.23 yet")
    folder, golden = written["stanford"]
    assert_golden(fresh(folder, backend=backend), golden)


def test_a_backend_that_is_not_installed_says_what_to_install(written):
    from importlib.util import find_spec

    if find_spec("optimum"):
        pytest.skip("optimum is installed here")
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


def resave(folder, change):
    """The checkpoint's weights, changed."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", {"format": "pt"})


DAMAGES = {
    "no config": (
        "plain",
        lambda folder: (folder / "config.json").unlink(),
        "config.json is missing from .*, which holds .*vocab.txt",
    ),
    "no weights": ("plain", lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "no tokenizer": (
        "plain",
        lambda folder: [(folder / file).unlink() for file in ("vocab.txt", "tokenizer_config.json")],
        "cannot load the model",
    ),
    "cut weights": (
        "plain",
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:500]),
        "cannot load the model",
    ),
    "config is no JSON": (
        "plain",
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json cannot be read",
    ),
    "no projection": (
        "stanford",
        lambda folder: resave(folder, lambda weights: {n: w for n, w in weights.items() if n != "linear.weight"}),
        "lack linear.weight, and one that is made up would only give noise",
    ),
    "no compressor": (
        "margin-mse",
        lambda folder: torch.save({"bert_model.x": torch.zeros(1)}, folder / "pytorch_model.bin"),
        "lack the token projection compressor.weight",
    ),
    "backbone of another name": (
        "stanford",
        lambda folder: resave(folder, lambda weights: {n.replace("attention", "attn"): w for n, w in weights.items()}),
        r"its weights lack \d+ tensors of a BertModel, such as 'encoder.*would be made up",
    ),
    "projection of another width": (
        "stanford",
        lambda folder: resave(folder, lambda weights: weights | {"linear.weight": torch.zeros(8, 16)}),
        "its token projection takes 16 dims, what comes before it gives 32",
    ),
    "projection with three axes": (
        "bge-m3",
        lambda folder: torch.save({"weight": torch.zeros(8, 32, 1)}, folder / "colbert_linear.pt"),
        r"must be \(dim, hidden size\) with a bias of \(dim,\), got \(\(8, 32, 1\), None\)",
    ),
    "sparse head of another shape": (
        "bge-m3",
        lambda folder: torch.save({"weight": torch.zeros(2, 32), "bias": torch.zeros(2)}, folder / "sparse_linear.pt"),
        r"sparse_linear.pt's weight must be \(1, 32\), got \(2, 32\)",
    ),
    "backbone tensor of another shape": (
        "plain",
        lambda folder: resave(folder, lambda weights: weights | {"embeddings.LayerNorm.weight": torch.zeros(7)}),
        "cannot load the model",
    ),
    "unknown architecture": (
        "plain",
        lambda folder: edited(folder, "config.json", model_type="berrt", architectures=["BerrtModel"]),
        "architecture 'berrt' is unknown. The nearest that is known is 'bert'. Families that can be loaded: Col",
    ),
    "a classifier": (
        "plain",
        lambda folder: edited(folder, "config.json", architectures=["BertForSequenceClassification"]),
        "BertForSequenceClassification scores or labels texts",
    ),
    "one vector a text": (
        "bge-m3",
        lambda folder: [
            (folder / "colbert_linear.pt").unlink(),
            write_json(folder / "modules.json", [{"path": "", "type": "sentence_transformers.models.BoW"}]),
        ],
        "gives one vector for a text, by BoW, and has no token vectors and no token projection",
    ),
    "code of its own": (
        "plain",
        lambda folder: edited(folder, "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}),
        r"code of its own. It is not run unasked: .*trust_remote_code=True",
    ),
    "modules outside": (
        "pylate",
        lambda folder: write_json(
            folder / "modules.json", [{"path": "../elsewhere", "type": "pylate.models.Dense.Dense"}]
        ),
        "names the file '../elsewhere', which lies outside the checkpoint",
    ),
    "shards outside": (
        "plain",
        lambda folder: write_json(folder / "model.safetensors.index.json", {"weight_map": {"x": "/etc/passwd"}}),
        "names the file '/etc/passwd', which lies outside the checkpoint",
    ),
    "base outside": (
        "margin-mse",
        lambda folder: edited(folder, "config.json", bert_model="/usr/lib"),
        "names the file '/usr/lib', which lies outside the checkpoint",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_checkpoint_is_an_error_that_says_what_is_wrong(copy, damage):
    name, change, message = DAMAGES[damage]
    folder = copy(name)
    change(folder)
    with pytest.raises(EncoderError, match=message):
        fresh(str(folder))


@pytest.mark.parametrize("name", ["stanford", "bge-m3"])
def test_an_image_given_to_a_text_model_is_an_error_that_names_models_for_images(written, name):
    encoder = fresh(written[name][0])
    for encode in ["encode_queries", "encode_documents"] + ["encode_all"] * (name == "bge-m3"):
        with pytest.raises(InputError, match="text 1 is a bytes: .* reads text given as str. For images load a model"):
            getattr(encoder, encode)(["one", b"\x89PNG"])


class Bomb:
    """Leaves a file behind wherever it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize(
    ("name", "file"), [("vespa", "pytorch_model.bin"), ("dnn", "mColBERT.dnn"), ("bge-m3", "colbert_linear.pt")]
)
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(copy, tmp_path, name, file):
    folder = copy(name)
    torch.save({"linear.weight": Bomb(tmp_path / "ran"), "weight": torch.zeros(1)}, folder / file)
    with pytest.raises(EncoderError, match=f"{file} cannot be read as tensors alone"):
        fresh(str(folder))
    assert not (tmp_path / "ran").exists()


OWN_CODE = """
from transformers import BertModel
class JinaBertModel(BertModel):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state.flip(-1)
        return output
"""


def test_code_that_a_checkpoint_brings_runs_only_if_asked_for(copy, written):
    """jinaai/jina-colbert-v1-en: HF_ColBERT over a backbone whose code lies beside it."""
    folder = edited(copy("stanford"), "config.json", auto_map={"AutoModel": "modeling_bert.JinaBertModel"})
    (folder / "modeling_bert.py").write_text(OWN_CODE)
    golden = written["stanford"][1]
    # What transformers knows without the code is loaded without it.
    assert_golden(fresh(str(folder)), golden)
    trusted = fresh(str(folder), trust_remote_code=True)
    assert type(trusted.model[0].model).__name__ == "JinaBertModel"
    with pytest.raises(AssertionError):
        assert_golden(trusted, golden)
    # Without its code some of it would be made up.
    resave(folder, lambda weights: {n: w for n, w in weights.items() if "position_embeddings" not in n})
    with pytest.raises(EncoderError, match=r"lack 1 tensors .*position_embeddings.*see trust_remote_code"):
        fresh(str(folder))


def test_paths_in_artifact_metadata_are_not_followed(copy, written):
    """colbert-ai writes where its training ran; nothing there is opened."""
    folder = edited(copy("stanford"), "artifact.metadata", checkpoint="../../etc/passwd", collection="/dev/zero")
    assert_golden(fresh(str(folder)), written["stanford"][1])


def test_shards_are_read_as_their_index_says(copy, written):
    folder = copy("stanford")
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {
        "model-00001-of-00002.safetensors": ["linear.weight"],
        "model-00002-of-00002.safetensors": [n for n in weights if n != "linear.weight"],
    }
    for file, names in parts.items():
        save_file({name: weights[name] for name in names}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    write_json(folder / "model.safetensors.index.json", index)
    assert_golden(fresh(str(folder)), written["stanford"][1])
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(EncoderError, match="names 'model-00001-of-00002.safetensors', which is not there"):
        fresh(str(folder))


# The hub, as far as it can be had here: its cache, and its answers.


def test_a_model_in_the_hubs_cache_is_loaded_without_the_hub(written, tmp_path, monkeypatch):
    import shutil

    folder, golden = written["stanford"]
    snapshot = tmp_path / "models--colbert-ir--colbertv2.0" / "snapshots" / ("1" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("1" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for options in ({}, {"local_files_only": True}):
        encoder = fresh("colbert-ir/colbertv2.0", **options)
        assert encoder.name == "colbert-ir/colbertv2.0"
        assert_golden(encoder, golden)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server that answers as the hub does where it refuses."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, code = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "someone/gated-model",
            r"accept their terms first, at https://huggingface.co/someone/gated-model.*hf auth login",
        ),
        ("someone/no-model", "there is no folder of this name, and no such repository on the hub"),
        ("lightonai/LateOnn", "no such repository.*Did you mean 'lightonai/LateOn'"),
        ("not a name!", "no such repository on the hub"),
        ("./nowhere", "there is no such folder"),
    ],
)
def test_a_repository_that_cannot_be_had_is_an_error_that_says_what_to_do(name, message):
    with pytest.raises(EncoderError, match=message):
        fresh(name)


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached_says_what_to_do_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EncoderError, match=r"the hub cannot be reached.*hf download someone/model --local-dir FOLDER"):
        fresh("someone/model")


def test_of_a_repository_only_what_a_model_needs_is_downloaded(tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    files = (
        "config.json model.safetensors pytorch_model.bin tf_model.h5 onnx/model.onnx onnx/config.json vocab.txt x.py"
    )

    def chosen(backend, trusted):
        allowed, ignored = checkpoints.patterns(backend, trusted)
        return set(filter_repo_objects(files.split(), allow_patterns=allowed, ignore_patterns=ignored))

    assert chosen("torch", False) == {"config.json", "model.safetensors", "vocab.txt"}
    assert chosen("onnx", True) - chosen("torch", False) == {"onnx/model.onnx", "onnx/config.json", "x.py"}
    for file in ("config.json", "model.safetensors", "1_Dense/config.json", "2_Dense/config.json"):
        write_json(tmp_path / file, {})
    write_json(tmp_path / "2_Dense" / "model.safetensors", {})
    assert checkpoints._without_safetensors(tmp_path) == ["1_Dense/"]


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
    if not hasattr(encoder, "encode_images"):
        query = encoder.encode_queries(["what is the capital of France"])[0]
        scores = MaxSimScorer().score(query, encoder.encode_documents(["Paris is the capital of France.", "Bread."]))
        assert scores[0] > scores[1]
