"""Build the graph that fills the mask tokens of a text."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_llm.export.saved_model.signatures.base import STRINGS, check, clean, lengths_of
from keras_llm.export.saved_model.signatures.heads import HeadModule
from keras_llm.tokenizers.mask_filling import WHITE_SPACE

if TYPE_CHECKING:
    from keras_llm.tasks import MaskedLanguageModel

_WHITE = "[" + "".join(rf"\x{{{ord(character):x}}}" for character in WHITE_SPACE) + "]+"


class MaskedLanguageModelModule(HeadModule):
    """The graph of a `MaskedLanguageModel`, with the signature `fill_mask`.

    M is the largest number of mask tokens of a text, K the number of predictions for each; rows
    with fewer mask tokens are padded with "" and 0.

    Args:
        task: a `MaskedLanguageModel`.
        weights: as in `GraphModule`.
        top_k: int. K.
    """

    main = "fill_mask"

    def __init__(
        self, task: "MaskedLanguageModel", weights: str | None = None, top_k: int = 5
    ) -> None:
        super().__init__(task, weights)
        self._top_k = min(top_k, task.tokenizer.vocabulary_size)

    def functions(self) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
        return {"fill_mask": (self._fill_mask, {"text": STRINGS})}

    def _fill_mask(self, text):
        task, tokenizer = self.task, self.task.tokenizer
        text = clean("text", text)
        pattern = re.escape(task.mask_token)
        has_mask = tf.strings.regex_full_match(text, f"(?s).*{pattern}.*")
        with tf.control_dependencies(
            [check(tf.reduce_all(has_mask), f"text must have a {task.mask_token}")]
        ):
            parts = tf.strings.split(text, task.mask_token)  # (B, None)
        token_ids, lengths, truncated = self.framed(self._encoded(parts))
        is_mask = token_ids == tokenizer.mask_id
        places = tf.ragged.boolean_mask(
            tf.broadcast_to(tf.range(tf.shape(token_ids)[1]), tf.shape(token_ids)), is_mask
        )
        # The model requires at least one position, but truncation can remove all mask tokens.
        positions = places.to_tensor(0, shape=(None, None))
        positions = tf.pad(positions, [[0, 0], [0, tf.maximum(1 - tf.shape(positions)[1], 0)]])
        guesses = task.guesses(token_ids, lengths, positions, self._top_k)
        counts = lengths_of(places)
        real = tf.expand_dims(tf.sequence_mask(counts, tf.shape(positions)[1]), -1)
        shown = tf.constant([task.filler.display(i) for i in range(tokenizer.vocabulary_size)])
        return {
            "text": self._filled(parts, guesses["token_ids"][:, :, 0], counts),
            "tokens": tf.where(real, tf.gather(shown, guesses["token_ids"]), ""),
            "probabilities": tf.where(real, guesses["probability"], 0.0),
            "num_masks": counts,
            "truncated": truncated,
        }

    def _encoded(self, parts):
        """Convert the parts between mask tokens, ragged (B, None), to ragged ids (B, None)."""
        tokenizer = self.task.tokenizer
        flat = parts.values
        is_last = _is_last(parts)
        if tokenizer.mask_takes_space:
            flat = tf.where(is_last, flat, tf.strings.regex_replace(flat, _WHITE + "$", ""))
        ids = tokenizer.tokenize(flat)
        mask = tf.RaggedTensor.from_row_lengths(
            tf.fill((tf.reduce_sum(tf.cast(~is_last, tf.int32)),), tokenizer.mask_id),
            tf.cast(~is_last, tf.int64),
        )
        return parts.with_values(tf.concat([ids, mask], axis=1)).merge_dims(1, 2)

    def _filled(self, parts, best, counts):
        """Return the texts with their first `counts` mask tokens filled."""
        spellings, joins = zip(*self.task.filler.spellings, strict=True)
        places = tf.ragged.range(tf.cast(parts.row_lengths(), tf.int32))
        row = tf.cast(parts.value_rowids(), tf.int32)
        column = tf.minimum(places.values, tf.shape(best)[1] - 1)
        token = tf.gather_nd(best, tf.stack([row, column], axis=1))
        is_filled = places.values < tf.gather(counts, row)
        joined = is_filled & tf.gather(tf.constant(joins), token) & ~_is_last(parts)
        flat = parts.values
        flat = tf.where(joined, tf.strings.regex_replace(flat, _WHITE + "$", ""), flat)
        filling = tf.where(
            is_filled, tf.gather(tf.constant(spellings), token), self.task.mask_token
        )
        filling = tf.where(_is_last(parts), "", filling)
        return tf.strings.reduce_join(parts.with_values(flat + filling), axis=-1)


def _is_last(parts):
    """Return which values of a ragged tensor are the last of their row, bool (N,)."""
    places = tf.ragged.range(tf.cast(parts.row_lengths(), tf.int32)).values
    return places == tf.repeat(tf.cast(parts.row_lengths(), tf.int32) - 1, parts.row_lengths())
