"""Continuous batching: a request's tokens equal those of `generate`, whatever else runs."""

import concurrent.futures
import functools
import queue
import threading

import keras
import numpy as np
import pytest

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import Sampling
from keras_llm.generation.compiled import CompiledGenerator
from keras_llm.generation.scheduler import Engine

V, STOP, PAD, LENGTH = 31, 2, 0, 30
LONG = 28  # new tokens of a request that runs while others join and leave
WAIT = 120  # timeout in seconds
GREEDY = Sampling(temperature=0.0)


def model_of(preset, num_layers, **options):
    keras.utils.set_random_seed(3)
    config = models.preset(
        preset,
        vocabulary_size=V,
        max_length=LENGTH,
        num_layers=num_layers,
        tie_embeddings=False,  # with a tied head, a random model repeats the last token
        initializer_range=0.3,
        **options,
    )
    return models.causal_lm(config)


@pytest.fixture(scope="module")
def model():
    return model_of("llama-tiny", 1)


@pytest.fixture(scope="module")
def engine(model):
    """An engine with three slots."""
    with Engine(model, STOP, max_batch=3, steps_per_turn=4) as engine:
        yield engine


@functools.cache
def one_graph(model):
    """`generate`, traced once for all requests."""
    return CompiledGenerator(model, STOP, PAD, jit_compile=False)


def alone(model, prompt, max_new_tokens, sampling):
    """Return the tokens of `generate` for one request, without the stop token, and the reason."""
    state = one_graph(model).generate(
        np.array([prompt], "int32"),
        np.array([len(prompt)], "int32"),
        np.array([max_new_tokens], "int32"),
        sampling,
    )
    count = int(state.num_tokens[0])
    reason = "stop" if state.stopped[0] else "length"
    return np.asarray(state.token_ids)[0, :count].tolist(), reason


def requests(count):
    """Prompts of different lengths, budgets up to and beyond `max_length`, and various settings."""
    rng = np.random.default_rng(7)
    settings = [
        GREEDY,
        Sampling(temperature=1.0, seed=4),
        Sampling(temperature=1.3, top_k=9, top_p=0.8, seed=-1),
        Sampling(temperature=0.8, min_p=0.05, typical_p=0.9, seed=8),
        Sampling(temperature=0.0, repetition_penalty=1.5, min_new_tokens=6),
        Sampling(temperature=1.0, no_repeat_ngram_size=2, frequency_penalty=0.5, seed=5),
    ]
    return [
        (
            rng.integers(3, V, rng.integers(1, LENGTH)).tolist(),
            int(rng.integers(1, LENGTH)),
            settings[i % len(settings)],
        )
        for i in range(count)
    ]


def outcome(ticket):
    return ticket.result(WAIT), ticket.finish_reason


@pytest.fixture(scope="module")
def long_one(model):
    """A prompt with a long greedy text, and the tokens of that."""
    for first in range(3, V):
        tokens, _ = alone(model, [first], LONG, GREEDY)
        if len(tokens) == LONG:
            return [first], tokens
    raise AssertionError("no prompt has a long text")


def check_all(model, engine, submitted):
    tickets = [engine.submit(*request) for request in submitted]
    outcomes = [outcome(ticket) for ticket in tickets]
    assert outcomes == [alone(model, *request) for request in submitted]
    assert {reason for _, reason in outcomes} == {"stop", "length"}
    assert engine.traces["turn"] == 1
    assert engine.traces["admit"] <= 2  # widths 16 and 29, the longest prompt


def test_requests_are_independent(model, engine):
    """12 requests share 3 slots."""
    check_all(model, engine, requests(12))


def test_requests_are_independent_with_sliding_windows():
    options = {"sliding_window": 4, "num_sink_tokens": 2, "window_pattern": "SL"}
    model = model_of("gemma3-tiny", 2, **options)
    with Engine(model, STOP, max_batch=3, steps_per_turn=3, jit_compile=False) as engine:
        check_all(model, engine, requests(8))


def test_new_request_joins_while_others_run(model, engine, long_one):
    prompt, expected = long_one
    has_started, is_submitted = threading.Event(), threading.Event()
    at_end_of_short = []

    def on_token(token):
        has_started.set()
        assert is_submitted.wait(WAIT)

    long = engine.submit(prompt, LONG, GREEDY, on_token)
    assert has_started.wait(WAIT)
    short = engine.submit([5, 6, 7], 2, GREEDY, lambda _: at_end_of_short.append(long.done()))
    is_submitted.set()
    assert outcome(short) == alone(model, [5, 6, 7], 2, GREEDY)
    assert at_end_of_short and not any(at_end_of_short)
    assert outcome(long) == (expected, "length")


