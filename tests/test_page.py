"""The web page of `manyvec serve` in a headless Chromium: typing, pointing, filtering and reading."""

import io
import os
import shutil
from pathlib import Path

import pytest

from manyvec import Index
from manyvec.testing import ColorEncoder, HashEncoder

webdriver = pytest.importorskip("selenium.webdriver", reason="needs the dev extra: pip install 'manyvec[dev]'")
pytest.importorskip("fastapi", reason="needs the serve extra: pip install 'manyvec[serve]'")

from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

from manyvec.server.app import create_app  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)",
)
FLAGS = (
    "--headless --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1100,1000"
).split()
TOKEN = "a-token-of-enough-characters"
ATTACK = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
LONG = "A village lies there. " * 60 + "Paris is the capital of France. " + "Rain falls on it. " * 60


@pytest.fixture
def index(tmp_path):
    index = Index.create(tmp_path / "places", HashEncoder(64), filter_columns={"lang": str, "year": int, "open": bool})
    index.add(
        [
            {
                "id": "paris",
                "text": "👩‍🔬👍🏽 Paris is the capital of France.",
                "metadata": {"lang": "en", "open": True},
            },
            {
                "id": "hauptstadt",
                "text": "Paris: die Hauptstadt",
                "metadata": {"lang": "de", "year": 1999, "open": False},
            },
            {"id": "long", "text": LONG, "metadata": {"lang": "en", "year": 2020}},
            {"id": f"<b>{ATTACK}</b>", "text": f"attack {ATTACK} here", "metadata": {"note": ATTACK, "lang": ATTACK}},
        ]
    )
    return index


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Chromium's sandbox does not run as root.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    for flag in [*FLAGS, *sandbox, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """Drives the page as a person would."""

    def __init__(self, driver, url):
        self.driver = driver
        driver.get_log("browser")
        driver.get(url)

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.driver.find_element("css selector", selector)

    def wait(self, condition):
        ignored = [StaleElementReferenceException]
        return WebDriverWait(self.driver, 60, 0.05, ignored_exceptions=ignored).until(lambda _: condition())

    def search(self, query):
        box = self.one("#query")
        box.clear()
        box.send_keys(query + "\n")

    def ids(self):
        return [shown.text for shown in self.all(".hit .id")]

    def wait_for(self, *ids):
        self.wait(lambda: sorted(self.ids()) == sorted(ids))

    def point_at(self, target):
        ActionChains(self.driver).move_to_element(target).perform()

    def log_messages(self):
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture
def page(chromium, index, running):
    with running(create_app(index)) as url:
        page = Page(chromium, url)
        page.wait(lambda: "places: 4 documents" in page.one("#about").text)
        yield page
        # Violations of the content security policy and script errors are logged here.
        assert page.log_messages() == []
        # No markup of a document, its metadata or a query has run.
        assert chromium.title == "places · manyvec"
        chromium.get("about:blank")


def test_typing_a_query_shows_hits_with_highlights_and_times(page):
    page.search("capital of France")
    page.wait(lambda: len(page.ids()) == 4)
    assert page.ids()[:2] == ["long", "paris"]
    assert page.one("#status").text.startswith("4 hits in ")
    assert not page.one(".legend").is_displayed()
    page.one("#timing summary").click()
    assert [part.text.split()[0] for part in page.all(".legend li")] == [
        "encode", "candidates", "fetch", "score", "evidence", "other",
    ]  # fmt: skip
    # The emoji before it have several code points and more UTF-16 units: a wrong count would mark other letters.
    assert [mark.text for mark in page.all(".hit:nth-child(2) mark")] == ["capital", "of", "France"]
    assert page.one(".hit:nth-child(2) .text").text == "👩‍🔬👍🏽 Paris is the capital of France."
    assert "capital of France" in page.one(".hit:nth-child(1) .text").text


def test_a_highlight_is_stronger_the_more_similar_the_words_are(page):
    page.search("Paris borough")
    page.wait(page.ids)
    strengths = {
        mark.text: float(mark.value_of_css_property("background-color").rpartition(",")[2].strip(" )"))
        for mark in page.all(".hit:nth-child(1) mark")
    }
    # An equal word has full strength; the match of `borough` is hardly similar.
    assert strengths["Paris"] == pytest.approx(0.8, abs=0.01)
    assert min(strengths.values()) < 0.5


