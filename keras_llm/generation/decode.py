"""The decode loop: one `start` and one `advance`, run eagerly, compiled, or inside a graph."""

from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.generation.samplers import Sampling, choose


class State(NamedTuple):
    """Where a batch of generations stands. All tensors; shapes never change between steps.

    Attributes:
        step: int32 scalar, the number of tokens chosen so far.
        token: int32 (B,), the token chosen last.
        token_ids: int32 (B, N), the tokens chosen; `pad_id` where there is none yet.
        num_tokens: int32 (B,), how many of them count (the stop token does not).
        log_probability: float32 (B,), the sum of the counted tokens' log-probabilities, in
            nats, under the model itself (temperature 1, nothing filtered).
        stopped: bool (B,), the stop token was chosen.
        done: bool (B,), stopped or out of budget.
        cache: dict from `models.init_cache`.
    """

    step: object
    token: object
    token_ids: object
    num_tokens: object
    log_probability: object
    stopped: object
    done: object
    cache: dict


class Request(NamedTuple):
    """What a batch of generations was asked.

    Attributes:
        lengths: int32 (B,), prompt lengths.
        budget: int32 (B,), the most tokens to generate for each row, at most N.
        sampling: `Sampling` of tensors.
    """

    lengths: object
    budget: object
    sampling: Sampling


def request(model, lengths, max_new_tokens, sampling):
    """A `Request` whose budgets end at the model's `max_length`.

    Args:
        model: a model from `models.causal_lm`.
        lengths: int32 tensor (B,).
        max_new_tokens: int32 tensor (B,) or (1,), > 0.
        sampling: `Sampling` of tensors.
    """
    lengths = ops.cast(lengths, "int32")
    budget = ops.minimum(ops.cast(max_new_tokens, "int32"), model.config.max_length - lengths)
    return Request(lengths, budget, sampling)


def start(model, token_ids, asked, capacity, stop_id, pad_id, memory=None):
    """Read the prompts and choose each row's first token.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        token_ids: int32 tensor (B, T), prompts padded on the right.
        asked: a `Request`.
        capacity: int or int32 scalar. N, the room for new tokens.
        stop_id: int, the token that ends a text.
        pad_id: int, fills unused places.
        memory: dict from `models.encode`, of a `seq2seq` model.

    Returns:
        A `State` at step 1.
    """
    batch_size, length = ops.shape(token_ids)[:2]
    cache = {**models.init_cache(model, batch_size, length + capacity), **(memory or {})}
    logits, cache = models.prefill(model, token_ids, asked.lengths, cache)
    zeros = ops.zeros_like(asked.lengths)
    state = State(
        step=ops.convert_to_tensor(0, "int32"),
        token=zeros,
        token_ids=ops.zeros((batch_size, capacity), dtype="int32") + pad_id,
        num_tokens=zeros,
        log_probability=ops.cast(zeros, "float32"),
        stopped=ops.cast(zeros, "bool"),
        done=ops.cast(zeros, "bool"),
        cache=cache,
    )
    return _choose(state, logits, asked, stop_id, pad_id)


def advance(model, state, asked, stop_id, pad_id):
    """Read each row's last token and choose the next. Rows that are done stay as they are."""
    # A row that is done stays at its last position, which has a slot.
    positions = asked.lengths + ops.minimum(state.step, asked.budget) - 1
    logits, cache = models.decode(
        model, ops.expand_dims(state.token, 1), ops.expand_dims(positions, 1), state.cache
    )
    return _choose(state._replace(cache=cache), logits, asked, stop_id, pad_id)


def generate(model, token_ids, lengths, max_new_tokens, sampling, stop_id, pad_id, memory=None):
    """Continue a batch of prompts until each has stopped or used up its budget.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        token_ids: int32 tensor (B, T), prompts padded on the right.
        lengths: int32 tensor (B,), in `1 .. T`, below the model's `max_length`.
        max_new_tokens: int32 tensor (B,) or (1,), > 0.
        sampling: `Sampling` of tensors, each (B,) or (1,).
        stop_id: int, the token that ends a text.
        pad_id: int, fills unused places.
        memory: dict from `models.encode`, of a `seq2seq` model.

    Returns:
        The last `State`; `token_ids` is (B, N) with N the largest budget.
    """
    asked = request(model, lengths, max_new_tokens, sampling)
    state = start(model, token_ids, asked, ops.max(asked.budget), stop_id, pad_id, memory)
    return finish(model, state, asked, stop_id, pad_id)


def finish(model, state, asked, stop_id, pad_id):
    """`advance` until every row is done; returns the last `State`."""
    state = ops.while_loop(
        lambda *state: ops.logical_not(ops.all(State(*state).done)),
        lambda *state: tuple(advance(model, State(*state), asked, stop_id, pad_id)),
        tuple(state),
    )
    return State(*state)


def score(model, token_ids, lengths):
    """Log-likelihood of texts.

    Args:
        model: a model from `models.causal_lm`.
        token_ids: int32 tensor (B, T): the begin token, then the text, padded on the right.
        lengths: int32 tensor (B,), real tokens of each row, the begin token included.

    Returns:
        Float32 tensor (B,): the sum over a row's text of each token's log-probability given
        those before it, in nats.
    """
    logits = model(token_ids[:, :-1])
    targets = token_ids[:, 1:]
    real = ops.arange(ops.shape(targets)[1]) < ops.expand_dims(ops.cast(lengths, "int32") - 1, 1)
    return ops.sum(ops.where(real, _log_probability(logits, targets), 0.0), axis=-1)


def _choose(state, logits, asked, stop_id, pad_id):
    token = choose(logits, asked.sampling, state.step)
    counts = ops.logical_and(ops.logical_not(state.done), token != stop_id)
    token = ops.where(counts, token, pad_id)
    here = ops.arange(ops.shape(state.token_ids)[1]) == state.step
    stopped = ops.logical_or(state.stopped, ops.logical_not(ops.logical_or(counts, state.done)))
    num_tokens = state.num_tokens + ops.cast(counts, "int32")
    return State(
        step=state.step + 1,
        token=token,
        token_ids=ops.where(here, ops.expand_dims(token, 1), state.token_ids),
        num_tokens=num_tokens,
        log_probability=state.log_probability
        + ops.where(counts, _log_probability(logits, token), 0.0),
        stopped=stopped,
        done=ops.logical_or(stopped, num_tokens >= asked.budget),
        cache=state.cache,
    )


def _log_probability(logits, targets):
    """(..., V), (...) -> (...): log softmax(logits)[targets]."""
    chosen = ops.take_along_axis(logits, ops.expand_dims(targets, -1), axis=-1)
    return ops.squeeze(chosen, -1) - ops.logsumexp(logits, axis=-1)
