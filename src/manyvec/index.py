"""`Index`: documents in, exact late-interaction search out, kept in one LanceDB database."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version as package_version
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from manyvec.errors import EncoderError, InputError, ManifestError, StoreError
from manyvec.filters import ColumnType, Filter, parse_filter, to_sql
from manyvec.models.loading import Encoder, load_encoder
from manyvec.retrieval.candidates import Auto, Candidates, Query, Scope
from manyvec.retrieval.centroid_lists import PostingListLoader
from manyvec.retrieval.search import SearchOptions, search
from manyvec.storage.cache import CachedVersion
from manyvec.storage.ingest import AddReport, add_batch, batches
from manyvec.storage.lance import disk_bytes, where_ids
from manyvec.storage.maintenance import encode_residuals, extend_lists
from manyvec.storage.schema import FILTER_PREFIX, Manifest, content_hash
from manyvec.storage.table import Store
from manyvec.timing import stage
from manyvec.types import Document, Hit
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.cuda import scorer_on
from manyvec.vectors.maxsim import Scorer, Scores

DEFAULT_CACHE_BYTES = 2 * 2**30
# Scores of so many query-document pairs are held at a time.
_MAX_SCORES = 16 * 2**20

FilterLike = Filter | Mapping[str, Any]


@dataclass(frozen=True)
class IndexInfo:
    """What an index holds. Bytes on disk count every version still kept; they are None for a bucket."""

    uri: str
    documents: int
    tokens: int
    model: str
    dim: int
    storage: str
    pool_factor: float
    filter_columns: dict[str, str]
    version: int
    bytes_on_disk: int | None
    bytes_in_memory: int
    cache_bytes: int


class Index:
    """A late-interaction index. May be shared by threads; other processes' commits are seen by the next call.

    Make one with `Index.create` or `Index.open`.
    """

    def __init__(self, store: Store, encoder: Encoder | None, *, cache_bytes: int, scorer: Scorer) -> None:
        self.cache_bytes = cache_bytes
        self.candidates: Candidates = Auto()
        self._store = store
        self._encoder = encoder
        self._scorer = scorer
        self._resident: CachedVersion | None = None
        self._lists = PostingListLoader(store)
        self._writing = threading.RLock()
        self._loading = threading.Lock()

    @classmethod
    def create(
        cls,
        uri: str | PathLike[str],
        encoder: str | Encoder = "minilm",
        *,
        filter_columns: Mapping[str, Any] | None = None,
        storage: str = "float16",
        pool_factor: float = 1,
        exist_ok: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        device: str = "cpu",
        filters: None = None,
    ) -> Index:
        """Make an empty index.

        Args:
            uri: a folder, or `s3://`, `gs://`, `az://`.
            encoder: a name for `load_encoder`, or an encoder.
            filter_columns: Metadata keys that searches can filter on, with their types: `str`, `int`, `float`, `bool`,
                `datetime`, or `list[...]` of one. Other metadata is stored and returned all the same.
            storage: how token vectors are kept, for 128 dims in 256, 130, 66, 36 or 16 bytes: `float16`, `int8`,
                `int4`, `residual` (2 bits a dim around centroids, once there are 65,536 token vectors for `optimize` to
                draw these from) or `binary` (signs). What each loses is in
                `examples/benchmarks/results/storage-128.json`.
            pool_factor: keep 1 in so many token vectors of a document, means of similar ones.
            exist_ok: Open the index if there is one already. It must have this encoder and, if given, these filter
                columns; its storage and pooling stay what they are.
            cache_bytes: memory for what searches need: ids, words, centroid lists, and as many token vectors as still
                fit; the others are read from disk whenever they are scored. Besides, a process that searches takes up
                to 500 MB, most of it for Python, torch, LLVM and LanceDB, and what the model takes
                (`examples/benchmarks/growth.py`). Ids, words and lists are held even if they alone are more than this:
                about 700 bytes for a document of 30 tokens.
            device: where documents are scored. On `cuda` those in the cache lie in the GPU's memory as well, and up to
                50,000,000 token vectors are all scored; what does not fit there is scored on the CPU.
            filters: Former name of `filter_columns`; passing it is an error.

        Raises:
            InputError: there is an index already, a filter column has an unknown type, or there is no such storage or
                device.
            ManifestError: with `exist_ok`, the index there has another encoder or other filter columns.
            StoreError: the place cannot be written.
        """
        if filters is not None:
            raise InputError("Index.create has no argument 'filters': it is called filter_columns")
        scorer = scorer_on(device)
        encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
        manifest = Manifest(
            model=encoder.name,
            fingerprint=encoder.fingerprint,
            dim=encoder.dim,
            filter_columns={name: str(ColumnType.of(name, kind)) for name, kind in (filter_columns or {}).items()},
            storage=storage,
            pool_factor=pool_factor,
            images=hasattr(encoder, "encode_images"),
            library=package_version("manyvec"),
        )
        try:
            store = Store.create(_uri(uri), manifest)
        except InputError:
            if not exist_ok:
                raise
            index = cls.open(uri, encoder, cache_bytes=cache_bytes, device=device)
            if filter_columns is not None and index.filter_columns != manifest.filter_columns:
                raise ManifestError(
                    f"the index {index.uri} has the filter columns {index.filter_columns}, not "
                    f"{manifest.filter_columns}: "
                    "open it with its own, or build a new index"
                ) from None
            return index
        return cls(store, encoder, cache_bytes=cache_bytes, scorer=scorer)

    @classmethod
    def open(
        cls,
        uri: str | PathLike[str],
        encoder: str | Encoder | None = None,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        device: str = "cpu",
    ) -> Index:
        """Open an index.

        Args:
            encoder: by default the one the index was built with, loaded when it is first needed; nothing is
                downloaded unasked, so a hub model that this machine does not have yet must be named here.
            cache_bytes, device: see `create`.

        Raises:
            IndexNotFoundError: there is none.
            ManifestError: its description is missing or damaged, or the encoder is not the one it was built with.
        """
        index = cls(Store.open(_uri(uri)), None, cache_bytes=cache_bytes, scorer=scorer_on(device))
        if encoder is not None:
            index._encoder = index._fitting(load_encoder(encoder) if isinstance(encoder, str) else encoder)
        return index

    def __repr__(self) -> str:
        return f"Index({self.uri!r}, model={self.model!r})"

    @property
    def uri(self) -> str:
        return self._store.uri

    @property
    def model(self) -> str:
        """Name of the encoder the index was built with."""
        return self._store.manifest.model

    @property
    def filter_columns(self) -> dict[str, str]:
        """The declared filter columns and their types."""
        return dict(self._store.manifest.filter_columns)

    @property
    def reads_images(self) -> bool:
        """Whether documents may be page images: the encoder reads them, and the index was made to keep them."""
        return self._store.manifest.images

    @property
    def encoder(self) -> Encoder:
        """The encoder the index was built with, loaded at the first use."""
        if self._encoder is None:
            try:
                encoder = load_encoder(self.model, local_files_only=True)
            except EncoderError as error:
                raise EncoderError(
                    f"the index {self.uri} was built with {self.model!r}, which cannot be loaded here. "
                    f"Pass it: Index.open({self.uri!r}, encoder=...). {error}"
                ) from error
            self._encoder = self._fitting(encoder)
        return self._encoder

    def add(self, documents: Iterable[Document | Mapping[str, Any]], *, show_progress: bool = False) -> AddReport:
        """Add documents; one whose id is there already replaces the old one.

        Documents are encoded and committed in batches of 256, or of 1/64 of the index if that is more. One that is
        stored with the same text and image is not encoded again, so a run that was killed is completed by running it
        once more. Of equal ids in one call the last wins.

        Args:
            documents: `Document`s, or dicts with `id`, `text` and, if wanted, `metadata`; any number of them. One with
                an `image` is encoded as that page, not as its text.
            show_progress: draw a bar with documents per second.

        Raises:
            InputError: a document cannot be stored, or its image not be read, by this encoder or at all; those before
                its batch are.
            StoreError: the database could not be written; the batches before are stored.
        """
        from tqdm.auto import tqdm

        total = len(documents) if isinstance(documents, Sized) else None
        report = AddReport()
        with self._writing, tqdm(total=total, unit=" documents", disable=not show_progress) as bar:
            try:
                for batch in batches(documents, self.count()):
                    report += add_batch(self._store, batch, lambda: self.encoder)
                    bar.update(len(batch))
            except (InputError, EncoderError, StoreError) as error:
                if not report.total:
                    raise
                note = f"{error} (The {report.total} documents before are stored; add them all again to go on.)"
                raise type(error)(note) from error
        return report

    def get(self, ids: str | Sequence[str]) -> list[Document]:
        """The documents with these ids, in this order, images as bytes; unknown ids are left out."""
        ids = _ids(ids)
        snapshot = self._store.snapshot()
        known = snapshot.find(ids)
        wanted = [known[id].row_id for id in ids if id in known]
        rows = zip(snapshot.texts(wanted), snapshot.images(wanted), strict=True)
        return [Document(row["id"], row["text"], json.loads(row["metadata"]), image=image) for row, image in rows]

    def ids(self, filter: FilterLike | None = None) -> list[str]:
        """The ids of all documents, or of those that pass a filter, in order."""
        snapshot = self._store.snapshot()
        states = snapshot.states()
        where = self._where(filter)
        passing = states.ids if where is None else states.ids[np.isin(states.row_ids, snapshot.row_ids(where))]
        return sorted(passing.tolist())

    def token_vectors(self, ids: str | Sequence[str]) -> TokenBatch:
        """Token vectors of stored documents, as stored, for scoring them without encoding them again.

        Returns:
            One text for each id, in this order; an id may come twice, and one that is not stored has no token.
        """
        wanted = [ids] if isinstance(ids, str) else list(ids)
        snapshot = self._store.snapshot()
        rows = {id: stored.row_id for id, stored in snapshot.find(_ids(wanted)).items()}
        nothing = TokenBatch.unchecked(np.empty((0, self._store.manifest.dim), np.float16), np.zeros(2, np.int64))
        stored = TokenBatch.concatenate([snapshot.tokens(list(rows.values())), nothing]) if rows else nothing
        positions = {id: position for position, id in enumerate(rows)}
        return stored.select([positions.get(id, len(rows)) for id in wanted])

    def delete(self, ids: str | Sequence[str] | None = None, *, filter: FilterLike | None = None) -> int:
        """Delete documents by id, or all that pass a filter; answers how many there were. Unknown ids do no harm.

        Raises:
            InputError: neither or both are given.
        """
        if (ids is None) == (filter is None):
            raise InputError("delete takes ids or a filter, one of the two")
        with self._writing:
            if ids is None:
                return self._store.delete(self._where(filter) or "true")
            return sum(self._store.delete(where) for where in where_ids(_ids(ids)))

    def count(self, filter: FilterLike | None = None) -> int:
        """How many documents there are, or pass a filter."""
        return self._store.snapshot().count(self._where(filter))

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        filter: FilterLike | None = None,
        depth: int | None = None,
        lexical_weight: float = 0,
        evidence: bool = False,
    ) -> list[Hit]:
        """Find the documents that match a query best.

        Args:
            query: a text; one without any token finds nothing.
            k: how many hits, at most; 0 gives none.
            filter: made with `manyvec.F`, or a dict such as `{"lang": "en"}`; only documents that pass are looked at.
            depth: how many candidates the centroid lists give where there are any (see `optimize`), by default as many
                as hold 10,000 token vectors and at least 32, and up to 300 that come close to the best of them. Small
                indexes, and small parts of large ones that a filter leaves, are scored whole.
            lexical_weight: of BM25 in the order of the hits (`Hit.final_score`), 0 to 1; its best 300 documents are
                candidates too. With `minilm` and 0.3 nine of twelve judged sets gain, one loses 0.014
                (`examples/benchmarks/mix.py`); other models have not been measured, so 0 is the default.
            evidence: say of each hit which words matched (`Hit.evidence`), read from the version that was searched;
                of pages, with their images, where on the page.

        Returns:
            Hits, best first; equal scores in the order of ids.

        Raises:
            InputError: `query` is no text, `k` is negative, or `lexical_weight` not between 0 and 1.
            FilterError: the filter names an undeclared column, or a value has another type.
        """
        if not isinstance(query, str):
            raise InputError(f"a query is a text, got {type(query).__name__}")
        return self.search_many(
            [query], k, filter=filter, depth=depth, lexical_weight=lexical_weight, evidence=evidence
        )[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        filter: FilterLike | None = None,
        depth: int | None = None,
        lexical_weight: float = 0,
        evidence: bool = False,
    ) -> list[list[Hit]]:
        """`search` for several queries, encoded in one pass and scored in one: a list of hits for each."""
        if isinstance(queries, str) or not all(isinstance(query, str) for query in queries):
            raise InputError("search_many takes a list of texts; for one text use search")
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise InputError(f"k must be a whole number, 0 or more, got {k!r}")
        if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 1):
            raise InputError(f"depth must be a whole number, 1 or more, got {depth!r}")
        if not isinstance(lexical_weight, (int, float)) or not 0 <= lexical_weight <= 1:
            raise InputError(f"lexical_weight must be between 0 and 1, got {lexical_weight!r}")
        where = self._where(filter)
        if not queries or k == 0:
            return [[] for _ in queries]
        tokens = self._encode_queries(queries)
        wanted = SearchOptions(k, depth, lexical_weight, evidence, getattr(self.encoder, "crops_images", False))
        documents = self._documents()
        try:
            return self._search_version(documents, where, queries, tokens, wanted)
        except StoreError:
            # Another process may have removed this version from under us; a newer one is as good an answer.
            if self._store.version == documents.snapshot.version:
                raise
            return self._search_version(self._documents(), where, queries, tokens, wanted)

    def score(self, query: str | TokenBatch, ids: Sequence[str], *, texts: Sequence[str] | None = None) -> Scores:
        """Score stored documents by id, exactly, from their stored vectors: what a reranker needs.

        Args:
            query: a text, or the token vectors of one as a batch of one.
            ids: of documents, in any order; one may come twice.
            texts: (n,) a document that is stored with another text than this counts as unknown; images do not count.

        Returns:
            (n,) float32 in the order of `ids`, all of one version of the index; NaN for an unknown id, -inf for a
            query without tokens.
        """
        tokens = self._encode_queries([query]) if isinstance(query, str) else query
        resident = self._documents()
        try:
            known = resident.snapshot.find(_ids(ids))
            hashes = [None] * len(ids) if texts is None else [content_hash(text) for text in texts]
            rows = {
                i: known[id].row_id
                for i, (id, text_hash) in enumerate(zip(ids, hashes, strict=True))
                if id in known and text_hash in (None, known[id].text_hash)
            }
            positions, again = np.unique(resident.positions(np.array([*rows.values()], np.int64)), return_inverse=True)
            scores = np.full(len(ids), np.nan, np.float32)
            scores[[*rows]] = resident.score(self._scorer, tokens, positions)[0][again] if rows else []
        except StoreError:
            # Another process may have removed this version from under us; see `search_many`.
            if self._store.version == resident.snapshot.version:
                raise
            return self.score(tokens, ids, texts=texts)
        return scores

    def rank(
        self, queries: Sequence[str], candidates: Candidates, depth: int = 100, *, filter: FilterLike | None = None
    ) -> list[list[str]]:
        """Ids that a candidate generator finds by itself, best first: for comparing first stages with `search`."""
        where = self._where(filter)
        tokens = self._encode_queries(queries)
        scope = self._scope(self._documents(), where)
        found = [candidates.find(Query(text, tokens[i]), scope, depth) for i, text in enumerate(queries)]
        ids = scope.documents.states.ids
        return [ids[slice(None) if positions is None else positions].tolist() for positions in found]

    def optimize(self, *, keep: timedelta = timedelta(days=7), show_progress: bool = False) -> None:
        """Merge small files, bring all indexes up to date, and free disk space.

        From 200,000 token vectors on this makes centroid lists, or extends them by what is new: searches then find
        candidates in them instead of scoring every document. Only stored vectors are read; nothing is encoded again.
        With `residual` storage it first takes new vectors into codes, drawing the centroids when there are enough.
        When the corpus has outgrown its codebook it is drawn anew, and the old one serves until the new is complete.

        Args:
            keep: how long replaced and deleted data stays on disk. `timedelta(0)` frees all of it, and fails searches
                that other processes are in the middle of.
            show_progress: draw a bar with documents per second.
        """
        with self._writing:
            encode_residuals(self._store, show_progress=show_progress)
            self._store.optimize(keep)
            if isinstance(self.candidates, Auto):
                more_than = self.candidates.exhaustive_tokens
                extend_lists(self._store, more_than=more_than, show_progress=show_progress)

    def info(self) -> IndexInfo:
        manifest = self._store.manifest
        states = self._store.snapshot().states()
        return IndexInfo(
            uri=self.uri,
            documents=len(states.row_ids),
            tokens=int(states.n_tokens.sum()),
            model=manifest.model,
            dim=manifest.dim,
            storage=manifest.storage,
            pool_factor=manifest.pool_factor,
            filter_columns=dict(manifest.filter_columns),
            version=self._store.version,
            bytes_on_disk=disk_bytes(self.uri),
            bytes_in_memory=self._resident.bytes_held if self._resident else 0,
            cache_bytes=self.cache_bytes,
        )

    def _fitting(self, encoder: Encoder) -> Encoder:
        """The encoder, if it is the one the index was built with."""
        manifest = self._store.manifest
        if encoder.dim != manifest.dim or encoder.fingerprint != manifest.fingerprint:
            same_name = " (other weights or settings under the same name)" if encoder.name == manifest.model else ""
            raise ManifestError(
                f"the index {self.uri} holds {manifest.dim}-dim vectors of {manifest.model}; the encoder is "
                f"{encoder.name} ({encoder.dim}-dim){same_name}. Open it with {manifest.model}, or build a new index."
            )
        return encoder

    @stage("fetch")
    def _documents(self) -> CachedVersion:
        """The newest version of the table, its token vectors in memory as far as the budget goes."""
        resident = self._resident
        if resident is not None and resident.snapshot.version == self._store.version:
            return resident
        with self._loading:
            snapshot = self._store.snapshot()
            if self._resident is None or self._resident.snapshot.version != snapshot.version:
                budget = self.cache_bytes - self._lists.bytes_held(snapshot)
                load = CachedVersion.load if self._resident is None else self._resident.refreshed
                self._resident = load(snapshot, budget)
            return self._resident

    def _where(self, condition: FilterLike | None) -> str | None:
        if condition is None:
            return None
        return to_sql(parse_filter(condition), self._store.manifest.columns, FILTER_PREFIX)

    @stage("encode")
    def _encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        tokens = self.encoder.encode_queries(queries)
        if len(tokens) != len(queries) or tokens.dim != self._store.manifest.dim:
            raise EncoderError(
                f"{self.model} gave {tokens!r} for {len(queries)} queries of dim {self._store.manifest.dim}"
            )
        return tokens

    @stage("candidates")
    def _scope(self, documents: CachedVersion, where: str | None, k: int = 0) -> Scope:
        passing = None if where is None else documents.passing(where)
        return Scope(documents, self._lists, where, passing, k, self._scorer)

    def _search_version(
        self,
        documents: CachedVersion,
        where: str | None,
        queries: Sequence[str],
        tokens: TokenBatch,
        wanted: SearchOptions,
    ) -> list[list[Hit]]:
        scope = self._scope(documents, where, wanted.k)
        hits: list[list[Hit]] = []
        for part in _parts(len(queries), len(documents)):
            part_tokens = tokens.select(np.arange(part.start, part.stop))
            hits += search(scope, self.candidates, queries[part], part_tokens, wanted)
        return hits


def _uri(uri: str | PathLike[str]) -> str:
    text = fspath(uri)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"an index needs a folder or a bucket's URI, got {uri!r}")
    return text if "://" in text else str(Path(text).expanduser())


def _ids(ids: str | Sequence[str]) -> list[str]:
    found = [ids] if isinstance(ids, str) else list(ids)
    for id in found:
        if not isinstance(id, str):
            raise InputError(f"an id is a text, got {id!r}")
    return list(dict.fromkeys(found))


def _parts(n_queries: int, n_documents: int) -> Iterator[slice]:
    """Runs of queries whose scores fit into memory together."""
    size = max(1, _MAX_SCORES // max(1, n_documents))
    for start in range(0, n_queries, size):
        yield slice(start, min(start + size, n_queries))
