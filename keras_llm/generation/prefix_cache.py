"""Reuse the key-value cache of a conversation for its next turn."""

import numpy as np

from keras_llm.generation.loop import State
from keras_llm.models import ConfiguredModel
from keras_llm.models.decoder import decoder_of
from keras_llm.types import Tensor


class PrefixCache:
    """The tokens of one text and the key-value cache that contains them.

    A prompt that shares a prefix with these tokens is prefilled from the end of the shared prefix.
    If the cache has dropped older tokens, as those of sliding-window and recurrent layers do, the
    prompt must begin with all of them.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.cache: dict[str, Tensor] | None = None

    def hold(self, token_ids: np.ndarray, state: State) -> None:
        """Store the tokens and the cache of a `State` generated from a prompt (1, T)."""
        # The last chosen token is not in the cache yet.
        new = np.asarray(state.token_ids)[0, : max(int(state.num_tokens[0]) - 1, 0)].tolist()
        self.token_ids = [*token_ids[0].tolist(), *new]
        self.cache = state.cache

    def shared(self, token_ids: np.ndarray, drops_tokens: bool) -> int:
        """Return how many tokens of a prompt (1, T) are cached, at most T - 1."""
        row = token_ids[0, :-1]
        count = min(len(row), len(self.token_ids))
        same = np.array(self.token_ids[:count], "int32") == row[:count]
        count = count if same.all() else int(same.argmin())
        return 0 if drops_tokens and count < len(self.token_ids) else count


def drops_tokens(model: ConfiguredModel) -> bool:
    """Return whether the cache of a layer drops older tokens, as sliding windows and states do."""
    return not decoder_of(model).keeps_all_tokens
