"""Schedule requests: assign slots, queue requests and deliver tokens."""

import collections
import concurrent.futures
import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from keras_llm.errors import InputError
from keras_llm.generation.checks import check_count
from keras_llm.generation.loop import Request
from keras_llm.generation.sampling import NOT_NUMBERS, SETTINGS, Sampling, check_top_k, dtype_of
from keras_llm.generation.scheduler.ticket import Ticket
from keras_llm.models import CausalLM

_SMALLEST = 16  # tokens; shorter prompts are padded to this width


class Engine:
    """A continuous batching engine: one model serves many requests.

    A request takes a slot as soon as one is free, is prefilled alone, and leaves when its text
    ends, while the other requests continue. Its tokens are the same as those `generate` returns
    for it alone.

    Prompts are padded to the next power of two. Prefill is compiled once per padded width, on
    first use; decoding is compiled once. Use a `with` block, or call `close` when done.

    Args:
        model: a model from `models.causal_lm`. Its weights must not change.
        stop_id: int. Stop token.
        max_batch: int > 0. The number of slots. The cost of a decode step hardly depends on how
            many of them are in use.
        max_length: int. Maximum length of prompt and new tokens together; None means the model's
            `max_length`. The cache holds `max_batch * max_length` tokens and every step reads all
            of it, so a smaller value saves memory and time.
        max_waiting: int > 0. Maximum number of requests that wait for a slot.
        steps_per_turn: int > 0. Decode steps between two points at which requests can join or
            leave: more steps cost less per token but delay new requests.
        jit_compile: bool. False runs the same graphs without XLA.

    Attributes:
        traces: dict, the number of traces of "admit" (one per padded width) and "turn" (one).

    Raises:
        InputError: if an argument is out of range, or the Keras backend is not TensorFlow.

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
        model: CausalLM,
        stop_id: int,
        max_batch: int = 8,
        max_length: int | None = None,
        max_waiting: int = 64,
        steps_per_turn: int = 4,
        jit_compile: bool = True,
    ) -> None:
        from keras_llm.generation.scheduler.tensorflow import Slots

        config = model.config
        max_length = config.max_length if max_length is None else max_length
        sizes = {
            "max_batch": max_batch,
            "max_length": max_length,
            "max_waiting": max_waiting,
            "steps_per_turn": steps_per_turn,
        }
        for name, value in sizes.items():
            check_count("Engine", name, value)
        if not 1 < max_length <= config.max_length:
            raise InputError(
                f"Engine: `max_length` must be in 2 .. {config.max_length} (the model's), "
                f"got {max_length}."
            )
        self._vocabulary_size = config.vocabulary_size
        self._max_length = max_length
        self._max_waiting = max_waiting
        self._slots = Slots(model, max_batch, max_length, steps_per_turn, stop_id, jit_compile)
        self._tickets: list[Ticket | None] = [None] * max_batch  # by slot

        self._changed = threading.Condition()  # guards the fields below
        self._waiting: collections.deque[Ticket] = collections.deque()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="keras_llm engine", daemon=True)
        self._thread.start()

    @property
    def traces(self) -> dict[str, int]:
        return dict(self._slots.traces)

    def submit(
        self,
        token_ids: Sequence[int] | np.ndarray,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        on_token: Callable[[int], object] | None = None,
    ) -> Ticket:
        """Submit a request.

        Args:
            token_ids: sequence of int, the prompt, shorter than `max_length`.
            max_new_tokens: int > 0. The text also ends when `max_length` is reached.
            sampling: `Sampling` of Python numbers; None means the defaults. `logit_bias`,
                `forced_tokens` and `constraint` must be None.
            on_token: function called with each new token in the engine's thread; it blocks the
                other requests. An exception it raises ends this request.

        Returns:
            A `Ticket`.

        Raises:
            InputError: if an argument is invalid; the message names it.
            queue.Full: if `max_waiting` requests are already waiting.
            RuntimeError: if the engine is closed.
        """
        sampling = Sampling() if sampling is None else sampling
        prompt, budget = self._checked(token_ids, max_new_tokens)
        ticket = Ticket(self._request(prompt, budget, _arrays(sampling)), on_token)
        check_top_k(sampling.top_k, self._vocabulary_size)
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed.") from self._error
            self._forget_done()
            if len(self._waiting) >= self._max_waiting:
                raise queue.Full(
                    f"{len(self._waiting)} requests are waiting, the maximum (`max_waiting`); "
                    "try again later."
                )
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def close(self, finish: bool = False) -> None:
        """Reject new requests and wait until the engine has stopped.

        Args:
            finish: bool. True completes the submitted requests; False cancels them.
        """
        with self._changed:
            self._closed = True
            if not finish:
                self._end_all(concurrent.futures.CancelledError())
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:  # `on_token` may call `close`
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Complete the submitted requests; after an exception, cancel them."""
        self.close(finish=kind is None)

    def _checked(self, token_ids, max_new_tokens):
        """Check a prompt and return it as an array (T,) with its budget of new tokens."""
        prompt = np.asarray(token_ids)
        if prompt.ndim != 1 or not prompt.size or prompt.dtype.kind not in "iu":
            raise InputError(
                "`token_ids` must be a non-empty sequence of ints, got shape "
                f"{prompt.shape} and dtype {prompt.dtype}."
            )
        if prompt.min() < 0 or prompt.max() >= self._vocabulary_size:
            raise InputError(
                f"`token_ids` must be in 0 .. {self._vocabulary_size - 1}, "
                f"got {prompt.min()} .. {prompt.max()}."
            )
        if len(prompt) >= self._max_length:
            raise InputError(
                f"`token_ids` must be shorter than `max_length`={self._max_length}, "
                f"got {len(prompt)} tokens."
            )
        check_count("Engine", "max_new_tokens", max_new_tokens)
        return prompt.astype("int32"), min(max_new_tokens, self._max_length - len(prompt))

    def _request(self, prompt, budget, sampling):
        """Return a `Request` of arrays with one row, padded to a power of two."""
        length = len(prompt)
        width = min(max(_SMALLEST, 1 << (length - 1).bit_length()), self._max_length - 1)
        padded = np.zeros((1, width), "int32")
        padded[0, :length] = prompt
        return Request(padded, np.array([length], "int32"), np.array([budget], "int32"), sampling)

    def _serve(self):
        """Run the engine's thread."""
        try:
            while self._wait_for_work():
                while (slot := self._free_slot()) is not None and self._take(slot):
                    self._admit(slot)
                if any(self._tickets):
                    self._turn()
        except BaseException as error:  # a caller must not wait for a thread that has ended
            failure = RuntimeError(f"the engine failed: {error}")
            failure.__cause__ = error
            with self._changed:
                self._closed, self._error = True, failure
                self._end_all(failure)

    def _wait_for_work(self):
        """Wait for requests; return False if the engine is closed and has none left."""

        def has_work():
            return self._waiting or any(self._tickets)

        with self._changed:
            self._changed.wait_for(lambda: self._closed or has_work())
            return bool(has_work())

    def _free_slot(self):
        for slot, ticket in enumerate(self._tickets):
            if ticket is not None and ticket.done():  # cancelled
                self._tickets[slot] = None
        return self._tickets.index(None) if None in self._tickets else None

    def _take(self, slot):
        """Assign the slot to the next request in the queue, if there is one."""
        with self._changed:
            self._forget_done()
            if self._waiting:
                self._tickets[slot] = self._waiting.popleft()
            return self._tickets[slot] is not None

    def _admit(self, slot):
        outputs = self._slots.admit(slot, self._tickets[slot]._request)
        self._deliver(slot, *(output[0] for output in outputs))

    def _turn(self):
        outputs = self._slots.turn(np.array([ticket is not None for ticket in self._tickets]))
        for slot, ticket in enumerate(self._tickets):
            if ticket is not None:
                self._deliver(slot, *(output[slot] for output in outputs))

    def _deliver(self, slot, token_ids, log_probabilities, num_tokens, stopped):
        """Add the new tokens of a slot to its ticket; free the slot if the text has ended."""
        ticket = self._tickets[slot]
        begin = len(ticket._tokens)
        if np.isnan(log_probabilities[begin : num_tokens + stopped]).any():
            ticket._end(error=InputError(NOT_NUMBERS))
        for token in token_ids[begin:num_tokens].tolist():
            ticket._add(token)
        if stopped:
            ticket._end("stop")
        elif num_tokens == ticket._request.budget[0]:
            ticket._end("length")
        if ticket.done():
            self._tickets[slot] = None

    def _forget_done(self):
        """Remove cancelled requests from the queue."""
        self._waiting = collections.deque(t for t in self._waiting if not t.done())

    def _end_all(self, error):
        for ticket in [*self._waiting, *self._tickets]:
            if ticket is not None:
                ticket._end(error=error)


def _arrays(sampling):
    """Return a `Sampling` with the numeric settings as arrays (1,).

    Raises InputError if a setting is invalid.
    """
    sampling.validate()
    for name in sorted(set(Sampling._fields) - set(SETTINGS)):
        if getattr(sampling, name) is not None:
            raise InputError(f"`{name}` must be None; an engine does not support it.")
    arrays = {}
    for name in SETTINGS:
        value = getattr(sampling, name)
        try:
            arrays[name] = np.array([value], dtype_of(name))
        except OverflowError as error:
            raise InputError(f"`{name}` must be a 32-bit int, got {value!r}.") from error
    return Sampling(**arrays)
