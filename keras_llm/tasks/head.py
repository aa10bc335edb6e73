"""What the tasks of models with a head share: texts in frames, batches, truncation."""

import keras
import numpy as np

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.tasks.base import Task, checked_texts, padded_rows


class HeadTask(Task):
    """A model with a head, and a tokenizer.

    A text goes in between the tokenizer's begin and end tokens, as far as it has them. One that
    is longer than the model's `max_length` keeps its first tokens and the end token.

    Attributes:
        head: str, the head that its models have.
    """

    head = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.model_wanted = f"models.{cls.head}"

    @classmethod
    def fits(cls, model):
        return isinstance(model, models.HeadModel) and model.head == cls.head

    @property
    def begin(self):
        """The ids before a text, a list."""
        return [self.tokenizer.bos_id] if self.tokenizer.add_bos else []

    @property
    def end(self):
        """The ids after a text, a list."""
        return [self.tokenizer.eos_id] if self.tokenizer.eos_id >= 0 else []

    @property
    def room(self):
        """How many tokens of a text there is room for."""
        return self.model.config.max_length - len(self.begin) - len(self.end)

    def framed(self, name, rows, truncate):
        """Rows of ids -> the same between begin and end, and for each whether it was cut.

        Raises:
            InputError: naming the row that is too long, unless `truncate`.
        """
        is_cut = [len(ids) > self.room for ids in rows]
        if truncate:
            rows = [ids[: self.room] for ids in rows]
        rows = [[*self.begin, *ids, *self.end] for ids in rows]
        longest = self.model.config.max_length
        # Checked before the batches, so that the message counts rows as the caller does.
        padded_rows(name, rows, longest, longest, self.tokenizer.pad_id)
        return rows, is_cut

    def in_batches(self, rows, batch_size, call):
        """Call a function on batches of rows of like length.

        Args:
            rows: lists of token ids.
            batch_size: int > 0.
            call: function from token ids int32 (b, T), lengths int32 (b,) and the indices of
                the batch's rows to an array, or a dict of arrays, with a row for each.

        Returns:
            For each row what the function returned for it.

        Raises:
            InputError: if `batch_size` is wrong.
        """
        if not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"`batch_size` must be a positive int, got {batch_size!r}.")
        order = np.argsort([len(row) for row in rows], kind="stable")
        results = [None] * len(rows)
        for begin in range(0, len(rows), batch_size):
            batch = order[begin : begin + batch_size]
            lengths = np.array([len(rows[i]) for i in batch], "int32")
            token_ids = np.full((len(batch), max(lengths.max(), 1)), self.tokenizer.pad_id, "int32")
            for place, i in enumerate(batch):
                token_ids[place, : lengths[place]] = rows[i]
            outputs = call(token_ids, lengths, batch)
            for place, i in enumerate(batch):
                if isinstance(outputs, dict):
                    results[i] = {name: np.asarray(v)[place] for name, v in outputs.items()}
                else:
                    results[i] = np.asarray(outputs)[place]
        return results

    def outputs(self, token_ids, lengths, segment_ids=None, **inputs):
        """What the model gives for `inputs(...)`, in Python or in a graph."""
        return self.model(self.inputs(token_ids, lengths, segment_ids, **inputs))

    def inputs(self, token_ids, lengths, segment_ids=None, **inputs):
        """What the model takes, a dict by the names of its inputs, in Python or in a graph.

        Args:
            token_ids: int32 (B, T), framed and padded on the right.
            lengths: int32 (B,).
            segment_ids: int32 (B, T), for models that have segments; all 0 if None.
            **inputs: further inputs of the model, by name.
        """
        import tensorflow as tf

        in_tensorflow = tf.is_tensor(token_ids)  # `tf.data` too, whatever the backend is
        if in_tensorflow:
            token_ids = tf.cast(token_ids, tf.int32)
            places = tf.range(tf.shape(token_ids)[1])
        else:
            token_ids, lengths = np.asarray(token_ids, "int32"), np.asarray(lengths)
            places = np.arange(token_ids.shape[1])
        inputs["token_ids"] = token_ids
        inputs["padding_mask"] = places[None] < lengths[:, None]
        inputs["segment_ids"] = token_ids * 0 if segment_ids is None else segment_ids
        found = {tensor.name: inputs[tensor.name] for tensor in self.model.inputs}
        if in_tensorflow:
            return found
        return keras.tree.map_structure(keras.ops.convert_to_tensor, found)


def rows_of(name, texts):
    """The checked texts of an argument that is a str or a list of str."""
    return list(checked_texts(name, [texts] if isinstance(texts, str) else texts))


def checked_labels(task, labels, metadata):
    """The metadata of a task with its labels, `num_classes` different strs.

    Raises:
        InputError: if they are neither given nor in the metadata, or do not fit.
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
        raise InputError(f"`labels` must be {count} different strs, got {labels!r}.")
    return {**metadata, "labels": list(labels)}
