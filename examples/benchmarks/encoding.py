"""How fast and in how much memory texts are encoded, against `MultiVectorEncoder.encode` itself.

python examples/benchmarks/encoding.py DATASET             documents and tokens a second, by batch size and precision
python examples/benchmarks/encoding.py DATASET --memory    peak memory of 10,000 documents of mixed lengths

Only texts that fit the model's window are timed: `MultiVectorEncoder` cuts what is longer, and has less to do.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from functools import partial
from importlib.util import find_spec

import report

from manyvec import SentenceTransformerEncoder, load_encoder
from manyvec.evaluation import load_beir

# Bytes of resident memory above the token vectors themselves that encoding may take: torch, the model and a batch.
BOUND = 1_250_000_000


def throughput(dataset: str) -> None:
    encoder = load_encoder("minilm", device="cpu", backend="torch")
    texts = [document.text for document in load_beir(dataset).documents]
    lengths = [len(ids) for ids in encoder.model.tokenizer(texts[:400], verbose=False)["input_ids"]]
    texts = [text for text, length in zip(texts, lengths, strict=False) if length <= 256][:48]
    contenders = {
        f"batch_tokens={batch_tokens}": partial(
            SentenceTransformerEncoder(encoder.model, name="minilm", batch_tokens=batch_tokens).encode_documents, texts
        )
        for batch_tokens in (1024, 2048, 4096, 8192)
    }
    rounded = load_encoder("minilm", device="cpu", backend="torch", dtype="bfloat16")
    contenders["dtype=bfloat16"] = partial(rounded.encode_documents, texts)
    contenders["by default"] = partial(load_encoder("minilm", device="cpu").encode_documents, texts)
    for batch_size in (8, 32):
        contenders[f"MultiVectorEncoder.encode_document, batch_size={batch_size}"] = partial(
            encoder.model.encode_document, texts, batch_size=batch_size, convert_to_numpy=True
        )
    for backend, package in (("onnx", "optimum.onnxruntime"), ("openvino", "optimum.intel")):
        if find_spec("optimum") and find_spec(package):
            contenders[backend] = partial(load_encoder("minilm", backend=backend).encode_documents, texts)
    taken = report.medians(contenders, rounds=3)
    tokens = encoder.encode_documents(texts)
    n_tokens = tokens.n_tokens
    cosines = (tokens.vectors * rounded.encode_documents(texts).vectors).sum(axis=1)
    theirs = min(taken[name] for name in taken if name.startswith("MultiVectorEncoder"))
    rates = {
        name: {
            "documents_a_second": round(1000 * len(texts) / milliseconds, 1),
            "tokens_a_second": round(1000 * n_tokens / milliseconds),
            "times_as_fast_as_multi_vector_encoder_at_its_best": round(theirs / milliseconds, 2),
        }
        for name, milliseconds in taken.items()
    }
    found = {"documents": len(texts), "tokens": n_tokens, "rates": rates}
    cosine = {"mean": round(float(cosines.mean()), 6), "least": round(float(cosines.min()), 4)}
    report.write("encoding", found | {"cosine of bfloat16 with float32": cosine})


def memory(dataset: str) -> None:
    """In a process of its own, so that the peak is that of encoding."""
    printed = subprocess.run(
        [sys.executable, __file__, dataset, "--measure"], check=True, capture_output=True, text=True
    ).stdout
    measured = json.loads(printed.splitlines()[-1])
    assert measured["bytes_above_the_vectors"] < BOUND, measured
    report.write("encoding-memory", measured | {"bound": BOUND})


def measure(dataset: str) -> None:
    texts = [document.text for document in load_beir(dataset).documents]
    lengths = [20, 80, 400, 60, 40]
    mixed = [texts[i % len(texts)][: lengths[i % 5]] for i in range(9_990)]
    # A few have windows to be cut into, and one is very long.
    mixed += [" ".join(texts[i : i + 4]) for i in range(9)] + [" ".join(texts[:100])]
    batch = load_encoder("minilm", device="cpu").encode_documents(mixed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "documents": len(batch),
                "tokens": batch.n_tokens,
                "longest": int(batch.lengths.max()),
                "bytes_of_vectors": batch.vectors.nbytes,
                "peak_bytes": peak,
                "bytes_above_the_vectors": peak - batch.vectors.nbytes,
            }
        )
    )


if __name__ == "__main__":
    {"--memory": memory, "--measure": measure}.get(sys.argv[-1], throughput)(sys.argv[1])
