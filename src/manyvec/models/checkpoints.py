"""Find checkpoints by name and read their files without running any code from them.

A name is a folder or a repository on the Hugging Face hub, from which only the files that the model needs are
downloaded. Weights are read from safetensors, or from pickles (`.bin`, `.pt`, `.dnn`) that torch loads as tensors only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from manyvec.errors import EncoderError

if TYPE_CHECKING:
    import torch

TRUST_HINT = "It is not run by default: if you trust its authors, pass load_encoder(..., trust_remote_code=True)"
_OFFLINE = (
    "On a machine that can reach the hub, run: hf download {name} --local-dir FOLDER; "
    "copy the folder here and load it with load_encoder('FOLDER')"
)
_BIN = ("pytorch_model.bin.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class LoadOptions:
    """The options of `load_encoder`, with `device` resolved."""

    device: str = "cpu"
    dtype: str | None = None
    backend: str = "torch"
    local_files_only: bool = False
    trust_remote_code: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for sentence-transformers' `Transformer.load` and `MultiVectorEncoder`."""
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


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds a model, and the name under which the user asked for it.

    Attributes:
        name: The name.
        folder: The folder.
        adapter: File whose weights are added to those of the model; see `adapter.adapted`.
    """

    name: str
    folder: Path
    adapter: Path | None = None

    @classmethod
    def find(
        cls, name: str, *, local_files_only: bool = False, backend: str = "torch", trust_remote_code: bool = False
    ) -> Checkpoint:
        """Return the folder of this name, or download the repository of this name from the hub.

        Only the files that `backend` needs are downloaded.

        Raises:
            EncoderError: Neither exists. The message says how to proceed without access to the hub.
        """
        if Path(name).is_dir():
            return cls(name, Path(name))
        if Path(name).is_absolute() or name.startswith((".", "~")):
            raise EncoderError(f"cannot load the model {name!r}: there is no such folder")
        return cls(name, _download(name, local_files_only, backend, trust_remote_code))

    def path(self, file: str) -> Path:
        """Return the path of a file of the checkpoint, which need not exist.

        Raises:
            EncoderError: The path would lie outside the checkpoint.
        """
        parts = PurePosixPath(file.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:", file) or file.startswith("~"):
            raise self.error(f"it refers to the file {file!r} outside the checkpoint, which is not allowed")
        return self.folder / parts

    def has(self, file: str) -> bool:
        return self.path(file).is_file()

    def json(self, file: str) -> Any:
        """Return the content of a JSON file, or None if the file does not exist."""
        if not self.has(file):
            return None
        try:
            return json.loads(self.path(file).read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise self.error(f"{file} cannot be read: {error}") from error

    def object(self, file: str) -> dict[str, Any]:
        """Return the content of a JSON file that holds an object; empty if the file does not exist."""
        content = self.json(file)
        if content is not None and not isinstance(content, dict):
            raise self.error(f"{file} must hold an object, got {type(content).__name__}")
        return content or {}

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Content of config.json; empty if there is none."""
        return self.object("config.json")

    @property
    def architectures(self) -> list[str]:
        return self.config.get("architectures") or []

    @property
    def model_type(self) -> str:
        return self.config.get("model_type") or ""

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """Content of modules.json (sentence-transformers and PyLate); empty if there is none."""
        modules = self.json("modules.json") or []
        for module in modules:
            self.path(module.get("path", ""))
        return list(modules)

    @cached_property
    def weight_files(self) -> list[str]:
        """Names of the files with the model's weights: safetensors if there are any, else pickles."""
        for index, whole in (("model.safetensors.index.json", "model.safetensors"), _BIN):
            if (shards := self.json(index)) is not None:
                files = sorted(set(shards["weight_map"].values()))
                if absent := [file for file in files if not self.has(file)]:
                    raise self.error(f"{index} names {absent[0]!r}, which does not exist")
                return files
            if self.has(whole):
                return [whole]
        return sorted(path.name for path in self.folder.glob("*.dnn"))[:1]

    def weights(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the model's weights by name, or those whose names start with `prefix`."""
        weights: dict[str, torch.Tensor] = {}
        for file in self.weight_files:
            weights |= self.tensors(file, prefix)
        return weights

    def tensors(self, file: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """Return the tensors of one file whose names start with `prefix`.

        Raises:
            EncoderError: The file does not exist, is damaged, or cannot be read without running code from it.
        """
        import pickle

        import torch
        from safetensors import SafetensorError, safe_open

        if not self.has(file):
            raise self.error(f"{file} does not exist")
        try:
            if file.endswith(".safetensors"):
                with safe_open(self.path(file), framework="pt") as opened:
                    names = [name for name in opened.keys() if name.startswith(prefix)]  # noqa: SIM118
                    return {name: opened.get_tensor(name) for name in names}
            # Stanford's .dnn files hold the weights beside the state of the training.
            loaded = torch.load(self.path(file), map_location="cpu", weights_only=True)
            loaded = loaded.get("model_state_dict", loaded)
            return {
                name: tensor
                for name, tensor in loaded.items()
                if isinstance(tensor, torch.Tensor) and name.startswith(prefix)
            }
        except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, AttributeError, OSError) as error:
            raise self.error(f"{file} cannot be read as tensors alone: {str(error).splitlines()[0]}") from error

    def base(self, name: str, *, local_files_only: bool) -> Checkpoint:
        """Return the checkpoint that this one builds on: a folder inside it, or a repository on the hub."""
        if self.path(name).is_dir():
            return Checkpoint(name, self.path(name))
        if name.count("/") > 1:
            raise self.error(f"its base {name!r} is neither a folder inside it nor a repository on the hub")
        try:
            return Checkpoint.find(name, local_files_only=local_files_only)
        except EncoderError as error:
            raise self.error(f"its base is {name!r}. {error}") from error

    def error(self, problem: str) -> EncoderError:
        """Return an error about this checkpoint, for the caller to raise."""
        return EncoderError(f"cannot load the model {self.name!r}: {problem}")


def _download(name: str, local_files_only: bool, backend: str, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    offline = _OFFLINE.format(name=name)
    try:
        allowed, ignored = patterns(backend, trust_remote_code)
        fetch = partial(snapshot_download, name, local_files_only=local_files_only, ignore_patterns=ignored)
        folder = Path(fetch(allow_patterns=allowed))
        # Fall back to pickles where there are no safetensors.
        if pickles := [f"{part}*.bin" for part in _without_safetensors(folder)]:
            fetch(allow_patterns=[*pickles, "*.dnn"] if "*.bin" in pickles else pickles)
        return folder
    except GatedRepoError as error:
        raise EncoderError(
            f"cannot load the model {name!r}: its owners require you to accept their terms first, at "
            f"https://huggingface.co/{name}. Then run: hf auth login. {offline}"
        ) from error
    except LocalEntryNotFoundError as error:
        why = "downloads are switched off" if local_files_only else "the hub cannot be reached"
        raise EncoderError(
            f"cannot load the model {name!r}: it is not on this machine, and {why}. {offline}"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise EncoderError(
            f"cannot load the model {name!r}: there is no folder of this name and no such repository on the hub "
            "that you have access to (for a private one, run: hf auth login)"
        ) from error
    except OSError as error:
        raise EncoderError(f"cannot load the model {name!r}: {error}. {offline}") from error


def patterns(backend: str, trust_remote_code: bool) -> tuple[list[str], list[str]]:
    """Return the file patterns to download and those to ignore. Code is included only if it is trusted."""
    allowed = ["*.json", "*.txt", "*.model", "*.metadata", "*.jinja", "*.safetensors", "*_linear.pt", f"{backend}/*"]
    ignored = [f"{other}/*" for other in ("onnx", "openvino") if other != backend]
    return allowed + ["*.py"] * trust_remote_code, ignored


def _without_safetensors(folder: Path) -> list[str]:
    """Return the parts of a model that have no safetensors: "" is the backbone, "1_Dense/" a module."""
    parts = {path.parent for path in folder.rglob("config.json")} | {folder}
    bare = sorted(part for part in parts if not any(part.glob("*.safetensors")))
    return [f"{part.relative_to(folder).as_posix()}/" if part != folder else "" for part in bare]
