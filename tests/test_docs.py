"""The documentation: its snippets run, its commands parse, its links resolve, and the site builds from what is here."""

import ast
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer

from manyvec import errors
from manyvec.cli.app import app
from manyvec.testing import ColorEncoder

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
READMES = [ROOT / "README.md", *sorted(ROOT.glob("integrations/*/README.md"))]
REPOSITORY = "https://github.com/manyvec/manyvec"


def shown(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path, language):
    """The code blocks of a page in one language."""
    return [part.split("```")[0] for part in path.read_text(encoding="utf8").split(f"```{language}\n")[1:]]


@pytest.mark.parametrize("page", [page for page in DOCS if blocks(page, "python")], ids=shown)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    pytest.importorskip("PIL.Image", reason="needs the images extra").new("RGB", (64, 64)).save(tmp_path / "page-3.png")
    monkeypatch.chdir(tmp_path)
    names = {"ColorEncoder": ColorEncoder, "__name__": "page"}
    for block in blocks(page, "python"):
        # The hub is not there for tests; what stands in for its model reads images, too.
        source = block.replace('encoder="vidore/colqwen2.5-v0.2"', "encoder=ColorEncoder()")
        exec(compile(source, shown(page), "exec"), names)


def commands(page):
    """The manyvec command lines of a page, as lists of arguments."""
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["manyvec"]:
            yield words[1:]


@pytest.fixture(scope="module")
def program():
    return typer.main.get_command(app)


def test_every_command_of_the_pages_is_one_that_the_program_reads(program):
    found = [(shown(page), arguments) for page in [*DOCS, *READMES] for arguments in commands(page)]
    assert len(found) > 30
    for page, (name, *arguments) in found:
        assert name in program.commands, page
        if "--help" not in arguments:
            program.commands[name].make_context(name, arguments)


def test_a_command_with_an_unknown_option_would_be_noticed(program):
    serve = program.commands["serve"]
    with pytest.raises(Exception, match="--tokn"):
        serve.make_context("serve", ["--tokn", "x"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site. Building fails at every warning: a link without a target, a page outside of the menu."""
    pytest.importorskip("mkdocs", reason="needs the docs extra: pip install 'manyvec[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(DOCS) - 1
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?\b(?:src|href)=\"?([^\"\s>]+)", page.read_text())
        assert [url for url in loaded if url.startswith(("http:", "https:", "//"))] == [], page
    styles = "\n".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)|@import", styles) == []


def test_the_reference_of_the_site_has_every_command_and_every_public_name(site, program, monkeypatch):
    commands_page = (site / "reference" / "cli" / "index.html").read_text()
    for name in program.commands:
        assert f'id="manyvec-{name}"' in commands_page
    reference = "\n".join(page.read_text() for page in (site / "reference").rglob("*.html"))
    monkeypatch.syspath_prepend(ROOT / "scripts")
    public = [*import_module("site_hooks").public_names(), "manyvec.Index.search", "manyvec.Index.get"]
    assert len(public) > 60
    assert [name for name in public if f'id="{name}"' not in reference] == []


def test_the_site_lists_every_result_with_its_command(site):
    page = (site / "benchmarks" / "index.html").read_text()
    results = sorted((ROOT / "examples" / "benchmarks" / "results").glob("*.json"))
    assert [path.name for path in results if path.name not in page] == []


def slug(heading):
    """The anchor of a heading on GitHub."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", [*READMES, *DOCS], ids=shown)
def test_links_into_the_repository_lead_to_what_is_there(page):
    text = page.read_text(encoding="utf8")
    links = re.findall(rf"\]\({REPOSITORY}/(?:blob|tree)/main/([^)#]+)(?:#([^)]+))?\)", text)
    links += [
        (path, "") for path in re.findall(r"\]\(https://raw\.githubusercontent\.com/manyvec/manyvec/main/(.+?)\)", text)
    ]
    for path, anchor in links:
        target = ROOT / unquote(path)
        assert target.exists(), path
        if anchor:
            assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)}


def test_the_readmes_have_no_link_that_a_package_index_cannot_follow():
    for readme in READMES:
        assert re.findall(r"\]\((?!https://|#)[^)]*\)", readme.read_text(encoding="utf8")) == [], readme


def test_the_readme_is_short_and_soon_shows_code():
    text = (ROOT / "README.md").read_text(encoding="utf8")
    assert len(text.split()) <= 900
    assert len(text.split("```")[0].split()) <= 120


ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type) and name.endswith("Error")]


def test_troubleshooting_has_an_entry_for_every_error_class():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf8")
    assert [name for name in ERRORS if name != "ManyvecError" and f"\n## {name}\n" not in text] == []


def messages():
    """The messages of all errors in the source, with … for what is filled in."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_in_troubleshooting_are_those_of_the_program():
    quoted = re.findall(r"^> `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf8"), re.MULTILINE)
    assert len(quoted) > 20
    known = "\n".join(messages())
    assert [message for message in quoted if message not in known] == []


def test_the_pictures_of_the_concepts_are_drawn_by_a_script(tmp_path):
    code = f"import diagrams, pathlib; diagrams.main(pathlib.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=True)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (ROOT / "docs" / "images").glob("*.svg")}
    concepts = (ROOT / "docs" / "concepts.md").read_text(encoding="utf8")
    assert [name for name in sorted(drawn) if f"images/{name}" not in concepts] == []
