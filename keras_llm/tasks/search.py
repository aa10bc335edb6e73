"""Which search a call asks for, its options checked, and how it is run."""

from typing import NamedTuple

import numpy as np

from keras_llm import generation
from keras_llm.errors import InputError
from keras_llm.generation.sampling import NOT_NUMBERS
from keras_llm.generation.search.beam import check_count, check_number
from keras_llm.sampling_settings import DEFAULTS

_BEAM = ("length_penalty", "diversity_groups", "diversity_penalty")
_SEARCHES = {
    "beam_width": _BEAM,
    "contrastive_alpha": (),
    "draft": ("num_draft_tokens",),
    "prompt_lookup": ("num_draft_tokens",),
    "num_candidates": ("scorer",),
}
SEARCH_OPTIONS = tuple(
    dict.fromkeys([*_SEARCHES, *(option for some in _SEARCHES.values() for option in some)])
)
_DRAWING = ("top_k", "top_p", "min_p", "typical_p")
_LOOKING_BACK = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "forced",
    "regex",
    "json_schema",
)
_CANNOT = {
    "beam_width": _DRAWING,
    "contrastive_alpha": (*_DRAWING[1:], *_LOOKING_BACK),
    "draft": (*_DRAWING, *_LOOKING_BACK),
    "prompt_lookup": (*_DRAWING, *_LOOKING_BACK),
    "num_candidates": (),
}
_CONTRASTIVE_TOP_K = 4
_NUM_DRAFT_TOKENS = 4


class SearchResult(NamedTuple):
    """The texts of B prompts, R each, best first. Arrays.

    Attributes:
        token_ids: int32 (B, R, N).
        num_tokens: int32 (B, R).
        score: float32 (B, R), what they are sorted by; -inf where there is no such text.
        stopped: bool (B, R), a stop token ended the text.
    """

    token_ids: object
    num_tokens: object
    score: object
    stopped: object


def chosen_search(settings):
    """Take the options of a search out of a dict of settings.

    Returns:
        The name of the option that asks for the search, None for none; and a dict of its options.

    Raises:
        InputError: if two are requested, an option comes without its search, or a setting
            cannot be had with it.
    """
    given = {name: settings.pop(name) for name in SEARCH_OPTIONS if name in settings}
    given = {name: value for name, value in given.items() if value is not None}
    requested = [name for name in _SEARCHES if name in given]
    if len(requested) > 1:
        raise InputError(f"`{requested[0]}` and `{requested[1]}` cannot both be given.")
    search = requested[0] if requested else None
    for name in given:
        if name != search and name not in _SEARCHES.get(search, ()):
            owners = " or ".join(f"`{owner}`" for owner, own in _SEARCHES.items() if name in own)
            raise InputError(f"`{name}` goes with {owners}.")
    for name in _CANNOT.get(search, ()):
        off = DEFAULTS.get(name)
        if settings.get(name, off) not in (None, off):
            raise InputError(f"`{name}` cannot be had with `{search}`.")
    if search in ("draft", "prompt_lookup") and settings.get("temperature") != 0:
        raise InputError(f"`{search}` decodes greedily: it needs `temperature=0`.")
    return search, given


def run_search(compiled, search, options, top_k, sequences, arguments):
    """Run a search other than `num_candidates`.

    Args:
        compiled: `CompiledGenerator`.
        search, options: from `chosen_search`.
        top_k: int, the user's.
        sequences: int, how many texts of a prompt are wanted.
        arguments: dict of the arguments of `CompiledGenerator.search` that all searches share.

    Returns:
        `SearchResult`.

    Raises:
        InputError: naming the option that is wrong.
    """
    if search != "beam_width" and sequences > 1:
        raise InputError(f"`num_return_sequences` must be 1 with `{search}`: it finds one text.")
    if search == "beam_width":
        function, static, numbers = _beam, *_beam_options(options, sequences)
    elif search == "contrastive_alpha":
        alpha = options["contrastive_alpha"]
        check_number("search", "contrastive_alpha", alpha, 0, 1)
        function, static = _contrastive, {"top_k": top_k or _CONTRASTIVE_TOP_K}
        check_count("search", "top_k", static["top_k"], compiled.model.config.vocabulary_size)
        numbers = {"alpha": alpha}
    else:
        function = {"draft": _drafted, "prompt_lookup": _looked_up}[search]
        static = {"num_draft_tokens": _NUM_DRAFT_TOKENS, **options}
        for name, value in static.items():
            if name != "draft":
                check_count("search", name, value)
        numbers = {}
    numbers = {name: np.array(value, "float32") for name, value in numbers.items()}
    found = compiled.search(function, static, numbers, **arguments)
    log_p, token_ids, num_tokens, stopped = map(
        np.asarray, (found.log_probability, found.token_ids, found.num_tokens, found.stopped)
    )
    if np.isnan(log_p).any() or (search == "beam_width" and np.isneginf(log_p[:, 0]).any()):
        raise InputError(NOT_NUMBERS)
    if search == "beam_width":
        return SearchResult(token_ids, num_tokens, np.asarray(found.score), stopped)
    return SearchResult(*(x[:, None] for x in (token_ids, num_tokens, log_p, stopped)))


def _beam_options(options, sequences):
    static = {
        "beam_width": options["beam_width"],
        "num_return_sequences": sequences,
        "diversity_groups": options.get("diversity_groups", 1),
    }
    numbers = {
        "length_penalty": options.get("length_penalty", 1.0),
        "diversity_penalty": options.get("diversity_penalty", 0.0),
    }
    # `beam_search` says what is wrong with the first three; of numbers it sees tensors only.
    check_number("beam_search", "length_penalty", numbers["length_penalty"])
    check_number("beam_search", "diversity_penalty", numbers["diversity_penalty"], 0)
    return static, numbers


def _beam(model, request, capacity, stop_id, pad_id, encoder_cache, beam_width, **options):
    return generation.beam_search(
        model,
        request.token_ids,
        request.lengths,
        request.budget,
        beam_width,
        stop_id,
        pad_id,
        process=generation.processor(request, stop_id, beam_width),
        encoder_cache=encoder_cache,
        capacity=capacity,
        **options,
    )


def _contrastive(model, request, capacity, stop_id, pad_id, encoder_cache, top_k, alpha):
    return generation.contrastive_search(
        model,
        request.token_ids,
        request.lengths,
        request.budget,
        top_k,
        alpha,
        stop_id,
        pad_id,
        encoder_cache,
        capacity,
        request.sampling.logit_bias,
    )


def _drafted(model, request, capacity, stop_id, pad_id, encoder_cache, draft, num_draft_tokens):
    return generation.speculative_generate(
        model,
        draft,
        request.token_ids,
        request.lengths,
        request.budget,
        num_draft_tokens,
        stop_id,
        pad_id,
        capacity,
        request.sampling.logit_bias,
    )


def _looked_up(
    model, request, capacity, stop_id, pad_id, encoder_cache, prompt_lookup, num_draft_tokens
):
    return generation.prompt_lookup_generate(
        model,
        request.token_ids,
        request.lengths,
        request.budget,
        num_draft_tokens,
        prompt_lookup,
        stop_id,
        pad_id,
        capacity,
        request.sampling.logit_bias,
    )
