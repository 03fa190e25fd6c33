"""Train a ColPali: patches of page images against the words of questions, each page against the others of a batch.

    python examples/training/tiny.py DATA/squad-dev --out ./tiny
    python examples/training/colpali.py ./tiny/train.jsonl --model ./tiny/colpali --out ./colpali \\
        --test ./tiny/seen.jsonl ./tiny/unseen.jsonl

A vision-language model reads the image of a page and returns a vector for each patch (Faysse et al. 2024,
https://arxiv.org/abs/2407.01449). Each line of a file has `image`, a path beside the file, and `text`, a question that
the page answers. `--model` is a ColPali, ColQwen2 or ColModernVBert as transformers saves it, such as
vidore/colpali-v1.3-hf on a GPU; the tiny one shows every step on two cores, and cannot learn to read in minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from recipes import POOLED, measured, parser, pictures, read_pairs, train, write
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss

import manyvec


def save(model: MultiVectorEncoder, out: Path, image: Image.Image, question: str) -> manyvec.Encoder:
    """Save a model as transformers does, load it as manyvec does, and check that the vectors are equal."""
    # Without the files of sentence-transformers, any program for ColPali reads it.
    model[0].model.save_pretrained(out)
    model[0].processor.save_pretrained(out)
    encoder = manyvec.load_encoder(str(out), device="cpu")
    assert isinstance(encoder, manyvec.ImageReader)
    for mine, theirs in (
        (encoder.encode_queries([question])[0], model.encode_query([question])[0]),
        (encoder.encode_images([image])[0], model.encode_document([image])[0]),
    ):
        torch.testing.assert_close(torch.from_numpy(mine), theirs.cpu().float(), atol=1e-5, rtol=0)
    return encoder


def main() -> None:
    options = parser(__doc__, "colpali", data="File of pages and questions.")
    options.add_argument("--model", required=True, help="Folder or name of a page model.")
    options.add_argument("--test", type=Path, nargs="+", required=True, help="Files to measure.")
    options.add_argument("--epochs", type=int, default=1000, help="Highest number of passes over the pairs.")
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = options.parse_args()
    torch.manual_seed(0)
    rows = [{"query": text, "page": Image.open(path).convert("RGB")} for path, text in read_pairs(arguments.data)]
    model = MultiVectorEncoder(arguments.model, device="cpu" if not torch.cuda.is_available() else "cuda")
    untrained = manyvec.load_encoder(arguments.model)
    tests = {path.stem: pictures(path) for path in arguments.test}
    results: dict[str, Any] = {
        name: {"pages": len(test.documents), "queries": len(test.queries), "untrained": measured(untrained, test)}
        for name, test in tests.items()
    }
    settings: dict[str, Any] = {"batch_size": arguments.batch_size, "learning_rate": arguments.learning_rate}
    loss = MultiVectorMultipleNegativesRankingLoss(model)
    results["training"] = {"pairs": len(rows), **settings}
    limits: dict[str, Any] = {"minutes": arguments.minutes, "epochs": arguments.epochs, "max_tokens": None}
    results["training"] |= train(model, rows, loss, **limits, **settings)
    encoder = save(model, arguments.out, rows[0]["page"], rows[0]["query"])
    for name, test in tests.items():
        results[name]["trained"] = measured(encoder, test, POOLED)
    write(arguments.name, results)


if __name__ == "__main__":
    main()
