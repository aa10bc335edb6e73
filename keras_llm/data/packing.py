"""Pack documents into dense (B, T) batches without padding."""

import os
import pathlib
import tempfile
from collections.abc import Iterable

import numpy as np

from keras_llm.errors import InputError, require_list
from keras_llm.files import atomic_file
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import Dataset, PathLike

_DOCUMENTS, _CHARACTERS = 4096, 1 << 17  # maximum per call of `encode_batch`
_IDS = 1 << 20  # ids of a stream on disk that are copied per step


def encode_documents(
    documents: Iterable[str], tokenizer: Tokenizer, path: PathLike | None = None
) -> np.ndarray:
    """Encode documents as one stream of token ids, `begin document end begin document end ...`.

    Args:
        documents: iterable of str.
        tokenizer: a `Tokenizer`.
        path: str or path of an `.npy` file to write atomically, so that the ids need no memory.
            The datasets of this module read only the parts that a batch needs.

    Returns:
        Int32 array (N,). With `path`, a read-only `np.memmap` of the file, uint16, or uint32 for a
        vocabulary of more than 65,536 tokens; `np.load(path, mmap_mode="r")` opens it again.

    Raises:
        InputError: if there is no document, or `path` exists.
    """
    require_list("documents", documents)
    parts = (
        np.array([tokenizer.bos_id, *ids, tokenizer.eos_id], "int32")
        for chunk in _chunks(documents)
        for ids in tokenizer.encode_batch(chunk)
    )
    if path is None:
        arrays = list(parts)
        if not arrays:
            raise InputError("encode_documents: there is no document.")
        return np.concatenate(arrays)
    with atomic_file(path) as partial:
        dtype = "uint16" if tokenizer.vocabulary_size <= 1 << 16 else "uint32"
        if not _write_array(partial, parts, dtype):
            raise InputError("encode_documents: there is no document.")
    return np.load(path, mmap_mode="r")


def without_token(token_ids: np.ndarray, token: int) -> np.ndarray:
    """Remove a token from a stream; a stream on disk is copied to a temporary file."""
    if not isinstance(token_ids, np.memmap):
        return token_ids[token_ids != token]
    folder = token_ids.filename and pathlib.Path(token_ids.filename).parent
    with tempfile.TemporaryFile(dir=folder) as file:
        for begin in range(0, len(token_ids), _IDS):
            part = token_ids[begin : begin + _IDS]
            file.write(part[part != token].tobytes())
        if not file.tell():
            return np.zeros(0, token_ids.dtype)
        file.flush()
        return np.memmap(file, token_ids.dtype, "r")


