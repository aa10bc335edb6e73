"""Speed up greedy decoding with draft tokens that the model verifies in one forward pass.

The drafts do not change the text; good drafts only make decoding faster.
"""

from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import loop
from keras_llm.generation.checks import check_count, check_only_bias
from keras_llm.generation.sampling import is_stop
from keras_llm.generation.scoring import log_probability
from keras_llm.layers import causal_mask
from keras_llm.models.decoder import decoder_of
from keras_llm.types import Tensor


class Speculation(NamedTuple):
    """The result of `speculative_generate` and `prompt_lookup_generate`. All fields are tensors.

    Attributes:
        token_ids: int32 (B, N), the new tokens without the stop token, padded with `pad_id`.
        num_tokens: int32 (B,), the number of new tokens.
        log_probability: float32 (B,), the sum of their log-probabilities under the model, in
            nats.
        stopped: bool (B,), whether a stop token was chosen.
        rounds: int32 scalar, the number of forward passes of the model after the prefill.
        proposed: int32 (B,), the number of draft tokens.
        accepted: int32 (B,), the number of draft tokens that the model accepted.
    """

    token_ids: Tensor
    num_tokens: Tensor
    log_probability: Tensor
    stopped: Tensor
    rounds: Tensor
    proposed: Tensor
    accepted: Tensor


class _State(NamedTuple):
    text: Tensor  # int32 (B, T + N + k + 1), prompts and new tokens without padding in between
    count: Tensor  # int32 (B,), the number of tokens in `text`
    log_probability: Tensor
    stopped: Tensor
    done: Tensor
    rounds: Tensor
    proposed: Tensor
    accepted: Tensor
    cache: dict[str, Tensor]
    draft_cache: dict[str, Tensor]


def speculative_generate(
    model: models.CausalLM,
    request: loop.Request,
    draft: models.CausalLM,
    num_draft_tokens: int,
    stop_id: int | Tensor,
    pad_id: int,
    capacity: int | Tensor | None = None,
) -> Speculation:
    """Decode greedily with draft tokens from a smaller model.

    In each round, the draft model generates k tokens for every row and `model` verifies them in one
    forward pass. The longest prefix of draft tokens that `model` would have chosen is kept,
    followed by one token of `model`: 1 to k + 1 tokens per round. The tokens are the same as those
    of `generate` with temperature 0, up to rounding: when two logits are nearly equal, a forward
    pass over k + 1 tokens may choose the other one.

    Args:
        model: a model from `models.causal_lm`.
        request: a `Request` from `make_request`. Of its settings, only `logit_bias` is supported;
            `temperature` and `seed` are ignored.
        draft: a smaller model with the same vocabulary. Its drafts are worse beyond its own
            `max_length`.
        num_draft_tokens: int > 0. The number k of draft tokens per round.
        stop_id: int or int32 tensor (S,). Stop tokens.
        pad_id: int. Padding token.
        capacity: int. N, the number of slots for new tokens, at least the largest budget (the
            default). XLA requires an int.

    Returns:
        A `Speculation`.

    Raises:
        InputError: if the vocabulary sizes differ, `num_draft_tokens` is out of range, or a
            setting is not supported.

    Reference:
        Leviathan et al., 2022, "Fast Inference from Transformers via Speculative Decoding",
        with temperature 0.
    """
    sizes = [m.config.vocabulary_size for m in (model, draft)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"`draft` must have the model's vocabulary size {sizes[0]}, got {sizes[1]}."
        )
    check_count("speculative_generate", "num_draft_tokens", num_draft_tokens)
    check_only_bias("speculative_generate", request.sampling)
    logit_bias = request.sampling.logit_bias

    def propose(text, count, cache):
        # If the model accepted all drafts, the last one is not in the draft's cache yet. So each
        # round begins with the last two tokens; rewriting a cached token does not change it.
        first = ops.maximum(count - 2, 0)
        both = _take(text, ops.expand_dims(first, 1) + ops.arange(2))
        logits, cache = _read(draft, both, first, cache)
        token = _take(_greedy(logits, logit_bias), ops.expand_dims(count - 1 - first, 1))

        def step(i, token, tokens, cache):
            here = ops.expand_dims(ops.arange(num_draft_tokens) == i, 0)
            tokens = ops.where(here, token, tokens)
            logits, cache = _read(draft, token, count + i, cache)
            return i + 1, _greedy(logits, logit_bias), tokens, cache

        _, token, tokens, cache = ops.while_loop(
            lambda i, *_: i < num_draft_tokens - 1,
            step,
            (
                ops.convert_to_tensor(0, "int32"),
                token,
                ops.repeat(ops.zeros_like(token), num_draft_tokens, axis=1),
                cache,
            ),
        )
        tokens = ops.concatenate([tokens[:, :-1], token], axis=1)
        return tokens, ops.zeros_like(count) + num_draft_tokens, cache

    return _generate(model, request, draft, propose, num_draft_tokens, stop_id, pad_id, capacity)


