"""Test the text generation task: results, saving and loading, and invalid arguments."""

import json
import shutil

import numpy as np
import pytest

import keras_llm
from keras_llm import models, tasks
from keras_llm.errors import InputError


def test_str_gives_str_and_list_gives_list(task):
    text = task("The", 6, seed=1)
    assert isinstance(text, str)
    assert task(["The"], 6, seed=1) == [text]
    details = task("The", 6, seed=1, return_details=True)
    assert details.text == text == task.tokenizer.decode(details.token_ids)
    assert details.num_tokens == len(details.token_ids) <= 6


def test_seeds(task):
    assert task("The", 12, seed=1) == task("The", 12, seed=1)
    texts = task(["The"] * 4, 12, seed=[1, 2, 3, 1])
    assert texts[0] == texts[3] and len(set(texts)) == 3
    assert len(set(task(["The"] * 6, 12))) > 1
    assert len({task("The", 12) for _ in range(4)}) > 1


def test_ragged_prompts_match_single_prompts(task, held_out_prompts):
    for settings in ({"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}):
        batched = task(held_out_prompts, 16, **settings)
        assert batched == [task(prompt, 16, **settings) for prompt in held_out_prompts]


@pytest.mark.parametrize("prompt", ["The", "a 🙂 b", "x\n\n"])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"seed": 5}, {"seed": 6, "top_k": 40}])
def test_stream_matches_full_text(task, prompt, settings):
    pieces = list(task.stream(prompt, 40, **settings))
    full = task(prompt, 40, **settings, return_details=True)
    assert "".join(pieces) == full.text
    assert all(pieces) and len(pieces) > full.num_tokens // 2


def test_scores_are_higher_for_real_text(task, held_out_prompts):
    real = held_out_prompts[-1]
    shuffled = "".join(np.random.default_rng(0).permutation(list(real)))
    real_score, shuffled_score = task.score([real, shuffled])
    assert shuffled_score < real_score < 0
    assert task.score(real) == pytest.approx(real_score, abs=1e-3)


def test_save_and_load(task, tmp_path):
    task.save(tmp_path / "model")
    loaded = keras_llm.load(tmp_path / "model")
    assert isinstance(loaded, keras_llm.TextGeneration)
    assert loaded.metadata == task.metadata
    assert loaded("The", 20, temperature=0.0) == task("The", 20, temperature=0.0)
    with pytest.raises(InputError, match="exists"):
        task.save(tmp_path / "model")


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config.json", None, r"config\.json is missing"),
        ("config.json", "{", "describe a task"),
        ("config.json", '{"task": "Juggling"}', "unknown task"),
        ("model.weights.h5", None, r"model\.weights\.h5 is missing"),
        ("model.weights.h5", "corrupt", r"model\.weights\.h5 cannot be loaded"),
        ("tokenizer/config.json", None, "no tokenizer"),
        ("tokenizer/sentencepiece.model", "corrupt", "not a SentencePiece model"),
    ],
)
def test_invalid_folders_raise_error_with_file(run_folder, tmp_path, file, content, message):
    folder = tmp_path / "model"
    shutil.copytree(run_folder, folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        keras_llm.load(folder)


def test_truncated_and_mismatched_weights_raise_error(run_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(run_folder, folder)
    weights = folder / "model.weights.h5"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"model\.weights\.h5 cannot be loaded"):
        keras_llm.load(folder)
    weights.write_bytes(content)
    config = json.loads((folder / "config.json").read_text())
    config["model"]["intermediate_dim"] += 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"model\.weights\.h5 cannot be loaded"):
        keras_llm.load(folder)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": ["a", ""]}, "`prompt` 1 is empty"),
        ({"prompt": []}, "non-empty list"),
        ({"prompt": None}, "`prompt` must be"),
        ({"prompt": ["a", 3]}, "`prompt` 1 must be a str"),
        ({"prompt": "\ud800"}, "Unicode"),
        ({"prompt": "word " * 300}, "`max_length` of 128"),
        ({"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": -3}, "max_new_tokens"),
        ({"prompt": "a", "max_new_tokens": 2.5}, "max_new_tokens"),
        ({"prompt": "a", "temperature": -1.0}, "temperature"),
        ({"prompt": "a", "top_p": 0.0}, "top_p"),
        ({"prompt": "a", "top_k": -1}, "top_k"),
        ({"prompt": "a", "seed": [1, 2]}, "`seed`"),
    ],
)
def test_invalid_arguments_raise_error(task, arguments, message):
    with pytest.raises(InputError, match=message):
        task(**arguments)
    if not isinstance(arguments["prompt"], list):
        with pytest.raises(InputError):
            task.stream(**arguments)


def test_invalid_score_texts_raise_error(task):
    with pytest.raises(InputError, match="`texts` is empty"):
        task.score("")
    with pytest.raises(InputError, match="max_length"):
        task.score("word " * 300)


def test_prompt_may_leave_one_token_of_max_length(task):
    ids = task.tokenizer.encode("word " * 300)[:126]
    prompt = task.tokenizer.decode(ids)
    assert len(task.tokenizer.encode(prompt)) == 126
    result = task(prompt, 50, temperature=0.0, return_details=True)
    assert result.num_tokens <= 1


def test_numpy_numbers_are_accepted(task):
    settings = {"max_new_tokens": np.int64(5), "top_k": np.int32(3), "seed": np.int64(7)}
    plain = {name: int(value) for name, value in settings.items()}
    assert task("The", **settings) == task("The", **plain)


def test_other_keras_model_raises_error(task):
    for model in (models.encoder(models.preset("bert-tiny")), "gpt2"):
        with pytest.raises(InputError, match=r"`model` must (come from models\.causal_lm|be a)"):
            tasks.TextGeneration(model, task.tokenizer)


def test_tokenizer_larger_than_vocabulary_raises_error(task):
    small = models.causal_lm(models.preset("llama-tiny", vocabulary_size=300))
    with pytest.raises(InputError, match="vocabulary"):
        tasks.TextGeneration(small, task.tokenizer)


def test_task_without_xla_shares_and_releases_graphs(task, monkeypatch):
    monkeypatch.setenv("KERAS_LLM_XLA", "1")
    model = models.causal_lm(task.model.config)
    task = keras_llm.TextGeneration(model, task.tokenizer)
    twin = task.without_xla()
    assert task.without_xla() is twin and twin.without_xla() is twin
    compiled = twin._compiled
    assert compiled is task._compiled.without_xla and not compiled.jit_compile
    text = twin("The", 3, seed=1)
    assert compiled._functions
    task.release()
    assert not compiled._functions
    assert twin("The", 3, seed=1) == text
    twin.release()
    assert not compiled._functions and not twin._compiled.jit_compile
