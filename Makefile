# Two commands do everything on a fresh machine: make demo, make test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test notebooks notebooks-colab docs lint clean

demo: $(VENV)/installed
	$(BIN)/kitsseg demo --out demo

test: $(VENV)/installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist worksteal
	KERAS_BACKEND=jax XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/python -m pytest -n 2 --dist load -m "not slow" \
	    tests/models/test_all_builders.py tests/test_losses.py tests/test_pruning.py

# every cell of every notebook, about ten minutes; CI runs unet2d's only
notebooks: $(VENV)/installed-test
	$(BIN)/python -m pytest tests/test_notebooks.py -m ""

# the same with the versions that Colab ships; needs Python 3.13 as PYTHON
notebooks-colab:
	$(PYTHON) -m venv .venv-colab
	.venv-colab/bin/python -m pip install --quiet --constraint .ci/colab-constraints.txt --editable ".[test]"
	.venv-colab/bin/python -m pytest tests/test_notebooks.py -m ""

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

$(VENV)/installed-docs: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) demo site build dist *.egg-info
