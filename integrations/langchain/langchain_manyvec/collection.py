"""`DocumentCollection`: the methods of the vector store that write documents or read them by id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from os import PathLike
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore

from langchain_manyvec._convert import as_stored, page_document, store
from manyvec import FilterLike, InputError, in_thread
from manyvec.cluster import AnyIndex


class DocumentCollection(VectorStore):
    """Documents in a manyvec index, under the names of LangChain's `VectorStore` and of its widely used stores.

    Args:
        index: Index or cluster to read and write.
    """

    def __init__(self, index: AnyIndex) -> None:
        self.index = index

    def add_documents(
        self,
        documents: Iterable[Document],
        *,
        ids: Sequence[str | None] | None = None,
        show_progress: bool = False,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[str]:
        """Add documents. A document whose id exists is replaced.

        A document without an id gets one derived from its text and metadata, so adding it twice stores it once. If an
        id occurs more than once in a call, the last document wins.

        Args:
            documents: Documents with text and with metadata that JSON can represent. Documents without text are left
                out and logged.
            ids: One id per document, None for the document's own.
            show_progress: Whether to draw a progress bar.
            batch_size: Ignored. LangChain's indexing API passes it to every vector store.
            **options: Not accepted.

        Returns:
            The ids of the stored documents, in their order.

        Raises:
            InputError: A document cannot be stored, or the numbers of ids and documents differ; nothing is added.
        """
        _reject("add_documents", options)
        return store(self.index, list(documents), ids, show_progress=show_progress)

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Add texts with their metadata, see `add_documents`.

        Args:
            texts: Texts to add.
            metadatas: One dict per text. Defaults to no metadata.
            ids: One id per text, None for an id derived from text and metadata.
            **kwargs: Further arguments of `add_documents`.
        """
        texts = list(texts)
        given = metadatas if metadatas is not None else [{}] * len(texts)
        if len(given) != len(texts):
            raise InputError(f"got {len(texts)} texts and {len(given)} metadatas: pass one dict per text")
        documents = [Document(text, metadata=metadata or {}) for text, metadata in zip(texts, given, strict=True)]
        return self.add_documents(documents, ids=ids, **kwargs)

    def add_images(
        self,
        uris: Sequence[str | PathLike[str]],
        metadatas: Sequence[dict[str, Any]] | None = None,
        ids: Sequence[str | None] | None = None,
        *,
        texts: Sequence[str] | None = None,
    ) -> list[str]:
        """Add page images, for an index whose model reads images.

        Args:
            uris: Paths of image files.
            metadatas: One dict per image. Defaults to no metadata.
            ids: One id per image, None for an id derived from image, text and metadata.
            texts: One text per image, which BM25 finds and searches return as `page_content`. Defaults to no text.

        Returns:
            The ids, in the order of the images.

        Raises:
            InputError: The model reads no images, a file cannot be read, or the numbers of arguments differ; nothing is
                added.
        """
        columns: list[Sequence[Any]] = [
            texts if texts is not None else [""] * len(uris),
            metadatas if metadatas is not None else [{}] * len(uris),
            ids if ids is not None else [None] * len(uris),
        ]
        if any(len(column) != len(uris) for column in columns):
            raise InputError(f"got {len(uris)} images: pass one text, one dict and one id per image, or none at all")
        pages = [page_document(Path(uri), *row) for uri, *row in zip(uris, *columns, strict=True)]
        self.index.add(pages)
        return [page.id for page in pages]

    aadd_images = in_thread(add_images)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Return the documents with these ids, in this order. Unknown ids are skipped."""
        return [as_stored(document) for document in self.index.get(ids)]

    def get(
        self,
        ids: str | Sequence[str] | None = None,
        where: FilterLike | None = None,
        limit: int | None = None,
        offset: int = 0,
        include: str | Sequence[str] = ("metadatas", "documents"),
    ) -> dict[str, list[Any]]:
        """Return stored documents by id or by filter, as columns.

        Args:
            ids: Ids to return, in this order; unknown ids are skipped. Defaults to all, sorted by id.
            where: Condition that documents must pass.
            limit: Maximum number of documents.
            offset: Number of documents to skip.
            include: Columns to return besides `ids`: `documents` (the texts), `metadatas` and `embeddings` (token
                vectors, one array of shape (n_tokens, dim) per document).

        Returns:
            A list per column, all in the same order.

        Raises:
            InputError: A column is unknown, or `limit` or `offset` is negative.
        """
        include = [include] if isinstance(include, str) else include
        if unknown := set(include) - {"documents", "metadatas", "embeddings"}:
            raise InputError(f"include takes documents, metadatas and embeddings, got {sorted(unknown)[0]!r}")
        if offset < 0 or (limit is not None and limit < 0):
            raise InputError(f"limit and offset must be non-negative integers, got {limit!r} and {offset!r}")
        chosen = self.index.ids(where)
        if ids is not None:
            passing = set(chosen)
            chosen = [id for id in dict.fromkeys([ids] if isinstance(ids, str) else ids) if id in passing]
        documents = self.index.get(chosen[offset : None if limit is None else offset + limit])
        columns: dict[str, list[Any]] = {"ids": [document.id for document in documents]}
        if "documents" in include:
            columns["documents"] = [document.text for document in documents]
        if "metadatas" in include:
            columns["metadatas"] = [dict(document.metadata) for document in documents]
        if "embeddings" in include:
            columns["embeddings"] = list(self.index.token_vectors(columns["ids"]))
        return columns

    aget = in_thread(get)

    def update_documents(self, ids: Sequence[str], documents: Sequence[Document]) -> list[str]:
        """Replace the documents with these ids. A document whose text is unchanged is not re-encoded.

        Args:
            ids: One id per document; a document with an unknown id is added.
            documents: New texts and metadata.

        Returns:
            The ids of the stored documents.
        """
        return self.add_documents(documents, ids=ids)

    aupdate_documents = in_thread(update_documents)

    def delete(self, ids: list[str] | None = None, *, filter: FilterLike | None = None, **options: Any) -> bool:
        """Delete documents by id, or all that pass a filter.

        Args:
            ids: Ids to delete; unknown ids are ignored.
            filter: Condition on the documents to delete; `{}` deletes all.
            **options: Not accepted.

        Returns:
            Always True.

        Raises:
            InputError: Neither or both are given.
        """
        _reject("delete", options)
        self.index.delete(ids, filter=filter)
        return True

    def delete_collection(self) -> None:
        """Delete all documents and free their disk space. The empty index and its columns remain usable.

        Searches that other processes are running at the same time fail.
        """
        self.index.delete(filter={})
        self.index.optimize(keep=timedelta(0))

    adelete_collection = in_thread(delete_collection)


def _reject(method: str, options: Mapping[str, Any]) -> None:
    """Raise on unknown arguments: a misspelled `filter` of `delete`, for example, must not be ignored."""
    if options:
        raise TypeError(f"{method} takes no argument {sorted(options)[0]!r}")
