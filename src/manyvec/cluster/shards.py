"""`Shard`, an index that is one part of a cluster; `Shards`, all of them; and `LocalShards`, which opens them here."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from manyvec.cluster.layout import FILE, Layout
from manyvec.errors import IndexNotFoundError, ManifestError, StoreError
from manyvec.index import Index
from manyvec.models.loading import load_encoder
from manyvec.models.protocol import Encoder
from manyvec.retrieval.candidates import Auto, Candidates
from manyvec.retrieval.handle import check_pickles
from manyvec.retrieval.lexical import RowScores, WordMatches
from manyvec.retrieval.search import SearchOptions
from manyvec.storage.lance import Place
from manyvec.types import Hit
from manyvec.vectors.batch import TokenBatch


class Shard(Index):
    """A shard of a cluster, opened as the index that it is."""

    @classmethod
    def of(cls, layout: Layout, place: Place, number: int, encoder: Encoder | None = None, **options: Any) -> Shard:
        """Open a shard.

        Args:
            layout: Layout of the cluster.
            place: Where the cluster lies.
            number: Number of the shard.
            encoder: Encoder of the cluster, if it is loaded already.
            **options: `cache_bytes`, `device` and `score_device` of `Index.open`.

        Raises:
            IndexNotFoundError: The shard is missing.
            ManifestError: Another index lies there.
        """
        there = layout.place(place, number)
        shard = cls.open(there.uri, encoder, storage_options=there.storage_options, **options)
        assert isinstance(shard, Shard)
        layout.check(number, shard._store.manifest, place.uri)
        return shard

    def use(self, encoder: Encoder) -> None:
        """Encode with this encoder, which other shards use too."""
        self._given_encoder = self._loaded_encoder = encoder

    def find(
        self,
        texts: Sequence[str],
        tokens: TokenBatch,
        options: SearchOptions,
        where: str | None,
        matches: Sequence[RowScores] | None,
        candidates: Candidates,
    ) -> list[list[Hit]]:
        """Return the shard's hits for queries that are encoded already.

        Args:
            texts: Query strings.
            tokens: Token vectors of the queries.
            options: What the search is to return.
            where: Filter as SQL.
            matches: BM25 scores of the shard's rows for each query, by the statistics of all shards, where BM25 counts.
            candidates: First stage.
        """
        return self._reader.search(self._reader.current(), texts, tokens, candidates, options, where, matches)

    def word_matches(self, queries: Sequence[str], limits: Sequence[int], where: str | None) -> list[WordMatches]:
        """Return the documents that match the words of each query best, at most as many as its limit."""
        return self._reader.word_matches(queries, limits, where)


class Shards(Protocol):
    """The shards of a cluster, wherever they are open. May be shared by threads, pickled and copied.

    Attributes:
        uri: Folder or URI of the cluster.
        layout: What `shards.json` said when it was read last.
        cache_bytes: Memory budget of all shards together.
        candidates: First stage of searches.
    """

    uri: str
    layout: Layout
    cache_bytes: int
    candidates: Candidates

    @property
    def encoder(self) -> Encoder:
        """The encoder that the cluster was built with."""
        ...

    def shard(self, number: int) -> Shard:
        """Return a shard, or what passes calls on to one."""
        ...

    def refresh(self) -> bool:
        """Read `shards.json` again, and return whether it has changed."""
        ...

    def write_layout(self, layout: Layout) -> None:
        """Write `shards.json`."""
        ...

    def choose(self, candidates: Candidates) -> None:
        """Use another first stage."""
        ...

    def anew(self, *, by_manifest: bool = False) -> Shards:
        """Return the same shards, to be opened again; with the model of `shards.json` if `by_manifest`."""
        ...

    def close(self) -> None:
        """Close all shards."""
        ...


class LocalShards:
    """Opens the shards of a cluster and shares one encoder among them. May be shared by threads.

    Args:
        place: Where the cluster lies.
        encoder: Name of a model, an encoder, or None for the model in `shards.json`.
        cache_bytes: Memory budget of all shards together.
        device: Where a model named by a string runs and where documents are scored.
        score_device: Where documents are scored, if not on `device`.

    Raises:
        IndexNotFoundError: There is no cluster.
        ManifestError: `shards.json` is damaged, or the encoder is another one.
    """

    def __init__(
        self, place: Place, encoder: str | Encoder | None, *, cache_bytes: int, device: str, score_device: str | None
    ) -> None:
        self.place = place
        self.uri = place.uri
        self.cache_bytes = cache_bytes
        self.candidates: Candidates = Auto()
        self.given_encoder = encoder
        self.options: dict[str, Any] = {"device": device, "score_device": score_device}
        self._start()
        self.layout = self.read_layout()
        if encoder is not None and not isinstance(encoder, str):
            self.layout.manifest.fitted(encoder, place.uri)

    def _start(self) -> None:
        self._opening = threading.RLock()
        self._shards: dict[int, Shard] = {}
        self._encoder: Encoder | None = None
        self._is_closed = False

    def read_layout(self) -> Layout:
        """Return what `shards.json` says now."""
        if (layout := Layout.read(self.place)) is None:
            raise IndexNotFoundError(f"there is no cluster at {self.place.uri}: no {FILE}. create_local makes one")
        return layout

    def refresh(self) -> bool:
        """Read `shards.json` again, and return whether it has changed; shards of another layout are dropped."""
        layout = self.read_layout()
        with self._opening:
            if layout == self.layout:
                return False
            if (layout.n_shards, layout.generation) != (self.layout.n_shards, self.layout.generation):
                self._shards = {}
            self.layout = layout
            return True

    def write_layout(self, layout: Layout) -> None:
        """Write `shards.json`."""
        layout.write(self.place)
        self.refresh()

    def shard(self, number: int) -> Shard:
        """Return a shard, opened if it is not yet.

        Raises:
            IndexNotFoundError: The shard is missing.
            ManifestError: Another index lies there.
        """
        with self._opening:
            if self._is_closed:
                raise StoreError(f"the cluster {self.place.uri} is closed: open it again")
            layout, shard = self.layout, self._shards.get(number)
        if shard is not None:
            return shard
        # Not under the lock, so that shards of a bucket are opened at the same time.
        budget = self.cache_bytes // layout.n_shards
        opened = Shard.of(layout, self.place, number, self._encoder, cache_bytes=budget, **self.options)
        opened.candidates = self.candidates
        with self._opening:
            return self._shards.setdefault(number, opened)

    @property
    def encoder(self) -> Encoder:
        """The encoder that the cluster was built with, loaded at the first use."""
        with self._opening:
            if self._encoder is None:
                given = self.given_encoder
                if given is None:
                    encoder = self._any_shard().encoder
                else:
                    encoder = load_encoder(given, device=self.options["device"]) if isinstance(given, str) else given
                self._encoder = self.layout.manifest.fitted(encoder, self.place.uri)
            for shard in self._shards.values():
                shard.use(self._encoder)
            return self._encoder

    def _any_shard(self) -> Shard:
        """Return the first shard that can be opened."""
        for number in range(self.layout.n_shards - 1):
            with suppress(StoreError, IndexNotFoundError, ManifestError):
                return self.shard(number)
        return self.shard(self.layout.n_shards - 1)

    def anew(self, *, by_manifest: bool = False) -> LocalShards:
        """Return the same shards, to be opened again; with the model of `shards.json` if `by_manifest`."""
        given = None if by_manifest else self._encoder or self.given_encoder
        other = LocalShards(self.place, given, cache_bytes=self.cache_bytes, **self.options)
        other.candidates = copy.deepcopy(self.candidates)
        return other

    def __getstate__(self) -> dict[str, Any]:
        check_pickles(self.given_encoder)
        # Without storage options, as for an index.
        kept = ("uri", "cache_bytes", "candidates", "given_encoder", "options", "layout")
        return {"place": Place(self.place.uri), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalShards:
        return self.anew()

    def choose(self, candidates: Candidates) -> None:
        """Use another first stage in all shards."""
        with self._opening:
            self.candidates = candidates
            for shard in self._shards.values():
                shard.candidates = candidates

    def close(self) -> None:
        """Close all shards."""
        with self._opening:
            for shard in self._shards.values():
                shard.close()
            self._shards, self._is_closed = {}, True
