"""`ToolIndex`: keeps the tools that fit a request, out of a handful or thousands, in memory.

The text of a tool is its name, description, and argument names and descriptions. Its score is exact MaxSim, the mean
over the request's tokens, and a little of BM25 over the same text, because people name things ("my Spotify playlist")
as often as they describe them. BM25 is a sum: the more rare words a request shares with a tool, the more it decides;
where it shares few, MaxSim does.
"""

from __future__ import annotations

import inspect
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, IndexNotFoundError, InputError, ManifestError, check_unicode
from manyvec.models.loading import Encoder, load_encoder
from manyvec.tools.bm25 import BM25, name_parts, words_of
from manyvec.vectors.batch import TokenBatch, offsets_of
from manyvec.vectors.maxsim import MaxSimScorer, Scores, top_k

if TYPE_CHECKING:
    from typing_extensions import Self

Tool: TypeAlias = Mapping[str, Any] | Callable[..., Any]

# Chosen on the dev split of seal-tools and the train split of metatool; `examples/benchmarks/tools.py` compares weights
# on four test splits.
LEXICAL_WEIGHT = 0.02
# So many tools of a larger catalog get an exact score. On all four sets 40 give the measures that 150 do.
DEPTH = 50
_FILE_FORMAT = 1


@dataclass(frozen=True)
class ToolHit:
    """A tool that fits a request.

    Attributes:
        score: similarity plus weighted BM25; higher is better.
        similarity: mean MaxSim per query token, in [-1, 1].
        rank: 1 is best: a tool whose very name was asked for, then by score. Equal scores are ordered by name.
        tool: as it was given.
    """

    name: str
    score: float
    similarity: float
    rank: int
    tool: Any


