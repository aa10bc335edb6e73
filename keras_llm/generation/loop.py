"""Run the decode loop: `start` and `advance`, in eager mode, compiled or inside a graph.

`generate`, `CompiledGenerator`, the `Engine` and SavedModels call it. All fields of a `State` have
one value per row, so the rows of a batch may be at different steps.
"""

from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.generation.checks import check_count
from keras_llm.generation.sampling import Sampling, Text, choose, is_stop, process
from keras_llm.generation.scoring import log_probability
from keras_llm.types import Tensor


class State(NamedTuple):
    """The state of a batch of generations. All fields are tensors of constant shape.

    Attributes:
        token: int32 (B,), the last token chosen.
        token_ids: int32 (B, N), the tokens chosen, padded with `pad_id`.
        token_log_probabilities: float32 (B, N), their log-probabilities in nats under the model's
            own distribution (temperature 1, unfiltered), padded with 0. NaN if the model's logits
            are NaN.
        alternative_ids: int32 (B, N, A), the most likely tokens at each position.
        alternative_log_probabilities: float32 (B, N, A), their log-probabilities.
        num_tokens: int32 (B,), the number of new tokens, without the stop token.
        stopped: bool (B,), whether a stop token was chosen.
        stop_token: int32 (B,), the stop token chosen; -1 if none.
        done: bool (B,), stopped or out of budget.
        cache: dict from `models.init_cache`.
    """

    token: Tensor
    token_ids: Tensor
    token_log_probabilities: Tensor
    alternative_ids: Tensor
    alternative_log_probabilities: Tensor
    num_tokens: Tensor
    stopped: Tensor
    stop_token: Tensor
    done: Tensor
    cache: dict[str, Tensor]

    @property
    def log_probability(self) -> Tensor:
        """Float32 (B,), the sum of the log-probabilities of the new tokens."""
        return ops.sum(self.token_log_probabilities, axis=1)


class Request(NamedTuple):
    """The prompts and settings of a batch of generations.

    Attributes:
        token_ids: int32 (B, T), prompts padded on the right.
        lengths: int32 (B,), prompt lengths.
        budget: int32 (B,), the maximum number of new tokens for each row, at most N.
        sampling: `Sampling` of tensors.
    """

    token_ids: Tensor
    lengths: Tensor
    budget: Tensor
    sampling: Sampling


def make_request(
    model: models.CausalLM | models.Seq2Seq,
    token_ids: Tensor,
    lengths: Tensor,
    max_new_tokens: int | Tensor,
    sampling: Sampling | None = None,
) -> Request:
    """Return a `Request` with budgets limited by the model's `max_length`.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        token_ids: int32 tensor (B, T), prompts padded on the right.
        lengths: int32 tensor (B,), in `1 .. T`, below the model's `max_length`.
        max_new_tokens: int > 0, or int32 tensor (B,) or (1,).
        sampling: `Sampling` of tensors, each (B,) or (1,). None means the defaults.

    Raises:
        InputError: if `max_new_tokens` is not an int > 0. Tensors are not checked.
    """
    if not hasattr(max_new_tokens, "shape"):
        check_count("make_request", "max_new_tokens", max_new_tokens)
    lengths = ops.cast(lengths, "int32")
    budget = ops.minimum(ops.cast(max_new_tokens, "int32"), model.config.max_length - lengths)
    sampling = Sampling().tensors() if sampling is None else sampling
    return Request(ops.cast(token_ids, "int32"), lengths, budget, sampling)


