"""`M3Encoder`: BGE-M3, which computes token vectors, lexical weights and a dense vector in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError
from manyvec.models.text import SentenceTransformerEncoder
from manyvec.models.windowed import check_strings
from manyvec.models.windows import batches_of
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder


@dataclass(frozen=True)
class M3Output:
    """The three outputs of BGE-M3, in the order of the texts.

    Attributes:
        tokens: Token vectors, for MaxSim.
        lexical: Learned weight of each token id, for each text; see `lexical_score`.
        dense: Unit vectors, (n_texts, dim).
    """

    tokens: TokenBatch
    lexical: list[dict[int, float]]
    dense: NDArray[np.float32]


class M3Encoder(SentenceTransformerEncoder):
    """BGE-M3 as an `Encoder`, with `encode_all` for its other outputs.

    Args:
        model: See `SentenceTransformerEncoder`.
        sparse: Weight (1, hidden) and bias (1,) of sparse_linear.pt, or None if the checkpoint lacks that file.
    """

    def __init__(self, model: MultiVectorEncoder, sparse: dict[str, torch.Tensor] | None, **options: Any) -> None:
        super().__init__(model, **options)
        self._sparse = sparse and {name: tensor.to(model.device, model.dtype) for name, tensor in sparse.items()}
        hidden = self._transformer.get_embedding_dimension()
        if self._sparse and tuple(self._sparse["weight"].shape) != (1, hidden):
            raise EncoderError(
                f"sparse_linear.pt's weight must be (1, {hidden}), got {tuple(self._sparse['weight'].shape)}"
            )

    def encode_all(self, texts: Sequence[str]) -> M3Output:
        """Return all three outputs for each text, truncated to the model's window."""
        import torch
        from sentence_transformers.util import batch_to_device

        if self._sparse is None:
            raise EncoderError(f"{self.name} has no sparse_linear.pt and so no lexical weights: use encode_documents")
        check_strings(texts, self.name)
        transformer, tokenizer = self._transformer, self._transformer.tokenizer
        unused = {tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id}
        lexical: list[dict[int, float]] = [{} for _ in texts]
        vectors: list[NDArray[np.float32]] = [np.empty((0, self.dim), np.float32)] * len(texts)
        dense = np.empty((len(texts), transformer.get_embedding_dimension()), np.float32)
        with self._lock:
            lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []
            for batch in batches_of(lengths, self.batch_tokens):
                with torch.inference_mode():
                    features = self.model.preprocess([texts[i] for i in batch], task="document")
                    features = transformer(batch_to_device(features, self.model.device), task="document")
                    hidden, ids = features["token_embeddings"], features["input_ids"].cpu().numpy()
                    linear = torch.nn.functional.linear(hidden, self._sparse["weight"], self._sparse["bias"])
                    weights = torch.relu(linear)[..., 0].float().cpu().numpy()
                    dense[batch] = torch.nn.functional.normalize(hidden[:, 0].float(), dim=-1).cpu().numpy()
                    for module in list(self.model)[1:]:
                        features = module(features)
                    tokens = features["token_embeddings"].float().cpu().numpy()
                    masks = features["attention_mask"].bool().cpu().numpy()
                for i, row_ids, row_weights, row, mask in zip(batch, ids, weights, tokens, masks, strict=True):
                    vectors[i] = row[mask]
                    for id, weight in zip(row_ids.tolist(), row_weights.tolist(), strict=True):
                        # A token that occurs more than once counts with its largest weight.
                        if id not in unused and weight > lexical[i].get(id, 0.0):
                            lexical[i][id] = weight
        return M3Output(TokenBatch.from_list(vectors, dim=self.dim, allow_empty=True), lexical, dense)


def lexical_score(query: dict[int, float], document: dict[int, float]) -> float:
    """Return the sum over shared token ids of the product of their weights."""
    return sum(weight * document[id] for id, weight in query.items() if id in document)
