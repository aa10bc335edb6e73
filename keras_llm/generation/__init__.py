"""From logits to tokens: processors, the choice of a token, and the decode loop."""

from keras_llm.generation.decode import (
    Request,
    State,
    advance,
    advance_until,
    generate,
    request,
    score,
    start,
)
from keras_llm.generation.logits import (
    forbid_repeated_ngrams,
    keep_likely,
    keep_top,
    keep_typical,
    occurrences,
    penalize,
    scale_temperature,
)
from keras_llm.generation.samplers import (
    SETTINGS,
    Sampling,
    Text,
    choose,
    dtype_of,
    gumbel_noise,
    process,
)

__all__ = [
    "SETTINGS",
    "Request",
    "Sampling",
    "State",
    "Text",
    "advance",
    "advance_until",
    "choose",
    "dtype_of",
    "forbid_repeated_ngrams",
    "generate",
    "gumbel_noise",
    "keep_likely",
    "keep_top",
    "keep_typical",
    "occurrences",
    "penalize",
    "process",
    "request",
    "scale_temperature",
    "score",
    "start",
]
