"""The package as a whole: what import costs, what the names are, and that the README says what is there."""

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import manyvec


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_neither_torch_nor_a_database():
    loaded = python("import sys, manyvec; print(*sys.modules)").split()
    heavy = {"torch", "lancedb", "pyarrow", "numpy", "transformers", "sentence_transformers"}
    assert heavy.isdisjoint(loaded)


def test_import_takes_less_than_three_tenths_of_a_second_of_its_own():
    code = "import time; t = time.perf_counter(); import manyvec; print(time.perf_counter() - t)"
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_every_public_name_can_be_imported_and_is_known_to_type_checkers():
    names = sorted(manyvec._MODULE_OF)
    for name in names:
        assert getattr(manyvec, name) is not None
    source = Path(manyvec.__file__).read_text()
    declared = {line.split(" as ")[-1] for line in source.splitlines() if line.startswith("    from manyvec.")}
    assert declared == set(names)
    assert set(names) <= set(dir(manyvec))


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(manyvec, "indx")
    assert manyvec.__version__.count(".") == 2


def test_modules_import_only_from_ranks_above_their_own():
    """The table in CONTRIBUTING.md, and its list of the package `models`, as imports at the top of each module."""
    text = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if re.match(r"\| +\d+ +\|", line)]
    rank = {name: int(number) for number, names in rows for name in re.findall(r"`(\w+)`", names)}
    within = {name: place for place, name in enumerate(re.findall(r"`models/(\w+)`", text))}
    folder = Path(manyvec.__file__).parent
    assert set(rank) == {path.stem for path in folder.glob("*.py")} - {"__init__", "__main__"} | {"models"}
    assert set(within) == {path.stem for path in (folder / "models").glob("*.py")} - {"__init__"}
    for path in (*folder.glob("*.py"), *(folder / "models").glob("*.py")):
        module = path.parent.name if path.parent != folder else path.stem
        for name in imported_from_manyvec(path):
            other, _, inner = name.partition(".")
            if other == module == "models":
                assert within[inner] < within[path.stem], f"models/{path.stem} imports models/{inner}, which follows it"
            elif path.stem not in ("__init__", "__main__"):
                assert rank[other] < rank[module], f"{path.stem} (rank {rank[module]}) imports {other} ({rank[other]})"


def imported_from_manyvec(path):
    """Modules named in `from manyvec.… import …`, without `manyvec.`; of `from manyvec.models` what it names."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "manyvec.models":
            yield from (f"models.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("manyvec."):
            yield node.module.removeprefix("manyvec.")


def test_the_readme_lists_every_family_of_models():
    from manyvec.models.families import FAMILIES

    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for family in FAMILIES:
        names = ", ".join(f"`{model.name}`" for model in family.published)
        assert f"| {family.name} | {names} | {family.reads} | {family.recipe} |" in readme


def test_a_search_in_a_new_process_does_not_wait_for_what_it_does_not_use(tmp_path):
    """Opening, counting and reading an index load no model and no torch."""
    from manyvec.testing import HashEncoder

    index = manyvec.Index.create(tmp_path / "index", HashEncoder(8))
    index.add([{"id": "a", "text": "word"}])
    started = time.monotonic()
    code = f"""
import sys
from manyvec import Index
index = Index.open({str(tmp_path / "index")!r})
assert (index.count(), index.get("a")[0].text) == (1, "word")
assert not {{"torch", "transformers", "sentence_transformers"}} & set(sys.modules)
"""
    python(code)
    assert time.monotonic() - started < 60
