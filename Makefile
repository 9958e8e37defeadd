# Everything this project does is one command. `make` alone lists them.
# Environments: by default make builds its own in .venv; with VENV=DIR it uses yours as it is and installs nothing.
# Threads: OMP_NUM_THREADS and the like are yours to set; notebooks and tests, which run two at a time, have one.

VENV   ?= .venv
PYTHON ?= python3
TAG    ?=
PRESET ?=
NB     ?=
ONLY   ?=
MINUTES ?= 9
LAB_ARGS ?=
# JupyterLab refuses root, which is who one is in most containers
AS_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

BIN := $(VENV)/bin
# The Python that `make gpu` uses: this environment's where it is built, else the machine's own
GPU ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
MIN := $(shell sed -n 's/^min_python *= *//p' settings.ini)
TORCH := $(shell grep -m1 '^torch==' constraints.txt)

# This folder's package comes first, whatever the environment has installed
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
export TAG

# Set-up stamps: .run is what `make reproduce` needs, .dev adds what writing, testing and publishing need
ifeq ($(origin VENV),file)
RUN := $(VENV)/.run
DEV := $(VENV)/.dev
endif

PIP  = $(BIN)/python -I -m pip --disable-pip-version-check
SAY  = @printf '\n== %s\n'
ONE  = OMP_NUM_THREADS=1
# Two files of tests at a time, one thread each; the site is looked at when it is built
BY_TWO = $(ONE) $(BIN)/python -m pytest -q --tb=short -n 2 --dist loadfile tests --ignore tests/test_docs.py --ignore tests/test_docs_browser.py
SPEEDS = tests/test_performance.py
FRESH_HASHES = PYTHONHASHSEED=0 MPLBACKEND=agg

.DEFAULT_GOAL := help
.PHONY: help reproduce test docs lab bench gpu gpu-data export refresh readme hooks pins \
        release-check clean distclean check-tree check-names check-notebooks check-package check-offline check-docs

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | while IFS='|' read -r c t; do printf '%-19s %s\n' "$$c" "$$t"; done

reproduce: $(RUN) ## the main result: train, evaluate, table, figure, report (PRESET=smoke for seconds)
	@$(BIN)/sfr-repro reproduce $(if $(PRESET),--preset $(PRESET))

test: $(DEV) ## everything CI checks: notebooks, package, tests with and without the data folder, site
	@for step in check-tree check-names check-notebooks check-package check-offline check-docs; do \
	  $(MAKE) --no-print-directory $$step || exit $$?; done

docs: $(DEV) ## the site in _docs/, with Quarto where it is installed, else with smalldocs
	@$(ONE) $(BIN)/python tests/make_docs.py

lab: $(DEV) ## read and write the notebooks in JupyterLab (LAB_ARGS='--port 9000 --no-browser'; `make hooks` once)
	@$(BIN)/jupyter lab $(AS_ROOT) $(LAB_ARGS) nbs

bench: $(DEV) ## every speed as a ratio, on a quiet machine, one record a part in runs/bench (ONLY=step for one)
	@$(BIN)/python tests/bench.py $(if $(ONLY),--only $(ONLY))

gpu: ## on a machine with a GPU: checks, speeds, paper A's trainings, within MINUTES=9 (GPU=python3 to choose the Python)
	@$(GPU) tests/gpu/all.py --minutes $(MINUTES)

gpu-data: $(RUN) ## the folder gpu-data/ that `make gpu` reads, from the data folder; it is never committed
	@$(BIN)/python tests/gpu/data.py

export: $(DEV) ## notebooks -> package: clean the notebooks, then export their code
	@$(BIN)/nbdev_clean && $(BIN)/nbdev_export

refresh: $(DEV) ## run the notebooks again and store their outputs, one thread (NB=FILE for one of them)
	@$(ONE) $(FRESH_HASHES) $(BIN)/python tests/refresh.py $(NB)

readme: $(DEV) ## README.md from nbs/index.ipynb
	@$(BIN)/python tests/make_readme.py

hooks: $(DEV) ## once a clone: notebooks are cleaned on save (in ~/.jupyter) and merged cell by cell (in .git)
	@$(BIN)/nbdev_install_hooks

pins: $(DEV) ## constraints.txt from what is installed now; it says what that changes, and how to raise versions
	@$(BIN)/python tests/make_pins.py

release-check: ## all that a release needs short of publishing: build, twine, the wheel in a fresh environment (TAG=... also checks a tag)
	@$(PYTHON) tests/release_check.py

clean: ## remove what was built; .venv and runs/ stay
	@rm -rf _proc _docs build dist *.egg-info .pytest_cache nbs/nbdev.yml nbs/.last_checked
	@find sfr_repro tests nbs \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
	@echo "removed _proc, _docs and caches; .venv and runs/ are still there (make distclean removes .venv)"

distclean: clean ## clean, and remove .venv too; runs/ stays
	@rm -rf .venv

# ---- set-up: torch first (the largest download), then the rest, all at the tested versions

$(VENV)/.run: settings.ini setup.py constraints.txt
	$(SAY) "set-up: $(VENV) with $(TORCH) and what the pipeline needs, at the versions of constraints.txt"
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) was not found; sfr_repro needs Python $(MIN) or newer (make PYTHON=...)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < tuple(map(int, "$(MIN)".split("."))))' || \
	  { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1); sfr_repro needs Python $(MIN) or newer (make PYTHON=...)"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install $(TORCH)
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(SAY) "set-up: what writing, testing and publishing need"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

# ---- the steps of `make test`, each also a command of its own

check-tree: $(DEV)
	$(SAY) "1/6 clean and export: the notebooks and the package agree"
	@$(BIN)/python tests/check_tree.py

check-names: $(DEV)
	$(SAY) "2/6 ruff: names, traps, import order and 100 columns, as tests/ruff.toml has it"
	@$(BIN)/python -m ruff check --no-cache --config tests/ruff.toml sfr_repro nbs tests setup.py

check-notebooks: $(DEV)
	$(SAY) "3/6 notebooks: every unflagged cell runs, 2 at a time, one thread each"
	@$(ONE) $(BIN)/python tests/run_notebooks.py

check-package: $(DEV)
	$(SAY) "4/6 tests, with the data folder as found: speeds alone, then two files at a time"
	@$(BIN)/python -m pytest -q --tb=short $(SPEEDS)
	@$(BY_TWO) --ignore $(SPEEDS) --durations 20

check-offline: $(DEV)
	$(SAY) "5/6 tests again, without data folder and network"
	@SFR_DATA=none HF_HUB_OFFLINE=1 $(BY_TWO) -m "not once"

check-docs: $(DEV)
	$(SAY) "6/6 site: staged without warning, built, checked, looked at by a browser where Chromium is installed"
	@$(MAKE) --no-print-directory docs
	@$(BIN)/python -m pytest -q --tb=short -rsP tests/test_docs.py tests/test_docs_browser.py
