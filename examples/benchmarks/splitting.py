"""How long should passages be? Documents split in several ways, and PDFs page by page.

    python examples/benchmarks/splitting.py squad DATA_FOLDER [--documents 4] [--queries 150]
    python examples/benchmarks/splitting.py medquad-qa DATA_FOLDER [--documents 300] [--queries 150]
    python examples/benchmarks/splitting.py pages DATA_FOLDER [--sizes 128 0] [--documents 18]

`squad` joins the paragraphs of each article of squad-dev and splits the article again. For each test query: nDCG@10 of
articles, each at the rank of its first passage; whether the first passage, the first three, or what a prompt of 2,000
characters holds of the ranking contains an answer and comes from the right article. Another name is a data set in BEIR
layout: the documents judged for a sample of its queries, and others up to the number asked for; nDCG@10 of documents.
`pages` reads PDFs of mmlongbench-pages, the smallest first, and ranks their pages beside BM25. Size 0 keeps documents
whole, in windows. `--headings` encodes each passage behind its heading, which is not shown.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import report

from manyvec import Document, Hit, Index, SentenceTransformerEncoder, load_encoder
from manyvec.candidates import Lexical
from manyvec.evaluation import evaluate, load_beir
from manyvec.files import FileReport, read, split

PROMPT = 2000


def ranked(
    documents: Sequence[Document], queries: Sequence[str], size: int, encoder: Any, *, headings: bool = False
) -> tuple[list[list[Hit]], dict[str, Any]]:
    """Split, encode and search; return the hits of each query, best first, and what it took."""
    passages = list(split(documents, max_tokens=size, tokenizer=encoder.tokenizer)) if size else list(documents)
    shown = {passage.id: passage for passage in passages}
    if headings:
        passages = [replace(p, text=f"{p.metadata.get('heading') or p.metadata['title']}\n{p.text}") for p in passages]
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(folder, encoder)
        started = time.monotonic()
        index.add(passages, show_progress=True)
        seconds = time.monotonic() - started
        index.optimize()
        found = index.search_many(queries, k=len(passages), lexical_weight=0)
        info = index.info()
    hits = [[replace(hit, text=shown[hit.id].text) for hit in each] for each in found]
    return hits, {
        "passages": len(passages),
        "characters_per_passage": round(sum(len(p.text) for p in shown.values()) / len(passages)),
        "token_vectors": info.tokens,
        "bytes_on_disk": info.bytes_on_disk,
        "seconds_to_encode": round(seconds, 1),
    }


def sources(hits: Sequence[Hit]) -> list[str]:
    """The documents that hits come from, each at its first passage."""
    return list(dict.fromkeys(hit.metadata["source"] for hit in hits))


def squad(data: Path, n_articles: int, n_queries: int, sizes: Sequence[int], *, headings: bool) -> dict[str, Any]:
    dataset = load_beir(data / "squad-dev")
    article_of = {document.id: document.id.rpartition("__")[0] for document in dataset.documents}
    names = list(dict.fromkeys(article_of.values()))[:: max(1, len(set(article_of.values())) // n_articles)][
        :n_articles
    ]
    articles = [
        Document(
            name,
            "\n\n".join(d.text for d in dataset.documents if article_of[d.id] == name),
            {"source": name, "title": name.replace("_", " ")},
        )
        for name in names
    ]
    lines = (data / "squad-dev" / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {row["_id"]: row["metadata"]["answers"] for row in map(json.loads, lines)}
    gold = {id: article_of[next(iter(dataset.qrels[id]))] for id in dataset.queries}
    chosen = [id for id in dataset.queries if gold[id] in names and answers[id]]
    chosen = chosen[:: max(1, len(chosen) // n_queries)][:n_queries]
    encoder, rows = minilm(), {}
    for size in sizes:
        found, row = ranked(articles, [dataset.queries[id] for id in chosen], size, encoder, headings=headings)
        runs = {id: sources(hits) for id, hits in zip(chosen, found, strict=True)}
        measures = evaluate({id: {gold[id]: 1} for id in chosen}, runs, ["nDCG@10"])
        holds = [holding(hits, gold[id], answers[id]) for id, hits in zip(chosen, found, strict=True)]
        rows[name_of(size)] = {
            "ndcg@10_of_articles": round(measures["nDCG@10"], 4),
            **{key: round(sum(each[key] for each in holds) / len(holds), 4) for key in holds[0]},
            **row,
        }
        print(size, rows[name_of(size)], file=sys.stderr)
    return {"articles": len(articles), "queries": len(chosen), "encoder": "minilm", "by_max_tokens": rows}


def holding(hits: Sequence[Hit], article: str, answers: Sequence[str]) -> dict[str, bool]:
    """Whether the first hits hold an answer and come from the right article."""
    holds = [hit.metadata["source"] == article and any(answer in hit.text for answer in answers) for hit in hits]
    in_prompt, n_left = False, PROMPT
    for hit in hits:
        shown = hit.text[: max(0, n_left)]
        n_left -= len(shown)
        in_prompt |= hit.metadata["source"] == article and any(answer in shown for answer in answers)
    return {
        "answer_in_first_passage": any(holds[:1]),
        "answer_in_first_three": any(holds[:3]),
        f"answer_in_a_prompt_of_{PROMPT}_characters": in_prompt,
    }


def judged(
    data: Path, name: str, n_documents: int, n_queries: int, sizes: Sequence[int], *, headings: bool
) -> dict[str, Any]:
    dataset = load_beir(data / name)
    generator = random.Random(0)
    queries = generator.sample([id for id in dataset.queries if id in dataset.qrels], n_queries)
    needed = {id for query in queries for id in dataset.qrels[query]}
    others = [document for document in dataset.documents if document.id not in needed]
    others = generator.sample(others, max(0, n_documents - len(needed)))
    documents = [*(document for document in dataset.documents if document.id in needed), *others]
    documents = [replace(d, metadata={"source": d.id, "title": d.metadata.get("title", "")}) for d in documents]
    encoder, rows = minilm(), {}
    qrels = {query: dataset.qrels[query] for query in queries}
    for size in sizes:
        found, row = ranked(documents, [dataset.queries[id] for id in queries], size, encoder, headings=headings)
        measures = evaluate(qrels, dict(zip(queries, map(sources, found), strict=True)), ["nDCG@10"])
        first_three = [sum(len(hit.text) for hit in hits[:3]) for hits in found]
        rows[name_of(size)] = {
            "ndcg@10": round(measures["nDCG@10"], 4),
            "characters_of_first_three": round(sum(first_three) / len(first_three)),
            **row,
        }
        print(size, rows[name_of(size)], file=sys.stderr)
    return {"documents": len(documents), "queries": len(queries), "encoder": "minilm", "by_max_tokens": rows}


def pages(data: Path, n_pdfs: int | None, sizes: Sequence[int]) -> dict[str, Any]:
    dataset = load_beir(data / "mmlongbench-pages")
    pdfs = sorted((data / "mmlongbench-pages" / "pdfs").glob("*.pdf"), key=lambda pdf: pdf.stat().st_size)[:n_pdfs]
    files = FileReport()
    started = time.monotonic()
    documents = list(read(pdfs, report=files))
    read_seconds = time.monotonic() - started
    # The data set calls a page FILE#pN.
    ids = [f"{Path(d.metadata['source']).stem}#p{d.metadata['page']}" for d in documents]
    named = [Document(id, d.text, {"source": id}) for id, d in zip(ids, documents, strict=True)]
    stems = {pdf.stem for pdf in pdfs}
    qrels = {
        query: grades
        for query, grades in dataset.qrels.items()
        if {page.rpartition("#")[0] for page in grades} <= stems
    }
    texts, encoder = [dataset.queries[query] for query in qrels], minilm()
    rows = {}
    for size in sizes:
        found, row = ranked(named, texts, size, encoder)
        rows[name_of(size)] = {
            **page_measures(qrels, dict(zip(qrels, map(sources, found), strict=True))),
            **row,
            "pages_encoded_per_second": round(len(named) / row["seconds_to_encode"], 2),
        }
        print(size, rows[name_of(size)], file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        index = Index.create(folder, encoder)
        # BM25 needs no vectors; one token a page is the least that an index holds.
        index.add([replace(d, vectors=[[1.0] + [0.0] * (encoder.dim - 1)]) for d in named], adopt_vectors=True)
        index.optimize()
        bm25 = dict(zip(qrels, index.rank(texts, Lexical(), 100), strict=True))
    return {
        "pages_with_text": len(named),
        "pdfs": len(pdfs),
        "pages_of_the_set": len(dataset.documents),
        "problems": [problem.reason for problem in files.problems],
        "queries": len(texts),
        "pages_read_per_second": round(len(named) / read_seconds, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "minilm_by_max_tokens": rows,
        "bm25": page_measures(qrels, bm25),
    }


def page_measures(qrels: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, float]:
    return {measure: round(value, 4) for measure, value in evaluate(qrels, run, ["nDCG@5", "Recall@5"]).items()}


def minilm() -> SentenceTransformerEncoder:
    return load_encoder("minilm", device="cpu")


def name_of(size: int) -> str:
    return str(size or "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="squad, pages, or the name of a data set")
    parser.add_argument("data", type=Path)
    parser.add_argument("--documents", type=int, default=None)
    parser.add_argument("--queries", type=int, default=150)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 0])
    parser.add_argument("--headings", action="store_true")
    options = parser.parse_args()
    suffix = "-headings" if options.headings else ""
    rest: dict[str, Any] = {"sizes": options.sizes, "headings": options.headings}
    if options.what == "pages":
        report.write("splitting-pages", pages(options.data, options.documents, options.sizes))
    elif options.what == "squad":
        report.write(f"splitting-squad{suffix}", squad(options.data, options.documents or 4, options.queries, **rest))
    else:
        found = judged(options.data, options.what, options.documents or 300, options.queries, **rest)
        report.write(f"splitting-{options.what}{suffix}", found)


if __name__ == "__main__":
    main()
