"""Test ranked chat: sampling, classification, filtering of unsafe replies and ranking."""

import dataclasses

import numpy as np
import pytest

import keras_llm
from keras_llm import export, models, tokenizers
from keras_llm.errors import InputError
from keras_llm.tasks import RankedChat, Ranking, TextClassification

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}a:"
SETTINGS = {"max_new_tokens": 8, "min_new_tokens": 4, "seed": 4}
QUESTION = "What is a class?"


@pytest.fixture(scope="module")
def classifiers(text_folder):
    """Return classifiers with random weights, whose outputs differ between texts."""
    texts = [path.read_text("utf-8") for path in sorted(text_folder.iterdir())[:20]]
    tok = tokenizers.WordPiece.train(texts, 400)
    size = {"vocabulary_size": tok.vocabulary_size, "num_layers": 1, "initializer_range": 0.5}

    def make_classifier(*labels):
        model = models.text_classifier(models.preset("bert-tiny", **size), 2)
        return TextClassification(model, tok, labels)

    return make_classifier("sensible", "random"), make_classifier("safe", "unsafe")


@pytest.fixture(scope="module")
def chat(task):
    chat = keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": TEMPLATE})
    return share_graphs(task, chat)


def share_graphs(source, target):
    """Let `target` reuse the graphs traced for the same model; return it."""
    assert target.model is source.model and target.end_token_ids == source.end_token_ids
    target._compiled = source._compiled
    return target


def make_ranked_chat(chat, classifiers, **ranking):
    ranking = Ranking(**{"num_candidates": 5, "threshold": 1.0, **ranking})
    task = RankedChat(chat.model, chat.tokenizer, *classifiers, ranking, chat.metadata)
    return share_graphs(chat, task)


def probability(classifier, text, label):
    return classifier(text, return_details=True, truncate=True).probabilities[label]


@pytest.fixture(scope="module")
def replies(chat, classifiers):
    return (
        make_ranked_chat(chat, classifiers).chat(QUESTION, return_details=True, **SETTINGS).replies
    )


def test_replies_are_samples_of_chat_model_ranked_by_both_scores(chat, classifiers, replies):
    samples = chat.chat(QUESTION, num_return_sequences=5, return_details=True, **SETTINGS)
    assert [reply.number for reply in replies] != sorted(reply.number for reply in replies)
    assert len(replies) == 5
    for reply in replies:
        sample = samples[reply.number]
        sensible = probability(classifiers[0], f"{reply.text}\n{QUESTION}", "sensible")
        mean_log_probability = sample.log_probability / sample.num_tokens
        assert reply.text == sample.text
        assert reply.sensible == pytest.approx(sensible, rel=1e-4)
        assert reply.unsafe == pytest.approx(
            probability(classifiers[1], reply.text, "unsafe"), rel=1e-4
        )
        assert reply.score == pytest.approx(np.log(sensible) + mean_log_probability, rel=1e-4)
    scores = [reply.score for reply in replies]
    assert scores == sorted(scores, reverse=True)
    by_sensibleness = make_ranked_chat(chat, classifiers, likelihood_weight=0.0)
    result = by_sensibleness.chat(QUESTION, return_details=True, **SETTINGS)
    assert result.text == max(replies, key=lambda reply: reply.sensible).text


def test_unsafe_replies_are_not_returned(chat, classifiers, replies):
    question_unsafe = probability(classifiers[1], QUESTION, "unsafe")
    bounds = sorted(reply.unsafe for reply in replies)
    for threshold in (bounds[0], bounds[2], bounds[4] + 1e-6):
        task = make_ranked_chat(chat, classifiers, threshold=threshold)
        result = task.chat(QUESTION, return_details=True, **SETTINGS)
        safe = [reply.text for reply in replies if reply.unsafe < threshold]
        if question_unsafe >= threshold:
            assert (result.refused, result.replies) == ("input", [])
        elif not safe:
            assert result.refused == "output" and len(result.replies) == 5
        else:
            assert result.refused is None and result.text == safe[0]
        assert (result.text == task.ranking.refusal) == (result.refused is not None)


def test_refused_turn_is_skipped_in_later_prompts(chat, classifiers):
    texts = [QUESTION, "Why?", "How?", "A module?", "Then what is the object?", "return it now"]
    harmful, harmless = (
        pick(texts, key=lambda text: probability(classifiers[1], text, "unsafe"))
        for pick in (max, min)
    )
    task = make_ranked_chat(
        chat, classifiers, threshold=probability(classifiers[1], harmful, "unsafe") - 1e-6
    )
    conversation = task.conversation()
    assert conversation.say(harmful, **SETTINGS) == task.ranking.refusal
    assert list(conversation.stream(harmless, **SETTINGS)) == [task.chat(harmless, **SETTINGS)]
    assert [message["content"] for message in conversation.messages[:3:2]] == [harmful, harmless]


def test_save_and_load_with_classifiers(chat, classifiers, replies, tmp_path):
    task = make_ranked_chat(chat, classifiers, refusal="No.")
    task.save(tmp_path / "chat")
    loaded = keras_llm.load(tmp_path / "chat")
    assert isinstance(loaded, RankedChat) and loaded.ranking == task.ranking
    assert loaded.chat(QUESTION, **SETTINGS) == replies[0].text
    assert loaded("A class", **SETTINGS) == chat("A class", **SETTINGS)
    assert loaded.chat(QUESTION, max_new_tokens=8, temperature=0) == chat.chat(
        QUESTION, max_new_tokens=8, temperature=0
    )
    assert keras_llm.load(tmp_path / "chat" / "safety").labels == ["safe", "unsafe"]
    (tmp_path / "chat" / "safety" / "config.json").unlink()
    with pytest.raises(InputError, match=r"chat/safety is not a model folder"):
        keras_llm.load(tmp_path / "chat")


def test_invalid_arguments_raise_error(chat, classifiers):
    sensible, safe = classifiers
    for arguments, message in (
        ((safe, safe), "`sensibleness` must have the label 'sensible'"),
        ((sensible, sensible), "`safety` must have the label 'unsafe'"),
        ((sensible, chat), "`safety` must be a TextClassification"),
    ):
        with pytest.raises(InputError, match=message):
            RankedChat(chat.model, chat.tokenizer, *arguments, metadata=chat.metadata)
    with pytest.raises(InputError, match="no chat template"):
        RankedChat(chat.model, chat.tokenizer, *classifiers)
    with pytest.raises(InputError, match="`scorer` is not supported"):
        make_ranked_chat(chat, classifiers).chat(QUESTION, scorer=len)
    with pytest.raises(InputError, match="`num_candidates`"):
        make_ranked_chat(chat, classifiers).chat(QUESTION, num_candidates=0)
    with pytest.raises(InputError, match="its `generator`"):
        export.saved_model(make_ranked_chat(chat, classifiers), "never/written")


@pytest.mark.parametrize(
    "changes",
    [{"num_candidates": 0}, {"threshold": 0.0}, {"likelihood_weight": -1.0}, {"refusal": " "}],
)
def test_invalid_ranking_raises_error(changes):
    (name,) = changes
    with pytest.raises(InputError, match=f"`{name}`"):
        dataclasses.replace(Ranking(), **changes)
