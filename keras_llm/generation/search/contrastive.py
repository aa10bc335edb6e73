"""Contrastive search: likely tokens that do not repeat what the context already means."""

import math
from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.generation.sampling import is_stop
from keras_llm.generation.search.beam import (
    check_budget,
    check_count,
    check_number,
    repeat_rows,
    room_for,
)


class Contrasted(NamedTuple):
    """What `contrastive_search` wrote.

    Attributes:
        token_ids: int32 (B, N), the new tokens, without the stop token; `pad_id` after them.
        num_tokens: int32 (B,), how many new tokens there are.
        log_probability: float32 (B,), the sum of their log-probabilities under the model, in
            nats.
        stopped: bool (B,), the text ended with the stop token.
    """

    token_ids: object
    num_tokens: object
    log_probability: object
    stopped: object


def contrastive_search(
    model,
    token_ids,
    lengths,
    max_new_tokens,
    top_k,
    alpha,
    stop_id,
    pad_id,
    encoder_cache=None,
    capacity=None,
    logit_bias=None,
):
    """Continue prompts with the likely tokens that are least like what stands there already.

    `score(v) = (1 - alpha) * p(v) - alpha * max_j cos(h_v, h_j)`

    Of the `top_k` most likely tokens the one of the highest score is taken. `h_v` is the hidden
    state that the model has after reading `v`, `h_j` those of all tokens before, prompt and new
    ones, as they go into the head. Nothing is drawn at random.

    Each step reads `top_k` tokens a row, and for that long holds as many copies of the cache.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        token_ids: int tensor (B, T), prompts padded on the right; of a `seq2seq` model the
            decoder's.
        lengths: int tensor (B,), in `1 .. T`, below the model's `max_length`.
        max_new_tokens: int > 0, or int32 tensor (B,) or (1,). No text grows over the model's
            `max_length`.
        top_k: int in `1 .. V`; 1 is greedy decoding. The paper finds 3 to 10 good.
        alpha: float in [0, 1]; 0 is greedy decoding. The paper takes 0.6.
        stop_id: int, the token that ends a text, or several (S,); negative for none.
        pad_id: int, fills unused places.
        encoder_cache: dict from `models.encode_source`, of a `seq2seq` model.
        capacity: int. N, the room for new tokens, at least the largest budget. Defaults to
            that; XLA needs a number.
        logit_bias: None, or float32 tensor (1, V) or (B, V), added to the logits that the most
            likely tokens are taken from; -1e30 bans a token.

    Returns:
        `Contrasted`.

    Raises:
        InputError: naming the argument that does not fit.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> prompts = np.array([[5, 6, 7], [8, 9, 0]])
    >>> text = contrastive_search(model, prompts, np.array([3, 2]), 4, 5, 0.6, stop_id=1, pad_id=0)
    >>> tuple(text.token_ids.shape)
    (2, 4)

    Reference:
        Su et al., 2022, "A Contrastive Framework for Neural Text Generation", eq. 5.
    """
    check_budget("contrastive_search", max_new_tokens)
    check_count("contrastive_search", "top_k", top_k, model.config.vocabulary_size)
    check_number("contrastive_search", "alpha", alpha, 0, 1)

    token_ids = ops.convert_to_tensor(token_ids, "int32")
    lengths = ops.convert_to_tensor(lengths, "int32")
    batch_size, length = ops.shape(token_ids)[:2]
    budget = ops.minimum(ops.cast(max_new_tokens, "int32"), model.config.max_length - lengths)
    capacity = room_for(max_new_tokens, budget, capacity)
    encoder_cache = encoder_cache or {}
    candidates_encoder_cache = repeat_rows(encoder_cache, top_k)
    first_rows = ops.arange(batch_size, dtype="int32") * top_k
    # Context vectors: the prompt's in the first T slots, then one for each new token.
    slots = ops.expand_dims(ops.arange(length + capacity), 0)
    in_prompt = slots < ops.expand_dims(lengths, 1)

    def choose(logits, cache, context, step):
        """The next token (B,), its hidden state (B, 1, D), and the cache after it."""
        biased = logits if logit_bias is None else logits + logit_bias
        p, tokens = ops.top_k(ops.softmax(biased, axis=-1), top_k)
        # A row that is done stays at its last position, which has a slot.
        positions = ops.repeat(lengths + ops.minimum(step, budget - 1), top_k)
        hidden, cache = models.forward_cached(
            model,
            ops.reshape(ops.cast(tokens, "int32"), (-1, 1)),
            ops.expand_dims(positions, 1),
            {**repeat_rows(cache, top_k), **candidates_encoder_cache},
            positions,
        )
        directions = ops.reshape(_direction(hidden), (batch_size, top_k, -1))
        cosines = ops.matmul(directions, ops.transpose(context, (0, 2, 1)))
        is_new = (slots >= length) & (slots < length + step)
        known = ops.expand_dims(in_prompt | is_new, 1)
        likeness = ops.max(ops.where(known, cosines, -math.inf), axis=-1)
        best = ops.argmax((1 - alpha) * p - alpha * likeness, axis=-1)
        rows = first_rows + ops.cast(best, "int32")
        token = ops.take(ops.reshape(tokens, (-1,)), rows)
        cache = {
            name: ops.take(entry, rows, axis=0)
            for name, entry in cache.items()
            if name not in encoder_cache
        }
        return ops.cast(token, "int32"), ops.take(hidden, rows, axis=0), cache

    def advance(step, text, done, logits, cache, context):
        token, hidden, cache = choose(logits, cache, context, step)
        context = ops.slice_update(context, (0, length + step, 0), _direction(hidden))
        counts = ~done & ~is_stop(token, stop_id)
        here = ops.arange(capacity) == step
        token = ops.expand_dims(token, 1)
        log_p = ops.take_along_axis(ops.log_softmax(logits, axis=-1), token, axis=1)
        text = Contrasted(
            ops.where(here & ops.expand_dims(counts, 1), token, text.token_ids),
            text.num_tokens + ops.cast(counts, "int32"),
            text.log_probability + ops.where(counts, ops.squeeze(log_p, 1), 0.0),
            text.stopped | (~done & ~counts),
        )
        done = text.stopped | (step + 1 >= budget)
        logits = ops.squeeze(models.logits_of(model, hidden), 1)
        return step + 1, text, done, logits, cache, context

    hidden, cache = _read(model, token_ids, lengths, length + capacity, encoder_cache)
    last = ops.take_along_axis(hidden, ops.reshape(lengths - 1, (-1, 1, 1)), axis=1)
    zeros = ops.zeros_like(lengths)
    text = Contrasted(
        token_ids=ops.zeros((batch_size, capacity), dtype="int32") + pad_id,
        num_tokens=zeros,
        log_probability=ops.cast(zeros, "float32"),
        stopped=ops.cast(zeros, "bool"),
    )
    _, text, *_ = ops.while_loop(
        lambda step, text, done, *_: ops.any(~done),
        advance,
        (
            ops.convert_to_tensor(0, "int32"),
            text,
            text.stopped,
            ops.squeeze(models.logits_of(model, last), 1),
            cache,
            ops.pad(_direction(hidden), ((0, 0), (0, capacity), (0, 0))),
        ),
    )
    return text


def _read(model, token_ids, lengths, slots, encoder_cache):
    """Prompts (B, T) -> hidden states (B, T, D), and the cache without `encoder_cache`."""
    batch_size, length = ops.shape(token_ids)[:2]
    positions = ops.arange(length)
    hidden, cache = models.forward_cached(
        model,
        token_ids,
        positions,
        {**models.init_cache(model, batch_size, slots), **encoder_cache},
        ops.convert_to_tensor(0),
        padding_mask=ops.expand_dims(positions, 0) < ops.expand_dims(lengths, 1),
    )
    return hidden, {name: entry for name, entry in cache.items() if name not in encoder_cache}


def _direction(hidden):
    """Float (B, T, D) -> float32 of length 1."""
    hidden = ops.cast(hidden, "float32")
    norm = ops.sqrt(ops.sum(ops.square(hidden), axis=-1, keepdims=True))
    return hidden / ops.maximum(norm, 1e-12)
