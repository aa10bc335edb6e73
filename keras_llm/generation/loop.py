"""The decode loop: one `start` and one `advance`, run eagerly, compiled, or inside a graph."""

from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.generation.sampling import (
    Sampling,
    Text,
    choose,
    follow,
    has_automaton,
    is_stop,
    process,
    states_after,
)


class State(NamedTuple):
    """Where a batch of generations stands. All tensors; shapes never change between steps.

    Attributes:
        step: int32 scalar, the number of tokens chosen so far.
        token: int32 (B,), the token chosen last.
        token_ids: int32 (B, N), the tokens chosen; `pad_id` where there is none yet.
        token_log_probabilities: float32 (B, N), the log-probability of each, in nats, under the
            model itself (temperature 1, nothing filtered); 0 where there is none. NaN where the
            model's logits are no numbers.
        alternative_ids: int32 (B, N, A), the most likely tokens at each place.
        alternative_log_probabilities: float32 (B, N, A), theirs.
        num_tokens: int32 (B,), how many tokens count (the stop token does not).
        stopped: bool (B,), a stop token was chosen.
        stop_token: int32 (B,), which one; -1 if none was.
        done: bool (B,), stopped or out of budget.
        automaton_state: int32 (B,), where each row stands in the constraint, if there is one.
        cache: dict from `models.init_cache`.
    """

    step: object
    token: object
    token_ids: object
    token_log_probabilities: object
    alternative_ids: object
    alternative_log_probabilities: object
    num_tokens: object
    stopped: object
    stop_token: object
    done: object
    automaton_state: object
    cache: dict

    @property
    def log_probability(self):
        """Float32 (B,), the sum of the counted tokens' log-probabilities."""
        return ops.sum(self.token_log_probabilities, axis=1)


class Request(NamedTuple):
    """What a batch of generations was asked.

    Attributes:
        token_ids: int32 (B, T), prompts padded on the right.
        lengths: int32 (B,), prompt lengths.
        budget: int32 (B,), the most tokens to generate for each row, at most N.
        sampling: `Sampling` of tensors.
    """

    token_ids: object
    lengths: object
    budget: object
    sampling: Sampling


def make_request(model, token_ids, lengths, max_new_tokens, sampling):
    """A `Request` whose budgets end at the model's `max_length`.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        token_ids: int32 tensor (B, T).
        lengths: int32 tensor (B,).
        max_new_tokens: int32 tensor (B,) or (1,), > 0.
        sampling: `Sampling` of tensors.
    """
    lengths = ops.cast(lengths, "int32")
    budget = ops.minimum(ops.cast(max_new_tokens, "int32"), model.config.max_length - lengths)
    return Request(ops.cast(token_ids, "int32"), lengths, budget, sampling)


def start(
    model,
    request,
    capacity,
    stop_id,
    pad_id,
    encoder_cache=None,
    samples=1,
    alternatives=0,
    prefix=None,
):
    """Read the prompts and choose each row's first token.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        request: a `Request`, of B rows, or of B / `samples` if that is more than 1.
        capacity: int or int32 scalar. N, the room for new tokens.
        stop_id: int, the token that ends a text, or several (S,).
        pad_id: int, fills unused places.
        encoder_cache: dict from `models.encode_source`, of a `seq2seq` model.
        samples: int. How many texts each prompt is continued with; it is read once. Budgets and
            settings are those of the B texts, the texts of one prompt side by side.
        alternatives: int. A, how many likely tokens are kept for each place.
        prefix: None; or a cache that holds the first tokens of the prompts already, with at most
            as many slots as the new one will have; an int32 scalar, how many they are; and an
            int, how many tokens to read at a time.

    Returns:
        A `State` at step 1, and the `Request` of its B rows.
    """
    rows, length = ops.shape(request.token_ids)[:2]
    cache = {**models.init_cache(model, rows, length + capacity), **(encoder_cache or {})}
    reading = {}
    if prefix is not None:
        held, reading["first"], reading["chunk"] = prefix
        cache |= {name: ops.slice_update(cache[name], (0,) * 4, held[name]) for name in held}
    logits, cache = models.prefill(model, request.token_ids, request.lengths, cache, **reading)
    if samples > 1:
        logits = ops.repeat(logits, samples, axis=0)
        cache = {name: ops.repeat(entry, samples, axis=0) for name, entry in cache.items()}
        request = request._replace(
            token_ids=ops.repeat(request.token_ids, samples, axis=0),
            lengths=ops.repeat(request.lengths, samples, axis=0),
        )
        rows = rows * samples
    zeros = ops.zeros_like(request.lengths)
    state = State(
        step=ops.convert_to_tensor(0, "int32"),
        token=zeros,
        token_ids=ops.zeros((rows, capacity), dtype="int32") + pad_id,
        token_log_probabilities=ops.zeros((rows, capacity), dtype="float32"),
        alternative_ids=ops.zeros((rows, capacity, alternatives), dtype="int32"),
        alternative_log_probabilities=ops.zeros((rows, capacity, alternatives), dtype="float32"),
        num_tokens=zeros,
        stopped=ops.cast(zeros, "bool"),
        stop_token=zeros - 1,
        done=ops.cast(zeros, "bool"),
        automaton_state=zeros + request.sampling.automaton.start
        if has_automaton(request.sampling)
        else zeros,
        cache=cache,
    )
    return _choose(state, logits, request, stop_id, pad_id), request


