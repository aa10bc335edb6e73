"""Run a multi-turn chat with a prefix cache."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from keras_llm.errors import InputError
from keras_llm.generation.prefix_cache import PrefixCache

if TYPE_CHECKING:
    from keras_llm.tasks.text_generation import TextGeneration


class Conversation:
    """A multi-turn chat with a model.

    Each answer equals that of `TextGeneration.chat` for all messages so far, but the model does not
    process earlier messages again.

    Args:
        task: a `TextGeneration` with a chat template.
        system: str, a system message before the first turn, or None.

    Attributes:
        messages: list of dicts with `role` and `content`, the messages so far. A turn that fails,
            or whose stream is not read to the end, does not change it.
    """

    def __init__(self, task: "TextGeneration", system: str | None = None) -> None:
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self._task = task
        self._prefix_cache = PrefixCache()

    def say(self, text: str, **settings: Any) -> str:
        """Send a message and return the answer.

        Args:
            text: str, the user's next message.
            **settings: see `TextGeneration.__call__`, for a single text.

        Returns:
            str, the answer.

        Raises:
            InputError: if an argument is invalid, naming it, or the conversation no longer fits
                into the model's `max_length`.
        """
        messages = self._with(text)
        answer: Any = self._task.chat(messages, prefix_cache=self._prefix_cache, **settings)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def stream(self, text: str, **settings: Any) -> Iterator[str]:
        """Send a message and stream the answer: a generator of str."""
        messages = self._with(text)
        pieces = self._task.stream_chat(messages, prefix_cache=self._prefix_cache, **settings)
        return self._record(messages, pieces)

    def _record(self, messages, pieces):
        answer = []
        for piece in pieces:
            answer.append(piece)
            yield piece
        self.messages = [*messages, {"role": "assistant", "content": "".join(answer)}]

    def _with(self, text):
        if not isinstance(text, str) or not text:
            raise InputError(f"`text` must be a non-empty str, got {text!r}.")
        return [*self.messages, {"role": "user", "content": text}]
