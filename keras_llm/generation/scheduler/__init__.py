"""Serve requests with continuous batching: they join and leave a shared decode loop.

`engine` assigns slots to requests, `ticket` is the caller's handle of a request, and `tensorflow`
holds the slots and runs the decode loop over them.
"""

from keras_llm.generation.scheduler.engine import Engine
from keras_llm.generation.scheduler.ticket import Ticket

__all__ = ["Engine", "Ticket"]