def test_pointing_at_a_highlight_shows_which_word_of_the_query_matched(page):
    page.search("capital")
    page.wait(page.ids)
    assert not page.one("#tip").is_displayed()
    page.point_at(page.one(".hit mark"))
    page.wait(page.one("#tip").is_displayed)
    assert page.one("#tip").text == "capital → capital: similarity 1.00, adds 1.00"
    page.point_at(page.one("#about"))
    page.wait(lambda: not page.one("#tip").is_displayed())


def test_words_that_bm25_counted_are_underlined_and_named(page):
    page.search("capitals attack <img")
    page.wait(page.ids)
    assert page.all("mark.lexical") == [] and not page.one(".counted").is_displayed()
    Select(page.one("#weight")).select_by_visible_text("0.5")
    page.wait(lambda: page.all("mark.lexical"))
    counted = {shown.text for shown in page.all(".counted") if shown.is_displayed()}
    assert "BM25 counted capitals × 1 (underlined)" in counted
    # The encoder knows no plural: BM25 alone takes these for the same word.
    lexical = next(mark for mark in page.all("mark.lexical") if mark.text == "capital")
    assert "underline" in lexical.value_of_css_property("text-decoration")
    page.point_at(lexical)
    page.wait(lambda: page.one("#tip").text.endswith("BM25 counted capitals: 1 × in this document"))
    assert page.all("#hits img, #tip *:not(p)") == []


def test_pointing_at_a_word_of_the_query_outlines_its_match_in_the_text(page):
    page.search("France capital")
    page.wait(page.ids)
    page.point_at(page.one(".hit .words li"))
    page.wait(lambda: [mark.text for mark in page.all("mark.traced")] == ["France"])


def test_filter_controls_follow_the_declared_columns_and_filter_the_hits(page):
    assert [shown.text for shown in page.all(".filter legend")] == ["lang", "year", "open"]
    page.search("Paris")
    page.wait(lambda: len(page.ids()) == 4)
    Select(page.one("[data-column=open]")).select_by_visible_text("false (1)")
    page.wait_for("hauptstadt")
    Select(page.one("[data-column=open]")).select_by_visible_text("any")
    page.wait(lambda: len(page.ids()) == 4)
    page.one("[data-column=year][data-op='>=']").send_keys("2000\n")
    page.wait_for("long")
    page.one("[data-column=year][data-op='>=']").clear()
    page.one("[data-column=lang]").send_keys("de\n")
    page.wait_for("hauptstadt")


def test_clicking_a_metadata_value_filters_by_it(page):
    page.search("Paris")
    page.wait(lambda: len(page.ids()) == 4)
    page.one("button[title='only lang de']").click()
    page.wait_for("hauptstadt")
    assert page.one("[data-column=lang]").get_attribute("value") == "de"


def test_markup_in_documents_is_shown_as_text(page):
    page.search("attack script onerror")
    page.wait(page.ids)
    first = page.one(".hit")
    assert first.find_element("css selector", ".text").text == f"attack {ATTACK} here"
    assert page.ids()[0] == f"<b>{ATTACK}</b>"
    assert first.find_element("css selector", ".metadata").text.count(ATTACK) == 2
    page.point_at(page.one(".hit mark"))
    assert page.all("#hits script, #hits img, #hits b:not(.similarity b), #tip *:not(p)") == []
    assert page.driver.title == "places · manyvec"


def test_markup_in_a_query_is_shown_as_text(page):
    page.search(ATTACK)
    page.wait(page.ids)
    assert page.all("#hits img, #hits script") == []
    assert page.driver.title == "places · manyvec"


def test_the_whole_text_is_shown_with_its_highlights(page):
    page.search("capital of France")
    page.wait(page.ids)
    assert len(page.one(".hit .text").text) < 600
    page.one(".hit .whole").click()
    page.wait(lambda: page.one(".hit .text").text.strip() == LONG.strip())
    assert [mark.text for mark in page.all(".hit:nth-child(1) mark")] == ["capital", "of", "France"]
    page.one(".hit .whole").click()
    page.wait(lambda: len(page.one(".hit .text").text) < 600)


