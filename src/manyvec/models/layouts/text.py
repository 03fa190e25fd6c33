"""Build the `MultiVectorEncoder` of a text checkpoint, one function per family.

Each assembles sentence-transformers modules: a backbone, the token projection of the checkpoint, a mask of the tokens
that count, and normalisation if the family has it. No weight is ever initialised at random: a missing one is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from manyvec.errors import EncoderError
from manyvec.models import bert
from manyvec.models.adapter import adapted
from manyvec.models.checkpoints import Checkpoint, LoadOptions
from manyvec.models.colbert import PROJECTION, ColbertSettings
from manyvec.models.text import max_positions

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense

_TOKENIZERS = ("tokenizer.json", "vocab.*", "*.model")


def last_hidden_state(checkpoint: Checkpoint, options: LoadOptions) -> MultiVectorEncoder:
    """Build any transformer: unit vectors of its last hidden state, without special tokens."""
    from sentence_transformers.base.modules import Normalize

    weights, projection = _adapted(checkpoint)
    backbone = _backbone(checkpoint, options, weights=weights or None)
    if backbone.module_output_name != "token_embeddings" or "text" not in backbone.modality_config:
        raise checkpoint.error(
            f"{type(backbone.model).__name__} returns one vector per text and has no token vectors. Load a model that "
            "has them: `manyvec models` lists some"
        )
    specials = set(backbone.tokenizer.all_special_tokens) - {backbone.tokenizer.unk_token}
    dense = [] if projection is None else [_dense(checkpoint, projection)]
    mask = _mask(sorted(specials), "query", "document")
    return _model([backbone, *dense, mask, Normalize("token_embeddings")], options)


def sentence_transformers_modules(checkpoint: Checkpoint, options: LoadOptions) -> MultiVectorEncoder:
    """Build a model that sentence-transformers or PyLate saved, with the modules, markers and lengths it names."""
    from sentence_transformers import MultiVectorEncoder

    from manyvec.models.layouts.modules import Backbone

    transformers = {
        module["type"]: Backbone
        for module in checkpoint.modules
        if module["type"].startswith("sentence_transformers.") and module["type"].endswith("Transformer")
    }
    model = MultiVectorEncoder._load_with_module_classes(
        str(checkpoint.folder), transformers, device=options.device, **options.arguments
    )
    return _finished(model, options)


def inline_linear(checkpoint: Checkpoint, options: LoadOptions) -> MultiVectorEncoder:
    """Build Stanford's ColBERT and models trained with its code; see `ColbertSettings`."""
    from sentence_transformers.base.modules import Normalize
    from tokenizers import AddedToken

    linear = checkpoint.weights(PROJECTION).get(PROJECTION)
    if linear is None:
        raise checkpoint.error(f"it is a ColBERT without a token projection: {PROJECTION} is missing from its weights")
    # transformers cannot read Stanford's .dnn files.
    is_dnn = checkpoint.weight_files[0].endswith(".dnn")
    backbone = _backbone(checkpoint, options, weights=_without_prefix(checkpoint.weights()) if is_dnn else None)
    tokenizer = backbone.tokenizer
    settings = ColbertSettings.read(checkpoint, tokenizer.backend_tokenizer, tokenizer.unk_token)
    backbone.document_length, backbone.query_expansion = settings.document_length, settings.query_expansion
    # Added as special tokens, or the tokenizer would split "[unused0]" into pieces.
    new = sorted(set(settings.markers.values()) - set(tokenizer.all_special_tokens))
    special = [AddedToken(marker, normalized=False, special=True) for marker in new]
    tokenizer.add_special_tokens({"additional_special_tokens": special}, replace_extra_special_tokens=False)
    mask = _mask(settings.skipped, "document")
    modules = [backbone, _dense(checkpoint, linear), mask, Normalize("token_embeddings")]
    return _model(modules, options, prompts=settings.prompts)


def margin_mse(checkpoint: Checkpoint, options: LoadOptions) -> MultiVectorEncoder:
    """Build ColBERT trained with margin-MSE: DistilBERT and a `compressor` with bias; dot products instead of cosines.

    It has no markers, adds eight [MASK]s to every query regardless of length, and skips no token.
    """
    base = checkpoint.base(checkpoint.config["bert_model"], local_files_only=options.local_files_only)
    weights = checkpoint.weights()
    if "compressor.weight" not in weights:
        raise checkpoint.error("the token projection compressor.weight is missing from its weights")
    compressor, bias = weights.pop("compressor.weight"), weights.pop("compressor.bias", None)
    backbone = _backbone(base, options, weights=_without_prefix(weights), n_masks=8)
    if checkpoint.has("vocab.txt") or checkpoint.has("tokenizer.json"):
        from transformers import AutoTokenizer

        backbone.processor = AutoTokenizer.from_pretrained(str(checkpoint.folder), config=backbone.config)
    return _model([backbone, _dense(checkpoint, compressor, bias), _mask([], "document")], options)


