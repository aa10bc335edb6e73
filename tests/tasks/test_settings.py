"""Test settings of text generation tasks and errors for invalid ones."""

import inspect
import itertools
import json
import re

import numpy as np
import pytest

from keras_llm import export, models, tasks
from keras_llm.errors import InputError
from keras_llm.tasks import settings as task_settings
from keras_llm.tasks.settings import pieces_until

GREEDY = {"temperature": 0.0, "max_new_tokens": 24}


def test_stop_strings_end_text(task):
    full = task("The", **GREEDY)
    stop = full[7:10]  # may span several tokens
    expected = full[: full.index(stop)]
    result = task("The", **GREEDY, stop=stop, return_details=True)
    assert result.text == expected and result.finish_reason == "stop"
    assert stop in task.tokenizer.decode(result.token_ids)
    assert stop not in task.tokenizer.decode(result.token_ids[:-1])
    assert len(result.token_log_probabilities) == result.num_tokens
    assert task(["The", "In"], **GREEDY, stop=["\x00", stop])[0] == expected
    assert "".join(task.stream("The", **GREEDY, stop=[stop])) == expected
    assert "".join(task.stream("The", **GREEDY)) == full


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_hold_back_partial_stop_strings(size):
    text = "one two thr three four"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert "".join(pieces_until(pieces, ("three", "five"))) == "one two thr "
    assert "".join(pieces_until(pieces, ("fours",))) == text
    assert "".join(pieces_until(pieces, ())) == text
    assert all(pieces_until(pieces, ("three",)))


def test_num_return_sequences(shallow):
    hot = {"temperature": 1.5, "max_new_tokens": 8, "seed": 3}
    texts = shallow("The", num_return_sequences=3, **hot)
    assert len(texts) == 3 and texts[0] == shallow("The", **hot)
    assert texts[1] == shallow("The", **{**hot, "seed": 4})
    rows = shallow(["The", "In"], num_return_sequences=2, **hot)
    assert [len(row) for row in rows] == [2, 2] and rows[0] == texts[:2]


def test_details_have_alternatives(shallow):
    details = shallow("The", **GREEDY, return_details=True, num_alternatives=2)
    for token, log_p, alternatives in zip(
        details.token_ids, details.token_log_probabilities, details.alternatives, strict=True
    ):
        assert len(alternatives) == 2 and max(alternatives, key=alternatives.get) == token
        np.testing.assert_allclose(alternatives[token], log_p, atol=1e-5)
    np.testing.assert_allclose(sum(details.token_log_probabilities), details.log_probability)


def test_banned_biased_and_forced_tokens(shallow):
    first = shallow("The", temperature=0.0, max_new_tokens=1, return_details=True).token_ids[0]
    other = shallow(
        "The", temperature=0.0, max_new_tokens=1, return_details=True, banned=[first]
    ).token_ids[0]
    assert other != first
    biased = shallow("The", temperature=0.0, max_new_tokens=3, logit_bias={"\n": 100.0})
    assert biased == "\n\n\n"
    assert shallow("The", **GREEDY, forced=" number").startswith(" number")
    ids = shallow(
        "The", temperature=0.0, max_new_tokens=40, no_repeat_ngram_size=2, return_details=True
    ).token_ids
    pairs = list(itertools.pairwise(ids))
    assert len(pairs) == len(set(pairs))
    longest = shallow("The", **GREEDY, min_new_tokens=24, return_details=True)
    assert longest.num_tokens == 24


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"stop": ""}, "`stop`"),
        ({"stop": ["a", 3]}, "`stop`"),
        ({"num_return_sequences": 0}, "`num_return_sequences`"),
        ({"num_alternatives": -1}, "`num_alternatives`"),
        ({"min_p": 2.0}, "`min_p`"),
        ({"top_k": 10**6}, "`top_k` must be at most"),
        ({"top_n": 2}, "`top_n`; known: .*stop, stop_token_ids, num_return_sequences"),
        ({"logit_bias": ["a"]}, "`logit_bias`"),
        ({"logit_bias": {"two words": 1.0}}, "`logit_bias`"),
        ({"logit_bias": {10**6: 1.0}}, "`logit_bias`"),
        ({"logit_bias": {5: float("nan")}}, "`logit_bias`"),
        ({"logit_bias": {5: -1e31}}, "`logit_bias` of 5 must be a number in -1e30 .. 1e30"),
        ({"forced": "a", "banned": ["a"]}, "`forced` must not need a token that `banned`"),
        ({"top_p": 1e-50}, "`top_p`"),
        ({"frequency_penalty": 1e39}, "`frequency_penalty`"),
        ({"repetition_penalty": 1e-50}, "`repetition_penalty`"),
        ({"banned": "a"}, "`banned`"),
        ({"banned": [1.5]}, "`banned`"),
        ({"forced": 3}, "`forced`"),
    ],
)
def test_invalid_settings_raise_error(shallow, settings, message):
    with pytest.raises(InputError, match=message):
        shallow("The", **settings)
    if "num" not in message:
        with pytest.raises(InputError, match=message):
            shallow.stream("The", **settings)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.5, "seed": 2, "top_k": 4},
        {"temperature": 0.0, "beam_width": 3},
        {"temperature": 0.0, "beam_width": 2, "diversity_groups": 2, "diversity_penalty": 3e38},
        {"temperature": 0.0, "contrastive_alpha": 0.9, "top_k": 5},
    ],
)
def test_banned_tokens_are_never_generated(shallow, options):
    allowed = [shallow.tokenizer.encode(text)[0] for text in ("a", "\n")]
    size = shallow.tokenizer.vocabulary_size
    options = {**options, "max_new_tokens": 8, "return_details": True}
    options["banned"] = [token for token in range(size) if token not in allowed]
    assert set(shallow("The", **options).token_ids) <= set(allowed)
    if "contrastive_alpha" not in options:
        options |= {"no_repeat_ngram_size": 1, "min_new_tokens": 8}
        details = shallow("The", **options)
        assert set(details.token_ids) == set(allowed) and details.num_tokens == 8


