"""BERT's forward pass, written once for three executors: ONNX Runtime, torch and, to check the first, numpy.

The packaged `minilm` and other plain BERT checkpoints need no more than this: transformers and sentence-transformers
take 11 seconds of CPU time to import, ONNX Runtime a quarter of a second, and it encodes a short query in a third of
the time (`examples/benchmarks/query_encoding.py`).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from manyvec.vectors.backend import n_threads

logger = logging.getLogger(__name__)

Weights = Mapping[str, NDArray[np.float32]]
# The weight of a token projection, (dim, hidden size), among those of a model.
PROJECTION = "projection.weight"
KINDS = ("weight", "bias")
# Largest difference of a hidden state's component between ONNX Runtime and numpy. They are of the order of 1, and
# float32 differs by 1e-6.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class BertConfig:
    """The part of a checkpoint's config.json that the forward pass depends on."""

    dim: int
    n_layers: int
    n_heads: int
    epsilon: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> BertConfig | None:
        """Read config.json; return None for a model that this module does not compute."""
        is_plain = (
            config.get("model_type") == "bert"
            and config.get("hidden_act") == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder", False)
        )
        if not is_plain:
            return None
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps")
        return cls(*(config[name] for name in names))


class Operations(Protocol):
    """The five operations of BERT. A state is (n_texts, n_tokens, hidden_size), in the executor's own type."""

    def embed(self, words: NDArray[np.float32], positions: NDArray[np.float32]) -> Any:
        """Return the sum of the word vector and the position vector of each token."""
        ...

    def linear(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Any:
        """Return `state @ weight.T + bias`; `weight` is (n_out, n_in)."""
        ...

    def layer_norm(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32], epsilon: float) -> Any: ...

    def gelu(self, state: Any) -> Any: ...

    def attention(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32], n_heads: int) -> Any:
        """Return multi-head self-attention over the tokens that the mask allows.

        Args:
            weight: (3 * hidden_size, hidden_size) of query, key and value, in this order.
            bias: (3 * hidden_size,)
        """
        ...

    def add(self, a: Any, b: Any) -> Any: ...


