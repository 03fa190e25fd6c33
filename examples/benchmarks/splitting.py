"""How long should passages be? Whole articles split in several ways, and PDFs page by page.

    python examples/benchmarks/splitting.py squad DATA_FOLDER [--articles 12] [--queries 400]
    python examples/benchmarks/splitting.py pages DATA_FOLDER

`squad` joins the paragraphs of each article of squad-dev and splits the article again. For each test query: nDCG@10 of
articles, each at the rank of its first passage; whether the first passage, the first three, or what a prompt of 2,000
characters holds of the ranking contains an answer and comes from the right article. `pages` reads the PDFs of
mmlongbench-pages as text, whole pages as documents, and ranks them beside BM25.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report

from manyvec import Document, Index, load_encoder
from manyvec.candidates import Lexical
from manyvec.evaluation import evaluate, load_beir
from manyvec.files import FileReport, read, split

SIZES = (64, 128, 256, 512, None)
PROMPT = 2000


def squad(data: Path, n_articles: int, n_queries: int) -> dict[str, Any]:
    dataset = load_beir(data / "squad-dev")
    article_of = {document.id: document.id.rpartition("__")[0] for document in dataset.documents}
    names = list(dict.fromkeys(article_of.values()))[:: max(1, len(set(article_of.values())) // n_articles)][
        :n_articles
    ]
    articles = [
        Document(name, "\n\n".join(d.text for d in dataset.documents if article_of[d.id] == name), {"source": name})
        for name in names
    ]
    lines = (data / "squad-dev" / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {row["_id"]: row["metadata"]["answers"] for row in map(json.loads, lines)}
    gold = {id: article_of[next(iter(dataset.qrels[id]))] for id in dataset.queries}
    chosen = [id for id in dataset.queries if gold[id] in names and answers[id]]
    chosen = chosen[:: max(1, len(chosen) // n_queries)][:n_queries]
    encoder = load_encoder("minilm", device="cpu")
    rows = {}
    for size in SIZES:
        passages = list(split(articles, max_tokens=size, tokenizer=encoder.tokenizer)) if size else articles
        with tempfile.TemporaryDirectory() as folder:
            index = Index.create(folder, encoder)
            started = time.monotonic()
            index.add(passages, show_progress=True)
            seconds = time.monotonic() - started
            index.optimize()
            ranked = index.search_many([dataset.queries[id] for id in chosen], k=len(passages))
            info = index.info()
        found = {"1": 0, "3": 0, "prompt": 0}
        run = {}
        for id, hits in zip(chosen, ranked, strict=True):
            run[id] = list(dict.fromkeys(hit.metadata["source"] for hit in hits))
            holds = [
                hit.metadata["source"] == gold[id] and any(answer in hit.text for answer in answers[id]) for hit in hits
            ]
            found["1"] += any(holds[:1])
            found["3"] += any(holds[:3])
            n_left = PROMPT
            for hit in hits:
                shown = hit.text[:n_left]
                n_left -= len(shown)
                if hit.metadata["source"] == gold[id] and any(answer in shown for answer in answers[id]):
                    found["prompt"] += 1
                    break
                if n_left <= 0:
                    break
        measures = evaluate({id: {gold[id]: 1} for id in chosen}, run, ["nDCG@10"])
        rows[str(size or "whole articles")] = {
            "passages": len(passages),
            "characters_per_passage": round(sum(len(p.text) for p in passages) / len(passages)),
            "ndcg@10_of_articles": round(measures["nDCG@10"], 4),
            "answer_in_first_passage": round(found["1"] / len(chosen), 4),
            "answer_in_first_three": round(found["3"] / len(chosen), 4),
            f"answer_in_a_prompt_of_{PROMPT}_characters": round(found["prompt"] / len(chosen), 4),
            "token_vectors": info.tokens,
            "seconds_to_encode": round(seconds, 1),
        }
        print(size, rows[str(size or "whole articles")], file=sys.stderr)
    return {"articles": len(articles), "queries": len(chosen), "encoder": "minilm", "by_max_tokens": rows}


def pages(data: Path) -> dict[str, Any]:
    dataset = load_beir(data / "mmlongbench-pages")
    files = FileReport()
    started = time.monotonic()
    documents = list(read(data / "mmlongbench-pages" / "pdfs", report=files))
    read_seconds = time.monotonic() - started
    # The data set calls a page FILE#pN.
    named = [Document(f"{Path(d.metadata['source']).stem}#p{d.metadata['page']}", d.text, {}) for d in documents]
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(folder, load_encoder("minilm", device="cpu"))
        started = time.monotonic()
        index.add(named, show_progress=True)
        encode_seconds = time.monotonic() - started
        index.optimize()
        texts = list(dataset.queries.values())
        late = [[hit.id for hit in hits] for hits in index.search_many(texts, 100)]
        runs = {"minilm": late, "bm25": index.rank(texts, Lexical(), 100)}
    measures = ["nDCG@5", "Recall@5"]
    return {
        "pages_with_text": len(named),
        "pages_of_the_set": len(dataset.documents),
        "problems": [problem.reason for problem in files.problems],
        "queries": len(texts),
        "pages_read_per_second": round(len(named) / read_seconds, 1),
        "pages_encoded_per_second": round(len(named) / encode_seconds, 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **{
            name: {
                measure: round(value, 4)
                for measure, value in evaluate(
                    dataset.qrels, dict(zip(dataset.queries, ranked, strict=True)), measures
                ).items()
            }
            for name, ranked in runs.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("squad", "pages"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--articles", type=int, default=12)
    parser.add_argument("--queries", type=int, default=400)
    options = parser.parse_args()
    if options.what == "squad":
        report.write("splitting-squad", squad(options.data, options.articles, options.queries))
    else:
        report.write("splitting-pages", pages(options.data))


if __name__ == "__main__":
    main()
