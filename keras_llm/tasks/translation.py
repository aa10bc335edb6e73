"""Translate or summarize texts with an encoder-decoder model."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_llm import data, models, training
from keras_llm.errors import InputError
from keras_llm.tasks.base import checked_texts, padded_rows
from keras_llm.tasks.fitting import checked_rows
from keras_llm.tasks.generative import Generation, GenerativeTask
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import JSON, Dataset


class Translation(GenerativeTask):
    """A task that maps texts to texts with an encoder-decoder, e.g. translation, summarization.

    Args:
        model: a model from `models.seq2seq`, or a functional `keras.Model` from the token ids of an
            encoder (B, S) and a decoder (B, T) to logits (B, T, V), see `models.as_seq2seq`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary. The encoder reads the text
            followed by the end token. The decoder starts with the config's `start_id` and stops at
            the end token.
        metadata: dict of JSON values saved with the task.
        max_length: for a functional model, see `models.as_seq2seq`. Its `pad_id` is that of the
            tokenizer, and its `start_id` the tokenizer's begin token or, without one, padding.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.SentencePiece.train(["guten tag", "good day"] * 9, 275, "bpe")
    >>> config = models.preset("transformer-tiny", vocabulary_size=275, start_id=tok.bos_id)
    >>> task = Translation(models.seq2seq(config), tok)
    >>> task("guten tag", max_new_tokens=5) == task(["guten tag"], max_new_tokens=5)[0]
    True
    """

    model_wanted = "models.seq2seq"
    model: models.Seq2Seq | models.ComposedSeq2Seq

    def __init__(
        self,
        model: keras.Model,
        tokenizer: Tokenizer,
        metadata: JSON | None = None,
        max_length: int | None = None,
    ) -> None:
        if not isinstance(model, models.ConfiguredModel):
            pad_id = tokenizer.pad_id
            start_id = tokenizer.bos_id if tokenizer.bos_id >= 0 else pad_id
            model = models.as_seq2seq(model, pad_id, start_id, max_length)
        elif max_length is not None:
            raise InputError("`max_length` is for a composed `keras.Model`.")
        super().__init__(model, tokenizer, metadata)

    @staticmethod
    def fits(model: object) -> bool:
        return isinstance(model, (models.Seq2Seq, models.ComposedSeq2Seq))

    @property
    def _pad_id(self) -> int:
        return self.model.config.pad_id

    def __call__(
        self,
        text: str | list[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | list[int] | None = None,
        **settings: Any,
    ) -> str | Generation | list[Any]:
        """Generate the output text for one or several input texts.

        Args:
            text: non-empty str, or list of them.
            max_new_tokens, temperature, top_k, top_p, seed, **settings: see
                `TextGeneration.__call__`; `draft` and `prompt_lookup` are not supported.

        Returns:
            The new text: a str for a str, a list for a list; with several sequences per text, a
            list in place of each text.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        texts = [text] if isinstance(text, str) else text
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        results = self._generate(
            **self._encoded(texts), max_new_tokens=max_new_tokens, prompts=texts, **settings
        )
        return results[0] if isinstance(text, str) else results

    def stream(
        self,
        text: str,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        **settings: Any,
    ) -> Iterator[str]:
        """Stream the output text for one input text.

        Args:
            text: str, not empty.
            max_new_tokens, temperature, top_k, top_p, seed, **settings: see
                `TextGeneration.stream`.

        Returns:
            A generator of str.

        Raises:
            InputError: if an argument is invalid, naming it; raised before anything is generated.
        """
        if not isinstance(text, str):
            raise InputError(
                f"`text` must be a single str for streaming, got {type(text).__name__}."
            )
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        return self._pieces(**self._encoded([text]), max_new_tokens=max_new_tokens, **settings)

    def _encoded(self, texts):
        """Return the encoder's tokens and the decoder's start token, as keyword arguments."""
        config = self.model.config
        rows = [
            [*self.tokenizer.encode(text), self.tokenizer.eos_id]
            for text in checked_texts("text", texts)
        ]
        sources, _ = padded_rows("text", rows, config.max_length, config.max_length, config.pad_id)
        return {
            "token_ids": np.full((len(rows), 1), config.start_id, "int32"),
            "lengths": np.ones(len(rows), "int32"),
            "encoder_token_ids": sources,
        }

    def dataset(
        self,
        rows: Sequence[tuple[str, str]],
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
    ) -> Dataset:
        """Convert pairs to batches.

        Args:
            rows: list of pairs (text, translation). Pairs longer than the model's `max_length` are
                left out.
            batch_size, epochs, seed: see `Fitting.dataset`.

        Returns:
            A `tf.data.Dataset` for `training.LanguageModelTrainer`.

        Raises:
            InputError: if a row is no pair, or none fits the model.
        """
        rows = checked_rows(rows, ("text", "translation"))
        tokenizer, longest = self.tokenizer, self.model.config.max_length
        sources, targets = (tokenizer.encode_batch([row[side] for row in rows]) for side in (0, 1))
        sources = [[*ids, tokenizer.eos_id] for ids in sources]
        targets = [[self.model.config.start_id, *ids, tokenizer.eos_id] for ids in targets]
        fitting = [
            pair for pair in zip(sources, targets, strict=True) if max(map(len, pair)) <= longest
        ]
        if not fitting:
            raise InputError(f"none of {len(rows)} pairs fits the model's `max_length` {longest}.")
        columns = dict(
            zip(("source", "target"), map(list, zip(*fitting, strict=True)), strict=True)
        )
        lengths = [[len(row) for row in column] for column in columns.values()]
        plan = data.batch_plan(lengths, batch_size, epochs, seed)

        def batch(b: dict[str, Any]) -> tuple[dict[str, Any], Any, Any]:
            import tensorflow as tf

            inputs = {"encoder_token_ids": b["source"], "decoder_token_ids": b["target"][:, :-1]}
            targets = b["target"][:, 1:]
            is_text = tf.sequence_mask(b["target_length"] - 1, tf.shape(targets)[1], tf.float32)
            return inputs, targets, is_text

        return data.padded_dataset(columns, plan, self._pad_id).map(batch)

    def _objective(self) -> tuple[training.Trainer, dict[str, Any]]:
        return training.LanguageModelTrainer(self.model), {}  # the data has weights

    def fitting_rows(self, rows: Sequence[tuple[str, str]]) -> tuple[list[tuple[str, str]], int]:
        """Leave out rows whose text does not fit the model's `max_length`.

        Args:
            rows: list of pairs (text, translation).

        Returns:
            The list of the other rows, and the number of rows that were left out.

        Raises:
            InputError: if no text fits.
        """
        room = self.model.config.max_length - 1  # the text ends with a token
        sources = self.tokenizer.encode_batch([text for text, _ in rows])
        short = [row for row, ids in zip(rows, sources, strict=True) if len(ids) <= room]
        if not short:
            raise InputError(f"no text of {len(rows)} rows fits the model's `max_length`.")
        return short, len(rows) - len(short)

    def _measure(self, rows, **settings):
        """`training.evaluate_translations` of greedy translations.

        Rows whose text does not fit the model are left out; `texts_too_long` is their number, if
        there are any.
        """
        rows, too_long = self.fitting_rows(checked_rows(rows, ("text", "translation")))
        longest = min(128, self.model.config.max_length - 1)
        found = []
        for begin in range(0, len(rows), 32):
            texts = [text for text, _ in rows[begin : begin + 32]]
            found += self(texts, **{"max_new_tokens": longest, **settings})
        measures = training.evaluate_translations(found, [target for _, target in rows])
        return measures | ({"texts_too_long": too_long} if too_long else {})
