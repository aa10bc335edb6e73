"""The graph of an encoder-decoder: the whole loop from a text to another."""

import tensorflow as tf

from keras_llm.export.signatures.base import STRINGS, GraphModule, clean, lengths_of
from keras_llm.export.signatures.loop import SETTINGS, checked_settings, generate


class TranslationModule(GraphModule):
    """`translate`. Of a text that is too long the first tokens are kept, and the end token."""

    main = "translate"

    def __init__(self, task, weights=None, xla=False):
        super().__init__(task, weights)
        self._xla = xla

    def functions(self):
        return {"translate": (self._translate, {"text": STRINGS, **SETTINGS})}

    def _translate(self, text, **settings):
        tokenizer, config = self.task.tokenizer, self.task.model.config
        rows = tf.size(text)
        with tf.control_dependencies(checked_settings(rows, "text", settings)):
            ids = tokenizer.tokenize(clean("text", text))
        room = config.max_length - 1
        truncated = lengths_of(ids) > room
        ids = tf.concat([ids[:, :room], tf.fill((rows, 1), tokenizer.eos_id)], axis=1)
        outputs = generate(
            self.task,
            tf.fill((rows, 1), config.start_id),
            tf.ones((rows,), tf.int32),
            settings,
            encoder_token_ids=ids.to_tensor(config.pad_id),
            xla=self._xla,
        )
        return {
            "translation": outputs.pop("text"),
            "score": outputs.pop("log_probability"),
            **outputs,
            "truncated": truncated,
        }
