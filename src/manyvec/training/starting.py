"""What `tune` knows before training: the model's measures, the negatives, and which documents are measured on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from manyvec.errors import StoreError
from manyvec.evaluation import Dataset
from manyvec.index import Index
from manyvec.models.protocol import Encoder
from manyvec.models.text import SentenceTransformerEncoder
from manyvec.training.data import Split, TrainingData
from manyvec.training.measuring import Judged, encode_corpus, ndcg_of, ndcg_of_set, pool_of, principal_axes
from manyvec.training.pairs import mine_negatives
from manyvec.vectors.batch import TokenBatch, offsets_of

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder

    from manyvec.training.loop import LoopSettings

# Documents that negatives are drawn from and held-out queries are measured on: about 2 GB of vectors of `minilm`.
MAX_DOCUMENTS = 20_000
# Queries that negatives are mined for: more pairs than two cores read in an hour.
MAX_QUERIES = 20_000
_STATES, _LENGTHS = "states.npy", "lengths.npy"


@dataclass(frozen=True)
class Job:
    """The arguments of `tune`, checked."""

    name: str
    method: Literal["full", "lora", "projection"]
    dim: int | None
    negatives: int
    interpolate: float | None
    teacher: str | None
    device: str
    loop: LoopSettings
    unseen: Sequence[Dataset] = field(default=(), repr=False)

    def settings(self) -> dict[str, Any]:
        """Return what changes the result, as values that JSON can hold."""
        shown: dict[str, Any] = {
            "model": self.name,
            "method": self.method,
            "dim": self.dim,
            "negatives": self.negatives,
        }
        shown |= {"interpolate": self.interpolate, "teacher": self.teacher, "device": self.device}
        return shown | {"unseen": [dataset.name for dataset in self.unseen]} | asdict(self.loop)


@dataclass
class Start:
    """What is known before training; a resumed run reads it instead of computing it again.

    Attributes:
        before: nDCG@10 of each report query.
        at_dim: The same for its vectors along `axes`; empty if the dims stay.
        axes: (dim, width) principal axes of the token vectors; None if the dims stay.
        unseen: The same for each query of each unseen data set.
        negatives: Query id to ids of hard negatives.
        pool: Ids of the documents that validation queries are ranked over.
    """

    before: list[float]
    at_dim: list[float]
    axes: list[list[float]] | None
    unseen: dict[str, list[float]]
    negatives: dict[str, list[str]]
    pool: list[str]


def corpus_of(data: TrainingData, split: Split, seed: int) -> dict[str, str]:
    """Return the documents to measure on and draw negatives from: what answers a held-out query, then a sample."""
    held = _held_out(data, split)
    if len(data.documents) <= MAX_DOCUMENTS:
        return data.documents
    others = [id for id in data.documents if id not in held]
    chosen = held | set(_sample(others, MAX_DOCUMENTS - len(held), seed))
    return {id: text for id, text in data.documents.items() if id in chosen}


def _held_out(data: TrainingData, split: Split) -> set[str]:
    """Return the ids of the documents that answer held-out queries."""
    return {id for query in (*split.validation, *split.report) for id in data.positives[query]}


def begin(
    work: Path,
    job: Job,
    data: TrainingData,
    split: Split,
    corpus: dict[str, str],
    model: MultiVectorEncoder,
    source: Index | None = None,
) -> Start:
    """Measure the model before training and mine negatives, or read both from an interrupted run.

    Args:
        source: Index of the same documents, whose vectors are taken if they are the model's.
    """
    from manyvec.training.loop import write_json
    from manyvec.training.preparing import projection_of

    stored = work / "start.json"
    if stored.exists():
        return Start(**json.loads(stored.read_text(encoding="utf-8")))
    encoder = SentenceTransformerEncoder(model, name=job.name)
    tokens = stored_tokens(source, encoder, corpus) or encode_corpus(encoder, corpus)
    if job.method == "projection" and projection_of(model) is None:
        _keep_states(work, tokens)
    queries = [query for query in split.train if query not in data.negatives]
    queries = _sample(queries, MAX_QUERIES, job.loop.seed) if job.negatives else []
    # A held-out answer that training pushes away from other queries would no longer be unknown to it.
    wanted: dict[str, Any] = {"excluded": _held_out(data, split), "n_negatives": job.negatives, "seed": job.loop.seed}
    mined = mine_negatives(data, queries, corpus, tokens, encoder, **wanted) if queries else {}
    report = Judged(*part_of(data, split.report), corpus)
    axes = None
    if job.dim is not None and job.dim != encoder.dim:
        axes = principal_axes(tokens, job.dim)
    start = Start(
        before=ndcg_of(encoder, report, tokens),
        at_dim=[] if axes is None else ndcg_of(encoder, report, tokens, axes),
        axes=None if axes is None else axes.tolist(),
        unseen={dataset.name: ndcg_of_set(encoder, dataset) for dataset in job.unseen},
        negatives={query: list(ids) for query, ids in (mined | data.negatives).items()},
        pool=list(pool_of(encoder, Judged(*part_of(data, split.validation), corpus), tokens).documents),
    )
    write_json(stored, asdict(start))
    return start


def stored_tokens(source: Index | None, encoder: Encoder, corpus: Mapping[str, str]) -> TokenBatch | None:
    """Return the token vectors of documents as an index holds them; None if they are not those of this encoder."""
    if source is None:
        return None
    info = source.info()
    is_whole = (info.storage, info.pool_factor, info.dim) == ("float16", 1, encoder.dim)
    return source.token_vectors(list(corpus)) if is_whole and source.fingerprint == encoder.fingerprint else None


def _keep_states(work: Path, tokens: TokenBatch) -> None:
    """Write token vectors that a trained matrix will be multiplied with: encoding the corpus again takes longer."""
    try:
        np.save(work / _LENGTHS, tokens.lengths)
        np.save(work / _STATES, tokens.vectors)
    except OSError as error:
        raise StoreError(f"cannot write token vectors to {work}: {error}. Free space there and run again") from error


def kept_states(work: Path) -> TokenBatch | None:
    """Return the token vectors of the corpus before training, read from disk as they are used; None if not kept.

    They are kept where the tuned vectors are these multiplied by one matrix.
    """
    if not (work / _STATES).exists():
        return None
    return TokenBatch.unchecked(np.load(work / _STATES, mmap_mode="r"), offsets_of(np.load(work / _LENGTHS)))


def part_of(data: TrainingData, queries: Sequence[str]) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return the texts and the judgments of some queries."""
    return {query: data.queries[query] for query in queries}, {query: data.positives[query] for query in queries}


def _sample(values: list[str], n: int, seed: int) -> list[str]:
    """Return n of the values, or all of them if there are fewer, in their order."""
    if len(values) <= n:
        return values
    chosen = np.random.default_rng(seed).choice(len(values), n, replace=False)
    return [values[position] for position in sorted(chosen.tolist())]
