"""Greedy decoding with several tokens a step: proposals that the model reads at once and checks.

The text is the model's own, whatever proposes; good proposals only make it come sooner.
"""

import numbers
from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation.sampling import is_stop
from keras_llm.layers import causal_mask, empty_cache


class Speculation(NamedTuple):
    """What `speculative_generate` and `prompt_lookup_generate` return. All tensors.

    Attributes:
        token_ids: int32 (B, N), the new tokens; `pad_id` where there is none.
        num_tokens: int32 (B,), how many of them count (the stop token does not).
        log_probability: float32 (B,), the sum of the counted tokens' log-probabilities under the
            model, in nats.
        stopped: bool (B,), a stop token was chosen.
        rounds: int32 scalar, how many times the model was run after the prompts were read.
        proposed: int32 (B,), tokens proposed to the model.
        accepted: int32 (B,), those among them that it would have chosen itself.
    """

    token_ids: object
    num_tokens: object
    log_probability: object
    stopped: object
    rounds: object
    proposed: object
    accepted: object


class _State(NamedTuple):
    text: object  # int32 (B, T + N + k + 1): prompts and new tokens, without gaps
    count: object  # int32 (B,), how much of `text` counts
    log_probability: object
    stopped: object
    done: object
    rounds: object
    proposed: object
    accepted: object
    cache: dict
    draft_cache: dict


def speculative_generate(
    model,
    draft,
    token_ids,
    lengths,
    max_new_tokens,
    num_draft_tokens,
    stop_id,
    pad_id,
    capacity=None,
    logit_bias=None,
):
    """Greedy decoding, with tokens proposed by a smaller model.

    Each round the draft continues every row by k tokens, `model` reads them in one step, and
    those before the first that it would not have chosen are kept, and its own choice after
    them: 1 to k + 1 tokens a round. Tokens are those of `generate` with temperature 0, up to
    rounding: where two logits are as good as equal, reading k + 1 tokens at once may tip the
    balance.

    Args:
        model: a model from `models.causal_lm`.
        draft: another, of the same vocabulary. Past its own `max_length` it proposes worse.
        token_ids: int32 tensor (B, T), prompts padded on the right.
        lengths: int32 tensor (B,), in `1 .. T`, below the model's `max_length`.
        max_new_tokens: int32 tensor (B,) or (1,), > 0.
        num_draft_tokens: int > 0. k.
        stop_id: int, the token that ends a text, or several (S,).
        pad_id: int, fills unused places.
        capacity: int. N, the room for new tokens, at least the largest budget. Defaults to
            that; XLA needs a number.
        logit_bias: None, or float32 tensor (1, V) or (B, V), added to the logits that tokens
            are chosen from; -1e30 bans a token.

    Returns:
        A `Speculation`.

    Raises:
        InputError: if the vocabularies differ, or `num_draft_tokens` is out of range.

    Reference:
        Leviathan et al., 2022, "Fast Inference from Transformers via Speculative Decoding",
        with temperature 0.
    """
    sizes = [m.config.vocabulary_size for m in (model, draft)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"`draft` must have the model's vocabulary of {sizes[0]} tokens, got {sizes[1]}."
        )
    _check_size("num_draft_tokens", num_draft_tokens)

    def propose(text, count, cache):
        # The draft has not read its last proposal if the model took all of them, so it always
        # begins with the last two tokens; what it knew already stays the same.
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

    return _generate(
        model,
        draft,
        propose,
        token_ids,
        lengths,
        max_new_tokens,
        num_draft_tokens,
        stop_id,
        pad_id,
        capacity,
        logit_bias,
    )


def prompt_lookup_generate(
    model,
    token_ids,
    lengths,
    max_new_tokens,
    num_draft_tokens,
    ngram_size,
    stop_id,
    pad_id,
    capacity=None,
    logit_bias=None,
):
    """Greedy decoding, with tokens proposed from the text itself.

    Where the last `ngram_size` tokens stood before, the tokens that followed their latest
    earlier occurrence are proposed (over again, where fewer than k followed); see
    `speculative_generate` for the rest. Good for texts that repeat their prompt: summaries,
    code, answers with quotations.

    Args:
        ngram_size: int > 0. A larger one proposes less often and better.
        model, token_ids, lengths, max_new_tokens, num_draft_tokens, stop_id, pad_id, capacity,
        logit_bias: as of `speculative_generate`.

    Returns:
        A `Speculation`; nothing counts as proposed in rounds without an earlier occurrence.

    Raises:
        InputError: if `num_draft_tokens` or `ngram_size` is out of range.

    Reference:
        Saxena, 2023, "Prompt Lookup Decoding".
    """
    _check_size("num_draft_tokens", num_draft_tokens)
    _check_size("ngram_size", ngram_size)

    def propose(text, count, cache):
        ends = ops.expand_dims(ops.arange(ops.shape(text)[1]), 0)
        last = ops.expand_dims(count - 1, 1)
        equal = (ends >= ngram_size - 1) & (ends < last)
        for i in range(ngram_size):
            equal = equal & (ops.roll(text, i, axis=1) == _take(text, ops.maximum(last - i, 0)))
        end = ops.max(ops.where(equal, ends, -1), axis=1, keepdims=True)
        places = end + 1 + ops.mod(ops.arange(num_draft_tokens), ops.maximum(last - end, 1))
        offered = ops.where(end[:, 0] >= 0, num_draft_tokens, 0)
        return _take(text, places), offered, cache

    return _generate(
        model,
        None,
        propose,
        token_ids,
        lengths,
        max_new_tokens,
        num_draft_tokens,
        stop_id,
        pad_id,
        capacity,
        logit_bias,
    )


