"""Test the chatbot recipe: from scratch, with LoRA, ranking and chat."""

import io
import json
import random
import sys
import types

import numpy as np
import pytest

import keras_llm
from keras_llm import cli, export, training
from keras_llm.errors import InputError
from keras_llm.recipes import chatbot
from keras_llm.recipes.common import dialogue, judges

pytestmark = pytest.mark.usefixtures("one_layer")


def options(talks, out, **changes):
    changes = {"smoke": True, "held_out": 0.2, "epochs": 3, "learning_rate": 1e-2} | changes
    return chatbot.Options(out=str(out), data=str(talks), question="Explain with.", **changes)


@pytest.fixture(scope="module")
def talks(text_folder, tmp_path_factory):
    """Write conversations with the beginnings of paragraphs of Python's reference."""
    path, rows = tmp_path_factory.mktemp("talks") / "talks.jsonl", []
    for file in sorted(text_folder.iterdir()):
        parts = [part for part in file.read_text("utf-8").split("\n\n") if len(part) > 40]
        rows += [
            {"instruction": f"Explain {file.stem}.", "output": part.strip()[:60]}
            for part in parts[:5]
        ]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


@pytest.fixture(scope="module")
def safety(tmp_path_factory):
    """Write labeled texts; those with a certain word are unsafe."""
    path, draw = tmp_path_factory.mktemp("safety") / "texts.csv", random.Random(0)
    lines = ["text,label"]
    for i in range(240):
        words = draw.choices(["explain", "a", "value", "of", "with", "the", "if"], k=6)
        words[draw.randrange(6)] = ["nasty", "name"][i % 2]
        lines.append(f"{' '.join(words)},{['unsafe', 'safe'][i % 2]}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def run(talks, safety, tmp_path_factory):
    out = tmp_path_factory.mktemp("chatbot") / "run"
    ranked = {"rank": 3, "safety": str(safety), "judge_rows": 400, "judge_epochs": 4}
    ranked["held_out"] = 0.12  # each held-out conversation is answered three times
    return out, chatbot.run(options(talks, out, **ranked))


def test_model_beats_most_frequent_token(run):
    folder, metrics = run
    held_out, baseline = metrics["held_out"], metrics["most_frequent"]
    assert held_out["tokens"] == baseline["tokens"] > 1000
    assert held_out["nats_per_token"] < 0.92 * baseline["nats_per_token"]
    assert metrics["training"]["learned_tokens"] < metrics["training"]["tokens"]
    card = (folder / "README.md").read_text()
    assert f"{held_out['perplexity']:.4f}" in card and f"{baseline['perplexity']:.4f}" in card
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_evaluate_reproduces_held_out_metrics(run, tmp_path, loaded_once):
    folder, metrics = run
    assert chatbot.evaluate(folder) == pytest.approx(metrics["held_out"], rel=1e-4)
    (tmp_path / "one.jsonl").write_text('{"instruction": "Explain if.", "output": "The if"}')
    assert chatbot.evaluate(folder, tmp_path / "one.jsonl")["tokens"] < 12


def test_chat_ranks_and_filters_answers(run, tmp_path, loaded_once):
    folder, metrics = run
    task = keras_llm.load(folder)
    assert isinstance(task, keras_llm.RankedChat) and task.ranking.num_candidates == 3
    assert metrics["safety"]["held_out"]["recall"] > 0.9 < metrics["safety"]["tfidf"]["recall"]
    assert metrics["safety"]["held_out"]["precision"] > 0.9
    found = metrics["ranking"]
    assert found["candidates"] == 3
    for name in ("first_sensible", "ranked_sensible", "real_reply_found"):
        assert 0 <= found[name] <= 1
    settings = {"max_new_tokens": 12, "seed": 1}
    answer = task.chat("Explain with.", return_details=True, **settings)
    safe = [reply.text for reply in answer.replies if reply.unsafe < task.ranking.threshold]
    expected = (None, safe[0]) if safe else ("output", task.ranking.refusal)
    assert (answer.refused, answer.text) == expected
    assert {reply.number for reply in answer.replies} == {0, 1, 2}
    scores = [reply.score for reply in answer.replies]
    assert scores == sorted(scores, reverse=True)
    assert task.chat("a nasty value", **settings) == task.ranking.refusal
    for name in ("safety", "sensibleness"):
        judge = keras_llm.load(folder / name)
        accuracy = metrics[name]["held_out"]["accuracy"]
        assert sorted(judge.labels) == judge.labels
        assert f"{accuracy:.4f}" in (folder / name / "README.md").read_text()
        assert f"{accuracy:.1%}" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match="its `generator`"):
        export.litert(task, tmp_path / "chat.tflite")


