"""`M3Encoder`: BGE-M3, whose one pass gives token vectors, lexical weights and a dense vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError
from manyvec.models.text import SentenceTransformerEncoder, check_texts
from manyvec.vectors.batch import TokenBatch

if TYPE_CHECKING:
    import torch
    from sentence_transformers import MultiVectorEncoder


@dataclass(frozen=True)
class M3Output:
    """What one pass of BGE-M3 gives, in the texts' order.

    Attributes:
        tokens: token vectors, for MaxSim.
        lexical: of each text, the weight of each of its token ids: learned term weights. Their score is the sum of
            products over the ids that two texts share.
        dense: (n_texts, dim) unit vectors.
    """

    tokens: TokenBatch
    lexical: list[dict[int, float]]
    dense: NDArray[np.float32]


class M3Encoder(SentenceTransformerEncoder):
    """BGE-M3 as an `Encoder`, with `encode_all` for what else it gives.

    Args:
        sparse: weight (1, hidden) and bias (1,) of sparse_linear.pt; None where the checkpoint has none.
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
        """Token vectors, lexical weights and dense vectors; what a text has beyond the model's window is left out."""
        import torch
        from sentence_transformers.util import batch_to_device

        from manyvec.models.text import batches_of

        if self._sparse is None:
            raise EncoderError(f"{self.name} has no sparse_linear.pt: it gives token vectors alone")
        check_texts(texts, self.name)
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
                        # A token that comes more than once counts as much as its heaviest.
                        if id not in unused and weight > lexical[i].get(id, 0.0):
                            lexical[i][id] = weight
        return M3Output(TokenBatch.from_list(vectors, dim=self.dim, allow_empty=True), lexical, dense)


def lexical_score(query: dict[int, float], document: dict[int, float]) -> float:
    """The sum of products of the weights of token ids that both have."""
    return sum(weight * document[id] for id, weight in query.items() if id in document)
