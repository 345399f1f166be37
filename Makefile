# make demo: explain a bundled picture.  make test: everything that CI checks.  make lab: JupyterLab.
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

.PHONY: demo test lab book env dev browser step notebooks pytest screenshots bench clean
demo: $(RUN)
	$(BIN)/gradcam-nb demo --out output

env: $(RUN)
dev: $(DEV)

$(RUN):
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e .
	rm -f $(VENV)/.run-*
	touch $@

$(DEV): $(RUN)
	$(BIN)/python -m pip install -q -e ".[dev]"
	$(BIN)/python -m pip install -q --no-deps $(call SETTING,peer_requirements)
	@sh tests/get_browser.sh $(VENV)/npm
	rm -f $(VENV)/.dev-*
	touch $@

# Chromium and the widget manager's scripts: without them the browser tests skip, saying so.
browser:
	@sh tests/get_browser.sh $(VENV)/npm

lab: $(DEV)
	$(BIN)/jupyter lab --notebook-dir nbs

test: step notebooks pytest

# The modules and the notebooks say the same, and the notebooks are clean.
step: $(DEV)
	$(BIN)/python tests/in_step.py

notebooks: $(DEV)
	OMP_NUM_THREADS=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev_test --n_workers 2 --do_print --timing

pytest: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -n 2 --dist loadfile

# The pictures in the book that show a browser.
screenshots: $(DEV)
	GRADCAM_NB_SCREENSHOTS=book $(BIN)/python -m pytest -q tests/test_browser_book.py tests/test_browser_lab.py -k screen

# Needs Quarto on PATH.
book: $(DEV)
	PATH="$(CURDIR)/$(BIN):$$PATH" quarto render

bench: $(DEV)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) output _book build *.egg-info
