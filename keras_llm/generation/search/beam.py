"""Search for the most probable texts with beam search."""

import math
from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation import loop
from keras_llm.generation.checks import check_count, check_number
from keras_llm.generation.logits_processors import REMOVED, occurrences
from keras_llm.generation.sampling import is_stop
from keras_llm.types import Tensor

_ABSENT = -1e30  # log-probability of a missing beam; finite, so that sums are not NaN
_MOST_PENALTY = 1e28  # for diversity, so that a removed token or missing beam is never preferred


class Beams(NamedTuple):
    """The result of `beam_search`: R texts for each row, best first.

    Attributes:
        token_ids: int32 (B, R, N), the new tokens without the stop token, padded with `pad_id`.
        num_tokens: int32 (B, R), the number of new tokens.
        log_probability: float32 (B, R), the sum of the log-probabilities of the new tokens and the
            stop token, if any, in nats. -inf where a row has fewer than R texts, e.g. because a
            `constraint` leaves none.
        score: float32 (B, R), `log_probability` divided by the length penalty.
        stopped: bool (B, R), whether the text ended with a stop token.
    """

    token_ids: Tensor
    num_tokens: Tensor
    log_probability: Tensor
    score: Tensor
    stopped: Tensor


def beam_search(
    model: models.CausalLM | models.Seq2Seq,
    request: loop.Request,
    beam_width: int,
    stop_id: int | Tensor,
    pad_id: int,
    length_penalty: float | Tensor = 1.0,
    num_return_sequences: int = 1,
    diversity_groups: int = 1,
    diversity_penalty: float | Tensor = 0.0,
    encoder_cache: dict[str, Tensor] | None = None,
    capacity: int | Tensor | None = None,
) -> Beams:
    """Search for the texts with the highest score.

    `score = log_probability / ((5 + n) / 6) ** length_penalty`, n tokens including the stop token

    Each step considers the `beam_width` most probable continuations of all live beams. Those that
    end with a stop token are finished and scored. The most probable of the others stay live; the
    next best continuations replace finished beams. (With a width of one, a finished beam is not
    replaced, so that the search is greedy decoding.) Live beams that reach their budget are also
    scored. A row ends early when no live beam can exceed the finished scores.

    With diversity groups, each group is a search with `beam_width / diversity_groups` beams. In
    each step, the groups choose in turn, and `diversity_penalty` is subtracted from the
    log-probability of a token for each time an earlier group has chosen it in this step. The
    penalty affects only the choice, not the log-probabilities and scores that are returned.
    Different groups may return the same text.

    The settings of the request that affect greedy decoding apply to every beam (see `processor`);
    probabilities are those of the processed logits. A beam without a possible next token is
    dropped.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        request: a `Request` from `make_request`; for a `seq2seq` model, its prompts are the
            decoder's, such as the config's `start_id`.
        beam_width: int > 0. W, the number of live beams per row, over all groups.
        stop_id: int or int32 tensor (S,). Stop tokens; negative for none.
        pad_id: int. Padding token.
        length_penalty: float, or float32 tensor (1,) or (B,). 0 ranks by log-probability, which
            favors short texts; larger values favor longer texts.
        num_return_sequences: int in `1 .. W`. R.
        diversity_groups: int that divides W.
        diversity_penalty: float >= 0, in nats.
        encoder_cache: dict from `models.encode_source`, for a `seq2seq` model.
        capacity: int. N, the number of slots for new tokens, at least the largest budget (the
            default). XLA requires an int.

    Returns:
        `Beams`.

    Raises:
        InputError: if an argument is invalid; the message names it.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.causal_lm(models.preset("llama-tiny"))
    >>> prompts = np.array([[5, 6, 7], [8, 9, 0]])
    >>> request = loop.make_request(model, prompts, np.array([3, 2]), max_new_tokens=4)
    >>> beams = beam_search(model, request, beam_width=2, stop_id=1, pad_id=0)
    >>> tuple(beams.token_ids.shape)
    (2, 1, 4)

    Reference:
        Sutskever et al., 2014, "Sequence to Sequence Learning with Neural Networks"; Wu et al.,
        2016, "Google's Neural Machine Translation System", eq. 14 (length penalty); Vijayakumar
        et al., 2016, "Diverse Beam Search" (groups, Hamming diversity).
    """
    check_count("beam_search", "beam_width", beam_width)
    check_count("beam_search", "num_return_sequences", num_return_sequences, beam_width)
    check_count("beam_search", "diversity_groups", diversity_groups, beam_width)
    if beam_width % diversity_groups:
        raise InputError(
            f"beam_search: `diversity_groups` must divide `beam_width` ({beam_width}), "
            f"got {diversity_groups}."
        )
    check_number("beam_search", "length_penalty", length_penalty)
    check_number("beam_search", "diversity_penalty", diversity_penalty, 0)

    token_ids, lengths, budget, _ = request
    batch_size, length = ops.shape(token_ids)[:2]
    capacity = ops.max(budget) if capacity is None else capacity
    encoder_cache = encoder_cache or {}
    if hasattr(length_penalty, "shape"):
        length_penalty = ops.reshape(length_penalty, (-1, 1))
    width = beam_width // diversity_groups
    # A group keeps no more texts than are returned, so that it can end early.
    kept = min(width, num_return_sequences)
    process = loop.processor(request, stop_id, beam_width)
    search = _Search(width, kept, budget, stop_id, length_penalty, diversity_penalty, process)
    group = _new_group(budget, width, kept, capacity, pad_id)

    cache = {**models.init_cache(model, batch_size, length + capacity), **encoder_cache}
    logits, cache = models.prefill(model, token_ids, lengths, cache)
    cache = loop.repeat_rows(cache, beam_width)
    encoder_cache = {name: cache.pop(name) for name in encoder_cache}
    logits = ops.repeat(logits, beam_width, axis=0)
    step = ops.convert_to_tensor(0, "int32")
    groups, _ = search.choose((group,) * diversity_groups, logits, step)
    first_rows = ops.expand_dims(ops.arange(batch_size, dtype="int32") * beam_width, 1)

    def advance(step, groups, cache):
        token = ops.concatenate([group.token for group in groups], axis=1)
        # A row that is done repeats its last position, so that it never exceeds the cache.
        positions = ops.repeat(lengths + ops.minimum(step, budget) - 1, beam_width)
        logits, cache = models.decode(
            model,
            ops.reshape(token, (-1, 1)),
            ops.expand_dims(positions, 1),
            {**cache, **encoder_cache},
        )
        groups, parents = search.choose(groups, logits, step)
        rows = ops.reshape(first_rows + parents, (-1,))
        # A row's beams share the encoder cache, so it does not need to be reordered.
        cache = {
            name: ops.take(entry, rows, axis=0)
            for name, entry in cache.items()
            if name not in encoder_cache
        }
        return step + 1, groups, cache

    def should_continue(step, groups, cache):
        return ops.any(ops.stack([_exists(group.log_probability) for group in groups]))

    _, groups, _ = ops.while_loop(should_continue, advance, (step + 1, groups, cache))
    beams = _best(_join([group.finished for group in groups]), num_return_sequences)
    exists = _exists(beams.score)
    return beams._replace(
        log_probability=ops.where(exists, beams.log_probability, -math.inf),
        score=ops.where(exists, beams.score, -math.inf),
    )


