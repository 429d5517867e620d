# Two commands do everything on a fresh machine: make demo, make test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

COLAB_VENV = $(VENV)-colab
COLAB_PYTHON ?= $(shell for p in python3.13 "$$HOME"/.pyenv/versions/3.13.*/bin/python $(PYTHON); do \
    "$$p" -c "" 2>/dev/null && echo "$$p" && break; done)

.PHONY: demo test notebooks-colab docs lint clean

demo: $(VENV)/installed
	$(BIN)/kitsseg demo --out demo

test: $(VENV)/installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal
	KERAS_BACKEND=jax XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/python -m pytest -n 2 --dist load -m "not slow" \
	    tests/models/test_all_builders.py tests/test_losses.py tests/pruning/test_pruning.py
	$(MAKE) notebooks-colab

# the notebooks once more with what Colab ships: on Python 3.13 where there is one, else on PYTHON
notebooks-colab: $(COLAB_VENV)/installed
	$(COLAB_VENV)/bin/python -m pytest -n 2 tests/notebook/test_notebooks.py

# the API reference, in site/index.html; fails on a warning, a missing docstring or a dead link
docs: $(VENV)/installed-docs
	rm -rf site
	$(BIN)/python scripts/make_api.py site

lint: $(VENV)/installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# files that say what is installed: a second call installs only after setup.cfg has changed
$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/installed

$(COLAB_VENV)/installed: setup.cfg pyproject.toml .ci/colab-constraints.txt
	$(COLAB_PYTHON) -m venv $(COLAB_VENV)
	$(COLAB_VENV)/bin/python -m pip install --quiet --constraint .ci/colab-constraints.txt --editable ".[notebook]"
	touch $@

$(VENV)/installed-docs: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) $(COLAB_VENV) demo site build dist *.egg-info
