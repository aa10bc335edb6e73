"""Test search methods as settings of a task, and what ends a text."""

import numpy as np
import pytest

import keras_llm
from keras_llm import generation, models
from keras_llm.errors import InputError

GREEDY = {"temperature": 0.0, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def draft(shallow):
    """Return a draft model of another shape with random weights and the same tokenizer."""
    size = shallow.model.config.vocabulary_size
    return keras_llm.TextGeneration(
        models.causal_lm(models.preset("gpt-tiny", vocabulary_size=size, num_layers=1)),
        shallow.tokenizer,
    )


def test_draft_and_prompt_lookup_do_not_change_text(shallow, draft, held_out_prompts):
    prompts = held_out_prompts[:4]
    expected = shallow(prompts, **GREEDY)
    assert shallow(prompts, **GREEDY, draft=shallow) == expected
    assert shallow(prompts, **GREEDY, draft=draft, num_draft_tokens=2) == expected
    assert shallow(prompts, **GREEDY, prompt_lookup=2) == expected
    details = shallow(
        prompts[0], **GREEDY, prompt_lookup=2, return_details=True, num_alternatives=2
    )
    plain = shallow(prompts[0], **GREEDY, return_details=True, num_alternatives=2)
    assert details.token_ids == plain.token_ids and details.text == plain.text
    np.testing.assert_allclose(
        details.token_log_probabilities, plain.token_log_probabilities, atol=1e-4
    )
    assert [list(row) for row in details.alternatives] == [list(row) for row in plain.alternatives]


def test_beam_search_matches_function(shallow, held_out_prompts):
    prompts = held_out_prompts[:3]
    results = shallow(
        prompts,
        max_new_tokens=9,
        beam_width=4,
        length_penalty=0.7,
        num_return_sequences=3,
        return_details=True,
    )
    tok = shallow.tokenizer
    rows = [tok.encode_prompt(prompt) for prompt in prompts]
    lengths = np.array([len(row) for row in rows])
    ids = np.array([row + [tok.pad_id] * (lengths.max() - len(row)) for row in rows])
    expected = generation.beam_search(
        shallow.model,
        generation.make_request(shallow.model, ids, lengths, 9),
        4,
        tok.eos_id,
        tok.pad_id,
        length_penalty=0.7,
        num_return_sequences=3,
    )
    assert len(set(lengths.tolist())) > 1
    for index, row in enumerate(results):
        assert [r.score for r in row] == sorted((r.score for r in row), reverse=True)
        for i, result in enumerate(row):
            count = int(expected.num_tokens[index, i])
            assert result.token_ids == np.asarray(expected.token_ids)[index, i, :count].tolist()
            np.testing.assert_allclose(result.score, expected.score[index, i], atol=1e-4)
            if result.finish_reason == "length":
                np.testing.assert_allclose(
                    result.log_probability, expected.log_probability[index, i], atol=1e-3
                )
    assert shallow(prompts, **GREEDY, beam_width=1) == shallow(prompts, **GREEDY)


def test_beam_search_with_logits_processors(shallow):
    plain = shallow("The", max_new_tokens=12, beam_width=3)
    unrepeated = shallow(
        "The", max_new_tokens=16, beam_width=3, no_repeat_ngram_size=2, return_details=True
    )
    pairs = list(zip(unrepeated.token_ids, unrepeated.token_ids[1:], strict=False))
    assert len(pairs) == len(set(pairs))
    assert shallow("The", beam_width=3, regex="( a| the)+!", max_new_tokens=12) != plain
    matched = shallow("The", beam_width=3, regex="(xyz|zyx)!", max_new_tokens=16)
    assert matched in ("xyz!", "zyx!")
    forced = shallow("The", beam_width=3, forced=" number", max_new_tokens=12)
    assert forced.startswith(" number")
    # With one beam, penalties act as in greedy decoding.
    penalties = {"repetition_penalty": 1.6, "frequency_penalty": 0.4, "max_new_tokens": 16}
    single_beam = shallow("The", beam_width=1, **penalties)
    assert single_beam == shallow("The", temperature=0.0, **penalties)


def test_contrastive_search_matches_function(shallow):
    tok = shallow.tokenizer
    ids = np.array([tok.encode_prompt("The value")])
    request = generation.make_request(shallow.model, ids, np.array([ids.shape[1]]), 10)
    expected = generation.contrastive_search(shallow.model, request, 4, 0.5, tok.eos_id, tok.pad_id)
    result = shallow("The value", max_new_tokens=10, contrastive_alpha=0.5, return_details=True)
    count = int(expected.num_tokens[0])
    assert result.token_ids == np.asarray(expected.token_ids)[0, :count].tolist()
    np.testing.assert_allclose(result.log_probability, expected.log_probability[0], atol=1e-3)
    assert shallow("The value", contrastive_alpha=0.0, **GREEDY) == shallow("The value", **GREEDY)


def test_candidates_are_sampled_once_and_ranked(shallow):
    settings = {"max_new_tokens": 8, "seed": 3, "return_details": True}
    samples = shallow("The", num_return_sequences=5, **settings)
    means = [r.log_probability / r.num_tokens for r in samples]
    best = shallow("The", num_candidates=5, **settings)
    assert best.token_ids == samples[int(np.argmax(means))].token_ids
    assert best.score == pytest.approx(max(means))
    scored_prompts = []

    def score_by_length(prompt, texts):
        scored_prompts.append(prompt)
        return [len(text) for text in texts]

    rows = shallow(
        ["The", "A"], num_candidates=5, scorer=score_by_length, num_return_sequences=2, **settings
    )
    assert scored_prompts == ["The", "A"]
    lengths = sorted((len(r.text) for r in samples), reverse=True)
    assert [len(r.text) for r in rows[0]] == lengths[:2]
    with pytest.raises(InputError, match="`scorer` must return 5 numbers"):
        shallow("The", num_candidates=5, scorer=lambda prompt, texts: [1.0], max_new_tokens=2)


def test_searches_compile_once_per_bucket(draft):
    draft = keras_llm.TextGeneration(draft.model, draft.tokenizer)
    for i in range(4):
        draft(
            ["The", "value " * (i + 1)][: 1 + i % 2],
            max_new_tokens=2 + i,
            beam_width=2,
            length_penalty=i / 2,
            repetition_penalty=1 + i / 4,
        )
    assert draft._compiled.traces == 2  # for one row and for two


def test_xla_does_not_change_text(shallow, monkeypatch):
    calls = [
        {"temperature": 0.0},
        {"seed": 3, "top_p": 0.9, "repetition_penalty": 1.3},
        {"beam_width": 3, "repetition_penalty": 1.3},
        {"contrastive_alpha": 0.5},
        {"prompt_lookup": 2, "temperature": 0.0},
    ]
    prompts = ["The", "A class"]
    expected = [shallow(prompts, max_new_tokens=12, **settings) for settings in calls]
    assert not shallow._compiled.jit_compile and len(set(map(tuple, expected))) >= 4
    monkeypatch.setenv("KERAS_LLM_XLA", "1")
    other = keras_llm.TextGeneration(shallow.model, shallow.tokenizer)
    assert other._compiled.jit_compile
    assert [other(prompts, max_new_tokens=12, **settings) for settings in calls] == expected


def test_stop_token_ids_end_text(shallow, tmp_path):
    plain = shallow("The", **GREEDY, return_details=True)
    end = plain.token_ids[4]
    first = plain.token_ids.index(end)
    cut = shallow("The", **GREEDY, return_details=True, stop_token_ids=[end])
    assert cut.token_ids == plain.token_ids[:first]
    assert cut.finish_reason == "stop" and cut.stopped_by == shallow.tokenizer.token(end)
    assert "".join(shallow.stream("The", **GREEDY, stop_token_ids=[end])) == cut.text
    assert shallow("The", **GREEDY, beam_width=1, stop_token_ids=[end]) == cut.text
    assert shallow("The", **GREEDY, prompt_lookup=2, stop_token_ids=[end]) == cut.text
    with_end_token = keras_llm.TextGeneration(
        shallow.model, shallow.tokenizer, {"end_token_ids": [end]}
    )
    with_end_token.save(tmp_path / "task")
    assert keras_llm.load(tmp_path / "task")("The", **GREEDY) == cut.text
    stopped = shallow("The", **GREEDY, return_details=True, stop=[plain.text[3:6]])
    assert stopped.stopped_by == plain.text[3:6] and stopped.finish_reason == "stop"
    uncut = shallow("The", temperature=0.0, max_new_tokens=2, return_details=True)
    assert uncut.finish_reason == "length" and uncut.stopped_by is None
    with pytest.raises(InputError, match="`stop_token_ids`"):
        shallow("The", stop_token_ids=[-1])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"beam_width": 0}, "`beam_width`"),
        ({"beam_width": 2, "num_return_sequences": 3}, "`num_return_sequences`"),
        ({"beam_width": 4, "diversity_groups": 3}, "`diversity_groups`"),
        ({"beam_width": 2, "length_penalty": float("nan")}, "`length_penalty`"),
        ({"beam_width": 2, "top_p": 0.5}, "`top_p` is not supported with `beam_width`"),
        ({"beam_width": 2, "prompt_lookup": 2}, "`beam_width` and `prompt_lookup`"),
        ({"length_penalty": 1.0}, "`length_penalty` requires `beam_width`"),
        ({"num_draft_tokens": 2}, "`num_draft_tokens` requires `draft` or `prompt_lookup`"),
        ({"prompt_lookup": 2}, "`temperature=0`"),
        ({"prompt_lookup": 0, "temperature": 0.0}, "`prompt_lookup`"),
        ({"draft": "small", "temperature": 0.0}, "`draft` must be a TextGeneration"),
        ({"contrastive_alpha": 1.5}, "`contrastive_alpha`"),
        ({"contrastive_alpha": 0.5, "min_new_tokens": 3}, "`min_new_tokens` is not supported"),
        ({"contrastive_alpha": 0.5, "top_k": 10**6}, "`top_k`"),
        ({"num_candidates": 0}, "`num_candidates`"),
        ({"num_candidates": 2, "num_return_sequences": 3}, "`num_candidates`"),
        ({"beam_widht": 3}, "`beam_widht`; known: .*beam_width"),
    ],
)
def test_invalid_search_settings_raise_error(shallow, settings, message):
    with pytest.raises(InputError, match=message):
        shallow("The", **{"max_new_tokens": 4, **settings})


