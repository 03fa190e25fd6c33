"""`ManyvecEmbedding` and `ManyvecMultiModalEmbedding`: mean-pooled token vectors, where LlamaIndex needs one vector."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import BaseModel, ConfigDict, PrivateAttr
from llama_index.core.callbacks import CallbackManager
from llama_index.core.embeddings.multi_modal_base import MultiModalEmbedding
from llama_index.core.schema import ImageType

from manyvec import Encoder, ImageReader, InputError, TokenBatch, in_thread, load_encoder


class ManyvecEmbedding(BaseEmbedding):
    """Embedding model that averages the token vectors of a late-interaction encoder. It needs no API key.

        IngestionPipeline(transformations=[SentenceSplitter(), ManyvecEmbedding()], vector_store=store)
        VectorStoreIndex.from_vector_store(store, embed_model=ManyvecEmbedding())

    An `IngestionPipeline` drops nodes without an embedding, and a `VectorStoreIndex` requires an embedding model. This
    one returns the normalized mean of the token vectors, which splitters and selectors can compare as well.
    `ManyvecVectorStore` ignores these embeddings and computes its own token vectors, so in a pipeline each text is
    encoded twice. `ManyvecVectorStore.add` and `ManyvecRetriever.add_nodes` encode it once.

    Args:
        model: Encoder, or a name for `manyvec.load_encoder`, which is loaded at the first use.
        **kwargs: Fields of LlamaIndex's `BaseEmbedding`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
    _encoder: Encoder | None = PrivateAttr(default=None)

    def __init__(self, model: str | Encoder = "minilm", **kwargs: Any) -> None:
        # to_dict writes model_name, so from_dict passes it.
        model = kwargs.pop("model_name", model)
        super().__init__(model_name=model if isinstance(model, str) else model.name, **kwargs)
        self._encoder = None if isinstance(model, str) else model

    def __getstate__(self) -> dict[str, Any]:
        # LlamaIndex drops an encoder that cannot be pickled, and the copy would look for a model of its name.
        state = BaseModel.__getstate__(self)
        # Callback handlers belong to this process.
        return {**state, "__dict__": {**state["__dict__"], "callback_manager": CallbackManager()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseModel.__setstate__(self, state)

    @classmethod
    def class_name(cls) -> str:
        return "ManyvecEmbedding"

    def _get_query_embedding(self, query: str) -> Embedding:
        return _pooled(self._loaded().encode_queries([query]))[0]

    _aget_query_embedding = in_thread(_get_query_embedding)

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return _pooled(self._loaded().encode_documents(texts))

    _aget_text_embedding = in_thread(_get_text_embedding)

    _aget_text_embeddings = in_thread(_get_text_embeddings)

    def _loaded(self) -> Encoder:
        if self._encoder is None:
            self._encoder = load_encoder(self.model_name)
        return self._encoder


class ManyvecMultiModalEmbedding(ManyvecEmbedding, MultiModalEmbedding):
    """A `ManyvecEmbedding` that embeds images as well, for a `MultiModalVectorStoreIndex`.

        MultiModalVectorStoreIndex(nodes, image_vector_store=store, embed_model=model, image_embed_model=model)

    Args:
        model: Encoder that reads images, or a name for `manyvec.load_encoder`.
        **kwargs: Fields of LlamaIndex's `BaseEmbedding`.
    """

    @classmethod
    def class_name(cls) -> str:
        return "ManyvecMultiModalEmbedding"

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        encoder = self._loaded()
        if not isinstance(encoder, ImageReader):
            raise InputError(f"{encoder.name} reads no images: use a model that does, such as ColPali")
        images: list[Any] = [path.read() if isinstance(path, BytesIO) else Path(path) for path in img_file_paths]
        return _pooled(encoder.encode_images(images))

    _aget_image_embedding = in_thread(_get_image_embedding)

    _aget_image_embeddings = in_thread(_get_image_embeddings)


def _pooled(tokens: TokenBatch) -> list[Embedding]:
    """Return the mean token vector of each text; a text without tokens gets zeros."""
    vectors = np.zeros((len(tokens), tokens.dim), np.float32)
    if len(kept := np.flatnonzero(tokens.lengths)):
        vectors[kept] = tokens.select(kept).pooled()
    return [[float(x) for x in vector] for vector in vectors]
