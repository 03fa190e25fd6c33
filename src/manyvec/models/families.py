"""Model families: the list of them, and how to tell which one a checkpoint belongs to.

`manyvec models` prints `FAMILIES`, and a test compares the table in the README with it. `recognise` looks only at the
files of a checkpoint, never at its name.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manyvec.errors import EncoderError, check_fraction
from manyvec.models.checkpoints import TRUST_HINT, Checkpoint


@dataclass(frozen=True)
class Published:
    """A published checkpoint.

    Figures are from its model card, or else from that of its backbone; None where neither states them.

    Attributes:
        name: Repository on the Hugging Face hub.
        dim: Number of dimensions of a token vector.
        millions: Number of parameters, in millions.
        good_for: What to choose it for, in a few words.
        lexical_weight: Share of BM25 that ranks best with this model, measured on many data sets; 0 until it is
            measured. `manyvec eval --mix` measures it on one.
    """

    name: str
    dim: int | None
    millions: float | None
    good_for: str
    lexical_weight: float = 0


@dataclass(frozen=True)
class Family:
    """Checkpoints that share a file format and the computation from hidden states to token vectors.

    Attributes:
        key: Identifier in the code.
        name: Name for users.
        reads: `text`, `images` or `text, images`.
        recipe: File format and computation, in one line.
        published: Well-known checkpoints of the family.
    """

    key: str
    name: str
    reads: str
    recipe: str
    published: tuple[Published, ...]


FAMILIES = (
    Family(
        "inline_linear",
        "ColBERT",
        "text",
        "linear.weight beside the backbone; [Q]/[D] markers, [MASK] expansion, punctuation skipped",
        (
            Published("colbert-ir/colbertv2.0", 128, 110, "English; the reference"),
            Published("answerdotai/answerai-colbert-small-v1", 96, 33.4, "English, small and strong"),
            Published("jinaai/jina-colbert-v1-en", 128, 137, "English, 8,192 tokens; needs trust_remote_code"),
            Published("Crystalcareai/Colbertv2", 128, 110, "a copy of colbertv2.0"),
            Published("vespa-engine/col-minilm", 32, 22.3, "English, tiny vectors"),
            Published("vespa-engine/colbert-medium", 32, 41, "English, tiny vectors"),
            Published("vjeronymo2/mColBERT", None, None, "multilingual, mBERT"),
            Published("antoinelouis/colbert-xm", 128, 853, "81 languages; reads by its config's default_language"),
        ),
    ),
    Family(
        "sentence_transformers",
        "PyLate, sentence-transformers",
        "text",
        "modules.json with Dense; prompts, lengths and skip list as saved",
        (
            Published("lightonai/LateOn", 128, 149, "English; best quality, for a GPU or a fast CPU"),
            Published("lightonai/GTE-ModernColBERT-v1", 128, 149, "English, long documents"),
            Published("mixedbread-ai/mxbai-edge-colbert-v0-17m", 48, 17, "English; best for a CPU"),
        ),
    ),
    Family(
        "margin_mse",
        "ColBERT by margin-MSE",
        "text",
        "DistilBERT and compressor; 8 [MASK]s behind a query; dot products, not cosines",
        (Published("sebastian-hofstaetter/colbert-distilbert-margin_mse-T2-msmarco", 768, 66, "English, reranking"),),
    ),
    Family(
        "bge_m3",
        "BGE-M3",
        "text",
        "XLM-R and colbert_linear.pt; lexical weights and a dense vector in the same pass",
        (
            Published("BAAI/bge-m3", 1024, 569, "over 100 languages, 8,192 tokens"),
            Published("BAAI/bge-m3-unsupervised", 1024, 569, "BGE-M3 before its heads were trained: last hidden state"),
        ),
    ),
    Family(
        "pages",
        "ColPali",
        "text, images",
        "transformers' *ForRetrieval, or LoRA adapters over a base; one vector per patch of a page",
        (
            Published("vidore/colpali-v1.3-hf", 128, 2920, "pages, English"),
            Published("vidore/colqwen2-v1.0-hf", 128, 2210, "pages, any aspect ratio"),
            Published("vidore/colqwen2.5-v0.2", 128, 3750, "pages, any aspect ratio; larger"),
            Published("ModernVBERT/colmodernvbert", 128, 250, "pages on a CPU"),
        ),
    ),
    Family(
        "clip",
        "CLIP, SigLIP (FILIP)",
        "text, images",
        "patches and word tokens through the model's projections; mean of token-wise maxima, both directions",
        (
            Published("openai/clip-vit-base-patch32", 512, 151, "photographs and captions"),
            Published("google/siglip-base-patch16-224", 768, 203, "photographs and captions"),
        ),
    ),
    Family(
        "static",
        "model2vec",
        "text",
        "a table of token vectors and their weights; no transformer runs",
        (Published("minishlab/potion-retrieval-32M", 512, 32.3, "English, thousands of documents a second"),),
    ),
    Family(
        "last_hidden_state",
        "any other transformer",
        "text",
        "the last hidden state, special tokens left out; no projection but that of minilm-late",
        (
            # Not .3, whose mean over twelve sets is .001 higher: on one it is .014 below the best of BM25, pooled
            # vectors and MaxSim, and .27 is at most .009 below (`examples/benchmarks/mix.py`).
            Published("minilm", 384, 22.7, "English; all-MiniLM-L6-v2 from a package, no hub needed", 0.27),
            # Better than the best of the three on each of seven sets that it never saw; .4 has the same mean.
            Published("minilm-late", 128, 22.7, "English; minilm tuned for token vectors, a third of the bytes", 0.3),
        ),
    ),
)
BY_KEY = {family.key: family for family in FAMILIES}

_IMAGE_TEXT = ("clip", "siglip", "siglip2")
# Heads that score or label: the vectors below them were not trained to be compared.
_OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")


def recognise(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Family:
    """Return the family of a checkpoint.

    Raises:
        EncoderError: It belongs to none. The message lists all families and the nearest architecture.
    """
    return BY_KEY[_key(checkpoint, trust_remote_code)]


def nearest(name: str) -> str | None:
    """Return the published checkpoint whose name is most similar, or None if none is close."""
    names = {published.name.lower(): published.name for family in FAMILIES for published in family.published}
    short = {name.rpartition("/")[2]: full for name, full in names.items()} | names
    matches = difflib.get_close_matches(name.lower(), short, n=1, cutoff=0.7)
    return short[matches[0]] if matches else None


def lexical_weight(name: str) -> float:
    """Return the share of BM25 that was measured for the encoder with this name; 0 for one that was not measured.

    Args:
        name: Name of a published checkpoint, or the folder of a tuned model, in which `manyvec.tune` left its share.

    Raises:
        EncoderError: The folder holds a `tune.json` without a usable share.
    """
    published = (published for family in FAMILIES for published in family.published)
    found = next((model.lexical_weight for model in published if model.name == name), None)
    return _tuned_weight(os.path.join(name, "tune.json")) if found is None else found


def _tuned_weight(file: str) -> float:
    # Any string can be the name of an encoder: unlike pathlib's, this says no to one that cannot be a path.
    if not os.path.isfile(file):
        return 0
    try:
        report = json.loads(Path(file).read_text(encoding="utf-8"))
        return check_fraction(report.get("lexical_weight", 0), "lexical_weight")
    except (ValueError, AttributeError) as error:
        raise EncoderError(
            f"{file} is not as manyvec.tune wrote it: {error}. Tune again, or remove the file"
        ) from error


def _key(checkpoint: Checkpoint, trust_remote_code: bool) -> str:
    architectures, model_type = checkpoint.architectures, checkpoint.model_type
    types = [str(module.get("type", "")) for module in checkpoint.modules]
    if checkpoint.has("adapter_config.json") or any(name.endswith("ForRetrieval") for name in architectures):
        return "pages"
    if model_type in _IMAGE_TEXT:
        return "clip"
    if model_type == "model2vec" or "StaticModel" in architectures or (types and types[0].endswith("StaticEmbedding")):
        return "static"
    if checkpoint.has("colbert_linear.pt"):
        return "bge_m3"
    if model_type == "ColBERT" and "bert_model" in checkpoint.config:
        return "margin_mse"
    if types and _is_multi_vector(checkpoint, types):
        return "sentence_transformers"
    if {"HF_ColBERT", "ColBERT"} & set(architectures) or _has_linear(checkpoint):
        return "inline_linear"
    if types and not types[0].endswith("Transformer"):
        raise checkpoint.error(
            f"it returns one vector per text ({types[0].rpartition('.')[2]}) and has neither token vectors nor a token "
            "projection. Load a model that has them: `manyvec models` lists some"
        )
    if head := next((name for name in architectures if name.endswith(_OTHER_HEADS)), None):
        raise checkpoint.error(f"{head} scores or labels texts and has no token vectors to compare. {_choices()}")
    _check_known(checkpoint, trust_remote_code)
    return "last_hidden_state"


def _is_multi_vector(checkpoint: Checkpoint, types: list[str]) -> bool:
    """Whether sentence-transformers or PyLate saved it as a model with token vectors, not with one vector per text."""
    saved_as = checkpoint.object("config_sentence_transformers.json").get("model_type")
    if saved_as in ("MultiVectorEncoder", "ColBERT"):
        return True
    return not any(type_.endswith("Pooling") for type_ in types) and any(type_.endswith("Dense") for type_ in types)


def _has_linear(checkpoint: Checkpoint) -> bool:
    return not checkpoint.modules and "linear.weight" in checkpoint.weights("linear.")


def _check_known(checkpoint: Checkpoint, trust_remote_code: bool) -> None:
    # transformers, which takes seconds to import, need not be asked.
    if checkpoint.model_type == "bert":
        return
    from transformers import CONFIG_MAPPING

    if not checkpoint.config:
        listed = ", ".join(sorted(path.name for path in checkpoint.folder.iterdir())[:8]) or "nothing"
        raise checkpoint.error(f"config.json is missing from {checkpoint.folder}, which holds {listed}")
    if checkpoint.model_type in CONFIG_MAPPING:
        return
    if "auto_map" in checkpoint.config:
        if trust_remote_code:
            return
        raise checkpoint.error(f"it requires Python code that comes with it. {TRUST_HINT}")
    what = checkpoint.model_type or ", ".join(checkpoint.architectures) or "no model_type"
    close = difflib.get_close_matches(what.lower(), [*CONFIG_MAPPING, *_IMAGE_TEXT, "model2vec"], n=1, cutoff=0.5)
    hint = f" The nearest known one is {close[0]!r}." if close else ""
    raise checkpoint.error(f"its architecture {what!r} is unknown.{hint} {_choices()}")


def _choices() -> str:
    return "Families that can be loaded: " + "; ".join(family.name for family in FAMILIES)


def table() -> Iterator[dict[str, object]]:
    """Yield a record for every published checkpoint, for `manyvec models`."""
    for family in FAMILIES:
        for published in family.published:
            yield {
                "name": published.name,
                "family": family.name,
                "reads": family.reads,
                "dim": published.dim,
                "parameters_in_millions": published.millions,
                "good_for": published.good_for,
                "lexical_weight": published.lexical_weight,
            }


def with_nearest(name: str, error: EncoderError) -> EncoderError:
    """Return the error with a suggestion: the published checkpoint that may have been meant."""
    suggestion = nearest(name)
    if suggestion is None or suggestion.lower() == name.lower():
        return error
    return EncoderError(f"{error}. Did you mean {suggestion!r}?")
