"""Pages and pictures in an index, encoded by tiny page models: scores, heat maps, and the command line."""

import io
import json
from functools import lru_cache

import numpy as np
import pytest
from checkpoints import fresh
from checkpoints.clip import write_clip, write_siglip
from checkpoints.pages import PICTURES, QUERIES, Image, write_colmodernvbert, write_colpali, write_colqwen2
from numpy.testing import assert_allclose

from manyvec import Index, InputError, MaxSimScorer
from manyvec.cli import main

WRITERS = {
    "colpali": write_colpali,
    "colqwen2": write_colqwen2,
    "colmodernvbert": write_colmodernvbert,
    "clip": write_clip,
    "siglip": write_siglip,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Each checkpoint, written once: (folder, what is expected of it)."""
    root = tmp_path_factory.mktemp("images")
    return lru_cache(lambda name: (root / name, WRITERS[name](root / name)))


def as_bytes(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


FILES = [as_bytes(image) for image in PICTURES]
PAGE_DOCUMENTS = [{"id": f"page {i}", "image": file, "text": f"caption {i}"} for i, file in enumerate(FILES)]


@pytest.mark.parametrize("name", ["colpali", "colqwen2", "colmodernvbert", "siglip"])
def test_an_index_of_pages_scores_them_as_the_model_does_and_maps_every_patch(written, tmp_path, name):
    encoder = fresh(written(name)[0])
    index = Index.create(tmp_path / "index", encoder)
    index.add(PAGE_DOCUMENTS)
    query, images = encoder.encode_queries(QUERIES[:1]), encoder.encode_images(FILES)
    hits = {hit.id: hit for hit in index.search(QUERIES[0], evidence=True)}
    expected = MaxSimScorer().score(query[0], images)
    # float16 storage keeps 11 bits of each of 16 numbers.
    assert_allclose([hits[f"page {i}"].score for i in range(3)], expected, atol=query.n_tokens * 2**-9)
    for i in range(3):
        evidence = hits[f"page {i}"].evidence
        assert evidence.problem is None and evidence.image == FILES[i]
        spans = images.spans[images.offsets[i] : images.offsets[i + 1]]
        own = evidence.tokens_of_words[0] if evidence.words else np.arange(query.n_tokens)
        similarities = (query[0][own] @ images[i].T).mean(axis=0) * (1 if evidence.words else query.n_tokens)
        heat = evidence.heatmap(0 if evidence.words else None)
        assert heat.shape == evidence.grid == tuple(spans.max(axis=0) + 1)
        placed = spans[:, 0] >= 0
        assert_allclose(heat[tuple(spans[placed].T)], similarities[placed], atol=query.n_tokens * 2**-9)
        total = sum(match.share for match in evidence.words) + evidence.unattributed
        assert_allclose(total, hits[f"page {i}"].score, atol=1e-4)
        assert Image.open(io.BytesIO(evidence.to_png())).size == PICTURES[i].size


@pytest.mark.parametrize("storage", ["int8", "binary"])
def test_pooled_pages_in_few_bytes_keep_their_images_and_whole_grids(written, tmp_path, storage):
    index = Index.create(tmp_path / "index", fresh(written("colqwen2")[0]), storage=storage, pool_factor=2)
    index.add(PAGE_DOCUMENTS)
    index.optimize()
    assert [document.image for document in index.get([f"page {i}" for i in range(3)])] == FILES
    hits = {hit.id: hit.evidence for hit in index.search("hi there", evidence=True)}
    # 60 rows of 100 pixels are 2 by 4 merged patches of 28.
    assert hits["page 0"].grid == (2, 4) and len(hits["page 0"].patches) < 8
    assert np.isfinite(hits["page 0"].heatmap()).all()


def test_an_index_of_clip_holds_pictures_and_texts(written, tmp_path):
    encoder = fresh(written("clip")[0])
    index = Index.create(tmp_path / "index", encoder)
    index.add([{"id": "text", "text": "hi there"}, PAGE_DOCUMENTS[0]])
    text, picture_hit = sorted(index.search("hi there", evidence=True), key=lambda hit: hit.is_page)
    assert (text.evidence.words[0].text, text.best_passage(20).text) == ("hi", "hi there")
    assert (picture_hit.evidence.words[0].patch is None, picture_hit.evidence.grid) == (False, (2, 2))
    index.add([{"id": "words", "text": "a hint"}])
    assert Index.open(index.uri).get("page 0")[0].image == FILES[0]


def test_the_map_of_a_model_that_crops_lies_over_the_middle_square(written, tmp_path):
    encoder = fresh(written("clip")[0])
    assert encoder.crops_images and not fresh(written("siglip")[0]).crops_images
    index = Index.create(tmp_path / "index", encoder)
    index.add([{"id": "wide", "image": as_bytes(Image.new("RGB", (300, 100), "white"))}])
    (hit,) = index.search("hi", evidence=True)
    pixels = np.asarray(Image.open(io.BytesIO(hit.evidence.to_png(0))))
    assert (pixels[:, :100] == 255).all() and (pixels[:, 200:] == 255).all()
    assert (pixels[:, 100:200] != 255).any()


def test_a_model_of_pages_refuses_a_text_and_stores_nothing_of_its_batch(written, tmp_path):
    index = Index.create(tmp_path / "index", fresh(written("colqwen2")[0]))
    with pytest.raises(InputError, match="reads documents as images"):
        index.add([PAGE_DOCUMENTS[0], {"id": "a", "text": "a text"}])
    assert index.count() == 0


def two_pages(path):
    PICTURES[0].save(path, "PDF", save_all=True, append_images=[PICTURES[1]])


def test_the_command_indexes_and_finds_the_pages_of_a_pdf(written, tmp_path, capsys):
    pytest.importorskip("pypdfium2")
    two_pages(tmp_path / "report.pdf")
    PICTURES[2].save(tmp_path / "photo.png")
    model, db, files = str(written("colqwen2")[0]), str(tmp_path / "db"), str(tmp_path)
    assert main(["index", files, "--index", db, "--encoder", model, "--device", "cpu", "--estimate", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["documents"] == 3 and estimate["tokens"] > 3 and not (tmp_path / "db").exists()
    for expected in ("3 added, 0 updated, 0 unchanged", "0 added, 0 updated, 3 unchanged"):
        assert main(["index", files, "--index", db, "--encoder", model, "--device", "cpu"]) == 0
        assert capsys.readouterr().out.startswith(expected)
    assert main(["search", "hi there", "--index", db, "--device", "cpu", "--evidence"]) == 0
    out = capsys.readouterr().out
    assert f"{(tmp_path / 'report.pdf').as_posix()}#page=2" in out
    assert "page image of " in out and "hi → patch (" in out
    assert main(["search", "hi", "--index", db, "--device", "cpu"]) == 0
    assert "page image: photo.png" in capsys.readouterr().out
    assert main(["search", "hi", "--index", db, "--device", "cpu", "--evidence", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert {tuple(hit["evidence"]["words"][0]) for hit in hits} == {
        ("word", "query_span", "text", "span", "similarity", "share", "patch")
    }


def test_a_broken_pdf_is_named_by_the_command(written, tmp_path, capsys):
    pytest.importorskip("pypdfium2")
    two_pages(tmp_path / "report.pdf")
    (tmp_path / "report.pdf").write_bytes((tmp_path / "report.pdf").read_bytes()[:200])
    options = ["--index", str(tmp_path / "db"), "--encoder", str(written("colqwen2")[0]), "--device", "cpu"]
    assert main(["index", str(tmp_path), *options]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "report.pdf" in line]
    assert "the PDF is damaged" in line


@pytest.mark.data
def test_real_pdf_pages_are_indexed_and_mapped(written, tmp_path, data_dir):
    from itertools import islice

    from manyvec.files import read

    pytest.importorskip("pypdfium2")
    paths = sorted((data_dir / "mmlongbench-pages").rglob("*.pdf"))
    if not paths:
        pytest.skip("needs mmlongbench-pages with its PDFs")
    index = Index.create(tmp_path / "index", fresh(written("colqwen2")[0]))
    documents = list(islice(read(paths[0], pages="image"), 2))
    index.add(documents)
    assert index.get([d.id for d in documents]) == documents
    for hit in index.search("what does it say", evidence=True):
        rows, columns = hit.evidence.grid
        # Pages are higher than wide, and so are their grids.
        assert rows > columns > 1
        picture_of_map = Image.open(io.BytesIO(hit.evidence.to_png(max_side=400)))
        assert picture_of_map.size[1] == 400