def test_forced_text_may_repeat(shallow):
    text = shallow("The", **GREEDY, forced="\n\n\n\n", no_repeat_ngram_size=1)
    assert text.startswith("\n\n\n\n")


def test_known_settings_are_the_arguments_of_a_call(shallow):
    parameters = inspect.signature(shallow._generate).parameters
    internal = {"token_ids", "lengths", "encoder_token_ids", "prefix_cache", "prompts", "settings"}
    assert set(parameters) - internal <= set(task_settings.KNOWN)
    with pytest.raises(InputError, match="`num_return_sequences` cannot be streamed"):
        shallow.stream("The", num_return_sequences=2)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_text_matches_regex(shallow, temperature):
    settings = {"temperature": temperature, "seed": 5, "max_new_tokens": 40}
    pattern = r"[0-9]{3}-(yes|no)!"
    texts = shallow(["The", "In a"], regex=pattern, num_return_sequences=2, **settings)
    for text in [text for row in texts for text in row]:
        assert re.fullmatch(pattern, text), text
    assert "".join(shallow.stream("The", regex=pattern, **settings)) == texts[0][0]
    score = shallow.score(["The" + texts[0][0]])
    assert np.isfinite(score).all()


def test_text_matches_json_schema(shallow):
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["class", "module"]}, "old": {"type": "boolean"}},
        "required": ["kind", "old"],
        "additionalProperties": False,
    }
    settings = {"temperature": 1.5, "seed": [0, 1, 2], "max_new_tokens": 80}
    for text in shallow(["The"] * 3, json_schema=schema, **settings):
        row = json.loads(text)
        assert row["kind"] in ("class", "module") and isinstance(row["old"], bool)


def test_invalid_constraints_raise_error(shallow):
    with pytest.raises(InputError, match="cannot both"):
        shallow("The", regex="a", json_schema={})
    with pytest.raises(InputError):
        shallow("The", regex="(")
    with pytest.raises(InputError, match="`grammar` is not supported with `contrastive_alpha`"):
        shallow("The", grammar="start: /a/", contrastive_alpha=0.5)


def test_ids_outside_tokenizer_are_never_sampled(task, tmp_path):
    config = models.preset("llama-tiny", vocabulary_size=1500, initializer_range=0.2, num_layers=1)
    model = models.causal_lm(config)
    table = model.get_layer("token_embedding").embeddings
    rows = np.array(table)
    rows[task.tokenizer.vocabulary_size :] *= 3.0  # the most likely ids, if they were allowed
    table.assign(rows)
    padded = tasks.TextGeneration(model, task.tokenizer)
    texts = padded(["The", "In"], max_new_tokens=12, temperature=0.0)
    details = padded("The", max_new_tokens=30, temperature=2.0, seed=1, return_details=True)
    assert max(details.token_ids) < task.tokenizer.vocabulary_size
    export.saved_model(padded, tmp_path / "padded")  # verifies these texts
    export.litert(padded, tmp_path / "padded.tflite", prefill_lengths=[16])
    device = export.LiteRTModel(tmp_path / "padded.tflite")
    assert [device.generate(prompt, 12, temperature=0.0) for prompt in ("The", "In")] == texts
