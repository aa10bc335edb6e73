"""Continuous batching: requests come and go while one compiled decode step serves them all.

`steps` is the arithmetic, on Keras tensors; `tensorflow` compiles it; `ticket` is what a caller
holds of a request; `engine` gives slots to requests.
"""

from keras_llm.generation.scheduler.engine import Engine
from keras_llm.generation.scheduler.ticket import Ticket

__all__ = ["Engine", "Ticket"]