def advance(model, state, request, stop_id, pad_id):
    """Read each row's last token and choose the next. Rows that are done stay as they are."""
    # A row that is done stays at its last position, which has a slot.
    positions = request.lengths + ops.minimum(state.step, request.budget) - 1
    logits, cache = models.decode(
        model, ops.expand_dims(state.token, 1), ops.expand_dims(positions, 1), state.cache
    )
    return _choose(state._replace(cache=cache), logits, request, stop_id, pad_id)


def advance_until(model, state, request, stop_id, pad_id, step=None):
    """`advance` until every row is done, or until that step, an int32 scalar."""

    def goes_on(*state):
        state = State(*state)
        unfinished = ops.logical_not(ops.all(state.done))
        return unfinished if step is None else ops.logical_and(unfinished, state.step < step)

    state = ops.while_loop(
        goes_on,
        lambda *state: tuple(advance(model, State(*state), request, stop_id, pad_id)),
        tuple(state),
    )
    return State(*state)


def generate(
    model,
    token_ids,
    lengths,
    max_new_tokens,
    sampling,
    stop_id,
    pad_id,
    encoder_cache=None,
    samples=1,
    alternatives=0,
):
    """Continue a batch of prompts until each has stopped or used up its budget.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        token_ids: int32 tensor (B, T), prompts padded on the right.
        lengths: int32 tensor (B,), in `1 .. T`, below the model's `max_length`.
        max_new_tokens: int32 tensor (B,) or (1,), > 0.
        sampling: `Sampling` of tensors, each (B,) or (1,).
        stop_id: int, the token that ends a text, or several (S,).
        pad_id: int, fills unused places.
        encoder_cache: dict from `models.encode_source`, of a `seq2seq` model.
        samples, alternatives: as of `start`; `max_new_tokens` is then (1,).

    Returns:
        The last `State`; `token_ids` is (B, N) with N the largest budget.
    """
    request = make_request(model, token_ids, lengths, max_new_tokens, sampling)
    if samples > 1:
        request = request._replace(budget=ops.repeat(request.budget, samples))
    state, request = start(
        model,
        request,
        ops.max(request.budget),
        stop_id,
        pad_id,
        encoder_cache,
        samples,
        alternatives,
    )
    return advance_until(model, state, request, stop_id, pad_id)


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
    log_p, *_ = explain(model, token_ids)
    places = ops.arange(ops.shape(log_p)[1])
    real = places < ops.expand_dims(ops.cast(lengths, "int32") - 1, 1)
    return ops.sum(ops.where(real, log_p, 0.0), axis=-1)


def explain(model, token_ids, source=None, alternatives=0):
    """How likely each token of some texts was, and what else was.

    Args:
        model: a model from `models.causal_lm`, or from `models.seq2seq` with a `source`.
        token_ids: int32 tensor (B, T).
        source: int32 tensor (B, S), the encoder's token ids.
        alternatives: int. A.

    Returns:
        Float32 (B, T - 1), the log-probability of each token but the first given those before
        it, in nats; int32 (B, T - 1, A), the most likely tokens there; float32 (B, T - 1, A),
        their log-probabilities.
    """
    inputs = token_ids[:, :-1]
    logits = model(inputs if source is None else [source, inputs])
    best, ids = ops.top_k(ops.log_softmax(logits, axis=-1), max(alternatives, 1))
    return (
        _log_probability(logits, token_ids[:, 1:]),
        ops.cast(ids, "int32")[..., :alternatives],
        best[..., :alternatives],
    )


