"""`manyvec eval`: measure retrieval quality on a judged data set."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from manyvec.cli.options import DeviceOption, EncoderOption, JsonOption
from manyvec.errors import InputError

if TYPE_CHECKING:
    from manyvec.evaluation import Dataset, Run, WeightChoice
    from manyvec.models.protocol import Encoder

EXAMPLES = """Examples:

manyvec eval data/scifact --index ./scifact-index

manyvec eval ./judged --encoder lightonai/LateOn --mix"""
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
    mix: Annotated[
        bool, typer.Option("--mix", help="Choose the share of BM25 by these queries, and say what to set.")
    ] = False,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare BM25, mean-pooled vectors, late interaction and the default search on a judged data set."""
    if not Path(dataset).is_dir():
        raise InputError(f"{dataset}: no such folder")
    from manyvec.cli.output import print_json, print_table
    from manyvec.evaluation import WEIGHTS, choose_weight, evaluate, load_beir
    from manyvec.models.loading import load_encoder

    data = load_beir(dataset, split)
    model = load_encoder(encoder, device=device)
    with tempfile.TemporaryDirectory() as folder:
        weight, runs, mixed = _rank(data, model, index or folder, WEIGHTS if mix else ())
    runs |= {"maxsim": mixed[0]} | ({"default": mixed[weight]} if weight else {})
    results = {method: evaluate(data.qrels, run, _MEASURES) for method, run in runs.items()}
    choice = choose_weight(data.qrels, mixed) if mix else None
    if as_json:
        print_json(results | ({"mix": asdict(choice)} if choice else {}))
        return
    print(f"{dataset}: {len(data.documents):,} documents, {len(data.queries):,} queries, {model.name}\n")
    rows = [(method, *(f"{values[measure]:.4f}" for measure in _MEASURES)) for method, values in results.items()]
    print_table(["", *_MEASURES], rows, right=range(1, 1 + len(_MEASURES)))
    if choice:
        _print_choice(choice, weight)


def _rank(
    data: Dataset, encoder: Encoder, uri: str, weights: Sequence[float]
) -> tuple[float, dict[str, Run], dict[float, Run]]:
    """Return the share of BM25 in a default search, runs of BM25 and of pooled vectors, and runs by share of BM25."""
    from manyvec.candidates import Lexical, Pooled
    from manyvec.index import Index

    index = Index.create(uri, encoder, exist_ok=True)
    index.add(data.documents, show_progress=True)
    index.optimize()
    texts = list(data.queries.values())
    weight = index.info().lexical_weight

    def run(ranked: list[list[str]]) -> Run:
        return dict(zip(data.queries, ranked, strict=True))

    # Of all documents, because this measures the model, and no candidate stage may lose some.
    mixed = index.rank_mixed(texts, sorted({0, weight, *weights}), _DEPTH)
    methods = {"bm25": index.rank(texts, Lexical(), _DEPTH), "pooled": index.rank(texts, Pooled(), _DEPTH)}
    return weight, {name: run(ranked) for name, ranked in methods.items()}, {w: run(ids) for w, ids in mixed.items()}


def _print_choice(choice: WeightChoice, weight: float) -> None:
    from manyvec.cli.output import print_table

    rows = [
        (f"{w:g}", f"{choice.chosen_on[w]:.4f}", f"{choice.measured_on[w]:.4f}", "chosen" if w == choice.best else "")
        for w in choice.chosen_on
    ]
    print("\nnDCG@10 by share of BM25, chosen on every other query and measured on the others")
    print_table(["lexical_weight", "chosen on", "measured on", ""], rows, right=(0, 1, 2))
    gain = choice.measured_on[choice.best] - choice.measured_on[0]
    print(f"\nlexical_weight={choice.best:g} changes nDCG@10 by {gain:+.4f} on queries that it was not chosen on.")
    if choice.lexical_weight == weight:
        print(f"Leave lexical_weight at auto, which is {weight:g} with this model.")
    else:
        print(
            f"Search with lexical_weight={choice.lexical_weight:g}, in the shell --lexical-weight, instead of auto, "
            f"which is {weight:g} with this model."
        )
