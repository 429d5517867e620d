# Two commands do everything on a fresh machine: make demo, make test
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKERS ?= 2

COLAB_VENV = $(VENV)-colab
COLAB_PYTHON ?= $(shell for p in python3.13 "$$HOME"/.pyenv/versions/3.13.*/bin/python $(PYTHON); do \
    "$$p" -c "" 2>/dev/null && echo "$$p" && break; done)

# uv installs in seconds what takes pip minutes; pip is enough
UV := $(shell command -v uv 2>/dev/null)
ifneq ($(UV),)
make_venv = $(UV) venv --quiet --allow-existing --seed --python $(1) $(2)
install_into = $(UV) pip install --quiet --python $(1)/bin/python
else
make_venv = $(1) -m venv $(2)
install_into = $(1)/bin/python -m pip install --quiet
endif

# If PYTHONDONTWRITEBYTECODE is set, each of the hundreds of processes that the tests start compiles all its imports
# anew, TensorFlow included.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: kills demo test check coverage test-slow test-jax notebooks-colab colab colab-jax matrix docs lint types release clean

demo: $(VENV)/installed
	$(BIN)/kitsseg demo --out demo

# what a developer runs before each commit
test: $(VENV)/installed-test
	$(MAKE) lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

# all that a release promises
check: test test-slow test-jax colab

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow --ignore tests/project/test_kills.py

# commands killed at random moments, then called again; not part of make check
kills: $(VENV)/installed-test
	$(BIN)/python -m pytest tests/project/test_kills.py

test-jax: $(VENV)/installed-test
	KERAS_BACKEND=jax XLA_FLAGS=--xla_backend_optimization_level=0 $(BIN)/python -m pytest -n $(WORKERS) --dist load \
	    -m "not slow" tests/models/test_all_builders.py tests/test_losses.py tests/pruning/test_pruning.py

# with the packages that Colab ships, on Python 3.13 if it is installed, else on PYTHON: the tests of models, losses,
# metrics, pruning, export and scores, then the notebooks
colab: $(COLAB_VENV)/installed
	$(COLAB_VENV)/bin/python -m pytest -n $(WORKERS) -m "not slow" tests/models/test_all_builders.py tests/test_losses.py \
	    tests/test_metrics.py tests/pruning/test_pruning.py tests/export/test_export.py tests/scoring/test_scores.py
	$(MAKE) notebooks-colab

# the same on Colab's JAX; not part of make check
colab-jax: $(COLAB_VENV)/installed
	KERAS_BACKEND=jax XLA_FLAGS=--xla_backend_optimization_level=0 $(COLAB_VENV)/bin/python -m pytest -n $(WORKERS) \
	    -m "not slow" tests/models/test_all_builders.py tests/test_losses.py

# every cell of every notebook, with the packages that Colab ships
notebooks-colab: $(COLAB_VENV)/installed
	$(COLAB_VENV)/bin/python -m pytest -n $(WORKERS) tests/notebook

# lines and branches of kitsseg that the quick tests reach, a line for each module that has others. Left out are a test
# of what --help imports, to which coverage adds its own modules, and one that forbids every file, coverage's too
coverage: $(VENV)/installed-test
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) --dist worksteal -m "not slow" \
	    --deselect tests/project/test_imports.py::test_help_imports_nothing_heavy \
	    --deselect tests/commands/test_cli.py::test_writes_that_really_fail
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# the wheel, not the checkout, on Python 3.11, 3.12 and 3.13
matrix: $(VENV)/installed-test
	$(BIN)/python -m nox --session tests

# the pages, the notebooks and the API reference as a site, in site/index.html; fails on a warning, a missing docstring
# or a dead link
docs: $(VENV)/installed-docs
	rm -rf site
	$(BIN)/python scripts/make_site.py site

lint: $(VENV)/installed-test
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini
	$(BIN)/codespell kitsseg tests scripts benchmarks docs *.md

# sdist and wheel in dist/, checked, installed in an empty environment, and the demo run from there
release: $(VENV)/installed-test
	$(BIN)/python scripts/release.py build

# Each file below records that its environment is installed, so that a second call of make installs again only if a file
# behind the colon, such as setup.cfg, has changed.
$(VENV)/installed: setup.cfg pyproject.toml
	$(call make_venv,$(PYTHON),$(VENV))
	$(call install_into,$(VENV)) --editable ".[dicom]"
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml
	$(call make_venv,$(PYTHON),$(VENV))
	$(call install_into,$(VENV)) --editable ".[test]"
	touch $@ $(VENV)/installed

$(COLAB_VENV)/installed: setup.cfg pyproject.toml .ci/colab-constraints.txt
	$(call make_venv,$(COLAB_PYTHON),$(COLAB_VENV))
	$(call install_into,$(COLAB_VENV)) --constraint .ci/colab-constraints.txt --editable ".[test]"
	touch $@

$(VENV)/installed-docs: setup.cfg pyproject.toml
	$(call make_venv,$(PYTHON),$(VENV))
	$(call install_into,$(VENV)) --editable ".[dicom,docs]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) $(COLAB_VENV) demo site build dist .nox *.egg-info