class _Group(NamedTuple):
    """The state of a group: w live beams and F finished texts.

    Attributes:
        token: int32 (B, w), the last token chosen.
        token_ids: int32 (B, w, N), all tokens chosen.
        log_probability: float32 (B, w); `_ABSENT` for a beam that is not live.
        finished: `Beams` of (B, F), best first.
    """

    token: Tensor
    token_ids: Tensor
    log_probability: Tensor
    finished: Beams


def _new_group(budget, width, kept, capacity, pad_id):
    """Return a group with one live beam without tokens; its continuations fill the others.

    A row with a budget of 0 has no live beam.
    """
    batch_size = ops.shape(budget)[0]
    absent = ops.zeros((batch_size, width), dtype="float32") + _ABSENT
    first = ops.expand_dims(ops.arange(width) == 0, 0) & ops.expand_dims(budget > 0, 1)
    zeros = ops.zeros((batch_size, kept), dtype="int32")
    return _Group(
        token=ops.zeros((batch_size, width), dtype="int32"),
        token_ids=ops.zeros((batch_size, width, capacity), dtype="int32") + pad_id,
        log_probability=ops.where(first, 0.0, absent),
        finished=Beams(
            token_ids=ops.zeros((batch_size, kept, capacity), dtype="int32") + pad_id,
            num_tokens=zeros,
            log_probability=absent[:, :kept],
            score=absent[:, :kept],
            stopped=ops.cast(zeros, "bool"),
        ),
    )


