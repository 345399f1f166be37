# make demo: explain a photo and a scene.  make test: everything that CI checks.  make lab: JupyterLab.  make lists: write what can be
# known from the rest.  make test-all: every cell of every page too; hours, weekly.
# The environment is .venv in this folder. A stamp named after a hash of what it is made from says that it is ready.
PYTHON ?= python3.11
PYTHON := $(shell command -v $(PYTHON) 2>/dev/null || command -v python3)
HASH := $(shell cat settings.ini setup.py pyproject.toml Makefile book/gradcam-nb-filter tests/get_browser.sh | sha256sum | cut -c1-16)
VENV := .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.run-$(HASH)
DEV := $(VENV)/.dev-$(HASH)
SETTING = $(shell $(BIN)/python -c "import configparser as c; p = c.ConfigParser(); p.read('settings.ini'); print(p['DEFAULT']['$(1)'])")
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export OMP_NUM_THREADS ?= 2

.PHONY: demo test test-all lab book env dev browser lists outputs step notebooks notebooks-all pytest pytest-all screenshots bench clean
.NOTPARALLEL:
demo: $(RUN)
	$(BIN)/gradcam-nb demo --out output

env: $(RUN)
dev: $(DEV)

$(RUN):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e ".[samples]"
	rm -f $(VENV)/.run-*
	touch $@

$(DEV): $(RUN)
	$(BIN)/python -m pip install -q -e ".[samples,dev]"
	$(BIN)/python -m pip install -q --no-deps $(call SETTING,peer_requirements)
	@sh tests/get_browser.sh $(VENV)/npm
	rm -f $(VENV)/.dev-*
	touch $@

# Chromium and the widget manager's scripts: without them the browser tests skip, saying so.
browser:
	@sh tests/get_browser.sh $(VENV)/npm

lab: $(DEV)
	$(BIN)/jupyter lab --notebook-dir nbs

# Both print the most memory that they held at once, in all their processes; `make test` fails above 6 GB.
test: $(DEV)
	@$(BIN)/python tests/peak_memory.py --limit 6 $(MAKE) --no-print-directory step notebooks pytest

test-all: $(DEV)
	@$(BIN)/python tests/peak_memory.py $(MAKE) --no-print-directory step notebooks-all pytest-all

# `__all__`, the README's tables, llms.txt.
lists: $(DEV)
	$(BIN)/python book/make_lists.py

# Run PAGES and store their outputs.
outputs: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python book/store_outputs.py $(PAGES)

# The code is laid out, the modules, the notebooks and the lists say the same, and the notebooks are clean.
step: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/in_step.py

notebooks: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/run_pages.py $(PAGES)

notebooks-all: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tests/run_pages.py --all $(PAGES)

# A worker takes whole files, in the order of tests/conftest.py: else those with few tests come last, and some of them are long.
PYTEST = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

pytest: $(DEV)
	$(PYTEST) -m "not slow"

pytest-all: $(DEV)
	$(PYTEST)

# The pictures in the README and the book that no page draws.
screenshots: $(DEV)
	$(BIN)/python book/readme_pictures.py
	GRADCAM_NB_SCREENSHOTS=book $(BIN)/python -m pytest -q tests/test_browser_book.py tests/test_browser_lab.py -k screen

# Needs Quarto on PATH.
book: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" quarto render

bench: $(DEV)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) output _book build *.egg-info
