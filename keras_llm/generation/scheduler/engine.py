"""Slots for requests: who is served, who waits, and what becomes of each."""

import collections
import concurrent.futures
import numbers
import queue
import threading

import numpy as np

from keras_llm.errors import InputError
from keras_llm.generation.sampling import NOT_NUMBERS, SETTINGS, Sampling, check_top_k, dtype_of
from keras_llm.generation.scheduler.ticket import Ticket

_SMALLEST = 16  # tokens; shorter prompts share this width
_IDLE = Sampling(temperature=0.0)  # of an empty slot: what costs least


class Engine:
    """Serve many requests with one model, a decode step of all of them at a time.

    A request takes a slot as soon as one is free, is read alone, and leaves when its text has come
    to its end, while the others go on. Its tokens are those that `generate` gives for it alone.

    Prompts are padded to the next power of two and one graph is compiled for each such width, when
    it first comes; decoding is compiled once. Leave a `with` block or call `close` when done.

    Args:
        model: a model from `models.causal_lm`. Its weights must stay as they are.
        stop_id: int, the token that ends a text.
        max_batch: int > 0. The slots; a turn costs about the same however many are taken.
        max_length: int. The longest prompt and new tokens together; None means the model's
            `max_length`. Memory is taken for `max_batch` times so many tokens, and every step
            reads it, so a length no longer than needed is faster too.
        max_waiting: int > 0. How many requests may wait for a slot.
        steps_per_turn: int > 0. Tokens that are decoded before a request can come or go: more
            of them cost less each, and let a newcomer wait longer.
        jit_compile: bool. False runs the same graphs without XLA.

    Attributes:
        traces: dict, how often "admit" (once for each width) and "turn" (once) were traced.

    Raises:
        InputError: if an argument is out of range, or Keras runs on another backend than
            TensorFlow.

    Example:
    >>> from keras_llm import generation, models
    >>> model = models.causal_lm(models.preset("gpt-tiny", vocabulary_size=50))
    >>> with Engine(model, stop_id=2, max_batch=2, max_length=32) as engine:
    ...     tickets = [engine.submit([5, 6, 7], max_new_tokens=n) for n in (1, 2, 3)]
    ...     all(len(ticket.result()) <= 3 for ticket in tickets)
    True

    Reference:
        Yu et al., 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
        Models" (iteration-level scheduling).
    """

    def __init__(
        self,
        model,
        stop_id,
        max_batch=8,
        max_length=None,
        max_waiting=64,
        steps_per_turn=4,
        jit_compile=True,
    ):
        from keras_llm.generation.scheduler.tensorflow import CompiledSteps

        config = model.config
        max_length = config.max_length if max_length is None else max_length
        sizes = {
            "max_batch": max_batch,
            "max_length": max_length,
            "max_waiting": max_waiting,
            "steps_per_turn": steps_per_turn,
        }
        for name, value in sizes.items():
            if not _is_int(value) or value < 1:
                raise InputError(f"Engine: `{name}` must be a positive int, got {value!r}.")
        if not 1 < max_length <= config.max_length:
            raise InputError(
                f"Engine: `max_length` must be in 2 .. {config.max_length} (the model's), "
                f"got {max_length}."
            )
        self._vocabulary_size = config.vocabulary_size
        self._stop_id = stop_id
        self._max_length = max_length
        self._max_waiting = max_waiting
        self._steps = CompiledSteps(
            model, max_batch, max_length, steps_per_turn, stop_id, jit_compile
        )
        self._tickets = [None] * max_batch  # of the slots
        self._lengths = np.ones(max_batch, "int32")
        self._counts = np.zeros(max_batch, "int32")
        self._budgets = np.zeros(max_batch, "int32")
        self._settings = [np.repeat(value, max_batch) for value in _settings(_IDLE)]

        self._changed = threading.Condition()  # guards what follows
        self._waiting = collections.deque()
        self._closed = False
        self._error = None
        self._thread = threading.Thread(target=self._serve, name="keras_llm engine", daemon=True)
        self._thread.start()

    @property
    def traces(self):
        return dict(self._steps.traces)

    def submit(self, token_ids, max_new_tokens, sampling=None, on_token=None):
        """Ask for the continuation of a prompt.

        Args:
            token_ids: sequence of int, the prompt, shorter than `max_length`.
            max_new_tokens: int > 0. Fewer come where `max_length` is reached.
            sampling: `Sampling` of Python numbers; None means the defaults. `logit_bias` and
                `forced_tokens` must be None.
            on_token: function that is called with each new token as it comes, in the engine's
                thread: the other requests wait for it. What it raises ends this request.

        Returns:
            A `Ticket`.

        Raises:
            InputError: naming the argument that is wrong.
            queue.Full: if `max_waiting` requests are waiting.
            RuntimeError: if the engine is closed.
        """
        sampling = Sampling() if sampling is None else sampling
        prompt, budget = self._checked(token_ids, max_new_tokens)
        ticket = Ticket(prompt, budget, _settings(sampling), on_token)
        check_top_k(sampling.top_k, self._vocabulary_size)
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed.") from self._error
            self._forget_done()
            if len(self._waiting) >= self._max_waiting:
                raise queue.Full(
                    f"{len(self._waiting)} requests are waiting, as many as `max_waiting` allows; "
                    "try again later."
                )
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def close(self, finish=False):
        """Take no more requests, and wait until the engine has come to rest.

        Args:
            finish: bool. True serves what has been submitted; False cancels it.
        """
        with self._changed:
            self._closed = True
            if not finish:
                self._end_all(concurrent.futures.CancelledError())
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # `on_token` may close
            self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        """Serve what has been submitted; after an exception, cancel it."""
        self.close(finish=kind is None)

    def _checked(self, token_ids, max_new_tokens):
        """The prompt as an array (T,), and the budget."""
        prompt = np.asarray(token_ids)
        if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
            raise InputError(
                "`token_ids` must be one or more ints in one row, got shape "
                f"{prompt.shape} of {prompt.dtype}."
            )
        if prompt.min() < 0 or prompt.max() >= self._vocabulary_size:
            raise InputError(
                f"`token_ids` must be in 0 .. {self._vocabulary_size - 1}, "
                f"got {prompt.min()} .. {prompt.max()}."
            )
        if len(prompt) >= self._max_length:
            raise InputError(
                f"`token_ids` must be fewer than `max_length`={self._max_length}, "
                f"got {len(prompt)}."
            )
        if not _is_int(max_new_tokens) or max_new_tokens < 1:
            raise InputError(f"`max_new_tokens` must be a positive int, got {max_new_tokens!r}.")
        return prompt.astype("int32"), min(max_new_tokens, self._max_length - len(prompt))

    def _serve(self):
        """What the engine's thread does."""
        try:
            while self._wait_for_work():
                while (slot := self._free_slot()) is not None and self._take(slot):
                    self._admit(slot)
                if any(self._tickets):
                    self._turn()
        except BaseException as error:  # nobody shall wait for a thread that is gone
            broken = RuntimeError(f"the engine broke: {error}")
            broken.__cause__ = error
            with self._changed:
                self._closed, self._error = True, broken
                self._end_all(broken)

    def _wait_for_work(self):
        """Whether there is any; False when the engine is closed and has none left."""

        def has_work():
            return self._waiting or any(self._tickets)

        with self._changed:
            self._changed.wait_for(lambda: self._closed or has_work())
            return bool(has_work())

    def _free_slot(self):
        for slot, ticket in enumerate(self._tickets):
            if ticket is not None and ticket.done():  # cancelled
                self._free(slot)
        return self._tickets.index(None) if None in self._tickets else None

    def _take(self, slot):
        """Give the slot to the next in the queue, if there is one."""
        with self._changed:
            self._forget_done()
            if self._waiting:
                self._tickets[slot] = self._waiting.popleft()
            return self._tickets[slot] is not None

    def _admit(self, slot):
        ticket = self._tickets[slot]
        length = len(ticket._prompt)
        width = min(max(_SMALLEST, 1 << (length - 1).bit_length()), self._max_length)
        padded = np.zeros((1, width), "int32")
        padded[0, :length] = ticket._prompt
        self._lengths[slot], self._budgets[slot] = length, ticket._budget
        for values, value in zip(self._settings, ticket._settings, strict=True):
            values[slot] = value[0]
        token = self._steps.admit(slot, padded, np.array([length], "int32"), ticket._settings)
        self._deliver(slot, [token])

    def _turn(self):
        tokens = self._steps.turn(self._lengths, self._counts, self._budgets, self._settings)
        for slot, ticket in enumerate(self._tickets):
            if ticket is not None:
                self._deliver(slot, tokens[slot].tolist())

    def _deliver(self, slot, tokens):
        """Hand new tokens out; the slot is free again where the text ends."""
        ticket = self._tickets[slot]
        for token in tokens:
            if token < 0:
                ticket._end(error=InputError(NOT_NUMBERS))
                break
            if token == self._stop_id:
                ticket._end("stop")
                break
            ticket._add(token)
            self._counts[slot] += 1
            if self._counts[slot] == self._budgets[slot]:
                ticket._end("length")
                break
        if ticket.done():
            self._free(slot)

    def _free(self, slot):
        self._tickets[slot] = None
        self._lengths[slot], self._counts[slot], self._budgets[slot] = 1, 0, 0
        for values, value in zip(self._settings, _settings(_IDLE), strict=True):
            values[slot] = value[0]

    def _forget_done(self):
        """Those that were cancelled wait no longer."""
        self._waiting = collections.deque(t for t in self._waiting if not t.done())

    def _end_all(self, error):
        for ticket in [*self._waiting, *self._tickets]:
            if ticket is not None:
                ticket._end(error=error)


def _settings(sampling):
    """The settings that are numbers, as arrays (1,) in the order of `SETTINGS`; InputError names
    one that is wrong."""
    sampling.validate()
    for name in sorted(set(Sampling._fields) - set(SETTINGS)):
        if getattr(sampling, name) is not None:
            raise InputError(f"`{name}` must be None, an engine does not serve it.")
    arrays = []
    for name in SETTINGS:
        value = getattr(sampling, name)
        try:
            arrays.append(np.array([value], dtype_of(name)))
        except OverflowError as error:
            raise InputError(f"`{name}` must be an int of 32 bits, got {value!r}.") from error
    return arrays


def _is_int(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
