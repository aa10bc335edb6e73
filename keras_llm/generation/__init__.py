"""From logits to tokens: processors, the choice of a token, and the decode loop."""

from keras_llm.generation.decode import Request, State, advance, generate, request, score, start
from keras_llm.generation.logits import keep_top, scale_temperature
from keras_llm.generation.samplers import Sampling, choose, gumbel_noise

__all__ = [
    "Request",
    "Sampling",
    "State",
    "advance",
    "choose",
    "generate",
    "gumbel_noise",
    "keep_top",
    "request",
    "scale_temperature",
    "score",
    "start",
]
