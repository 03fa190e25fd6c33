"""The package as a whole: what import costs, what the names are, and that the README says what is there."""

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


def test_the_structure_keeps_to_the_order_that_contributing_states():
    """No arrow against the order, no circle, no module too long: the rules of `scripts/structure.py`."""
    script = Path(__file__).parents[1] / "scripts" / "structure.py"
    ran = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


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
