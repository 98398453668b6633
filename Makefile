# Everything a fresh machine needs: Python 3.11 or newer, and make.
PYTHON ?= python3
BIN := .venv/bin
RECIPE ?= recipes/digits-float.yaml
WEB := tests/consumers/web
NPM := $(shell command -v npm 2>/dev/null)

.PHONY: demo test web lint format bench clean

demo: .venv/.installed  ## train, evaluate, export, bench and cost the digits recipe
	$(BIN)/deploytool pipeline $(RECIPE)

test: .venv/.installed  ## all tests; the one in a browser is skipped where npm or Chromium is missing
	$(if $(NPM),-@$(MAKE) --no-print-directory web)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

web: $(WEB)/node_modules/.package-lock.json  ## onnxruntime-web, for the test in a browser

$(WEB)/node_modules/.package-lock.json: $(WEB)/package-lock.json
	npm ci --prefix $(WEB) --ignore-scripts --no-audit --no-fund
	@touch $@

lint: .venv/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/.installed  ## ratios of things run interleaved in one process
	$(BIN)/python benchmarks/settings_latency.py --int8
	$(BIN)/python benchmarks/training_step.py --rounds 2
	$(BIN)/python benchmarks/reasoning_head.py --rounds 100
	$(BIN)/python benchmarks/faithfulness.py --rounds 3
	$(BIN)/python benchmarks/saliency.py --masks 1000
	$(BIN)/python benchmarks/library_building.py --images 10000
	$(BIN)/python benchmarks/pattern_search.py --rounds 2

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "deploytool needs Python 3.11 or newer; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[train,dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(WEB)/node_modules
