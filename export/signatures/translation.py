"""The graph of an encoder-decoder: the whole loop from a text to another."""

import tensorflow as tf

from keras_llm import generation, models
from keras_llm.export.signatures.base import (
    SETTINGS,
    STRINGS,
    GraphModule,
    checked_settings,
    clean,
    lengths_of,
    traced,
)
from keras_llm.tasks.settings import spare_bias


class TranslationModule(GraphModule):
    """`translate`. Of a text that is too long the first tokens are kept, and the end token."""

    main = "translate"

    def functions(self):
        return {"translate": traced(self._translate, text=STRINGS, **SETTINGS)}

    def _translate(self, text, max_new_tokens, temperature, top_k, top_p, seed):
        tokenizer, model = self.task.tokenizer, self.task.model
        config = model.config
        settings = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
        rows = tf.size(text)
        with tf.control_dependencies(checked_settings(rows, "text", settings)):
            ids = tokenizer.tokenize(clean("text", text))
        room = config.max_length - 1
        truncated = lengths_of(ids) > room
        ids = tf.concat([ids[:, :room], tf.fill((rows, 1), tokenizer.eos_id)], axis=1)
        sampling = generation.Sampling(
            temperature,
            top_k,
            top_p,
            seed,
            logit_bias=spare_bias(tokenizer, config.vocabulary_size),
        )
        state = generation.generate(
            model,
            tf.fill((rows, 1), config.start_id),
            tf.ones((rows,), tf.int32),
            max_new_tokens,
            sampling,
            stop_id=tokenizer.eos_id,
            pad_id=config.pad_id,
            memory=models.encode(model, ids.to_tensor(config.pad_id)),
        )
        new_ids = tf.RaggedTensor.from_tensor(
            state.token_ids, lengths=tf.cast(state.num_tokens, tf.int64)
        )
        return {
            "translation": tokenizer.detokenize(new_ids),
            "score": state.log_probability,
            "num_tokens": state.num_tokens,
            "finish_reason": tf.where(state.stopped, "stop", "length"),
            "truncated": truncated,
        }
