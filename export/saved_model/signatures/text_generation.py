"""Build the graphs of a causal language model: text generation, and steps with explicit cache."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_llm import generation, models
from keras_llm.export.saved_model.signatures.base import (
    INTS,
    STRINGS,
    GraphModule,
    check,
    clean,
    lengths_of,
    utf8,
)
from keras_llm.export.saved_model.signatures.loop import (
    ALL_SETTINGS,
    BEAM_SETTINGS,
    DEFAULTS,
    SETTINGS,
    as_rows,
    checked,
    generate,
    search,
)
from keras_llm.models.decoder import decoder_of
from keras_llm.tasks.settings import spare_bias

if TYPE_CHECKING:
    from keras_llm.tasks import TextGeneration

_IDS = tf.TensorSpec((None, None), tf.int32)
_STEP = tf.TensorSpec((None, 1), tf.int32)


class TextGenerationModule(GraphModule):
    """The graphs of a `TextGeneration`.

    The signatures are `generate`, `generate_extended`, `score`, `tokenize`, `detokenize`,
    `prefill`, `decode` and `is_end`; also `chat` if the task has a chat template, and
    `beam_search` if `beam_width` is set.
    """

    main = "generate"
    defaults = DEFAULTS

    def __init__(
        self,
        task: "TextGeneration",
        weights: str | None = None,
        xla: bool = False,
        beam_width: int | None = None,
    ) -> None:
        super().__init__(task, weights)
        self._xla = xla
        self._beam_width = beam_width

    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        decoder, entries = decoder_of(self.task.model), {}
        for name, spec in decoder.specs.items():
            shape = [None, *spec.shape[1:]]
            if name in decoder.full_axes:
                shape[decoder.full_axes[name]] = None
            entries[name] = tf.TensorSpec(shape, spec.dtype)
        # Any rank: a scalar, or one value for each row, which servers that batch requests require.
        length = tf.TensorSpec(None, tf.int32)
        prompts = {"token_ids": _IDS, "lengths": INTS}
        optional = {}
        if self.task.metadata.get("chat_template"):
            optional["chat"] = (self._chat, {"prompt": STRINGS, **ALL_SETTINGS})
        if self._beam_width is not None:
            optional["beam_search"] = (self._search, {"prompt": STRINGS, **BEAM_SETTINGS})
        return {
            "generate": (self._generate, {"prompt": STRINGS, **SETTINGS}),
            "generate_extended": (self._extended, {"prompt": STRINGS, **ALL_SETTINGS}),
            **optional,
            "score": (self._score, {"text": STRINGS}),
            "tokenize": (self._tokenize, {"text": STRINGS}),
            "detokenize": (self._detokenize, prompts),
            "prefill": (self._prefill, {**prompts, "cache_length": length}),
            "decode": (self._decode, {"token_ids": _STEP, "positions": _STEP, **entries}),
            "is_end": (self._is_end, {"token_ids": _IDS}),
        }

    def _generate(self, prompt, **settings):
        outputs = self._extended(prompt, **settings)
        return {k: v for k, v in outputs.items() if not k.startswith("token_")}

    def _extended(self, prompt, parse_special=False, **settings):
        settings, token_ids, lengths, truncated = self._read(prompt, settings, parse_special)
        outputs = generate(self.task, token_ids, lengths, settings, xla=self._xla)
        return {**outputs, "truncated": truncated}

    def _chat(self, prompt, **settings):
        """Continue a rendered conversation, whose special tokens are encoded as such.

        Chat templates cannot run in a graph, so a plain prompt is continued as it is.
        """
        return self._extended(prompt, parse_special=True, **settings)

    def _search(self, prompt, **settings):
        settings, token_ids, lengths, truncated = self._read(prompt, settings)
        outputs = search(self.task, token_ids, lengths, width=self._beam_width, **settings)
        return {**outputs, "truncated": truncated}

    def _read(self, prompt, settings, parse_special=False):
        """Check the inputs and encode prompts.

        Returns:
            The settings, token ids (B, T), lengths (B,), and whether a row was truncated (B,).
        """
        prompt, settings = checked(
            "prompt", prompt, settings, self.task.model.config.vocabulary_size
        )
        ids = self.task.tokenizer.tokenize_prompt(prompt, parse_special)
        size = self.task.model.config.vocabulary_size
        if self.task.tokenizer.vocabulary_size > size:
            message = "prompt must not have special tokens without an embedding"
            with tf.control_dependencies([check(tf.reduce_all(ids.values < size), message)]):
                ids = tf.identity(ids)
        budget = as_rows(settings["max_new_tokens"], tf.size(prompt))
        return settings, *self._fitted(ids, budget)

    def _fitted(self, ids, max_new_tokens):
        """Truncate prompts that leave no room for a new token.

        A truncated prompt keeps the begin token and its last tokens. It leaves room for
        `max_new_tokens`, but keeps at least half of the model's `max_length`.

        Returns:
            Int32 (B, T) padded on the right, lengths (B,), and whether a row was truncated, bool
            (B,).
        """
        max_length = self.task.model.config.max_length
        with tf.control_dependencies(
            [check(tf.reduce_all(lengths_of(ids) > 0), "prompt must have at least one token")]
        ):
            lengths = tf.identity(lengths_of(ids))
        truncated = lengths > max_length - 1
        most = tf.maximum(max_length - max_new_tokens, max(1, max_length // 2))
        kept = tf.where(truncated, tf.minimum(most, max_length - 1), lengths)
        begin = 1 if self.task.tokenizer.add_bos else 0
        dense = ids.to_tensor(self.task.tokenizer.pad_id)
        place = tf.expand_dims(tf.range(tf.reduce_max(kept)), 0)
        source = tf.where(place < begin, place, place + tf.expand_dims(lengths - kept, 1))
        inside = place < tf.expand_dims(kept, 1)
        token_ids = tf.gather(dense, tf.where(inside, source, 0), batch_dims=1)
        return tf.where(inside, token_ids, self.task.tokenizer.pad_id), kept, truncated

    def _score(self, text):
        longest = self.task.model.config.max_length + 1  # the last token is not an input
        ids = self.task.tokenizer.tokenize_prompt(clean("text", text))
        lengths = lengths_of(ids)
        ids = ids[:, :longest]
        token_ids = ids.to_tensor(self.task.tokenizer.pad_id)
        return {
            "log_probability": generation.score(self.task.model, token_ids, lengths_of(ids)),
            "num_tokens": lengths_of(ids) - 1,
            "truncated": lengths > longest,
        }

    def _tokenize(self, text):
        ids = self.task.tokenizer.tokenize_prompt(utf8(text))
        return {
            "token_ids": ids.to_tensor(self.task.tokenizer.pad_id),
            "lengths": lengths_of(ids),
        }

    def _detokenize(self, token_ids, lengths):
        size = self.task.tokenizer.vocabulary_size
        inside = tf.sequence_mask(lengths, tf.shape(token_ids)[1])
        is_valid = (token_ids >= 0) & (token_ids < size)
        checks = [
            *_checked_lengths(token_ids, lengths, least=0),
            check(tf.reduce_all(is_valid | ~inside), f"token_ids must be in 0 .. {size - 1}"),
        ]
        with tf.control_dependencies(checks):
            ids = tf.RaggedTensor.from_tensor(token_ids, lengths=tf.cast(lengths, tf.int64))
        return {"text": self.task.tokenizer.detokenize(ids)}

    def _prefill(self, token_ids, lengths, cache_length):
        config = self.task.model.config
        length = tf.shape(token_ids)[1]
        slots = tf.reduce_max(cache_length)
        checks = [
            *_checked_lengths(token_ids, lengths, least=1),
            *self._checked_ids(token_ids),
            check(
                (slots >= length) & (slots <= config.max_length),
                f"cache_length must be in T .. {config.max_length}",
            ),
        ]
        with tf.control_dependencies(checks):
            token_ids, lengths, slots = map(tf.identity, (token_ids, lengths, slots))
        cache = models.init_cache(self.task.model, tf.shape(token_ids)[0], slots)
        logits, cache = models.prefill(self.task.model, token_ids, lengths, cache)
        return {"logits": self._without_spare(logits), **cache}

    def _decode(self, token_ids, positions, **cache):
        config = self.task.model.config
        limit = config.max_length
        slots = [
            tf.shape(cache[name])[axis]
            for name, axis in decoder_of(self.task.model).slot_axes.items()
        ]
        checks = [
            *self._checked_ids(token_ids),
            check(
                tf.reduce_all(tf.shape(positions) == tf.shape(token_ids)),
                "positions must have the shape of token_ids",
            ),
            check(
                tf.reduce_all((positions >= 0) & (positions < tf.reduce_min([limit, *slots]))),
                "positions must be slots of the cache",
            ),
        ]
        for name, entry in cache.items():
            checks.append(
                check(tf.shape(entry)[0] == tf.shape(token_ids)[0], f"{name} must have B rows")
            )
        with tf.control_dependencies(checks):
            token_ids, positions = map(tf.identity, (token_ids, positions))
        logits, cache = models.decode(self.task.model, token_ids, positions, cache)
        return {"logits": self._without_spare(logits), **cache}

    def _is_end(self, token_ids):
        """Return which tokens are end tokens."""
        ends = tf.constant(self.task.end_token_ids, tf.int32)
        return {"is_end": tf.reduce_any(token_ids[..., None] == ends, axis=-1)}

    def _without_spare(self, logits):
        bias = spare_bias(self.task.tokenizer, self.task.model.config.vocabulary_size)
        return logits if bias is None else logits + bias

    def _checked_ids(self, token_ids):
        size = self.task.model.config.vocabulary_size
        is_valid = (token_ids >= 0) & (token_ids < size)
        return [
            check(tf.size(token_ids) > 0, "token_ids must not be empty"),
            check(tf.reduce_all(is_valid), f"token_ids must be in 0 .. {size - 1}"),
        ]


def _checked_lengths(token_ids, lengths, least):
    rows, length = tf.unstack(tf.shape(token_ids))
    return [
        check(tf.size(lengths) == rows, "lengths must have one value for each row of token_ids"),
        check(
            tf.reduce_all((lengths >= least) & (lengths <= length)),
            f"lengths must be in {least} .. T",
        ),
    ]
