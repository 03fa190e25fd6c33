"""What a checkpoint of Stanford's ColBERT (https://arxiv.org/abs/2004.12832) states beside its weights.

A marker follows [CLS], queries are filled up with [MASK], and punctuation in documents is skipped. Lengths are those in
artifact.metadata, or colbert-ai's defaults if that file is missing.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manyvec.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The weight of the token projection, (dim, hidden size), beside those of the backbone.
PROJECTION = "linear.weight"
_LENGTHS = {"query_maxlen": 32, "doc_maxlen": 220}


@dataclass(frozen=True)
class ColbertSettings:
    """Settings in the words of sentence-transformers.

    Attributes:
        markers: Token that follows [CLS], by task.
        document_length: Tokens of a document that the model reads at a time, special tokens included.
        query_expansion: To what length a query is filled up, and whether [MASK]s are attended to.
        skipped: Tokens of documents that have no vector.
    """

    markers: Mapping[str, str]
    document_length: int
    query_expansion: dict[str, Any]
    skipped: list[str]

    @classmethod
    def read(cls, checkpoint: Checkpoint, tokenizer: Tokenizer, unknown: str) -> ColbertSettings:
        """Read artifact.metadata; the tokenizer says which tokens there are, all others being `unknown`.

        Raises:
            EncoderError: A length is not a positive integer.
        """
        settings = checkpoint.object("artifact.metadata")
        lengths = {name: settings.get(name) or default for name, default in _LENGTHS.items()}
        for name, length in lengths.items():
            if type(length) is not int or length < 1:
                raise checkpoint.error(f"artifact.metadata: {name} must be a positive integer, got {length!r}")

        def token(name: str) -> str:
            # colbert-ai inserts the id of the marker, which is that of [UNK] if the vocabulary lacks the marker.
            return name if tokenizer.token_to_id(name) is not None else unknown

        markers = {
            "query": token(settings.get("query_token_id") or "[unused0]"),
            "document": token(settings.get("doc_token_id") or "[unused1]"),
        }
        symbols = string.punctuation if settings.get("mask_punctuation", True) else ""
        pieces = [tokenizer.encode(symbol, add_special_tokens=False).tokens[:1] for symbol in symbols]
        expansion = {"strategy": "fixed", "attend": bool(settings.get("attend_to_mask_tokens")), "token": None}
        return cls(
            markers=markers,
            document_length=lengths["doc_maxlen"],
            query_expansion=expansion | {"length": lengths["query_maxlen"]},
            skipped=list(dict.fromkeys(token for piece in pieces for token in piece)),
        )

    @property
    def prompts(self) -> dict[str, str]:
        """What is put before a text for its marker to follow [CLS]."""
        return {task: f"{marker} " for task, marker in self.markers.items()}
