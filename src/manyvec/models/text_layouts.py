"""From a text checkpoint to the `MultiVectorEncoder` that does that family's arithmetic.

Each function builds one family out of sentence-transformers' modules: a backbone, the checkpoint's own projection, the
tokens that count, unit length where the family has it. Nothing is made up: what the checkpoint lacks is an error.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manyvec.errors import EncoderError
from manyvec.models.checkpoints import Checkpoint

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense


_TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model")


@dataclass(frozen=True)
class Loading:
    """How a checkpoint is to be loaded."""

    device: str = "cpu"
    dtype: str | None = None
    backend: str = "torch"
    local_files_only: bool = False
    trust_remote_code: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """For sentence-transformers' `Transformer.load` and `MultiVectorEncoder`."""
        return {
            "backend": self.backend,
            "local_files_only": True,
            "trust_remote_code": self.trust_remote_code,
            "model_kwargs": {"dtype": self.torch_dtype} if self.backend == "torch" else {},
        }

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return getattr(torch, self.dtype or "float32")


def last_hidden_state(checkpoint: Checkpoint, loading: Loading) -> MultiVectorEncoder:
    """Any transformer: unit vectors of its last hidden state, special tokens left out."""
    from sentence_transformers.base.modules import Normalize

    backbone = _backbone(checkpoint, loading)
    if backbone.module_output_name != "token_embeddings" or "text" not in backbone.modality_config:
        raise checkpoint.error(
            f"{type(backbone.model).__name__} gives one vector for a text, and has no token vectors. Load a model that "
            "has them: `manyvec models` lists some"
        )
    specials = set(backbone.tokenizer.all_special_tokens) - {backbone.tokenizer.unk_token}
    return _model([backbone, _mask(sorted(specials), "query", "document"), Normalize("token_embeddings")], loading)


def sentence_transformers_modules(checkpoint: Checkpoint, loading: Loading) -> MultiVectorEncoder:
    """What sentence-transformers or PyLate saved: it says itself which modules, markers and lengths it has."""
    from sentence_transformers import MultiVectorEncoder

    from manyvec.models.torch_modules import Backbone

    transformers = {
        module["type"]: Backbone
        for module in checkpoint.modules
        if module["type"].startswith("sentence_transformers.") and module["type"].endswith("Transformer")
    }
    model = MultiVectorEncoder._load_with_module_classes(
        str(checkpoint.folder), transformers, device=loading.device, **loading.arguments
    )
    return _finished(model, loading)


def inline_linear(checkpoint: Checkpoint, loading: Loading) -> MultiVectorEncoder:
    """Stanford's ColBERT and those that use its training code: `linear.weight` beside the backbone's weights.

    Markers stand behind [CLS], queries are filled up with [MASK], documents leave out punctuation. artifact.metadata
    says how long they are; where it is missing, colbert-ai's defaults hold.
    """
    from sentence_transformers.base.modules import Normalize
    from tokenizers import AddedToken

    settings = checkpoint.json("artifact.metadata") or {}
    linear = checkpoint.weights("linear.weight").get("linear.weight")
    if linear is None:
        raise checkpoint.error(
            "it is a ColBERT without a token projection: its weights lack linear.weight, and one that is made up would "
            "only give noise"
        )
    # transformers does not know Stanford's .dnn files.
    is_dnn = checkpoint.weight_files[0].endswith(".dnn")
    backbone = _backbone(
        checkpoint,
        loading,
        weights=_without_prefix(checkpoint.weights()) if is_dnn else None,
        document_length=settings.get("doc_maxlen") or 220,
        query_expansion={
            "strategy": "fixed",
            "attend": bool(settings.get("attend_to_mask_tokens")),
            "length": settings.get("query_maxlen") or 32,
        },
    )
    tokenizer = backbone.tokenizer
    # colbert-ai puts in the marker's id, which is that of [UNK] where the vocabulary lacks the marker.
    markers = {
        task: tokenizer.convert_ids_to_tokens(tokenizer.convert_tokens_to_ids(settings.get(key) or default))
        for task, key, default in (("query", "query_token_id", "[unused0]"), ("document", "doc_token_id", "[unused1]"))
    }
    # Special, or the tokenizer would cut "[unused0]" into pieces.
    new = sorted(set(markers.values()) - set(tokenizer.all_special_tokens))
    special = [AddedToken(marker, normalized=False, special=True) for marker in new]
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    skipped = string.punctuation if settings.get("mask_punctuation", True) else ""
    pieces = [tokenizer(symbol, add_special_tokens=False)["input_ids"][:1] for symbol in skipped]
    skiplist = list(dict.fromkeys(tokenizer.convert_ids_to_tokens([id for piece in pieces for id in piece])))
    modules = [backbone, _dense(checkpoint, linear), _mask(skiplist, "document"), Normalize("token_embeddings")]
    return _model(modules, loading, prompts={task: f"{marker} " for task, marker in markers.items()})


