"""Create masked language modeling batches; masks are drawn independently each epoch."""

from collections.abc import Callable

import numpy as np

from keras_llm.data.packing import packed_dataset, without_token
from keras_llm.errors import InputError
from keras_llm.tokenizers import Tokenizer, WordPiece, mask_filling
from keras_llm.tokenizers.word_piece import PREFIX
from keras_llm.types import Dataset, Tensor

_KEPT, _RANDOM = 0.1, 0.1  # shares of the selected tokens; the others become the mask token


def masked_dataset(
    token_ids: np.ndarray,
    tokenizer: Tokenizer,
    sequence_length: int,
    batch_size: int,
    epochs: int = 1,
    seed: int = 0,
    shuffle: bool = True,
    rate: float = 0.15,
    whole_words: bool = True,
    drop_remainder: bool = True,
) -> Dataset:
    """Create windows of a stream of token ids with masked tokens to predict.

    Each window is framed by the begin and the end token. Each word (or, without `whole_words`,
    each token) in it is selected with probability `rate`. Of the selected tokens, 80 % become the
    mask token, 10 % a random token of the vocabulary, and 10 % stay unchanged. Special tokens are
    never selected. All random draws are a pure function of (seed, epoch, step).

    Args:
        token_ids: int array (N,) from `encode_documents`, in memory or an `np.memmap`.
        tokenizer: a `tokenizers.Tokenizer` with a mask token.
        sequence_length: int > 2. T, including the begin and end token.
        batch_size: int > 0. B.
        epochs: int > 0. Number of passes in the dataset.
        seed: int >= 0.
        shuffle: bool. Whether each epoch shuffles the windows.
        rate: float in (0, 1), the selection probability.
        whole_words: bool. Whether the tokens of a word are selected together.
        drop_remainder: bool, see `packed_dataset`.

    Returns:
        `tf.data.Dataset` of pairs. The first is a dict of `token_ids` int32 (B, T),
        `padding_mask` bool (B, T), all True, and `mask_positions` int32 (B, M), the positions of
        the selected tokens, where M is the maximum per row in the batch. The second is int32
        (B, M), the original tokens, padded with the padding id.

    Raises:
        InputError: if an argument is out of range, the tokenizer has no mask token, or the stream
            is shorter than one batch.

    Reference:
        Devlin et al., 2018, "BERT", section 3.1 and appendix A.1; whole-word masking as in its
        later release.
    """
    import tensorflow as tf

    hide = hider("masked_dataset", tokenizer, rate, whole_words)
    begin = [tokenizer.bos_id] if tokenizer.bos_id >= 0 else []
    end = [tokenizer.eos_id] if tokenizer.eos_id >= 0 else []
    room = sequence_length - len(begin) - len(end)
    if room < 1:
        raise InputError(f"`sequence_length` of {sequence_length} has no room for text.")
    stream = without_token(token_ids, tokenizer.bos_id) if begin else token_ids
    windows = packed_dataset(
        stream,
        room,
        batch_size,
        -1,
        tokenizer.pad_id,
        epochs,
        seed if shuffle else None,
        drop_remainder=drop_remainder,
    )

    def masked(step, batch):
        ids = tf.pad(batch[0], [[0, 0], [len(begin), 0]], constant_values=tokenizer.bos_id)
        ids = tf.pad(ids, [[0, 0], [0, len(end)]], constant_values=tokenizer.eos_id)
        inputs, targets = hide(ids, tf.stack([tf.cast(seed, tf.int64), step]))
        return {**inputs, "padding_mask": tf.ones_like(ids, tf.bool)}, targets

    return windows.enumerate().map(masked, num_parallel_calls=2, deterministic=True).prefetch(2)


def hider(
    caller: str, tokenizer: Tokenizer, rate: float, whole_words: bool
) -> Callable[[Tensor, Tensor], tuple[dict[str, Tensor], Tensor]]:
    """Return a function that masks words.

    It maps token ids int32 (B, T) and a seed (2,) to a dict of `token_ids` and `mask_positions`,
    and the targets, as in `masked_dataset`.

    Raises:
        InputError: if `rate` is out of range, or the tokenizer has no mask token.
    """
    import tensorflow as tf

    if not 0 < rate < 1:
        raise InputError(f"`rate` must be in (0, 1), got {rate}.")
    if tokenizer.mask_id < 0:
        raise InputError(f"{caller}: `tokenizer` has no mask token.")
    is_text, is_start = text_tokens(tokenizer)
    starts = tf.constant(is_start if whole_words else np.ones_like(is_start))
    texts = tf.constant(is_text)
    drawable = tf.constant(np.flatnonzero(is_text), tf.int32)

    def hide(ids, seed):
        shape = tf.shape(ids)
        seeds = tf.random.experimental.stateless_split(seed, 3)
        words = tf.cumsum(tf.cast(tf.gather(starts, ids), tf.int32), axis=1)
        draws = tf.random.stateless_uniform((shape[0], shape[1] + 1), seeds[0])
        chosen = tf.gather(draws, words, batch_dims=1) < rate
        chosen &= tf.gather(texts, ids)
        others = tf.random.stateless_uniform(shape, seeds[1], 0, len(drawable), tf.int32)
        fate = tf.random.stateless_uniform(shape, seeds[2])
        new = tf.where(fate < _RANDOM, tf.gather(drawable, others), tokenizer.mask_id)
        new = tf.where(fate > 1 - _KEPT, ids, new)
        places = tf.broadcast_to(tf.range(shape[1])[tf.newaxis], shape)
        positions = tf.ragged.boolean_mask(places, chosen)
        targets = tf.ragged.boolean_mask(ids, chosen)
        inputs = {
            "token_ids": tf.where(chosen, new, ids),
            "mask_positions": positions.to_tensor(),
        }
        return inputs, targets.to_tensor(tokenizer.pad_id)

    return hide


def text_tokens(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return which tokens of a vocabulary are text and which start a word.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.

    Returns:
        Two bool arrays (V,): whether each token is text, not special; and whether it starts a
        word.
    """
    spellings = list(mask_filling.spellings(tokenizer))
    is_text = np.array([bool(text) for text, _ in spellings])
    if isinstance(tokenizer, WordPiece):
        is_start = [not piece.startswith(PREFIX) for piece in tokenizer.vocabulary]
    else:
        is_start = [not continues for _, continues in spellings]
    return is_text, np.array(is_start)
