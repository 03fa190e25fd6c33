"""Evidence: words, spans, shares and passages that can be worked out by hand, in any script."""

import json
import re
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from manyvec import Document, Hit, Index, InputError, TokenBatch
from manyvec.cli import main
from manyvec.evidence.text import explain
from manyvec.evidence.words import sentences, words
from manyvec.retrieval.search import SearchOptions, search
from manyvec.testing import HashEncoder
from manyvec.vectors.batch import offsets_of

ENCODER = HashEncoder(64)
TEXT = "Paris is the capital of France. Bread is baked from flour. Berlin is in Germany."


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.add([{"id": "paris", "text": TEXT}, {"id": "bread", "text": "Flour and water"}])
    return index


def batch(vectors, spans=None):
    spans = None if spans is None else np.array(spans, np.int32).reshape(-1, 2)
    return TokenBatch(np.array(vectors, np.float32).reshape(len(vectors), -1), offsets_of([len(vectors)]), spans)


def explained(query, text, encoder=ENCODER):
    return explain(query, encoder.encode_queries([query]), [text], encoder.encode_documents([text]))[0]


def found(evidence):
    return {match.word: match.text for match in evidence.words}


def cut(text, bounds):
    return [text[start:end] for start, end in bounds(text)]


class PieceEncoder(HashEncoder):
    """A token for every two characters of a word, as sub-word tokenizers have; a marker before and after them."""

    def encode_documents(self, texts):
        batches = []
        for text in texts:
            pieces = [(i, min(i + 2, end)) for start, end in words(text) for i in range(start, end, 2)]
            tokens = super().encode_documents(["[CLS]"[1:4], *(text[a:b] for a, b in pieces), "SEP"])
            spans = [(-1, -1), *pieces, (-1, -1)]
            batches.append(TokenBatch(tokens.vectors, offsets_of([tokens.n_tokens]), np.array(spans, np.int32)))
        return TokenBatch.concatenate(batches)


class SpanlessEncoder(HashEncoder):
    """An encoder that knows no spans for documents."""

    def encode_documents(self, texts):
        tokens = super().encode_documents(texts)
        return TokenBatch(tokens.vectors, tokens.offsets)

    def encode_queries(self, queries):
        return super().encode_documents(queries)


def test_each_word_of_the_query_points_at_its_equal_in_the_document(index):
    evidence = index.search("capital of bread", k=1, evidence=True)[0].evidence
    assert [(m.word, m.query_span, m.text, m.span) for m in evidence.words] == [
        ("capital", (0, 7), "capital", (13, 20)),
        ("of", (8, 10), "of", (21, 23)),
        ("bread", (11, 16), "Bread", (32, 37)),
    ]
    # float16 storage keeps 11 bits.
    assert_allclose([m.similarity for m in evidence.words], 1, atol=2**-10)
    assert_allclose([m.share for m in evidence.words], 1, atol=2**-10)
    assert evidence.unattributed == 0


def test_shares_add_up_to_the_score_of_every_hit(index):
    for query in ("capital of france", "flour", "nothing of this", "? !"):
        for hit in index.search(query, evidence=True):
            total = sum(match.share for match in hit.evidence.words) + hit.evidence.unattributed
            assert_allclose([total, hit.evidence.score], hit.score, atol=1e-5)


def test_many_queries_get_the_evidence_that_each_gets_alone(index):
    queries = ["flour", "", "capital of france"]
    together = index.search_many(queries, evidence=True)
    for hits, query in zip(together, queries, strict=True):
        alone = index.search(query, evidence=True)
        assert [hit.id for hit in hits] == [hit.id for hit in alone]
        for hit, same in zip(hits, alone, strict=True):
            # Several queries are multiplied in another order, which moves the last bits.
            assert_allclose(hit.score, same.score, atol=1e-4)
            assert [(m.word, m.span) for m in hit.evidence.words] == [(m.word, m.span) for m in same.evidence.words]
    assert [hit.evidence.words[0].word for hit in together[2]] == ["capital", "capital"]


