"""Sample, judge, drop what is unsafe, rank: each number is found again by other means."""

import dataclasses

import numpy as np
import pytest

import keras_llm
from keras_llm import export, models, tokenizers
from keras_llm.errors import InputError
from keras_llm.tasks import RankedChat, Ranking, TextClassification

TEMPLATE = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}a:"
SETTINGS = {"max_new_tokens": 8, "min_new_tokens": 4, "seed": 4}
SAID = "What is a class?"


@pytest.fixture(scope="module")
def judges(text_folder):
    """Classifiers with random weights: what they think differs from text to text."""
    texts = [path.read_text("utf-8") for path in sorted(text_folder.iterdir())[:20]]
    tok = tokenizers.WordPiece.train(texts, 400)
    size = {"vocabulary_size": tok.vocabulary_size, "num_layers": 1, "initializer_range": 0.5}

    def judge(*labels):
        model = models.text_classifier(models.preset("bert-tiny", **size), 2)
        return TextClassification(model, tok, labels)

    return judge("sensible", "random"), judge("safe", "unsafe")


@pytest.fixture(scope="module")
def chat(task):
    chat = keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": TEMPLATE})
    return with_graphs_of(task, chat)


def with_graphs_of(one, other):
    """The other task without tracing anew what was traced of the same model."""
    assert other.model is one.model and other.end_token_ids == one.end_token_ids
    other._compiled = one._compiled
    return other


def ranked(chat, judges, **ranking):
    ranking = Ranking(**{"num_candidates": 5, "threshold": 1.0, **ranking})
    task = RankedChat(chat.model, chat.tokenizer, *judges, ranking, chat.metadata)
    return with_graphs_of(chat, task)


def probability(judge, text, label):
    return judge(text, return_details=True, truncate=True).probabilities[label]


@pytest.fixture(scope="module")
def replies(chat, judges):
    return ranked(chat, judges).chat(SAID, return_details=True, **SETTINGS).replies


def test_the_samples_are_those_of_the_chat_model_and_are_ranked_by_both_scores(
    chat, judges, replies
):
    drawn = chat.chat(SAID, num_return_sequences=5, return_details=True, **SETTINGS)
    assert [reply.number for reply in replies] != sorted(reply.number for reply in replies)
    assert len(replies) == 5
    for reply in replies:
        sample = drawn[reply.number]
        sensible = probability(judges[0], f"{reply.text}\n{SAID}", "sensible")
        likely = sample.log_probability / sample.num_tokens
        assert reply.text == sample.text
        assert reply.sensible == pytest.approx(sensible, rel=1e-4)
        assert reply.unsafe == pytest.approx(probability(judges[1], reply.text, "unsafe"), rel=1e-4)
        assert reply.score == pytest.approx(np.log(sensible) + likely, rel=1e-4)
    scores = [reply.score for reply in replies]
    assert scores == sorted(scores, reverse=True)
    by_sense = ranked(chat, judges, likelihood_weight=0.0)
    found = by_sense.chat(SAID, return_details=True, **SETTINGS)
    assert found.text == max(replies, key=lambda reply: reply.sensible).text


def test_what_is_unsafe_is_not_given(chat, judges, replies):
    said = probability(judges[1], SAID, "unsafe")
    bounds = sorted(reply.unsafe for reply in replies)
    for threshold in (bounds[0], bounds[2], bounds[4] + 1e-6):
        task = ranked(chat, judges, threshold=threshold)
        found = task.chat(SAID, return_details=True, **SETTINGS)
        safe = [reply.text for reply in replies if reply.unsafe < threshold]
        if said >= threshold:
            assert (found.refused, found.replies) == ("input", [])
        elif not safe:
            assert found.refused == "output" and len(found.replies) == 5
        else:
            assert found.refused is None and found.text == safe[0]
        assert (found.text == task.ranking.refusal) == (found.refused is not None)


def test_a_refused_turn_is_not_read_again(chat, judges):
    texts = [SAID, "Why?", "How?", "A module?", "Then what is the object?", "return it now"]
    harmful, harmless = (
        pick(texts, key=lambda text: probability(judges[1], text, "unsafe")) for pick in (max, min)
    )
    task = ranked(chat, judges, threshold=probability(judges[1], harmful, "unsafe") - 1e-6)
    conversation = task.conversation()
    assert conversation.say(harmful, **SETTINGS) == task.ranking.refusal
    assert list(conversation.stream(harmless, **SETTINGS)) == [task.chat(harmless, **SETTINGS)]
    assert [message["content"] for message in conversation.messages[:3:2]] == [harmful, harmless]


def test_the_folder_holds_the_classifiers(chat, judges, replies, tmp_path):
    task = ranked(chat, judges, refusal="No.")
    task.save(tmp_path / "chat")
    loaded = keras_llm.load(tmp_path / "chat")
    assert isinstance(loaded, RankedChat) and loaded.ranking == task.ranking
    assert loaded.chat(SAID, **SETTINGS) == replies[0].text
    assert loaded("A class", **SETTINGS) == chat("A class", **SETTINGS)
    assert loaded.chat(SAID, max_new_tokens=8, temperature=0) == chat.chat(
        SAID, max_new_tokens=8, temperature=0
    )
    assert keras_llm.load(tmp_path / "chat" / "safety").labels == ["safe", "unsafe"]
    (tmp_path / "chat" / "safety" / "config.json").unlink()
    with pytest.raises(InputError, match=r"chat/safety is not a model folder"):
        keras_llm.load(tmp_path / "chat")


def test_a_classifier_of_something_else_is_refused(chat, judges):
    sensible, safe = judges
    for wrong, words in (
        ((safe, safe), "`sensibleness` must have the label 'sensible'"),
        ((sensible, sensible), "`safety` must have the label 'unsafe'"),
        ((sensible, chat), "`safety` must be a TextClassification"),
    ):
        with pytest.raises(InputError, match=words):
            RankedChat(chat.model, chat.tokenizer, *wrong, metadata=chat.metadata)
    with pytest.raises(InputError, match="no chat template"):
        RankedChat(chat.model, chat.tokenizer, *judges)
    with pytest.raises(InputError, match="`scorer` is not supported"):
        ranked(chat, judges).chat(SAID, scorer=len)
    with pytest.raises(InputError, match="`num_candidates`"):
        ranked(chat, judges).chat(SAID, num_candidates=0)
    with pytest.raises(InputError, match="its `generator`"):
        export.saved_model(ranked(chat, judges), "never/written")


@pytest.mark.parametrize(
    "changes",
    [{"num_candidates": 0}, {"threshold": 0.0}, {"likelihood_weight": -1.0}, {"refusal": " "}],
)
def test_a_ranking_out_of_range_is_named(changes):
    (name,) = changes
    with pytest.raises(InputError, match=f"`{name}`"):
        dataclasses.replace(Ranking(), **changes)
