"""`minilm-late`: an adapter in this package that turns the packaged `minilm` into a model of 128 dims.

It holds, for each linear layer of BERT, two small matrices whose product is added to the weight (LoRA,
https://arxiv.org/abs/2106.09685), and a token projection. `examples/training/minilm_late.py` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manyvec.models.bert import PROJECTION

MINILM_LATE = Path(__file__).with_name("minilm_late.safetensors")


def adapted(weights: Mapping[str, NDArray[Any]], adapter: Path) -> dict[str, NDArray[np.float32]]:
    """Return the weights of a BERT with those of an adapter added, and its token projection.

    Args:
        weights: By the names of a checkpoint without the prefix `bert.`.
        adapter: safetensors file with `NAME.down` (rank, n_in) and `NAME.up` (n_out, rank) for weights `NAME.weight`,
            and with the projection (dim, hidden size), all float16.

    Raises:
        KeyError: The adapter belongs to another model.
    """
    from safetensors.numpy import load_file

    parts = load_file(adapter)
    result = {name: np.asarray(weight, np.float32) for name, weight in weights.items()}
    result[PROJECTION] = parts.pop(PROJECTION).astype(np.float32)
    for name in (name.removesuffix(".up") for name in parts if name.endswith(".up")):
        # In float64, so that every machine gets the same float32: the fingerprint is made of them.
        up, down = (parts[f"{name}.{part}"].astype(np.float64) for part in ("up", "down"))
        result[f"{name}.weight"] = (result[f"{name}.weight"] + up @ down).astype(np.float32)
    return result
