"""Compile the engine's steps with TensorFlow.

The memory is in variables that XLA updates in place, so that a turn does not copy the cache.
"""

import functools
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_llm.errors import InputError
from keras_llm.generation.sampling import SETTINGS, Sampling, dtype_of
from keras_llm.generation.scheduler import steps
from keras_llm.models import CausalLM


class CompiledSteps:
    """Compiled `steps.admit` and `steps.turn` for one model and one memory. Not thread-safe.

    Args:
        model: a model from `models.causal_lm`.
        num_slots: int. B.
        length: int. S, the tokens of a slot.
        num_steps: int. P, the decode steps of a turn.
        stop_id: int. Stop token.
        jit_compile: bool. False runs the same graphs without XLA.

    Attributes:
        traces: dict, the number of traces of "admit" (one per prompt width) and "turn".

    Raises:
        InputError: if the Keras backend is not TensorFlow.
    """

    def __init__(
        self,
        model: CausalLM,
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
        self._memory = {
            name: tf.Variable(value, name=name, trainable=False)
            for name, value in steps.init_memory(model, num_slots, length).items()
        }
        function = functools.partial(tf.function, jit_compile=jit_compile)
        self._admit = function(self._traced_admit, reduce_retracing=False)
        rows = tf.TensorSpec((num_slots,), tf.int32)
        settings = [tf.TensorSpec((num_slots,), dtype_of(name)) for name in SETTINGS]
        self._turn = function(self._traced_turn, input_signature=[rows, rows, rows, *settings])

    def admit(
        self, slot: int, token_ids: np.ndarray, length: np.ndarray, settings: Sequence[np.ndarray]
    ) -> int:
        """Run `steps.admit` and return the token as an int.

        Args:
            slot: int.
            token_ids: int32 array (1, T).
            length: int32 array (1,).
            settings: list of arrays (1,) in the order of `SETTINGS`.
        """
        slot = tf.convert_to_tensor(slot, tf.int32)
        arguments = map(tf.convert_to_tensor, (token_ids, length, *settings))
        return int(self._admit(slot, *arguments))

    def turn(
        self,
        lengths: np.ndarray,
        counts: np.ndarray,
        budgets: np.ndarray,
        settings: Sequence[np.ndarray],
    ) -> np.ndarray:
        """Run `steps.turn` with arrays (B,) and return an array (B, P)."""
        arguments = map(tf.convert_to_tensor, (lengths, counts, budgets, *settings))
        return self._turn(*arguments).numpy()

    def _traced_admit(self, slot, token_ids, length, *settings):
        self.traces["admit"] += 1  # runs only while tracing
        token, memory = steps.admit(
            self._model,
            self._read(),
            slot,
            token_ids,
            length,
            _sampling(settings),
            self._stop_id,
        )
        self._write(memory)
        return token[0]

    def _traced_turn(self, lengths, counts, budgets, *settings):
        self.traces["turn"] += 1
        tokens, memory = steps.turn(
            self._model,
            self._read(),
            lengths,
            counts,
            budgets,
            _sampling(settings),
            self._num_steps,
            self._stop_id,
        )
        self._write(memory)
        return tokens

    def _read(self):
        return {name: variable.value() for name, variable in self._memory.items()}

    def _write(self, memory):
        for name, variable in self._memory.items():
            variable.assign(memory[name])


def _sampling(settings):
    return Sampling(**dict(zip(SETTINGS, settings, strict=True)))
