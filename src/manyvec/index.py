"""`Index`: add documents, search them by exact late interaction; everything lies in one LanceDB database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

from manyvec.errors import InputError, ManifestError, check_ids
from manyvec.filters import FilterLike
from manyvec.filters.columns import parse_columns
from manyvec.models.loading import load_encoder
from manyvec.models.prefix import with_dim
from manyvec.models.protocol import Encoder
from manyvec.retrieval.candidates import Auto, Candidates
from manyvec.retrieval.grouping import search_grouped
from manyvec.retrieval.handle import IndexHandle
from manyvec.retrieval.mixing import LexicalWeight
from manyvec.retrieval.queries import AnyQuery, encode
from manyvec.retrieval.search import SearchOptions
from manyvec.retrieval.threads import in_thread
from manyvec.storage.ingest.adding import AddReport, add_documents
from manyvec.storage.lance import Place, where_ids
from manyvec.storage.maintenance.columns import add_filter_columns, infer_given, infer_stored
from manyvec.storage.maintenance.optimize import optimize
from manyvec.storage.schema import Manifest, content_hash
from manyvec.storage.table import Store
from manyvec.timing import stage
from manyvec.types import Document, Hit, Hits
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import Scores

if TYPE_CHECKING:
    from lancedb import DBConnection

DEFAULT_CACHE_BYTES = 2 * 2**30


class Index(IndexHandle):
    """A late-interaction index. Create or open one with `Index.create` or `Index.open`.

    May be shared by threads. Commits of other processes are visible to the next call. An index can be pickled and
    copied: the copy opens it again at its first use. `close`, or a `with` block, frees its memory.

    Methods that wait for a model or a disk have twins to await, which run in a thread: `asearch`, `asearch_many`,
    `ascore`, `aadd`, `aget`, `aids`, `acount`, `avalue_counts`, `adelete`, `aadd_filter_columns` and `aoptimize`.

    Attributes:
        uri: Folder or URI of the index.
        candidates: First stage of searches; see `manyvec.candidates`.
        cache_bytes: Memory budget for searches; see `create`.
    """

    @classmethod
    def create(
        cls,
        uri: str | PathLike[str] | None = None,
        encoder: str | Encoder = "minilm",
        *,
        filter_columns: Mapping[str, Any] | Literal["infer"] | None = None,
        storage: str = "float16",
        pool_factor: float = 1,
        dim: int | None = None,
        exist_ok: bool = False,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        device: str = "auto",
        score_device: str | None = None,
        storage_options: Mapping[str, str] | None = None,
        connection: DBConnection | None = None,
        table_name: str | None = None,
        filters: None = None,
    ) -> Index:
        """Create an empty index.

        Args:
            uri: Folder, or a bucket's URI (`s3://`, `gs://`, `az://`).
            encoder: Name of a model for `load_encoder`, an encoder, or `Vectors` if documents come with token vectors.
            filter_columns: Metadata keys that searches can filter on, with their types: `str`, `int`, `float`, `bool`,
                `datetime`, or `list[...]` of one. "a.b" is the key "b" of the dict under "a", unless there is a key
                "a.b". With "infer", all keys whose values in the first batch are of one type; more can be added with
                `add_filter_columns`. Other metadata is stored and returned all the same.
            storage: How token vectors are stored. For 128 dims a vector takes 256 bytes as `float16`, 130 as `int8`,
                66 as `int4`, 36 as `residual` and 16 as `binary` (signs). `residual` stores 2 bits per dimension
                relative to a centroid; it takes effect at the first `optimize` after the index holds 65,536 token
                vectors, until then vectors are stored as float16. `examples/benchmarks/results/storage-128.json` shows
                what each costs in quality.
            pool_factor: Average similar token vectors of a document until 1 in `pool_factor` is left; 1 keeps all.
            dim: Number of dimensions to keep of each token vector, the first ones, for a model that was trained so
                (`manyvec.tune(dim=...)`, Matryoshka); by default all. `Index.encoder` returns such vectors.
            exist_ok: Open the index if there is one already. It must have this encoder and, if given, these filter
                columns and this dim; its storage and pooling stay what they are.
            cache_bytes: Memory for ids, words, centroid lists and as many token vectors as fit; the other vectors are
                read from disk whenever they are scored. Ids, words and lists are held even if they exceed the budget:
                about 700 bytes for a document of 30 tokens. A process that searches takes up to 500 MB more for
                Python, torch, LLVM and LanceDB, and what the model takes (`examples/benchmarks/growth.py`).
            device: Where a model named by a string runs and where documents are scored: `cpu`, `cuda`, `mps` (scoring
                is then on the CPU), or `auto` for the best there is. On `cuda`, cached vectors are copied to the GPU,
                where up to 50,000,000 token vectors are all scored; what does not fit is scored on the CPU.
            score_device: Where documents are scored, if not on `device`: `cpu`, `cuda` or `auto`.
            storage_options: LanceDB's options for a bucket, such as `region`, `endpoint` or credentials, kept in this
                object only: not in the index, its repr or a pickle. Environment variables do as well.
            connection: Connection from `lancedb.connect`, whose database and options are used, in place of `uri`.
            table_name: Name of the index's table, so that several indexes can share a database: letters, digits, - and
                _. By default the database holds one index.
            filters: Former name of `filter_columns`; passing it is an error.

        Raises:
            InputError: There is an index already, a filter column has an unknown type, there is no such storage or
                device, or the model has fewer dimensions than `dim`.
            ManifestError: With `exist_ok`, the existing index has another encoder, dim or other filter columns.
            StoreError: The database could not be written.
        """
        if filters is not None:
            raise InputError("Index.create has no argument 'filters': it is called filter_columns")
        place = Place.of(uri, storage_options=storage_options, connection=connection, table_name=table_name)
        index = cls(place, encoder, cache_bytes=cache_bytes, device=device, score_device=score_device)
        loaded = load_encoder(encoder, device=device) if isinstance(encoder, str) else encoder
        loaded = with_dim(loaded, dim)
        declared = None if filter_columns == "infer" else filter_columns
        manifest = Manifest.of(loaded, declared or {}, storage=storage, pool_factor=pool_factor)
        try:
            index._start(Store.create(place, manifest, cache_bytes))
        except InputError:
            if not exist_ok:
                raise
        index._loaded_encoder = loaded
        index._store.manifest.check_dim(dim, index.uri)
        index._encoder_for(index._store.manifest)
        if declared is not None and (stored := index.filter_columns) != manifest.filter_columns:
            missing = {name: kind for name, kind in manifest.filter_columns.items() if name not in stored}
            raise ManifestError(
                f"the index {index.uri} has the filter columns {stored}, not {manifest.filter_columns}: leave "
                "filter_columns out" + (f", and add the missing with add_filter_columns({missing})" if missing else "")
            )
        index._infers_columns = filter_columns == "infer"
        return index

    @classmethod
    def open(
        cls,
        uri: str | PathLike[str] | None = None,
        encoder: str | Encoder | None = None,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        device: str = "auto",
        score_device: str | None = None,
        storage_options: Mapping[str, str] | None = None,
        connection: DBConnection | None = None,
        table_name: str | None = None,
    ) -> Index:
        """Open an index.

        Args:
            uri: Folder, or a bucket's URI.
            encoder: Name of a model or an encoder. By default the model that the index was built with, loaded when it
                is first needed and never downloaded: a model from the hub that is not on this machine yet must be
                named here.
            cache_bytes: Memory for searches; see `create`.
            device: Where a model named by a string runs and where documents are scored; see `create`.
            score_device: Where documents are scored, if not on `device`.
            storage_options, connection, table_name: Where the index lies; see `create`.

        Raises:
            IndexNotFoundError: There is no index at `uri`.
            ManifestError: The manifest is missing or damaged, or the encoder is not the one the index was built with.
            InputError: There is no such device.
        """
        place = Place.of(uri, storage_options=storage_options, connection=connection, table_name=table_name)
        index = cls(place, encoder, cache_bytes=cache_bytes, device=device, score_device=score_device)
        manifest = index._store.manifest
        if encoder is not None:
            index._encoder_for(manifest)
        return index

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        on_blank: Literal["raise", "skip"] = "raise",
        adopt_vectors: bool = False,
        reuse_vectors: bool = False,
        show_progress: bool = False,
        expected_characters: int | None = None,
    ) -> AddReport:
        """Add documents, replacing those whose ids exist.

        Documents whose text and image are unchanged are not re-encoded, so an interrupted run can be resumed by calling
        `add` again. If an id occurs more than once, the last document wins. Documents are encoded and committed in
        batches of 256, or of 1/64 of the index if that is more.

        Args:
            documents: Any number of `Document`s, or of dicts of their arguments. A document with an image is encoded as
                that page, not as its text; one with vectors is not encoded.
            on_blank: `raise` an error for a document without text or tokens, or `skip` and count it.
            adopt_vectors: Whether to store vectors that come with documents as if this index's model had computed them.
                An index created with `Vectors` takes them in any case; others refuse them by default.
            reuse_vectors: Whether a document with the text and image of a stored one, under another id, gets its token
                vectors instead of being encoded. The hashes of all stored documents are read once for that.
            show_progress: Show a progress bar, which moves with the encoder within a batch.
            expected_characters: Length of all texts, if it is known for a generator, to show the time left.

        Returns:
            Numbers of added, updated, unchanged and blank documents.

        Raises:
            InputError: A document cannot be stored, or this encoder cannot read its image. Earlier batches are stored.
            StoreError: The database could not be written. Earlier batches are stored.
        """
        with self._writing:
            if self._infers_columns:
                self._infers_columns = False
                columns, documents = infer_given(documents)
                if not self.count():
                    self.add_filter_columns(columns)
            return add_documents(
                self._store,
                documents,
                lambda: self.encoder,
                on_blank=on_blank,
                adopt_vectors=adopt_vectors,
                reuse_vectors=reuse_vectors,
                expected_characters=expected_characters,
                show_progress=show_progress,
            )

    def add_filter_columns(self, columns: Mapping[str, Any] | Literal["infer"]) -> dict[str, int]:
        """Declare further filter columns, and fill them from the metadata of the stored documents.

        Token vectors are neither read nor written. Searches and writers may run meanwhile, in other processes too. If
        interrupted, call it again. A string counts as the number, bool or date that it spells, as in a filter.

        Args:
            columns: Metadata keys with their types, as for `create`; or "infer" for all keys whose stored values are of
                one type.

        Returns:
            For each column, how many documents have a value.

        Raises:
            InputError: A stored value does not fit its type (the message names the document and the key; nothing is
                changed), or a column exists with another type.
            StoreError: The database could not be written.
        """
        with self._writing:
            if columns == "infer":
                columns = {**infer_stored(self._store), **self.filter_columns}
            return add_filter_columns(self._store, parse_columns(columns))

    def delete(self, ids: str | Sequence[str] | None = None, *, filter: FilterLike | None = None) -> int:
        """Delete documents by id, or all that pass a filter.

        Returns:
            Number of deleted documents; unknown ids are ignored.

        Raises:
            InputError: Neither `ids` nor `filter` is passed, or both.
        """
        if (ids is None) == (filter is None):
            raise InputError("delete takes either ids or a filter")
        with self._writing:
            if ids is None:
                return self._store.delete(self._where(filter, self._store.snapshot().manifest) or "true")
            return sum(self._store.delete(where) for where in where_ids(check_ids(ids)))

    def search(
        self,
        query: AnyQuery,
        k: int = 10,
        *,
        filter: FilterLike | None = None,
        depth: int | None = None,
        lexical_weight: LexicalWeight = "auto",
        evidence: bool = False,
        passage_chars: int | None = None,
        group_by: str | None = None,
        group_size: int = 1,
    ) -> list[Hit]:
        """Find the documents that match a query best.

        Args:
            query: String, image (a `Path`, the bytes of a file, or a PIL image), token vectors of shape
                (n_tokens, dim), or a tuple of these, whose scores add up. A query without tokens finds nothing.
            k: Maximum number of hits.
            filter: Condition made with `manyvec.F`, or a dict such as `{"lang": "en"}` or `{"year": {"$gte": 2020}}`
                (see `parse_filter`). Only documents that pass are searched.
            depth: Number of candidates from the centroid lists, if there are any (see `optimize`). By default as many
                documents as hold 10,000 token vectors, at least 32, and up to 300 that come close to the best of them.
                Small indexes, and small filtered parts of large ones, are scored completely.
            lexical_weight: Share of BM25 in the order of the hits (`Hit.final_score`), 0 to 1; BM25's best 300
                documents become candidates too. 0 orders by MaxSim alone. "auto" is what was measured for the model and
                is recorded in the index (`info().lexical_weight`): 0.27 for `minilm`, which raises its mean nDCG@10 on
                twelve judged sets from .660 to .703 (`examples/benchmarks/mix.py`), and 0 for others, until
                `manyvec eval --mix` measures them on your queries. An image or token vectors have no words: 0.
            evidence: Whether to explain each hit: which words matched, or where on the page (`Hit.evidence`).
            passage_chars: Maximum length of the passage to return with each hit (`Hit.passage`); None for no passage.
                Needs a string or token vectors as the query.
            group_by: Metadata key, such as `source`, whose equal values form a group of hits; no groups by default.
            group_size: Maximum number of hits of a group.

        Returns:
            Hits, best first; equal scores are ordered by id.

        Raises:
            InputError: An argument is invalid, or BM25 or evidence is requested for a query without text.
            FilterError: The filter names an undeclared column, or compares it with a value of another type.
        """
        options: dict[str, Any] = {"depth": depth, "lexical_weight": lexical_weight, "evidence": evidence}
        options |= {"passage_chars": passage_chars, "group_by": group_by, "group_size": group_size}
        return self.search_many([query], k, filter=filter, **options)[0]

    def search_many(
        self,
        queries: Sequence[AnyQuery] | TokenBatch,
        k: int = 10,
        *,
        filter: FilterLike | None = None,
        depth: int | None = None,
        lexical_weight: LexicalWeight = "auto",
        evidence: bool = False,
        passage_chars: int | None = None,
        group_by: str | None = None,
        group_size: int = 1,
    ) -> list[list[Hit]]:
        """Search for several queries, encoded and scored in one pass; return a list of hits for each. See `search`."""
        version = self._reader.current()
        manifest = version.snapshot.manifest
        options = SearchOptions.checked(
            queries,
            k,
            depth=depth,
            lexical_weight=lexical_weight,
            weight_of_index=manifest.lexical_weight,
            evidence=evidence,
            passage_chars=passage_chars,
        )
        where = self._where(filter, manifest)
        if not queries or options.k == 0:
            return [Hits() for _ in queries]
        texts, tokens = self._encode_queries(queries, manifest)
        options = options.encoded(texts, self._encoder_for(manifest) if evidence else None)
        find = partial(self._reader.search, version, texts, tokens, self.candidates, where=where)
        found = find(options) if group_by is None else search_grouped(find, options, group_by, group_size)
        return [Hits(hits) for hits in found]

    def score(
        self,
        query: str | TokenBatch,
        ids: Sequence[str],
        *,
        texts: Sequence[str] | None = None,
        images: Sequence[bytes | None] | None = None,
    ) -> Scores:
        """Score stored documents exactly, from their stored vectors, as rerankers need it.

        Args:
            query: Query string, or the token vectors of one query as a batch of one.
            ids: (n,) ids of documents in any order; an id may occur more than once.
            texts: (n,) texts. A document that is stored with another text counts as unknown.
            images: (n,) images beside the texts. A document that is stored with another image, or with none, counts
                as unknown; None for an image that is not compared.

        Returns:
            (n,) float32 in the order of `ids`, all from one version of the index; NaN for an unknown id or a document
            whose vectors are damaged, -inf for a query without tokens.
        """
        version = self._reader.current()
        tokens = self._encode_queries([query], version.snapshot.manifest)[1] if isinstance(query, str) else query
        ids = check_ids(ids)
        hashes: list[str | None] = [None] * len(ids)
        if texts is not None:
            hashes = [content_hash(*content) for content in zip(texts, images or hashes, strict=True)]  # type: ignore[arg-type]
        return self._reader.score(version, tokens, ids, hashes)

    def rank(
        self,
        queries: Sequence[AnyQuery] | TokenBatch,
        candidates: Candidates,
        depth: int = 100,
        *,
        filter: FilterLike | None = None,
    ) -> list[list[str]]:
        """Return the ids that a first stage finds by itself, best first, to compare first stages with `search`.

        Args:
            queries: Queries as in `search`, with the same `filter`.
            candidates: First stage; see `manyvec.candidates`.
            depth: Number of documents to find for each query.

        Returns:
            Ids for each query; all ids in scope if the first stage wants every document.
        """
        version = self._reader.current()
        where = self._where(filter, version.snapshot.manifest)
        texts, tokens = self._encode_queries(queries, version.snapshot.manifest)
        return self._reader.rank(version, texts, tokens, candidates, depth, where)

    def optimize(self, *, keep: timedelta = timedelta(days=7), show_progress: bool = False) -> None:
        """Merge small files, bring all indexes up to date, and free disk space.

        From 200,000 token vectors on, this builds or extends the centroid lists, in which searches find candidates
        instead of scoring every document. Only stored vectors are read; nothing is encoded again. With `residual`
        storage it first encodes new vectors as residuals, after training the centroids if there are enough vectors. If
        the corpus has outgrown its codebook, a new one is trained; the old one is used until the new one is complete.
        If another program has appended rows whose ids existed, the newest row of each id stays.

        Args:
            keep: How long replaced and deleted data stays on disk. `timedelta(0)` frees all of it, also what killed
                writers have left, and makes searches fail that other processes are running at that moment. Programs
                that write to the table without manyvec must not do so meanwhile.
            show_progress: Show a progress bar.

        Raises:
            WriteConflictError: Writers of other programs left no gap in which files could be merged; the centroid lists
                are up to date all the same.
            InputError: `keep` is not a timedelta of at least 0.
        """
        if not isinstance(keep, timedelta) or keep < timedelta(0):
            raise InputError(f"keep must be a timedelta of at least 0, such as timedelta(days=7), got {keep!r}")
        with self._writing:
            lists_above = self.candidates.exhaustive_tokens if isinstance(self.candidates, Auto) else None
            optimize(self._store, keep, lists_above=lists_above, show_progress=show_progress)

    @stage("encode")
    def _encode_queries(
        self, queries: Sequence[AnyQuery] | TokenBatch, manifest: Manifest
    ) -> tuple[list[str], TokenBatch]:
        return encode(queries, lambda: self._encoder_for(manifest), manifest.dim)

    aadd, adelete, aoptimize = in_thread(add), in_thread(delete), in_thread(optimize)
    aadd_filter_columns = in_thread(add_filter_columns)
    asearch, asearch_many, ascore = in_thread(search), in_thread(search_many), in_thread(score)
