"""Hold an engine's slots in TensorFlow variables and run the decode loop over them.

XLA updates the variables in place, so that a turn does not copy the cache.
"""

import functools

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import loop
from keras_llm.generation.sampling import SETTINGS, Sampling, choose, dtype_of
from keras_llm.types import Tensor

_PAD = 0  # any token id: what follows a text is never read
# Apply a function to the tensors of nested structures; None stays None.
_map = functools.partial(keras.tree.map_structure, none_is_leaf=False)
_IDLE = Sampling(temperature=0.0)  # the cheapest settings, for slots without a request


class Slots:
    """The `State` and `Request` of an engine, with one row per slot. Not thread-safe.

    Both methods return arrays from a `State`: `token_ids`, `token_log_probabilities`,
    `num_tokens` and `stopped`.

    Args:
        model: a model from `models.causal_lm`.
        num_slots: int. B.
        length: int. S, the tokens of a slot.
        num_steps: int. The maximum number of decode steps of a turn.
        stop_id: int. Stop token.
        jit_compile: bool. False runs the same graphs without XLA.

    Attributes:
        traces: dict, the number of traces of "admit" (one per prompt width) and "turn".

    Raises:
        InputError: if the Keras backend is not TensorFlow.
    """

    def __init__(
        self,
        model: models.CausalLM,
        num_slots: int,
        length: int,
        num_steps: int,
        stop_id: int,
        jit_compile: bool = True,
    ) -> None:
        if keras.backend.backend() != "tensorflow":
            raise InputError(
                f"an engine runs on TensorFlow, not on {keras.backend.backend()}; set "
                "KERAS_BACKEND=tensorflow (it loads the same weights)."
            )
        self.traces = {"admit": 0, "turn": 0}
        self._model = model
        self._num_steps = num_steps
        self._stop_id = stop_id
        zeros = ops.zeros((num_slots,), dtype="int32")
        settings = {n: ops.full((num_slots,), getattr(_IDLE, n), dtype_of(n)) for n in SETTINGS}
        prompts = ops.zeros((num_slots, length), dtype="int32")
        request = loop.Request(prompts, zeros + 1, zeros, Sampling(**settings))
        cache = models.init_cache(model, num_slots, length)
        state = loop.empty_state(request, length, _PAD, cache)
        self._variables = _map(functools.partial(tf.Variable, trainable=False), (state, request))
        function = functools.partial(tf.function, jit_compile=jit_compile, autograph=False)
        self._admit = function(self._traced_admit, reduce_retracing=False)
        self._turn = function(self._traced_turn)

    def admit(self, slot: int, request: loop.Request) -> tuple[np.ndarray, ...]:
        """Run `start` for one request and write its row into a slot.

        Args:
            slot: int.
            request: `Request` of arrays with one row: a prompt of less than S tokens, the numeric
                settings, and a budget that fits into the slot.

        Returns:
            A tuple of arrays (1, 1), (1, 1), (1,) and (1,).
        """
        outputs = self._admit(tf.constant(slot, tf.int32), _map(tf.convert_to_tensor, request))
        return tuple(output.numpy() for output in outputs)

    def turn(self, in_use: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run `advance_until` for the slots in use, bool (B,).

        Returns:
            A tuple of arrays (B, S), (B, S), (B,) and (B,).
        """
        return tuple(output.numpy() for output in self._turn(tf.convert_to_tensor(in_use)))

    def _traced_admit(self, slot, request):
        self.traces["admit"] += 1  # runs only while tracing
        # Prefill with a cache as long as the prompt is cheaper than with one of S slots. In a ring
        # cache, the prompt also occupies the first slots.
        row = loop.start(self._model, request, 1, self._stop_id, _PAD)

        def write(variable, row):
            # Zeros replace what the previous request left after the prompt. Masks do not hide a
            # NaN value, since 0 * NaN = NaN.
            sizes = zip(variable.shape[1:], row.shape[1:], strict=True)
            padded = ops.pad(row, [(0, 0), *((0, size - length) for size, length in sizes)])
            begin = (slot,) + (0,) * (len(row.shape) - 1)
            variable.assign(ops.slice_update(variable.value(), begin, padded))

        _map(write, self._variables, row)
        return _outputs(row[0])

    def _traced_turn(self, in_use):
        self.traces["turn"] += 1
        state, request = _map(lambda variable: variable.value(), self._variables)
        state = state._replace(done=state.done | ~in_use)
        settings = {
            name: ops.where(in_use, getattr(request.sampling, name), getattr(_IDLE, name))
            for name in SETTINGS
        }
        request = request._replace(sampling=Sampling(**settings))
        state = loop.advance_until(
            self._model, state, request, self._stop_id, _PAD, self._num_steps, _choose_by_row
        )
        _map(lambda variable, value: variable.assign(value), self._variables[0], state)
        return _outputs(state)


def _choose_by_row(logits, sampling, step, text, stop_id, *_):
    """Call `choose` for one row at a time, so that no row pays for the settings of the others."""

    def choose_one(row):
        logits, settings, step, text = keras.tree.map_structure(lambda x: x[None], row)
        return choose(logits, Sampling(**settings), step, text, stop_id)[0]

    settings = {name: getattr(sampling, name) for name in SETTINGS}
    return ops.map(choose_one, (logits, settings, step, text))


def _outputs(state: loop.State) -> tuple[Tensor, ...]:
    return state.token_ids, state.token_log_probabilities, state.num_tokens, state.stopped
