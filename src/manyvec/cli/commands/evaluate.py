"""`manyvec eval`: measure retrieval quality on a judged data set."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyvec.cli.options import DeviceOption, EncoderOption, JsonOption
from manyvec.errors import InputError

if TYPE_CHECKING:
    from manyvec.evaluation import Dataset
    from manyvec.models.protocol import Encoder

EXAMPLES = "Example: manyvec eval data/scifact --index ./scifact-index"
_MEASURES = ("nDCG@10", "Recall@10", "Recall@100", "MRR@10", "Success@5")
_DEPTH = 100


def run(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DIR", help="Folder in BEIR layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv."),
    ],
    split: Annotated[str, typer.Option(help="Which judgments to use: qrels/SPLIT.tsv.")] = "test",
    index: Annotated[
        str | None,
        typer.Option("--index", "-i", metavar="DIR", help="Keep the index in this folder and reuse it."),
    ] = None,
    encoder: EncoderOption = "minilm",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare BM25, mean-pooled vectors and late interaction on a judged data set."""
    if not Path(dataset).is_dir():
        raise InputError(f"{dataset}: no such folder")
    from manyvec.cli.output import print_json, print_table
    from manyvec.evaluation import load_beir
    from manyvec.models.loading import load_encoder

    data = load_beir(dataset, split)
    model = load_encoder(encoder, device=device)
    with tempfile.TemporaryDirectory() as folder:
        results = _measure(data, model, index or folder)
    if as_json:
        print_json(results)
        return
    print(f"{dataset}: {len(data.documents):,} documents, {len(data.queries):,} queries, {model.name}\n")
    rows = [(method, *(f"{values[measure]:.4f}" for measure in _MEASURES)) for method, values in results.items()]
    print_table(["", *_MEASURES], rows, right=range(1, 1 + len(_MEASURES)))


def _measure(data: Dataset, encoder: Encoder, uri: str) -> dict[str, dict[str, float]]:
    """Return the measures of each method by its name."""
    from manyvec.candidates import Exhaustive, Lexical, Pooled
    from manyvec.evaluation import evaluate
    from manyvec.index import Index

    index = Index.create(uri, encoder, exist_ok=True)
    index.add(data.documents, show_progress=True)
    index.optimize()
    # This measures the model, so no candidate stage may lose documents.
    index.candidates = Exhaustive()
    texts = list(data.queries.values())
    rankings = {
        "bm25": index.rank(texts, Lexical(), _DEPTH),
        "pooled": index.rank(texts, Pooled(), _DEPTH),
        "maxsim": [[hit.id for hit in hits] for hits in index.search_many(texts, _DEPTH)],
    }
    return {
        method: evaluate(data.qrels, dict(zip(data.queries, ranked, strict=True)), _MEASURES)
        for method, ranked in rankings.items()
    }