def test_random_replies_come_from_other_conversations():
    talks = [
        [{"role": r, "content": f"{r} {i} {turn}"} for turn in "ab" for r in ("user", "assistant")]
        for i in range(9)
    ]
    rows = judges.sensible_rows(talks, seed=1, most=24)
    assert len(rows) == 24 and rows == judges.sensible_rows(talks, seed=1, most=24)
    for number, (text, label) in enumerate(rows):
        reply, said = (line.split() for line in text.split("\n"))
        assert (reply[0], said[0]) == ("assistant", "user") and said[1] == str(number // 4)
        assert (reply[1:] == said[1:]) == (label == "sensible")
        assert (reply[1] == said[1]) == (label == "sensible")
    with pytest.raises(InputError, match="two conversations"):
        judges.sensible_rows(talks[:1], seed=1, most=9)


def test_replies_of_weight_0_are_not_learned():
    def talk(*words, **last):
        roles = ("user", "assistant")
        messages = [
            {"role": roles[i % 2], "content": text, "weight": 1} for i, text in enumerate(words)
        ]
        messages[-1].update(last)
        return messages

    talks = [talk("a", "b"), talk("c", "d"), talk("e", "f", "g", "bad", weight=0)]
    assert judges.pairs(talks) == [(0, "a", "b"), (1, "c", "d"), (2, "e", "f")]
    assert not any("bad" in text for text, _ in judges.sensible_rows(talks, seed=0, most=9))


def test_messages_that_do_not_fit_are_left_out(run, talks, loaded_once):
    roles = {"user": "why " * 300, "assistant": "so"}
    long = [{"role": role, "content": text} for role, text in roles.items()]
    task, settings = keras_llm.load(run[0]), options(talks, "x", rank=2)
    found = judges.ranked(task, [long], settings)
    assert (found["messages"], found["messages_too_long"]) == (0, 1)


def test_rank_is_refused_before_training_if_the_data_does_not_suffice(tmp_path):
    row = {"instruction": "Why?", "output": "So."}
    rows = [row, *({"instruction": f"Why {i}?", "output": "So."} for i in range(30))]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = options(tmp_path / "talks.jsonl", tmp_path / "run", rank=2)
    with pytest.raises(InputError, match="two conversations with different replies"):
        chatbot.run(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["talks.jsonl"]


def test_default_length_holds_98_percent_of_the_conversations(run, capfd, loaded_once):
    loaded = keras_llm.load(run[0])
    config = types.SimpleNamespace(max_length=8192)
    names = ("chat_template", "tokenizer", "end_token_ids")
    task = types.SimpleNamespace(
        model=types.SimpleNamespace(config=config),
        **{name: getattr(loaded, name) for name in names},
    )

    def talk(words):
        roles = {"user": "why?", "assistant": "so " * words}
        return [{"role": role, "content": text} for role, text in roles.items()]

    def chosen(rows, **changes):
        settings = chatbot.Options(out="x", **changes)
        dialogue.choose_length(settings, task, rows)
        return settings.max_length, capfd.readouterr().err

    assert chosen([talk(1)] * 98 + [talk(900)] * 2)[0] == 128
    (example,), _ = dialogue.examples(task, [talk(150)], chatbot.Options(out="x", max_length=8192))
    length, told = chosen([talk(150)] * 100)
    assert length % 32 == 0 and 0 <= length - len(example.token_ids) < 32 and "warning" not in told
    length, told = chosen([talk(5)] * 80 + [talk(2000)] * 20)
    assert length == 1024 and "warning: 20% of the rows are longer than --max-length 1024" in told
    assert "50 % have at most" in told
    config.max_length = 256
    assert chosen([talk(2000)] * 9)[0] == 256
    length, told = chosen([talk(5)] * 98 + [talk(90)] * 2, max_length=60)
    assert length == 60 and "warning" not in told and "--max-length 60" in told


def test_invalid_safety_labels_raise(talks, tmp_path):
    rows = (f"a {i},good\nc {i},bad\n" for i in range(20))
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(rows))
    settings = options(talks, tmp_path / "run", rank=2, safety=str(tmp_path / "rows.csv"))
    with pytest.raises(InputError, match=r"--safety: .* must be \['safe', 'unsafe'\]"):
        chatbot.run(settings)
    assert not (tmp_path / "run").exists()


def test_chat_and_generate_commands(run, monkeypatch, capsys, loaded_once):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Explain with.\nExplain if.\n"))
    settings = ["--max-new-tokens", "12", "--temperature", "0"]
    assert cli.main(["chat", str(run[0]), "--json", *settings]) == 0
    answers = [json.loads(line)["content"] for line in capsys.readouterr().out.splitlines()]
    task = keras_llm.load(run[0])
    assert len(answers) == 2 and "<|" not in "".join(answers)
    assert answers[0] == task.chat("Explain with.", max_new_tokens=12, temperature=0)
    assert cli.main(["generate", str(run[0]), "The", *settings]) == 0


def test_lora_from_a_checkpoint_and_resume(run, talks, tmp_path, monkeypatch):
    def settings(name, **more):
        return options(
            talks,
            tmp_path / name,
            start=str(run[0]),
            lora_rank=4,
            epochs=2,
            learning_rate=3e-3,
            max_conversations=100,
            checkpoint_steps=3,
            **more,
        )

    metrics = chatbot.run(settings("whole"))
    assert metrics["held_out"]["nats_per_token"] < metrics["before"]["nats_per_token"]
    before, whole = (keras_llm.load(path).model for path in (run[0], tmp_path / "whole"))
    changed = [
        one.path
        for one, other in zip(before.weights, whole.weights, strict=True)
        if not np.array_equal(one, other)
    ]
    assert changed and all("attention" in path for path in changed)

    save = training.BestWeights.on_epoch_end

    def fail(callback, epoch, logs=None):
        if epoch == 2:
            raise MemoryError
        save(callback, epoch, logs)

    monkeypatch.setattr(training.BestWeights, "on_epoch_end", fail)
    with pytest.raises(MemoryError):
        chatbot.run(settings("stopped"))
    monkeypatch.setattr(training.BestWeights, "on_epoch_end", save)
    chatbot.run(settings("stopped", resume=True))
    stopped = keras_llm.load(tmp_path / "stopped").model
    for one, other in zip(whole.weights, stopped.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_invalid_start_raises(run, run_folder, talks, tmp_path):
    for start, changes, words in (
        (run_folder, {}, "no chat template"),
        (run[0], {"max_length": 4096, "smoke": False}, "--max-length must be at most .* 128"),
        (run[0], {"max_length": 4}, "none of .* conversations fits into --max-length 4"),
    ):
        settings = options(talks, tmp_path / "run", start=str(start), **changes)
        with pytest.raises(InputError, match=words):
            chatbot.run(settings)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lora_rank": 4}, "lora-rank must be 0 without --start"),
        ({"max_length": 1}, "max-length"),
        ({"max_conversations": -1}, "max-conversations"),
        ({"question": " "}, "question"),
        ({"rank": -1}, "rank"),
        ({"refusal": ""}, "refusal"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_invalid_options_name_the_flag(changes, words):
    with pytest.raises(InputError, match=f"--{words}"):
        chatbot.Options(out="runs/none", **changes)


def test_template_marks_answers():
    talk = [{"role": r, "content": r[0]} for r in ("system", "user", "assistant")]
    template = keras_llm.tokenizers.ChatTemplate(dialogue.TEMPLATE)
    parts = template.parts(talk)
    assert [text for text, is_said in parts if is_said] == ["a<|im_end|>\n"]
    assert template.render(talk[:2]) == parts[0][0]
