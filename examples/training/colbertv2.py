"""Train ColBERTv2: distil a teacher's scores of several documents for each query, with negatives from the batch.

    python examples/training/colbertv2.py DATA/squad-dev --student ./colbert --out ./colbertv2 --minutes 5

The student learns the teacher's distribution over a judged document and mined ones (KL divergence) and, at the same
time, to tell the judged one from all others of the batch; the index then stores residuals of 2 bits a dimension
(Santhanam et al. 2022, https://arxiv.org/abs/2112.01488). The paper's teacher is a cross-encoder; this one is exact
MaxSim of `minilm` at 384 dims. Its scores are recorded in a file of JSON lines that `manyvec tune --train` reads, too,
and that may as well hold a cross-encoder's. What the student was worth before is in its own file of results.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from recipes import POOLED, measured, parser, sample, save, train, write
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.scoring import colbert_scores
from sentence_transformers.util import stack_padded_token_embeddings

import manyvec
from manyvec.evaluation import Dataset, load_beir


class DistillationLoss(torch.nn.Module):
    """KL divergence from the teacher over a query's documents, plus cross-entropy of its first against the batch."""

    def __init__(self, model: MultiVectorEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Iterable[dict[str, Any]], labels: torch.Tensor) -> torch.Tensor:
        """Return the loss of a query column and n document columns, with (batch, n) scores of the teacher."""
        query, *documents = [self.model(column, task=column["task"]) for column in features]
        vectors = [document["token_embeddings"] for document in documents]
        stacked, mask = stack_padded_token_embeddings(vectors, [one["attention_mask"].bool() for one in documents])
        is_token = query["attention_mask"].bool()
        scores = colbert_scores(query["token_embeddings"], stacked, queries_mask=is_token, documents_mask=mask)
        rows = torch.arange(len(labels), device=scores.device)
        own = scores.view(len(labels), len(labels), -1)[rows, rows]
        teacher = labels.float().log_softmax(dim=1)
        distilled = torch.nn.functional.kl_div(own.log_softmax(1), teacher, log_target=True, reduction="batchmean")
        return distilled + torch.nn.functional.cross_entropy(scores, rows * labels.shape[1])


def record(teacher: str, data: Dataset, path: Path, *, n_queries: int, n_documents: int) -> None:
    """Write for some queries a judged document, mined ones, and the teacher's scores of all of them."""
    draw, texts = random.Random(0), {document.id: document.text for document in data.documents}
    queries = sample(data, n_queries).queries
    judged = {id for query in queries for id in data.qrels[query]}
    part = path.with_suffix(".part")
    with tempfile.TemporaryDirectory() as folder, part.open("w", encoding="utf-8") as file:
        index = manyvec.Index.create(folder, teacher)
        # Negatives come from the documents of these queries: none is of the test split.
        index.add(document for document in data.documents if document.id in judged)
        by_words = index.rank(list(queries.values()), manyvec.candidates.Lexical(), 30)
        by_model = index.search_many(list(queries.values()), 30, lexical_weight=0)
        for (query, text), words, hits in zip(queries.items(), by_words, by_model, strict=True):
            mined = sorted({*words, *(hit.id for hit in hits)} - data.qrels[query].keys())
            ids = [max(data.qrels[query], key=data.qrels[query].__getitem__), *draw.sample(mined, n_documents - 1)]
            positive, *negatives = [texts[id] for id in ids]
            scores = [round(float(score), 4) for score in index.score(text, ids)]
            row = {"query": text, "positive": positive, "negatives": negatives, "scores": scores}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    # A run that is killed leaves no half of a file.
    part.replace(path)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the recorded rows with a column for each document."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row |= {f"negative_{i}": text for i, text in enumerate(row.pop("negatives"))}
        row["scores"] = row.pop("scores")
    return rows


def main() -> None:
    options = parser(__doc__, "colbertv2")
    options.add_argument("--student", required=True, help="Folder or name of a ColBERT, such as colbert.py trains.")
    options.add_argument(
        "--scores", type=Path, help="Recorded scores; written by the teacher if there is no such file."
    )
    options.add_argument("--teacher", default="minilm")
    options.add_argument("--rows", type=int, default=600, help="Training queries that the teacher scores.")
    options.add_argument("--ways", type=int, default=4, help="Documents for each of them.")
    arguments = options.parse_args()
    torch.manual_seed(0)
    test, data = load_beir(arguments.data), load_beir(arguments.data, "train")
    test = sample(test, arguments.queries, arguments.documents)
    results: dict[str, Any] = {"set": test.name, "queries": len(test.queries), "documents": len(test.documents)}
    scores = arguments.scores or arguments.out.with_suffix(".jsonl")
    if not scores.exists():
        record(arguments.teacher, data, scores, n_queries=arguments.rows, n_documents=arguments.ways)
    model = MultiVectorEncoder(arguments.student, device="cpu")
    settings: dict[str, Any] = {"batch_size": 8, "learning_rate": 2e-5}
    results["training"] = train(model, read(scores), DistillationLoss(model), minutes=arguments.minutes, **settings)
    results["training"] |= {**settings, "ways": arguments.ways, "teacher": arguments.teacher}
    encoder = save(model, arguments.out, ["words, with marks", "another one"])
    results["trained"] = measured(encoder, test, POOLED + [("residual", factor) for _, factor in POOLED])
    write(arguments.name, results)


if __name__ == "__main__":
    main()
