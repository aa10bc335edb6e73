"""Serve requests with continuous batching: they join and leave a shared compiled decode step.

`steps` computes on Keras tensors, `tensorflow` compiles the steps, `ticket` is the caller's handle
of a request, and `engine` assigns slots to requests.
"""

from keras_llm.generation.scheduler.engine import Engine
from keras_llm.generation.scheduler.ticket import Ticket

__all__ = ["Engine", "Ticket"]
