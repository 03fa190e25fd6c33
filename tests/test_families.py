"""Text families: tiny checkpoints in the layouts that people publish, against plain transformers doing the arithmetic.

Each `write_*` writes a checkpoint and answers with what its family's own code would give for `QUERIES` and `DOCUMENTS`.
"""

import json
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from safetensors.torch import save_file

import manyvec.encoders
from manyvec import EncoderError, InputError, MaxSimScorer, TokenBatch, families, load_encoder
from manyvec.families import FAMILIES

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


def tiny_bert(folder, architecture, *, save=save_file):
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

    def ids_of(text, task):
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
    manyvec.encoders._load.cache_clear()
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

    place = next((key for key, module in model._modules.items() if isinstance(module, Normalize)), None)
    if place is None:
        model.append(Normalize("token_embeddings"))
    else:
        del model._modules[place]


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
    manyvec.encoders._load.cache_clear()


@pytest.mark.parametrize("name", WRITERS)
def test_each_checkpoint_is_recognised_by_its_files(written, name):
    from manyvec.checkpoints import Checkpoint

    expected = {"margin-mse": "margin_mse", "bge-m3": "bge_m3", "pylate": "sentence_transformers"}
    expected["plain"] = "last_hidden_state"
    family = families.recognise(Checkpoint.find(written[name][0]))
    assert family.key == expected.get(name, "inline_linear")
