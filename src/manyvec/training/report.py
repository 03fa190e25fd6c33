"""What `tune` reports: progress, figures with intervals, `tune.json` and the curve as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Measured:
    """A mean over queries, with the interval that a bootstrap gives it.

    Attributes:
        mean: Mean nDCG@10, or mean difference of two.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        n_queries: Number of queries.
    """

    mean: float
    low: float
    high: float
    n_queries: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Compared:
    """A model before and after training, on the same queries.

    Attributes:
        before: nDCG@10 of the model as it was.
        after: nDCG@10 of the tuned model.
        gain: Mean of the differences, with a paired bootstrap interval.
    """

    before: Measured
    after: Measured
    gain: Measured


@dataclass(frozen=True)
class Progress:
    """The state of a run at a measurement.

    Attributes:
        step: Optimizer steps so far.
        loss: Mean loss since the last measurement; None before the first step.
        pairs_per_second: Training pairs per second since the run started or was resumed.
        ndcg: nDCG@10 of the validation queries on a pool of documents.
        positive: Mean similarity of a query and its best answer.
        negative: Mean similarity of a query and the best other document.
        seconds: Seconds of training so far.
        seconds_left: Seconds until the time is used up.
    """

    step: int
    loss: float | None
    pairs_per_second: float
    ndcg: float
    positive: float
    negative: float
    seconds: float
    seconds_left: float

    def __str__(self) -> str:
        loss = "-" if self.loss is None else f"{self.loss:.3f}"
        return (
            f"step {self.step:,}: loss {loss}, {self.pairs_per_second:.1f} pairs/s, nDCG@10 {self.ndcg:.3f}, "
            f"similarity of answers {self.positive:.3f} and of the best others {self.negative:.3f}, "
            f"at most {self.seconds_left / 60:.0f} min left"
        )


@dataclass(frozen=True)
class TuneReport:
    """What tuning did, and what it gained.

    Attributes:
        before: nDCG@10 of the model as it was, on held-out queries over the whole corpus.
        after: nDCG@10 of the tuned model on the same queries.
        gain: Mean of the differences, with a paired bootstrap interval.
        unseen: The same for each data set of `unseen`, by its name.
        curve: Measurements during training, on a pool of documents; the first is the model as it was.
        dropped: Reason to number of queries, judgments or pairs that were not used.
        warnings: What should be looked at, in one sentence each.
        is_better: Whether the tuned model is safely better than before, so that it was saved.
        out: Folder of the tuned model; None if nothing was written.
        lexical_weight: Share of BM25 that ranks held-out queries best with the tuned model. Indexes with this model
            search with it where a search names none.
        details: Settings, versions, hash of the data, split, and which step and interpolation were chosen.
    """

    before: Measured
    after: Measured
    gain: Measured
    is_better: bool
    out: str | None = None
    lexical_weight: float = 0
    unseen: Mapping[str, Compared] = field(default_factory=dict)
    curve: Sequence[Progress] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON can hold."""
        return asdict(self)

    def write(self, folder: Path) -> None:
        """Write `tune.json` and the curve as `tune.html`."""
        (folder / "tune.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        (folder / "tune.html").write_text(self._page(), encoding="utf-8")

    def _page(self) -> str:
        width, height, values = 640, 240, [point.ndcg for point in self.curve]
        last = max((point.step for point in self.curve), default=0) or 1
        low, high = min(values, default=0.0), max(values, default=1.0)
        scale = (high - low) or 1.0
        points = " ".join(
            f"{40 + (width - 60) * point.step / last:.1f},{20 + (height - 40) * (high - point.ndcg) / scale:.1f}"
            for point in self.curve
        )
        rows = "".join(f"<li>{html.escape(str(point))}</li>" for point in self.curve)
        title = html.escape(f"{self.details.get('model', 'model')} tuned on {self.details.get('data', 'data')}")
        return (
            f'<!doctype html><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
            f"<p>Held-out nDCG@10: {self.before} before, {self.after} after, gain {self.gain}.</p>"
            f'<svg viewBox="0 0 {width} {height}" width="{width}"><polyline points="{points}" fill="none" '
            f'stroke="currentColor"/><text x="4" y="24" font-size="11">{high:.3f}</text>'
            f'<text x="4" y="{height - 16}" font-size="11">{low:.3f}</text></svg><ol start="0">{rows}</ol>\n'
        )
