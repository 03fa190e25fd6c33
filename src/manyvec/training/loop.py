"""Train: sentence-transformers' trainer, measured at intervals, stopped in time, resumed after a kill.

This imports torch and sentence-transformers, so import it only when a model is trained.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder, MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
from sentence_transformers.base.sampler import BatchSamplers
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from manyvec.training.measuring import PoolScores
from manyvec.training.preparing import prompt_of
from manyvec.training.report import Progress
from manyvec.vectors.llvm import host_cpu

_WEIGHTS = "trained.safetensors"
# All files of a checkpoint; one that a kill interrupted lacks some.
_CHECKPOINT = (_WEIGHTS, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
_WARMUP_STEPS = 20
Report = Callable[[Progress], None]


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training itself.

    Attributes:
        minutes: Time for training and the measurements during it.
        batch_size: Pairs in a step.
        learning_rate: Constant after 20 steps.
        max_tokens: Tokens of a query or document that are read while training.
        epochs: Maximum number of passes over the pairs.
        measure_every: Steps between measurements; a checkpoint is written at each.
        patience: Measurements without a gain until training stops.
        seed: Seed of the order of pairs.
        bfloat16: Whether matrix products are computed in bfloat16; weights and the loss stay float32.
    """

    minutes: float
    batch_size: int
    learning_rate: float
    max_tokens: int
    epochs: int
    measure_every: int
    patience: int
    seed: int
    bfloat16: bool = False


@dataclass
class Trained:
    """What training left.

    Attributes:
        curve: Measurements, the model before training first.
        best_step: Step whose weights are loaded; 0 if none was better than the model before training.
        problem: Why training ended early, or None.
    """

    curve: list[Progress]
    best_step: int
    problem: str | None = None


def train(
    model: MultiVectorEncoder,
    loss: torch.nn.Module,
    rows: Sequence[dict[str, Any]],
    settings: LoopSettings,
    measure: Callable[[], PoolScores],
    work: Path,
    report: Report,
) -> Trained:
    """Train a model in place, and leave the weights of its best step in it.

    Args:
        model: Model with the weights to train marked.
        loss: Loss over it.
        rows: `query`, `positive`, `negative_1`, … of each pair; with a teacher also `scores`.
        settings: Settings of the training.
        measure: Measures the model as it is.
        work: Folder for checkpoints. If it holds some of the same run, training goes on from the last.
        report: Called after each measurement.
    """
    measuring = _Measuring(model, settings, measure, work, report)
    on_cpu = model.device.type == "cpu"
    columns = [name for name in rows[0] if name != "scores"]
    prompts = {name: prompt_of(model, "query" if name == "query" else "document") for name in columns}
    arguments = MultiVectorEncoderTrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=_WARMUP_STEPS,
        max_grad_norm=1.0,
        weight_decay=0.0,
        max_length=settings.max_tokens,
        prompts={name: prompt for name, prompt in prompts.items() if prompt} or None,
        # The same text twice in a batch would be a negative of itself.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        seed=settings.seed,
        data_seed=settings.seed,
        save_strategy="steps",
        save_steps=settings.measure_every,
        save_total_limit=2,
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=on_cpu,
        bf16=settings.bfloat16,
        dataloader_pin_memory=not on_cpu,
    )
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        loss=loss,
        callbacks=[measuring],
    )
    trainer.remove_callback(PrinterCallback)
    measuring.losses = trainer.losses
    last = _last_checkpoint(work)
    measuring.resume(last)
    initial = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    problem = None
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except _NotFiniteError as error:
        problem = f"training stopped at step {error.step}: the loss was {error.loss}"
        if not measuring.best_step:
            model.load_state_dict(initial, strict=False)
    measuring.load_best()
    # For good, as in `_unrounded`.
    vars(model).pop("forward", None)
    return Trained(measuring.curve, measuring.best_step, problem)


def multiplies_bfloat16(device: str) -> bool:
    """Return whether a device multiplies matrices of bfloat16 faster than of float32."""
    cpu = host_cpu()
    return device.startswith("cuda") or (device == "cpu" and cpu is not None and cpu.has_bfloat16)


@contextmanager
def _unrounded(model: torch.nn.Module) -> Iterator[None]:
    """Run a model as it will be used: to train in bfloat16, accelerate gives it another `forward`, which rounds."""
    forward = vars(model).pop("forward", None)
    try:
        yield
    finally:
        if forward is not None:
            model.forward = forward


