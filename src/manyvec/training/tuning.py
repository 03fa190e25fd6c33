"""`tune`: adapt a model to judged queries, from reading the data to the saved model."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from manyvec.errors import InputError, check_count, check_fraction, require
from manyvec.evaluation import load_beir
from manyvec.index import Index
from manyvec.models.loading import resolved_device
from manyvec.models.text import SentenceTransformerEncoder
from manyvec.training.data import Judgments, Split, TrainingData, drop_leaks, hold_out, read_training
from manyvec.training.measuring import (
    Judged,
    along,
    best_lexical_weight,
    compare,
    encode_corpus,
    interval,
    ndcg_of,
    ndcg_of_set,
    score_pool,
)
from manyvec.training.pairs import n_documents, texts_of, training_rows, with_teacher
from manyvec.training.questions import Ask, pairs_from_documents
from manyvec.training.report import Measured, Progress, TuneReport
from manyvec.training.starting import Job, Start, begin, corpus_of, kept_states, part_of
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder


LEARNING_RATES = {"full": 5e-5, "lora": 2e-4, "projection": 1e-3}
# Steps between measurements, which take a tenth of the time on a CPU.
MEASURE_EVERY = {"full": 25, "lora": 25, "projection": 100}
# A loss on an unseen set that is worth a warning.
UNSEEN_LOSS = 0.01
_PACKAGES = ("manyvec", "sentence-transformers", "transformers", "torch", "datasets")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Fitted:
    """What training found.

    Attributes:
        curve: Measurements, the model before training first.
        best_step: Step with the best measurement; 0 if it was the model before training.
        problem: Why training ended early, or None.
        share: Share of the tuned weights that ranks the pool best.
        by_share: nDCG@10 on the pool for each share that was tried.
    """

    curve: list[Progress]
    best_step: int
    problem: str | None
    share: float
    by_share: dict[float, float]


def tune(
    model: str,
    train: str | Path | Index,
    out: str | Path,
    *,
    judged: Judgments | None = None,
    ask: Ask | None = None,
    method: Literal["full", "lora", "projection"] = "full",
    dim: int | None = None,
    minutes: float = 60,
    negatives: int = 2,
    holdout: float = 0.1,
    unseen: Sequence[str | Path] = (),
    teacher: str | None = None,
    interpolate: float | Literal["auto"] = "auto",
    batch_size: int = 32,
    learning_rate: float | None = None,
    max_tokens: int = 256,
    epochs: int = 10,
    measure_every: int | None = None,
    seed: int = 0,
    device: str = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> TuneReport:
    """Adapt a text model to judged queries, measure what that gained, and save it only if it gained.

    Held-out queries are answered by no document of a training pair. Half of them (at most 250) choose the step, the
    blend of weights and the tuned model's share of BM25, the others are measured before and after. If the process is
    killed, the same call goes on from the last checkpoint, kept in the folder `OUT.training` until the run is complete.
    Memory: the model with its optimizer (six times its weights), about 4 GB for a step of `full` or `lora`, and before
    and after training the token vectors of at most 20,000 documents as float16, twice while they are joined.

    Args:
        model: Model to start from, a name for `load_encoder`.
        train: Folder in BEIR layout with `qrels/train.tsv`; file of JSON lines with `query`, `positive` and optionally
            `negatives`, `scores` and `group`; or an index, with `judged` or without: then its documents themselves ask
            (see `manyvec.training.questions`). What is held out then are such questions, not those of your users.
        out: Folder for the tuned model, which must not exist. `load_encoder` and sentence-transformers load it.
        judged: Query to ids of the documents that answer it, if `train` is an index.
        ask: Returns the questions that a text answers, as a language model writes them, if `train` is an index without
            `judged`. By default headings, titles and first sentences ask.
        method: `full` trains all weights; `lora` trains small matrices beside them, which are merged at the end;
            `projection` trains only the token projection, on states that are computed once: minutes on two cores.
        dim: Dimensions of the tuned model's token vectors; prefixes of 32, 64, … of them are trained to be compared as
            well. By default those of the model.
        minutes: Time for training and the measurements during it. Mining and the measurements before and after it come
            on top: each encodes the corpus once. With `projection` they do so together, as the tuned vectors are those
            before times a matrix. An index of the same model gives its stored vectors instead of encoding.
        negatives: Hard negatives for each pair, from the data or mined. Fewer in a corpus that is too small for them.
        holdout: Share of the queries to hold out; at least 20 and at most 750 are. More make the gain more certain.
        unseen: Folders in BEIR layout whose test split is measured before and after, to see what the model forgets.
        teacher: Name of a cross-encoder whose scores are distilled. Recorded `scores` in `train` are, without one.
        interpolate: Share of the tuned weights in the result; the rest are those before training. With `auto`, the best
            on held-out queries of .3, .5, .7 and 1.
        batch_size: Pairs in a step; each pair's answer is a negative for all others.
        learning_rate: By default 5e-5 for `full`, 2e-4 for `lora`, 1e-3 for `projection`.
        max_tokens: Tokens of a query or document that are read while training.
        epochs: Maximum number of passes over the pairs.
        measure_every: Steps between measurements, by default 25, and 100 for `projection`. After three without a gain,
            training stops.
        seed: Seed of the split, the negatives and the order of pairs.
        device: Where to train: `cpu`, `cuda`, `mps`, or `auto` for the fastest one available. On CUDA, and on CPUs that
            are faster at it, `full` and `lora` multiply in bfloat16.
        on_progress: Called with each measurement during training.

    Returns:
        What was measured. Its `out` is None if nothing was better than before; then nothing is written.

    Raises:
        InputError: An argument or the data cannot be used.
        EncoderError: The model does not exist or cannot be trained.
        MissingPackageError: The extra `train` is not installed.
        StoreError: The tuned model could not be written.
    """
    for package in ("datasets", "accelerate", *(["peft"] if method == "lora" else [])):
        require(package, extra="train")
    from manyvec.training.loop import LoopSettings, multiplies_bfloat16

    if not isinstance(model, str):
        raise InputError(
            f"tune needs the name of a model for load_encoder, got {type(model).__name__}: a hosted model or an object "
            "of your own has no weights that can be trained here"
        )
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists: name a new folder for the tuned model, or remove it")
    if method not in LEARNING_RATES:
        raise InputError(f"method must be one of {', '.join(LEARNING_RATES)}, got {method!r}")
    if not minutes > 0:
        raise InputError(f"minutes must be above 0, got {minutes!r}")
    if not 0 < check_fraction(holdout, "holdout") < 1:
        raise InputError(f"holdout must be between 0 and 1, got {holdout!r}")
    names = [Path(folder).resolve().name for folder in unseen]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"unseen names two data sets {repeated!r}: results are told apart by the folders' names")
    device = resolved_device(device)
    loop = LoopSettings(
        minutes=float(minutes),
        batch_size=check_count(batch_size, "batch_size", minimum=2),
        learning_rate=learning_rate if learning_rate is not None else LEARNING_RATES[method],
        max_tokens=check_count(max_tokens, "max_tokens", minimum=8),
        epochs=check_count(epochs, "epochs", minimum=1),
        measure_every=check_count(
            MEASURE_EVERY[method] if measure_every is None else measure_every, "measure_every", minimum=1
        ),
        patience=3,
        seed=check_count(seed, "seed"),
        bfloat16=method != "projection" and multiplies_bfloat16(device),
    )
    job = Job(
        name=model,
        method=method,
        dim=None if dim is None else check_count(dim, "dim", minimum=1),
        negatives=check_count(negatives, "negatives"),
        interpolate=None if interpolate == "auto" else check_fraction(interpolate, "interpolate"),
        teacher=teacher,
        device=device,
        loop=loop,
        unseen=[load_beir(folder) for folder in unseen],
    )
    if ask is not None and (judged is not None or not isinstance(train, Index)):
        raise InputError("ask makes questions from the documents of an index that has no judged: leave it out")
    made = pairs_from_documents(train, ask) if isinstance(train, Index) and judged is None else train
    data = read_training(made, judged)
    if teacher is not None:
        # The named teacher scores the pairs anew.
        data.scores.clear()
    split = drop_leaks(data, hold_out(data, holdout, loop.seed), job.unseen)
    # Documents that ask for themselves are without their questions here, and with them in the index.
    source = train if isinstance(train, Index) and made is train else None
    return _run(job, data, split, out, on_progress or (lambda point: logger.info("%s", point)), source)


def _run(
    job: Job,
    data: TrainingData,
    split: Split,
    out: Path,
    report: Callable[[Progress], None],
    source: Index | None,
) -> TuneReport:
    from manyvec.training.preparing import load_trainable, projection_weight

    model = load_trainable(job.name, device=job.device)
    width = int(model.get_embedding_dimension() or 0)
    if job.dim is not None and job.dim > width:
        raise InputError(f"dim must be at most {width}, the dims of this model's token vectors, got {job.dim}")
    work = _work_folder(out, job, data, split)
    corpus = corpus_of(data, split, job.loop.seed)
    start = begin(work, job, data, split, corpus, model, source)
    rows = training_rows(data, split.train, start.negatives, n_negatives=job.negatives, batch_size=job.loop.batch_size)
    if job.teacher is not None:
        rows = with_teacher(rows, job.teacher, job.device)
    pool = Judged(*part_of(data, split.validation), {id: corpus[id] for id in start.pool})
    fitted = _fit(job, model, rows, pool, start, work, report)
    encoder = SentenceTransformerEncoder(model, name=str(out))
    states = kept_states(work)
    tokens = encode_corpus(encoder, corpus) if states is None else along(states, projection_weight(model))
    result = _judged(job, data, split, corpus, start, rows, fitted, encoder, tokens)
    if result.is_better:
        from manyvec.training.saving import save

        shutil.rmtree(work / "index", ignore_errors=True)
        choosing = Judged(*part_of(data, split.validation), corpus)
        weight = best_lexical_weight(work / "index", encoder, choosing, tokens)
        part = out.with_name(f"{out.name}.part")
        save(model, part, list(corpus.values())[:20])
        result = replace(result, out=str(out), lexical_weight=weight)
        result.write(part)
        part.replace(out)
    shutil.rmtree(work)
    return result


def _fit(
    job: Job,
    model: MultiVectorEncoder,
    rows: list[dict[str, Any]],
    pool: Judged,
    start: Start,
    work: Path,
    report: Callable[[Progress], None],
) -> _Fitted:
    """Train the model in place, and leave the blend of weights in it that ranks the pool best."""
    import torch

    from manyvec.training import preparing, saving
    from manyvec.training.loop import train
    from manyvec.training.losses import loss_for

    if job.dim or job.method == "projection":
        preparing.add_projection(model, None if start.axes is None else np.array(start.axes, np.float32))
    before = saving.weights_of(model)
    # LoRA's matrices start at random.
    torch.manual_seed(job.loop.seed)
    preparing.choose_weights(model, job.method)
    loss = loss_for(
        model,
        has_teacher="scores" in rows[0],
        dims=preparing.prefixes(job.dim) if job.dim else [0],
        n_rows=job.loop.batch_size * n_documents(rows),
        n_tokens=job.loop.max_tokens,
    )
    texts = texts_of(rows, pool.queries.values(), pool.documents.values())
    is_frozen = job.method == "projection"
    with preparing.frozen(model, texts, max_tokens=job.loop.max_tokens) if is_frozen else nullcontext():
        trained = train(model, loss, rows, job.loop, lambda: score_pool(model, pool), work, report)
        if job.method == "lora":
            preparing.merge_lora(model)
        model.eval()
        own = {name: weight for name, weight in before.items() if name in model.state_dict()}
        shares = saving.SHARES if job.interpolate is None else (job.interpolate,)
        tuned = saving.weights_of(model)
        share, measured = saving.choose_share(model, own, tuned, shares, lambda: score_pool(model, pool).ndcg)
    return _Fitted(trained.curve, trained.best_step, trained.problem, share, measured)


def _judged(
    job: Job,
    data: TrainingData,
    split: Split,
    corpus: dict[str, str],
    start: Start,
    rows: Sequence[Mapping[str, Any]],
    fitted: _Fitted,
    encoder: SentenceTransformerEncoder,
    tokens: TokenBatch,
) -> TuneReport:
    """Measure the tuned model on the queries that chose nothing, and say whether it is better."""
    after = ndcg_of(encoder, Judged(*part_of(data, split.report), corpus), tokens)
    # Smaller vectors are worth having if they are better than untrained ones of their size.
    advantage = interval(np.subtract(after, start.at_dim or start.before).tolist())
    objection = _objection(advantage, fitted.curve[0].ndcg, fitted.by_share[fitted.share])
    is_better = objection is None
    unseen = {
        dataset.name: compare(start.unseen[dataset.name], ndcg_of_set(encoder, dataset))
        for dataset in (job.unseen if is_better else ())
    }
    warnings = [fitted.problem] if fitted.problem else []
    warnings += [
        f"{name}: nDCG@10 fell from {compared.before.mean:.3f} to {compared.after.mean:.3f}"
        for name, compared in unseen.items()
        if compared.gain.mean < -UNSEEN_LOSS
    ]
    if objection:
        warnings.append(f"nothing was written: {objection}")
    details = {
        **job.settings(),
        "data": data.name,
        "data_hash": data.digest(),
        "split": {"train": len(split.train), "validation": len(split.validation), "report": len(split.report)},
        "documents_measured": len(corpus),
        "pairs": len(rows),
        "negatives_per_pair": n_documents(rows) - 1,
        "best_step": fitted.best_step,
        "share_of_tuned_weights": fitted.share,
        "validation_ndcg_by_share": {str(share): value for share, value in fitted.by_share.items()},
        "before_at_dim": asdict(interval(start.at_dim)) if start.at_dim else None,
        "versions": {name: version(name) for name in _PACKAGES},
        "machine": platform.machine(),
    }
    return TuneReport(
        before=interval(start.before),
        after=interval(after),
        gain=interval(np.subtract(after, start.before).tolist()),
        is_better=is_better,
        unseen=unseen,
        curve=fitted.curve,
        dropped=dict(data.dropped),
        warnings=warnings,
        details=details,
    )


def _objection(advantage: Measured, chosen_before: float, chosen_after: float) -> str | None:
    """Return why a tuned model is not written, or None if it is.

    Args:
        advantage: Gain on the queries that chose nothing.
        chosen_before: nDCG@10 on the queries that chose the step and the blend of weights, before training.
        chosen_after: The same for what they chose.
    """
    if advantage.low <= 0:
        return f"the gain on {advantage.n_queries} held-out queries is {advantage}, not safely above 0"
    if chosen_after <= chosen_before:
        return (
            f"on the held-out queries that choose the step, nDCG@10 went from {chosen_before:.3f} to "
            f"{chosen_after:.3f}, although the other {advantage.n_queries} gained {advantage}"
        )
    return None


def _work_folder(out: Path, job: Job, data: TrainingData, split: Split) -> Path:
    """Return the folder of the checkpoints; an older run with other data or settings is removed from it."""
    work = out.with_name(f"{out.name}.training")
    run = json.dumps([job.settings(), data.digest(), hashlib.sha256(repr(split).encode()).hexdigest()])
    stored = work / "run.json"
    if work.exists() and not stored.exists() and any(work.iterdir()):
        raise InputError(f"{work} holds files that are not of a training run: move them, or name another folder")
    if stored.exists() and stored.read_text(encoding="utf-8") != run:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    stored.write_text(run, encoding="utf-8")
    return work
