"""Reuse the key-value cache of a conversation for its next turn."""

import numpy as np


class PrefixCache:
    """What a model has read of one text that goes on: its tokens, and the cache they are in.

    A text that begins with these tokens is read from where they end. (A windowed layer has
    forgotten too much to go back: there the text must begin with all of them.)
    """

    def __init__(self):
        self.token_ids = []
        self.cache = None

    def hold(self, token_ids, state):
        """Keep what is known after the first row of a `State` for a prompt (1, T)."""
        # The token chosen last has not been read.
        new = np.asarray(state.token_ids)[0, : max(int(state.num_tokens[0]) - 1, 0)].tolist()
        self.token_ids = [*token_ids[0].tolist(), *new]
        self.cache = state.cache

    def shared(self, token_ids, has_rings):
        """How many tokens of a prompt (1, T) need not be read; at least one is left to read."""
        row = token_ids[0, :-1]
        count = min(len(row), len(self.token_ids))
        same = np.array(self.token_ids[:count], "int32") == row[:count]
        count = count if same.all() else int(same.argmin())
        return 0 if has_rings and count < len(self.token_ids) else count
