# Every target makes the environment it needs. `make help` lists them.
NAME    ?= super-data-learners
SCALE   ?= laptop
PYTHON  ?= python3
VENV    := .venv
PY      := $(VENV)/bin/python
READY   := $(VENV)/.ready
ARGS    ?=

.PHONY: help setup experiment report train test test-all lint clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  settings: NAME=$(NAME) SCALE=$(SCALE) (smoke, laptop) ARMS=genmd4,aoarm SEEDS=0,1 MINUTES=15 WORKERS=2"

setup: $(READY) ## the .venv, from the lock in constraints.txt

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "error: Python 3.11 to 3.13 is needed, $$($(PYTHON) --version) is here; set PYTHON=..." >&2; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

experiment: $(READY) ## a study or a laboratory: make experiment NAME=information SCALE=laptop
	@$(PY) -m dlm.experiment name=$(NAME) scale=$(SCALE) $(if $(ARMS),arms=$(ARMS)) $(if $(SEEDS),seeds=$(SEEDS)) \
		$(if $(MINUTES),minutes=$(MINUTES)) $(if $(WORKERS),workers=$(WORKERS)) $(ARGS)

report: $(READY) ## rebuild a study's report from the files that are there
	@$(PY) -m dlm.experiment name=$(NAME) scale=$(SCALE) stage=report $(ARGS)

train: $(READY) ## one run: make train ARGS="method=md4 data.unique_tokens=8192 epochs=50"
	@$(PY) -m dlm.train $(ARGS)

test: $(READY) ## the fast tests, about three minutes on two cores
	@$(PY) -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: $(READY) ## every test
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY) ## ruff and the type checker
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/basedpyright

clean: ## remove environment, caches and build products; outputs/ stays
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist *.egg-info