def start(
    model: models.CausalLM | models.Seq2Seq,
    request: Request,
    capacity: int | Tensor,
    stop_id: int | Tensor,
    pad_id: int,
    encoder_cache: dict[str, Tensor] | None = None,
    samples: int = 1,
    alternatives: int = 0,
    prefix: tuple[dict[str, Tensor], Tensor, int] | None = None,
) -> tuple[State, Request]:
    """Prefill the prompts and choose the first token of each row.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        request: a `Request` with B / `samples` prompts.
        capacity: int or int32 scalar. N, the number of slots for new tokens.
        stop_id: int or int32 tensor (S,). Stop tokens.
        pad_id: int. Padding token.
        encoder_cache: dict from `models.encode_source`, for a `seq2seq` model.
        samples: int. Number of texts per prompt, from one prefill. Budgets and settings are
            those of the B texts; the texts of one prompt are adjacent.
        alternatives: int. A, the number of likely tokens to return for each position.
        prefix: None, or a tuple of a cache that contains the first tokens of the prompts, with at
            most as many slots as the new one; an int32 scalar, the number of these tokens; and an
            int, the number of tokens to prefill at a time.

    Returns:
        The `State` after the first step and the `Request` with B rows.
    """
    rows, length = ops.shape(request.token_ids)[:2]
    cache = {**models.init_cache(model, rows, length + capacity), **(encoder_cache or {})}
    reading = {}
    if prefix is not None:
        held, reading["first"], reading["chunk"] = prefix
        cache |= {
            name: ops.slice_update(cache[name], (0,) * len(cache[name].shape), entry)
            for name, entry in held.items()
        }
    logits, cache = models.prefill(model, request.token_ids, request.lengths, cache, **reading)
    if samples > 1:
        logits = ops.repeat(logits, samples, axis=0)
        cache = repeat_rows(cache, samples)
        request = request._replace(
            token_ids=ops.repeat(request.token_ids, samples, axis=0),
            lengths=ops.repeat(request.lengths, samples, axis=0),
        )
    state = empty_state(request, capacity, pad_id, cache, alternatives)
    return _choose(state, logits, request, stop_id, pad_id), request


def empty_state(
    request: Request,
    capacity: int | Tensor,
    pad_id: int,
    cache: dict[str, Tensor],
    alternatives: int = 0,
) -> State:
    """Return a `State` without new tokens for the B rows of a request; see `start`."""
    rows, zeros = ops.shape(request.lengths)[0], ops.zeros_like(request.lengths)
    return State(
        token=zeros,
        token_ids=ops.zeros((rows, capacity), dtype="int32") + pad_id,
        token_log_probabilities=ops.zeros((rows, capacity), dtype="float32"),
        alternative_ids=ops.zeros((rows, capacity, alternatives), dtype="int32"),
        alternative_log_probabilities=ops.zeros((rows, capacity, alternatives), dtype="float32"),
        num_tokens=zeros,
        stopped=ops.cast(zeros, "bool"),
        stop_token=zeros - 1,
        done=request.budget <= 0,
        cache=cache,
    )


