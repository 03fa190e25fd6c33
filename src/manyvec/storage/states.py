"""What is known of the rows of an index without reading their texts and token vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class VersionKey(NamedTuple):
    """Identifies a version of an index within this process.

    Attributes:
        generation: Number of the opened index; another index at the same URI has another number.
        version: Table version.
    """

    generation: int
    version: int


@dataclass(frozen=True)
class Stored:
    """What is known of a stored document without reading its text or token vectors."""

    row_id: int
    metadata: str
    content_hash: str

    def has_content(self, hashes: str) -> bool:
        """Return whether a `content_hash` of less, such as the text alone, is part of the stored one."""
        return f"{self.content_hash}:".startswith(f"{hashes}:")

    @property
    def text_hash(self) -> str:
        """The part of the hash that covers the text; see `schema.content_hash`."""
        return self.content_hash.partition(":")[0]


@dataclass(frozen=True)
class RowStates:
    """Every row of a version, in ascending order of row ids.

    Attributes:
        row_ids: (n,) ascending.
        updated: (n,) table version that last wrote the row. Together with the row id it identifies the row's content.
        n_tokens: (n,) number of token vectors.
        ids: (n,) ids of the documents.
        is_coded: (n,) bool, whether the token vectors are stored as codes (otherwise as float16).
    """

    row_ids: NDArray[np.int64]
    updated: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    ids: NDArray[np.object_]
    is_coded: NDArray[np.bool_]