class _Search(NamedTuple):
    """The constants of a search.

    Attributes:
        width: int. w, the beams of a group.
        kept: int. F, the finished texts that a group keeps.
        budget: int32 (B,), the maximum number of new tokens.
        stop_id, length_penalty, diversity_penalty: see `beam_search`.
        process: the `processor` of the request.
    """

    width: int
    kept: int
    budget: Tensor
    stop_id: int | Tensor
    length_penalty: float | Tensor
    diversity_penalty: float | Tensor
    process: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def choose(self, groups, logits, step):
        """Choose the next token of each live beam.

        Args:
            groups: tuple of `_Group`.
            logits: float32 (B * W, V).
            step: int32 scalar, the number of tokens of live beams.

        Returns:
            A tuple of `_Group`, and int32 (B, W), the index of each new beam's parent in its row.
        """
        texts = ops.concatenate([group.token_ids for group in groups], axis=1)
        log_p = ops.concatenate([group.log_probability for group in groups], axis=1)
        absent = ops.reshape(~_exists(log_p), (-1,))
        logits = self.process(logits, step, ops.reshape(texts, (-1, ops.shape(texts)[2])), absent)
        width, batch_size = self.width, ops.shape(groups[0].token)[0]
        shape = (batch_size, len(groups) * width, logits.shape[-1])
        logits = ops.reshape(logits, shape)
        chosen, parents, taken = [], [], []
        for i, group in enumerate(groups):
            own = logits[:, i * width : (i + 1) * width]
            penalty = None
            if taken:
                penalty = ops.minimum(self.diversity_penalty * sum(taken), _MOST_PENALTY)
            group, parent, new = self._choose(group, own, step, penalty)
            chosen.append(group)
            parents.append(parent + i * width)
            if i + 1 < len(groups):
                taken.append(ops.expand_dims(occurrences(*new, logits.shape[-1]), 1))
        is_live = [self._can_improve(group, step + 1) for group in chosen]
        is_live = ops.any(ops.stack(is_live, axis=1), axis=1, keepdims=True)
        chosen = tuple(
            group._replace(log_probability=ops.where(is_live, group.log_probability, _ABSENT))
            for group in chosen
        )
        return chosen, ops.concatenate(parents, axis=1)

    def _choose(self, group, logits, step, penalty):
        """Choose the next tokens of a group.

        Args:
            group: `_Group`.
            logits: float32 (B, w, V).
            step: int32 scalar.
            penalty: None, or float32 (B, 1, V), the diversity penalty.

        Returns:
            The new `_Group`; int32 (B, w), the parents of its beams; and a list of the tokens
            chosen, int32 (B, n), and which of them count, bool (B, n).
        """
        width = self.width
        token, parent, log_p, rank = self._continuations(group, logits, penalty)
        exists, stops = _exists(log_p), is_stop(token, self.stop_id)

        _, index = ops.top_k(ops.where(stops, 2 * _ABSENT, rank), width)
        lives = ops.take_along_axis(exists & ~stops, index, axis=1)
        new_token, new_parent, new_log_p = (
            ops.take_along_axis(x, index, axis=1) for x in (token, parent, log_p)
        )
        token_ids = _rows(group.token_ids, new_parent)
        here = ops.arange(ops.shape(token_ids)[2]) == step
        token_ids = ops.where(here, ops.expand_dims(new_token, 2), token_ids)

        first, parent, log_p = token[:, :width], parent[:, :width], log_p[:, :width]
        ends = (exists & stops)[:, :width]
        is_last = ops.expand_dims(step + 1 >= self.budget, 1)
        ended = self._scored(
            _rows(group.token_ids, parent), ops.where(ends, log_p, _ABSENT), step, stopped=True
        )
        full = self._scored(
            token_ids, ops.where(lives & is_last, new_log_p, _ABSENT), step + 1, stopped=False
        )
        group = _Group(
            token=new_token,
            token_ids=token_ids,
            log_probability=ops.where(lives & ~is_last, new_log_p, _ABSENT),
            finished=_best(_join([group.finished, ended, full]), self.kept),
        )
        taken = [ops.concatenate(pair, axis=1) for pair in ((first, new_token), (ends, lives))]
        return group, new_parent, taken

    def _continuations(self, group, logits, penalty):
        """Return the best continuations of a group's beams, best first.

        Returns:
            Tokens, parents, log-probabilities of the whole texts, and ranking scores; each
            (B, n) with n at least w.
        """
        width = self.width
        # At most one continuation per beam and stop token ends, so this count always leaves
        # `width` continuations that do not end.
        stops = 1 if isinstance(self.stop_id, int) else self.stop_id.shape[0]
        count = (1 + stops) * width if width > 1 else 1
        each = min(count, logits.shape[2])
        # Rank the continuations of a beam by logits: adding the beam's log-probability could round
        # different values to a tie. Ties keep their order.
        _, token = ops.top_k(logits if penalty is None else logits - penalty, each)
        logit = ops.take_along_axis(logits, token, axis=2)
        log_p = logit - ops.logsumexp(logits, axis=2, keepdims=True)
        log_p = ops.where(logit <= REMOVED / 2, _ABSENT, log_p)  # also if all tokens are removed
        log_p = log_p + ops.expand_dims(group.log_probability, 2)
        rank = log_p
        if penalty is not None:
            penalty = ops.broadcast_to(penalty, ops.shape(logits))
            rank = rank - ops.take_along_axis(penalty, token, axis=2)
        token, log_p, rank = (_flat(x) for x in (token, ops.maximum(log_p, _ABSENT), rank))
        rank, index = ops.top_k(rank, min(count, width * each))
        return (
            ops.cast(ops.take_along_axis(token, index, axis=1), "int32"),
            ops.cast(index // each, "int32"),
            ops.take_along_axis(log_p, index, axis=1),
            rank,
        )

    def _scored(self, token_ids, log_probability, num_tokens, stopped):
        """Score texts (B, n, N) of equal length as `Beams`; missing texts stay `_ABSENT`."""
        zeros = ops.cast(ops.zeros_like(log_probability), "int32")
        score = log_probability / self._penalty(num_tokens + int(stopped))
        return Beams(
            token_ids=token_ids,
            num_tokens=zeros + num_tokens,
            log_probability=log_probability,
            score=ops.where(_exists(log_probability), score, _ABSENT),
            stopped=ops.cast(zeros + int(stopped), "bool"),
        )

    def _can_improve(self, group, step):
        """Return whether a live beam can still enter the group's finished texts, bool (B,).

        Log-probabilities only decrease and the penalty is monotonic in the length, so the best
        possible score is that of the current log-probability at the shortest or longest length.
        """
        log_p = group.log_probability
        longest = self._penalty(ops.expand_dims(self.budget, 1))
        highest = ops.maximum(log_p / self._penalty(step + 1), log_p / longest)
        return ops.any(_exists(log_p) & (highest > group.finished.score[:, -1:]), axis=1)

    def _penalty(self, num_tokens):
        """Return the length penalty for a scalar or (B, 1); it broadcasts with (B, n)."""
        return ((5.0 + ops.cast(num_tokens, "float32")) / 6.0) ** self.length_penalty


def _exists(log_probability):
    return log_probability > _ABSENT / 2


def _best(beams, count):
    """Return the `count` texts with the highest scores, best first; ties keep their order."""
    _, index = ops.top_k(beams.score, count)
    rest = (ops.take_along_axis(x, index, axis=1) for x in beams[1:])
    return Beams(_rows(beams.token_ids, index), *rest)


def _join(beams):
    return Beams(*(ops.concatenate(fields, axis=1) for fields in zip(*beams, strict=True)))


def _rows(texts, index):
    """Gather texts (B, n, N) at index (B, m); returns (B, m, N)."""
    return ops.take_along_axis(texts, ops.expand_dims(index, 2), axis=1)


def _flat(x):
    """Reshape (B, w, n) to (B, w * n)."""
    return ops.reshape(x, (ops.shape(x)[0], -1))