def repeat_rows(cache: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    """Repeat each row of a cache; the copies of a row are adjacent.

    Args:
        cache: dict of tensors (B, ...), e.g. from `models.init_cache` and `models.encode_source`.
        times: int > 0.

    Returns:
        A dict of tensors (B * times, ...).
    """
    return {name: ops.repeat(entry, times, axis=0) for name, entry in cache.items()}


def advance(
    model: models.CausalLM | models.Seq2Seq,
    state: State,
    request: Request,
    stop_id: int | Tensor,
    pad_id: int,
    choose: Callable[..., Tensor] = choose,
) -> State:
    """Choose the next token of each row. Rows that are done do not change.

    `choose` is a replacement for `generation.choose` that returns the same tokens.
    """
    # A row that is done repeats its last position, so that it never exceeds the cache.
    positions = request.lengths + state.num_tokens - 1
    logits, cache = models.decode(
        model, ops.expand_dims(state.token, 1), ops.expand_dims(positions, 1), state.cache
    )
    return _choose(state._replace(cache=cache), logits, request, stop_id, pad_id, choose)


def advance_until(
    model: models.CausalLM | models.Seq2Seq,
    state: State,
    request: Request,
    stop_id: int | Tensor,
    pad_id: int,
    num_steps: int | Tensor | None = None,
    choose: Callable[..., Tensor] = choose,
) -> State:
    """Call `advance` until every row is done, at most `num_steps` times (an int32 scalar)."""

    def should_continue(step, *state):
        unfinished = ops.logical_not(ops.all(State(*state).done))
        return unfinished if num_steps is None else ops.logical_and(unfinished, step < num_steps)

    def body(step, *state):
        return step + 1, *advance(model, State(*state), request, stop_id, pad_id, choose)

    first = ops.convert_to_tensor(0, "int32")
    _, *state = ops.while_loop(should_continue, body, (first, *state))
    return State(*state)


def generate(
    model: models.CausalLM | models.Seq2Seq,
    token_ids: Tensor,
    lengths: Tensor,
    max_new_tokens: int | Tensor,
    sampling: Sampling,
    stop_id: int | Tensor,
    pad_id: int,
    encoder_cache: dict[str, Tensor] | None = None,
    samples: int = 1,
    alternatives: int = 0,
) -> State:
    """Continue a batch of prompts until each has stopped or used up its budget.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        token_ids: int32 tensor (B, T), prompts padded on the right.
        lengths: int32 tensor (B,), in `1 .. T`, below the model's `max_length`.
        max_new_tokens: int32 tensor (B,) or (1,), > 0.
        sampling: `Sampling` of tensors, each (B,) or (1,).
        stop_id: int or int32 tensor (S,). Stop tokens.
        pad_id: int. Padding token.
        encoder_cache: dict from `models.encode_source`, for a `seq2seq` model.
        samples, alternatives: see `start`. With several samples, `max_new_tokens` is (1,).

    Returns:
        The last `State`. `token_ids` is (B, N), where N is the largest budget.
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


def processor(
    request: Request, stop_id: int | Tensor, beams: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return a logits processor that applies the settings of a `Request` to its beams.

    Args:
        request: a `Request` with B rows.
        stop_id: int or int32 tensor (S,). Stop tokens.
        beams: int. W, the number of beams per row; the beams of a row are adjacent.

    Returns:
        A function of logits (B * W, V), the step (an int32 scalar), the new tokens (B * W, N) and
        which beams are not live, bool (B * W,), that returns logits. It removes all tokens of a
        beam that cannot continue.
    """
    sampling = request.sampling.repeat(beams)
    prompts, lengths = (ops.repeat(x, beams, axis=0) for x in (request.token_ids, request.lengths))

    def processed(logits, step, token_ids, done):
        text = None
        if not sampling.ignores_text():
            text = _text(prompts, lengths, token_ids, ops.zeros_like(lengths) + step)
        return process(logits, sampling, step, text, stop_id, done, is_search=True)

    return processed


def _choose(state, logits, request, stop_id, pad_id, choose=choose):
    text = None
    if not request.sampling.ignores_text():
        text = _text(request.token_ids, request.lengths, state.token_ids, state.num_tokens)
    token = choose(logits, request.sampling, state.num_tokens, text, stop_id, state.done)
    is_live = ops.logical_not(state.done)
    stops = is_live & is_stop(token, stop_id)
    counts = is_live & ops.logical_not(stops)
    log_p = log_probability(logits, token)
    # A NaN is recorded even at a stop token, so that the caller can raise an error.
    is_recorded = counts | (stops & ops.isnan(log_p))
    stop_token = ops.where(stops, token, state.stop_token)
    token = ops.where(counts, token, pad_id)
    positions = ops.expand_dims(ops.arange(ops.shape(state.token_ids)[1]), 0)
    here = (positions == ops.expand_dims(state.num_tokens, 1)) & ops.expand_dims(is_live, 1)
    stopped = state.stopped | stops
    num_tokens = state.num_tokens + ops.cast(counts, "int32")
    state = state._replace(
        token=token,
        token_ids=ops.where(here, ops.expand_dims(token, 1), state.token_ids),
        token_log_probabilities=ops.where(
            here & ops.expand_dims(is_recorded, 1),
            ops.expand_dims(log_p, 1),
            state.token_log_probabilities,
        ),
        num_tokens=num_tokens,
        stopped=stopped,
        stop_token=stop_token,
        done=state.done | stopped | (num_tokens >= request.budget),
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
    """Join prompts (B, T) and new tokens (B, N) without padding between them."""
    both = ops.concatenate([prompts, token_ids], axis=1)
    length, total = ops.shape(prompts)[1], ops.shape(both)[1]
    positions = ops.expand_dims(ops.arange(total), 0)
    prompt_lengths = ops.expand_dims(lengths, 1)
    source = ops.where(positions < prompt_lengths, positions, positions - prompt_lengths + length)
    both = ops.take_along_axis(both, ops.minimum(source, total - 1), axis=1)
    return Text(both, lengths, lengths + counts)
