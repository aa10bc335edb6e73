"""Each logits processor against a NumPy reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from keras_llm import generation
from keras_llm.errors import InputError
from keras_llm.generation import sampling as sampling_module

values = st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True)
texts = st.lists(st.integers(0, 4), min_size=1, max_size=12)


def one(value, dtype="float32"):
    return ops.convert_to_tensor(np.array([value], dtype))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@given(values, st.floats(0.0, 1.0))
def test_min_p(values, min_p):
    logits = np.array(values, "float32") / 10
    p = softmax(logits.astype("float64"))
    kept = np.asarray(generation.keep_likely(logits[None], one(min_p)))[0] > -1e29
    sure = np.abs(p / p.max() - min_p) > 1e-5
    np.testing.assert_array_equal(kept[sure], (p >= min_p * p.max())[sure])
    assert kept[p.argmax()]


@given(values, st.floats(0.01, 1.0))
def test_typical_p(values, typical_p):
    logits = np.array(values, "float32") / 10
    p = softmax(logits.astype("float64"))
    distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
    expected, mass = np.zeros(len(p), bool), 0.0
    for index in np.argsort(distance, kind="stable"):
        if mass >= typical_p and typical_p < 1:
            break
        expected[index] = True
        mass += p[index]
    kept = np.asarray(generation.keep_typical(logits[None], one(typical_p)))[0] > -1e29
    mass = np.cumsum(p[np.argsort(distance)])
    near = np.abs(np.diff(np.sort(distance))).min() < 1e-5  # a tie may fall on either side
    if not near and np.abs(mass - typical_p).min() > 1e-5:
        np.testing.assert_array_equal(kept, expected)


@given(texts, st.integers(0, 12), st.floats(0.3, 3.0), st.floats(-2, 2), st.floats(-2, 2))
def test_penalties(text, prompt, repetition, presence, frequency):
    prompt = min(prompt, len(text))
    logits = np.array([1.5, -0.5, 0.0, 2.0, -3.0])
    expected = logits.copy()
    for token in range(5):
        new = text[prompt:].count(token)
        if token in text:
            expected[token] *= 1 / repetition if logits[token] > 0 else repetition
        expected[token] -= presence * (new > 0) + frequency * new
    sampling = generation.Sampling(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    padded = np.array([text + [3] * 4], "int32")  # padding must not count
    seen = generation.Text(padded, np.array([prompt]), np.array([len(text)]))
    processed = generation.process(logits[None].astype("float32"), sampling.tensors(), 0, seen)
    np.testing.assert_allclose(np.asarray(processed)[0], expected, atol=1e-5)


@given(texts, st.integers(0, 5))
def test_no_repeat_ngram_size(text, size):
    grams = {tuple(text[i : i + size]) for i in range(len(text) - size + 1)}
    last = text[len(text) - size + 1 :] if size > 1 else []
    expected = [size > 0 and len(text) >= size and (*last, token) in grams for token in range(5)]
    padded = np.array([text + [1] * 5], "int32")
    logits = generation.forbid_repeated_ngrams(
        np.zeros((1, 5), "float32"), padded, np.array([len(text)], "int32"), one(size, "int32")
    )
    np.testing.assert_array_equal(np.asarray(logits)[0] < -1e29, expected)


def test_settings_apply_per_row():
    tokens = np.array([[0, 1, 0], [0, 1, 0]], "int32")
    text = generation.Text(tokens, np.array([3, 3]), np.array([3, 3]))
    sampling = generation.Sampling(no_repeat_ngram_size=np.array([2, 0]), temperature=0.0)
    logits = np.array([[0.0, 1.0, 0.5]] * 2, "float32")
    chosen = generation.choose(logits, sampling.tensors(), ops.convert_to_tensor(0), text)
    np.testing.assert_array_equal(chosen, [2, 1])


def test_forced_tokens_bias_and_min_new_tokens():
    logits = np.array([[5.0, 1.0, 0.0]], "float32")
    sampling = generation.Sampling(
        temperature=0.0,
        forced_tokens=np.array([[2, -1]]),
        min_new_tokens=3,
        logit_bias=np.array([[0.0, 0.0, 2.0]]),
    ).tensors()
    chosen = [
        int(generation.choose(logits, sampling, ops.convert_to_tensor(step), None, stop_id=0)[0])
        for step in range(5)
    ]
    assert chosen == [2, 2, 2, 0, 0]  # forced; then token 0 would stop too early


@pytest.mark.parametrize(
    "name, value",
    [
        ("min_p", 1.5),
        ("min_p", float("nan")),
        ("typical_p", 0.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", float("inf")),
        ("no_repeat_ngram_size", -1),
        ("no_repeat_ngram_size", 2.0),
        ("min_new_tokens", -1),
        ("temperature", "hot"),
        ("top_k", True),
    ],
)
def test_settings_out_of_range_raise(name, value):
    with pytest.raises(InputError, match=f"`{name}`"):
        generation.Sampling(**{name: value}).validate()


SIZE = 6
STOPS = (4, 5)
tokens = st.integers(0, SIZE - 1)
token_sets = st.none() | st.sets(tokens)


def possible(allowed, forced, banned, early, text, ngram):
    """Return the tokens that may come next: a rule that would leave none has no effect."""
    completes = set()
    if 0 < ngram <= len(text):
        end = text[len(text) - ngram + 1 :]
        starts = range(len(text) - ngram + 1)
        completes = {text[i + ngram - 1] for i in starts if text[i : i + ngram - 1] == end}
    everything = set(range(SIZE))
    rest = everything if allowed is None else set(allowed)
    for rule in (
        everything if forced is None else {forced},
        everything - banned,
        everything - set(STOPS) if early else everything,
        everything - completes,
    ):
        rest = rest & rule or rest
    return rest


@settings(max_examples=300)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=SIZE, max_size=SIZE),
    token_sets.filter(lambda allowed: allowed is None or allowed),
    st.none() | tokens,
    st.sets(tokens, max_size=SIZE - 1),
    st.booleans(),
    st.lists(tokens, min_size=1, max_size=8),
    st.integers(0, 3),
    st.sampled_from(
        [
            {},
            {"temperature": 1e-38},
            {"temperature": 1e-6, "top_k": 1},
            {"temperature": 1.0, "top_p": 1e-40},
            {"temperature": 1.0, "typical_p": 1e-40},
            {"temperature": 100.0, "typical_p": 0.5, "min_p": 1.0, "top_k": 2},
            {"temperature": 1.0, "presence_penalty": 3e38, "repetition_penalty": 1e-38},
            {"frequency_penalty": -3e38},
            {"temperature": 0.5, "repetition_penalty": 3e38},
        ]
    ),
)
def test_settings_never_remove_all_tokens(
    logits, allowed, forced, banned, early, text, ngram, numbers
):
    bias = [-1e30 if token in banned else 0.0 for token in range(SIZE)]
    sampling = generation.Sampling(
        **{"temperature": 0.0, **numbers},
        seed=len(text),
        no_repeat_ngram_size=ngram,
        min_new_tokens=9 if early else 0,
        logit_bias=np.array([bias], "float32"),
        forced_tokens=None if forced is None else np.array([[forced]]),
    ).tensors()
    step = 0
    if allowed is not None:
        sampling = sampling._replace(constraint=("stub",))
    mask = np.array([[allowed is None or token in allowed for token in range(SIZE)]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sampling_module, "allowed_tokens", lambda *arguments: ops.convert_to_tensor(mask)
        )
        token = generation.choose(
            ops.convert_to_tensor(np.array([logits], "float32")),
            sampling,
            step,
            generation.Text(*map(np.array, ([text], [len(text) - 1], [len(text)]))),
            np.array(STOPS),
        )
    assert int(token[0]) in possible(allowed, forced, banned, early, text, ngram)


def test_low_temperature_is_greedy():
    logits = ops.convert_to_tensor(np.array([[3.0, 5.0, 4.9]], "float32"))
    for temperature in (1e-38, 1e-20, 1e-6):
        sampling = generation.Sampling(temperature=temperature, seed=3).tensors()
        assert int(generation.choose(logits, sampling, 0)[0]) == 1
