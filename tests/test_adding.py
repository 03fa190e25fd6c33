"""Adding many documents: what is not encoded again, and what the progress bar shows meanwhile."""

import numpy as np
import pytest

from manyvec import Document, Index, load_encoder
from manyvec.models.progress import listening
from manyvec.testing import ColorEncoder, CountingEncoder

TEXTS = ["Bread is made of flour.", "The museum is closed.", "A tea from Assam."]


def numbered(start, texts=TEXTS):
    return [Document(str(start + i), text, {"n": i}) for i, text in enumerate(texts)]


@pytest.mark.parametrize("storage", ["float16", "int8", "int4", "residual", "binary"])
def test_a_document_that_comes_under_another_id_takes_its_vectors_along(tmp_path, storage):
    encoder = CountingEncoder()
    index = Index.create(tmp_path / "index", encoder, storage=storage, pool_factor=2)
    index.add(numbered(0))
    encoder.texts.clear()
    report = index.add([*numbered(10), Document("new", "Salt.")], reuse_vectors=True)
    assert (report.added, report.reused, encoder.texts) == (4, 3, ["Salt."])
    for old, new in zip(
        index.get(["0", "1", "2"], vectors=True), index.get(["10", "11", "12"], vectors=True), strict=True
    ):
        np.testing.assert_allclose(new.vectors, old.vectors, atol=1e-3)
        np.testing.assert_array_equal(new.spans, old.spans)
    assert [hit.id for hit in index.search("the museum is closed", k=2)] == ["1", "11"]
    # Otherwise nothing is looked up.
    assert (index.add(numbered(20)).reused, len(encoder.texts)) == (0, 4)


def test_a_page_takes_its_vectors_along_only_if_text_and_image_are_the_same(tmp_path, make_png):
    red, blue = make_png("red"), make_png("blue")
    index = Index.create(tmp_path / "index", ColorEncoder())
    index.add([Document("a", "page 1", image=red)])
    same, other_image, no_image = (
        Document("b", "page 1", image=red),
        Document("c", "page 1", image=blue),
        Document("d", "page 1"),
    )
    assert index.add([same, other_image, no_image], reuse_vectors=True).reused == 1
    assert [hit.id for hit in index.search("blue", k=1)] == ["c"]


@pytest.fixture
def make_png():
    import io

    image = pytest.importorskip("PIL.Image")

    def make(color):
        buffer = io.BytesIO()
        image.new("RGB", (16, 16), color).save(buffer, "PNG")
        return buffer.getvalue()

    return make


def test_an_encoder_reports_its_batches_while_it_encodes():
    heard = []
    encoder = load_encoder("minilm", device="cpu")
    with listening(lambda n_tokens, share: heard.append((n_tokens, share))):
        tokens = encoder.encode_documents([text * 40 for text in TEXTS] * 10)
    assert len(heard) > 1
    assert sum(n for n, _ in heard) == tokens.n_tokens
    assert sum(share for _, share in heard) == pytest.approx(1)


def test_the_bar_shows_tokens_per_second_and_moves_within_a_batch_even_for_a_generator(tmp_path, capsys):
    index = Index.create(tmp_path / "index", load_encoder("minilm", device="cpu"))
    texts = [text * 40 for text in TEXTS] * 10
    n_characters = sum(map(len, texts))
    index.add((document for document in numbered(0, texts)), show_progress=True, expected_characters=n_characters)
    shown = capsys.readouterr().err
    lines = [line for line in shown.split("\r") if "characters" in line]
    assert "100%" in lines[-1] and "30 documents" in lines[-1] and "tokens/s" in lines[-1]
    # All documents are one batch, which is stored at the end.
    assert any(0 < int(line.partition("%")[0]) < 100 and " 0 documents" in line for line in lines)
    index.add(numbered(100, texts), show_progress=True)
    assert "30/30" in capsys.readouterr().err