def test_draft_with_other_vocabulary_raises_error(shallow):
    from keras_llm import tokenizers

    tok = tokenizers.SentencePiece.train(["once upon a time"] * 9, 275, "bpe")
    other = keras_llm.TextGeneration(
        models.causal_lm(models.preset("gpt-tiny", vocabulary_size=275)), tok
    )
    with pytest.raises(InputError, match="`draft` must have this task's vocabulary"):
        shallow("The", temperature=0.0, draft=other)
    with pytest.raises(InputError, match="whole texts"):
        shallow.stream("The", beam_width=2)


@pytest.fixture
def nan_task(shallow):
    """Set weights to NaN in a task that is already traced."""
    weights = shallow.model.get_weights()
    shallow.model.set_weights([*weights[:-1], np.full_like(weights[-1], np.nan)])
    yield shallow
    shallow.model.set_weights(weights)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"stop": "x"},
        {"beam_width": 3},
        {"contrastive_alpha": 0.5},
        {"prompt_lookup": 2, "temperature": 0.0},
    ],
)
def test_nan_logits_raise_error(nan_task, settings):
    with pytest.raises(InputError, match="not numbers"):
        nan_task("The", max_new_tokens=3, **settings)
    if settings == {"temperature": 0.0}:
        with pytest.raises(InputError, match="not numbers"):
            list(nan_task.stream("The", max_new_tokens=3, **settings))