def test_a_search_returns_the_best_passage_of_every_hit_without_its_evidence(index):
    hits = index.search("baked flour", passage_chars=40)
    assert [(hit.id, hit.passage.text) for hit in hits] == [
        ("paris", "Bread is baked from flour."),
        ("bread", "Flour and water"),
    ]
    assert all(
        hit.evidence is None and hit.text[hit.passage.start : hit.passage.end] == hit.passage.text for hit in hits
    )
    (hit,) = index.search("berlin", 1, evidence=True, passage_chars=30)
    assert hit.passage == hit.best_passage(30)
    assert index.search("berlin", 1)[0].passage is None
    with pytest.raises(InputError, match="passage_chars must be a positive integer, got 0"):
        index.search("berlin", passage_chars=0)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"source": "report.pdf", "page": 12}, "report.pdf, p. 12"),
        ({"source": "sums.xlsx", "sheet": "2024"}, "sums.xlsx, sheet 2024"),
        ({"source": "notes.md"}, "notes.md"),
        ({"page": 0}, "a, p. 0"),
        ({}, "a"),
    ],
)
def test_a_hit_is_cited_by_its_source_and_page(metadata, expected):
    assert Hit(id="a", text="", metadata=metadata, score=1, similarity=1, rank=1).citation() == expected


def test_only_a_search_that_asks_gets_evidence(index):
    hit = index.search("flour")[0]
    assert hit.evidence is None
    with pytest.raises(InputError, match="search with evidence=True"):
        hit.best_passage(100)
    assert index.search("flour", k=0, evidence=True) == []


def test_sub_word_pieces_are_gathered_into_words_and_markers_counted_apart(tmp_path):
    index = Index.create(tmp_path / "index", PieceEncoder(64))
    index.add([{"id": "a", "text": "late interaction"}])
    hit = index.search("interaction", evidence=True)[0]
    (match,) = hit.evidence.words
    assert (match.word, match.text, match.span) == ("interaction", "interaction", (5, 16))
    # Six pieces and two markers, each found again.
    assert_allclose(
        [match.similarity, match.share, hit.evidence.unattributed, hit.score], [1, 6, 2, 8], atol=8 * 2**-10
    )


def test_a_match_on_a_special_token_of_the_document_is_not_highlighted_but_counts():
    query = batch([[1, 0], [0, 1]], [(0, 3), (4, 7)])
    document = batch([[1, 0], [0, 0.5], [-1, 0]], [(-1, -1), (0, 4), (5, 9)])
    evidence = explain("one two", query, ["text here"], document)[0]
    assert [(m.word, m.text, m.span, m.share) for m in evidence.words] == [
        ("one", "", None, 1.0),
        ("two", "text", (0, 4), 0.5),
    ]
    assert (evidence.score, evidence.unattributed) == (1.5, 0)
    assert evidence.to_html().count("<mark") == 1
    assert "one → (no word) 1.00" in evidence.to_terminal(color=False)


