"""Checkpoints: found by name, and read without running anything that lies in them.

A name is a folder, or a repository on the Hugging Face hub, of which the files that a model needs are downloaded.
Weights come from safetensors, or from pickles (`.bin`, `.pt`, `.dnn`) that torch reads as tensors only.
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

CODE = "It is not run unasked: if you trust its authors, pass load_encoder(..., trust_remote_code=True)"
_OFFLINE = (
    "Where the hub can be reached, run: hf download {name} --local-dir FOLDER; "
    "bring the folder here, and load it with load_encoder('FOLDER')"
)


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds a model, and the name by which a user asked for it."""

    name: str
    folder: Path

    @classmethod
    def find(
        cls, name: str, *, local_files_only: bool = False, backend: str = "torch", trust_remote_code: bool = False
    ) -> Checkpoint:
        """The folder of this name, or else the hub's repository, downloaded as far as `backend` needs it.

        Raises:
            EncoderError: there is neither; the message says what to do without a hub.
        """
        if Path(name).is_dir():
            return cls(name, Path(name))
        if Path(name).is_absolute() or name.startswith((".", "~")):
            raise EncoderError(f"cannot load the model {name!r}: there is no such folder")
        return cls(name, _downloaded(name, local_files_only, backend, trust_remote_code))

    def path(self, file: str) -> Path:
        """Where a file of the checkpoint lies, whether or not it is there.

        Raises:
            EncoderError: it would lie outside the checkpoint.
        """
        parts = PurePosixPath(file.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or re.match(r"[A-Za-z]:", file) or file.startswith("~"):
            raise self.error(f"it names the file {file!r}, which lies outside the checkpoint: this is refused")
        return self.folder / parts

    def has(self, file: str) -> bool:
        return self.path(file).is_file()

    def json(self, file: str) -> Any:
        """What a JSON file holds; None if it is not there."""
        if not self.has(file):
            return None
        try:
            return json.loads(self.path(file).read_text(encoding="utf-8"))
        except (ValueError, OSError) as error:
            raise self.error(f"{file} cannot be read: {error}") from error

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json; empty if there is none."""
        config = self.json("config.json")
        if config is not None and not isinstance(config, dict):
            raise self.error(f"config.json must hold an object, got {type(config).__name__}")
        return config or {}

    @property
    def architectures(self) -> list[str]:
        return self.config.get("architectures") or []

    @property
    def model_type(self) -> str:
        return self.config.get("model_type") or ""

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """modules.json of sentence-transformers and PyLate; empty if there is none."""
        modules = self.json("modules.json") or []
        for module in modules:
            self.path(module.get("path", ""))
        return list(modules)

    @cached_property
    def weight_files(self) -> list[str]:
        """Files of the model's own weights: safetensors if there are any, else pickles."""
        for index, whole in (("model.safetensors.index.json", "model.safetensors"), _BIN):
            if (shards := self.json(index)) is not None:
                files = sorted(set(shards["weight_map"].values()))
                if absent := [file for file in files if not self.has(file)]:
                    raise self.error(f"{index} names {absent[0]!r}, which is not there")
                return files
            if self.has(whole):
                return [whole]
        return sorted(path.name for path in self.folder.glob("*.dnn"))[:1]

    def weights(self, wanted: str = "") -> dict[str, torch.Tensor]:
        """The model's own weights by their names in the checkpoint, or those whose name starts with `wanted`."""
        found: dict[str, torch.Tensor] = {}
        for file in self.weight_files:
            found |= self.tensors(file, wanted)
        return found

    def tensors(self, file: str, wanted: str = "") -> dict[str, torch.Tensor]:
        """The tensors of one file whose names start with `wanted`.

        Raises:
            EncoderError: it is not there, is damaged, or would have to run code to be read.
        """
        import pickle

        import torch
        from safetensors import SafetensorError, safe_open

        if not self.has(file):
            raise self.error(f"{file} is not there")
        try:
            if file.endswith(".safetensors"):
                with safe_open(self.path(file), framework="pt") as opened:
                    names = [name for name in opened.keys() if name.startswith(wanted)]  # noqa: SIM118
                    return {name: opened.get_tensor(name) for name in names}
            # Stanford's .dnn files keep the weights beside the training's state.
            loaded = torch.load(self.path(file), map_location="cpu", weights_only=True)
            loaded = loaded.get("model_state_dict", loaded)
            return {
                name: tensor
                for name, tensor in loaded.items()
                if isinstance(tensor, torch.Tensor) and name.startswith(wanted)
            }
        except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, AttributeError, OSError) as error:
            raise self.error(f"{file} cannot be read as tensors alone: {str(error).splitlines()[0]}") from error

    def base(self, name: str, *, local_files_only: bool) -> Checkpoint:
        """The checkpoint that this one builds on: a folder inside it, or a repository on the hub."""
        if self.path(name).is_dir():
            return Checkpoint(name, self.path(name))
        if name.count("/") > 1:
            raise self.error(f"it builds on {name!r}, which is neither a folder in it nor a hub's repository")
        try:
            return Checkpoint.find(name, local_files_only=local_files_only)
        except EncoderError as error:
            raise self.error(f"it builds on {name!r}. {error}") from error

    def error(self, problem: str) -> EncoderError:
        """An error about this checkpoint, ready to be raised."""
        return EncoderError(f"cannot load the model {self.name!r}: {problem}")


_BIN = ("pytorch_model.bin.index.json", "pytorch_model.bin")


def _downloaded(name: str, local_files_only: bool, backend: str, trust_remote_code: bool) -> Path:
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
        # Pickles are read where there are no safetensors.
        if pickles := [f"{part}*.bin" for part in _without_safetensors(folder)]:
            fetch(allow_patterns=[*pickles, "*.dnn"] if "*.bin" in pickles else pickles)
        return folder
    except GatedRepoError as error:
        raise EncoderError(
            f"cannot load the model {name!r}: its owners want you to accept their terms first, at "
            f"https://huggingface.co/{name}. Then run: hf auth login. {offline}"
        ) from error
    except LocalEntryNotFoundError as error:
        why = "it may not be downloaded here" if local_files_only else "the hub cannot be reached"
        raise EncoderError(
            f"cannot load the model {name!r}: it is not on this machine, and {why}. {offline}"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise EncoderError(
            f"cannot load the model {name!r}: there is no folder of this name, and no such repository on the hub "
            "that you may read (for a private one run: hf auth login)"
        ) from error
    except OSError as error:
        raise EncoderError(f"cannot load the model {name!r}: {error}. {offline}") from error


def patterns(backend: str, trust_remote_code: bool) -> tuple[list[str], list[str]]:
    """Which of a repository's files a model needs, and which it does not; code only if it is trusted."""
    allowed = ["*.json", "*.txt", "*.model", "*.metadata", "*.jinja", "*.safetensors", "*_linear.pt", f"{backend}/*"]
    ignored = [f"{other}/*" for other in ("onnx", "openvino") if other != backend]
    return allowed + ["*.py"] * trust_remote_code, ignored


def _without_safetensors(folder: Path) -> list[str]:
    """The parts of a model that have no safetensors yet: "" is the backbone, "1_Dense/" a module."""
    parts = {path.parent for path in folder.rglob("config.json")} | {folder}
    bare = sorted(part for part in parts if not any(part.glob("*.safetensors")))
    return [f"{part.relative_to(folder).as_posix()}/" if part != folder else "" for part in bare]
