"""`RecentRows`: texts, metadata and spans of the documents that searches returned last, in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.storage.snapshot import Snapshot
from manyvec.storage.states import RowStates

# What Python needs for a row besides the characters of its strings: a dict, strings and an entry here.
_BYTES_PER_ROW = 700


class RecentRows:
    """Reads rows, and holds those read last while they fit a budget. May be shared by threads.

    A row is known by its row id and the table version that wrote it: one `RecentRows` serves all versions of one index,
    and never returns what another version holds.

    Args:
        budget: Bytes that the rows may take. A row that needs more than a tenth of them is not held.

    Attributes:
        n_bytes: Bytes that the rows take, about.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._rows: OrderedDict[tuple[int, int], dict[str, Any]] = OrderedDict()
        self.n_bytes = 0
        self._changing = threading.Lock()

    def read(
        self, snapshot: Snapshot, states: RowStates, positions: NDArray[np.int64], *, spans: bool
    ) -> list[dict[str, Any]]:
        """Return rows as `Snapshot.texts` does, in one call of LanceDB at most.

        Args:
            snapshot: The version to read.
            states: All rows of this version.
            positions: Positions of the rows in `states`.
            spans: Whether the rows are to have `spans`.
        """
        keys = list(zip(states.row_ids[positions].tolist(), states.updated[positions].tolist(), strict=True))
        rows = {key: row for key in keys if (row := self._held(key, spans=spans)) is not None}
        if missing := [key for key in dict.fromkeys(keys) if key not in rows]:
            read = dict(zip(missing, snapshot.texts([row_id for row_id, _ in missing], spans=spans), strict=True))
            self._hold(read)
            rows |= read
        return [rows[key] for key in keys]

    def _held(self, key: tuple[int, int], *, spans: bool) -> dict[str, Any] | None:
        with self._changing:
            row = self._rows.get(key)
            if row is None or (spans and "spans" not in row):
                return None
            self._rows.move_to_end(key)
            return row

    def _hold(self, rows: dict[tuple[int, int], dict[str, Any]]) -> None:
        with self._changing:
            for key, row in rows.items():
                if 10 * _size(row) > self._budget:
                    continue
                if "spans" in row:
                    # A view of the spans of all rows that were read together would keep them all.
                    row = row | {"spans": row["spans"].copy()}
                if key in self._rows:
                    self.n_bytes -= _size(self._rows.pop(key))
                self._rows[key] = row
                self.n_bytes += _size(row)
            while self._rows and self.n_bytes > self._budget:
                self.n_bytes -= _size(self._rows.popitem(last=False)[1])


def _size(row: dict[str, Any]) -> int:
    """Return about how many bytes of memory a row takes."""
    spans = row["spans"].nbytes if "spans" in row else 0
    # Python stores a string of one byte a character only if all characters are Latin.
    text = row["text"] or ""
    return int(_BYTES_PER_ROW + (1 if text.isascii() else 2) * len(text) + len(row["metadata"]) + spans)
