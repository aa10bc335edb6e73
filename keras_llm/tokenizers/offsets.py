"""Convert byte offsets, which TensorFlow's operations return, to character offsets."""

from collections.abc import Callable

from keras_llm.tokenizers.graph.ragged import repeat
from keras_llm.types import Tensor


class CharacterOffsets:
    """The character offsets of a batch of strings.

    Args:
        strings: string tensor (B,) of UTF-8.
        uncounted: function from the bytes of all strings, int32 (N,), to bool (N,): which of
            them start a character that is not counted. None counts all.
    """

    def __init__(
        self, strings: Tensor, uncounted: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        import tensorflow as tf

        flat = tf.cast(tf.io.decode_raw(tf.strings.reduce_join(strings), tf.uint8), tf.int32)
        begins = tf.bitwise.bitwise_and(flat, 0xC0) != 0x80
        if uncounted is not None:
            begins &= ~uncounted(flat)
        counts = tf.cumsum(tf.cast(begins, tf.int32))
        self._before = tf.concat([[0], counts], axis=0)
        self._first = tf.cumsum(tf.strings.length(strings), exclusive=True)

    def before(self, offsets: Tensor) -> Tensor:
        """Count the characters of a string that start before each byte offset.

        Maps an int `tf.RaggedTensor` (B, None) to int32 of the same shape.
        """
        import tensorflow as tf

        first = repeat(self._first, offsets.row_lengths())
        places = tf.cast(offsets.values, tf.int32) + first
        counts = tf.gather(self._before, places) - tf.gather(self._before, first)
        return offsets.with_values(counts)

    def around(self, starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """Map byte offsets of non-empty spans to the spans of whole characters they touch."""
        return self.before(starts + 1) - 1, self.before(ends)
