"""What an engine computes: reading one prompt into a slot, and decoding all slots together.

The memory of an engine with B slots of S tokens is a dict: the entries of `models.init_cache`, and
`text`, int32 (B, S), the prompt and the new tokens of each slot.
"""

from keras import ops

from keras_llm import models
from keras_llm.generation.sampling import SETTINGS, Sampling, Text, choose


def init_memory(model, num_slots, length):
    """The memory of an engine whose slots are all empty."""
    text = ops.zeros((num_slots, length), dtype="int32")
    return {**models.init_cache(model, num_slots, length), "text": text}


def admit(model, memory, slot, token_ids, length, sampling, stop_id):
    """Read a prompt into a slot and choose its first token.

    Args:
        model: a model from `models.causal_lm`.
        memory: dict from `init_memory`.
        slot: int32 scalar tensor, in `0 .. B - 1`.
        token_ids: int32 tensor (1, T), the prompt padded on the right, T at most S.
        length: int32 tensor (1,), in `1 .. S - 1`.
        sampling: `Sampling`, the settings that are numbers as tensors (1,).
        stop_id: int, the token that ends a text.

    Returns:
        Int32 tensor (1,), the token, -1 if the model's logits are no numbers; and the memory.
    """
    size, width = memory["text"].shape[1], token_ids.shape[1]
    # Fewer slots than the memory has cost less. A prompt of at most T tokens lies in the first T
    # of a ring too; what the slots after it held before is out of every query's sight.
    cache = models.init_cache(model, 1, width)
    logits, cache = models.prefill(model, token_ids, length, cache)
    text = ops.pad(token_ids, ((0, 0), (0, size - width)))
    token = _choose(logits, sampling, ops.zeros_like(length), text, length, stop_id)
    cache["text"] = _put(text, length, ops.maximum(token, 0))
    return token, {
        name: ops.slice_update(whole, (slot,) + (0,) * (len(whole.shape) - 1), cache[name])
        for name, whole in memory.items()
    }


def turn(model, memory, lengths, counts, budgets, sampling, num_steps, stop_id):
    """Choose up to `num_steps` tokens for each slot that is not done.

    Args:
        model: a model from `models.causal_lm`.
        memory: dict from `init_memory` or `admit`.
        lengths: int32 tensor (B,), prompt lengths; 1 for an empty slot.
        counts: int32 tensor (B,), new tokens chosen so far; 0 for an empty slot.
        budgets: int32 tensor (B,), the most new tokens; 0 for an empty slot.
        sampling: `Sampling`, the settings that are numbers as tensors (B,).
        num_steps: int. P.
        stop_id: int, the token that ends a text.

    Returns:
        Int32 tensor (B, P): the tokens chosen, without meaning past a slot's stop token or
        budget; and the memory.
    """

    def goes_on(i, counts, done, tokens, memory):
        return ops.logical_and(i < num_steps, ops.logical_not(ops.all(done)))

    def step(i, counts, done, tokens, memory):
        cache, text = dict(memory), memory["text"]
        written = lengths + counts
        last = ops.expand_dims(written - 1, 1)
        logits, cache = models.decode(model, _take(text, last), last, cache)
        token = _choose(logits, sampling, counts, text, lengths, stop_id)
        here = ops.expand_dims(ops.arange(num_steps) == i, 0)
        tokens = ops.where(here, ops.expand_dims(token, 1), tokens)
        # What is written past a slot's end is never looked at.
        cache["text"] = _put(text, written, ops.maximum(token, 0))
        done = done | (token == stop_id) | (token < 0)
        counts = ops.where(done, counts, counts + 1)
        return i + 1, counts, ops.logical_or(done, counts >= budgets), tokens, cache

    *_, tokens, memory = ops.while_loop(
        goes_on,
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
    """`choose` for one row after the other: each stands at a step of its own, and one that asks
    for little does not pay for its neighbours' settings. -1 where logits are no numbers."""

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


def _put(rows, places, values):
    """Rows (B, S) with a value (B,) at a place (B,) each; nowhere for a place past the end."""
    here = ops.expand_dims(ops.arange(rows.shape[1]), 0) == ops.expand_dims(places, 1)
    return ops.where(here, ops.expand_dims(values, 1), rows)


def _take(rows, places):
    """(B, S), (B, P) -> (B, P)."""
    return ops.take_along_axis(rows, places, axis=1)