def windows(token_ids: np.ndarray, sequence_length: int) -> int:
    """Count the windows of `sequence_length` inputs, each with its next token, in a stream."""
    return max(0, (len(token_ids) - 1) // sequence_length)


def steps_per_epoch(token_ids: np.ndarray, sequence_length: int, batch_size: int) -> int:
    """Count the full batches per epoch of `packed_dataset`."""
    return windows(token_ids, sequence_length) // batch_size


def packed_dataset(
    token_ids: np.ndarray,
    sequence_length: int,
    batch_size: int,
    bos_id: int,
    pad_id: int,
    epochs: int = 1,
    seed: int | None = None,
    start: int = 0,
    segments: bool = False,
    drop_remainder: bool = True,
) -> Dataset:
    """Split a stream of token ids into batches for next-token training.

    Window `w` has inputs `token_ids[w T : (w + 1) T]` and targets shifted by one. A begin token is
    never a target, because no text predicts the start of another one: it is replaced by `pad_id`,
    which losses and metrics ignore.

    With a seed, each epoch visits the windows in a random order that is a pure function of (seed,
    epoch, step): the same call yields the same batches, starting from any step.

    Args:
        token_ids: int array (N,) from `encode_documents`; of an `np.memmap`, only the current
            batches are in memory.
        sequence_length: int > 0. T.
        batch_size: int > 0. B.
        bos_id: int, the begin token.
        pad_id: int, the target to ignore.
        epochs: int > 0. Number of passes in the dataset.
        seed: int, or None to keep the stream's order.
        start: int, the number of batches to skip at the start.
        segments: bool. Whether to separate the documents of a row, which start at begin tokens.
            The inputs are then a dict of `token_ids`, `segment_ids`, which number the documents
            of the row, and `positions`, which restart with each document; all int32 (B, T).
            `training.LanguageModelTrainer` uses it so that no token attends to another document.
        drop_remainder: bool. Whether to skip the windows that do not fill a last batch. If not,
            each epoch ends with a smaller batch of them.

    Returns:
        `tf.data.Dataset` of `epochs * steps_per_epoch(...) - start` pairs of int32 tensors (B, T);
        without `drop_remainder`, an epoch may have one more.

    Raises:
        InputError: if the stream is shorter than one batch, or without `drop_remainder` than one
            window; or if `segments` is True without a begin
            token.
    """
    import tensorflow as tf

    if segments and bos_id < 0:
        raise InputError(f"packed_dataset: `segments` needs a begin token, got `bos_id`={bos_id}.")
    count = windows(token_ids, sequence_length)
    drop_remainder = drop_remainder or count % batch_size == 0  # a static shape is faster
    steps = count // batch_size if drop_remainder else count // batch_size + 1
    if not steps or not count:
        raise InputError(
            f"the text has {len(token_ids)} tokens, too few for one batch of {batch_size} x "
            f"{sequence_length}; use more text, or a smaller batch size or sequence length."
        )
    look_up = _look_up(token_ids[: count * sequence_length + 1])

    def batch(index):
        epoch, step = index // steps, index % steps
        window = step * batch_size + tf.range(batch_size, dtype=tf.int64)
        if not drop_remainder:
            window = window[: count - step * batch_size]
        if seed is not None:
            window = tf.random.experimental.index_shuffle(
                window, seed=tf.stack([tf.constant(seed, tf.int64), epoch]), max_index=count - 1
            )
        places = window[:, tf.newaxis] * sequence_length + tf.range(
            sequence_length + 1, dtype=tf.int64
        )
        ids = look_up(places)
        inputs, targets = ids[:, :-1], ids[:, 1:]
        if segments:
            inputs = _with_segments(inputs, bos_id)
        return inputs, tf.where(targets == bos_id, pad_id, targets)

    dataset = tf.data.Dataset.range(start, epochs * steps).map(
        batch, num_parallel_calls=2, deterministic=True
    )
    # The parallelism is fixed: autotuning would make short runs wait for its thread.
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def _with_segments(token_ids, bos_id):
    import tensorflow as tf

    begins = token_ids == bos_id
    segment_ids = tf.cumsum(tf.cast(begins, tf.int32), axis=1)
    places = tf.broadcast_to(tf.range(tf.shape(begins)[1]), tf.shape(begins))
    starts = tf.ragged.boolean_mask(places, begins).to_tensor()
    starts = tf.pad(starts, [[0, 0], [1, 0]])  # the first document may have no begin token
    positions = places - tf.gather(starts, segment_ids, batch_dims=1)
    return {"token_ids": token_ids, "segment_ids": segment_ids, "positions": positions}


def _look_up(token_ids):
    """Return a function from positions in a stream, int64 (B, T), to token ids, int32."""
    import tensorflow as tf

    if not isinstance(token_ids, np.memmap):
        stream = tf.constant(token_ids, tf.int32)
        return lambda places: tf.gather(stream, places)

    def look_up(places):
        ids = tf.numpy_function(lambda rows: token_ids[rows].astype("int32"), [places], tf.int32)
        return tf.ensure_shape(ids, places.shape)

    return look_up


def _chunks(documents):
    """Group documents into lists that are encoded together."""
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document)
        if len(chunk) == _DOCUMENTS or size >= _CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _write_array(path, parts, dtype):
    """Write arrays as one `.npy` file and return the number of elements."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False}
    count = 0
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (count,)})
        for part in parts:
            file.write(part.astype(dtype).tobytes())
            count += len(part)
        file.seek(0)  # NumPy reserves space in the header for a growing shape
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (count,)})
        file.flush()
        os.fsync(file.fileno())
    return count
