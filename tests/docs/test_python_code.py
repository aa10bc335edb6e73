"""Run the Python code of the documentation: `make docs`."""

import pathlib
import re

import keras
import pytest

import keras_llm

ROOT = pathlib.Path(keras_llm.__file__).parent.parent
# The code of the Chinese pages is that of the English ones, which tests/test_docs.py checks.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if not page.is_relative_to(ROOT / "docs" / "zh")]


@pytest.fixture
def use_small_models(monkeypatch):
    """Build tiny presets with one layer and compile without XLA, unless a page says otherwise.

    Both take seconds per model. The models' own tests cover the full configurations.
    """
    preset, compile_model = keras_llm.models.preset, keras.Model.compile

    def small_preset(name, **changes):
        config = preset(name, **changes)
        depth_fields = [f for f in ("num_layers", "num_decoder_layers") if hasattr(config, f)]
        small = {field: 1 for field in depth_fields if name.endswith("-tiny")}
        return preset(name, **{**small, **changes})

    def compile_without_xla(model, *arguments, **options):
        compile_model(model, *arguments, **{"jit_compile": False, **options})

    monkeypatch.setattr(keras_llm.models, "preset", small_preset)
    monkeypatch.setattr(keras.Model, "compile", compile_without_xla)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_code_runs(page, tmp_path, monkeypatch, use_small_models):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)
