"""Load, generate, export and tune models by name, from a hub on loopback."""

import json
import shutil

import keras
import keras_hub
import pytest

import keras_llm
from keras_llm import checkpoints, models, tasks, tokenizers
from keras_llm.errors import InputError

TEXTS = ["a fox met a hen", "the hen sang a song", "once upon a time"] * 9
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


@pytest.fixture
def expected(server):
    """The greedy text of the model of the repository me/tiny, a folder of Hugging Face."""
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = tokenizers.BytePair.train(TEXTS, 300, special_tokens=special)
    config = models.preset("llama-tiny", vocabulary_size=tokenizer.vocabulary_size)
    keras.utils.set_random_seed(0)
    task = tasks.TextGeneration(models.causal_lm(config), tokenizer, {"chat_template": TEMPLATE})
    folder = server.root / "me" / "tiny"
    shutil.rmtree(folder)
    checkpoints.to_hugging_face(task, folder)
    return task("a fox", max_new_tokens=6, temperature=0.0)


PYTHON = """
import sys
import keras_llm
from keras_llm import checkpoints, tasks

GREEDY = {"max_new_tokens": 6, "temperature": 0.0}
loaded = [
    keras_llm.load("hf:me/tiny"),
    keras_llm.TextGeneration.from_preset("hf:me/tiny", revision="v1"),
    checkpoints.from_hugging_face("me/tiny", token="right"),
    tasks.from_preset(checkpoints.hugging_face.reading.hub.fetch("hf:me/tiny")),
]
texts = {task("a fox", **GREEDY) for task in loaded}
assert len(texts) == 1, texts
half = keras_llm.TextGeneration.from_preset("hf:me/tiny", dtype="bfloat16")
assert half.model.get_layer("block_0").variable_dtype == "bfloat16"
assert checkpoints.load_model("me/tiny").count_params() == half.model.count_params()
try:
    keras_llm.Translation.from_preset("hf:me/tiny")
except keras_llm.InputError as error:
    assert "is a TextGeneration, not a Translation" in str(error), error
else:
    sys.exit("no error")
print(texts.pop())
"""


def test_python(run, expected):
    done = run("-c", PYTHON)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{expected}\n"


def test_commands(run, expected, server, tmp_path):
    command = ["-m", "keras_llm"]
    greedy = ["--temperature", "0", "--max-new-tokens", "6", "--json"]
    done = run(*command, "generate", "hf:me/tiny", "a fox", *greedy)
    assert json.loads(done.stdout)["text"] == expected, done.stderr
    done = run(*command, "inspect", "hf:me/tiny", "--json")
    assert json.loads(done.stdout)["config"]["num_layers"] == 2
    out = tmp_path / "tiny.tflite"
    done = run(*command, "export", "hf:me/tiny", "--to", "litert", "--out", str(out), "--json")
    assert out.is_file() and json.loads(done.stdout)["parity"]["greedy_texts_equal"], done.stderr
    data = tmp_path / "talks.jsonl"
    rows = [{"instruction": f"say {n}", "output": f"a fox met {n} hens"} for n in range(60)]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    arguments = ["--start", "hf:me/tiny", "--data", str(data), "--out", str(tmp_path / "tuned")]
    done = run(*command, "train", "chatbot", *arguments, "--lora-rank", "2", "--smoke", "--json")
    metrics = json.loads(done.stdout)
    assert metrics["held_out"]["nats_per_token"] < metrics["before"]["nats_per_token"], done.stderr
    server.rules["me/tiny"] = "gated"
    fresh = {"HF_HOME": str(tmp_path / "fresh")}
    done = run(*command, "chat", "hf:me/tiny", environment=fresh)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is gated" in done.stderr


def test_kaggle(run, tmp_path):
    """kagglehub finds a version in its cache without asking Kaggle."""
    proto = tokenizers.SentencePiece.train(TEXTS, 290, "bpe")
    model = tmp_path / "spm.model"
    model.write_bytes(proto.model)
    tokenizer = keras_hub.models.LlamaTokenizer(str(model))
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=290,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=24,
    )
    preprocessor = keras_hub.models.LlamaCausalLMPreprocessor(tokenizer, sequence_length=12)
    causal_lm = keras_hub.models.LlamaCausalLM(backbone, preprocessor)
    causal_lm.compile(sampler="greedy")
    text = causal_lm.generate("a fox", max_length=12)
    folder = tmp_path / "kaggle" / "models" / "me" / "tiny" / "keras" / "tiny_en" / "1"
    folder.parent.mkdir(parents=True)
    causal_lm.save_to_preset(str(folder))
    folder.with_name("1.complete").touch()
    code = (
        "import keras_llm\n"
        "task = keras_llm.load('kaggle:me/tiny/keras/tiny_en/1')\n"
        "print(repr(task('a fox', max_new_tokens=8, temperature=0.0)))"
    )
    done = run("-c", code, environment={"KAGGLEHUB_CACHE": str(tmp_path / "kaggle")})
    assert done.returncode == 0, done.stderr
    assert text.startswith("a fox" + eval(done.stdout).rstrip("\ufffd"))  # half a character


def test_paths_that_are_no_names(tmp_path):
    with pytest.raises(InputError, match="`revision` and `token` are only for names"):
        keras_llm.TextGeneration.from_preset(tmp_path, revision="main")
    with pytest.raises(InputError, match="`revision` and `token` are only for names"):
        checkpoints.from_hugging_face(tmp_path, token="right")
    with pytest.raises(InputError, match=r"config\.json"):
        tasks.from_preset(tmp_path)
