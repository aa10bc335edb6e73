"""Predict masked tokens in a text."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_llm import data, training
from keras_llm.errors import InputError
from keras_llm.models import HeadModel
from keras_llm.tasks.base import encoded_rows
from keras_llm.tasks.fitting import check_options
from keras_llm.tasks.head import HeadTask, rows_of
from keras_llm.tasks.settings import count_of
from keras_llm.tokenizers import Tokenizer
from keras_llm.tokenizers.mask_filling import MaskFiller
from keras_llm.types import JSON, Dataset, Tensor

_BANNED = -1e30


@dataclasses.dataclass(frozen=True)
class Filling:
    """A text with its mask tokens filled.

    Attributes:
        text: str, the text with each mask token replaced by the most likely token.
        tokens: list with one list per mask token of pairs (token, probability), most likely first.
            A token that continues the word before it begins with "##".
        truncated: bool, whether the input was truncated. `text` is always the full text; mask
            tokens after the truncation point are not replaced.
    """

    text: str
    tokens: list[list[tuple[str, float]]]
    truncated: bool


class MaskedLanguageModel(HeadTask):
    """A task that predicts masked tokens.

    Probabilities are over ordinary tokens only: padding and other special tokens are never
    predicted.

    Args:
        model: a model from `models.masked_lm`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary and a mask token, such as
            `[MASK]` or `<mask>`.
        metadata: dict of JSON values saved with the task.

    Raises:
        InputError: if the tokenizer has no mask token.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["the cat sat on the mat"] * 9, 80)
    >>> config = models.preset("distilbert-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = MaskedLanguageModel(models.masked_lm(config), tok)
    >>> len(task("The [MASK] sat.", return_details=True).tokens[0])
    5
    """

    head = "masked_lm"

    def __init__(
        self, model: HeadModel, tokenizer: Tokenizer, metadata: JSON | None = None
    ) -> None:
        super().__init__(model, tokenizer, metadata)
        if tokenizer.mask_id < 0:
            raise InputError("`tokenizer` has no mask token.")
        self.mask_token = tokenizer.token(tokenizer.mask_id)

    @functools.cached_property
    def filler(self) -> MaskFiller:
        """The `MaskFiller` of the tokenizer."""
        return MaskFiller(self.tokenizer)

    def __call__(
        self,
        texts: str | list[str],
        top_k: int = 5,
        batch_size: int = 32,
        truncate: bool = False,
        return_details: bool = False,
    ) -> str | Filling | list[str] | list[Filling]:
        """Fill the mask tokens of one or several texts.

        Args:
            texts: str, or list of str, each with at least one mask token.
            top_k: int > 0, the number of predictions per mask token in the details.
            batch_size: int > 0, the number of texts per batch.
            truncate: bool. Whether to truncate texts that are too long instead of raising an
                error.
            return_details: bool. Whether to return `Filling` objects instead of texts.

        Returns:
            The text with each mask token replaced by the most likely token: a str for a str, a list
            for a list.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        strings = rows_of("texts", texts)
        top_k = min(count_of("top_k", top_k, 1), self.tokenizer.vocabulary_size)
        for index, text in enumerate(strings):
            if self.mask_token not in text:
                raise InputError(f"`texts` {index} has no {self.mask_token}.")
        rows, is_cut = self.framed(
            "texts", [self.filler.encode(text) for text in strings], truncate
        )
        mask_id = self.tokenizer.mask_id
        masks = [[i for i, token in enumerate(row) if token == mask_id] for row in rows]
        max_masks = max(1, *map(len, masks))
        positions = np.array([row + [0] * (max_masks - len(row)) for row in masks], "int32")

        def call(token_ids, lengths, batch):
            return self.guesses(token_ids, lengths, positions[batch], top_k)

        predictions = self.in_batches(rows, batch_size, call)
        results: list[Any] = []
        for text, mask, guesses, cut in zip(strings, masks, predictions, is_cut, strict=True):
            ids = guesses["token_ids"][: len(mask)].tolist()
            probabilities = guesses["probability"][: len(mask)].tolist()
            tokens = [
                [(self.filler.display(token), p) for token, p in zip(*row, strict=True)]
                for row in zip(ids, probabilities, strict=True)
            ]
            results.append(Filling(self.filler.fill(text, [row[0] for row in ids]), tokens, cut))
        if not return_details:
            results = [result.text for result in results]
        return results[0] if isinstance(texts, str) else results

    def dataset(
        self,
        rows: Sequence[str] | np.ndarray,
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
        sequence_length: int | None = None,
        rate: float = 0.15,
        whole_words: bool = True,
        drop_remainder: bool = False,
    ) -> Dataset:
        """Convert documents to batches with masked tokens.

        Args:
            rows: list of str; or an int array of their tokens from `data.encode_documents`.
            batch_size, epochs, seed: see `Fitting.dataset`.
            sequence_length: int, the tokens of a window. Defaults to the model's `max_length`, at
                most 512.
            rate: float in (0, 1), the share of words that is masked.
            whole_words: bool. Whether all tokens of a word are masked together.
            drop_remainder: bool. Whether held-out windows that do not fill a last batch are left
                out. If not, the last batch is smaller.

        Returns:
            A `tf.data.Dataset` for `training.LanguageModelTrainer`.
        """
        import tensorflow as tf

        length = sequence_length or min(self.model.config.max_length, 512)
        token_ids = encoded_rows(rows, self.tokenizer)
        if seed is None:
            text = token_ids[token_ids != self.tokenizer.bos_id]
            room = length - (self.tokenizer.bos_id >= 0) - (self.tokenizer.eos_id >= 0)
            batch_size = max(1, min(data.windows(text, room), batch_size))
        batches = data.masked_dataset(
            token_ids,
            self.tokenizer,
            length,
            batch_size,
            epochs,
            seed or 0,
            shuffle=seed is not None,
            rate=rate,
            whole_words=whole_words,
            drop_remainder=drop_remainder or seed is not None,
        )
        names = [tensor.name for tensor in self.model.inputs]

        def named(inputs, targets):
            inputs = {"segment_ids": tf.zeros_like(inputs["token_ids"]), **inputs}
            return {name: inputs[name] for name in names}, targets

        return batches.map(named)

    def _measure(self, rows, **options):
        """`training.evaluate_targets` of masked tokens; the options are those of `dataset`."""
        check_options(self, "evaluate", self.dataset, options)
        batches = self.dataset(rows, **options)
        return training.evaluate_targets(self.model, batches, self.tokenizer.pad_id)

    def guesses(
        self, token_ids: Tensor, lengths: Tensor, mask_positions: Tensor, top_k: int
    ) -> dict[str, Tensor]:
        """Return the `top_k` most likely tokens at each mask position.

        Args:
            token_ids: int32 (B, T), with special tokens.
            lengths: int32 (B,).
            mask_positions: int32 (B, M).
            top_k: int > 0.

        Returns:
            A dict of `token_ids` int32 and `probability` float32, both (B, M, top_k).
        """
        logits = self.outputs(token_ids, lengths, mask_positions=mask_positions)
        special = self.filler.is_special[: logits.shape[-1]]
        spare = logits.shape[-1] - len(special)  # ids outside the tokenizer
        banned = np.pad(special, (0, spare), constant_values=True)
        probabilities = ops.softmax(logits + banned.astype("float32") * _BANNED, axis=-1)
        best, ids = ops.top_k(probabilities, top_k)
        return {"token_ids": ops.cast(ids, "int32"), "probability": best}
