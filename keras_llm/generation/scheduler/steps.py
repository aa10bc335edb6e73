"""Compute an engine's steps: prefill a prompt into a slot, and decode all slots together.

The memory of an engine with B slots of S tokens is a dict: the entries of `models.init_cache`, and
`text`, int32 (B, S), the prompt and new tokens of each slot.
"""

from keras import ops

from keras_llm import models
from keras_llm.generation.sampling import SETTINGS, Sampling, Text, choose
from keras_llm.types import Tensor


def init_memory(model: models.CausalLM, num_slots: int, length: int) -> dict[str, Tensor]:
    """Return the memory of an engine with empty slots."""
    text = ops.zeros((num_slots, length), dtype="int32")
    return {**models.init_cache(model, num_slots, length), "text": text}


def admit(
    model: models.CausalLM,
    memory: dict[str, Tensor],
    slot: Tensor,
    token_ids: Tensor,
    length: Tensor,
    sampling: Sampling,
    stop_id: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Prefill a prompt into a slot and choose its first token.

    Args:
        model: a model from `models.causal_lm`.
        memory: dict from `init_memory`.
        slot: int32 scalar tensor, in `0 .. B - 1`.
        token_ids: int32 tensor (1, T), the prompt padded on the right, T at most S.
        length: int32 tensor (1,), in `1 .. S - 1`.
        sampling: `Sampling` with numeric settings as tensors (1,).
        stop_id: int. Stop token.

    Returns:
        A tuple: int32 tensor (1,), the token, -1 if the model's logits are NaN; and the memory.
    """
    size, width = memory["text"].shape[1], token_ids.shape[1]
    # A cache of T slots is cheaper than one of S. In a ring cache, the prompt also occupies the
    # first T slots; old entries in the slots after it are masked out of attention.
    cache = models.init_cache(model, 1, width)
    logits, cache = models.prefill(model, token_ids, length, cache)
    text = ops.pad(token_ids, ((0, 0), (0, size - width)))
    token = _choose(logits, sampling, ops.zeros_like(length), text, length, stop_id)
    cache["text"] = _put(text, length, ops.maximum(token, 0))
    return token, {
        name: ops.slice_update(whole, (slot,) + (0,) * (len(whole.shape) - 1), cache[name])
        for name, whole in memory.items()
    }


def turn(
    model: models.CausalLM,
    memory: dict[str, Tensor],
    lengths: Tensor,
    counts: Tensor,
    budgets: Tensor,
    sampling: Sampling,
    num_steps: int,
    stop_id: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Choose up to `num_steps` tokens for each slot that is not done.

    Args:
        model: a model from `models.causal_lm`.
        memory: dict from `init_memory` or `admit`.
        lengths: int32 tensor (B,), prompt lengths; 1 for an empty slot.
        counts: int32 tensor (B,), new tokens so far; 0 for an empty slot.
        budgets: int32 tensor (B,), maximum number of new tokens; 0 for an empty slot.
        sampling: `Sampling` with numeric settings as tensors (B,).
        num_steps: int. P.
        stop_id: int. Stop token.

    Returns:
        A tuple: int32 tensor (B, P), the tokens chosen, undefined after a slot's stop token or
        budget; and the memory.
    """

    def should_continue(i, counts, done, tokens, memory):
        return ops.logical_and(i < num_steps, ops.logical_not(ops.all(done)))

    def step(i, counts, done, tokens, memory):
        cache, text = dict(memory), memory["text"]
        written = lengths + counts
        last = ops.expand_dims(written - 1, 1)
        logits, cache = models.decode(model, _take(text, last), last, cache)
        token = _choose(logits, sampling, counts, text, lengths, stop_id)
        here = ops.expand_dims(ops.arange(num_steps) == i, 0)
        tokens = ops.where(here, ops.expand_dims(token, 1), tokens)
        # Tokens written after a slot's text are never read.
        cache["text"] = _put(text, written, ops.maximum(token, 0))
        done = done | (token == stop_id) | (token < 0)
        counts = ops.where(done, counts, counts + 1)
        return i + 1, counts, ops.logical_or(done, counts >= budgets), tokens, cache

    *_, tokens, memory = ops.while_loop(
        should_continue,
        step,
        (
            ops.convert_to_tensor(0, "int32"),
            counts,
            counts >= budgets,
            ops.zeros((lengths.shape[0], num_steps), dtype="int32"),
            memory,
        ),
    )
    return tokens, memory


def _choose(logits, sampling, steps, text, prompt_lengths, stop_id):
    """Call `choose` for one row at a time; return -1 where logits are NaN.

    Rows are at different steps, and a row does not pay for the settings of other rows.
    """

    def choose_one(row):
        logits, step, token_ids, prompt_length, *settings = row
        return choose(
            ops.expand_dims(logits, 0),
            Sampling(**{n: ops.reshape(v, (1,)) for n, v in zip(SETTINGS, settings, strict=True)}),
            step,
            Text(
                ops.expand_dims(token_ids, 0),
                ops.reshape(prompt_length, (1,)),
                ops.reshape(prompt_length + step, (1,)),
            ),
            stop_id,
        )[0]

    settings = [getattr(sampling, name) for name in SETTINGS]
    tokens = ops.map(choose_one, (logits, steps, text, prompt_lengths, *settings))
    return ops.where(ops.any(ops.isnan(logits), axis=-1), -1, tokens)


def _put(rows, positions, values):
    """Write a value (B,) at a position (B,) of each row (B, S); ignore positions past the end."""
    here = ops.expand_dims(ops.arange(rows.shape[1]), 0) == ops.expand_dims(positions, 1)
    return ops.where(here, ops.expand_dims(values, 1), rows)


def _take(rows, positions):
    """Gather positions (B, P) of rows (B, S)."""
    return ops.take_along_axis(rows, positions, axis=1)