def forward(compute: Operations, config: BertConfig, weights: Weights) -> Any:
    """Return the last hidden state of BERT (https://arxiv.org/abs/1810.04805), or a projection of it."""

    def linear(state: Any, name: str) -> Any:
        return compute.linear(state, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def layer_norm(state: Any, name: str) -> Any:
        return compute.layer_norm(state, weights[f"{name}.weight"], weights[f"{name}.bias"], config.epsilon)

    words, positions = (weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
    state = compute.embed(words, positions)
    state = layer_norm(state, "embeddings.LayerNorm")
    for layer in (f"encoder.layer.{i}" for i in range(config.n_layers)):
        joined = weights[f"{layer}.attention.self.weight"], weights[f"{layer}.attention.self.bias"]
        attended = linear(compute.attention(state, *joined, config.n_heads), f"{layer}.attention.output.dense")
        state = layer_norm(compute.add(state, attended), f"{layer}.attention.output.LayerNorm")
        expanded = compute.gelu(linear(state, f"{layer}.intermediate.dense"))
        state = layer_norm(compute.add(state, linear(expanded, f"{layer}.output.dense")), f"{layer}.output.LayerNorm")
    return linear(state, "projection") if PROJECTION in weights else state


def prepared(config: BertConfig, weights: Weights) -> Weights:
    """Return a checkpoint's weights as `forward` takes them.

    The weights of query, key and value are joined, and the vector of token type 0, which every token has, is added to
    the position vectors. A projection without a bias gets one of zeros.

    Raises:
        KeyError: A weight is missing.
    """
    joined = dict(weights)
    positions = weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
    joined["embeddings.position_embeddings.weight"] = positions
    for layer in range(config.n_layers):
        name = f"encoder.layer.{layer}.attention.self"
        for kind in ("weight", "bias"):
            parts = [joined.pop(f"{name}.{part}.{kind}") for part in ("query", "key", "value")]
            joined[f"{name}.{kind}"] = np.concatenate(parts)
    if (projection := joined.get(PROJECTION)) is not None:
        joined.setdefault("projection.bias", np.zeros(len(projection), np.float32))
    return joined


def dim_of(config: BertConfig, weights: Weights) -> int:
    """Return the number of dimensions of what `forward` returns."""
    return len(weights[PROJECTION]) if PROJECTION in weights else config.dim


class Executor(Protocol):
    """Runs the forward pass of one checkpoint. Threads may share it.

    Attributes:
        name: `onnx` or `torch`.
        dim: Hidden size, or that of the projection.
        n_threads: Threads that may call `run` at the same time with profit.
    """

    name: str
    dim: int
    n_threads: int

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Return (n_texts, n_tokens, dim) for padded (n_texts, n_tokens) token ids.

        Args:
            mask: False for padding.
        """
        ...


def load_executor(config: BertConfig, weights: Weights, *, backend: str) -> Executor:
    """Return the executor for a checkpoint.

    Args:
        weights: See `prepared`.
        backend: `onnx`, `torch`, or `auto` for ONNX Runtime if it is installed and its results are right, else torch.

    Raises:
        ModuleNotFoundError: With `onnx`, if `onnx` or `onnxruntime` is not installed.
        ValueError: With `onnx`, if this version does not run the model, or its results differ from numpy's.
    """
    if backend == "torch":
        return TorchExecutor(config, weights)
    try:
        executor = OnnxExecutor(config, weights)
        executor.check(config, weights)
    # ONNX Runtime's own errors, for a graph that this version does not run, have no class in common.
    except Exception as error:
        is_own = type(error).__module__.startswith("onnxruntime.")
        if not is_own and not isinstance(error, (ModuleNotFoundError, ValueError, RuntimeError)):
            raise
        if backend == "onnx" and is_own:
            raise ValueError(f"ONNX Runtime does not run it: {error}") from error
        if backend == "onnx":
            raise
        log = logger.debug if isinstance(error, ModuleNotFoundError) else logger.warning
        log("ONNX Runtime is not used (%s): torch runs the model", error)
        return TorchExecutor(config, weights)
    return executor


class OnnxExecutor:
    """ONNX Runtime over a graph that is made in memory from the weights: there is no file that could be stale."""

    name = "onnx"

    def __init__(self, config: BertConfig, weights: Weights) -> None:
        # Its telemetry sends usage data, and has a thread that a forked process waits for when it exits.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self.dim, self.n_threads = dim_of(config, weights), n_threads()
        graph = _OnnxGraph()
        model = graph.finished(forward(graph, config, weights))
        options = onnxruntime.SessionOptions()
        # One thread, so that there is none that a forked process would wait for. Batches run in threads of ours.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        names = list(graph.weights)
        # Kept, because the session refers to them without holding them.
        self._values = [onnxruntime.OrtValue.ortvalue_from_numpy(graph.weights[name]) for name in names]
        options.add_external_initializers(names, self._values)
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        (state,) = self._session.run(["state"], {"ids": ids, "mask": mask.astype(np.int32)})
        return np.asarray(state, np.float32)

    def check(self, config: BertConfig, weights: Weights) -> None:
        """Compare the hidden states of two short texts, one of them padded, with numpy's.

        Raises:
            ValueError: They differ.
        """
        n_words = len(weights["embeddings.word_embeddings.weight"])
        ids = np.linspace(0, n_words - 1, 10).astype(np.int64).reshape(2, 5)
        mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
        expected = forward(_Numpy(ids, mask), config, weights)[mask]
        difference = float(np.abs(self.run(ids, mask)[mask] - expected).max())
        if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ValueError(f"its hidden states differ from numpy's by {difference:.1e}")


class TorchExecutor:
    """torch, without transformers' module classes around its operations."""

    name = "torch"

    def __init__(self, config: BertConfig, weights: Weights) -> None:
        # torch has threads of its own.
        self.dim, self.n_threads = dim_of(config, weights), 1
        self._config, self._weights = config, weights

    def run(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            return np.asarray(forward(_Torch(ids, mask), self._config, self._weights).numpy())


class _Torch:
    """BERT's operations on torch tensors."""

    def __init__(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> None:
        import torch

        self._ids = torch.from_numpy(ids)
        self._mask = None if mask.all() else torch.from_numpy(mask)[:, None, None]

    def embed(self, words: NDArray[np.float32], positions: NDArray[np.float32]) -> Any:
        import torch

        return torch.from_numpy(words)[self._ids] + torch.from_numpy(positions)[: self._ids.shape[1]]

    def linear(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Any:
        import torch

        return torch.nn.functional.linear(state, torch.from_numpy(weight), torch.from_numpy(bias))

    def layer_norm(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32], epsilon: float) -> Any:
        import torch

        tensors = torch.from_numpy(weight), torch.from_numpy(bias)
        return torch.nn.functional.layer_norm(state, weight.shape, *tensors, epsilon)

    def gelu(self, state: Any) -> Any:
        import torch

        return torch.nn.functional.gelu(state)

    def attention(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32], n_heads: int) -> Any:
        import torch

        n_texts, n_tokens, hidden_size = state.shape
        parts = self.linear(state, weight, bias).view(n_texts, n_tokens, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=self._mask)
        return attended.transpose(1, 2).reshape(n_texts, n_tokens, hidden_size)

    def add(self, a: Any, b: Any) -> Any:
        return a + b


class _Numpy:
    """BERT's operations on numpy arrays: slow, and what the definitions say."""

    def __init__(self, ids: NDArray[np.int64], mask: NDArray[np.bool_]) -> None:
        self._ids = ids
        self._bias = np.where(mask, 0, -np.inf).astype(np.float32)[:, None, None]

    def embed(self, words: NDArray[np.float32], positions: NDArray[np.float32]) -> Any:
        return words[self._ids] + positions[: self._ids.shape[1]]

    def linear(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Any:
        # Not `@`: BLAS starts threads that spin for longer than ten tokens take.
        return np.einsum("tni,oi->tno", state, weight) + bias

    def layer_norm(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32], epsilon: float) -> Any:
        centered = state - state.mean(axis=-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + epsilon) * weight + bias

    def gelu(self, state: Any) -> Any:
        erf = np.frompyfunc(math.erf, 1, 1)(state / math.sqrt(2)).astype(np.float32)
        return state * (1 + erf) / 2

    def attention(self, state: Any, weight: NDArray[np.float32], bias: NDArray[np.float32], n_heads: int) -> Any:
        n_texts, n_tokens, hidden_size = state.shape
        parts = self.linear(state, weight, bias).reshape(n_texts, n_tokens, 3, n_heads, -1).transpose(2, 0, 3, 1, 4)
        query, key, value = parts
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1]) + self._bias
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        return (shares @ value).transpose(0, 2, 1, 3).reshape(n_texts, n_tokens, hidden_size)

    def add(self, a: Any, b: Any) -> Any:
        return a + b


class _OnnxGraph:
    """BERT's operations as nodes of an ONNX graph. A state is the name of a node's output.

    Attributes:
        weights: The arrays that the nodes refer to, by name. They are handed to ONNX Runtime beside the graph, which
            would otherwise hold them once more.
    """

    def __init__(self) -> None:
        self.weights: dict[str, NDArray[Any]] = {}
        self._nodes: list[Any] = []
        length = self._node("Shape", "ids", start=1, end=2)
        self._range = (self._weight(np.zeros(1, np.int64)), length)

    def embed(self, words: NDArray[np.float32], positions: NDArray[np.float32]) -> str:
        word_vectors = self._node("Gather", self._weight(words), "ids")
        return self.add(word_vectors, self._node("Slice", self._weight(positions), *self._range))

    def linear(self, state: str, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> str:
        return self.add(self._node("MatMul", state, self._weight(weight.T)), self._weight(bias))

    def layer_norm(self, state: str, weight: NDArray[np.float32], bias: NDArray[np.float32], epsilon: float) -> str:
        weights = self._weight(weight), self._weight(bias)
        return self._node("LayerNormalization", state, *weights, axis=-1, epsilon=epsilon)

    def gelu(self, state: str) -> str:
        return self._node("Gelu", state)

    def attention(self, state: str, weight: NDArray[np.float32], bias: NDArray[np.float32], n_heads: int) -> str:
        # ONNX Runtime's own operator; its weight is (n_in, n_out), its mask 1 for tokens and 0 for padding.
        weights = self._weight(weight.T), self._weight(bias)
        return self._node("Attention", state, *weights, "mask", domain="com.microsoft", num_heads=n_heads)

    def add(self, a: str, b: str) -> str:
        return self._node("Add", a, b)

    def finished(self, state: str) -> bytes:
        """Return the graph that computes `state` from `ids` and `mask`, without its weights."""
        from onnx import TensorProto, helper

        shape = ["n_texts", "n_tokens"]
        kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
        constants = []
        for name, array in self.weights.items():
            constant = TensorProto(name=name, dims=array.shape, data_type=kinds[array.dtype])
            constant.data_location = TensorProto.EXTERNAL
            constant.external_data.add(key="location", value="in memory")
            constants.append(constant)
        graph = helper.make_graph(
            [*self._nodes, helper.make_node("Identity", [state], ["state"])],
            "bert",
            [
                helper.make_tensor_value_info("ids", TensorProto.INT64, shape),
                helper.make_tensor_value_info("mask", TensorProto.INT32, shape),
            ],
            [helper.make_tensor_value_info("state", TensorProto.FLOAT, [*shape, "hidden_size"])],
            constants,
        )
        versions = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=versions, ir_version=9).SerializeToString()

    def _node(self, operator: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = f"n{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def _weight(self, array: NDArray[Any]) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.ascontiguousarray(array)
        return name


def padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return (n_texts, n_tokens) token ids, padded at the end, and where they are no padding."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids = np.full(mask.shape, padding, np.int64)
    ids[mask] = np.concatenate(rows)
    return ids, mask
