"""`ToolIndex`: select the tools that fit a request, out of a handful or thousands, in memory.

The text of a tool is its name, description, and argument names and descriptions. Its score is exact MaxSim, averaged
over the query tokens, plus a small weight of BM25 over the same text, because people name things ("my Spotify
playlist") as often as they describe them. BM25 is a sum over words: the more rare words a request shares with a tool,
the more BM25 decides; if it shares few, MaxSim decides.
"""

from __future__ import annotations

import json
import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import (
    EncoderError,
    IndexNotFoundError,
    InputError,
    ManifestError,
    check_count,
    check_query,
)
from manyvec.models.loading import load_encoder
from manyvec.models.protocol import Encoder
from manyvec.tools.bm25 import BM25, words_of
from manyvec.tools.schemas import Tool, read_tool, to_json_schema
from manyvec.vectors.batch import TokenBatch, offsets_of
from manyvec.vectors.maxsim import MaxSimScorer, Scores, top_k

if TYPE_CHECKING:
    from typing_extensions import Self

# Chosen on the dev split of seal-tools and the train split of metatool; `examples/benchmarks/tools.py` compares weights
# on four test splits.
BM25_WEIGHT = 0.02
# Number of tools of a larger catalog that get an exact score. On all four sets, 40 reach the same measures as 150.
DEPTH = 50
_FILE_FORMAT = 1


@dataclass(frozen=True)
class ToolHit:
    """A tool that fits a request.

    Attributes:
        name: Name of the tool.
        score: Similarity plus weighted BM25; higher is better.
        similarity: MaxSim averaged over the query tokens, in [-1, 1].
        rank: Position in the result, starting at 1. A tool whose exact name was the query comes first, then tools by
            score; equal scores are ordered by name.
        tool: The tool object that was added.
    """

    name: str
    score: float
    similarity: float
    rank: int
    tool: Any


