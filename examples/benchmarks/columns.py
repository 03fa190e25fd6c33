"""Measure what it takes to add filter columns to an index that has documents.

    python examples/benchmarks/columns.py [--documents 20000]

Adds an integer, a string and a list column at once to documents of 60 tokens (`HashEncoder`, 128 dims), whose metadata
also holds other keys, and compares that with a second index that was created with these columns. Processor seconds,
bytes written, and rows rewritten because SQL could not read their value; one in a hundred strings has quotes in it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import report

from manyvec import F, Index
from manyvec.testing import HashEncoder

COLUMNS = {"year": int, "title": str, "author.names": list[str]}


def documents(n: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"d{i}",
            "text": " ".join(f"word{(7 * i + j) % 500}" for j in range(60)),
            "metadata": {
                "about": "x" * 100,
                "year": 1990 + i % 35,
                "title": f'The "{i}"' if i % 100 == 0 else f"Title {i}",
                "author": {"names": ["Ada", f"Bo {i % 50}"], "born": 1950},
            },
        }
        for i in range(n)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=20_000)
    n = parser.parse_args().documents
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(Path(folder) / "later", HashEncoder(dim=128))
        declared = Index.create(Path(folder) / "declared", HashEncoder(dim=128), filter_columns=COLUMNS)
        for each in (index, declared):
            each.add(documents(n))
        info = index.info()
        started, cpu = time.perf_counter(), time.process_time()
        index.add_filter_columns(COLUMNS)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        states = index._store.snapshot().states()
        # Rows that LanceDB filled have the version of the last column that was added; rewritten ones a later one.
        added_at = sorted({*states.updated.tolist()})[0]
        for condition in (F("year") == 2001, F("title") == 'The "500"', F("author.names").contains("Bo 7")):
            assert index.ids(condition) == declared.ids(condition)
        bytes_before, bytes_after = info.bytes_on_disk or 0, index.info().bytes_on_disk or 0
        report.write(
            "columns",
            {
                "documents": n,
                "token_vectors": info.tokens,
                "megabytes_before": round(bytes_before / 1e6, 1),
                "megabytes_written": round((bytes_after - bytes_before) / 1e6, 2),
                "seconds": round(seconds, 2),
                "processor_seconds": round(cpu_seconds, 2),
                "rows_rewritten": int((states.updated != added_at).sum()),
            },
        )


if __name__ == "__main__":
    main()
