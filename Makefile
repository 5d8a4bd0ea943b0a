# Two commands set everything up: `make demo` and `make test`. Each makes the environment .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: gpu-bundle demo test test-all browser-test lint types imports spelling wheel compat clean

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "har_pipeline needs Python 3.11 or newer: make PYTHON=python3.12 demo")'
	@date +%s > .install_started
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@echo $$(( $$(date +%s) - $$(cat .install_started) )) > .venv/install_seconds; rm -f .install_started
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/python pipelines/synthetic_demo.py --out demo_out --install-seconds "$$(cat .venv/install_seconds)"

# One thread per process: processes that share cores lose more to waiting threads than they gain.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not exhaustive" $(PYTEST_ARGS)

# Every test, and the share of the code that they reach, which may not fall below the floor in pyproject.toml.
test-all: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal --hypothesis-profile=exhaustive --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

# The page of results in a headless browser, which `make test` does as well where there is one.
browser-test: .venv/installed-dev
	HAR_BROWSER=required OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m needs_browser $(PYTEST_ARGS) tests/report

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

imports: .venv/installed-dev
	$(BIN)/lint-imports

spelling: .venv/installed-dev
	$(BIN)/codespell

# The wheel beside this environment; in fresh ones of each Python, with the oldest and the newest versions.
wheel: .venv/installed-dev
	.ci/wheel

# What benchmarks/gpu.py needs on a machine that has Python 3.12 and PyTorch, but no network.
gpu-bundle: .venv/installed-dev
	.ci/gpu-bundle build/gpu-bundle

compat: .venv/installed-dev
	$(BIN)/python benchmarks/compat.py --write docs/compatibility.md

clean:
	rm -rf .venv demo_out build *.egg-info
