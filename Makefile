# Everything a stranger needs: `make run` and `make test`, each of which sets up what it needs first.
PY      ?= python3
VENV    ?= .venv
BIN     := $(VENV)/bin
T       ?= tests
K       ?=
# More for pip: on Linux torch brings CUDA, unless PIP='--extra-index-url https://download.pytorch.org/whl/cpu'.
PIP     ?=
PYTEST  := $(BIN)/python -m pytest
SHELL   := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help run serve build check test test-fast soak lint format type docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 14

$(VENV)/.run: pyproject.toml
	$(PY) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[local]'
	@touch $@

$(VENV)/.dev: pyproject.toml requirements-dev.txt
	$(PY) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP) -e '.[all]' -r requirements-dev.txt
	@touch $@ $(VENV)/.run $(VENV)/.serve

run: $(VENV)/.run ## run the built-in model on a real task in a new folder; no key, no account
	@$(BIN)/python scripts/demo.py

$(VENV)/.serve: pyproject.toml
	$(PY) -m venv $(VENV)
	$(BIN)/pip install -q -e '.[local,server]'
	@touch $@

serve: $(VENV)/.serve ## serve the built-in model, and every provider that has a key, on http://127.0.0.1:8081
	@$(BIN)/windlass serve

build: $(VENV)/.dev ## build the wheel and the source distribution into dist/
	$(BIN)/python -m build -q

check: lint ## format, lint, types, import contracts, house rules and docs, without the tests
	@# Types take a minute of one core: beside the rest, which then waits for them.
	$(BIN)/basedpyright --level error & types=$$!; \
	  $(BIN)/lint-imports --no-cache && $(PYTEST) -n 2 tests/house; rest=$$?; wait $$types && exit $$rest

test: $(VENV)/.dev check ## all tests and all gates (T=path and K=name choose tests)
ifeq ($(T)$(K),tests)
	$(PYTEST) -n 2 --dist loadfile -m "not soak" --ignore tests/house tests
else
	$(PYTEST) -m "not soak" $(T) $(if $(K),-k "$(K)")
endif

test-fast: $(VENV)/.dev ## the tests that take no second each
	$(PYTEST) -n 2 --dist loadfile -m "not slow and not soak" $(T) $(if $(K),-k "$(K)")

soak: $(VENV)/.dev ## the long forms of the fault campaigns
	WINDLASS_SOAK=1 $(PYTEST) -m "slow or soak" tests

lint: $(VENV)/.dev ## ruff: format and rules
	$(BIN)/ruff format --check -q .
	$(BIN)/ruff check -q .

format: $(VENV)/.dev ## format the sources
	$(BIN)/ruff format -q .
	$(BIN)/ruff check -q --fix .

type: $(VENV)/.dev ## strict types over sources and tests
	$(BIN)/basedpyright --level error

docs: $(VENV)/.dev ## make the API reference and the generated pages again
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python scripts/cli_help.py --write

bench: $(VENV)/.dev ## measure against peers (their environments are built under .build/)
	$(BIN)/python bench/run.py

clean: ## remove what was built
	rm -rf $(VENV) .build dist
