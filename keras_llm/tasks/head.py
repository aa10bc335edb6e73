"""Run head models on texts: special tokens, truncation, batching and inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_llm import data, models
from keras_llm.errors import InputError
from keras_llm.tasks.base import Task, checked_texts, padded_rows
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import JSON, Dataset, Tensor


class HeadTask(Task):
    """The base class of tasks whose model has a head.

    The model reads a text between the tokenizer's begin and end tokens, if the tokenizer has them.
    A truncated text keeps its first tokens and the end token. `metadata` may have other tokens,
    `begin_ids` and `end_ids`, lists of ints, and a `max_length` below that of the model.

    Attributes:
        head: str, the head of the task's models.
    """

    head: str | None = None
    model: models.HeadModel | models.ComposedHead

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.model_wanted = f"models.{cls.head}"

    def __init__(
        self, model: keras.Model, tokenizer: Tokenizer, metadata: JSON | None = None
    ) -> None:
        if isinstance(model, keras.Model) and not isinstance(model, models.ConfiguredModel):
            longest = (metadata or {}).get("max_length")
            size = tokenizer.vocabulary_size
            model = models.as_head_model(model, self.head, size, longest, tokenizer.pad_id)
        super().__init__(model, tokenizer, metadata)

    @classmethod
    def fits(cls, model: object) -> bool:
        kinds = (models.HeadModel, models.ComposedHead)
        return isinstance(model, kinds) and model.head == cls.head

    @property
    def begin(self) -> list[int]:
        """The token ids before a text, a list."""
        default = [self.tokenizer.bos_id] if self.tokenizer.add_bos else []
        return list(self.metadata.get("begin_ids", default))

    @property
    def end(self) -> list[int]:
        """The token ids after a text, a list."""
        default = [self.tokenizer.eos_id] if self.tokenizer.eos_id >= 0 else []
        return list(self.metadata.get("end_ids", default))

    @property
    def max_length(self) -> int:
        """The maximum number of tokens that the model reads, an int."""
        longest = self.model.config.max_length
        return min(longest, self.metadata.get("max_length", longest))

    @property
    def room(self) -> int:
        """The maximum number of tokens of a text, without special tokens."""
        return self.max_length - len(self.begin) - len(self.end)

    def framed(
        self, name: str, rows: Sequence[Sequence[int]], truncate: bool
    ) -> tuple[list[list[int]], list[bool]]:
        """Add begin and end tokens to rows of ids.

        Returns:
            The rows, and for each row whether it was truncated.

        Raises:
            InputError: if a row is too long and `truncate` is False, naming the row.
        """
        is_cut = [len(ids) > self.room for ids in rows]
        if truncate:
            rows = [ids[: self.room] for ids in rows]
        framed = [[*self.begin, *ids, *self.end] for ids in rows]
        self.check_ids(name, rows)
        longest = self.max_length
        # Check before batching, so that the error names the caller's row index.
        padded_rows(name, framed, longest, longest, self.tokenizer.pad_id)
        return framed, is_cut

    def in_batches(
        self,
        rows: Sequence[Sequence[int]],
        batch_size: int,
        call: Callable[[np.ndarray, np.ndarray, np.ndarray], Any],
    ) -> list[Any]:
        """Call a function on batches of rows of similar length.

        Args:
            rows: lists of token ids.
            batch_size: int > 0.
            call: function of token ids int32 (b, T), lengths int32 (b,) and the row indices of the
                batch that returns an array or a dict of arrays, with one entry per row.

        Returns:
            A list with the function's result for each row, in the order of `rows`.

        Raises:
            InputError: if `batch_size` is invalid.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"`batch_size` must be a positive int, got {batch_size!r}.")
        order = np.argsort([len(row) for row in rows], kind="stable")
        results = [None] * len(rows)
        for begin in range(0, len(rows), batch_size):
            batch = order[begin : begin + batch_size]
            lengths = np.array([len(rows[i]) for i in batch], "int32")
            token_ids = np.full((len(batch), max(lengths.max(), 1)), self.tokenizer.pad_id, "int32")
            for row, i in enumerate(batch):
                token_ids[row, : lengths[row]] = rows[i]
            outputs = call(token_ids, lengths, batch)
            for row, i in enumerate(batch):
                if isinstance(outputs, dict):
                    results[i] = {name: np.asarray(v)[row] for name, v in outputs.items()}
                else:
                    results[i] = np.asarray(outputs)[row]
        return results

    def text_dataset(
        self, texts: Sequence[str], targets: Any, batch_size: int, epochs: int, seed: int | None
    ) -> Dataset:
        """Batches of texts, truncated to the model's length, and targets.

        Args:
            texts: list of str.
            targets: array (N,), or list of lists of ints, one for each token of a text.
            batch_size, epochs, seed: see `Fitting.dataset`.

        Returns:
            A `tf.data.Dataset` of pairs.
        """
        ids, _ = self.framed("rows", self.tokenizer.encode_batch(texts), True)
        plan = data.batch_plan([len(row) for row in ids], batch_size, epochs, seed)
        columns = {"ids": ids, "target": targets}
        batches = data.padded_dataset(columns, plan, self.tokenizer.pad_id)
        return batches.map(lambda b: (self.inputs(b["ids"], b["ids_length"]), b["target"]))

    def outputs(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        segment_ids: Tensor | None = None,
        **inputs: Tensor,
    ) -> Any:
        """Run the model on `inputs(...)`, eagerly or in a graph."""
        return self.model(self.inputs(token_ids, lengths, segment_ids, **inputs))

    def inputs(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        segment_ids: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Return the model's inputs, a dict by name, eagerly or in a graph.

        Args:
            token_ids: int32 (B, T), with special tokens, padded on the right.
            lengths: int32 (B,).
            segment_ids: int32 (B, T), for models that have segments; all 0 if None.
            **inputs: further inputs of the model, by name.
        """
        import tensorflow as tf

        in_tensorflow = tf.is_tensor(token_ids)  # also in `tf.data`, on any backend
        if in_tensorflow:
            token_ids = tf.cast(token_ids, tf.int32)
            positions = tf.range(tf.shape(token_ids)[1])
        else:
            token_ids, lengths = np.asarray(token_ids, "int32"), np.asarray(lengths)
            positions = np.arange(token_ids.shape[1])
        inputs["token_ids"] = token_ids
        inputs["padding_mask"] = positions[None] < lengths[:, None]
        inputs["segment_ids"] = token_ids * 0 if segment_ids is None else segment_ids
        model_inputs = {tensor.name: inputs[tensor.name] for tensor in self.model.inputs}
        if in_tensorflow:
            return model_inputs
        return keras.tree.map_structure(keras.ops.convert_to_tensor, model_inputs)


def rows_of(name: str, texts: str | Sequence[str]) -> list[str]:
    """Check an argument that is a str or a list of str and return it as a list."""
    return list(checked_texts(name, [texts] if isinstance(texts, str) else texts))


def checked_labels(task: HeadTask, labels: Sequence[str] | None, metadata: JSON | None) -> JSON:
    """Return the metadata of a task with its checked labels, `num_classes` distinct strs.

    Raises:
        InputError: if the labels are neither given nor in the metadata, or are invalid.
    """
    metadata = dict(metadata or {})
    if labels is None:
        labels = metadata.get("labels")
    count = task.model.options["num_classes"]
    if (
        not isinstance(labels, (list, tuple))
        or not all(isinstance(label, str) and label for label in labels)
        or len(set(labels)) != len(labels)
        or len(labels) != count
    ):
        raise InputError(f"`labels` must be {count} distinct non-empty strs, got {labels!r}.")
    return {**metadata, "labels": list(labels)}