class ToolIndex:
    """An in-memory catalog of tools, searched by what a user asks for. Safe to share between threads.

    Args:
        encoder: An encoder, or a name for `load_encoder`.
        tools: Initial tools; see `add`.
        bm25_weight: Factor of the BM25 score, which is added to the similarity. 0 ranks by MaxSim alone.
        depth: Maximum number of tools that get an exact score. In larger catalogs, candidates are the tools with the
            best sum of mean-vector similarity and weighted BM25.
    """

    def __init__(
        self,
        encoder: str | Encoder = "minilm",
        tools: Iterable[Tool] = (),
        *,
        bm25_weight: float = BM25_WEIGHT,
        depth: int = DEPTH,
    ) -> None:
        if not 0 <= bm25_weight < math.inf:
            raise InputError(f"bm25_weight must be a finite number of at least 0, got {bm25_weight!r}")
        self.encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
        self.bm25_weight = bm25_weight
        self.depth = depth
        self._scorer = MaxSimScorer(reduction="mean")
        self._catalog = _Catalog({}, [], None)
        self._write_lock = threading.Lock()
        self.add(tools)

    def __getstate__(self) -> dict[str, Any]:
        """Return the catalog and the settings; a copy or a process that gets them does not encode the tools again."""
        return {name: value for name, value in vars(self).items() if name != "_write_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._write_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"ToolIndex({len(self)} tools, model={self.encoder.name!r})"

    def __len__(self) -> int:
        return len(self._catalog.tools)

    def __contains__(self, name: object) -> bool:
        return name in self._catalog.tools

    def __getitem__(self, name: str) -> Any:
        """Return the tool object that was added under this name, or raise KeyError."""
        return self._catalog.tools[name]

    @property
    def names(self) -> list[str]:
        """Names of all tools, in the order they were added."""
        return list(self._catalog.tools)

    def add(self, tools: Iterable[Tool]) -> list[str]:
        """Add tools, encoding them in one pass, and return their names, which serve as ids.

        Args:
            tools: JSON-schema tools in the format of OpenAI (`{"type": "function", "function": {...}}`), Anthropic
                (`input_schema`) or MCP (`inputSchema`, as dicts or the SDK's objects), or Python functions. The result
                of an MCP session's `list_tools` can be passed unchanged.

        Raises:
            InputError: A tool has no name, or two tools have the same name. No tool is added.
        """
        return self._add(tools, {})

    def _add(self, tools: Iterable[Tool], vectors_of: Mapping[str, NDArray[np.floating]]) -> list[str]:
        """Add tools; texts that are keys of `vectors_of` are not encoded again."""
        # The result of an MCP session's list_tools keeps the tools in an attribute.
        tools = list(getattr(tools, "tools", tools))
        described = [read_tool(tool) for tool in tools]
        names = [name for name, _ in described]
        texts = [text for _, text in described]
        with self._write_lock:
            before = self._catalog
            counts = Counter([*before.tools, *names])
            if repeated := sorted(name for name in set(names) if counts[name] > 1):
                raise InputError(f"tool names must be unique, these occur more than once: {', '.join(repeated)}")
            if not tools:
                return []
            vectors = {
                **vectors_of,
                **self._encode([(name, text) for name, text in described if text not in vectors_of]),
            }
            added = TokenBatch.from_list([vectors[text] for text in texts])
            self._catalog = _Catalog(
                {**before.tools, **dict(zip(names, tools, strict=True))},
                [*before.texts, *texts],
                TokenBatch.concatenate([batch for batch in (before.tokens, added) if batch is not None]),
            )
        return names

    def _encode(self, described: Sequence[tuple[str, str]]) -> dict[str, NDArray[np.float16]]:
        """Return token vectors by text, for pairs of name and text."""
        if not described:
            return {}
        texts = [text for _, text in described]
        tokens = self.encoder.encode_documents(texts)
        if len(tokens) != len(texts):
            raise EncoderError(f"{self.encoder.name} returned {tokens!r} for {len(texts)} tools")
        if len(empty := np.flatnonzero(tokens.lengths == 0)):
            raise InputError(f"tool {described[empty[0]][0]!r}: {self.encoder.name} finds no token in its text")
        return {text: vectors.astype(np.float16) for text, vectors in zip(texts, tokens, strict=True)}

    def remove(self, names: str | Iterable[str]) -> int:
        """Remove tools by name and return the number of removed tools. Unknown names are ignored."""
        removed = {names} if isinstance(names, str) else set(names)
        with self._write_lock:
            before = self._catalog
            kept = [position for position, name in enumerate(before.tools) if name not in removed]
            if before.tokens is not None and len(kept) < len(before.tools):
                self._catalog = _Catalog(
                    {name: tool for name, tool in before.tools.items() if name not in removed},
                    [before.texts[position] for position in kept],
                    before.tokens.select(kept),
                )
            return len(before.tools) - len(kept)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the catalog and its token vectors to one safetensors file, replacing an existing file.

        Tools are written as JSON. Functions and the MCP SDK's objects are written as JSON-schema tools, and `load`
        returns those unless the original tools are passed to it.

        Raises:
            InputError: A tool holds a value that JSON cannot, such as an object as a default. Nothing is written.
        """
        from safetensors.numpy import save

        catalog = self._catalog
        header = {
            "format": _FILE_FORMAT,
            "model": self.encoder.name,
            "fingerprint": self.encoder.fingerprint,
            "bm25_weight": self.bm25_weight,
            "depth": self.depth,
            "tools": [to_json_schema(name, tool) for name, tool in catalog.tools.items()],
            "texts": catalog.texts,
        }
        tokens = catalog.tokens
        vectors = np.empty((0, self.encoder.dim), np.float16) if tokens is None else tokens.vectors
        lengths = np.zeros(0, np.int64) if tokens is None else tokens.lengths
        content = save({"vectors": vectors, "lengths": lengths}, {"manyvec_tools": json.dumps(header)})
        file = Path(path).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        # Write to a temporary file and rename: readers never see a partial file, and a crash keeps the old one.
        part = file.with_name(f".{file.name}.{uuid4().hex}")
        try:
            part.write_bytes(content)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(
        cls, path: str | PathLike[str], encoder: str | Encoder | None = None, *, tools: Iterable[Tool] | None = None
    ) -> Self:
        """Load a catalog written by `save`. Tools in the file are not encoded again.

        Args:
            path: Path of the file.
            encoder: An encoder or its name; by default the model named in the file, which is not downloaded. To
                download a hub model, name it here.
            tools: Tools that the catalog should hold now; those that are new or have changed are encoded. By default
                the tools in the file, as JSON.

        Raises:
            IndexNotFoundError: The file does not exist.
            ManifestError: The file was not written by `save`, is damaged, or was written with another encoder.
        """
        header, saved = _read_file(Path(path).expanduser())
        if encoder is None:
            encoder = load_encoder(header["model"], local_files_only=True)
        elif isinstance(encoder, str):
            encoder = load_encoder(encoder)
        if encoder.fingerprint != header["fingerprint"]:
            raise ManifestError(
                f"{path} holds tools encoded with {header['model']}; the encoder is {encoder.name} or has other "
                f"weights. Load it with {header['model']}, or build a new ToolIndex."
            )
        index = cls(encoder, bm25_weight=header["bm25_weight"], depth=header["depth"])
        index._add(header["tools"] if tools is None else tools, dict(zip(header["texts"], saved, strict=True)))
        return index

    def select(self, query: str, k: int | None = 10) -> list[ToolHit]:
        """Return the tools that fit a request best.

        Args:
            query: Description of the task, or the exact name of a tool, which then comes first.
            k: Maximum number of hits; None returns every tool, each with an exact score.

        Returns:
            Hits, best first; equal scores are ordered by name. Empty if the catalog is empty or the query has no token.

        Raises:
            InputError: `query` is not a string, or `k` is not a non-negative integer.
        """
        check_query(query)
        if k is not None:
            k = check_count(k, "k")
        catalog = self._catalog
        if catalog.tokens is None or not catalog.tools or k == 0:
            return []
        return self.select_encoded(query, self.encoder.encode_queries([query]), k)

    def select_encoded(self, query: str, tokens: TokenBatch, k: int | None = 10) -> list[ToolHit]:
        """Select tools for a query that is already encoded.

        Args:
            query: The query, for BM25 and exact names.
            tokens: Token vectors of the query, as a batch of one.
            k: Maximum number of hits; None returns every tool.
        """
        catalog = self._catalog
        k = len(catalog.tools) if k is None else k
        named = catalog.positions_named(query)
        if catalog.tokens is None or not tokens.n_tokens:
            return []
        weighted_bm25 = np.float32(self.bm25_weight) * catalog.bm25.scores(words_of(query))
        positions = catalog.candidates(tokens, weighted_bm25, max(self.depth, k), named)
        similarities = self._scorer.score(tokens[0], catalog.tokens, positions)
        scores = similarities + weighted_bm25[positions]
        names = catalog.names[positions]
        order_by = scores.copy()
        for position in named:
            # Named tools come first; among names that differ only in case, the one written as in the query.
            is_exact = catalog.names[position] == query.strip()
            largest = np.finfo(np.float32).max  # `top_k` takes infinity for damage
            order_by[np.searchsorted(positions, position)] = largest if is_exact else largest / 2
        return [
            ToolHit(names[i], float(scores[i]), float(similarities[i]), rank, catalog.tools[names[i]])
            for rank, i in enumerate(top_k(order_by, names, k), start=1)
        ]


class _Catalog:
    """The state of a `ToolIndex` between two changes. Immutable, so a selection reads one consistent state."""

    def __init__(self, tools: dict[str, Any], texts: list[str], tokens: TokenBatch | None) -> None:
        self.tools = tools
        self.texts = texts
        self.tokens = tokens
        self.names = np.array(list(tools), object)
        self.bm25 = BM25([words_of(text) for text in texts])
        self.pooled = tokens.pooled() if tokens is not None and len(tokens) else None
        self._positions_of: dict[str, list[int]] = {}
        for position, name in enumerate(tools):
            self._positions_of.setdefault(name.casefold(), []).append(position)

    def positions_named(self, query: str) -> list[int]:
        """Return the positions of tools whose name is the whole query, ignoring case."""
        return self._positions_of.get(query.strip().casefold(), [])

    def candidates(self, tokens: TokenBatch, weighted_bm25: Scores, depth: int, named: list[int]) -> NDArray[np.int64]:
        """Return ascending positions to score exactly: the `depth` best by mean vectors and BM25, plus `named`."""
        if len(self.tools) <= depth or self.pooled is None:
            return np.arange(len(self.tools))
        # Not `@`: BLAS starts threads that spin for longer than this takes.
        estimates = np.einsum("nd,d->n", self.pooled, tokens.pooled()[0]) + weighted_bm25
        return np.union1d(np.argpartition(-estimates, depth)[:depth], np.array(named, np.int64))


def _read_file(file: Path) -> tuple[dict[str, Any], TokenBatch]:
    """Return the header written by `ToolIndex.save`, and the token vectors in the order of its texts."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as content:
            header = json.loads((content.metadata() or {})["manyvec_tools"])
            lengths, vectors = content.get_tensor("lengths"), content.get_tensor("vectors")
        if header["format"] != _FILE_FORMAT:
            raise ManifestError(f"{file} has format {header['format']}; this version of manyvec reads {_FILE_FORMAT}")
        # Files written before 0.1.0 use the old name.
        header.setdefault("bm25_weight", header.get("lexical_weight", BM25_WEIGHT))
        return header, TokenBatch(vectors, offsets_of(lengths))
    except FileNotFoundError as error:
        raise IndexNotFoundError(f"there is no file {file}: write it with ToolIndex.save") from error
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{file} was not written by ToolIndex.save, or is damaged: {error!r}") from error
