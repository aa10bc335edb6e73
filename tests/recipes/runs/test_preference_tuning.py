"""Test preference tuning on pairs from a file and on sampled continuations."""

import json

import pytest

import keras_llm
from keras_llm.errors import InputError
from keras_llm.recipes import chatbot, preference_tuning

pytestmark = pytest.mark.usefixtures("one_layer")


def options(start, out, path, **changes):
    return preference_tuning.Options(
        out=str(out), start=str(start), data=str(path), smoke=True, evaluations=1, **changes
    )


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """Train a chat model with long and short answers, and write pairs that prefer short ones."""
    folder = tmp_path_factory.mktemp("chat")
    words = {"long": "extraordinarily complicated", "short": "so it is"}
    talks = [
        {"instruction": f"Question {i}?", "output": f"{answer} {i % 7}"}
        for i in range(80)
        for answer in words.values()
    ]
    pairs = [
        {
            "instruction": f"Question {i}?",
            "chosen": f"{words['short']} {i % 7}",
            "rejected": f"{words['long']} {i % 7}",
        }
        for i in range(80)
    ]
    for name, rows in (("talks", talks), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    settings = {"data": str(folder / "talks.jsonl"), "smoke": True, "epochs": 3}
    settings |= {"out": str(folder / "chat"), "learning_rate": 1e-2}
    chatbot.run(chatbot.Options(**settings))
    return folder


@pytest.mark.parametrize("changes", [{"lora_rank": 4}, {"loss": "orpo", "orpo_weight": 1.0}])
def test_tuning_prefers_chosen_answers(chat, tmp_path, changes):
    settings = options(
        chat / "chat", tmp_path / "run", chat / "pairs.jsonl", epochs=2, held_out=0.4, **changes
    )
    settings.learning_rate = 5e-3 if "lora_rank" in changes else 3e-3
    metrics = preference_tuning.run(settings)
    held_out = metrics["held_out"]
    assert held_out["reward_accuracy"] > 0.9 and held_out["reward_margin"] > 0.05
    assert held_out["judge_score"] > metrics["before"]["judge_score"]
    assert held_out["win_rate"] > 0.5 and held_out["kl"] > 0.01
    assert metrics["judge_accuracy"] == 1
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"{held_out['kl']:.4f}" in card and f"{held_out['win_rate']:.4f}" in card
    if "lora_rank" in changes:
        found = preference_tuning.evaluate(tmp_path / "run", chat / "pairs.jsonl")
        assert found["pairs"] == 80 and found["reward_accuracy"] > 0.9
        task = keras_llm.load(tmp_path / "run")
        assert isinstance(task.chat("Question 3?", max_new_tokens=8, seed=1), str)


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    path, words = tmp_path_factory.mktemp("reviews") / "reviews.tsv", ("the", "of", "and", "is")
    rows = [
        f"The value {i} {words[i % 4]} {words[i % 3]} {'it' if i % 2 else 'a'} end\t"
        f"{'positive' if i % 2 else 'negative'}"
        for i in range(600)
    ]
    path.write_text("text\tlabel\n" + "\n".join(rows), "utf-8")
    return path


def test_pairs_sampled_from_the_model(run_folder, reviews, tmp_path):
    settings = options(run_folder, tmp_path / "run", reviews, least_difference=0.0, epochs=2)
    settings.pairs, settings.held_out_pairs, settings.prompts = 24, 8, 8
    metrics = preference_tuning.run(settings)
    assert 0 < metrics["training"]["pairs"] + metrics["held_out"]["pairs"] <= 24 + 8
    assert metrics["held_out"]["prompts"] == 8 and metrics["judge_accuracy"] > 0.9
    assert 0 <= metrics["held_out"]["win_rate"] <= 1
    found = preference_tuning.evaluate(tmp_path / "run")
    assert found == pytest.approx(metrics["held_out"], rel=1e-3, abs=1e-3)


def test_invalid_start_or_data_raises(chat, run_folder, tmp_path):
    out, pairs = tmp_path / "run", chat / "pairs.jsonl"
    for start, path, words in (
        (run_folder, pairs, "no chat template"),
        (tmp_path / "none", pairs, "none"),
        (chat / "chat", chat / "talks.jsonl", "line 1: the conversation ends with the assistant"),
    ):
        with pytest.raises(InputError, match=words):
            preference_tuning.run(options(start, out, path))
    for corpus, words in (("shakespeare", "unknown corpus"), ("python-stdlib", "kind 'texts'")):
        settings = preference_tuning.Options(out=str(out), start=str(chat / "chat"), corpus=corpus)
        with pytest.raises(InputError, match=words):
            preference_tuning.run(settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"start": None}, "start"),
        ({"beta": 0.0}, "beta"),
        ({"orpo_weight": 0.0}, "orpo-weight"),
        ({"candidates": 1}, "candidates"),
        ({"least_difference": 1.0}, "least-difference"),
        ({"new_tokens": 0}, "new-tokens"),
    ],
)
def test_invalid_options_name_the_flag(changes, words):
    with pytest.raises(InputError, match=f"--{words}"):
        preference_tuning.Options(**{"out": "runs/none", "start": "runs/chat", **changes})
