"""Generate text: logits processors, sampling, constraints, the decode loop and searches."""

from keras_llm.generation.constraints import Constraint
from keras_llm.generation.logits_processors import (
    forbid_repeated_ngrams,
    keep_likely,
    keep_top,
    keep_typical,
    occurrences,
    penalize,
    scale_temperature,
)
from keras_llm.generation.loop import (
    Request,
    State,
    advance,
    advance_until,
    generate,
    make_request,
    processor,
    start,
)
from keras_llm.generation.sampling import (
    SETTINGS,
    Sampling,
    Text,
    check_top_k,
    choose,
    dtype_of,
    gumbel_noise,
    process,
)
from keras_llm.generation.scoring import score, token_log_probabilities
from keras_llm.generation.search.beam import Beams, beam_search
from keras_llm.generation.search.contrastive import Contrasted, contrastive_search
from keras_llm.generation.search.speculative import (
    Speculation,
    prompt_lookup_generate,
    speculative_generate,
)
from keras_llm.types import Spelling

__all__ = [
    "SETTINGS",
    "Beams",
    "Constraint",
    "Contrasted",
    "Request",
    "Sampling",
    "Speculation",
    "Spelling",
    "State",
    "Text",
    "advance",
    "advance_until",
    "beam_search",
    "check_top_k",
    "choose",
    "contrastive_search",
    "dtype_of",
    "forbid_repeated_ngrams",
    "generate",
    "gumbel_noise",
    "keep_likely",
    "keep_top",
    "keep_typical",
    "make_request",
    "occurrences",
    "penalize",
    "process",
    "processor",
    "prompt_lookup_generate",
    "scale_temperature",
    "score",
    "speculative_generate",
    "start",
    "token_log_probabilities",
]
