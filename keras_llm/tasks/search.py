"""Choose a search from the settings of a call, check its options and run it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from keras_llm import generation
from keras_llm.errors import InputError
from keras_llm.generation.checks import check_count, check_number
from keras_llm.generation.sampling import NOT_NUMBERS
from keras_llm.sampling_settings import DEFAULTS

if TYPE_CHECKING:
    from keras_llm.generation.compiled import CompiledGenerator

_BEAM = ("length_penalty", "diversity_groups", "diversity_penalty")
_SEARCHES = {
    "beam_width": _BEAM,
    "contrastive_alpha": (),
    "draft": ("num_draft_tokens",),
    "prompt_lookup": ("num_draft_tokens",),
    "num_candidates": ("scorer",),
}
SEARCH_OPTIONS = tuple(
    dict.fromkeys([*_SEARCHES, *(option for names in _SEARCHES.values() for option in names)])
)
_SAMPLING = ("top_k", "top_p", "min_p", "typical_p")
_HISTORY_DEPENDENT = (
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "no_repeat_ngram_size",
    "min_new_tokens",
    "forced",
    "regex",
    "json_schema",
    "grammar",
)
_UNSUPPORTED = {
    "beam_width": _SAMPLING,
    "contrastive_alpha": (*_SAMPLING[1:], *_HISTORY_DEPENDENT),
    "draft": (*_SAMPLING, *_HISTORY_DEPENDENT),
    "prompt_lookup": (*_SAMPLING, *_HISTORY_DEPENDENT),
    "num_candidates": (),
}
_CONTRASTIVE_TOP_K = 4
_NUM_DRAFT_TOKENS = 4


class SearchResult(NamedTuple):
    """The R best texts of each of B prompts, best first, as arrays.

    Attributes:
        token_ids: int32 (B, R, N).
        num_tokens: int32 (B, R).
        score: float32 (B, R), the sort key; -inf for texts that do not exist.
        stopped: bool (B, R), whether a stop token ended the text.
    """

    token_ids: np.ndarray
    num_tokens: np.ndarray
    score: np.ndarray
    stopped: np.ndarray


def chosen_search(settings: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Remove the options of a search from a dict of settings and return them.

    Returns:
        The name of the option that selects the search, or None; and a dict of its options.

    Raises:
        InputError: if two searches are selected, an option lacks its search, or a setting is not
            supported with the search.
    """
    options = {name: settings.pop(name) for name in SEARCH_OPTIONS if name in settings}
    options = {name: value for name, value in options.items() if value is not None}
    requested = [name for name in _SEARCHES if name in options]
    if len(requested) > 1:
        raise InputError(f"`{requested[0]}` and `{requested[1]}` cannot both be set.")
    search = requested[0] if requested else None
    for name in options:
        if name != search and name not in _SEARCHES.get(search or "", ()):
            owners = " or ".join(f"`{owner}`" for owner, own in _SEARCHES.items() if name in own)
            raise InputError(f"`{name}` requires {owners}.")
    for name in _UNSUPPORTED.get(search or "", ()):
        off = DEFAULTS.get(name)
        if settings.get(name, off) not in (None, off):
            raise InputError(f"`{name}` is not supported with `{search}`.")
    if search in ("draft", "prompt_lookup") and settings.get("temperature") != 0:
        raise InputError(f"`{search}` decodes greedily and requires `temperature=0`.")
    return search, options


def run_search(
    compiled: "CompiledGenerator",
    search: str,
    options: dict[str, Any],
    top_k: int,
    sequences: int,
    arguments: dict[str, Any],
) -> SearchResult:
    """Run a search other than `num_candidates`.

    Args:
        compiled: `CompiledGenerator`.
        search, options: from `chosen_search`.
        top_k: int, the user's setting.
        sequences: int, the number of texts to return per prompt.
        arguments: dict of the arguments of `CompiledGenerator.search` that all searches share.

    Returns:
        `SearchResult`.

    Raises:
        InputError: if an option is invalid, naming it.
    """
    if search != "beam_width" and sequences > 1:
        raise InputError(f"`num_return_sequences` must be 1 with `{search}`, got {sequences}.")
    function: Callable[..., Any]
    if search == "beam_width":
        function, (static, numbers) = generation.beam_search, _beam_options(options, sequences)
    elif search == "contrastive_alpha":
        alpha = options["contrastive_alpha"]
        check_number("search", "contrastive_alpha", alpha, 0, 1)
        function = generation.contrastive_search
        static = {"top_k": top_k or _CONTRASTIVE_TOP_K}
        check_count("search", "top_k", static["top_k"], compiled.model.config.vocabulary_size)
        numbers = {"alpha": alpha}
    else:
        static = {"num_draft_tokens": _NUM_DRAFT_TOKENS, **options}
        for name, value in static.items():
            if name != "draft":
                check_count("search", name, value)
        function, numbers = generation.speculative_generate, {}
        if search == "prompt_lookup":
            function = generation.prompt_lookup_generate
            static["ngram_size"] = static.pop("prompt_lookup")
    numbers = {name: np.array(value, "float32") for name, value in numbers.items()}
    state = compiled.search(function, static, numbers, **arguments)
    log_p, token_ids, num_tokens, stopped = map(
        np.asarray, (state.log_probability, state.token_ids, state.num_tokens, state.stopped)
    )
    if np.isnan(log_p).any() or (search == "beam_width" and np.isneginf(log_p[:, 0]).any()):
        raise InputError(NOT_NUMBERS)
    if search == "beam_width":
        return SearchResult(token_ids, num_tokens, np.asarray(state.score), stopped)
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
    # `beam_search` checks the ints, but it gets these numbers as tensors and cannot check them.
    check_number("beam_search", "length_penalty", numbers["length_penalty"])
    check_number("beam_search", "diversity_penalty", numbers["diversity_penalty"], 0)
    return static, numbers
