"""Page images in an index, and where on them a query matched: coloured squares, so that all can be counted by hand."""

import base64
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from manyvec import Document, HasId, Index, InputError, PageEvidence, Reranker, TokenBatch
from manyvec.evidence.pages import explain_pages, for_browser
from manyvec.retrieval.search import SearchOptions, search
from manyvec.storage.maintenance.optimize import encode_residuals
from manyvec.storage.schema import Manifest, content_hash
from manyvec.storage.snapshot import Snapshot
from manyvec.storage.table import Store
from manyvec.testing import ColorEncoder, HashEncoder
from manyvec.vectors.batch import offsets_of

Image = pytest.importorskip("PIL.Image", reason="needs pillow: pip install 'manyvec[images]'")
from PIL import ImageColor, ImageDraw  # noqa: E402

ENCODER = ColorEncoder(64)
# float16 storage keeps 11 bits.
HALF = 2**-10


def page(squares, rows=3, columns=5, kind="PNG"):
    """The bytes of a white page whose squares of 16 pixels at these (row, column) are coloured."""
    image = Image.new("RGB", (16 * columns, 16 * rows), "white")
    for (row, column), color in squares.items():
        image.paste(color, (16 * column, 16 * row, 16 * column + 16, 16 * row + 16))
    return as_bytes(image, kind)


def as_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(image):
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)


RED = page({(1, 3): "red"})
FLAG = page({(0, 0): "blue", (2, 4): "red"})
DOCUMENTS = [
    {"id": "red", "image": RED, "metadata": {"page": 1}},
    {"id": "text", "text": "a red text about blue things"},
    {"id": "flag", "text": "the caption of a flag", "image": FLAG},
]


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.add(DOCUMENTS)
    return index


class CountingColors(ColorEncoder):
    """Counts the images that it encoded."""

    n_images = 0

    def encode_images(self, images):
        type(self).n_images += len(images)
        return super().encode_images(images)


def test_images_come_back_byte_by_byte_in_the_order_asked_for(index):
    red, text, flag = index.get(["red", "text", "flag"])
    assert (red.image, text.image, flag.image) == (RED, None, FLAG)
    assert (red.text, red.metadata, flag.text) == ("", {"page": 1}, "the caption of a flag")
    assert [document.id for document in index.get(["flag", "nowhere", "red"])] == ["flag", "red"]


def test_pages_and_texts_of_one_index_are_found_together_with_their_exact_scores(index):
    hits = index.search("red blue")
    # The page that has both colours, and the text that has both words; the third has one of them.
    assert {hit.id for hit in hits[:2]} == {"flag", "text"}
    assert_allclose([hit.score for hit in hits[:2]], 2, atol=2 * HALF)
    assert {hit.id: hit.is_page for hit in hits} == {"red": True, "text": False, "flag": True}
    assert index.search("caption", k=1, lexical_weight=1)[0].id == "flag"


def test_an_image_may_be_a_path_and_never_a_str(tmp_path, index):
    (tmp_path / "page.png").write_bytes(RED)
    index.add([Document("path", image=tmp_path / "page.png")])
    assert index.get("path")[0].image == RED
    with pytest.raises(InputError, match=r"'s': image must be the bytes of a file or a pathlib.Path, got str"):
        index.add([{"id": "s", "image": str(tmp_path / "page.png")}])
    with pytest.raises(InputError, match="document 'gone': its image cannot be read"):
        index.add([{"id": "gone", "image": Path(tmp_path / "nowhere.png")}])


def test_a_photo_that_lies_on_its_side_is_seen_and_shown_upright(index):
    image = Image.open(io.BytesIO(page({(0, 4): "red"}, rows=2, columns=5)))
    exif = Image.Exif()
    # Orientation 6: to be turned by a quarter, clockwise.
    exif[0x0112] = 6
    index.add([{"id": "side", "image": as_bytes(image, "PNG", exif=exif)}])
    side = {hit.id: hit.evidence for hit in index.search("red", evidence=True)}["side"]
    assert (side.grid, side.words[0].patch) == ((5, 2), (4, 1))
    assert opened(side.to_png()).shape == (80, 32, 3)


