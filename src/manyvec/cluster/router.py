"""`Cluster`: an index whose documents are spread over shards, searched and written as if it were one index."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from operator import methodcaller
from typing import Any, Literal

import numpy as np

from manyvec.cluster.asking import Asker, Missing
from manyvec.cluster.layout import Layout
from manyvec.cluster.merging import ClusterHits, ClusterInfo, best_ids, by_means, global_matches, merged
from manyvec.cluster.shards import Shard, Shards
from manyvec.errors import InputError, check_count, check_ids
from manyvec.filters import FilterLike, parse_filter, to_sql
from manyvec.filters.columns import parse_columns
from manyvec.models.protocol import Encoder
from manyvec.retrieval.candidates import LEXICAL_DEPTH, Candidates, Lexical, Pooled
from manyvec.retrieval.grouping import search_grouped
from manyvec.retrieval.lexical import RowScores, WordStatistics
from manyvec.retrieval.mixing import LexicalWeight
from manyvec.retrieval.queries import AnyQuery, encode
from manyvec.retrieval.search import SearchOptions
from manyvec.retrieval.threads import in_thread
from manyvec.storage.ingest.adding import AddReport, Checked, batches
from manyvec.storage.schema import stored_as
from manyvec.timing import stage
from manyvec.types import Document, Hit
from manyvec.vectors.batch import TokenBatch
from manyvec.vectors.maxsim import Scores


class Cluster:
    """An index whose documents lie in shards, each of which is an index of its own. `open_local` makes one.

    It has the methods of `Index`, with the same arguments and results. Searches return what one index of all documents
    would, float for float, with three exceptions: with centroid lists, each shard finds its own candidates; shards in
    `residual` storage have their own centroids; and BM25 scores agree within float32 if `optimize` has run since
    documents were last deleted or replaced. A search sees one version of each shard, but no snapshot of all: what
    another process adds meanwhile may be visible in some.

    May be shared by threads, pickled and copied.

    Args:
        shards: The shards.
        allow_partial: Whether a search leaves out shards that cannot be reached or read, and names them in
            `ClusterHits.missing_shards`, instead of raising an error. Other methods raise it in any case.
    """

    def __init__(self, shards: Shards, *, allow_partial: bool = False) -> None:
        self._shards = shards
        self._asker = Asker(shards, allow_partial=allow_partial)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r}, shards={self.layout.n_shards}, model={self.model!r})"

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory that the cluster holds. Any further use of it is an error."""
        self._shards.close()
        self._asker.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Cluster, allow_partial=self.allow_partial), (self._shards,)

    def __deepcopy__(self, memo: dict[int, Any]) -> Cluster:
        return self.anew()

    @property
    def allow_partial(self) -> bool:
        """Whether searches leave out shards that cannot be reached or read."""
        return self._asker.allow_partial

    def anew(self, *, by_manifest: bool = False) -> Cluster:
        """Return another handle with the same options; see `Index.anew`."""
        return Cluster(self._shards.anew(by_manifest=by_manifest), allow_partial=self.allow_partial)

    @property
    def layout(self) -> Layout:
        """What `shards.json` said when it was read last."""
        return self._shards.layout

    @property
    def uri(self) -> str:
        """Folder or URI of the cluster."""
        return self._shards.uri

    @property
    def table_name(self) -> None:
        """None: each shard has a database of its own."""
        return

    @property
    def model(self) -> str:
        """Name of the encoder that the cluster was built with."""
        return self.layout.manifest.model

    @property
    def fingerprint(self) -> str:
        """Hash of the weights and settings of that encoder."""
        return self.layout.manifest.fingerprint

    @property
    def filter_columns(self) -> dict[str, str]:
        """The declared filter columns and their types."""
        return dict(self.layout.manifest.filter_columns)

    @property
    def reads_images(self) -> bool:
        """Whether documents may be page images; see `Index.reads_images`."""
        return self.layout.manifest.images

    @property
    def encoder(self) -> Encoder:
        """The encoder that the cluster was built with, loaded at the first use."""
        return self._shards.encoder

    @property
    def cache_bytes(self) -> int:
        """Memory budget of all shards of this process together."""
        return self._shards.cache_bytes

    @property
    def candidates(self) -> Candidates:
        """First stage of searches, in every shard; see `manyvec.candidates`."""
        return self._shards.candidates

    @candidates.setter
    def candidates(self, candidates: Candidates) -> None:
        self._shards.choose(candidates)

    def add(
        self,
        documents: Iterable[Document | Mapping[str, Any]],
        *,
        on_blank: Literal["raise", "skip"] = "raise",
        show_progress: bool = False,
        expected_characters: int | None = None,
        **options: Any,
    ) -> AddReport:
        """Add documents, each to its shard, replacing those whose ids exist; see `Index.add`.

        Each shard commits its part of a batch by itself: if one fails, others may have stored theirs. Adding the same
        documents again completes it.

        Args:
            documents: Any number of `Document`s, or of dicts of their arguments.
            on_blank: `raise` an error for a document without text or tokens, or `skip` and count it.
            show_progress: Show a progress bar for each batch.
            expected_characters: Not used: the length of a shard's part is not known.
            **options: Further options of `Index.add`. `reuse_vectors` looks for the same text in the document's shard.
        """
        del expected_characters
        _ = self.encoder  # Loaded once, for all shards.
        report, checked = AddReport(), Checked(documents, on_blank)
        seen: set[int] = set()
        repeated: dict[str, None] = {}
        groups = batches(checked)
        # As many documents as one batch for each shard.
        while group := list(itertools.chain.from_iterable(itertools.islice(groups, self.layout.n_shards))):
            for document in group:
                if (key := hash(document.id)) in seen:
                    repeated[document.id] = None
                seen.add(key)
            for number, part in self.layout.parted((document.id, document) for document in group).items():
                added = self._asker.one(
                    number, methodcaller("add", part, on_blank=on_blank, show_progress=show_progress, **options)
                )
                report += replace(added, repeated=())
        return report + AddReport(blank=checked.n_blank, repeated=tuple(repeated))

    def add_filter_columns(self, columns: Mapping[str, Any] | Literal["infer"]) -> dict[str, int]:
        """Declare further filter columns in all shards; see `Index.add_filter_columns`. If interrupted, call it again.

        Raises:
            InputError: A stored value does not fit its type, or the columns are to be inferred: shards could disagree.
        """
        if not isinstance(columns, Mapping):
            raise InputError("the filter columns of a cluster must be named, with their types: shards could disagree")
        counts: Counter[str] = Counter()
        for counted in self._asker.all(lambda shard: shard.add_filter_columns(columns)).values():
            counts.update(counted)
        declared = {name: str(kind) for name, kind in parse_columns(columns).items()}
        self._shards.write_layout(replace(self.layout, manifest=self.layout.manifest.with_columns(declared)))
        return {name: counts[name] for name in declared}

    def delete(self, ids: str | Sequence[str] | None = None, *, filter: FilterLike | None = None) -> int:
        """Delete documents by id, or all that pass a filter; return how many. See `Index.delete`."""
        if (ids is None) == (filter is None):
            raise InputError("delete takes either ids or a filter")
        if ids is None:
            return sum(self._asker.all(lambda shard: shard.delete(filter=filter)).values())
        parts = self.layout.parted((id, id) for id in check_ids(ids))
        return sum(self._asker.parts(parts, lambda shard, part: shard.delete(part)).values())

    def search(self, query: AnyQuery, k: int = 10, **options: Any) -> ClusterHits:
        """Find the documents that match a query best. Arguments and results are those of `Index.search`.

        Raises:
            MissingShardError: A shard cannot be reached or read, and `allow_partial` is False.
        """
        return self.search_many([query], k, **options)[0]

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
    ) -> list[ClusterHits]:
        """Search for several queries, encoded once for all shards; return hits for each. See `Index.search`."""
        options = SearchOptions.checked(
            queries,
            k,
            depth=depth,
            lexical_weight=lexical_weight,
            weight_of_index=self.layout.manifest.lexical_weight,
            evidence=evidence,
            passage_chars=passage_chars,
        )
        where = self._where(filter)
        if not queries or options.k == 0:
            return [ClusterHits() for _ in queries]
        texts, tokens = self._encoded(queries)
        options = options.encoded(texts, self.encoder if evidence else None)
        missing: Missing = {}
        find = partial(self._find, texts, tokens, where, missing)
        hits = find(options) if group_by is None else search_grouped(find, options, group_by, group_size)
        found = [ClusterHits(of_query) for of_query in hits]
        for each in found:
            each.missing_shards = tuple(self.layout.name(number) for number in sorted(missing))
        return found

    def score(self, query: str | TokenBatch, ids: Sequence[str], **contents: Any) -> Scores:
        """Score stored documents exactly; see `Index.score`, whose arguments `texts` and `images` it takes too."""
        tokens = self._encoded([query])[1] if isinstance(query, str) else query
        ids = check_ids(ids)
        scores = np.full(len(ids), np.nan, np.float32)
        parts = self.layout.parted((id, position) for position, id in enumerate(ids))

        def scored(shard: Shard, positions: list[int]) -> Scores:
            given = {name: [values[i] for i in positions] for name, values in contents.items() if values is not None}
            return shard.score(tokens, [ids[i] for i in positions], **given)

        for number, of_shard in self._asker.parts(parts, scored).items():
            scores[parts[number]] = of_shard
        return scores

    def rank(
        self,
        queries: Sequence[AnyQuery] | TokenBatch,
        candidates: Candidates,
        depth: int = 100,
        *,
        filter: FilterLike | None = None,
    ) -> list[list[str]]:
        """Return the ids that `Lexical` or `Pooled` finds by itself, best first; see `Index.rank`.

        Raises:
            InputError: Another first stage: only the scores of these two can be compared between shards.
        """
        depth = check_count(depth, "depth", minimum=1)
        where = self._where(filter)
        texts, tokens = self._encoded(queries)
        if isinstance(candidates, Lexical):
            missing: Missing = {}
            matches = self._matches(texts, depth, where, missing)
            if missing:
                raise missing[min(missing)]
            return [best_ids([of_shard[i] for of_shard in matches.values()], depth) for i in range(len(queries))]
        if not isinstance(candidates, Pooled):
            raise InputError(f"a cluster ranks by Lexical or Pooled, got {type(candidates).__name__}")
        found = self._asker.all(lambda shard: shard.rank(tokens, candidates, depth, filter=filter)).values()
        ids = [[*itertools.chain.from_iterable(of_shard[i] for of_shard in found)] for i in range(len(queries))]
        return [
            by_means(tokens[i], of_query, self.token_vectors(of_query).pooled())[:depth]
            for i, of_query in enumerate(ids)
        ]

    def get(self, ids: str | Sequence[str], *, vectors: bool = False) -> list[Document]:
        """Return the documents with these ids, in this order; see `Index.get`."""
        wanted = list(dict.fromkeys(check_ids(ids)))
        parts = self.layout.parted((id, id) for id in wanted)
        found = self._asker.parts(parts, lambda shard, part: shard.get(part, vectors=vectors))
        documents = {document.id: document for part in found.values() for document in part}
        return [documents[id] for id in wanted if id in documents]

    def ids(self, filter: FilterLike | None = None) -> list[str]:
        """Return the ids of all documents, or of those that pass a filter, sorted."""
        return sorted(itertools.chain.from_iterable(self._asker.all(lambda shard: shard.ids(filter)).values()))

    def token_vectors(self, ids: str | Sequence[str]) -> TokenBatch:
        """Return the token vectors of documents as they are stored; see `Index.token_vectors`."""
        wanted = check_ids(ids)
        parts = self.layout.parted((id, position) for position, id in enumerate(wanted))
        found = self._asker.parts(parts, lambda shard, part: shard.token_vectors([wanted[i] for i in part]))
        if not found:
            return TokenBatch.from_list([], dim=self.layout.manifest.dim)
        order = np.argsort([position for number in found for position in parts[number]])
        return TokenBatch.concatenate(list(found.values())).select(order)

    def count(self, filter: FilterLike | None = None) -> int:
        """Return the number of documents, or of those that pass a filter."""
        return sum(self._asker.all(lambda shard: shard.count(filter)).values())

    def value_counts(self, key: str) -> dict[str | int | float | bool, int]:
        """Return the values of a metadata key with their numbers of documents; see `Index.value_counts`."""
        counts: Counter[str | int | float | bool] = Counter()
        for counted in self._asker.all(lambda shard: shard.value_counts(key)).values():
            counts.update(counted)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], str(item[0]))))

    def info(self) -> ClusterInfo:
        """Return what the cluster holds and how much space it takes."""
        parts = list(self._asker.all(lambda shard: shard.info()).values())
        sizes = [part.bytes_on_disk for part in parts]
        manifest = self.layout.manifest
        return ClusterInfo(
            uri=self.uri,
            documents=sum(part.documents for part in parts),
            duplicates=sum(part.duplicates for part in parts),
            tokens=sum(part.tokens for part in parts),
            model=manifest.model,
            dim=manifest.dim,
            storage=manifest.storage,
            pool_factor=manifest.pool_factor,
            filter_columns=dict(manifest.filter_columns),
            lexical_weight=manifest.lexical_weight,
            version=sum(part.version for part in parts),
            bytes_on_disk=sum(size for size in sizes if size is not None) if None not in sizes else None,
            bytes_in_memory=sum(part.bytes_in_memory for part in parts),
            cache_bytes=self.cache_bytes,
            shards=len(parts),
        )

    def duplicates(self) -> list[str]:
        """Return the ids, sorted, that are stored more than once, in one shard or in several; see `optimize`."""
        found = [*itertools.chain.from_iterable(self._asker.all(lambda shard: shard.duplicates()).values())]
        counts = Counter(self.ids())
        return sorted({*found, *(id for id, count in counts.items() if count > 1)})

    def statistics(self, texts: str | Sequence[str]) -> WordStatistics:
        """Return what BM25 needs to know of all shards together; see `Index.statistics`."""
        return sum(self._asker.all(lambda shard: shard.statistics(texts)).values(), WordStatistics(0, 0, {}))

    def check(self) -> None:
        """Open all shards.

        Raises:
            MissingShardError: One is missing, cannot be read, or is another index than `shards.json` says.
        """
        self._asker.all(lambda shard: shard.model)

    def optimize(self, *, keep: timedelta = timedelta(days=7), show_progress: bool = False) -> None:
        """Optimize each shard, one after the other; see `Index.optimize`."""
        for number in range(self.layout.n_shards):
            self._asker.one(number, lambda shard: shard.optimize(keep=keep, show_progress=show_progress))

    aadd, adelete, aoptimize = in_thread(add), in_thread(delete), in_thread(optimize)
    aadd_filter_columns = in_thread(add_filter_columns)
    asearch, asearch_many, ascore = in_thread(search), in_thread(search_many), in_thread(score)
    avalue_counts = in_thread(value_counts)
    aget, aids, acount = in_thread(get), in_thread(ids), in_thread(count)

    def _where(self, condition: FilterLike | None) -> str | None:
        return None if condition is None else to_sql(parse_filter(condition), self.layout.manifest.columns, stored_as)

    @stage("encode")
    def _encoded(self, queries: Sequence[AnyQuery] | TokenBatch) -> tuple[list[str], TokenBatch]:
        return encode(queries, lambda: self.encoder, self.layout.manifest.dim)

    def _find(
        self,
        texts: list[str],
        tokens: TokenBatch,
        where: str | None,
        missing: Missing,
        options: SearchOptions,
    ) -> list[list[Hit]]:
        """Return the hits of each query; add shards that are left out to `missing`."""
        matches: dict[int, list[RowScores]] = {}
        if options.lexical_weight and self.layout.n_shards > 1:
            matches = self._matches(texts, max(LEXICAL_DEPTH, options.k), where, missing)
        found = self._asker.some(
            {
                number: methodcaller("find", texts, tokens, options, where, matches.get(number), self.candidates)
                for number in range(self.layout.n_shards)
                if number not in missing
            },
            missing,
        )
        return [merged([hits[i] for hits in found.values()], options.k) for i in range(len(texts))]

    @stage("candidates")
    def _matches(self, texts: list[str], limit: int, where: str | None, missing: Missing) -> dict[int, list[RowScores]]:
        """Return BM25's best documents of all shards, for each shard that can be read."""
        numbers = range(self.layout.n_shards)
        statistics = self._asker.some(dict.fromkeys(numbers, methodcaller("statistics", texts)), missing)
        return global_matches(
            texts,
            limit,
            statistics,
            lambda limits: self._asker.some(
                {number: methodcaller("word_matches", texts, wanted, where) for number, wanted in limits.items()},
                missing,
            ),
        )