def test_a_document_that_changed_since_the_search_is_shown_without_highlights(page, index):
    page.search("capital of France")
    page.wait(page.ids)
    index.add([{"id": "long", "text": LONG.replace("Paris", "Parys")}])
    page.one(".hit .whole").click()
    page.wait(page.one(".hit .problem").is_displayed)
    assert page.one(".hit .problem").text.startswith("This document changed since the search")
    assert page.all(".hit:nth-child(1) mark") == []


def test_a_document_deleted_since_the_search_is_reported(page, index):
    page.search("capital of France")
    page.wait(page.ids)
    index.delete("long")
    page.one(".hit .whole").click()
    page.wait(page.one(".hit .problem").is_displayed)
    assert page.one(".hit .problem").text == "This document was deleted since the search."
    # Chromium logs every 404.
    assert len(page.log_messages()) == 1


def test_errors_and_empty_results_are_shown(page):
    page.search("x" * 3000)
    page.wait(page.ids)
    page.one("[data-column=year][data-op='<=']").send_keys("1000\n")
    page.wait(lambda: page.one("#status").text.startswith("Nothing found. No document that passes the filters"))
    page.one("#status button").click()
    page.wait(page.ids)
    page.one("[data-column=year][data-op='<=']").send_keys("1.5e300\n")
    page.wait(lambda: page.all("#status.alarm"))
    assert "64 bits" in page.one("#status").text
    # The hits of the search before stay.
    assert "belongs to the search before" in page.one("#status").text and page.ids()
    assert len(page.log_messages()) == 1


def test_the_page_asks_for_the_token(chromium, index, running):
    with running(create_app(index, token=TOKEN)) as url:
        page = Page(chromium, url)
        page.wait(page.one("#token").is_displayed)
        assert page.one("#about").text == ""
        page.one("#token").send_keys(TOKEN + "\n")
        page.wait(lambda: "places: 4 documents" in page.one("#about").text)
        page.search("capital")
        page.wait(page.ids)
        assert not page.one("#token").is_displayed()
        chromium.get("about:blank")


def test_a_search_is_in_the_url_and_back_returns_to_the_one_before(page):
    page.search("Paris")
    page.wait(lambda: len(page.ids()) == 4)
    Select(page.one("#k")).select_by_visible_text("5")
    page.one("[data-column=year][data-op='>=']").send_keys("2000\n")
    page.wait_for("long")
    assert page.driver.current_url.endswith("/?q=Paris&k=5&f.year.from=2000")
    page.driver.refresh()
    page.wait_for("long")
    assert page.one("[data-column=year][data-op='>=']").get_attribute("value") == "2000"
    page.driver.back()
    page.wait(lambda: len(page.ids()) == 4)
    assert page.one("[data-column=year][data-op='>=']").get_attribute("value") == ""
    page.one("[data-column=year][data-op='>=']").send_keys("2000\n")
    page.wait_for("long")
    page.one("#clear").click()
    page.wait(lambda: len(page.ids()) == 4)


def test_a_url_with_filters_that_are_not_declared_says_so_and_searches_without_them(page):
    page.driver.get(page.driver.current_url + f"?q=Paris&f.author.is={ATTACK}&f.open.is=maybe&f.lang.is=de&k=7&view=x")
    page.wait_for("hauptstadt")
    assert "filters that this index does not have now" in page.one("#note").text
    assert f"author = {ATTACK}" in page.one("#note").text and "open = maybe" in page.one("#note").text
    assert page.one("#k").get_attribute("value") == "10"
    assert page.driver.title == "places · manyvec"


def test_a_page_that_is_open_while_the_index_is_rebuilt_takes_its_new_columns(page, index):
    page.search("Paris")
    page.wait(lambda: len(page.ids()) == 4)
    shutil.rmtree(index.uri)
    rebuilt = Index.create(index.uri, HashEncoder(64), filter_columns={"lang": str, "author": str})
    rebuilt.add([{"id": "new", "text": "Paris again", "metadata": {"lang": "de", "author": ATTACK}}])
    page.one("[data-column=lang]").send_keys("de\n")
    page.wait_for("new")
    assert page.all("[data-column=year]") != []
    page.one("[data-column=year][data-op='>=']").send_keys("2000\n")
    page.wait(page.one("#note").is_displayed)
    assert "filters that this index does not have now, which are left out: year = 2000" in page.one("#note").text
    page.wait_for("new")
    assert [shown.text for shown in page.all(".filter legend")] == ["lang", "author"]
    assert page.one("#about").text.startswith("places: 1 documents")
    # Chromium logs the refused search.
    assert len(page.log_messages()) == 1


