"""`Recipe`: what is done around BERT for a checkpoint to be an encoder, in the words of sentence-transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.models.bert import KINDS, PROJECTION, Weights
from manyvec.models.checkpoints import Checkpoint
from manyvec.models.colbert import ColbertSettings
from manyvec.models.windowed import Task

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What the files of a model that sentence-transformers saved say if nothing but BERT and a linear layer computes it.
_BACKBONE = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
_TOKENS = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
_DENSE = {"activation_function": "torch.nn.modules.linear.Identity", **_TOKENS}
# In the order of sentence-transformers: fingerprints are made from it.
_EXPANSION: Mapping[str, Any] = {"strategy": "fixed", "attend": False, "token": None, "length": 0}


@dataclass(frozen=True)
class Recipe:
    """What is done to a text before BERT, and to the last hidden state after it, before vectors are normalised.

    Attributes:
        skipped: (n,) ids of tokens that have no vector, by task.
        configs: Settings of the modules that sentence-transformers has behind BERT.
        weights: `projection.weight` (dim, hidden size), perhaps `projection.bias` (dim,); empty without a projection.
        prompts: What is put before a query or a document, by task.
        query_length: Maximum number of tokens of a query; None for that of the model.
        document_length: The same for a document or a window of one.
        query_expansion: To what `length` queries are filled up, and whether these tokens are attended to; None if not.
        expansion_token: Id of the token that fills queries up.
    """

    skipped: Mapping[Task, NDArray[np.int64]]
    configs: Sequence[Mapping[str, Any]]
    weights: Weights = field(default_factory=dict)
    prompts: Mapping[str, str] = field(default_factory=lambda: {"query": "", "document": ""})
    query_length: int | None = None
    document_length: int | None = None
    query_expansion: Mapping[str, Any] | None = None
    expansion_token: int = 0

    @classmethod
    def plain(cls, tokenizer: Tokenizer, projection: NDArray[np.float32] | None = None) -> Recipe:
        """Return the recipe that leaves out special tokens, and has no more than this (dim, hidden size) projection."""
        unknown = getattr(tokenizer.model, "unk_token", None)
        added = tokenizer.get_added_tokens_decoder()
        skipped = {id: token.content for id, token in added.items() if token.special and token.content != unknown}
        tasks: list[Task] = ["query", "document"]
        mask = {"skiplist_words": sorted(skipped.values()), "skiplist_tasks": tasks, "keep_only_token_ids": None}
        settings: list[Mapping[str, Any]] = [mask, _TOKENS]
        if projection is not None:
            settings.insert(0, _dense(projection))
        return cls(dict.fromkeys(tasks, np.array([*skipped], np.int64)), settings)

    @classmethod
    def stanford(cls, checkpoint: Checkpoint, tokenizer: Tokenizer, projection: NDArray[np.float32]) -> Recipe | None:
        """Return that of a ColBERT, and add its markers to the tokenizer; None if it lacks the mask token."""
        from tokenizers import AddedToken

        settings = ColbertSettings.read(checkpoint, tokenizer, tokenizer.model.unk_token)
        expansion_token = tokenizer.token_to_id(_mask_token(checkpoint))
        if expansion_token is None:
            return None
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        new = sorted({*settings.markers.values()} - special)
        tokenizer.add_special_tokens([AddedToken(marker, normalized=False, special=True) for marker in new])
        ids = [tokenizer.token_to_id(token) for token in settings.skipped]
        mask = {"skiplist_words": settings.skipped, "skiplist_tasks": ["document"], "keep_only_token_ids": None}
        return cls(
            {"query": np.array([], np.int64), "document": np.array(ids, np.int64)},
            [_dense(projection), mask, _TOKENS],
            {PROJECTION: projection},
            prompts=settings.prompts,
            document_length=settings.document_length,
            query_expansion=settings.query_expansion,
            expansion_token=expansion_token,
        )

    @classmethod
    def saved(cls, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Recipe | None:
        """Return that of a model which sentence-transformers saved; None for one that has more than this class."""
        backbone = checkpoint.object("sentence_bert_config.json")
        prompts = checkpoint.object("config_sentence_transformers.json").get("prompts") or {}
        lengths = {name: backbone.pop(name, None) for name in ("query_length", "document_length")}
        expansion = backbone.pop("query_expansion", None) or {}
        expansion_token = tokenizer.token_to_id(expansion.get("token") or _mask_token(checkpoint)) if expansion else 0
        backbone.pop("max_seq_length", None)
        kinds = [module["type"].rpartition(".")[2] for module in checkpoint.modules]
        is_known = (
            all(module["type"].startswith("sentence_transformers.") for module in checkpoint.modules)
            and kinds in (["Transformer", *dense, "MultiVectorMask", "Normalize"] for dense in ([], ["Dense"]))
            and backbone == _BACKBONE
            and {*prompts} == {"query", "document"}
            and expansion.get("strategy", "fixed") == "fixed"
            and {*expansion} <= {*_EXPANSION}
            and (not expansion or "length" in expansion)
        )
        if not is_known or expansion_token is None:
            return None
        *dense, mask, normalize = (checkpoint.object(f"{m['path']}/config.json") for m in checkpoint.modules[1:])
        words, tasks = mask.get("skiplist_words", []), mask.get("skiplist_tasks", ["document"])
        ids = [tokenizer.token_to_id(word) for word in words]
        if normalize != _TOKENS or mask.get("keep_only_token_ids") or None in ids:
            return None
        settings = [{"skiplist_words": words, "skiplist_tasks": tasks, "keep_only_token_ids": None}, _TOKENS]
        weights: Weights = {}
        if dense:
            shape = {name: dense[0].get(name) for name in ("in_features", "out_features", "bias")}
            if dense[0] != shape | _DENSE:
                return None
            from safetensors.numpy import load_file

            stored = load_file(checkpoint.path(f"{checkpoint.modules[1]['path']}/model.safetensors"))
            names = KINDS if shape["bias"] else KINDS[:1]
            weights = {f"projection.{name}": np.asarray(stored[f"linear.{name}"], np.float32) for name in names}
            settings.insert(0, shape | _DENSE)
        return cls(
            {task: np.array(ids if task in tasks else [], np.int64) for task in ("query", "document")},
            settings,
            weights,
            prompts={task: prompts[task] for task in ("query", "document")},
            query_length=lengths["query_length"],
            document_length=lengths["document_length"],
            query_expansion={**_EXPANSION, **expansion} if expansion else None,
            expansion_token=expansion_token,
        )

    def filled(self, task: Task) -> int:
        """Return to how many tokens a text is filled up; 0 if it is not."""
        return int(self.query_expansion["length"]) if self.query_expansion and task == "query" else 0


def _dense(projection: NDArray[np.float32]) -> dict[str, Any]:
    """Return the settings of the module that sentence-transformers has for a (dim, hidden size) projection."""
    out, width = projection.shape
    return {"in_features": width, "out_features": out, "bias": False, **_DENSE}


def _mask_token(checkpoint: Checkpoint) -> str:
    token = checkpoint.object("tokenizer_config.json").get("mask_token") or "[MASK]"
    return str(token["content"] if isinstance(token, dict) else token)
