"""Checkpoints: damaged and foreign ones, code and paths inside them, and the hub."""

import shutil
import threading
from pathlib import Path

import pytest
import torch
from checkpoints import edited, fresh, write_json
from checkpoints.families import assert_golden
from safetensors.torch import load_file, save_file

from manyvec import EncoderError
from manyvec.models.checkpoints import _without_safetensors, patterns


@pytest.fixture
def copy(written, tmp_path):
    """A copy of a written checkpoint, to be damaged."""

    def copied(name):
        shutil.copytree(written[name][0], tmp_path / name)
        return tmp_path / name

    return copied


def resave(folder, change):
    """The checkpoint's weights, changed."""
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
        "ColBERT without a token projection: linear.weight is missing from its weights",
    ),
    "no compressor": (
        "margin-mse",
        lambda folder: torch.save({"bert_model.x": torch.zeros(1)}, folder / "pytorch_model.bin"),
        "the token projection compressor.weight is missing from its weights",
    ),
    "backbone of another name": (
        "stanford",
        lambda folder: resave(folder, lambda weights: {n.replace("attention", "attn"): w for n, w in weights.items()}),
        r"\d+ tensors of its BertModel are missing from its weights, such as 'encoder",
    ),
    "projection of another width": (
        "stanford",
        lambda folder: resave(folder, lambda weights: weights | {"linear.weight": torch.zeros(8, 16)}),
        "its token projection expects 16 dims, the module before it returns 32",
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
        "architecture 'berrt' is unknown. The nearest known one is 'bert'. Families that can be loaded: Col",
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
        r"returns one vector per text \(BoW\) and has neither token vectors nor a token projection",
    ),
    "code of its own": (
        "plain",
        lambda folder: edited(folder, "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"}),
        "requires Python code that comes with it. It is not run by default: .*trust_remote_code=True",
    ),
    "modules outside": (
        "pylate",
        lambda folder: write_json(
            folder / "modules.json", [{"path": "../elsewhere", "type": "pylate.models.Dense.Dense"}]
        ),
        "refers to the file '../elsewhere' outside the checkpoint",
    ),
    "shards outside": (
        "plain",
        lambda folder: write_json(folder / "model.safetensors.index.json", {"weight_map": {"x": "/etc/passwd"}}),
        "refers to the file '/etc/passwd' outside the checkpoint",
    ),
    "base outside": (
        "margin-mse",
        lambda folder: edited(folder, "config.json", bert_model="/usr/lib"),
        "refers to the file '/usr/lib' outside the checkpoint",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_checkpoint_is_an_error_that_says_what_is_wrong(copy, damage):
    name, change, message = DAMAGES[damage]
    folder = copy(name)
    change(folder)
    with pytest.raises(EncoderError, match=message):
        fresh(str(folder))


def test_a_token_without_weights_is_an_error_when_a_text_has_it(copy):
    folder = copy("plain")
    vocabulary = (folder / "vocab.txt").read_text()
    (folder / "vocab.txt").write_text(f"{vocabulary}\nnewcomer")
    encoder = fresh(str(folder))
    assert encoder.encode_documents(["late interaction"]).n_tokens == 2
    with pytest.raises(EncoderError, match=r"weights for \d+ tokens, and its tokenizer knows \d+: use the tokenizer"):
        encoder.encode_documents(["late newcomer"])


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
    # Without its code a weight is missing.
    resave(folder, lambda weights: {n: w for n, w in weights.items() if "position_embeddings" not in n})
    with pytest.raises(EncoderError, match="1 tensors .*position_embeddings.*see trust_remote_code"):
        fresh(str(folder))


def test_paths_in_artifact_metadata_are_not_followed(copy, written):
    """colbert-ai writes where its training ran; nothing there is opened."""
    folder = edited(copy("stanford"), "artifact.metadata", checkpoint="../../etc/passwd", collection="/dev/zero")
    assert_golden(fresh(str(folder)), written["stanford"][1])


def test_shards_are_read_as_their_index_says(copy, written):
    folder = copy("stanford")
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
    with pytest.raises(EncoderError, match="names 'model-00001-of-00002.safetensors', which does not exist"):
        fresh(str(folder))


def test_a_model_in_the_hubs_cache_is_loaded_without_the_hub(written, tmp_path, monkeypatch):
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
        ("someone/no-model", "there is no folder of this name and no such repository on the hub"),
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
        allowed, ignored = patterns(backend, trusted)
        return set(filter_repo_objects(files.split(), allow_patterns=allowed, ignore_patterns=ignored))

    assert chosen("torch", False) == {"config.json", "model.safetensors", "vocab.txt"}
    assert chosen("onnx", True) - chosen("torch", False) == {"onnx/model.onnx", "onnx/config.json", "x.py"}
    for file in ("config.json", "model.safetensors", "1_Dense/config.json", "2_Dense/config.json"):
        write_json(tmp_path / file, {})
    write_json(tmp_path / "2_Dense" / "model.safetensors", {})
    assert _without_safetensors(tmp_path) == ["1_Dense/"]