def test_hits_stay_when_the_server_is_gone(chromium, index, running):
    with running(create_app(index)) as url:
        page = Page(chromium, url)
        page.wait(lambda: "places" in page.one("#about").text)
        page.one("#samples button").click()
        page.wait(page.ids)
        before = page.ids()
    page.search("another")
    page.wait(lambda: page.all("#status.alarm"))
    assert page.one("#status").text.startswith("The server cannot be reached.")
    assert page.ids() == before
    chromium.get("about:blank")


def test_a_word_chip_explains_itself_with_the_keyboard_and_leads_to_a_match_outside_of_the_passage(page, index):
    index.add([{"id": "far", "text": "Zebras live here. " + "Rain falls on it. " * 90 + "Unicorns live there."}])
    page.search("Zebras Unicorns")
    page.wait(lambda: page.ids() and page.ids()[0] == "far")
    chips = page.all(".hit:nth-child(1) .words button")
    (outside,) = [chip for chip in chips if "elsewhere in the text" in chip.text]
    page.driver.execute_script("arguments[0].focus()", chips[0])
    page.wait(page.one("#tip").is_displayed)
    assert page.one("#tip").text.startswith("Zebras → Zebras: similarity 1.00")
    assert chips[0].get_attribute("aria-describedby") == "tip"
    ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    assert not page.one("#tip").is_displayed()
    word = outside.text.split()[0]
    outside.send_keys(Keys.ENTER)
    page.wait(lambda: [mark.text for mark in page.all("mark.traced")] == [word])
    assert page.one(".hit .whole").get_attribute("aria-expanded") == "true"


def test_a_title_and_its_source_head_a_hit_as_text(page, index):
    metadata = {"title": f"On {ATTACK}", "source": "a/b.pdf", "page": 3}
    index.add([{"id": "a/b.pdf#page=3", "text": "zebra crossing", "metadata": metadata}])
    page.search("zebra")
    page.wait(lambda: page.ids() and page.ids()[0] == "a/b.pdf#page=3")
    assert page.one(".hit h2").text == f"On {ATTACK}"
    assert page.one(".hit .origin").text == "a/b.pdf · page 3 · a/b.pdf#page=3"
    assert page.driver.title == "places · manyvec"


def test_three_methods_are_compared_side_by_side(page):
    page.search("attack script")
    page.wait(page.ids)
    Select(page.one("#view")).select_by_visible_text("three methods")
    page.wait(lambda: len(page.all("#comparison section")) == 3)
    headings = [shown.text for shown in page.all("#comparison h2")]
    assert headings == ["Late interaction", "Pooled vector", "BM25"]
    assert [section.find_element("css selector", "li .id").text for section in page.all("#comparison section")] == [
        f"<b>{ATTACK}</b>"
    ] * 3
    assert page.ids() == [] and "view=compare" in page.driver.current_url
    assert page.all("#comparison img, #comparison script") == []
    assert page.driver.title == "places · manyvec"


def test_documents_are_added_and_deleted_from_the_page_only_if_the_server_is_writable(chromium, index, running):
    with running(create_app(index, token=TOKEN, write=True)) as url:
        page = Page(chromium, url)
        page.wait(page.one("#token").is_displayed)
        page.one("#token").send_keys(TOKEN + "\n")
        page.wait(page.one("#writing").is_displayed)
        page.one("#writing summary").click()
        page.one("#new-id").send_keys("rome")
        page.one("#new-text").send_keys("Rome has a colosseum")
        page.one("#new-metadata").send_keys("{")
        page.one("#new .primary").click()
        page.wait(lambda: "not JSON" in page.one("#new-status").text)
        page.one("#new-metadata").clear()
        page.one("#new-metadata").send_keys('{"lang": "it"}')
        page.one("#new .primary").click()
        page.wait(lambda: page.one("#new-status").text == "Added rome.")
        page.search("colosseum")
        page.wait(lambda: page.ids() and page.ids()[0] == "rome")
        page.one(".hit .delete").click()
        page.driver.switch_to.alert.accept()
        page.wait(lambda: "rome" not in page.ids())
        assert index.get("rome") == []
        chromium.get("about:blank")
    with running(create_app(index)) as url:
        page = Page(chromium, url)
        page.search("Paris")
        page.wait(page.ids)
        assert not page.one("#writing").is_displayed() and not page.one(".hit .delete").is_displayed()
        chromium.get("about:blank")