def test_text_may_be_blank_only_beside_an_image():
    assert Document("a", image=b"x") == Document("a", "", {}, image=b"x") == Document.of({"id": "a", "image": b"x"})
    assert "image" not in repr(Document("a", image=b"x" * 10**6))
    with pytest.raises(InputError, match="document 'a' has no text"):
        Document("a", " ")
    with pytest.raises(InputError, match="'text' is missing"):
        Document.of({"id": "a"})


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"no image", "document 'bad': its image is damaged or not an image that PIL can read"),
        (b"", "document 'bad': its image is damaged or not an image that PIL can read"),
        (
            as_bytes(Image.effect_noise((300, 300), 50))[:9000],
            "document 'bad': its image is damaged or not an image that PIL can read",
        ),
        (
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "document 'bad': its image is damaged or not an image that PIL can read",
        ),
    ],
)
def test_a_damaged_image_is_an_error_that_names_the_document_and_nothing_is_written(index, image, said):
    version = index.info().version
    with pytest.raises(InputError, match=said):
        index.add([{"id": "fine", "image": RED}, {"id": "bad", "text": "words", "image": image}])
    assert (index.info().version, index.count()) == (version, 3)


def test_an_image_of_enormous_size_is_refused(index, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for side in (120, 300):
        with pytest.raises(InputError, match="document 'bomb': its image"):
            index.add([{"id": "bomb", "image": as_bytes(Image.new("1", (side, side)))}])


def test_a_model_that_reads_no_images_is_an_error_that_names_it_and_the_document(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder())
    assert not index.reads_images
    with pytest.raises(InputError, match="document 'b' has an image, and hash-64 reads only texts"):
        index.add([{"id": "a", "text": "text"}, {"id": "b", "text": "caption", "image": RED}])
    assert index.count() == 0


def test_an_index_from_before_images_works_on_and_says_that_it_keeps_none(tmp_path):
    manifest = Manifest(ENCODER.name, ENCODER.fingerprint, ENCODER.dim)
    # Its manifest has no word of images.
    assert "images" in vars(manifest)
    old = json.dumps({name: value for name, value in vars(manifest).items() if name != "images"})
    assert Manifest.parse(old.encode(), "old") == manifest
    Store.create(str(tmp_path / "old"), manifest)
    index = Index.open(tmp_path / "old", ENCODER)
    index.add([{"id": "a", "text": "a red text"}])
    assert index.get("a") == [Document("a", "a red text")]
    (hit,) = index.search("red", evidence=True)
    assert (hit.is_page, hit.evidence.words[0].text) == (False, "red")
    with pytest.raises(
        InputError, match=r"document 'p' has an image, and the index .* kept none: build the index again"
    ):
        index.add([{"id": "p", "image": RED}])
    index.optimize()
    assert index.count() == 1


def test_only_an_index_whose_model_reads_images_has_a_column_for_them(tmp_path):
    for encoder, expected in ((HashEncoder(), False), (ENCODER, True)):
        index = Index.create(tmp_path / encoder.name, encoder)
        assert index.reads_images is expected
        assert ("image" in index._store.snapshot()._table.schema.names) is expected


def test_an_unchanged_page_is_not_encoded_again_and_a_changed_one_is(tmp_path):
    encoder = CountingColors()
    index = Index.create(tmp_path / "index", encoder)
    first = index.add([{"id": "a", "image": RED}, {"id": "b", "text": "caption", "image": FLAG}])
    assert (first.added, encoder.n_images) == (2, 2)
    again = index.add([{"id": "a", "image": RED}, {"id": "b", "text": "caption", "image": FLAG, "metadata": {"x": 1}}])
    assert (again.unchanged, again.updated, encoder.n_images) == (1, 1, 2)
    assert (index.get("b")[0].image, index.get("b")[0].metadata) == (FLAG, {"x": 1})
    assert index.add([{"id": "a", "image": FLAG}]).updated == 1
    assert (encoder.n_images, index.get("a")[0].image) == (3, FLAG)
    index.add([{"id": "a", "text": "now a text"}])
    assert (index.get("a")[0].image, index.search("text", k=1)[0].is_page) == (None, False)


def test_the_hash_of_a_text_is_what_it_was_before_there_were_images():
    assert content_hash("text") == "d732c6be860e019351f99173fa6ae612"
    assert content_hash("text", b"x").partition(":")[0] == content_hash("text")
    assert content_hash("text", b"x") != content_hash("text", b"y")


def test_pages_that_are_deleted_are_gone_and_optimize_keeps_the_others(index):
    assert index.delete("red") == 1
    index.optimize()
    assert index.get(["red", "flag"])[0].image == FLAG
    assert [hit.id for hit in index.search("red", k=1)] != ["red"]


def test_scores_by_id_compare_the_text_beside_an_image_only(index):
    query = "blue"
    scores = index.score(query, ["flag", "flag", "red"], texts=["the caption of a flag", "another text", ""])
    assert_allclose(scores[0], 1, atol=HALF)
    assert np.isnan(scores[1]) and scores[2] < 0.5
    hits = Reranker(index=index).rerank(query, [Document("flag", "the caption of a flag"), Document("red", image=RED)])
    assert [hit.id for hit in hits] == ["flag", "red"]
    assert_allclose(hits[0].score, scores[0])


@pytest.mark.parametrize("storage", ["float16", "int8", "int4", "residual", "binary"])
def test_every_storage_keeps_images_and_where_their_patches_are(tmp_path, storage):
    index = Index.create(tmp_path / "index", ENCODER, storage=storage)
    index.add(DOCUMENTS)
    index.optimize()
    assert index.get("flag")[0].image == FLAG
    hits = {hit.id: hit.evidence for hit in index.search("red", evidence=True)}
    assert (hits["red"].words[0].patch, hits["flag"].words[0].patch) == ((1, 3), (2, 4))
    assert hits["red"].grid == (3, 5)


def test_metadata_of_a_page_is_written_without_reading_the_other_pages(tmp_path, monkeypatch):
    """LanceDB's own update of some columns read the whole table into memory: gigabytes, of pages."""
    index = Index.create(tmp_path / "index", ENCODER)
    index.add([{"id": str(i), "image": FLAG} for i in range(5)])
    index.optimize()
    asked = []
    take = Snapshot.take
    monkeypatch.setattr(
        Snapshot, "take", lambda self, rows, names: asked.append((len(rows), names)) or take(self, rows, names)
    )
    assert index.add([{"id": "3", "image": FLAG, "metadata": {"year": 2024}}]).updated == 1
    assert [n for n, names in asked if "image" in names] == [1]
    (stored,) = index.get("3")
    assert (stored.image, stored.metadata) == (FLAG, {"year": 2024})
    assert index.search("red", k=5, evidence=True)[3].evidence.grid == (3, 5)


def test_residual_codes_are_made_of_pages_and_keep_their_images(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER, storage="residual")
    index.add([*DOCUMENTS, {"id": "large", "image": page({(3, 3): "red"}, rows=20, columns=30)}])
    encode_residuals(index._store, min_tokens=200)
    assert index._store.snapshot().states().is_coded.all()
    assert index.get("red")[0].image == RED
    hits = {hit.id: hit.evidence for hit in index.search("red", evidence=True)}
    assert [hits[id].words[0].patch for id in ("red", "flag", "large")] == [(1, 3), (2, 4), (3, 3)]


def test_evidence_of_a_page_points_at_patches_and_shares_add_up_to_the_score(index):
    for query in ("red blue", "blue", "nothing here", "red, red"):
        for hit in index.search(query, evidence=True):
            assert isinstance(hit.evidence, PageEvidence) is hit.is_page
            total = sum(match.share for match in hit.evidence.words) + hit.evidence.unattributed
            assert_allclose([total, hit.evidence.score], hit.score, atol=1e-5)
    flag = {hit.id: hit.evidence for hit in index.search("red blue", evidence=True)}["flag"]
    assert [(m.word, m.patch, m.text, m.span) for m in flag.words] == [
        ("red", (2, 4), "", None),
        ("blue", (0, 0), "", None),
    ]
    assert (flag.image, flag.text) == (FLAG, "the caption of a flag")


def test_evidence_of_texts_is_what_it_was(index):
    (text,) = [hit for hit in index.search("red", evidence=True) if not hit.is_page]
    assert set(text.evidence.to_dict()) == {"score", "unattributed", "words"}
    assert "patch" not in text.evidence.to_dict()["words"][0]
    assert text.best_passage(50).text == "a red text about blue things"


def test_a_heat_map_is_the_similarity_of_every_patch(index):
    flag = {hit.id: hit.evidence for hit in index.search("red blue", evidence=True)}["flag"]
    patches = ENCODER.encode_images([FLAG])[0].reshape(3, 5, 64)
    red, blue = ENCODER.encode_queries(["red blue"])[0]
    assert flag.heatmap(0).dtype == np.float32
    assert_allclose(flag.heatmap(0), patches @ red, atol=HALF)
    assert_allclose(flag.heatmap(1), patches @ blue, atol=HALF)
    assert_allclose(flag.heatmap(), patches @ red + patches @ blue, atol=2 * HALF)
    for word in (2, -1, "red"):
        with pytest.raises(InputError, match="a position in the 2 words of the query"):
            flag.heatmap(word)


def test_a_word_of_several_tokens_has_the_mean_of_their_maps():
    query = TokenBatch(np.eye(2, dtype=np.float32), offsets_of([2]), np.array([(0, 2), (2, 4)], np.int32))
    document = TokenBatch(
        np.array([[0.5, 0], [0, 1], [0.2, 0.2]], np.float32),
        offsets_of([3]),
        np.array([(0, 1), (0, 0), (-1, -1)], np.int32),
    )
    (evidence,) = explain_pages("word", query, [("", RED)], document)
    assert_allclose(evidence.heatmap(0), [[0.5, 0.25]])
    (match,) = evidence.words
    assert (match.patch, match.share, match.similarity) == ((0, 0), 1.5, 0.75)


def test_a_patch_that_pooling_took_in_has_the_map_of_the_nearest_that_stands_for_it(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER, pool_factor=5)
    index.add([{"id": "flag", "image": FLAG}])
    assert index.info().tokens == 3
    (hit,) = index.search("red blue", evidence=True)
    # Thirteen white patches are one vector; the two others keep theirs, and the last patch says how large the grid is.
    assert (hit.evidence.grid, [m.patch for m in hit.evidence.words]) == ((3, 5), [(2, 4), (0, 0)])
    assert_allclose(hit.score, 2, atol=2 * HALF)
    heat = hit.evidence.heatmap(0)
    kept = {tuple(patch) for patch in hit.evidence.patches.tolist()}
    assert heat[2, 4] == heat.max() and heat.shape == (3, 5)
    for cell in np.ndindex(3, 5):
        least = min((cell[0] - r) ** 2 + (cell[1] - c) ** 2 for r, c in kept)
        nearest = [heat[r, c] for r, c in kept if (cell[0] - r) ** 2 + (cell[1] - c) ** 2 == least]
        assert heat[cell] in nearest


def test_the_grid_of_a_page_is_whole_however_few_vectors_are_left(tmp_path):
    for factor in (2, 4, 15):
        index = Index.create(tmp_path / str(factor), ENCODER, pool_factor=factor)
        index.add([{"id": "a", "image": page({(0, 1): "red", (1, 1): "blue"}, rows=2, columns=7)}])
        assert index.search("red", evidence=True)[0].evidence.grid == (2, 7)


def test_a_picture_of_the_map_colours_what_matched_and_leaves_the_rest_white(index):
    red = {hit.id: hit.evidence for hit in index.search("blue red", evidence=True)}["red"]
    pixels = opened(red.to_png(1))
    assert pixels.shape == (48, 80, 3)
    # The red square is lit by the strongest glow, far from it paper stays paper.
    assert_allclose(pixels[24, 56], [255, 64, 16], atol=8)
    assert_array_equal(pixels[40, 8], [255, 255, 255])
    assert max(opened(red.to_png(max_side=20)).shape) == 20
    for max_side in (0, 2.5, True):
        with pytest.raises(InputError, match="max_side must be a positive integer"):
            red.to_png(max_side=max_side)


def painted(image):
    """Pixels of a page whose left half matches the query fully and whose right half does not, before and after."""
    query = TokenBatch(np.array([[1, 0]], np.float32), offsets_of([1]), np.array([(0, 3)], np.int32))
    halves = TokenBatch(np.eye(2, dtype=np.float32), offsets_of([2]), np.array([(0, 0), (0, 1)], np.int32))
    (evidence,) = explain_pages("red", query, [("", as_bytes(image))], halves)
    return np.asarray(image.convert("RGB")).astype(int), opened(evidence.to_png())


def luminance(color):
    """Relative luminance as WCAG defines it."""
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in np.asarray(color) / 255]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