def prompt_lookup_generate(
    model: models.CausalLM,
    request: loop.Request,
    num_draft_tokens: int,
    ngram_size: int,
    stop_id: int | Tensor,
    pad_id: int,
    capacity: int | Tensor | None = None,
) -> Speculation:
    """Decode greedily with draft tokens copied from the text.

    If the last `ngram_size` tokens occur earlier in the text, the drafts are the k tokens after
    their latest earlier occurrence (repeated if there are fewer than k). Otherwise like
    `speculative_generate`. Suited to texts that repeat their prompt: summaries, code, answers with
    quotations.

    Args:
        ngram_size: int > 0. A larger value gives fewer but better drafts.
        model, request, num_draft_tokens, stop_id, pad_id, capacity: see `speculative_generate`.

    Returns:
        A `Speculation`; `proposed` does not count rounds without an earlier occurrence.

    Raises:
        InputError: if `num_draft_tokens` or `ngram_size` is out of range, or a setting is not
            supported.

    Reference:
        Saxena, 2023, "Prompt Lookup Decoding".
    """
    check_count("prompt_lookup_generate", "num_draft_tokens", num_draft_tokens)
    check_count("prompt_lookup_generate", "ngram_size", ngram_size)
    check_only_bias("prompt_lookup_generate", request.sampling)

    def propose(text, count, cache):
        ends = ops.expand_dims(ops.arange(ops.shape(text)[1]), 0)
        last = ops.expand_dims(count - 1, 1)
        equal = (ends >= ngram_size - 1) & (ends < last)
        for i in range(ngram_size):
            equal = equal & (ops.roll(text, i, axis=1) == _take(text, ops.maximum(last - i, 0)))
        end = ops.max(ops.where(equal, ends, -1), axis=1, keepdims=True)
        positions = end + 1 + ops.mod(ops.arange(num_draft_tokens), ops.maximum(last - end, 1))
        proposed = ops.where(end[:, 0] >= 0, num_draft_tokens, 0)
        return _take(text, positions), proposed, cache

    return _generate(model, request, None, propose, num_draft_tokens, stop_id, pad_id, capacity)