@pytest.fixture(scope="session")
def axe():
    """Source of axe-core, which CI gets from npm."""
    path = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
    if not path.is_file():
        pytest.skip("needs axe-core: npm install --no-save axe-core")
    return path.read_text(encoding="utf8")


def open_writing(page):
    page.one("#token").send_keys(TOKEN + "\n")
    page.wait(lambda: page.ids() and page.one("#writing").is_displayed())
    page.one("#writing summary").click()
    page.one("#new-metadata").send_keys("{")
    page.one("#new-id").send_keys("x")
    page.one("#new-text").send_keys("y\t{\n")
    page.wait(lambda: "not JSON" in page.one("#new-status").text)


def open_timing_and_whole_text(page):
    page.one("#timing summary").click()
    next(button for button in page.all(".whole") if button.is_displayed()).click()
    page.wait(lambda: page.all(".text.open"))
    page.one(".hit .words button").click()


def open_viewer(page):
    page.one(".hit .zoom").click()
    page.wait(page.one("#viewer").is_displayed)


def test_axe_finds_no_problem_at_any_width_in_any_view_in_light_and_dark(chromium, axe, index, pages, running):
    columns = dict.fromkeys(("author", "topic", "country", "status", "kind", "team"), str)
    index.add_filter_columns(columns)
    # The query, what shows that the page is there, and further steps, each followed by a check.
    views = {
        "hits": ("?q=capital+Unicorns&w=0.3", ".hit", [open_timing_and_whole_text]),
        "compare": ("?q=capital&view=compare", "#comparison li", []),
        "empty": ("", "#samples button", []),
        "error": ("?q=capital&f.year.to=1.5e300&f.shelf.is=x", "#status.alarm", []),
        "token": ("?q=capital", "#access:not([hidden])", [open_writing]),
        "pages": ("?q=red+blue&w=0.3", ".hit", [open_viewer]),
    }
    screens = [(1280, "light"), (390, "dark")]
    if pictures := os.environ.get("MANYVEC_PICTURES"):
        screens += [(1280, "dark"), (390, "light")]
    try:
        for name, (query, selector, steps) in views.items():
            options = {"token": TOKEN, "write": True} if name == "token" else {}
            with running(create_app(pages if name == "pages" else index, **options)) as url:
                for width, scheme in screens:
                    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
                    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
                    page = Page(chromium, f"{url}/{query}")
                    for number, step in enumerate([lambda page, to=selector: page.wait(lambda: page.all(to)), *steps]):
                        step(page)
                        page.wait(lambda page=page, name=name: name != "pages" or pixel(page, 0, 0, 0))
                        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
                        if pictures:
                            file = Path(pictures, f"{name}-{number}-{width}-{scheme}.png")
                            file.write_bytes(chromium.get_screenshot_as_png())
                        assert problems(chromium, axe) == {}, (name, number, width, scheme)
                    # Forget the token.
                    chromium.execute_script("sessionStorage.clear()")
                    if (name, width) == ("hits", 390):
                        # With nine filters, the first hit starts above the fold.
                        assert page.driver.execute_script("return document.querySelector('.hit').offsetTop") < 500
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        chromium.get("about:blank")


def problems(chromium, axe):
    """What breaks a rule of WCAG 2.2 AA, by rule."""
    chromium.execute_script(axe)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
    found = chromium.execute_async_script("axe.run(document, {runOnly: arguments[0]}).then(arguments[1])", tags)
    return {v["id"]: [node["html"] for node in v["nodes"]][:3] for v in found["violations"]}