def contrast(color, other):
    low, high = sorted((luminance(color), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    ("ground", "letters", "least"), [("white", "black", 4.5), ("black", "white", 4.5), ("#20242c", "#e8e8e8", 3.5)]
)
def test_letters_keep_their_color_and_can_be_read_on_the_strongest_color(ground, letters, least):
    image = Image.new("RGB", (320, 240), ground)
    draw = ImageDraw.Draw(image)
    # Without softened edges, every pixel is a letter or ground.
    draw.fontmode = "1"
    for line in range(16):
        draw.text((4, 15 * line), "Figure 1: revenue", fill=letters)
    before, after = painted(image)
    left = np.s_[:, :60]
    is_letter = (before[left] == ImageColor.getrgb(letters)).all(axis=2)
    is_ground = (before[left] == ImageColor.getrgb(ground)).all(axis=2)
    letter, colored = np.median(after[left][is_letter], axis=0), np.median(after[left][is_ground], axis=0)
    assert_allclose(letter, ImageColor.getrgb(letters), atol=24)
    # WCAG's AA asks for 4.5 between text and its ground, and for 3 of graphics.
    assert contrast(letter, colored) >= least
    assert contrast(ImageColor.getrgb(ground), colored) >= 3
    # What does not match stays as it is.
    assert_array_equal(after[:, -40:], before[:, -40:])


def test_the_strongest_color_shows_on_every_grey():
    for grey in range(0, 256, 3):
        before, after = painted(Image.new("RGB", (64, 32), (grey, grey, grey)))
        assert contrast(before[16, 8], after[16, 8]) >= 1.9, grey


def test_html_shows_the_page_and_the_words_with_everything_escaped(index):
    query = "<script>alert(1)</script> red"
    red = {hit.id: hit.evidence for hit in index.search(query, evidence=True)}["red"]
    html = red._repr_html_()
    assert "<script" not in html and "&lt;" in html
    (mixed,) = index.search("<b>flag</b>", 1, evidence=True, filter=HasId(["flag"]), lexical_weight=0.5)
    assert "<p>BM25 counted flag × 1</p>" in mixed.evidence.to_html()
    (data,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    assert opened(base64.b64decode(data)).shape == (48, 80, 3)
    index.add([{"id": "large", "image": as_bytes(Image.effect_noise((2000, 3000), 90).convert("RGB"))}])
    large = {hit.id: hit.evidence for hit in index.search("white", evidence=True)}["large"]
    assert len(large.to_html()) < 10**6


def test_a_page_prints_its_words_and_patches_and_no_passage(index):
    red = {hit.id: hit.evidence for hit in index.search("red\x1b[31m", evidence=True)}["red"]
    lines = red.to_terminal(color=False).splitlines()
    assert lines[0] == "page image of 3 × 5 patches"
    assert lines[1].startswith("red → patch (1, 3) 1.00 · ") and "\x1b" not in lines[1]


def test_a_passage_of_a_page_is_refused(index):
    for hit in index.search("caption red", evidence=True):
        if hit.is_page:
            with pytest.raises(InputError, match="page image and has no passage to quote"):
                hit.best_passage(100)


def test_evidence_of_a_page_is_json_for_metadata(index):
    flag = {hit.id: hit.evidence for hit in index.search("red", evidence=True)}["flag"]
    record = json.loads(json.dumps(flag.to_dict()))
    assert record["grid"] == [3, 5]
    assert record["words"][0] | {"similarity": 1, "share": 1} == {
        "word": "red", "query_span": [0, 3], "text": "", "span": None, "similarity": 1, "share": 1, "patch": [2, 4],
    }  # fmt: skip


def test_the_evidence_is_of_the_page_that_was_searched(index):
    """Another writer replaces one page and deletes the other between the scoring and the reading of the hits."""
    before = index._reader.current()
    other = Index.open(index.uri, ENCODER)
    other.add([{"id": "red", "image": page({(0, 0): "green"}, rows=1, columns=1)}])
    other.delete("flag")
    scope, options = index._reader._scope(before, None, 3), SearchOptions(3, evidence=True)
    (hits,) = search(scope, index.candidates, ["red"], ENCODER.encode_queries(["red"]), options)
    found = {hit.id: hit.evidence for hit in hits}
    assert (found["red"].image, found["flag"].image) == (RED, FLAG)
    assert (found["red"].words[0].patch, found["flag"].words[0].patch) == ((1, 3), (2, 4))
    assert {hit.id for hit in index.search("green", evidence=True)} == {"red", "text"}


def faint_page(similarity):
    """Evidence of two pages of one row: the first patch has this similarity to the query, the others none."""
    vectors = np.array([[similarity, 0], [0, 1], [0.9, 0], [0, 1]], np.float32)
    spans = np.array([(0, 0), (0, 1)] * 2, np.int32)
    query = TokenBatch(np.array([[1, 0]], np.float32), offsets_of([1]), np.array([(0, 3)], np.int32))
    return explain_pages("red", query, [("", page({}, 1, 2))] * 2, TokenBatch(vectors, offsets_of([2, 2]), spans))


def test_all_pages_of_a_search_are_coloured_on_one_scale():
    faint, strong = faint_page(0.06)
    assert_allclose([faint.color_range(), strong.color_range(0)], [(0, 0.9)] * 2, atol=1e-6)
    paleness = [opened(evidence.to_png())[:, 0, 2].min() for evidence in (faint, strong)]
    # White paper is 255, the strongest colour 48.
    assert paleness[0] > 240 and paleness[1] == 48
    blue = [base64.b64decode(re.search('base64,([^"]+)', e.to_html())[1]) for e in (faint, strong)]
    assert opened(blue[0])[:, 0, 2].min() > 220 > 100 > opened(blue[1])[:, 0, 2].min()


def test_pages_that_barely_match_stay_pale_when_no_page_matches_well():
    faint = replace(faint_page(0.06)[0], ranges=())
    assert_allclose(faint.color_range(), (0, 0.2), atol=1e-6)
    assert opened(faint.to_png())[:, 0, 2].min() > 180
    for word in (1, "red"):
        with pytest.raises(InputError, match="a position in the 1 words"):
            faint.color_range(word)


def test_page_images_have_no_passage_and_texts_beside_them_do(index):
    passages = {hit.id: hit.passage and hit.passage.text for hit in index.search("red blue", passage_chars=300)}
    assert passages == {"red": None, "flag": None, "text": "a red text about blue things"}


def test_a_page_without_usable_patches_says_so_and_scores_as_ever(tmp_path):
    class Spanless(ColorEncoder):
        def encode_images(self, images):
            tokens = super().encode_images(images)
            return TokenBatch(tokens.vectors, tokens.offsets)

    index = Index.create(tmp_path / "index", Spanless())
    index.add([{"id": "red", "image": RED}])
    (hit,) = index.search("red", evidence=True)
    assert_allclose(hit.score, 1, atol=HALF)
    assert (hit.evidence.grid, hit.evidence.words[0].patch) == ((0, 0), None)
    assert "without the rows and columns of its patches" in hit.evidence.to_dict()["problem"]
    assert "(no patch)" in hit.evidence.to_terminal(color=False)
    assert "<em>this page image was stored" in hit.evidence.to_html()
    with pytest.raises(InputError, match="without the rows and columns"):
        hit.evidence.to_png()


def test_numbers_that_cannot_be_patches_do_not_make_an_enormous_map():
    query = TokenBatch(np.ones((1, 2), np.float32), offsets_of([1]), np.array([(0, 1)], np.int32))
    document = TokenBatch(np.ones((1, 2), np.float32), offsets_of([1]), np.array([(10**6, 10**6)], np.int32))
    (evidence,) = explain_pages("a", query, [("", RED)], document)
    assert "add it again" in evidence.problem


def test_images_are_not_read_by_a_search_without_evidence(index, monkeypatch):
    monkeypatch.delattr("manyvec.storage.snapshot.Snapshot.images")
    assert len(index.search("red")) == 3
    with pytest.raises(AttributeError):
        index.search("red", evidence=True)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (RED, "image/png"),
        (page({}, kind="JPEG"), "image/jpeg"),
        (page({}, kind="WEBP"), "image/webp"),
        (page({}, kind="GIF"), "image/gif"),
    ],
)
def test_a_browser_gets_the_file_itself_where_its_kind_is_safe(image, kind):
    assert for_browser(image) == (image, kind)


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "PPM"])
def test_a_browser_gets_other_kinds_as_png(kind):
    image, content_type = for_browser(page({(1, 3): "red"}, kind=kind))
    assert (content_type, Image.open(io.BytesIO(image)).format) == ("image/png", "PNG")
    assert_array_equal(opened(image), opened(RED))


def test_a_browser_gets_a_large_page_scaled_down():
    image, content_type = for_browser(as_bytes(Image.new("RGB", (2000, 4000)), "JPEG"))
    assert (content_type, opened(image).shape) == ("image/png", (1600, 800, 3))