def test_free_slot_is_reused_while_others_run(model, engine, long_one):
    """Two long and six short requests share three slots."""
    prompt, expected = long_one
    done_of_long, submitted = [], threading.Event()
    longs = [engine.submit(prompt, LONG, GREEDY, lambda _: submitted.wait(WAIT)) for _ in range(2)]
    shorts = [
        engine.submit([n], 2, GREEDY, lambda _: done_of_long.append(longs[0].done()))
        for n in range(10, 16)
    ]
    submitted.set()
    for n, short in zip(range(10, 16), shorts, strict=True):
        assert outcome(short) == alone(model, [n], 2, GREEDY)
    assert [outcome(long) for long in longs] == [(expected, "length")] * 2
    assert not any(done_of_long)


def test_tokens_are_streamed(engine, long_one):
    prompt, expected = long_one
    has_read, seen = threading.Event(), []

    def on_token(token):
        seen.append(token)
        if len(seen) == 3:  # the engine waits here for the reader
            assert has_read.wait(WAIT)

    ticket = engine.submit(prompt, LONG, GREEDY, on_token)
    tokens = iter(ticket)
    assert [next(tokens) for _ in range(3)] == expected[:3]
    assert not ticket.done()
    with pytest.raises(TimeoutError):
        ticket.result(timeout=0)
    has_read.set()
    assert list(tokens) == expected[3:]
    assert list(ticket) == seen == expected


def test_cancel_running_request(model, engine, long_one):
    prompt, expected = long_one
    tickets, submitted = [], threading.Event()

    def cancel_at_third(token):
        assert submitted.wait(WAIT)
        if len(tickets[0]._tokens) == 3:
            assert tickets[0].cancel()

    tickets.append(engine.submit(prompt, LONG, GREEDY, cancel_at_third))
    other_requests = requests(4)
    others = [engine.submit(*request) for request in other_requests]
    submitted.set()
    with pytest.raises(concurrent.futures.CancelledError):
        tickets[0].result(WAIT)
    got = []
    with pytest.raises(concurrent.futures.CancelledError):
        for token in tickets[0]:
            got.append(token)
    assert got == expected[:3]
    assert not tickets[0].cancel()
    for ticket, request in zip(others, other_requests, strict=True):
        assert outcome(ticket) == alone(model, *request)


def narrow_engine(model):
    return Engine(model, STOP, max_batch=1, max_waiting=1, jit_compile=False)


def test_full_queue_cancel_and_exception(model):
    """With one slot and one place in the queue, the third request is rejected until the second is
    cancelled. Then an exception leaves the `with` block while a request runs."""
    with pytest.raises(KeyError), narrow_engine(model) as narrow:
        check_waiting(model, narrow)
        tickets, submitted = [], threading.Event()

        def on_token(token):
            assert submitted.wait(WAIT)
            tickets[0].result(WAIT)  # ends only when it is cancelled

        tickets.append(narrow.submit([5], 20, GREEDY, on_token))
        submitted.set()
        raise KeyError
    with pytest.raises(concurrent.futures.CancelledError):
        tickets[0].result(WAIT)


def check_waiting(model, narrow):
    has_started, go_on = threading.Event(), threading.Event()

    def on_token(token):
        has_started.set()
        assert go_on.wait(WAIT)

    running = narrow.submit([5], 3, GREEDY, on_token)
    assert has_started.wait(WAIT)
    waiting = narrow.submit([6], 3, GREEDY)
    with pytest.raises(queue.Full, match="1 requests are waiting"):
        narrow.submit([7], 3, GREEDY)
    assert waiting.cancel()
    third = narrow.submit([7], 3, GREEDY)
    go_on.set()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result(WAIT)
    assert outcome(running) == alone(model, [5], 3, GREEDY)
    assert outcome(third) == alone(model, [7], 3, GREEDY)


@pytest.mark.parametrize(
    "request_, message",
    [
        (([], 3), "`token_ids` must be a non-empty sequence of ints"),
        (([1.5], 3), "`token_ids` must be a non-empty sequence of ints"),
        (([V], 3), "`token_ids` must be in 0 .. 30, got 31"),
        (([5] * LENGTH, 3), "`token_ids` must be shorter than `max_length`=30, got 30"),
        (([5], 0), "`max_new_tokens`"),
        (([5], 3, Sampling(temperature=-1.0)), "`temperature`"),
        (([5], 3, Sampling(top_k=2**40)), "`top_k` must be .* int"),
        (([5], 3, Sampling(forced_tokens=[[4]])), "`forced_tokens` must be None"),
    ],
)
def test_invalid_request_raises_and_others_continue(model, engine, request_, message):
    before = engine.submit([5, 6], 4, GREEDY)
    with pytest.raises(InputError, match=message):
        engine.submit(*request_)
    after = engine.submit([7], 4, GREEDY)
    assert outcome(before) == alone(model, [5, 6], 4, GREEDY)
    assert outcome(after) == alone(model, [7], 4, GREEDY)


