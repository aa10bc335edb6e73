"""The graphs that a device runs: token ids to logits, with an explicit cache."""

import tensorflow as tf

from keras_llm import models


class DecoderStepModule(tf.Module):
    """What a TFLite file of a causal language model holds: `prefill_<T>` and `decode`.

    Inputs and outputs are named and shaped as LiteRT-LM names and shapes them: `tokens` int32
    (1, T), `input_pos` int32 (T,), `mask` float32 (1, 1, T, S) with 0 = may attend and a large
    negative number = may not, `kv_cache_k_<i>` and `kv_cache_v_<i>` float32 (1, K, S, H), and
    `logits` float32 (1, 1, V) from `decode`. New keys are written from slot `input_pos[0]` on.
    """

    def __init__(self, model, cache_length, prefill_lengths):
        super().__init__()
        self._model = [model]
        self.weights = [variable.value for variable in model.variables]
        self.cache_length = cache_length
        self.prefill_lengths = prefill_lengths

    def signatures(self):
        """Signature name -> concrete function."""
        steps = {f"prefill_{length}": self._step(length) for length in self.prefill_lengths}
        return {**steps, "decode": self._step(1, with_logits=True)}

    def _step(self, length, with_logits=False):
        (model,) = self._model
        config = model.config
        shape = (1, config.num_key_value_heads, self.cache_length, config.head_dim)
        cache = {}
        for i in range(config.num_layers):
            for kind in "kv":
                name = f"kv_cache_{kind}_{i}"
                cache[name] = tf.TensorSpec(shape, tf.float32, name=name)

        def step(tokens, input_pos, mask, **cache):
            hidden, updated = models.forward_cached(
                model,
                tokens,
                input_pos,
                {name.removeprefix("kv_cache_"): value for name, value in cache.items()},
                input_pos[0],
                attention_mask=tf.squeeze(mask, 1) > -1.0,
            )
            outputs = {f"kv_cache_{name}": value for name, value in updated.items()}
            if with_logits:
                # Without an op between, the converter multiplies the norm's gain into the head
                # and so stores a tied embedding table twice.
                hidden = tf.maximum(hidden, hidden.dtype.min)
                outputs["logits"] = models.logits_of(model, hidden)
            return outputs

        return tf.function(step).get_concrete_function(
            tokens=tf.TensorSpec((1, length), tf.int32, name="tokens"),
            input_pos=tf.TensorSpec((length,), tf.int32, name="input_pos"),
            mask=tf.TensorSpec((1, 1, length, self.cache_length), tf.float32, name="mask"),
            **cache,
        )