class ToolIndex:
    """A catalog of tools in memory, searched by what a user asks for. May be shared by threads.

    Args:
        encoder: a name for `load_encoder`, or an encoder.
        tools: see `add`.
        lexical_weight: of BM25, which is added to the similarity; 0 for MaxSim alone.
        depth: tools that get an exact score: the best by the same mix with the similarity of mean vectors in MaxSim's
            place. All get one where there are no more tools than this.
    """

    def __init__(
        self,
        encoder: str | Encoder = "minilm",
        tools: Iterable[Tool] = (),
        *,
        lexical_weight: float = LEXICAL_WEIGHT,
        depth: int = DEPTH,
    ) -> None:
        if not 0 <= lexical_weight < math.inf:
            raise InputError(f"lexical_weight must be 0 or more, got {lexical_weight!r}")
        self.encoder = load_encoder(encoder) if isinstance(encoder, str) else encoder
        self.lexical_weight = lexical_weight
        self.depth = depth
        self._scorer = MaxSimScorer(reduction="mean")
        self._catalog = _Catalog({}, [], None)
        self._changing = threading.Lock()
        self.add(tools)

    def __repr__(self) -> str:
        return f"ToolIndex({len(self)} tools, model={self.encoder.name!r})"

    def __len__(self) -> int:
        return len(self._catalog.tools)

    def __contains__(self, name: object) -> bool:
        return name in self._catalog.tools

    def __getitem__(self, name: str) -> Any:
        """The tool of this name, as it was given; KeyError if there is none."""
        return self._catalog.tools[name]

    @property
    def names(self) -> list[str]:
        """In the order they were added."""
        return list(self._catalog.tools)

    def add(self, tools: Iterable[Tool]) -> list[str]:
        """Add tools, encoded in one pass; gives their names, which are their ids.

        Args:
            tools: JSON-schema tools as OpenAI (`{"type": "function", "function": {...}}`), Anthropic (`input_schema`)
                and MCP (`inputSchema`, dicts or the SDK's objects) write them, or Python functions. Also what an MCP
                session's `list_tools` answers, as it is.

        Raises:
            InputError: a tool has no name, or one that another tool has; none is added.
        """
        return self._add(tools, {})

    def _add(self, tools: Iterable[Tool], known: Mapping[str, NDArray[np.floating]]) -> list[str]:
        """`add`, with token vectors of texts that need not be encoded."""
        # An MCP session's answer to list_tools keeps them in an attribute.
        given = list(getattr(tools, "tools", tools))
        read = [_read(tool) for tool in given]
        names = [name for name, _ in read]
        texts = [text for _, text in read]
        with self._changing:
            before = self._catalog
            times = Counter([*before.tools, *names])
            if repeated := sorted(name for name in set(names) if times[name] > 1):
                raise InputError(f"each tool needs a name of its own, these come more than once: {', '.join(repeated)}")
            if not given:
                return []
            vectors = {**known, **self._encode([(name, text) for name, text in read if text not in known])}
            added = TokenBatch.from_list([vectors[text] for text in texts])
            self._catalog = _Catalog(
                {**before.tools, **dict(zip(names, given, strict=True))},
                [*before.texts, *texts],
                TokenBatch.concatenate([batch for batch in (before.tokens, added) if batch is not None]),
            )
        return names

    def _encode(self, tools: Sequence[tuple[str, str]]) -> dict[str, NDArray[np.float16]]:
        """Token vectors by text, of tools given as name and text."""
        if not tools:
            return {}
        texts = [text for _, text in tools]
        tokens = self.encoder.encode_documents(texts)
        if len(tokens) != len(texts):
            raise EncoderError(f"{self.encoder.name} gave {tokens!r} for {len(texts)} tools")
        if len(empty := np.flatnonzero(tokens.lengths == 0)):
            raise InputError(f"tool {tools[empty[0]][0]!r}: {self.encoder.name} finds no token in its text")
        return {text: vectors.astype(np.float16) for text, vectors in zip(texts, tokens, strict=True)}

    def remove(self, names: str | Iterable[str]) -> int:
        """Remove tools by name; answers how many there were. Unknown names do no harm."""
        gone = {names} if isinstance(names, str) else set(names)
        with self._changing:
            before = self._catalog
            kept = [position for position, name in enumerate(before.tools) if name not in gone]
            if before.tokens is not None and len(kept) < len(before.tools):
                self._catalog = _Catalog(
                    {name: tool for name, tool in before.tools.items() if name not in gone},
                    [before.texts[position] for position in kept],
                    before.tokens.select(kept),
                )
            return len(before.tools) - len(kept)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the catalog and its token vectors to one file, in the safetensors format; a file there is replaced.

        Tools are written as JSON. Functions and the MCP SDK's objects are written as JSON-schema tools, which is what
        `load` gives back for them if it is not given the tools anew.

        Raises:
            InputError: a tool holds what JSON cannot, such as an object among its defaults; nothing is written.
        """
        from safetensors.numpy import save

        catalog = self._catalog
        described = {
            "format": _FILE_FORMAT,
            "model": self.encoder.name,
            "fingerprint": self.encoder.fingerprint,
            "lexical_weight": self.lexical_weight,
            "depth": self.depth,
            "tools": [_json(name, tool) for name, tool in catalog.tools.items()],
            "texts": catalog.texts,
        }
        tokens = catalog.tokens
        vectors = np.empty((0, self.encoder.dim), np.float16) if tokens is None else tokens.vectors
        lengths = np.zeros(0, np.int64) if tokens is None else tokens.lengths
        written = save({"vectors": vectors, "lengths": lengths}, {"manyvec_tools": json.dumps(described)})
        file = Path(path).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        # Whoever reads meanwhile sees the old file or the new one, and a run that is killed leaves the old one.
        part = file.with_name(f".{file.name}.{uuid4().hex}")
        try:
            part.write_bytes(written)
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(
        cls, path: str | PathLike[str], encoder: str | Encoder | None = None, *, tools: Iterable[Tool] | None = None
    ) -> Self:
        """Read what `save` wrote; nothing that is in the file is encoded again.

        Args:
            encoder: by default the one it was saved with; nothing is downloaded unasked, so a hub model that this
                machine does not have yet must be named here.
            tools: what the catalog is to hold now. Tools that are new, or whose text has changed, are encoded. By
                default the tools of the file, as JSON.

        Raises:
            IndexNotFoundError: there is no such file.
            ManifestError: it is no file of tools, or was written with another encoder.
        """
        described, saved = _read_file(Path(path).expanduser())
        if encoder is None:
            encoder = load_encoder(described["model"], local_files_only=True)
        elif isinstance(encoder, str):
            encoder = load_encoder(encoder)
        if encoder.fingerprint != described["fingerprint"]:
            raise ManifestError(
                f"{path} holds tools encoded with {described['model']}, the encoder is {encoder.name} or has other "
                f"weights: load it with {described['model']}, or build a new ToolIndex"
            )
        index = cls(encoder, lexical_weight=described["lexical_weight"], depth=described["depth"])
        index._add(described["tools"] if tools is None else tools, dict(zip(described["texts"], saved, strict=True)))
        return index

    def select(self, query: str, k: int = 10) -> list[ToolHit]:
        """Find the tools that fit a request best.

        Args:
            query: what is to be done, or a tool's exact name: that tool then comes first.
            k: how many, at most.

        Returns:
            Hits, best first; equal scores in the order of names. Empty without tools, or for a query without tokens.

        Raises:
            InputError: `query` is no text, or `k` is negative.
        """
        if not isinstance(query, str):
            raise InputError(f"a query is a text, got {type(query).__name__}")
        check_unicode(query, "the query")
        if isinstance(k, bool) or not isinstance(k, int) or k < 0:
            raise InputError(f"k must be a whole number, 0 or more, got {k!r}")
        catalog = self._catalog
        if catalog.tokens is None or not catalog.tools or k == 0:
            return []
        return self.select_encoded(query, self.encoder.encode_queries([query]), k)

    def select_encoded(self, query: str, tokens: TokenBatch, k: int = 10) -> list[ToolHit]:
        """`select` for a query whose token vectors are there already, as a batch of one."""
        catalog = self._catalog
        named = catalog.named(query)
        if catalog.tokens is None or not tokens.n_tokens:
            return []
        lexical = np.float32(self.lexical_weight) * catalog.bm25.scores(words_of(query))
        chosen = catalog.candidates(tokens, lexical, max(self.depth, k), named)
        similarities = self._scorer.score(tokens[0], catalog.tokens, chosen)
        scores = similarities + lexical[chosen]
        names = catalog.names[chosen]
        ordering = scores.copy()
        for position in named:
            # The name decides; among names that differ in case only, the very one.
            is_exact = catalog.names[position] == query.strip()
            ordering[np.searchsorted(chosen, position)] = np.inf if is_exact else np.finfo(np.float32).max
        return [
            ToolHit(names[i], float(scores[i]), float(similarities[i]), rank, catalog.tools[names[i]])
            for rank, i in enumerate(top_k(ordering, names, k), start=1)
        ]


class _Catalog:
    """The tools between two changes. Never changes, so that a selection reads one."""

    def __init__(self, tools: dict[str, Any], texts: list[str], tokens: TokenBatch | None) -> None:
        self.tools = tools
        self.texts = texts
        self.tokens = tokens
        self.names = np.array(list(tools), object)
        self.bm25 = BM25([words_of(text) for text in texts])
        self.pooled = tokens.pooled() if tokens is not None and len(tokens) else None
        self._folded: dict[str, list[int]] = {}
        for position, name in enumerate(tools):
            self._folded.setdefault(name.casefold(), []).append(position)

    def named(self, query: str) -> list[int]:
        """Places of the tools whose name the whole query is, whatever its case."""
        return self._folded.get(query.strip().casefold(), [])

    def candidates(self, tokens: TokenBatch, lexical: Scores, depth: int, named: list[int]) -> NDArray[np.int64]:
        """Places worth an exact score, rising: the `depth` best by mean vectors and words, and those named."""
        if len(self.tools) <= depth or self.pooled is None:
            return np.arange(len(self.tools))
        likely = self.pooled @ tokens.pooled()[0] + lexical
        return np.union1d(np.argpartition(-likely, depth)[:depth], np.array(named, np.int64))


def _read(tool: Any) -> tuple[str, str]:
    """The name and the text of a tool.

    Raises:
        InputError: it is none of the known kinds, or has no name.
    """
    values = _schema(tool)
    if isinstance(inner := values.get("function"), Mapping):
        values = inner
    name, description = values.get("name"), values.get("description") or ""
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"a tool needs a name, got {name!r} with the keys {sorted(map(str, values))}")
    if not isinstance(description, str):
        raise InputError(f"tool {name!r}: the description must be a text, got {type(description).__name__}")
    spoken = " ".join(name_parts(name))
    schema: Any = next((values[key] for key in ("parameters", "input_schema", "inputSchema") if values.get(key)), {})
    parts = [name if spoken == name else f"{name} {spoken}", description.strip(), "; ".join(_arguments(schema))]
    text = ". ".join(part.rstrip(".") for part in parts if part)
    check_unicode(text, f"tool {name!r}")
    return name, text


def _schema(tool: Any) -> Mapping[str, Any]:
    """The tool as a JSON-schema tool; one that is a dict as it is.

    Raises:
        InputError: it is none of the known kinds.
    """
    if isinstance(tool, Mapping):
        return tool
    # The MCP SDK's Tool, of its versions 1 and 2.
    if (schema := getattr(tool, "inputSchema", getattr(tool, "input_schema", None))) is not None:
        return {"name": tool.name, "description": getattr(tool, "description", None), "inputSchema": schema}
    if callable(tool) and hasattr(tool, "__name__"):
        return _of_function(tool)
    raise InputError(f"a tool is a dict with a name, or a function, got {type(tool).__name__}")


def _json(name: str, tool: Any) -> Mapping[str, Any]:
    schema = _schema(tool)
    try:
        json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise InputError(f"tool {name!r} cannot be saved as JSON: {error}") from error
    return schema


def _read_file(file: Path) -> tuple[dict[str, Any], TokenBatch]:
    """What `save` wrote: the description, and token vectors in the order of its texts."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as content:
            described = json.loads((content.metadata() or {})["manyvec_tools"])
            lengths, vectors = content.get_tensor("lengths"), content.get_tensor("vectors")
        if described["format"] != _FILE_FORMAT:
            raise ManifestError(f"{file} has the format {described['format']}, this version reads {_FILE_FORMAT}")
        return described, TokenBatch(vectors, offsets_of(lengths))
    except FileNotFoundError as error:
        raise IndexNotFoundError(f"there is no file {file}: write it with ToolIndex.save") from error
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{file} is not what ToolIndex.save writes, or damaged: {error!r}") from error


def _of_function(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-in functions have none
        parameters = []
    properties = {
        parameter.name: {"description": "" if parameter.annotation is parameter.empty else _annotation(parameter)}
        for parameter in parameters
    }
    return {
        "name": function.__name__,
        "description": inspect.getdoc(function),
        "parameters": {"properties": properties},
    }


def _annotation(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _arguments(schema: Any) -> Iterator[str]:
    """`name: description` of each argument, and of those inside it, wherever the schema keeps them."""
    if isinstance(schema, Mapping):
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            for name, value in properties.items():
                description = value.get("description") if isinstance(value, Mapping) else None
                yield f"{name}: {description}" if isinstance(description, str) and description else str(name)
                yield from _arguments(value)
        for key, value in schema.items():
            if key not in ("properties", "default", "examples", "enum", "const"):
                yield from _arguments(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _arguments(value)
