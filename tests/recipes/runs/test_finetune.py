"""Test the fine-tuning recipe: conversations and texts, from a folder, a checkpoint and a name."""

import json

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import checkpoints, models, tokenizers, training
from keras_llm.errors import InputError
from keras_llm.recipes import finetune
from keras_llm.recipes.common import dialogue, held_out_answers

FRUITS = ["apple", "banana", "cherry", "grape", "lemon", "mango", "melon", "peach", "plum"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of a model without a chat template, which answers in another format."""
    texts = [f"User: {a} {b}\nAssistant: {a.upper()}" for a in FRUITS for b in FRUITS]
    texts += [f"{{{fruit.upper()}}}" for fruit in FRUITS]
    tokenizer = tokenizers.BytePair.train(texts, 300)
    config = models.preset("llama-tiny", vocabulary_size=tokenizer.vocabulary_size)
    keras.utils.set_random_seed(0)
    task = keras_llm.TextGeneration(models.causal_lm(config), tokenizer)
    task.compile(learning_rate=5e-3)
    task.fit(texts * 20, epochs=1, batch_size=8, sequence_length=32, verbose=0)
    folder = tmp_path_factory.mktemp("finetune") / "start"
    task.save(folder)
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    pairs = [(a, b) for a in FRUITS for b in FRUITS]
    rows = [
        {"messages": [{"role": "user", "content": f"{a} {b}"}, {"role": "assistant", "content": c}]}
        for a, b in pairs
        for c in [f"{{{a.upper()}}}"]
    ]
    path = tmp_path_factory.mktemp("finetune") / "talks.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    return path


def options(start, data, out, **changes):
    sizes = {"epochs": 12, "learning_rate": 2e-2, "answers": 8}
    return finetune.Options(
        out=str(out), start=str(start), data=str(data), held_out=0.15, **sizes | changes
    )


@pytest.fixture(scope="module")
def run(start, talks, tmp_path_factory):
    out = tmp_path_factory.mktemp("finetune") / "run"
    changes = {"pattern": r"\{[A-Z]+\}", "export": "litert_lm,saved_model"}
    return out, finetune.run(options(start, talks, out, **changes))


def test_answers_are_learned_in_their_format(run):
    out, metrics = run
    before, after = metrics["before"], metrics["held_out"]
    assert after["nats_per_token"] < 0.3 * before["nats_per_token"]
    assert before["answers_in_format"] == 0 and after["answers_in_format"] > 0.9
    assert after["equal_answers"] > 0.5
    sample = metrics["samples"][0]
    assert sample["after"].strip() != sample["before"] and sample["reference"][0] == "{"
    card = (out / "README.md").read_text("utf-8")
    assert (
        "LoRA of rank 16 on all dense layers of the blocks, merged" in card
        and sample["asked"] in card
    )
    for artifact in metrics["artifacts"].values():
        assert artifact["parity"]["greedy_texts_equal"]


def test_adapter_alone_gives_the_merged_model(run, start):
    out, _ = run
    tuned, base = keras_llm.load(out), keras_llm.load(start)
    paths = training.load_lora(base.model, out / "adapter.safetensors")
    assert len(paths) == 2 * 7
    ids = np.arange(3, 20)[None]
    np.testing.assert_allclose(base.model(ids), tuned.model(ids), atol=1e-4)


def test_evaluate_and_texts(run, talks):
    out, metrics = run
    assert finetune.evaluate(out)["perplexity"] == pytest.approx(metrics["held_out"]["perplexity"])
    assert finetune.evaluate(out, talks)["equal_answers"] > 0.5
    train, held_out = finetune.texts(keras_llm.load(out))
    assert len(train) > len(held_out) > 5 and train[0][0] == "{"


def test_texts_and_all_weights_from_a_checkpoint(start, tmp_path):
    task = keras_llm.load(start)
    checkpoints.to_hugging_face(task, tmp_path / "checkpoint")
    data = tmp_path / "notes.jsonl"
    rows = [{"text": f"the {a} and the {b} and the {a}"} for a in FRUITS for b in FRUITS]
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    changes = {"lora_rank": 0, "epochs": 6, "learning_rate": 5e-3}
    chosen = options(tmp_path / "checkpoint", data, tmp_path / "run", **changes)
    assert chosen.kind == "texts"
    metrics = finetune.run(chosen)
    assert metrics["held_out"]["perplexity"] < 0.5 * metrics["before"]["perplexity"]
    assert not (tmp_path / "run" / "adapter.safetensors").exists()
    assert metrics["samples"][0]["asked"].startswith("the ")


def test_rows_that_do_not_fit_are_not_answered(start):
    task = keras_llm.load(start)
    chosen = options(start, "x.txt", "y", answers=3)
    long = " ".join(["word"] * 4000)
    pairs = held_out_answers.choose(task, ["a b", long, " c"], chosen)
    assert [asked for asked, _ in pairs] == ["a", "c"]
    assert 0 < chosen.answer_tokens <= 256
    answers, shares = held_out_answers.answer(task, pairs, chosen)
    assert len(answers) == 2 and shares == {}


def test_kinds_of_files(tmp_path):
    for name, row, kind in (
        ("a.txt", "text", "texts"),
        ("b.jsonl", '\n{"text": "once"}', "texts"),
        ("c.jsonl", '{"messages": []}', "conversations"),
        ("e.jsonl", '{"id": 1, "text": "once"}', "texts"),
        ("f.jsonl", '{"text": "once", "messages": []}', "conversations"),
        ("d.json", "[]", "conversations"),
    ):
        (tmp_path / name).write_text(row, "utf-8")
        assert dialogue.kind_of(str(tmp_path / name)) == kind


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"start": None}, "--start must be a folder, a checkpoint or a name such as hf:OWNER/NAME"),
        ({"corpus": "movie-dialogue"}, "--corpus must be empty"),
        ({"data": None}, "--data must be a file of rows"),
        ({"pattern": "("}, "--pattern must be a regular expression"),
    ],
)
def test_invalid_options(changes, message):
    with pytest.raises(InputError, match=message):
        finetune.Options(**{"out": "x", "start": "y", "data": "z.jsonl", **changes})


def test_too_few_rows(start, tmp_path):
    data = tmp_path / "one.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n', "utf-8")
    with pytest.raises(InputError, match="at least 2 distinct documents"):
        finetune.run(options(start, data, tmp_path / "run"))
