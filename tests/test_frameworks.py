"""One index, written and read by the core, LangChain, LlamaIndex and the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from manyvec import Index, load_encoder
from manyvec.cli import main
from manyvec.testing import ColorEncoder

langchain_manyvec = pytest.importorskip("langchain_manyvec", reason="langchain-manyvec is not installed")
llama_manyvec = pytest.importorskip("llama_index.retrievers.manyvec", reason="the LlamaIndex package is not installed")

TEXTS = {
    "late": "Late interaction keeps one vector for each token",
    "bread": "Bread is baked from flour and water",
    "météo": "Rain is expected in Zürich",
}
QUERY = "a vector for every token"


def write_with_langchain(uri):
    from langchain_core.documents import Document

    documents = [Document(id=i, page_content=text, metadata={"year": n}) for n, (i, text) in enumerate(TEXTS.items())]
    langchain_manyvec.ManyvecRetriever.from_documents(documents, uri, filter_columns={"year": int})


def write_with_llama_index(uri):
    from llama_index.core.schema import TextNode

    nodes = [TextNode(id_=i, text=text, metadata={"year": n}) for n, (i, text) in enumerate(TEXTS.items())]
    llama_manyvec.ManyvecRetriever.from_nodes(nodes, uri, filter_columns={"year": int})


def write_with_the_command(uri):
    path = Path(f"{uri}.jsonl")
    lines = [{"_id": i, "text": text, "metadata": {"year": n}} for n, (i, text) in enumerate(TEXTS.items())]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert main(["index", str(path), "--index", uri, "--column", "year=int"]) == 0


@pytest.mark.parametrize("write", [write_with_langchain, write_with_llama_index, write_with_the_command])
def test_whoever_wrote_an_index_everyone_reads_the_same_from_it(tmp_path, capsys, write):
    uri = str(tmp_path / "index")
    write(uri)
    hits = Index.open(uri).search(QUERY, k=3)
    assert hits[0].id == "late"
    assert {hit.id: hit.text for hit in hits} == TEXTS
    # What the hits are ordered by: BM25 takes part with this model.
    expected = [(hit.id, hit.text, hit.final_score, hit.metadata["year"]) for hit in hits]

    found = langchain_manyvec.ManyvecRetriever.from_uri(uri, k=3).invoke(QUERY)
    assert [(d.id, d.page_content, d.metadata["final_score"], d.metadata["year"]) for d in found] == expected
    assert [d.metadata["score"] for d in found] == [hit.score for hit in hits]

    nodes = llama_manyvec.ManyvecRetriever.from_uri(uri, similarity_top_k=3).retrieve(QUERY)
    assert [(n.node_id, n.text, n.score, n.metadata["year"]) for n in nodes] == expected

    capsys.readouterr()
    assert main(["search", QUERY, "--index", uri, "-k", "3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["hits"]
    assert [(hit["id"], hit["text"], hit["final_score"], hit["metadata"]["year"]) for hit in printed] == expected


def test_an_index_that_langchain_filled_answers_through_every_door_of_llama_index_with_the_same_scores(tmp_path):
    from llama_index.core import VectorStoreIndex
    from llama_index.core.schema import NodeWithScore, TextNode
    from llama_index.embeddings.manyvec import ManyvecEmbedding
    from llama_index.postprocessor.manyvec import ManyvecRerank
    from llama_index.vector_stores.manyvec import ManyvecVectorStore

    uri = str(tmp_path / "index")
    write_with_langchain(uri)
    for query in (QUERY, "what is bread made of", "the weather in Zürich"):
        found = langchain_manyvec.ManyvecRetriever.from_uri(uri, k=3).invoke(query)
        expected = [(d.id, d.page_content, d.metadata["final_score"]) for d in found]

        nodes = llama_manyvec.ManyvecRetriever.from_uri(uri, similarity_top_k=3).retrieve(query)
        assert [(n.node_id, n.text, n.score) for n in nodes] == expected
        assert [n.metadata for n in nodes] == [{"year": d.metadata["year"]} for d in found]

        store = ManyvecVectorStore.create(uri, "minilm", filter_columns={"year": int})
        index = VectorStoreIndex.from_vector_store(store, embed_model=ManyvecEmbedding("minilm"))
        nodes = index.as_retriever(similarity_top_k=3).retrieve(query)
        assert [(n.node_id, n.text, n.score) for n in nodes] == expected

        plain = [NodeWithScore(node=TextNode(id_=i, text=text)) for i, text in TEXTS.items()]
        nodes = ManyvecRerank(index=store.client, top_n=3).postprocess_nodes(plain, query_str=query)
        # Rerankers order by MaxSim alone.
        pure = store.client.search(query, 3, lexical_weight=0)
        assert [(n.node_id, n.text) for n in nodes] == [(hit.id, hit.text) for hit in pure]
        assert [n.score for n in nodes] == pytest.approx([hit.score for hit in pure], abs=1e-5)


def test_a_filter_means_the_same_everywhere(tmp_path, capsys):
    from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

    uri = str(tmp_path / "index")
    write_with_langchain(uri)
    expected = [hit.id for hit in Index.open(uri).search(QUERY, filter={"year": [1, 2]})]
    assert set(expected) == {"bread", "météo"}

    retriever = langchain_manyvec.ManyvecRetriever.from_uri(uri)
    assert [d.id for d in retriever.invoke(QUERY, filter={"year": [1, 2]})] == expected
    filters = MetadataFilters(filters=[MetadataFilter(key="year", value=1, operator=FilterOperator.GTE)])
    retriever = llama_manyvec.ManyvecRetriever.from_uri(uri, similarity_top_k=3, filters=filters)
    assert [n.node_id for n in retriever.retrieve(QUERY)] == expected
    capsys.readouterr()
    main(["search", QUERY, "--index", uri, "--json", "--where", "year>=1"])
    assert [hit["id"] for hit in json.loads(capsys.readouterr().out)["hits"]] == expected


def test_the_quick_start_prints_hits_through_core_and_frameworks(tmp_path):
    source = Path(__file__).parents[1] / "examples"
    script = tmp_path / "examples" / "quickstart.py"
    (tmp_path / "examples" / "data").mkdir(parents=True)
    script.write_text((source / "quickstart.py").read_text())
    (tmp_path / "examples" / "data" / "squad_sample.jsonl").write_text(
        (source / "data" / "squad_sample.jsonl").read_text()
    )
    for expected in ("84 passages added, 0 unchanged", "0 passages added, 84 unchanged"):
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
        assert done.stdout.startswith(expected)
        assert done.stdout.count("Oxygen__") >= 6
        assert "LangChain" in done.stdout
        assert "LlamaIndex" in done.stdout
    assert load_encoder("minilm").dim == 384


@pytest.mark.parametrize("readme", ["README.md", "integrations/llama_index/README.md"])
def test_the_python_of_a_readme_runs_as_it_stands(tmp_path, monkeypatch, capsys, readme):
    text = (Path(__file__).parents[1] / readme).read_text()
    # The hub is not there for tests; what stands in for its model reads images, too.
    pytest.importorskip("PIL.Image").new("RGB", (64, 64), "red").save(tmp_path / "page-3.png")
    text = text.replace('encoder="vidore/colqwen2.5-v0.2"', "encoder=ColorEncoder()")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert blocks
    monkeypatch.chdir(tmp_path)
    names = {"ColorEncoder": ColorEncoder}
    for block in blocks:
        exec(compile(block, readme, "exec"), names)
    if readme == "README.md":
        assert capsys.readouterr().out.startswith("1 a1 ")