def test_exception_of_on_token_ends_only_its_request(model, engine):
    def on_token(token):
        raise LookupError("no listener")

    good = engine.submit([5, 6], 4, GREEDY)
    bad = engine.submit([5, 6], 4, GREEDY, on_token)
    with pytest.raises(LookupError, match="no listener"):
        bad.result(WAIT)
    assert outcome(good) == alone(model, [5, 6], 4, GREEDY)


def test_longest_prompt(model, engine):
    prompt = [5, 6, *[5, 6, 7] * 9]
    assert len(prompt) == LENGTH - 1
    assert outcome(engine.submit(prompt, 10, GREEDY)) == alone(model, prompt, 10, GREEDY)


def test_close_cancels_pending_requests(model):
    engine = Engine(model, STOP, max_batch=1, max_length=24, jit_compile=False)
    submitted = threading.Event()

    def on_token(token):
        assert submitted.wait(WAIT)
        engine.close()

    tickets = [engine.submit([5], 20, GREEDY, on_token), engine.submit([6], 20)]
    submitted.set()
    for ticket in tickets:
        with pytest.raises(concurrent.futures.CancelledError):
            ticket.result(WAIT)
    engine.close()
    assert not engine._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([5], 3)


def test_leaving_the_with_block_completes_pending_requests(model):
    with Engine(model, STOP, max_batch=1, max_length=24, jit_compile=False) as engine:
        tickets = [engine.submit([n], 30, GREEDY) for n in (5, 6, 7)]
    assert all(ticket.done() for ticket in tickets)
    for n, ticket in zip((5, 6, 7), tickets, strict=True):
        assert ticket.result() == alone(model, [n], 23, GREEDY)[0]  # the engine's `max_length`


def test_engine_failure_ends_all_requests(model):
    def on_token(token):
        assert submitted.wait(WAIT)
        raise SystemExit("raised in the engine's thread")

    submitted = threading.Event()
    engine = Engine(model, STOP, max_batch=1, max_length=24, jit_compile=False)
    tickets = [engine.submit([5], 20, GREEDY, on_token), engine.submit([6], 20)]
    submitted.set()
    for ticket in tickets:
        with pytest.raises(RuntimeError, match="failed: raised in"):
            ticket.result(WAIT)
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit([5], 3)
    engine.close()


def test_nan_logits_raise(model):
    broken = models.causal_lm(model.config)
    broken.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    with Engine(broken, STOP, max_batch=2, max_length=24, jit_compile=False) as engine:
        with pytest.raises(InputError, match="not numbers"):
            engine.submit([5, 6], 3).result(WAIT)
        with pytest.raises(InputError, match="not numbers"):
            engine.submit([7], 3, GREEDY).result(WAIT)


def test_nan_of_previous_request_does_not_remain_in_slot():
    """Position 16 and later have NaN embeddings, which only the long prompt reaches."""
    model = model_of("gpt-tiny", 1)
    table = next(w for w in model.weights if "position_embedding" in w.path)
    table.assign(np.where(np.arange(LENGTH)[:, None] < 16, table.numpy(), np.nan))
    healthy = [
        ([n], 9, Sampling(temperature=1.5, min_new_tokens=2, seed=seed))
        for n in range(3, 8)
        for seed in range(5)
    ]
    with Engine(model, STOP, max_batch=1, jit_compile=False) as engine:
        before = [outcome(engine.submit(*request)) for request in healthy]
        # The long request records NaN at its new tokens 2 .. 4.
        stopped = [i for i, (ids, why) in enumerate(before) if why == "stop" and 2 <= len(ids) <= 4]
        assert stopped
        for i in [stopped[0], 0]:
            with pytest.raises(InputError, match="not numbers"):
                engine.submit([5] * 15, 9, GREEDY).result(WAIT)
            assert outcome(engine.submit(*healthy[i])) == before[i]


@pytest.mark.parametrize("name", ["max_batch", "max_length", "max_waiting", "steps_per_turn"])
def test_invalid_arguments_raise(model, name):
    with pytest.raises(InputError, match=f"`{name}`"):
        Engine(model, STOP, **{name: 0})
    if name == "max_length":
        with pytest.raises(InputError, match=r"2 .. 30 .*got 31"):
            Engine(model, STOP, max_length=LENGTH + 1)
