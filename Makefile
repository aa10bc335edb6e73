# `make demo` and `make test` need Python 3.11 or later, make and a package index; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-jax lint clean

demo: $(INSTALLED)
	$(BIN)/python -m keras_llm.recipes.demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2

# Layers, models and generation on Keras's JAX backend, in an environment of their own.
test-jax:
	$(PYTHON) -m venv $(VENV)-jax
	$(VENV)-jax/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test]' jax
	KERAS_BACKEND=jax $(VENV)-jax/bin/python -m pytest -n 2 tests/layers tests/models tests/jax

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Editable, so that `keras_llm.export` and `keras_llm.recipes` are found from inside the repository.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-jax build *.egg-info
