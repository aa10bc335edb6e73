"""The graphs that a server runs: strings to strings."""

import tensorflow as tf

from keras_llm import generation
from keras_llm.errors import ExportError
from keras_llm.tasks.settings import spare_bias

_STRINGS = tf.TensorSpec((None,), tf.string)
_INTS = tf.TensorSpec((None,), tf.int32)
_FLOATS = tf.TensorSpec((None,), tf.float32)


def save(module, folder):
    """Write a module and its signatures as a SavedModel; ExportError if that cannot be done."""
    signatures = module.signatures()
    try:
        tf.saved_model.save(module, str(folder), signatures=signatures)
    except tf.errors.OpError as error:
        raise ExportError(f"{folder} cannot be written: {error.message}") from error
    return list(signatures)


class TextGenerationModule(tf.Module):
    """What a SavedModel of a `TextGeneration` task holds: weights, tokenizer, signatures."""

    def __init__(self, task):
        super().__init__()
        self._task = [task]  # in a list, so that tf.Module does not look inside
        self.weights = [variable.value for variable in task.model.variables]
        self.tokenizer_resources = task.tokenizer.graph_resources()

    def signatures(self):
        """Signature name -> concrete function."""
        generate = tf.function(self._generate).get_concrete_function(
            prompt=_named(_STRINGS, "prompt"),
            max_new_tokens=_named(_INTS, "max_new_tokens"),
            temperature=_named(_FLOATS, "temperature"),
            top_k=_named(_INTS, "top_k"),
            top_p=_named(_FLOATS, "top_p"),
            seed=_named(_INTS, "seed"),
        )
        score = tf.function(self._score).get_concrete_function(text=_named(_STRINGS, "text"))
        return {"serving_default": generate, "generate": generate, "score": score}

    def _generate(self, prompt, max_new_tokens, temperature, top_k, top_p, seed):
        (task,) = self._task
        tokenizer, model = task.tokenizer, task.model
        batch_size = tf.size(prompt)
        settings = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
        checks = [
            _check(
                (tf.size(value) == 1) | (tf.size(value) == batch_size),
                f"{name} must have length 1 or that of prompt",
            )
            for name, value in settings.items()
        ]
        checks += [
            _check(batch_size > 0, "prompt must not be an empty list"),
            _check(tf.reduce_all(max_new_tokens > 0), "max_new_tokens must be positive"),
            _check(
                tf.reduce_all((temperature >= 0) & tf.math.is_finite(temperature)),
                "temperature must be a number >= 0",
            ),
            _check(tf.reduce_all(top_k >= 0), "top_k must be >= 0"),
            _check(tf.reduce_all((top_p > 0) & (top_p <= 1)), "top_p must be in (0, 1]"),
        ]
        with tf.control_dependencies(checks):
            token_ids, lengths = self._encode("prompt", prompt, model.config.max_length - 1)
        sampling = generation.Sampling(
            temperature,
            top_k,
            top_p,
            seed,
            logit_bias=spare_bias(tokenizer, model.config.vocabulary_size),
        )
        state = generation.generate(
            model,
            token_ids,
            lengths,
            max_new_tokens,
            sampling,
            stop_id=tokenizer.eos_id,
            pad_id=tokenizer.pad_id,
        )
        new_ids = tf.RaggedTensor.from_tensor(
            state.token_ids, lengths=tf.cast(state.num_tokens, tf.int64)
        )
        return {
            "text": tokenizer.detokenize(new_ids),
            "num_tokens": state.num_tokens,
            "log_probability": state.log_probability,
            "finish_reason": tf.where(state.stopped, "stop", "length"),
        }

    def _score(self, text):
        (task,) = self._task
        token_ids, lengths = self._encode("text", text, task.model.config.max_length + 1)
        return {
            "log_probability": generation.score(task.model, token_ids, lengths),
            "num_tokens": lengths - 1,
        }

    def _encode(self, name, strings, longest):
        """Strings (B,) -> int32 (B, T) with a begin token, padded on the right; and (B,)."""
        (task,) = self._task
        tokenizer = task.tokenizer
        ids = tokenizer.tokenize(strings)
        if tokenizer.add_bos:
            ids = tf.concat([tf.fill((tf.size(strings), 1), tokenizer.bos_id), ids], axis=1)
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        checks = [
            _check(tf.reduce_all(tf.strings.length(strings) > 0), f"{name} must not be empty"),
            _check(
                tf.reduce_all(lengths <= longest),
                f"{name} must have at most {longest} tokens with the begin token",
            ),
        ]
        with tf.control_dependencies(checks):
            return ids.to_tensor(tokenizer.pad_id), tf.identity(lengths)


def _named(spec, name):
    return tf.TensorSpec(spec.shape, spec.dtype, name=name)


def _check(condition, message):
    return tf.debugging.Assert(condition, [message])