def margin_mse(checkpoint: Checkpoint, loading: Loading) -> MultiVectorEncoder:
    """ColBERT trained with margin-MSE: a `compressor` with a bias over DistilBERT, dot products instead of cosines.

    No markers; eight [MASK]s behind every query, whatever its length; every token counts.
    """
    base = checkpoint.base(checkpoint.config["bert_model"], local_files_only=loading.local_files_only)
    weights = checkpoint.weights()
    if "compressor.weight" not in weights:
        raise checkpoint.error("its weights lack the token projection compressor.weight, which would be made up")
    compressor, bias = weights.pop("compressor.weight"), weights.pop("compressor.bias", None)
    backbone = _backbone(base, loading, weights=_without_prefix(weights), n_masks=8)
    if checkpoint.has("vocab.txt") or checkpoint.has("tokenizer.json"):
        from transformers import AutoTokenizer

        backbone.processor = AutoTokenizer.from_pretrained(str(checkpoint.folder), config=backbone.config)
    return _model([backbone, _dense(checkpoint, compressor, bias), _mask([], "document")], loading)


def bge_m3(checkpoint: Checkpoint, loading: Loading) -> MultiVectorEncoder:
    """BGE-M3: `colbert_linear.pt` over XLM-RoBERTa; every token counts but the first."""
    from sentence_transformers.base.modules import Normalize

    backbone = _backbone(checkpoint, loading)
    linear = checkpoint.tensors("colbert_linear.pt")
    if "weight" not in linear:
        raise checkpoint.error(f"colbert_linear.pt holds {sorted(linear)}, not the weight of a projection")
    dense = _dense(checkpoint, linear["weight"], linear.get("bias"))
    mask = _mask([backbone.tokenizer.cls_token], "query", "document")
    return _model([backbone, dense, mask, Normalize("token_embeddings")], loading)


def _backbone(checkpoint: Checkpoint, loading: Loading, **options: Any) -> Any:
    from manyvec.models.torch_modules import Backbone

    # transformers would make up an empty vocabulary.
    if not any(any(checkpoint.folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise checkpoint.error(f"it has no tokenizer: none of {', '.join(_TOKENIZERS)} is there")
    folder = str(checkpoint.folder)
    return Backbone(folder, **Backbone._load_init_kwargs(folder, **loading.arguments) | options)


def _dense(checkpoint: Checkpoint, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Dense:
    import torch
    from sentence_transformers.base.modules import Dense

    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = tuple(weight.shape), None if bias is None else tuple(bias.shape)
        raise checkpoint.error(f"its token projection must be (dim, hidden size) with a bias of (dim,), got {shapes}")
    return Dense(
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        activation_function=torch.nn.Identity(),
        init_weight=weight,
        init_bias=bias,
        module_input_name="token_embeddings",
    )


def _mask(skipped: list[str], *tasks: str) -> torch.nn.Module:
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    return MultiVectorMask(skiplist_words=skipped, skiplist_tasks=list(tasks))


def _model(
    modules: list[torch.nn.Module], loading: Loading, prompts: dict[str, str] | None = None
) -> MultiVectorEncoder:
    from sentence_transformers import MultiVectorEncoder

    return _finished(MultiVectorEncoder(modules=modules, device=loading.device, prompts=prompts), loading)


def _finished(model: MultiVectorEncoder, loading: Loading) -> MultiVectorEncoder:
    """The model in the dtype asked for, once each module is known to take what the one before it gives."""
    from sentence_transformers.base.modules import Dense

    backbone: Any = model[0]
    width = backbone.get_embedding_dimension()
    for module in list(model)[1:]:
        if isinstance(module, Dense):
            if module.in_features != width:
                raise EncoderError(
                    f"its token projection takes {module.in_features} dims, what comes before it gives {width}"
                )
            width = module.out_features
    return model.to(dtype=loading.torch_dtype).eval() if loading.backend == "torch" else model.eval()


def _without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The backbone's weights by its own names: without `bert.`, `roberta.`, `bert_model.` …"""
    prefix = next((name.partition("embeddings.")[0] for name in weights if "embeddings." in name), "")
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


Builder = Callable[[Checkpoint, Loading], "MultiVectorEncoder"]
