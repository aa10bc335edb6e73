"""Continue prompts with contrastive search: likely tokens that are not similar to the context."""

import math
from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.generation import loop
from keras_llm.generation.checks import check_count, check_number, check_only_bias
from keras_llm.generation.logits_processors import REMOVED
from keras_llm.generation.sampling import is_stop
from keras_llm.generation.scoring import log_probability
from keras_llm.types import Tensor


class Contrasted(NamedTuple):
    """The result of `contrastive_search`.

    Attributes:
        token_ids: int32 (B, N), the new tokens without the stop token, padded with `pad_id`.
        num_tokens: int32 (B,), the number of new tokens.
        log_probability: float32 (B,), the sum of their log-probabilities under the model, in
            nats.
        stopped: bool (B,), whether the text ended with a stop token.
    """

    token_ids: Tensor
    num_tokens: Tensor
    log_probability: Tensor
    stopped: Tensor


def contrastive_search(
    model: models.CausalLM | models.Seq2Seq,
    request: loop.Request,
    top_k: int,
    alpha: float | Tensor,
    stop_id: int | Tensor,
    pad_id: int,
    encoder_cache: dict[str, Tensor] | None = None,
    capacity: int | Tensor | None = None,
) -> Contrasted:
    """Continue prompts with likely tokens that are least similar to the context.

    `score(v) = (1 - alpha) * p(v) - alpha * max_j cos(h_v, h_j)`

    Each step takes the token with the highest score among the `top_k` most likely tokens. `h_v` is
    the last hidden state (the input of the head) after `v`, and `h_j` those of all previous tokens
    of prompt and text. The search is deterministic.

    Each step runs the model on `top_k` tokens per row and copies the cache `top_k` times.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        request: a `Request` from `make_request`; for a `seq2seq` model, its prompts are the
            decoder's. Of its settings, only `logit_bias` is supported; `temperature` and `seed`
            are ignored.
        top_k: int in `1 .. V`; 1 is greedy decoding. The paper recommends 3 to 10.
        alpha: float in [0, 1]; 0 is greedy decoding. The paper uses 0.6.
        stop_id: int or int32 tensor (S,). Stop tokens; negative for none.
        pad_id: int. Padding token.
        encoder_cache: dict from `models.encode_source`, for a `seq2seq` model.
        capacity: int. N, the number of slots for new tokens, at least the largest budget (the
            default). XLA requires an int.

    Returns:
        `Contrasted`.

    Raises:
        InputError: if an argument is invalid or a setting is not supported; the message names it.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> prompts = np.array([[5, 6, 7], [8, 9, 0]])
    >>> request = loop.make_request(model, prompts, np.array([3, 2]), max_new_tokens=4)
    >>> text = contrastive_search(model, request, top_k=5, alpha=0.6, stop_id=1, pad_id=0)
    >>> tuple(text.token_ids.shape)
    (2, 4)

    Reference:
        Su et al., 2022, "A Contrastive Framework for Neural Text Generation", eq. 5.
    """
    check_count("contrastive_search", "top_k", top_k, model.config.vocabulary_size)
    check_number("contrastive_search", "alpha", alpha, 0, 1)
    check_only_bias("contrastive_search", request.sampling)

    token_ids, lengths, budget, sampling = request
    batch_size, length = ops.shape(token_ids)[:2]
    capacity = ops.max(budget) if capacity is None else capacity
    encoder_cache = encoder_cache or {}
    candidates_encoder_cache = loop.repeat_rows(encoder_cache, top_k)
    first_rows = ops.arange(batch_size, dtype="int32") * top_k
    # Context vectors: prompt tokens in the first T slots, then new tokens.
    slots = ops.expand_dims(ops.arange(length + capacity), 0)
    in_prompt = slots < ops.expand_dims(lengths, 1)

    def choose(logits, cache, context, step):
        """Return the next token (B,), its hidden state (B, 1, D), and the updated cache."""
        biased = logits if sampling.logit_bias is None else logits + sampling.logit_bias
        p, tokens = ops.top_k(ops.softmax(biased, axis=-1), top_k)
        # A row that is done repeats its last position, so that it never exceeds the cache.
        positions = ops.repeat(lengths + ops.minimum(step, budget - 1), top_k)
        hidden, cache = models.forward_cached(
            model,
            ops.reshape(ops.cast(tokens, "int32"), (-1, 1)),
            ops.expand_dims(positions, 1),
            {**loop.repeat_rows(cache, top_k), **candidates_encoder_cache},
            positions,
        )
        directions = ops.reshape(_direction(hidden), (batch_size, top_k, -1))
        cosines = ops.matmul(directions, ops.transpose(context, (0, 2, 1)))
        is_new = (slots >= length) & (slots < length + step)
        in_context = ops.expand_dims(in_prompt | is_new, 1)
        similarity = ops.max(ops.where(in_context, cosines, -math.inf), axis=-1)
        score = (1 - alpha) * p - alpha * similarity
        is_banned = ops.take_along_axis(biased, tokens, axis=-1) <= REMOVED / 2
        best = ops.argmax(ops.where(is_banned, -math.inf, score), axis=-1)
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
        log_p = log_probability(logits, token)
        text = Contrasted(
            ops.where(here & ops.expand_dims(counts, 1), ops.expand_dims(token, 1), text.token_ids),
            text.num_tokens + ops.cast(counts, "int32"),
            text.log_probability + ops.where(counts, log_p, 0.0),
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
    """Prefill prompts (B, T); return hidden states (B, T, D) and the decoder's cache."""
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
    """Normalize hidden states (B, T, D) to unit length in float32."""
    hidden = ops.cast(hidden, "float32")
    norm = ops.sqrt(ops.sum(ops.square(hidden), axis=-1, keepdims=True))
    return hidden / ops.maximum(norm, 1e-12)