@pytest.mark.parametrize("query", ["?q=capital+Unicorns", "?q=red+blue", ""])
def test_the_tab_key_reaches_every_control_and_shows_where_it_is(chromium, index, pages, running, query):
    with running(create_app(pages if "red" in query else index, token=TOKEN, write=True)) as url:
        page = Page(chromium, f"{url}/{query}")
        page.wait(page.one("#token").is_displayed)
        page.one("#token").send_keys(TOKEN + "\n")
        page.wait(lambda: page.ids() if query else page.one("#samples").is_displayed())
        page.one("#writing summary").click()
        for button in page.all(".whole"):
            if button.is_displayed():
                button.click()
        # A control without an outline counts as one that is not reached.
        controls = page.driver.execute_script("""
            const controls = 'a[href], button, input, select, textarea, summary, [tabindex="0"]';
            const left = new Set([...document.querySelectorAll(controls)].filter((e) => e.checkVisibility()));
            addEventListener('focusin', ({ target }) => {
                if (getComputedStyle(target).outlineStyle !== 'none') left.delete(target);
            });
            window.left = left;
            document.activeElement.blur();
            return left.size;
        """)
        assert controls > 15
        ActionChains(page.driver).send_keys(Keys.TAB * (controls + 5)).perform()
        assert page.driver.execute_script("return [...left].map((e) => e.outerHTML.slice(0, 200))") == []
        chromium.get("about:blank")


def picture(size, *squares):
    """Return the file of a white page with squares of 16 pixels, given as (color, row, column)."""
    image = pytest.importorskip("PIL.Image").new("RGB", size, "white")
    for color, row, column in squares:
        image.paste(color, (16 * column, 16 * row, 16 * column + 16, 16 * row + 16))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pages(tmp_path):
    index = Index.create(tmp_path / "pages", ColorEncoder())
    index.add(
        [
            {"id": "a/page", "image": picture((96, 64), ("red", 1, 1), ("blue", 3, 5)), "text": f"caption {ATTACK}"},
            {"id": "bare", "image": picture((64, 64), ("red", 0, 0))},
            {"id": "text", "text": "some green text"},
        ]
    )
    return index


def pixel(page, position, x, y):
    """Return [red, green, blue] of a pixel of the hit at this position, counted from 0; None while it is not drawn."""
    script = """
        const canvas = document.querySelectorAll('.hit')[arguments[0]].querySelector('.page canvas');
        const copy = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
        // Chromium logs a warning for repeated reads of the page's own canvas.
        const context = copy.getContext('2d', {willReadFrequently: true});
        context.drawImage(canvas, 0, 0);
        return [...context.getImageData(arguments[1], arguments[2], 1, 1).data];
    """
    *color, opacity = page.driver.execute_script(script, position, x, y)
    return color if opacity else None


def test_a_page_is_overlaid_with_the_map_of_all_words_or_of_the_word_pointed_at(chromium, pages, running):
    with running(create_app(pages)) as url:
        page = Page(chromium, url)
        page.wait(lambda: "pages: 3 documents" in page.one("#about").text)
        page.search("red blue")
        page.wait(lambda: len(page.ids()) == 3 and pixel(page, 0, 0, 0))
        assert page.ids()[:2] == ["a/page", "bare"]
        # Blue and red are dark: the strongest glow, (192, 64, 16), is added to them. The rest stays white.
        assert pixel(page, 0, 88, 56) == pytest.approx([192, 64, 255], abs=8)
        assert pixel(page, 0, 24, 24) == pytest.approx([255, 64, 16], abs=8)
        assert min(pixel(page, 0, 56, 8)) > 240
        page.point_at(page.one(".hit .words li"))
        # The map of "red" hardly lights the blue square.
        page.wait(lambda: pixel(page, 0, 88, 56)[0] < 40)
        assert page.one("#tip").text == "red → row 2, column 2: similarity 1.00, adds 1.00"
        page.point_at(page.one("#about"))
        page.wait(lambda: pixel(page, 0, 88, 56)[0] > 175)
        assert not page.all(".hit:nth-child(2) .text")[0].is_displayed()
        assert page.log_messages() == []
        chromium.get("about:blank")


