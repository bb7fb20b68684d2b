# Every target makes the environment it needs. `make help` lists them.
NAME    ?= super-data-learners
SCALE   ?= laptop
PYTHON  ?= python3
VENV    := .venv
PY      := $(VENV)/bin/python
READY   := $(VENV)/.ready
DEV     := $(VENV)/.ready-dev
ARGS    ?=

.PHONY: help setup experiment report sync curves train test test-all lint clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	@echo "  settings: NAME=$(NAME) SCALE=$(SCALE) (smoke, laptop, laptop-long, laptop-9x9, gpu-smoke, gpu, cluster) ARMS=genmd4,aoarm ONLY=arm,md4"
	@echo "            SEEDS=0,1 STAGE=plan (data plan tune train evaluate fit report) MINUTES=15 LIMIT=9 WORKERS=2 LAUNCHER=slurm"

setup: $(READY) ## the .venv, from the lock in constraints.txt

$(READY): pyproject.toml constraints.txt
	$(call install,.)

$(DEV): pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(READY)

define install
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "error: Python 3.11 to 3.13 is needed, $$($(PYTHON) --version) is here; set PYTHON=..." >&2; exit 2; }
@test -x $(PY) || $(PYTHON) -m venv $(VENV)
$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'
@touch $@
endef

experiment: $(READY) ## a study or a laboratory: make experiment NAME=information SCALE=laptop
	@$(PY) -m dlm.experiment name=$(NAME) scale=$(SCALE) $(if $(ARMS),arms=$(ARMS)) $(if $(ONLY),only=$(ONLY)) \
		$(if $(SEEDS),seeds=$(SEEDS)) $(if $(STAGE),stage=$(STAGE)) $(if $(MINUTES),minutes=$(MINUTES)) \
		$(if $(LIMIT),limit=$(LIMIT)) $(if $(WORKERS),workers=$(WORKERS)) $(if $(LAUNCHER),launcher=$(LAUNCHER)) $(ARGS)

report: $(READY) ## rebuild a study's report from the files that are there
	@$(PY) -m dlm.experiment name=$(NAME) scale=$(SCALE) stage=report $(ARGS)

sync: $(READY) ## upload a study's report and its offline W&B runs: make sync SCALE=gpu; ARGS=dry_run=true lists them only
	@$(if $(findstring dry_run,$(ARGS)),:,test ! -f outputs/$(NAME)/$(SCALE)/results.json || $(PY) -m dlm.tracking study=outputs/$(NAME)/$(SCALE))
	@$(PY) -m dlm.tracking study=outputs/$(NAME)/$(SCALE) do=sync $(ARGS)

curves: $(READY) ## a study's curves in this terminal, while it runs or afterwards
	@$(PY) -m dlm.tracking study=outputs/$(NAME)/$(SCALE) do=curves

train: $(READY) ## one run: make train ARGS="method=md4 data.unique_tokens=8192 epochs=50"
	@$(PY) -m dlm.train $(ARGS)

test: $(DEV) ## the fast tests, about three minutes on two cores
	@$(PY) -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: $(DEV) ## every test
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(DEV) ## ruff and the type checker
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/basedpyright

clean: ## remove environment, caches and build products; outputs/ stays
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache build dist *.egg-info
