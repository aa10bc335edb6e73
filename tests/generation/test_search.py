"""Beam search against a slow reference without a cache, and against all possible texts."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import generation, models
from keras_llm.errors import InputError
from keras_llm.generation.search import beam

STOP, PAD, SIZE = 2, 0, 31
# Makes stop tokens likely, so that texts end early at every length.
LIKELY_STOP = 2.5 * (np.arange(SIZE) == STOP).astype("float32")


def build(name="llama-tiny", **options):
    keras.utils.set_random_seed(3)
    config = models.preset(name, **{"vocabulary_size": SIZE, "initializer_range": 0.2, **options})
    return models.seq2seq(config) if name == "t5-tiny" else models.causal_lm(config)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def windowed():
    return build("gemma3-tiny", sliding_window=3)


@pytest.fixture(scope="module")
def translator():
    depth = {"num_layers": 1, "num_decoder_layers": 1}
    return build("t5-tiny", start_id=1, initializer_range=0.5, **depth)


def prompts(seed=0, rows=3, longest=7):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest, rows).astype("int32")
    lengths[0] = longest
    ids = rng.integers(3, SIZE, (rows, longest)).astype("int32")
    ids[np.arange(longest) >= lengths[:, None]] = PAD
    return ids, lengths


class Reference:
    """Log-probabilities of the next token, each from one forward pass over the whole text."""

    def __init__(self, model, prompt, bias=0.0, source=None):
        self.model, self.prompt, self.source = model, tuple(map(int, prompt)), source
        self.bias = bias
        self.known = {}

    def __call__(self, texts):
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        if new:
            ids = np.array([self.prompt + text for text in new], "int32")
            if self.source is not None:
                ids = [np.repeat(self.source[None], len(new), axis=0), ids]
            logits = np.asarray(self.model(ids), "float64")[:, -1] + self.bias
            logits -= logits.max(-1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
            self.known.update(zip(new, logits, strict=True))
        return [self.known[text] for text in texts]


def scored(total, length, alpha):
    return total / ((5 + length) / 6) ** alpha


def slow_beams(reference, budget, width, stop=STOP, alpha=1.0, groups=1, penalty=0.0, kept=None):
    """Return all finished texts, best first, as (score, log-probability, tokens, stopped), and the
    number of steps after which no better text is possible. Follows the definition without arrays or
    an early end."""
    each = width // groups
    live = [[((), 0.0)] for _ in range(groups)]
    found = [[] for _ in range(groups)]
    steps = None
    for step in range(budget):
        taken = np.zeros(SIZE)
        for g in range(groups):
            continuations = []
            texts = [text for text, _ in live[g]]
            for (text, total), log_p in zip(live[g], reference(texts), strict=True):
                for token, value in enumerate(log_p):
                    rank = total + value - penalty * taken[token]
                    continuations.append((rank, total + value, text, token))
            continuations.sort(key=lambda c: -c[0])
            new = taken.copy()
            for _, total, text, token in continuations[:each]:
                if token == stop:
                    found[g].append((scored(total, step + 1, alpha), total, text, True))
                    new[token] += 1
            if each == 1:
                continuations = continuations[:1]
            going = [c for c in continuations if c[3] != stop][:each]
            live[g] = [((*text, token), total) for _, total, text, token in going]
            for _, _, _, token in going:
                new[token] += 1
            taken = new
        if steps is None and not any(
            can_improve(live[g], found[g], step + 1, budget, alpha, kept or each)
            for g in range(groups)
        ):
            steps = step + 1
    for g in range(groups):
        found[g] += [(scored(total, budget, alpha), total, text, False) for text, total in live[g]]
        found[g] = sorted(found[g], key=lambda f: -f[0])[:each]
    return sorted(itertools.chain(*found), key=lambda f: -f[0]), steps


def can_improve(live, found, step, budget, alpha, kept):
    """Return whether a live text can still become one of the `kept` best."""
    if step == budget or not live:
        return False
    if len(found) < kept:
        return True
    worst = sorted(f[0] for f in found)[-kept]
    lengths = range(step + 1, budget + 1)
    return any(scored(total, n, alpha) > worst for _, total in live for n in lengths)


def check_row(found, row, expected):
    """Compare one row of `Beams` with the first texts of `slow_beams`."""
    for r in range(found.score.shape[1]):
        score, total, text, stopped = expected[r]
        count = int(found.num_tokens[row, r])
        token_ids = np.asarray(found.token_ids)[row, r]
        assert token_ids[:count].tolist() == list(text)
        assert np.all(token_ids[count:] == PAD)
        assert bool(found.stopped[row, r]) == stopped
        np.testing.assert_allclose(found.log_probability[row, r], total, atol=2e-4)
        np.testing.assert_allclose(found.score[row, r], score, atol=2e-4)


def same(one, other, atol=2e-4):
    for name in ("token_ids", "num_tokens", "stopped"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("log_probability", "score"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=atol)


def search(
    model,
    ids,
    lengths,
    budget,
    width,
    stop=STOP,
    alpha=1.0,
    groups=1,
    penalty=0.0,
    kept=None,
    bias=None,
    **options,
):
    """Run `beam_search` with the arguments of `slow_beams` and return every text that it keeps."""
    bias = None if bias is None else bias[None]
    sampling = generation.Sampling(logit_bias=bias)
    return beam.beam_search(
        model,
        generation.make_request(model, ids, lengths, budget, sampling),
        width,
        stop,
        PAD,
        length_penalty=alpha,
        num_return_sequences=kept or width,
        diversity_groups=groups,
        diversity_penalty=penalty,
        capacity=budget,
        **options,
    )


SEARCHES = {
    "no stop": dict(budget=5, width=3, stop=-1),
    "stops": dict(budget=6, width=4),
    "short texts preferred": dict(budget=6, width=3, alpha=0.0),
    "long texts preferred": dict(budget=6, width=3, alpha=2.5),
    "negative length penalty": dict(budget=5, width=3, alpha=-1.5),
    "groups": dict(budget=5, width=6, groups=3, penalty=0.7),
    "groups of one beam": dict(budget=5, width=3, groups=3, penalty=1.5, alpha=0.6),
    "groups without a penalty": dict(budget=4, width=4, groups=2),
}


@pytest.fixture(scope="module")
def references(model):
    ids, lengths = prompts()
    return [Reference(model, ids[row, :length], LIKELY_STOP) for row, length in enumerate(lengths)]


@pytest.mark.parametrize("name", SEARCHES)
def test_beam_search_matches_reference(model, references, name):
    case = SEARCHES[name]
    ids, lengths = prompts()
    found = search(model, ids, lengths, **case, bias=LIKELY_STOP)
    for row, reference in enumerate(references):
        check_row(found, row, slow_beams(reference, **case)[0])


def test_search_cases_differ(references):
    found = {
        name: [slow_beams(reference, **case)[0] for reference in references]
        for name, case in SEARCHES.items()
    }
    assert len({tuple(rows[0][2] for rows in texts) for texts in found.values()}) > 3
    assert {text[3] for texts in found["stops"] for text in texts} == {True, False}
    assert all(len({text[2] for text in texts}) == 3 for texts in found["groups of one beam"])


@pytest.mark.parametrize("alpha, kept", [(0.0, 2), (1.0, 2), (1.0, 1), (-2.0, 1)])
def test_search_stops_when_no_beam_can_improve(model, references, alpha, kept, monkeypatch):
    ids, lengths = prompts()
    steps, needed, decode = [], [], models.decode

    def counted(*arguments):
        steps.append(arguments)
        return decode(*arguments)

    monkeypatch.setattr(models, "decode", counted)
    for row, length in enumerate(lengths):
        expected, count = slow_beams(references[row], 12, 2, alpha=alpha, kept=kept)
        needed.append(count)
        steps.clear()
        alone = ids[row : row + 1, :length], lengths[row : row + 1]
        found = search(model, *alone, 12, 2, alpha=alpha, kept=kept, bias=LIKELY_STOP)
        check_row(found, 0, expected)
        assert len(steps) == count - 1  # the prefill gives the logits of the first step
    assert min(needed) < 12


@pytest.mark.parametrize(
    "alpha, settings",
    [
        (0.0, {}),
        (1.0, {}),
        (3.0, {}),
        (1.0, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 5}),
        (1.0, {"forced_tokens": np.array([[7, -1, 9]]), "logit_bias": LIKELY_STOP[None]}),
    ],
)
def test_one_beam_equals_greedy_decoding(model, alpha, settings):
    ids, lengths = prompts(1, rows=6)
    sampling, budget = generation.Sampling(0.0, **settings).tensors(), np.array([9], "int32")
    greedy = generation.generate(model, ids, lengths, budget, sampling, STOP, PAD)
    request = generation.make_request(model, ids, lengths, 9, sampling)
    found = beam.beam_search(model, request, 1, STOP, PAD, alpha)
    width = np.asarray(greedy.token_ids).shape[1]
    np.testing.assert_array_equal(np.asarray(found.token_ids)[:, 0, :width], greedy.token_ids)
    np.testing.assert_array_equal(found.num_tokens[:, 0], greedy.num_tokens)
    np.testing.assert_array_equal(found.stopped[:, 0], greedy.stopped)
    if settings:
        return  # beams have the log-probabilities of the processed logits
    going = ~np.asarray(greedy.stopped)
    np.testing.assert_allclose(
        np.asarray(found.log_probability)[going, 0],
        np.asarray(greedy.log_probability)[going],
        atol=1e-4,
    )


def test_rows_are_independent(model):
    ids, lengths = prompts(2, rows=5)

    def some(rows, length):
        return search(
            model,
            ids[rows, :length],
            lengths[rows],
            6,
            4,
            groups=2,
            penalty=0.4,
            kept=3,
            bias=LIKELY_STOP,
        )

    together = some(slice(None), 7)
    for row, length in enumerate(lengths):
        alone = some(slice(row, row + 1), length)
        same(alone, beam.Beams(*(field[row : row + 1] for field in together)))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_exhaustive_beam_finds_every_text(alpha):
    model, size, budget = build(vocabulary_size=5, initializer_range=0.4, num_layers=1), 5, 3
    prompt = np.array([[3, 4, 1, 4]], "int32")
    texts = [
        tokens
        for n in range(1, budget + 1)
        for tokens in itertools.product(range(size), repeat=n)
        if STOP not in tokens[:-1] and (n == budget or tokens[-1] == STOP)
    ]
    reference = Reference(model, prompt[0])
    every = []
    for tokens in texts:
        total = sum(reference([tokens[:i]])[0][token] for i, token in enumerate(tokens))
        stopped = tokens[-1] == STOP
        score = scored(total, len(tokens), alpha)
        every.append((score, total, tokens[: len(tokens) - stopped], stopped))
    every.sort(key=lambda text: -text[0])
    assert len(every) == 85 and abs(sum(np.exp(text[1]) for text in every) - 1) < 1e-6
    found = search(model, prompt, np.array([4]), budget, size**budget, alpha=alpha, kept=90)
    check_row(beam.Beams(*(field[:, :85] for field in found)), 0, every)
    assert np.all(np.isneginf(np.asarray(found.score)[0, 85:]))
    assert np.all(np.isneginf(np.asarray(found.log_probability)[0, 85:]))
    assert np.all(np.asarray(found.num_tokens)[0, 85:] == 0)


@pytest.mark.parametrize("removed", [-1e30, -np.inf])
def test_banned_tokens_are_never_generated(model, removed):
    bias = np.where(np.isin(np.arange(SIZE), [5, 6]), 0.0, removed).astype("float32")
    ids, lengths = prompts(rows=2)
    found = search(model, ids, lengths, 2, 6, bias=bias)
    texts = np.asarray(found.token_ids)
    for row in range(2):
        assert sorted(texts[row, :4].tolist()) == [[5, 5], [5, 6], [6, 5], [6, 6]]
        assert np.isclose(np.exp(np.asarray(found.log_probability)[row, :4]).sum(), 1.0)
    assert np.all(np.isneginf(np.asarray(found.score)[:, 4:]))


def test_texts_end_at_max_length():
    model = build(max_length=10, num_layers=1)
    ids, lengths = prompts(4, longest=8)
    found = search(model, ids, lengths, 9, 3, stop=-1, kept=2)
    for row, length in enumerate(lengths):
        budget = min(9, 10 - length)
        expected, _ = slow_beams(Reference(model, ids[row, :length]), budget, 3, stop=-1)
        check_row(found, row, expected)


def test_ring_cache_is_reordered_with_the_beams(windowed):
    ids, lengths = prompts(5)
    found = search(windowed, ids, lengths, 8, 4, bias=LIKELY_STOP)
    for row, length in enumerate(lengths):
        reference = Reference(windowed, ids[row, :length], LIKELY_STOP)
        expected, _ = slow_beams(reference, 8, 4)
        check_row(found, row, expected)


def test_encoder_decoder_searches_each_source(translator):
    sources = np.array([[5, 9, 4, 7], [8, 3, 0, 0], [6, 6, 11, 0]], "int32")
    starts = np.full((3, 1), translator.config.start_id, "int32")
    encoder_cache = models.encode_source(translator, sources)
    found = search(
        translator,
        starts,
        np.ones(3, "int32"),
        6,
        3,
        bias=LIKELY_STOP,
        encoder_cache=encoder_cache,
    )
    for row, source in enumerate(sources):
        reference = Reference(translator, starts[row], LIKELY_STOP, source)
        check_row(found, row, slow_beams(reference, 6, 3)[0])
    assert len({str(texts) for texts in np.asarray(found.token_ids).tolist()}) == 3


def test_compiled_search_equals_eager():
    """The model has a ring cache and an encoder cache."""
    depth = {"num_layers": 1, "num_decoder_layers": 1}
    model = build("t5-tiny", start_id=1, sliding_window=3, **depth)
    options = {"groups": 2, "penalty": 0.5, "alpha": 0.8, "kept": 3, "bias": LIKELY_STOP}

    def function(ids, lengths):
        encoder_cache = models.encode_source(model, ids)
        return search(model, ids, lengths, 7, 4, encoder_cache=encoder_cache, **options)

    compiled = tf.function(function, jit_compile=True)
    same(function(*prompts(6)), compiled(*prompts(6)))


@pytest.mark.parametrize(
    "name, value",
    [
        ("beam_width", 0),
        ("beam_width", True),
        ("num_return_sequences", 5),
        ("num_return_sequences", 0),
        ("diversity_groups", 3),
        ("diversity_groups", 0),
        ("diversity_penalty", -0.1),
        ("diversity_penalty", float("nan")),
        ("length_penalty", float("nan")),
        ("length_penalty", float("inf")),
        ("length_penalty", "1"),
    ],
)
def test_invalid_arguments_raise(model, name, value):
    request = generation.make_request(model, *prompts(), 3)
    arguments = {"beam_width": 4, name: value}
    with pytest.raises(InputError, match=f"beam_search: `{name}` must .*{value}"):
        beam.beam_search(model, request, stop_id=STOP, pad_id=PAD, **arguments)


@pytest.mark.parametrize("value", [0, 2.0, True])
def test_invalid_max_new_tokens_raises(model, value):
    with pytest.raises(InputError, match=f"make_request: `max_new_tokens` must .*{value}"):
        generation.make_request(model, *prompts(), value)
