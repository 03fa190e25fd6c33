"""What a user holds of an index: where it lies, how it was opened, what it holds, and what has been loaded so far."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from manyvec.errors import EncoderError, InputError, StoreError, check_count, check_fraction, check_ids
from manyvec.filters import FilterLike, parse_filter, to_sql
from manyvec.filters.values import read_metadata
from manyvec.models.loading import load_encoder
from manyvec.models.precomputed import Vectors
from manyvec.models.protocol import Encoder
from manyvec.retrieval.candidates import Auto, Candidates
from manyvec.retrieval.lexical import WordStatistics
from manyvec.retrieval.queries import AnyQuery, encode
from manyvec.retrieval.reader import IndexReader, scorer_for
from manyvec.retrieval.threads import in_thread
from manyvec.storage.ingest.adding import rows_of
from manyvec.storage.lance import TABLE, Place
from manyvec.storage.schema import Manifest, stored_as
from manyvec.storage.table import Store
from manyvec.types import Document, IndexInfo
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    import pyarrow as pa

_Handle = TypeVar("_Handle", bound="IndexHandle")
_COUNTED = (str, int, float, bool)


class IndexHandle:
    """Opens an index when it is first needed, closes it, and travels to other processes.

    Pickling and copying keep the URI, the encoder and the options, never what was loaded; the copy opens the index at
    its first use. Use it as a context manager to close it at the end of a block.

    Args:
        place: Where the index lies.
        encoder: Name of a model or an encoder; None for the model in the manifest.
        cache_bytes: Memory budget for searches.
        device: Where a model named by a string runs and where documents are scored.
        score_device: Where documents are scored, if not on `device`.

    Raises:
        InputError: There is no such device.
    """

    def __init__(
        self, place: Place, encoder: str | Encoder | None, *, cache_bytes: int, device: str, score_device: str | None
    ) -> None:
        scorer_for(device, score_device)
        self.uri = place.uri
        self._place = place
        self.candidates: Candidates = Auto()
        self.cache_bytes = cache_bytes
        self._device = device
        self._score_device = score_device
        self._given_encoder = encoder
        # Whether the first `add` to an empty index declares filter columns.
        self._infers_columns = False
        self._start(None)

    def _start(self, store: Store | None) -> None:
        self._open_store = store
        self._open_reader: IndexReader | None = None
        self._loaded_encoder: Encoder | None = None
        self._is_closed = False
        self._opening = threading.RLock()
        self._writing = threading.RLock()

    def __repr__(self) -> str:
        table = "" if self.table_name is None else f", table_name={self.table_name!r}"
        if self._is_closed or self._open_store is None:
            return f"{type(self).__name__}({self.uri!r}{table}{', closed' if self._is_closed else ''})"
        return f"{type(self).__name__}({self.uri!r}{table}, model={self._open_store.manifest.model!r})"

    def __enter__(self: _Handle) -> _Handle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory that the index holds. Any further use of it is an error."""
        with self._opening:
            self._start(None)
            self._is_closed = True

    @property
    def table_name(self) -> str | None:
        """Name of the index's table, if several indexes share the database; None for the usual one."""
        return None if self._place.table == TABLE else self._place.table

    @property
    def model(self) -> str:
        """Name of the encoder that the index was built with."""
        return self._store.manifest.model

    @property
    def fingerprint(self) -> str:
        """Hash of the weights and settings of that encoder."""
        return self._store.manifest.fingerprint

    @property
    def filter_columns(self) -> dict[str, str]:
        """The declared filter columns and their types."""
        return self._store.filter_columns

    @property
    def reads_images(self) -> bool:
        """Whether documents may be page images: the encoder reads them, and the index was created to store them."""
        return self._store.manifest.images

    @property
    def encoder(self) -> Encoder:
        """The encoder that the index was built with, loaded at the first use."""
        return self._encoder_for(self._store.manifest)

    def info(self) -> IndexInfo:
        """Return what the index holds and how much space it takes."""
        snapshot = self._store.snapshot()
        manifest, states = snapshot.manifest, snapshot.states()
        return IndexInfo(
            uri=self.uri,
            documents=len(states.row_ids),
            duplicates=len(states.row_ids) - len({*states.ids.tolist()}),
            tokens=int(states.n_tokens.sum()),
            model=manifest.model,
            dim=manifest.dim,
            storage=manifest.storage,
            pool_factor=manifest.pool_factor,
            filter_columns=dict(manifest.filter_columns),
            lexical_weight=manifest.lexical_weight,
            version=snapshot.version,
            bytes_on_disk=self._place.disk_bytes(),
            bytes_in_memory=self._reader.bytes_held,
            cache_bytes=self.cache_bytes,
        )

    def get(self, ids: str | Sequence[str], *, vectors: bool = False) -> list[Document]:
        """Return the documents with these ids, in this order, images as bytes; unknown ids are left out.

        Args:
            ids: One id or several.
            vectors: Whether documents are to have their token vectors, as float16, and spans.
        """
        return self._reader.documents(list(dict.fromkeys(check_ids(ids))), with_vectors=vectors)

    def ids(self, filter: FilterLike | None = None) -> list[str]:
        """Return the ids of all documents, or of those that pass a filter, sorted."""
        snapshot = self._store.snapshot()
        return snapshot.document_ids(self._where(filter, snapshot.manifest))

    def token_vectors(self, ids: str | Sequence[str]) -> TokenBatch:
        """Return the token vectors of documents as they are stored, for scoring them without encoding them again.

        Returns:
            One entry for each id, in this order. An id may occur more than once; an unknown id has no tokens.
        """
        return self._reader.token_vectors(check_ids(ids))

    def count(self, filter: FilterLike | None = None) -> int:
        """Return the number of documents, or of those that pass a filter."""
        snapshot = self._store.snapshot()
        return snapshot.count(self._where(filter, snapshot.manifest))

    def value_counts(self, key: str) -> dict[str | int | float | bool, int]:
        """Return the values of a metadata key with their numbers of documents, those of most documents first.

        Each item of a list counts. Dates and nested values are left out, and so are documents without the key. A
        declared filter column is read without the other metadata.

        Args:
            key: Metadata key, or the name of a filter column such as "author.born".
        """
        snapshot = self._store.snapshot()
        column = stored_as(key) if key in snapshot.manifest.filter_columns else None
        counts: Counter[str | int | float | bool] = Counter()
        for rows in snapshot.scan([column or "metadata"]):
            for row in rows:
                value = row[column] if column else read_metadata(row["metadata"]).get(key)
                counts.update(
                    item for item in (value if isinstance(value, list) else [value]) if isinstance(item, _COUNTED)
                )
        return dict(sorted(counts.items(), key=lambda item: (-item[1], str(item[0]))))

    def rows(self, documents: Iterable[Document | Mapping[str, Any]], *, adopt_vectors: bool = False) -> pa.Table:
        """Return documents as rows of this index, for another program to append, such as a worker of Ray.

        Documents are checked and encoded as `add` does it; nothing is written. An append does not look for ids that
        are stored already; see `duplicates`.

        Args:
            documents: Documents with distinct ids, or dicts of their arguments.
            adopt_vectors: Whether to take vectors that come with documents; see `Index.add`.

        Returns:
            Table with the schema of the index's table, in the order of the documents.

        Raises:
            InputError: A document cannot be stored, or an id occurs more than once.
        """
        return rows_of(self._store, documents, lambda: self.encoder, adopts_vectors=adopt_vectors)

    def duplicates(self) -> list[str]:
        """Return the ids, sorted, that are stored more than once, because another program has appended them.

        `Index.optimize` keeps the newest row of each.
        """
        counts = Counter(self._store.snapshot().states().ids.tolist())
        return sorted(id for id, count in counts.items() if count > 1)

    def statistics(self, texts: str | Sequence[str]) -> WordStatistics:
        """Return what BM25 needs to know of this index to score documents for all words of some texts."""
        return self._reader.statistics([texts] if isinstance(texts, str) else texts)

    def rank_mixed(
        self,
        queries: Sequence[AnyQuery],
        lexical_weights: Sequence[float],
        depth: int = 10,
        *,
        filter: FilterLike | None = None,
    ) -> dict[float, list[list[str]]]:
        """Rank all documents by MaxSim mixed with BM25 at several weights, to choose one; see `choose_weight`.

        Every document is scored once, and words are looked up once.

        Args:
            queries: Queries as in `Index.search`, with the same `filter`.
            lexical_weights: Shares of BM25, each from 0 to 1.
            depth: Number of documents to return for each query.

        Returns:
            For each weight, ids for each query, best first.

        Raises:
            InputError: A weight is not between 0 and 1, or another argument is invalid.
        """
        weights = [check_fraction(weight, "lexical_weight") for weight in lexical_weights]
        version = self._reader.current()
        manifest = version.snapshot.manifest
        where = self._where(filter, manifest)
        texts, tokens = encode(queries, lambda: self._encoder_for(manifest), manifest.dim)
        return self._reader.rank_mixed(version, texts, tokens, weights, check_count(depth, "depth", minimum=1), where)

    aget, aids, acount = in_thread(get), in_thread(ids), in_thread(count)
    avalue_counts = in_thread(value_counts)

    def _where(self, condition: FilterLike | None, manifest: Manifest) -> str | None:
        if condition is None:
            return None
        return to_sql(parse_filter(condition), manifest.columns, stored_as)

    @property
    def _store(self) -> Store:
        store = self._open_store
        if store is None:
            with self._opening:
                if self._is_closed:
                    raise StoreError(f"the index {self.uri} is closed: open it again with Index.open")
                store = self._open_store = self._open_store or Store.open(self._place, self.cache_bytes)
        return store

    @property
    def _reader(self) -> IndexReader:
        reader = self._open_reader
        if reader is None:
            store = self._store
            with self._opening:
                scorer = scorer_for(self._device, self._score_device)
                reader = self._open_reader = self._open_reader or IndexReader(store, scorer, self.cache_bytes)
        return reader

    def _encoder_for(self, manifest: Manifest) -> Encoder:
        """Return the encoder of an index with this manifest: this one, or another one that has taken its place."""
        encoder = self._loaded_encoder
        if encoder is None or encoder.fingerprint != manifest.fingerprint:
            if isinstance(self._given_encoder, str):
                encoder = load_encoder(self._given_encoder, device=self._device)
            elif self._given_encoder is not None:
                encoder = self._given_encoder
            else:
                encoder = self._encoder_by_name(manifest)
            encoder = self._loaded_encoder = manifest.fitted(encoder, self.uri)
        return encoder

    def _encoder_by_name(self, manifest: Manifest) -> Encoder:
        if (outside := Vectors.of(manifest.model, manifest.dim, manifest.fingerprint)) is not None:
            return outside
        try:
            return load_encoder(manifest.model, device=self._device, local_files_only=True)
        except EncoderError as error:
            raise EncoderError(
                f"the index {self.uri} was built with {manifest.model!r}, which cannot be loaded here. "
                f"Pass it: Index.open({self.uri!r}, encoder=...). {error}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        if self.uri.startswith("memory://"):
            raise InputError("an index in memory:// exists in this process only: it cannot be pickled")
        check_pickles(self._given_encoder)
        names = ("candidates", "cache_bytes", "_device", "_score_device", "_given_encoder", "_infers_columns")
        # Without storage options: a pickle may be written to a disk, and where it is loaded the environment has them.
        place = Place(self._place.uri, self._place.table)
        return {"uri": self.uri, "_place": place, **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start(None)

    def anew(self: _Handle, *, by_manifest: bool = False) -> _Handle:
        """Return another handle with the same options, which opens the index at its first use.

        Args:
            by_manifest: Use the model that the index was built with, instead of this handle's encoder.
        """
        other = copy.deepcopy(self)
        other._start(None)
        if by_manifest:
            other._given_encoder = None
        else:
            other._loaded_encoder = self._loaded_encoder
        return other

    def __deepcopy__(self: _Handle, memo: dict[int, Any]) -> _Handle:
        """Return a handle with the same encoder and table, and with memory of its own."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.candidates = copy.deepcopy(self.candidates, memo)
        copied._start(self._open_store)
        copied._loaded_encoder, copied._is_closed = self._loaded_encoder, self._is_closed
        return copied


def check_pickles(encoder: str | Encoder | None) -> None:
    """Raise an `EncoderError` if an encoder that a user passed as an object cannot be pickled."""
    if encoder is None or isinstance(encoder, str):
        return
    # cloudpickle, which Ray and Dask use, can pickle more than pickle; where it is loaded it decides.
    cloudpickle = sys.modules.get("cloudpickle") or sys.modules.get("ray.cloudpickle")
    try:
        (cloudpickle or pickle).dumps(encoder)
    except Exception as error:
        raise EncoderError(
            f"the encoder {encoder.name} cannot be pickled ({error}): pass the name of a model instead of an object"
        ) from error
