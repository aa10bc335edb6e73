"""One TensorFlow import and one small trained model for each test worker."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import pydoc_data.topics

import hypothesis
import pytest

hypothesis.settings.register_profile("keras_llm", deadline=None, derandomize=True)
hypothesis.settings.load_profile("keras_llm")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Real English text that every Python brings: its own language reference."""
    folder = tmp_path_factory.mktemp("text")
    for name, topic in pydoc_data.topics.topics.items():
        (folder / f"{name}.txt").write_text(topic, "utf-8")
    return folder


@pytest.fixture(scope="session")
def run_folder(text_folder, tmp_path_factory):
    """A model folder from the recipe itself, trained enough that its greedy text is not a tie."""
    from keras_llm.recipes import text_generation

    out = tmp_path_factory.mktemp("runs") / "reference"
    options = text_generation.Options(
        out=str(out), data=str(text_folder), smoke=True, prompt="The", held_out=0.2
    )
    text_generation.run(options)
    return out


@pytest.fixture(scope="session")
def task(run_folder):
    import keras_llm

    return keras_llm.load(run_folder)


@pytest.fixture(scope="session")
def held_out_prompts(task):
    """24 beginnings of held-out documents, of many lengths."""
    from keras_llm.recipes import text_generation

    _, documents = text_generation.documents(
        text_generation.Options(**{**task.metadata["options"], "smoke": False})
    )
    prompts = [text.strip()[: 5 + 4 * i] for i, text in enumerate(documents[:24])]
    assert len(prompts) == 24 and all(prompts)
    return prompts
