# wamkit: `make demo` and `make test` are the two commands; everything they need is installed into .venv here.
.DEFAULT_GOAL := help
SHELL := /bin/sh

BIN := .venv/bin
STAMP := .venv/.wamkit-installed
DOCS_STAMP := .venv/.wamkit-docs-installed
PACKAGING := pyproject.toml constraints.txt scripts/bootstrap.sh scripts/find_python.sh integrations/lerobot_policy_wamkit/pyproject.toml
# One more than cores: tests that wait for a process or a clock leave a core to the others.
PYTEST_WORKERS ?= 3
PYTEST_ARGS ?=
# Where a shell forbids bytecode, every process of the tests would compile all of its imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test check format docs clean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(STAMP) ## create .venv and install wamkit with its simulator and development tools

$(STAMP): $(PACKAGING)
	@sh scripts/bootstrap.sh sim dev
	@touch $@
	@$(BIN)/python -m wamkit.diagnostics --rendering || true

demo: $(STAMP) ## record, train, evaluate and report on three MetaWorld tasks (outputs/demo, about 20 minutes)
	@$(BIN)/wam demo --output_dir outputs/demo

test: $(STAMP) ## run the tests (under eight minutes on 2 slow cores)
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal -q --durations 15 $(PYTEST_ARGS)

check: $(STAMP) ## lint, formatting, types and layering
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet . || { echo "make check: run 'make format'" >&2; exit 1; }
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-cache --no-logo

format: $(STAMP) ## mend lint and formatting where that is automatic
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

docs: $(DOCS_STAMP) ## build the documentation site into site/; a broken link, snippet or page of the navigation fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

$(DOCS_STAMP): $(STAMP)
	@sh scripts/bootstrap.sh sim dev docs
	@touch $@

clean: ## remove outputs and everything that make installed or built
	rm -rf .venv .cache build dist site outputs .pytest_cache .ruff_cache .hypothesis src/wamkit.egg-info integrations/*/src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