def test_a_word_whose_pieces_match_in_two_places_shows_where_most_similarity_is():
    query = batch([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [(0, 2), (2, 4), (4, 6)])
    document = batch([[0.9, 0, 0], [0, 0.5, 0.5]], [(0, 3), (4, 7)])
    (match,) = explain("abcdef", query, ["one two"], document)[0].words
    assert match.text == "two"
    assert_allclose([match.similarity, match.share], [1.9 / 3, 1.9], atol=1e-6)


def test_the_evidence_is_of_the_version_that_was_searched(index):
    """Another writer replaces the text between the scoring and the reading of the hits."""
    changed = "All other words are here now"
    before = index._reader.current()
    Index.open(index.uri, ENCODER).add([{"id": "paris", "text": changed}])
    Index.open(index.uri, ENCODER).delete("bread")
    query = "capital flour"
    wanted = SearchOptions(2, evidence=True)
    scope = index._reader._scope(before, None, 2)
    (hits,) = search(scope, index.candidates, [query], ENCODER.encode_queries([query]), wanted)
    assert [hit.text for hit in hits] == [TEXT, "Flour and water"]
    assert found(hits[0].evidence) == {"capital": "capital", "flour": "flour"}
    assert found(hits[1].evidence)["flour"] == "Flour"
    assert [hit.text for hit in index.search("words", evidence=True)] == [changed]


def test_a_document_without_spans_says_so_and_the_other_hits_are_as_ever(tmp_path):
    index = Index.create(tmp_path / "index", ENCODER)
    index.add([{"id": "good", "text": "some more text"}])
    Index.open(index.uri, SpanlessEncoder(64)).add([{"id": "spanless", "text": "some <text>"}])
    spanless, good = index.search("some < text", evidence=True)
    assert good.evidence.problem is None
    assert found(good.evidence)["text"] == "text"
    assert (spanless.id, found(spanless.evidence)) == ("spanless", {"some": "", "<": "", "text": ""})
    assert_allclose([m.share for m in spanless.evidence.words], 1, atol=2**-10)
    assert "add it again with one that does" in spanless.evidence.problem
    assert spanless.evidence.to_dict()["problem"] == spanless.evidence.problem
    assert "problem" not in good.evidence.to_dict()
    assert "some &lt;text&gt;</div>" in spanless.evidence.to_html()
    assert "<mark" not in spanless.evidence.to_html()
    assert "stored without the characters" in spanless.evidence.to_terminal(color=False)
    with pytest.raises(InputError, match="stored without the characters"):
        spanless.best_passage(100)


def test_a_query_without_spans_is_refused():
    with pytest.raises(InputError, match="needs the spans of the query"):
        explain("a", batch([[1.0]]), ["text"], batch([[1.0]], [(0, 4)]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't pay 1,234.56 (now)!", ["Don't", "pay", "1,234.56", "(", "now", ")!"]),
        ("caf\u0065\u0301s na\u0308ive", ["cafe\u0301s", "na\u0308ive"]),
        ("👩\u200d🔬 and 👍🏽", ["👩\u200d🔬", "and", "👍🏽"]),
        ("שָׁלוֹם עולם", ["שָׁלוֹם", "עולם"]),
        ("مُحَمَّد", ["مُحَمَّد"]),
        ("a\tb\nc\u00a0d", ["a", "b", "c", "d"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("東京は", ["東", "京", "は"]),
        ("น้ำ", ["น้", "ำ"]),
        ("<b>bold</b>", ["<", "b", ">", "bold", "</", "b", ">"]),
        ("snake_case x2", ["snake_case", "x2"]),
        (" \t\n", []),
    ],
)
def test_words_of_a_text(text, expected):
    assert cut(text, words) == expected


def test_every_visible_character_is_in_one_word():
    text = "".join(map(chr, [*range(32, 0xD800), *range(0xE000, 0x11000), *range(0x1F000, 0x20100)]))
    covered = np.zeros(len(text), int)
    for start, end in words(text):
        covered[start:end] += 1
    assert covered.max() == 1
    assert {text[i] for i in np.flatnonzero(covered == 0) if not text[i].isspace()} == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        ("The U.S. President spoke. He left.", ["The U.S. President spoke.", "He left."]),
        ("approx. ten\n\n  next line ", ["approx. ten", "next line"]),
        ('He said "go." Then left.', ['He said "go."', "Then left."]),
        ("東京です。はい。", ["東京です。", "はい。"]),
        ("no end", ["no end"]),
    ],
)
def test_sentences_of_a_text(text, expected):
    assert cut(text, sentences) == expected


def test_a_span_within_a_character_and_its_marks_is_widened_over_all_of_them():
    text = "un cafe\u0301 noir"
    evidence = explain("x", batch([[1.0]], [(0, 1)]), [text], batch([[1.0]], [(3, 7)]))[0]
    assert unicodedata.normalize("NFC", evidence.words[0].text) == "café"
    emoji = "an 👩\u200d🔬 works"
    evidence = explain("x", batch([[1.0]], [(0, 1)]), [emoji], batch([[1.0]], [(3, 4)]))[0]
    assert evidence.words[0].text == "👩\u200d🔬"


def test_a_span_that_holds_the_space_before_its_word_is_that_word():
    """Byte-level tokenizers count the space in."""
    evidence = explain("a bc", batch([[1.0]], [(1, 4)]), ["x yz"], batch([[1.0]], [(1, 4)]))[0]
    assert [(m.word, m.query_span, m.text, m.span) for m in evidence.words] == [("bc", (2, 4), "yz", (2, 4))]


def test_a_pooled_token_shows_all_the_words_it_stands_for():
    evidence = explain("x", batch([[1.0]], [(0, 1)]), ["one two three"], batch([[1.0]], [(1, 6)]))[0]
    assert evidence.words[0].text == "one two"


def test_a_word_of_a_hundred_thousand_characters_is_one_word_and_is_cut_only_to_fit():
    for text in ("x" * 100_000, "é" * 50_000 + "e\u0301" * 25_000, "!" * 100_000):
        evidence = explain("q", batch([[1.0]], [(0, 1)]), [text], batch([[1.0]], [(10, 20)]))[0]
        assert evidence.words[0].span == (0, len(text))
        assert len(evidence.best_passage(200).text) == 200
        assert len(json.dumps(evidence.to_dict())) < 1000
        assert len(evidence.to_terminal(color=False)) < 1000


def test_a_cut_never_parts_a_character_from_its_marks():
    evidence = explained("e", "e\u0301" * 500)
    assert evidence.best_passage(5).text == "e\u0301e\u0301"
    assert evidence.best_passage(1).text == "e"


def test_the_best_passage_is_the_sentence_that_matches_most():
    assert explained("baked flour", TEXT).best_passage(40).text == "Bread is baked from flour."
    assert explained("where is berlin", TEXT).best_passage(40).text == "Berlin is in Germany."
    passage = explained("capital flour", TEXT).best_passage(60)
    assert (passage.text, passage.start, passage.end) == (TEXT[:58], 0, 58)
    assert explained("berlin", TEXT).best_passage(1000).text == TEXT


# Without NUL, which stands for combining marks where there are any.
@settings(deadline=None)
@given(st.text(st.characters(min_codepoint=1, max_codepoint=127)) | st.text("ab1.,' -_"))
def test_words_of_plain_text_are_the_same_where_other_scripts_follow(text):
    among_others = words(f"{text} è")
    np.testing.assert_array_equal(words(text), among_others[:-1])


def test_a_sentence_that_is_too_long_is_cut_between_words():
    text = " ".join(f"w{i}" for i in range(200))
    passage = explained("w100 w103", text).best_passage(30)
    assert {"w100", "w103"} <= set(passage.text.split()) <= set(text.split())
    assert len(passage.text) <= 30
    assert text[passage.start : passage.end] == passage.text


@pytest.mark.parametrize("at", [3, 60, 199])
def test_without_sentence_marks_the_matched_words_stand_in_the_middle_of_the_passage(at):
    text = " ".join(f"w{i:03}" for i in range(200))
    passage = explained(f"w{at:03}", text).best_passage(49)
    # Ten words of four letters, as near to the middle as the ends of the text allow.
    first = min(max(at - 5, 0), 190)
    assert passage.text.split()[0] in {f"w{i:03}" for i in (first - 1, first, first + 1)}
    assert len(passage.text.split()) == 10 and f"w{at:03}" in passage.text


def test_a_passage_is_the_best_of_all_runs_of_sentences():
    """Against every run, scored one by one."""
    rng = np.random.default_rng(0)
    text = " ".join(f"S{' '.join(f'w{w}' for w in rng.integers(0, 60, rng.integers(2, 9)))}." for _ in range(60))
    bounds = sentences(text).tolist()
    for query in ("w1 w2 w3 w4", "w5 w6 w7 w8 w9 w10", "w11"):
        evidence = explained(query, text)
        tokens = ENCODER.encode_documents([text])

        def score(start, end, query=query, tokens=tokens):
            own = (tokens.spans[:, 0] >= start) & (tokens.spans[:, 0] < end)
            return (ENCODER.encode_queries([query]).vectors @ tokens.vectors[own].T).max(axis=1).sum()

        runs = [score(a, b) for i, (a, _) in enumerate(bounds) for _, b in bounds[i:] if b - a <= 120]
        passage = evidence.best_passage(120)
        assert len(passage.text) <= 120
        assert score(passage.start, passage.end) >= max(runs) - 1e-4


@pytest.mark.parametrize("n_chars", [0, -1, True, 2.5, "9"])
def test_the_length_of_a_passage_is_a_positive_integer(n_chars):
    with pytest.raises(InputError, match="n_chars must be a positive integer"):
        explained("a", "a b").best_passage(n_chars)


@pytest.mark.parametrize("text", ["\u0301", "a", "\u200b\u200b", "🏽", " . ", "\tתשובה\u0301\t", "\x00\x1b[31m"])
def test_any_text_has_evidence_a_passage_and_renderings(text):
    evidence = explain("q", batch([[1.0]], [(0, 1)]), [text], batch([[1.0]], [(0, len(text))]))[0]
    for n_chars in (1, 2, 100):
        passage = evidence.best_passage(n_chars)
        assert text[passage.start : passage.end] == passage.text
        assert 0 < len(passage.text) <= n_chars
    assert json.loads(json.dumps(evidence.to_dict())) == evidence.to_dict()
    assert evidence.to_html().startswith("<div")
    assert "\x1b" not in evidence.to_terminal(color=False)


def test_a_document_or_query_never_injects_markup():
    attack = "\"><script>alert(1)</script><b onclick='x'>&amp;"
    for query, text in ((attack, attack), ("script", attack), (attack, "plain words")):
        rendered = explained(query, text)._repr_html_()
        from html.parser import HTMLParser

        seen = []

        class Parser(HTMLParser):
            def handle_starttag(self, tag, attributes, seen=seen):
                seen.append((tag, tuple(sorted(name for name, _ in attributes))))

        parser = Parser(convert_charrefs=True)
        shown = []
        parser.handle_data = shown.append
        parser.feed(rendered)
        parser.close()
        assert set(seen) <= {("div", ("dir", "style")), ("mark", ("style", "title"))}
        assert "".join(shown) == text


def test_html_shows_strength_and_which_word_matched():
    document = batch([[1, 0], [0.5, 0]], [(0, 3), (4, 7)])
    query = batch([[1, 0], [0.25, 0]], [(0, 1), (2, 3)])
    html = explain("a b", query, ["one two"], document)[0].to_html()
    assert (
        '<mark title="a 1.00, b 0.25" style="color: inherit; background: rgba(255, 176, 0, 1.00)">one</mark> two'
        in html
    )


def test_words_that_bm25_counted_are_underlined_and_named(tmp_path):
    index = Index.create(tmp_path / "index", HashEncoder())
    index.add([Document("a", "Two <pumps> and a filter"), Document("b", "a valve")])
    pure, mixed = (index.search("the pump", 1, evidence=True, lexical_weight=w)[0].evidence for w in (0, 0.5))
    assert pure.counted == () and "counted" not in pure.to_dict() and "underline" not in pure.to_html()
    assert [(c.word, c.spans) for c in mixed.counted] == [("pump", ((5, 10),))]
    assert mixed.to_dict()["counted"] == [{"word": "pump", "n": 1, "spans": [[5, 10]]}]
    assert re.search(r'title="[^"]*BM25 counted pump"[^>]*text-decoration: underline">pumps</mark>', mixed.to_html())
    assert "BM25 counted pump × 1" in mixed.to_terminal(color=False)
    assert re.search(r"\033\[4[;m][^\033]*pumps\033\[0m", mixed.to_terminal(color=True))
    # BM25 found nothing in this document.
    assert index.search("the pump", 2, evidence=True, lexical_weight=0.5)[1].evidence.counted == ()


def test_the_terminal_falls_back_to_brackets_and_no_text_steers_it(monkeypatch):
    evidence = explained("capital", "the\x1b[2J\u202e capital\nof\tFrance")
    first, second = evidence.to_terminal().split("\n")
    assert first == "the\ufffd[2J\ufffd [capital] of France"
    assert second == "capital → capital 1.00"
    colored = evidence.to_terminal(color=True)
    assert colored.count("\x1b[") == 2
    assert "48;5;214mcapital\x1b[0m" in colored
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in evidence.to_terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in evidence.to_terminal()


def test_to_dict_holds_what_a_citation_needs():
    record = explained("capital", TEXT).to_dict()
    assert record == {
        "score": 1.0,
        "unattributed": 0.0,
        "words": [
            {
                "word": "capital",
                "query_span": [0, 7],
                "text": "capital",
                "span": [13, 20],
                "similarity": 1.0,
                "share": 1.0,
            }
        ],
    }


def test_spans_beyond_the_text_are_not_shown():
    documents = TokenBatch.concatenate([batch([[1.0]], [(5, 9)]), batch([[1.0]], [(0, 4)])])
    wrong, right = explain("a", batch([[1.0]], [(0, 1)]), ["text", "text"], documents)
    assert "has 4 characters, but one of its tokens ends at character 9" in wrong.problem
    assert (wrong.words[0].span, wrong.score) == (None, 1)
    assert (right.words[0].span, right.problem) == ((0, 4), None)


def test_spans_of_windows_lie_in_the_whole_text(tmp_path):
    """A text longer than the model reads is encoded in windows."""
    text = " ".join(f"number {i} is here." for i in range(300)) + " A giraffe eats leaves."
    index = Index.create(tmp_path / "index", "minilm")
    index.add([Document("long", text)])
    hit = index.search("giraffes", evidence=True)[0]
    (match,) = hit.evidence.words
    assert (match.text, match.span) == ("giraffe", (text.index("giraffe"), text.index("giraffe") + 7))
    assert "giraffe" in hit.best_passage(40).text
    assert_allclose(sum(m.share for m in hit.evidence.words) + hit.evidence.unattributed, hit.score, atol=1e-4)


def test_the_command_shows_evidence(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("Bread is baked from flour. It is eaten warm.")
    assert main(["index", str(tmp_path / "a.txt"), "--index", str(tmp_path / "db")]) == 0
    capsys.readouterr()
    assert main(["search", "flour", "--index", str(tmp_path / "db"), "--evidence"]) == 0
    out = capsys.readouterr().out
    assert "[flour]" in out
    assert "flour → flour 0." in out
    assert main(["search", "flour", "--index", str(tmp_path / "db"), "--evidence", "--json"]) == 0
    (hit,) = json.loads(capsys.readouterr().out)["hits"]
    assert hit["evidence"]["words"][0]["text"] == "flour"