def bge_m3(checkpoint: Checkpoint, options: LoadOptions) -> MultiVectorEncoder:
    """Build BGE-M3: XLM-RoBERTa and `colbert_linear.pt`; every token counts except the first."""
    from sentence_transformers.base.modules import Normalize

    backbone = _backbone(checkpoint, options)
    linear = checkpoint.tensors("colbert_linear.pt")
    if "weight" not in linear:
        raise checkpoint.error(f"colbert_linear.pt must hold the `weight` of a projection, got {sorted(linear)}")
    dense = _dense(checkpoint, linear["weight"], linear.get("bias"))
    mask = _mask([backbone.tokenizer.cls_token], "query", "document")
    return _model([backbone, dense, mask, Normalize("token_embeddings")], options)


def _adapted(checkpoint: Checkpoint) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """Return the weights with those of the checkpoint's adapter, and its projection; nothing if there is no adapter."""
    import torch

    if checkpoint.adapter is None:
        return {}, None
    weights = adapted({name: weight.numpy() for name, weight in checkpoint.weights().items()}, checkpoint.adapter)
    tensors = {name: torch.from_numpy(weight) for name, weight in weights.items()}
    return tensors, tensors.pop(bert.PROJECTION)


def _backbone(checkpoint: Checkpoint, options: LoadOptions, **settings: Any) -> Any:
    """Load the transformer of a checkpoint; `settings` override its own."""
    from manyvec.models.layouts.modules import Backbone

    # Without these files transformers would silently build a tokenizer with an empty vocabulary.
    if not any(any(checkpoint.folder.glob(pattern)) for pattern in _TOKENIZERS):
        raise checkpoint.error(f"it has no tokenizer: none of {', '.join(_TOKENIZERS)} exists")
    folder = str(checkpoint.folder)
    return Backbone(folder, **Backbone._load_init_kwargs(folder, **options.arguments) | settings)


def _dense(checkpoint: Checkpoint, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Dense:
    from manyvec.models.layouts.modules import token_projection

    if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        shapes = tuple(weight.shape), None if bias is None else tuple(bias.shape)
        raise checkpoint.error(f"its token projection must be (dim, hidden size) with a bias of (dim,), got {shapes}")
    return token_projection(weight, bias)


def _mask(skipped: list[str], *tasks: str) -> torch.nn.Module:
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    return MultiVectorMask(skiplist_words=skipped, skiplist_tasks=list(tasks))


def _model(
    modules: list[torch.nn.Module], options: LoadOptions, prompts: dict[str, str] | None = None
) -> MultiVectorEncoder:
    from sentence_transformers import MultiVectorEncoder

    return _finished(MultiVectorEncoder(modules=modules, device=options.device, prompts=prompts), options)


def _finished(model: MultiVectorEncoder, options: LoadOptions) -> MultiVectorEncoder:
    """Return the model in the requested dtype, after checking that the widths of its modules match."""
    from sentence_transformers.base.modules import Dense

    backbone: Any = model[0]
    width = backbone.get_embedding_dimension()
    for module in list(model)[1:]:
        if isinstance(module, Dense):
            if module.in_features != width:
                raise EncoderError(
                    f"its token projection expects {module.in_features} dims, the module before it returns {width}"
                )
            width = module.out_features
    limit, expansion = max_positions(backbone), backbone.query_expansion
    if expansion and limit and expansion["length"] > limit:
        raise EncoderError(f"it fills queries up to {expansion['length']} tokens, but reads at most {limit} at a time")
    return model.to(dtype=options.torch_dtype).eval() if options.backend == "torch" else model.eval()


def _without_prefix(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights of the backbone, without the prefix `bert.`, `roberta.`, `bert_model.` of their names."""
    prefix = next((name.partition("embeddings.")[0] for name in weights if "embeddings." in name), "")
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


Builder = Callable[[Checkpoint, LoadOptions], "MultiVectorEncoder"]