def _generate(
    model,
    draft,
    propose,
    token_ids,
    lengths,
    max_new_tokens,
    count,
    stop_id,
    pad_id,
    capacity,
    logit_bias,
):
    """`propose(text, count, cache)` gives tokens (B, k), how many of them it stands for (B,),
    and its cache."""
    token_ids = ops.convert_to_tensor(token_ids, "int32")
    lengths = ops.convert_to_tensor(lengths, "int32")
    budget = ops.minimum(ops.cast(max_new_tokens, "int32"), model.config.max_length - lengths)
    capacity = ops.max(budget) if capacity is None else capacity
    end = lengths + budget
    rows, length = ops.shape(token_ids)[:2]

    def read_prompts(model):
        cache = _full_cache(model, rows, length + capacity + count)
        return _read(model, token_ids, ops.convert_to_tensor(0, "int32"), cache)[1]

    def goes_on(*state):
        return ops.logical_not(ops.all(_State(*state).done))

    def advance(*state):
        state = _State(*state)
        proposals, offered, draft_cache = propose(state.text, state.count, state.draft_cache)
        last = ops.expand_dims(state.count - 1, 1)
        block = ops.concatenate([_take(state.text, last), proposals], axis=1)
        # A slot of a token that is refused is written again before a query may look at it.
        logits, cache = _read(model, block, state.count - 1, state.cache)
        chosen = _greedy(logits, logit_bias)
        log_p = ops.take_along_axis(logits, ops.expand_dims(chosen, -1), axis=-1)
        log_p = ops.squeeze(log_p, -1) - ops.logsumexp(logits, axis=-1)
        places = ops.expand_dims(ops.arange(count + 1), 0)
        agrees = (chosen[:, :-1] == proposals) & (places[:, :-1] < ops.expand_dims(offered, 1))
        accepted = _sum(_none_before(ops.logical_not(agrees)))
        stops = is_stop(chosen, stop_id)
        due = places <= ops.expand_dims(accepted, 1)
        due = due & (places < ops.expand_dims(end - state.count, 1))
        due = due & ops.logical_not(ops.expand_dims(state.done, 1))
        counts = due & _none_before(stops)
        added = _sum(counts)
        told = counts | (due & ops.isnan(log_p))
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
                + ops.sum(ops.where(told, log_p, 0.0), axis=1),
                stopped=stopped,
                done=stopped | (state.count + added >= end),
                rounds=state.rounds + 1,
                proposed=state.proposed + ops.where(state.done, 0, offered),
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
    state = _State(*ops.while_loop(goes_on, advance, tuple(state)))
    places = ops.expand_dims(lengths, 1) + ops.arange(capacity)
    return Speculation(
        token_ids=ops.where(
            places < ops.expand_dims(state.count, 1), _take(state.text, places), pad_id
        ),
        num_tokens=state.count - lengths,
        log_probability=state.log_probability,
        stopped=state.stopped,
        rounds=state.rounds,
        proposed=state.proposed,
        accepted=state.accepted,
    )


def _full_cache(model, rows, length):
    """As `models.init_cache`, with all slots in windowed layers too: in a ring, a token that is
    refused would have taken the place of one that is still in sight."""
    config, cache = model.config, {}
    for i in range(config.num_layers):
        cache[f"k_{i}"], cache[f"v_{i}"] = empty_cache(
            rows,
            length,
            config.num_key_value_heads,
            config.head_dim,
            dtype=model.get_layer(f"block_{i}").compute_dtype,
        )
    return cache


def _read(model, token_ids, first, cache):
    """Read token ids (B, T) that stand from position `first`, a scalar or (B,), on; returns
    logits (B, T, V) and the cache."""
    positions = ops.expand_dims(first, -1) + ops.arange(token_ids.shape[1])
    slots = ops.arange(ops.shape(cache["k_0"])[2])
    hidden, cache = models.forward_cached(
        model, token_ids, positions, cache, first, causal_mask(positions, slots)
    )
    return models.logits_of(model, hidden), cache


def _greedy(logits, logit_bias):
    """(B, T, V) and a bias (1 or B, V) -> (B, T)."""
    if logit_bias is not None:
        logits = logits + ops.expand_dims(logit_bias, 1)
    return ops.cast(ops.argmax(logits, axis=-1), "int32")


def _take(rows, places):
    """(B, S), (B, P) -> (B, P)."""
    return ops.take_along_axis(rows, places, axis=1)


def _sum(mask):
    """How many of each row, int32 (B,)."""
    return ops.sum(ops.cast(mask, "int32"), axis=1)


def _none_before(mask):
    """True up to a row's first True, and False from there on."""
    return ops.cumsum(ops.cast(mask, "int32"), axis=1) == 0


def _check_size(name, value):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise InputError(f"`{name}` must be a positive int, got {value!r}.")