def processor(request, stop_id, beams):
    """The settings of a `Request` as a function for `beam_search`.

    Args:
        request: a `Request` of B rows.
        stop_id: int, the token that ends a text, or several (S,).
        beams: int. W, the texts of a row, which stand side by side.

    Returns:
        A function of logits (B * W, V), step, and the texts' new tokens (B * W, N), which
        returns logits.
    """
    sampling = request.sampling.repeat(beams)
    prompts, lengths = (ops.repeat(x, beams, axis=0) for x in (request.token_ids, request.lengths))

    def processed(logits, step, token_ids):
        text = states = None
        if not sampling.ignores_text():
            text = _text(prompts, lengths, token_ids, ops.zeros_like(lengths) + step)
        if has_automaton(sampling):
            states = states_after(sampling, token_ids, step)
        return process(logits, sampling, step, text, stop_id, states)

    return processed


def _choose(state, logits, request, stop_id, pad_id):
    text = None
    if not request.sampling.ignores_text():
        text = _text(request.token_ids, request.lengths, state.token_ids, state.num_tokens)
    token = choose(logits, request.sampling, state.step, text, stop_id, state.automaton_state)
    if has_automaton(request.sampling):
        state = state._replace(
            automaton_state=ops.where(
                state.done,
                state.automaton_state,
                ops.maximum(follow(request.sampling, state.automaton_state, token), 0),
            )
        )
    stops = ops.logical_not(state.done) & is_stop(token, stop_id)
    counts = ops.logical_not(state.done | stops)
    log_p = _log_probability(logits, token)
    told = counts | (stops & ops.isnan(log_p))
    stop_token = ops.where(stops, token, state.stop_token)
    token = ops.where(counts, token, pad_id)
    here = ops.expand_dims(ops.arange(ops.shape(state.token_ids)[1]) == state.step, 0)
    stopped = state.stopped | stops
    num_tokens = state.num_tokens + ops.cast(counts, "int32")
    state = state._replace(
        step=state.step + 1,
        token=token,
        token_ids=ops.where(here, ops.expand_dims(token, 1), state.token_ids),
        token_log_probabilities=ops.where(
            here & ops.expand_dims(told, 1),
            ops.expand_dims(log_p, 1),
            state.token_log_probabilities,
        ),
        num_tokens=num_tokens,
        stopped=stopped,
        stop_token=stop_token,
        done=ops.logical_or(stopped, num_tokens >= request.budget),
    )
    alternatives = state.alternative_ids.shape[2]
    if not alternatives:
        return state
    best, ids = ops.top_k(ops.log_softmax(logits, axis=-1), alternatives)
    here = ops.expand_dims(here, -1)
    return state._replace(
        alternative_ids=ops.where(
            here, ops.expand_dims(ops.cast(ids, "int32"), 1), state.alternative_ids
        ),
        alternative_log_probabilities=ops.where(
            here, ops.expand_dims(best, 1), state.alternative_log_probabilities
        ),
    )


def _text(prompts, lengths, token_ids, counts):
    """Prompts (B, T) and new tokens (B, N) without the gap between them."""
    both = ops.concatenate([prompts, token_ids], axis=1)
    length, total = ops.shape(prompts)[1], ops.shape(both)[1]
    places = ops.expand_dims(ops.arange(total), 0)
    prompt_lengths = ops.expand_dims(lengths, 1)
    source = ops.where(places < prompt_lengths, places, places - prompt_lengths + length)
    both = ops.take_along_axis(both, ops.minimum(source, total - 1), axis=1)
    return Text(both, lengths, lengths + counts)


def _log_probability(logits, targets):
    """(..., V), (...) -> (...): log softmax(logits)[targets]."""
    chosen = ops.take_along_axis(logits, ops.expand_dims(targets, -1), axis=-1)
    return ops.squeeze(chosen, -1) - ops.logsumexp(logits, axis=-1)
