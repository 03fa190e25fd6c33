"""Who scores on a device: what fits there is scored there, the rest on the CPU."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import DeviceMemoryError, InputError
from manyvec.vectors.batch import StoredBatch, TokenBatch
from manyvec.vectors.cuda import DeviceDocuments
from manyvec.vectors.maxsim import MaxSimScorer, ScoredPositions, Scorer, Scores

logger = logging.getLogger(__name__)


class DeviceScorer:
    """Scores documents on a device that keeps them between searches, and on the CPU those that do not fit there.

    A batch is copied to the device when it is first scored, and is freed there when it is freed on the host.
    Thread-safe.

    Args:
        device: Name of a torch device, such as `cuda` or `cuda:1`.

    Raises:
        InputError: The device is not available, or not of a supported type.
    """

    def __init__(self, device: str) -> None:
        import torch

        try:
            if torch.device(device).type not in ("cuda", "cpu"):
                raise InputError(f"token vectors are scored on the CPU or on CUDA, not on {device!r}")
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"the device {device!r} cannot be used, score on 'cpu': {error}") from error
        self.device = device
        self._on_cpu = MaxSimScorer()
        # None for a batch that does not fit on the device.
        self._held: WeakKeyDictionary[StoredBatch, DeviceDocuments | None] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def holds(self, batches: Iterable[StoredBatch]) -> bool:
        """See `Scorer`."""
        return all(self._uploaded(batch) is not None for batch in batches)

    def score_many(
        self, queries: TokenBatch, documents: StoredBatch, subset: NDArray[np.int64] | None = None
    ) -> Scores:
        """See `Scorer`."""
        there = self._uploaded(documents)
        if there is not None:
            try:
                return there.score_many(queries, subset)
            except DeviceMemoryError as error:
                self._refuse(documents, error)
        return self._on_cpu.score_many(queries, documents, subset)

    def top_k(
        self, queries: TokenBatch, documents: StoredBatch, k: int, subset: NDArray[np.int64] | None = None
    ) -> list[ScoredPositions]:
        """See `Scorer`. Only the best scores are copied from the device."""
        there = self._uploaded(documents)
        if there is not None:
            try:
                return there.top_k(queries, k, subset)
            except DeviceMemoryError as error:
                self._refuse(documents, error)
        return self._on_cpu.top_k(queries, documents, k, subset)

    def _uploaded(self, documents: StoredBatch) -> DeviceDocuments | None:
        with self._lock:
            if documents not in self._held:
                try:
                    self._held[documents] = DeviceDocuments.upload(documents, self.device)
                except DeviceMemoryError as error:
                    self._refuse(documents, error)
            return self._held[documents]

    def _refuse(self, documents: StoredBatch, error: DeviceMemoryError) -> None:
        """Score this batch on the CPU from now on: another attempt would fail as late as this one."""
        logger.warning("%s; they are scored on the CPU instead", error)
        self._held[documents] = None


def scorer_on(device: str) -> Scorer:
    """Return the scorer for a torch device: `cpu` or as for `DeviceScorer`."""
    return MaxSimScorer() if device == "cpu" else DeviceScorer(device)