class _NotFiniteError(Exception):
    def __init__(self, step: int, loss: float) -> None:
        super().__init__(step, loss)
        self.step, self.loss = step, loss


class _Trainer(MultiVectorEncoderTrainer):
    """Checkpoints hold the trained weights only; a loss that is not finite ends the training."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.losses: list[float] = []

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Add nothing: the callback encodes examples of the data for a model card, which is not written."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        # Without dropout torch fuses attention: half the time of a step with 256 tokens, and a third of its memory.
        self.model.eval()
        loss = super().compute_loss(*args, **kwargs)
        value = float((loss[0] if isinstance(loss, tuple) else loss).detach())
        if not math.isfinite(value):
            raise _NotFiniteError(self.state.global_step + 1, value)
        self.losses.append(value)
        return loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(self.model, folder / _WEIGHTS)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        load_weights(self.model, Path(checkpoint_path) / _WEIGHTS)


class _Measuring(TrainerCallback):
    """Measures the model, keeps the weights of its best step, and decides when to stop."""

    def __init__(
        self,
        model: MultiVectorEncoder,
        settings: LoopSettings,
        measure: Callable[[], PoolScores],
        work: Path,
        report: Report,
    ) -> None:
        self.model, self.settings, self.measure, self.work, self.report = model, settings, measure, work, report
        self.losses: list[float] = []
        start = measure()
        left = 60 * settings.minutes
        self.curve = [Progress(0, None, 0.0, start.ndcg, start.positive, start.negative, 0.0, left)]
        self._seconds_before = 0.0
        self._first_step = 0
        self._began = time.monotonic()

    @property
    def best_step(self) -> int:
        """The first step with the highest nDCG@10."""
        return max(self.curve, key=lambda point: (point.ndcg, -point.step)).step

    def resume(self, checkpoint: Path | None) -> None:
        """Take up the curve up to a checkpoint; without one, forget what an earlier run left."""
        step = 0 if checkpoint is None else _step_of(checkpoint)
        stored = self.work / "curve.json"
        if step and stored.exists():
            points = [Progress(**point) for point in json.loads(stored.read_text(encoding="utf-8"))]
            self.curve += [point for point in points if 0 < point.step <= step]
            self._seconds_before = self.curve[-1].seconds
        self._first_step = step

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        seconds = self._seconds_before + time.monotonic() - self._began
        is_over = seconds >= 60 * self.settings.minutes or state.global_step >= state.max_steps
        if state.global_step % self.settings.measure_every == 0 or is_over:
            self._measure(state.global_step)
            best = [point.step for point in self.curve].index(self.best_step)
            control.should_save = True
            control.should_training_stop = is_over or len(self.curve) - 1 - best >= self.settings.patience
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The best step so far is at or before this checkpoint, so a resumed run needs no other weights.
        for path in self.work.glob("best-*.safetensors"):
            if path != self._best_file(self.best_step):
                path.unlink()

    def load_best(self) -> None:
        """Load the weights of the best step; after no better one, the model keeps its last weights."""
        if self.best_step:
            load_weights(self.model, self._best_file(self.best_step))

    def _measure(self, step: int) -> None:
        self.model.eval()
        with _unrounded(self.model):
            scores = self.measure()
        self.model.train()
        seconds = self._seconds_before + time.monotonic() - self._began
        rate = (step - self._first_step) * self.settings.batch_size / max(seconds - self._seconds_before, 1e-9)
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        self.losses.clear()
        left = max(0.0, 60 * self.settings.minutes - seconds)
        point = Progress(step, loss, rate, scores.ndcg, scores.positive, scores.negative, seconds, left)
        self.curve.append(point)
        if self.best_step == step:
            save_weights(self.model, self._best_file(step))
        write_json(self.work / "curve.json", [asdict(point) for point in self.curve])
        self.report(point)

    def _best_file(self, step: int) -> Path:
        return self.work / f"best-{step}.safetensors"


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write the weights that are trained; a reader sees the whole file or none."""
    part = path.with_suffix(".part")
    save_file({name: weight.detach().cpu() for name, weight in model.named_parameters() if weight.requires_grad}, part)
    part.replace(path)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote."""
    stored = load_file(path)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in stored:
                weight.copy_(stored[name])


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; a reader sees the whole file or the old one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(path)


def _last_checkpoint(work: Path) -> Path | None:
    whole = [path for path in work.glob("checkpoint-*") if all((path / name).exists() for name in _CHECKPOINT)]
    return max(whole, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
