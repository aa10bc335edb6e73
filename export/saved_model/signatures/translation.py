"""Build the graphs of an encoder-decoder: translation and beam search."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_llm.export.saved_model.signatures.base import STRINGS, GraphModule, lengths_of
from keras_llm.export.saved_model.signatures.loop import (
    BEAM_SETTINGS,
    DEFAULTS,
    SETTINGS,
    checked,
    generate,
    search,
)

if TYPE_CHECKING:
    from keras_llm.tasks import Translation


class TranslationModule(GraphModule):
    """The graphs of a `Translation`, with the signature `translate`.

    If `beam_width` is set, there is also a signature `beam_search`. Texts that are too long are
    truncated before the end token is added.
    """

    main = "translate"
    defaults = DEFAULTS

    def __init__(
        self,
        task: "Translation",
        weights: str | None = None,
        xla: bool = False,
        beam_width: int | None = None,
    ) -> None:
        super().__init__(task, weights)
        self._xla = xla
        self._beam_width = beam_width

    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        optional = {}
        if self._beam_width is not None:
            optional["beam_search"] = (self._search, {"text": STRINGS, **BEAM_SETTINGS})
        return {"translate": (self._translate, {"text": STRINGS, **SETTINGS}), **optional}

    def _translate(self, text, **settings):
        settings, arguments, truncated = self._read(text, settings)
        outputs = generate(self.task, **arguments, settings=settings, xla=self._xla)
        return {
            "translation": outputs["text"],
            "score": outputs["log_probability"],
            "num_tokens": outputs["num_tokens"],
            "finish_reason": outputs["finish_reason"],
            "truncated": truncated,
        }

    def _search(self, text, **settings):
        settings, arguments, truncated = self._read(text, settings)
        outputs = search(self.task, **arguments, width=self._beam_width, **settings)
        return {
            "translation": outputs["text"],
            "score": outputs["score"],
            "log_probability": outputs["log_probability"],
            "truncated": truncated,
        }

    def _read(self, text, settings):
        """Check the inputs and encode texts.

        Returns:
            The settings, the initial arguments of the loop, and whether a row was truncated (B,).
        """
        tokenizer, config = self.task.tokenizer, self.task.model.config
        text, settings = checked("text", text, settings, config.vocabulary_size)
        ids, rows = tokenizer.tokenize(text), tf.size(text)
        room = config.max_length - 1
        truncated = lengths_of(ids) > room
        ids = tf.concat([ids[:, :room], tf.fill((rows, 1), tokenizer.eos_id)], axis=1)
        arguments = {
            "token_ids": tf.fill((rows, 1), config.start_id),
            "lengths": tf.ones((rows,), tf.int32),
            "encoder_token_ids": ids.to_tensor(config.pad_id),
        }
        return settings, arguments, truncated