def _generate(model, request, draft, propose, count, stop_id, pad_id, capacity):
    """Run rounds of draft and verification.

    `propose(text, count, cache)` returns draft tokens (B, k), how many of them count as proposed
    (B,), and the draft's cache.
    """
    token_ids, lengths, budget, sampling = request
    capacity = ops.max(budget) if capacity is None else capacity
    end = lengths + budget
    rows, length = ops.shape(token_ids)[:2]

    def read_prompts(model):
        cache = _full_cache(model, rows, length + capacity + count)
        return _read(model, token_ids, ops.convert_to_tensor(0, "int32"), cache)[1]

    def should_continue(*state):
        return ops.logical_not(ops.all(_State(*state).done))

    def advance(*state):
        state = _State(*state)
        proposals, proposed, draft_cache = propose(state.text, state.count, state.draft_cache)
        last = ops.expand_dims(state.count - 1, 1)
        block = ops.concatenate([_take(state.text, last), proposals], axis=1)
        # The slot of a rejected token is overwritten before a query can attend to it.
        logits, cache = _read(model, block, state.count - 1, state.cache)
        chosen = _greedy(logits, sampling.logit_bias)
        log_p = log_probability(logits, chosen)
        index = ops.expand_dims(ops.arange(count + 1), 0)
        agrees = (chosen[:, :-1] == proposals) & (index[:, :-1] < ops.expand_dims(proposed, 1))
        accepted = _sum(_none_before(ops.logical_not(agrees)))
        stops = is_stop(chosen, stop_id)
        due = index <= ops.expand_dims(accepted, 1)
        due = due & (index < ops.expand_dims(end - state.count, 1))
        due = due & ops.logical_not(ops.expand_dims(state.done, 1))
        counts = due & _none_before(stops)
        added = _sum(counts)
        # A NaN is recorded even at a stop token, so that the caller can raise an error.
        is_recorded = counts | (due & ops.isnan(log_p))
        source = ops.arange(ops.shape(state.text)[1]) - ops.expand_dims(state.count, 1)
        text = ops.where(
            (source >= 0) & (source < ops.expand_dims(added, 1)),
            _take(chosen, ops.clip(source, 0, count)),
            state.text,
        )
        stopped = state.stopped | ops.any(due & stops, axis=1)
        return tuple(
            _State(
                text=text,
                count=state.count + added,
                log_probability=state.log_probability
                + ops.sum(ops.where(is_recorded, log_p, 0.0), axis=1),
                stopped=stopped,
                done=stopped | (state.count + added >= end),
                rounds=state.rounds + 1,
                proposed=state.proposed + ops.where(state.done, 0, proposed),
                accepted=state.accepted + ops.where(state.done, 0, accepted),
                cache=cache,
                draft_cache=draft_cache,
            )
        )

    room = ops.zeros((rows, capacity + count + 1), dtype="int32")
    zeros = ops.zeros_like(lengths)
    state = _State(
        text=ops.concatenate([token_ids, room], axis=1),
        count=lengths,
        log_probability=ops.cast(zeros, "float32"),
        stopped=zeros > 0,
        done=end <= lengths,
        rounds=ops.convert_to_tensor(0, "int32"),
        proposed=zeros,
        accepted=zeros,
        cache=read_prompts(model),
        draft_cache={} if draft is None else read_prompts(draft),
    )
    state = _State(*ops.while_loop(should_continue, advance, tuple(state)))
    positions = ops.expand_dims(lengths, 1) + ops.arange(capacity)
    return Speculation(
        token_ids=ops.where(
            positions < ops.expand_dims(state.count, 1), _take(state.text, positions), pad_id
        ),
        num_tokens=state.count - lengths,
        log_probability=state.log_probability,
        stopped=state.stopped,
        rounds=state.rounds,
        proposed=state.proposed,
        accepted=state.accepted,
    )


def _full_cache(model, rows, length):
    """Return an empty cache without the rings of sliding-window layers.

    In a ring, a rejected token would overwrite a token that is still within the window.
    """
    cache = models.init_cache(model, rows, length, rings=False)
    if states := cache.keys() - decoder_of(model).full_axes.keys():
        raise InputError(
            "speculative decoding does not support models with states, from which rejected tokens "
            f"cannot be removed: {', '.join(sorted(states))}."
        )
    return cache


def _read(model, token_ids, first, cache):
    """Run the model on token ids (B, T) from position `first`, a scalar or (B,).

    Returns logits (B, T, V) and the cache.
    """
    positions = ops.expand_dims(first, -1) + ops.arange(token_ids.shape[1])
    name, axis = next(iter(decoder_of(model).full_axes.items()))
    slots = ops.arange(ops.shape(cache[name])[axis])
    hidden, cache = models.forward_cached(
        model, token_ids, positions, cache, first, causal_mask(positions, slots)
    )
    return models.logits_of(model, hidden), cache


def _greedy(logits, logit_bias):
    """Return the most likely tokens (B, T) of logits (B, T, V) plus a bias (1 or B, V)."""
    if logit_bias is not None:
        logits = logits + ops.expand_dims(logit_bias, 1)
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def _take(rows, positions):
    """Gather positions (B, P) of rows (B, S)."""
    return ops.take_along_axis(rows, positions, axis=1)


def _sum(mask):
    """Count the True values of each row, int32 (B,)."""
    return ops.sum(ops.cast(mask, "int32"), axis=1)


def _none_before(mask):
    """Return True before the first True of each row, and False from there."""
    return ops.cumsum(ops.cast(mask, "int32"), axis=1) == 0
