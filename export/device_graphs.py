"""The graphs that a device runs: token ids to logits, with an explicit cache."""

import tensorflow as tf

from keras_llm import models


class DecoderStepModule(tf.Module):
    """What a TFLite file of a decoder holds: `prefill_<T>` and `decode`, and of an encoder-decoder
    `encode` before them.

    Inputs and outputs are named and shaped as LiteRT-LM names and shapes them: `tokens` int32
    (1, T), `input_pos` int32 (T,), `mask` float32 (1, 1, T, S) with 0 = may attend and a large
    negative number = may not, `kv_cache_k_<i>` and `kv_cache_v_<i>` float32 (1, K, S, H), and
    `logits` float32 (1, 1, V) from `decode`. New keys are written from slot `input_pos[0]` on.

    `decode_<N>` is `decode` for the positions below N: its `mask` is (1, 1, 1, N), and the slots
    from N on are not looked at, which is faster.

    `encode` takes `encoder_tokens` int32 (1, E), filled up with `pad_id`, and gives what
    the other two take beside the rest: `cross_k_<i>` and `cross_v_<i>` float32 (1, K, E, H), and
    `encoder_mask` float32 (1, E), 1 at real tokens.

    Args:
        model: a model from `models.causal_lm` or `models.seq2seq`.
        cache_slots: int. S.
        prefill_lengths: ints, each T.
        decode_lengths: ints, each N.
        encoder_length: int. E, of a `seq2seq` model.
    """

    defaults = None  # a server's, see `signatures.save`

    def __init__(self, model, cache_slots, prefill_lengths, decode_lengths=(), encoder_length=None):
        super().__init__()
        self._model = [model]
        self.weights = [variable.value for variable in model.variables]
        self.cache_slots = cache_slots
        self.prefill_lengths = prefill_lengths
        self.decode_lengths = decode_lengths
        self.encoder_length = encoder_length

    def signatures(self):
        """Signature name -> concrete function."""
        steps = {f"prefill_{length}": self._step(length) for length in self.prefill_lengths}
        for length in self.decode_lengths:
            steps[f"decode_{length}"] = self._step(1, length, with_logits=True)
        steps["decode"] = self._step(1, with_logits=True)
        return steps if self.encoder_length is None else {"encode": self._encode(), **steps}

    def _encode(self):
        (model,) = self._model

        def encode(encoder_tokens):
            memory = models.encode(model, encoder_tokens)
            mask = tf.cast(memory.pop("encoder_padding_mask"), tf.float32)
            return {**memory, "encoder_mask": mask}

        tokens = tf.TensorSpec((1, self.encoder_length), tf.int32, name="encoder_tokens")
        return tf.function(encode).get_concrete_function(encoder_tokens=tokens)

    def _step(self, length, attended=None, with_logits=False):
        (model,) = self._model
        attended = self.cache_slots if attended is None else attended

        def step(tokens, input_pos, mask, encoder_mask=None, **cache):
            cache = {name.removeprefix("kv_cache_"): value for name, value in cache.items()}
            if encoder_mask is not None:
                cache["encoder_padding_mask"] = encoder_mask > 0.5
            hidden, updated = models.forward_cached(
                model,
                tokens,
                input_pos,
                cache,
                input_pos[0],
                attention_mask=tf.squeeze(mask, 1) > -1.0,
            )
            outputs = {f"kv_cache_{n}": v for n, v in updated.items() if n[:2] in ("k_", "v_")}
            if with_logits:
                # Without an op between, the converter multiplies the norm's gain into the head
                # and so stores a tied embedding table twice.
                hidden = tf.maximum(hidden, hidden.dtype.min)
                outputs["logits"] = models.logits_of(model, hidden)
            return outputs

        return tf.function(step).get_concrete_function(
            tokens=tf.TensorSpec((1, length), tf.int32, name="tokens"),
            input_pos=tf.TensorSpec((length,), tf.int32, name="input_pos"),
            mask=tf.TensorSpec((1, 1, length, attended), tf.float32, name="mask"),
            **self._cache(),
        )

    def _cache(self):
        """Name -> spec of the tensors that a step attends to."""
        (model,) = self._model
        config, has_encoder = model.config, self.encoder_length is not None
        entries = {"kv_cache_": self.cache_slots}
        if has_encoder:
            entries["cross_"] = self.encoder_length
        layers = config.num_decoder_layers if has_encoder else config.num_layers
        shapes = {
            f"{prefix}{kind}_{i}": (1, config.num_key_value_heads, slots, config.head_dim)
            for prefix, slots in entries.items()
            for i in range(layers)
            for kind in "kv"
        }
        if has_encoder:
            shapes["encoder_mask"] = (1, self.encoder_length)
        return {name: tf.TensorSpec(s, tf.float32, name=name) for name, s in shapes.items()}
