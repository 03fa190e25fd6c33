"""Measure BM25 from postings in memory against LanceDB's full-text index: the 300 best documents for a query.

    python examples/benchmarks/postings.py DATA [SET ...] [--documents 100000]

Postings are numpy arrays of documents and frequencies by word. Words are those of LanceDB's tokenizer, so the scores
are the same. `--documents` repeats the texts, shuffled word by word, up to this number. Figures are processor
milliseconds, medians over the queries; building is in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import report

from manyvec import Index
from manyvec.evaluation import load_beir
from manyvec.testing import HashEncoder

K1, B, N_BEST = np.float32(1.2), np.float32(0.75), 300
# Where the words of RE2 and of LanceDB's tokenizer are the same; other texts take the slow way.
SAFE = r"^[\x00-\x{24f}\x{2000}-\x{206f}]*$"


class Postings:
    """Documents and frequencies of each word, over texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        column = pa.array(texts)
        is_safe = pc.match_substring_regex(column, SAFE).to_numpy(zero_copy_only=False)
        split = pc.split_pattern_regex(column.filter(pa.array(is_safe)), r"[^\pL\pN]+")
        spelled = split.flatten().dictionary_encode()
        spellings = spelled.dictionary.to_pylist()
        numbers: dict[str, int] = {}
        # One call for all, because each takes 20 µs. Stop words stay in, so that none is missing.
        stems = [token.text for token in lancedb.tokenize(" ".join(spellings), remove_stop_words=False)]
        wanted = [s for s in spellings if s and len(s.encode()) <= 40]
        assert len(stems) == len(wanted)
        stem_of = dict(zip(wanted, stems, strict=True))
        stop = {s for s in stem_of if not s.isascii() or len(s) < 12}
        stop = {s for s in stop if not lancedb.tokenize(s)}
        word_of = np.array(
            [-1 if s not in stem_of or s in stop else numbers.setdefault(stem_of[s], len(numbers)) for s in spellings]
        )
        words = word_of[spelled.indices.to_numpy()]
        documents = np.repeat(np.flatnonzero(is_safe), pc.list_value_length(split).to_numpy())
        more = [
            (numbers.setdefault(token.text, len(numbers)), i)
            for i in np.flatnonzero(~is_safe).tolist()
            for token in lancedb.tokenize(texts[i])
        ]
        rest = np.array(more, np.int64).reshape(-1, 2)
        words, documents = np.concatenate([words, rest[:, 0]]), np.concatenate([documents, rest[:, 1]])
        documents, words = documents[words >= 0], words[words >= 0]
        lengths = np.bincount(documents, minlength=len(texts)).astype(np.float32)
        keys, counts = np.unique(words * len(texts) + documents, return_counts=True)
        self.numbers, self.n = numbers, len(texts)
        self.documents, self.counts = (keys % len(texts)).astype(np.int32), counts.astype(np.uint16)
        self.starts = np.searchsorted(keys // len(texts), np.arange(len(numbers) + 1))
        self.norms = K1 * (1 - B + B * lengths / lengths.mean())

    @property
    def n_bytes(self) -> int:
        return self.documents.nbytes + self.counts.nbytes + self.starts.nbytes + self.norms.nbytes

    def best(self, query: str) -> tuple[np.ndarray, np.ndarray]:
        scores = np.zeros(self.n, np.float32)
        for token in lancedb.tokenize(query):
            if (number := self.numbers.get(token.text)) is None:
                continue
            rows = slice(self.starts[number], self.starts[number + 1])
            documents, frequencies = self.documents[rows], self.counts[rows].astype(np.float32)
            weight = np.log((self.n - len(documents) + 0.5) / (len(documents) + 0.5) + 1)
            scores[documents] += weight * (K1 + 1) * frequencies / (frequencies + self.norms[documents])
        best = np.argpartition(-scores, min(N_BEST, self.n - 1))[:N_BEST]
        return best, scores[best]


def cpu(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("sets", nargs="*", default=["scifact"])
    parser.add_argument("--documents", type=int, nargs="*", default=[], help="Sizes beside that of the set.")
    options = parser.parse_args()
    results = {}
    for name, size in ((name, size) for name in options.sets for size in (0, *options.documents)):
        data = load_beir(options.data / name)
        texts = [document.text for document in data.documents]
        if size:
            rng = np.random.default_rng(0)
            chosen = [texts[i].split() for i in rng.integers(0, len(texts), size)]
            texts = [" ".join(rng.permutation(words)[:30]) for words in chosen]
        queries = list(data.queries.values())[:100]
        built: list[Postings] = []
        seconds = cpu(lambda texts=texts, built=built: built.append(Postings(texts)))
        slow = cpu(lambda texts=texts: [lancedb.tokenize(text) for text in texts[:1000]]) * len(texts) / 1000
        with tempfile.TemporaryDirectory() as folder:
            index: Any = Index.create(folder, HashEncoder(8))
            index.add({"id": f"{i:07}", "text": text} for i, text in enumerate(texts))
            index.optimize()
            version = index._reader.current()
            contenders = {
                "LanceDB": lambda query, version=version: version.match(query, N_BEST),
                "postings": lambda query, postings=built[0]: postings.best(query),
            }
            taken: dict[str, list[float]] = {contender: [] for contender in contenders}
            for query in queries:
                for contender, work in contenders.items():
                    taken[contender].append(1000 * cpu(lambda work=work, query=query: work(query)))
            found, scored = version.match(queries[0], 50), built[0].best(queries[0])
        scores_of = dict(zip(scored[0].tolist(), scored[1].tolist(), strict=True))
        difference = max(
            abs(scores_of[int(version.states.ids[p])] - s)
            for p, s in zip(found.positions.tolist(), found.scores.tolist(), strict=True)
        )
        results[f"{name}, {len(texts)} documents"] = {
            "milliseconds of a query": {c: round(statistics.median(values), 2) for c, values in taken.items()},
            "seconds to build, tokens by RE2": round(seconds, 2),
            "seconds to build, tokens by LanceDB": round(slow, 2),
            "MB": round(built[0].n_bytes / 2**20, 1),
            "largest difference of a score": round(difference, 6),
        }
        print(results, flush=True)
    report.write("postings", results)


if __name__ == "__main__":
    main()
