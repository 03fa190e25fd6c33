"""Shared steps of the recipes: options, training, a saved model that loads again, nDCG@10, and a file of results."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset as Rows
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from transformers import PrinterCallback, TrainerCallback

import manyvec
from manyvec.evaluation import Dataset, evaluate

MEASURE = "nDCG@10"
POOLED = [("float16", factor) for factor in (1, 2, 3)]
# With fewer token vectors, `residual` stores float16.
MIN_RESIDUAL_TOKENS = 65_536
RESULTS = Path(__file__).parent / "results"


def parser(
    description: str | None, name: str, *, data: str = "Folder in BEIR layout with qrels/train.tsv and qrels/test.tsv."
) -> argparse.ArgumentParser:
    """Return a parser with the options that every recipe has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path, help=data)
    made.add_argument("--out", type=Path, required=True, help="Folder of the trained model.")
    made.add_argument("--minutes", type=float, default=5, help="Processor time of the training.")
    made.add_argument("--queries", type=int, default=300, help="Test queries to measure.")
    made.add_argument("--documents", type=int, default=10**6, help="Documents to find theirs in, at most.")
    made.add_argument("--name", default=name, help="Name of the file of results.")
    return made


def sample(data: Dataset, n_queries: int, n_documents: int = 10**6) -> Dataset:
    """Return a data set with `n_queries` random queries, their documents, and others up to `n_documents` in all."""
    draw = np.random.default_rng(0)
    names, ids = sorted(data.queries), [document.id for document in data.documents]
    chosen = [names[i] for i in draw.permutation(len(names))[:n_queries]]
    judged = {id for query in chosen for id in data.qrels[query]}
    others = [ids[i] for i in draw.permutation(len(ids)) if ids[i] not in judged]
    kept = judged.union(others[: max(0, n_documents - len(judged))])
    documents = [document for document in data.documents if document.id in kept]
    return Dataset(data.name, documents, {q: data.queries[q] for q in chosen}, {q: data.qrels[q] for q in chosen})


def read_pairs(path: Path) -> list[tuple[Path, str]]:
    """Return the images and texts of a file of JSON lines with `image`, a path beside the file, and `text`."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(path.parent / row["image"], row["text"]) for row in rows]


def pictures(path: Path) -> Dataset:
    """Return a file of images and texts as a data set in which each text asks for its image."""
    pairs = read_pairs(path)
    documents = [manyvec.Document(image.name, "", image=image) for image in dict.fromkeys(image for image, _ in pairs)]
    queries = {str(number): text for number, (_, text) in enumerate(pairs)}
    return Dataset(path.stem, documents, queries, {str(n): {image.name: 1} for n, (image, _) in enumerate(pairs)})


def measured(
    encoder: manyvec.Encoder, data: Dataset, variants: Sequence[tuple[str, float]] = (("float16", 1),)
) -> list[dict[str, Any]]:
    """Return nDCG@10 by exact MaxSim, and bytes of token vectors, for each storage and pool factor. Encodes once."""
    rows, documents = [], data.documents
    for storage, factor in variants:
        with tempfile.TemporaryDirectory() as folder:
            index = manyvec.Index.create(folder, encoder, storage=storage, pool_factor=factor)
            index.add(documents, adopt_vectors=True)
            if storage == "residual":
                index.optimize()
            index.candidates = manyvec.candidates.Exhaustive()
            found = index.search_many(list(data.queries.values()), 10, lexical_weight=0)
            if documents is data.documents and (storage, factor) == ("float16", 1):
                documents = index.get([document.id for document in documents], vectors=True)
            info = index.info()
        if storage == "residual" and info.tokens < MIN_RESIDUAL_TOKENS:
            continue
        run = {query: [hit.id for hit in hits] for query, hits in zip(data.queries, found, strict=True)}
        bytes_per_token = {"float16": 2 * info.dim, "residual": info.dim // 4 + 4}[storage]
        n_bytes = round(info.tokens * bytes_per_token / info.documents)
        ndcg = round(evaluate(data.qrels, run, [MEASURE])[MEASURE], 4)
        rows.append({"storage": storage, "pool_factor": factor, MEASURE: ndcg, "bytes_per_document": n_bytes})
    return rows


def train(
    model: MultiVectorEncoder,
    rows: list[dict[str, Any]],
    loss: torch.nn.Module,
    *,
    minutes: float,
    batch_size: int,
    learning_rate: float,
    max_tokens: int | None = 96,
    epochs: int = 1,
) -> dict[str, Any]:
    """Train in place, and return the steps, their processor time, and the mean loss of each tenth of them.

    Args:
        model: Model to train.
        rows: `query`, then documents; `scores` if the loss takes a teacher's.
        loss: Loss over the model.
        minutes: Processor time after which training stops.
        batch_size: Rows in a step.
        learning_rate: Highest learning rate, reached after 20 steps.
        max_tokens: Tokens of a document that are read while training; None for all.
        epochs: Highest number of passes over the rows.
    """
    columns = [name for name in rows[0] if name != "scores"]
    tasks = {name: "query" if name == "query" else "document" for name in columns}
    with tempfile.TemporaryDirectory() as folder:
        arguments = MultiVectorEncoderTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=20,
            max_length=max_tokens,
            prompts={name: prompt for name, task in tasks.items() if (prompt := model.prompts.get(task))},
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
        )
        callbacks = [_Deadline(60 * minutes)]
        options: dict[str, Any] = {"model": model, "args": arguments, "loss": loss, "callbacks": callbacks}
        trainer = MultiVectorEncoderTrainer(train_dataset=Rows.from_list(rows), **options)
        trainer.remove_callback(PrinterCallback)
        started = time.process_time()
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tenths = [round(float(part.mean()), 4) for part in np.array_split(losses, min(10, len(losses)))]
    return {"steps": len(losses), "cpu_minutes": round((time.process_time() - started) / 60, 1), "losses": tenths}


class _Deadline(TrainerCallback):
    def __init__(self, seconds: float) -> None:
        self._end = time.process_time() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop |= time.process_time() > self._end
        return control


def save(model: MultiVectorEncoder, out: Path, texts: Sequence[str]) -> manyvec.Encoder:
    """Save a model, load it as manyvec does, and return the encoder, whose vectors are checked to be the model's."""
    model.eval().save(str(out), create_model_card=False)
    encoder = manyvec.load_encoder(str(out), device="cpu")
    for task, vectors in (("query", encoder.encode_queries(texts)), ("document", encoder.encode_documents(texts))):
        encode = model.encode_query if task == "query" else model.encode_document
        for mine, theirs in zip(vectors, encode(list(texts)), strict=True):
            np.testing.assert_allclose(mine, theirs.cpu().numpy(), atol=1e-5)
    return encoder


def write(name: str, results: dict[str, Any]) -> None:
    """Print results, and write them to `results/NAME.json` with the command, versions, hardware and date."""
    packages = ("manyvec", "sentence-transformers", "transformers", "torch", "numpy")
    arguments = [Path(argument).name if os.sep in argument else argument for argument in sys.argv[1:]]
    record = {
        "date": date.today().isoformat(),
        "command": " ".join(["python", f"examples/training/{Path(sys.argv[0]).name}", *arguments]),
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": round(os.getloadavg()[0], 1),
        },
        "cpu_minutes": round(time.process_time() / 60, 1),
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
        "results": results,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(results))
