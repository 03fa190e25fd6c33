"""manyvec: late-interaction retrieval for RAG. One vector per token, one exact score.

    index = manyvec.Index.create("./papers", encoder="minilm", filter_columns={"year": int})
    index.add([{"id": "a1", "text": "…", "metadata": {"year": 2024}}])
    hits = index.search("what is late interaction", k=5, filter=manyvec.F("year") >= 2023)

The public names are declared in `__init__.pyi` and imported when they are first used, so `import manyvec` loads neither
torch nor a database.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
