"""Keep an index in step with a folder: add new files, replace changed ones, delete removed ones.

python examples/llama_index/ingestion_pipeline.py

No API key is needed: LlamaIndex's pipeline requires an embedding model, and `ManyvecEmbedding` uses the encoder of the
index.
"""

import tempfile
from pathlib import Path

from llama_index.core import SimpleDirectoryReader, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.manyvec import ManyvecEmbedding
from llama_index.vector_stores.manyvec import ManyvecVectorStore

NOTES = {
    "bread.txt": "Bread is baked from flour, water, salt and yeast. It rises for two hours.",
    "tea.txt": "Green tea is steeped for two minutes in water of 80 degrees.",
    "colbert.txt": "ColBERT keeps one vector for every token, and compares each of them.",
}


def run(notes: Path, store: ManyvecVectorStore, state: Path) -> None:
    pipeline = IngestionPipeline(
        transformations=[SentenceSplitter(chunk_size=256, chunk_overlap=16), ManyvecEmbedding()],
        vector_store=store,
        docstore=SimpleDocumentStore(),
        docstore_strategy=DocstoreStrategy.UPSERTS_AND_DELETE,
    )
    if state.exists():
        pipeline.load(str(state))
    nodes = pipeline.run(documents=SimpleDirectoryReader(notes, filename_as_id=True).load_data())
    pipeline.persist(str(state))
    print(f"{len(nodes)} nodes were made, the store holds {store.client.count()}")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        notes, state = Path(folder) / "notes", Path(folder) / "pipeline"
        notes.mkdir()
        for name, text in NOTES.items():
            (notes / name).write_text(text, encoding="utf-8")
        store = ManyvecVectorStore.create(Path(folder) / "index", "minilm", filter_columns={"file_name": str})
        run(notes, store, state)
        run(notes, store, state)
        (notes / "tea.txt").write_text("Black tea is steeped for four minutes in boiling water.", encoding="utf-8")
        (notes / "bread.txt").unlink()
        run(notes, store, state)

        index = VectorStoreIndex.from_vector_store(store, embed_model=ManyvecEmbedding())
        for node in index.as_retriever(similarity_top_k=2).retrieve("how long is tea steeped"):
            print(f"  {node.score:5.2f}  {node.metadata['file_name']}: {node.text}")


if __name__ == "__main__":
    main()
