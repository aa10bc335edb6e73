"""Sample several texts per prompt and rank them."""

import math
from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import loop
from keras_llm.generation.sampling import Sampling
from keras_llm.generation.search.beam import check_budget, check_count, room_for
from keras_llm.types import Tensor


class Candidates(NamedTuple):
    """The result of `sample_and_rank`: n texts for each of B prompts.

    Attributes:
        token_ids: int32 (B, n, N), the new tokens without the stop token, padded with `pad_id`.
        num_tokens: int32 (B, n), the number of new tokens.
        log_probability: float32 (B, n), the sum of their log-probabilities under the model, in
            nats.
        score: float32 (B, n), the ranking score.
        stopped: bool (B, n), whether the text ended with a stop token.
    """

    token_ids: Tensor
    num_tokens: Tensor
    log_probability: Tensor
    score: Tensor
    stopped: Tensor


def sample_and_rank(
    model: models.CausalLM | models.Seq2Seq,
    token_ids: Tensor,
    lengths: Tensor,
    max_new_tokens: int | Tensor,
    num_candidates: int,
    sampling: Sampling,
    stop_id: int | Tensor,
    pad_id: int,
    scorer: Callable[[Candidates], Tensor] | None = None,
    encoder_cache: dict[str, Tensor] | None = None,
    capacity: int | Tensor | None = None,
) -> Candidates:
    """Sample several texts for each prompt and sort them by score.

    Each prompt is prefilled once. Before sorting, candidate `j` is the text that `generate` returns
    for the seed `seed + j`.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        token_ids: int tensor (B, T), prompts padded on the right; for a `seq2seq` model, the
            decoder's.
        lengths: int tensor (B,), in `1 .. T`, below the model's `max_length`.
        max_new_tokens: int > 0, or int32 tensor (B,) or (1,). The model's `max_length` limits
            prompt and new tokens together.
        num_candidates: int > 0. n. LaMDA uses 16.
        sampling: `Sampling` with fields for all prompts or for each.
        stop_id: int or int32 tensor (S,). Stop tokens; negative for none.
        pad_id: int. Padding token.
        scorer: None, or a function of `Candidates` in seed order that returns scores (B, n); higher
            is better. The default score, which the function receives in `score`, is the mean
            log-probability of a text's tokens; -inf for an empty text.
        encoder_cache: dict from `models.encode_source`, for a `seq2seq` model.
        capacity: int. N, the number of slots for new tokens, at least the largest budget (the
            default). XLA requires an int.

    Returns:
        `Candidates`, sorted from best to worst; ties are in seed order.

    Raises:
        InputError: if an argument is invalid (the message names it), or if the scores are not
            of shape (B, n).

    Example:
    >>> import numpy as np
    >>> from keras_llm import generation, models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> prompts, settings = np.array([[5, 6, 7], [8, 9, 0]]), generation.Sampling(0.9)
    >>> texts = sample_and_rank(model, prompts, np.array([3, 2]), 4, 5, settings, 1, 0)
    >>> tuple(texts.token_ids.shape)
    (2, 5, 4)

    Reference:
        Adiwardana et al., 2020, "Towards a Human-like Open-Domain Chatbot" (sample-and-rank);
        Thoppilan et al., 2022, "LaMDA: Language Models for Dialog Applications".
    """
    check_budget("sample_and_rank", max_new_tokens)
    check_count("sample_and_rank", "num_candidates", num_candidates)
    lengths = ops.convert_to_tensor(lengths, "int32")
    batch_size = ops.shape(lengths)[0]
    sampling = _for_each_candidate(sampling, batch_size, num_candidates)
    request = loop.make_request(model, token_ids, lengths, max_new_tokens, sampling)
    request = request._replace(budget=ops.repeat(request.budget, num_candidates))
    capacity = room_for(max_new_tokens, request.budget, capacity)
    state, request = loop.start(
        model, request, capacity, stop_id, pad_id, encoder_cache, samples=num_candidates
    )
    state = loop.advance_until(model, state, request, stop_id, pad_id)

    shape = (batch_size, num_candidates)
    num_tokens = ops.reshape(state.num_tokens, shape)
    log_p = ops.reshape(state.log_probability, shape)
    count = ops.cast(num_tokens, "float32")
    texts = Candidates(
        token_ids=ops.reshape(state.token_ids, (*shape, capacity)),
        num_tokens=num_tokens,
        log_probability=log_p,
        score=ops.where(count > 0, log_p / ops.maximum(count, 1.0), -math.inf),
        stopped=ops.reshape(state.stopped, shape),
    )
    if scorer is not None:
        scores = ops.cast(ops.convert_to_tensor(scorer(texts)), "float32")
        if tuple(scores.shape) != tuple(texts.score.shape):
            raise InputError(
                "sample_and_rank: `scorer` must return scores of shape "
                f"{tuple(texts.score.shape)}, got {tuple(scores.shape)}."
            )
        texts = texts._replace(score=scores)
    _, order = ops.top_k(texts.score, num_candidates)
    rest = (ops.take_along_axis(field, order, axis=1) for field in texts[1:])
    ids = ops.take_along_axis(texts.token_ids, ops.expand_dims(order, 2), axis=1)
    return Candidates(ids, *rest)


def _for_each_candidate(sampling, batch_size, num_candidates):
    """Return the settings of B * n texts, each with its own seed."""
    sampling = sampling.tensors()
    seeds = ops.reshape(ops.broadcast_to(sampling.seed, (batch_size,)), (-1, 1))
    seeds = seeds + ops.expand_dims(ops.arange(num_candidates, dtype="int32"), 0)
    return sampling.repeat(num_candidates)._replace(seed=ops.reshape(seeds, (-1,)))