def test_the_browser_paints_light_and_dark_figures_as_evidence_does(chromium, tmp_path, running):
    index = Index.create(tmp_path / "pages", ColorEncoder())
    colors = {"black": (1, 1), "white": (1, 3), "#202020": (3, 1), "#505050": (4, 4), "#909090": (1, 6), "blue": (5, 7)}
    figures = [(color, row, column) for color, (row, column) in colors.items()]
    index.add([{"id": "figures", "image": picture((128, 112), *figures)}, {"id": "b", "text": "another"}])
    (hit,) = index.search("black white", k=1, evidence=True)
    painted = pytest.importorskip("PIL.Image").open(io.BytesIO(hit.evidence.to_png())).convert("RGB")
    with running(create_app(index)) as url:
        page = Page(chromium, f"{url}/?q=black+white")
        page.wait(lambda: page.ids() and pixel(page, 0, 0, 0))
        centers = [(16 * column + 8, 16 * row + 8) for row in range(7) for column in range(8)]
        for x, y in centers:
            assert pixel(page, 0, x, y) == pytest.approx(painted.getpixel((x, y)), abs=12), (x, y)
        # Both black figures, which match, are lit.
        assert min(pixel(page, 0, 24, 24)[0], pixel(page, 0, 24, 56)[0]) > 190
        chromium.get("about:blank")


def test_a_page_image_is_enlarged_with_its_heat_map(chromium, pages, running):
    with running(create_app(pages)) as url:
        page = Page(chromium, f"{url}/?q=red+blue")
        page.wait(lambda: len(page.ids()) == 3 and pixel(page, 0, 0, 0))
        page.one(".hit .zoom").send_keys(Keys.ENTER)
        page.wait(page.one("#viewer").is_displayed)
        assert page.one("#size").text == "Actual size"
        # The dialog keeps the focus; its controls and the picture, which scrolls, take turns.
        focused = "return document.activeElement.id || document.activeElement.className"
        reached = set()
        for _ in range(4):
            reached.add(page.driver.execute_script(focused))
            ActionChains(page.driver).send_keys(Keys.TAB).perform()
        assert {"size", "close", "pane"} <= reached
        page.one("#size").click()
        assert page.one("#viewer canvas").size == {"width": 96, "height": 64}
        ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
        page.wait(lambda: not page.one("#viewer").is_displayed())
        chromium.get("about:blank")


def test_markup_in_the_text_of_a_page_is_shown_as_text(chromium, pages, running):
    with running(create_app(pages)) as url:
        page = Page(chromium, f"{url}/?q=blue")
        page.wait(lambda: len(page.ids()) == 3 and pixel(page, 0, 0, 0))
        assert page.one(".hit .text").text == f"caption {ATTACK}"
        assert page.all("#hits script, #hits img") == []
        assert page.driver.title == "pages · manyvec"
        assert page.log_messages() == []
        chromium.get("about:blank")


def test_a_page_changed_or_deleted_since_the_search_is_shown_without_overlay(chromium, pages, running):
    with running(create_app(pages)) as url:
        # The pages are below the window, so their images are not requested before the page is scrolled.
        chromium.set_window_size(1100, 1000)
        page = Page(chromium, url)
        page.wait(lambda: "pages: 3 documents" in page.one("#about").text)
        page.driver.execute_script("document.querySelector('#timing').style.marginTop = '4000px'")
        page.search("red blue")
        page.wait(lambda: len(page.ids()) == 3)
        pages.add([{"id": "a/page", "image": picture((96, 64), ("green", 1, 1))}])
        pages.delete("bare")
        page.driver.execute_script("document.querySelector('#hits').scrollIntoView()")
        page.wait(lambda: all(shown.is_displayed() for shown in page.all(".paged .problem")))
        assert [shown.text for shown in page.all(".paged .problem")] == [
            "This page changed since the search. Search again to see what matches now.",
            "This page was deleted since the search.",
        ]
        assert pixel(page, 0, 24, 24) == [0, 128, 0]
        # Chromium logs every 404.
        assert len(page.log_messages()) == 1
        chromium.get("about:blank")


def test_a_server_with_a_token_shows_images(chromium, pages, running):
    with running(create_app(pages, token=TOKEN)) as url:
        page = Page(chromium, url)
        page.wait(page.one("#token").is_displayed)
        page.one("#token").send_keys(TOKEN + "\n")
        page.wait(lambda: "pages: 3 documents" in page.one("#about").text)
        page.search("red blue")
        page.wait(lambda: len(page.ids()) == 3 and pixel(page, 0, 24, 24) == [255, 64, 16])
        chromium.get("about:blank")
