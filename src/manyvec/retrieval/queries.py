"""Queries of a search: strings, images, token vectors, or several of these together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, InputError, check_query
from manyvec.models.protocol import Encoder, ImageReader
from manyvec.vectors.batch import TokenBatch, offsets_of

if TYPE_CHECKING:
    from PIL.Image import Image

QueryPart: TypeAlias = "str | Path | bytes | Image | TokenBatch | NDArray[np.floating] | Sequence[Sequence[float]]"
AnyQuery: TypeAlias = "QueryPart | tuple[QueryPart, ...]"


def encode(
    queries: Sequence[AnyQuery] | TokenBatch, load: Callable[[], Encoder], dim: int
) -> tuple[list[str], TokenBatch]:
    """Return the text and the token vectors of each query.

    All strings are encoded in one pass and all images in another. If there are neither, the encoder is not loaded.

    Args:
        queries: Strings, images (a `Path`, the bytes of a file, or a PIL image), token vectors (an array of shape
            (n_tokens, dim), or a `TokenBatch` of one item), or tuples of these, whose scores add up.
        load: Returns the encoder of the index.
        dim: Dimension of the index.

    Returns:
        Texts, empty for queries without a string, and token vectors, with spans if every query is a string.

    Raises:
        InputError: A query is of another type, the model reads no images, or token vectors have another shape or are
            not finite.
    """
    if all(isinstance(query, str) for query in queries):
        texts = [check_query(query) for query in queries]
        return texts, _checked(load().encode_queries(texts), len(texts), dim, load)
    parts = [query if isinstance(query, tuple) else (query,) for query in queries]
    if not all(parts):
        raise InputError("a query that is a tuple must have at least one part")
    flat = [part for query in parts for part in query]
    strings = [check_query(part) for part in flat if isinstance(part, str)]
    images = [part for part in flat if _is_image(part)]
    of_strings = iter(_checked(load().encode_queries(strings), len(strings), dim, load) if strings else ())
    of_images = iter(_checked(_encode_images(images, load()), len(images), dim, load) if images else ())

    def vectors(part: Any) -> NDArray[np.float32]:
        encoded = of_strings if isinstance(part, str) else of_images if _is_image(part) else None
        return np.asarray(_token_vectors(part, dim) if encoded is None else next(encoded), np.float32)

    rows = [np.concatenate([vectors(part) for part in query]) for query in parts]
    texts = [" ".join(part for part in query if isinstance(part, str)) for query in parts]
    return texts, TokenBatch(np.concatenate(rows), offsets_of([len(each) for each in rows]), allow_empty=True)


def check_strings(queries: Sequence[AnyQuery] | TokenBatch, **options: object) -> None:
    """Raise an `InputError` if an option is set that needs words, and a query is not a string."""
    names = [name for name, value in options.items() if value]
    if names and not all(isinstance(query, str) for query in queries):
        raise InputError(f"{' and '.join(names)} can be used only if every query is a string")


def check_passages(queries: Sequence[AnyQuery] | TokenBatch) -> None:
    """Raise an `InputError` if passages cannot be scored: queries must all be strings, or all be token vectors."""
    if any(isinstance(query, (str, tuple)) or _is_image(query) for query in queries):
        check_strings(queries, passage_chars=True)


def _is_image(part: object) -> bool:
    return isinstance(part, (Path, bytes)) or type(part).__module__.partition(".")[0] == "PIL"


def _encode_images(images: Sequence[Any], encoder: Encoder) -> TokenBatch:
    if not isinstance(encoder, ImageReader):
        raise InputError(
            f"the query is an image, but {encoder.name} reads no images: search with text, or build the index with a "
            "model that reads images, such as ColPali"
        )
    return encoder.encode_images(images)


def _token_vectors(part: object, dim: int) -> NDArray[np.floating]:
    """Return token vectors that a user passed as a (n_tokens, dim) array, checked."""
    if isinstance(part, TokenBatch):
        if len(part) != 1:
            raise InputError(f"a query of token vectors must be a TokenBatch of one item, got {part!r}")
        part = part.vectors
    try:
        vectors = np.asarray(part)
    except ValueError:
        raise InputError("a query of token vectors must have rows of equal length") from None
    if vectors.ndim == 1 and vectors.dtype.kind == "f":
        raise InputError(
            f"a query of token vectors must have the shape (n_tokens, {dim}), got one vector of {len(vectors)} "
            "numbers: the index holds one vector per token, so search with the text itself"
        )
    if vectors.dtype.kind != "f":
        raise InputError(f"a query must be a string, an image or token vectors, got {type(part).__name__}")
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise InputError(f"a query of token vectors must have the shape (n_tokens, {dim}), got {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise InputError("a query of token vectors must be finite: it contains NaN or infinity")
    return vectors


def _checked(tokens: TokenBatch, n_queries: int, dim: int, load: Callable[[], Encoder]) -> TokenBatch:
    if len(tokens) != n_queries or tokens.dim != dim:
        raise EncoderError(f"{load().name} returned {tokens!r} for {n_queries} queries of dim {dim}")
    return tokens
