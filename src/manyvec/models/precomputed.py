"""`Vectors`: takes the place of the encoder in an index whose token vectors are computed elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from manyvec.errors import InputError, check_count
from manyvec.vectors.batch import TokenBatch


@dataclass(frozen=True)
class Vectors:
    """Stands for a model that runs elsewhere, such as behind an API, in an index that only stores and scores vectors.

    Documents of such an index come with `Document.vectors`, and queries are token vectors of the same model. Strings
    and images cannot be encoded: they raise `InputError`.

    Args:
        name: Name of the model that computes the vectors.
        dim: Dimension of its token vectors.
        normalized: Whether the vectors must have unit length (within 10 %). False for a model that compares by dot
            product.

    Raises:
        InputError: The name is empty, or `dim` is not a positive integer.
    """

    name: str
    dim: int
    normalized: bool = True
    crops_images: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"the name of the model must be a non-empty string, got {self.name!r}")
        object.__setattr__(self, "dim", check_count(self.dim, "dim", minimum=1))

    @classmethod
    def of(cls, name: str, dim: int, fingerprint: str) -> Vectors | None:
        """Return the `Vectors` with this fingerprint; None if it is that of a model which encodes."""
        made = (cls(name, dim, normalized) for normalized in (True, False))
        return next((vectors for vectors in made if vectors.fingerprint == fingerprint), None)

    @property
    def fingerprint(self) -> str:
        """See `Encoder`. The weights are unknown, so that the name stands for them."""
        return f"vectors:{self.name}:{self.dim}:{'unit' if self.normalized else 'any'}"

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Raise `InputError`: only token vectors can be searched for."""
        self._refuse("a query must be its", "a string")

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Raise `InputError`: documents come with their vectors."""
        self._refuse("a document must come with its", "a text alone")

    def encode_images(self, images: Sequence[Any]) -> TokenBatch:
        """Raise `InputError`, as the other two."""
        self._refuse("an image must come with its", "an image alone")

    def _refuse(self, wanted: str, got: str) -> NoReturn:
        raise InputError(
            f"the token vectors of {self.name} are computed outside manyvec: {wanted} token vectors, of shape "
            f"(n_tokens, {self.dim}), got {got}"
        )
