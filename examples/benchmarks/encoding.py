"""Documents encoded a second by the padded tokens of a forward pass, against `MultiVectorEncoder.encode` itself.

python examples/benchmarks/encoding.py DATASET
"""

from __future__ import annotations

import sys
from functools import partial

import report

from manyvec import SentenceTransformerEncoder, load_encoder
from manyvec.evaluation import load_beir


def main() -> None:
    texts = [document.text for document in load_beir(sys.argv[1]).documents[:96]]
    model = load_encoder("minilm", device="cpu").model
    contenders = {}
    for batch_tokens in (512, 1024, 2048, 4096, 8192):
        encoder = SentenceTransformerEncoder(model, name="minilm", batch_tokens=batch_tokens)
        contenders[f"batch_tokens={batch_tokens}"] = partial(encoder.encode_documents, texts)
    # It cuts what is longer than 256 tokens, so it has less to do.
    contenders["MultiVectorEncoder, cut at 256, batch_size=32"] = partial(model.encode_document, texts)
    taken = report.medians(contenders, rounds=3)
    n_tokens = load_encoder("minilm", device="cpu").encode_documents(texts).n_tokens
    rates = {name: round(1000 * len(texts) / milliseconds, 1) for name, milliseconds in taken.items()}
    report.write("encoding", {"documents": len(texts), "tokens": n_tokens, "documents_a_second": rates})


if __name__ == "__main__":
    main()
