"""A chat that goes on, each part of it read once."""

from keras_llm.errors import InputError
from keras_llm.generation.prefix_cache import PrefixCache


class Conversation:
    """A chat with a model, turn by turn.

    Every turn is answered as `TextGeneration.chat` answers all messages so far, but what the
    model has read of them it does not read again.

    Args:
        task: a `TextGeneration` with a chat template.
        system: str, a system message that all comes after, or None.

    Attributes:
        messages: list of dicts with `role` and `content`, what has been said. A turn that
            fails, or whose stream is left before its end, leaves it as it was.
    """

    def __init__(self, task, system=None):
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self._task = task
        self._prefix_cache = PrefixCache()

    def say(self, text, **settings):
        """Say something.

        Args:
            text: str, the user's next message.
            **settings: as in calling the task, for one text.

        Returns:
            str, the answer.

        Raises:
            InputError: naming the argument that is wrong, or if the conversation has become
                longer than the model's `max_length` leaves room for.
        """
        messages = self._with(text)
        answer = self._task.chat(messages, prefix_cache=self._prefix_cache, **settings)
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def stream(self, text, **settings):
        """The answer of `say`, piece by piece: a generator of str."""
        messages = self._with(text)
        pieces = self._task.stream_chat(messages, prefix_cache=self._prefix_cache, **settings)
        return self._heard(messages, pieces)

    def _heard(self, messages, pieces):
        answer = []
        for piece in pieces:
            answer.append(piece)
            yield piece
        self.messages = [*messages, {"role": "assistant", "content": "".join(answer)}]

    def _with(self, text):
        if not isinstance(text, str) or not text:
            raise InputError(f"`text` must be a non-empty str, got {text!r}.")
        return [*self.messages, {"role": "user", "content": text}]
