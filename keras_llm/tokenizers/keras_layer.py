"""Encode strings with a Keras layer that has the arguments of KerasHub's tokenizers."""

from typing import Any, Self

import keras

from keras_llm.errors import InputError
from keras_llm.tokenizers.base import Tokenizer
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class TokenizerLayer(keras.layers.Layer):
    """A tokenizer as a Keras layer, for `tf.data` and models that are saved with it.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        sequence_length: int > 0, or None. Texts are truncated and padded to this many tokens; None
            means a `tf.RaggedTensor`.
        special_tokens_in_strings: bool. Whether special tokens in strings are encoded as such.
        add_bos, add_eos: bools. Whether to put the begin token before a text and the end token
            after it. The end token is truncated like other tokens.
        dtype: an int dtype for token ids, or "string" for the tokens themselves, padded with "".

    Call arguments:
        inputs: str, list of str or string tensor () or (B,).

    Returns:
        Token ids or tokens: `tf.RaggedTensor` (B, None) or, with `sequence_length`, a tensor
        (B, `sequence_length`); without the first axis for a single text.

    Raises:
        InputError: if an argument is invalid.

    Example:
    >>> from keras_llm import tokenizers
    >>> tok = tokenizers.WordPiece(["[PAD]", "[UNK]", "a", "cat"])
    >>> tok.as_layer(sequence_length=4)(["a cat"]).numpy().tolist()
    [[2, 3, 0, 0]]
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sequence_length: int | None = None,
        special_tokens_in_strings: bool = False,
        add_bos: bool = False,
        add_eos: bool = False,
        dtype: str = "int32",
        **kwargs: Any,
    ) -> None:
        name = keras.backend.standardize_dtype(dtype)
        if name != "string" and "int" not in name:
            raise InputError(f'`dtype` must be an int dtype or "string", got {dtype!r}.')
        if not isinstance(tokenizer, Tokenizer):
            kind = type(tokenizer).__name__
            raise InputError(f"`tokenizer` must be a tokenizers.Tokenizer, got {kind}.")
        is_int = isinstance(sequence_length, int) and not isinstance(sequence_length, bool)
        if sequence_length is not None and not (is_int and sequence_length > 0):
            raise InputError(
                f"`sequence_length` must be a positive int or None, got {sequence_length!r}."
            )
        for role, adds, token in (
            ("add_bos", add_bos, tokenizer.bos_id),
            ("add_eos", add_eos, tokenizer.eos_id),
        ):
            if adds and token < 0:
                raise InputError(f"`{role}` must be False: the tokenizer has no such token.")
        super().__init__(dtype=name, **kwargs)
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.special_tokens_in_strings = bool(special_tokens_in_strings)
        self.add_bos, self.add_eos = bool(add_bos), bool(add_eos)
        self._resources = tokenizer.graph_resources()
        self._convert_input_args = False
        self._allow_non_tensor_positional_args = True
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        return self.tokenize(inputs)

    def tokenize(self, inputs: Tensor) -> Tensor:
        """Encode strings; see the class."""
        import tensorflow as tf

        inputs = tf.convert_to_tensor(inputs, tf.string)
        if inputs.shape.rank == 0:
            return self.tokenize(tf.expand_dims(inputs, 0))[0]
        if self.special_tokens_in_strings:
            ids = self.tokenizer.tokenize_prompt(inputs, parse_special=True)
        else:
            ids = self.tokenizer.tokenize(inputs)
        count = tf.size(inputs)
        before = [tf.fill((count, 1), self.tokenizer.bos_id)] if self.add_bos else []
        after = [tf.fill((count, 1), self.tokenizer.eos_id)] if self.add_eos else []
        if before or after:
            ids = tf.concat([*before, ids, *after], axis=1)
        padding: Any = self.tokenizer.pad_id
        if self.compute_dtype == "string":
            rows, padding = tf.gather(tf.constant(self.get_vocabulary()), ids), ""
        else:
            rows = tf.cast(ids, self.compute_dtype)
        if self.sequence_length is None:
            return rows
        return rows.to_tensor(padding, shape=(None, self.sequence_length))

    def detokenize(self, inputs: Tensor) -> Tensor:
        """Decode ids (T,), (B, T) or ragged (B, None) to a string tensor () or (B,)."""
        import tensorflow as tf

        if isinstance(inputs, (list, tuple)):
            inputs = tf.ragged.constant(inputs, tf.int32)
        elif not isinstance(inputs, tf.RaggedTensor):
            inputs = tf.convert_to_tensor(inputs)
        if inputs.shape.rank == 1:
            return self.tokenizer.detokenize(tf.expand_dims(inputs, 0))[0]
        return self.tokenizer.detokenize(tf.cast(inputs, tf.int32))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return (*input_shape, self.sequence_length)

    def vocabulary_size(self) -> int:
        """Return the number of tokens."""
        return self.tokenizer.vocabulary_size

    def get_vocabulary(self) -> list[str]:
        """Return all tokens, ordered by id."""
        return [self.tokenizer.token(index) for index in range(self.tokenizer.vocabulary_size)]

    def id_to_token(self, id: int) -> str:
        """Return the token with an id.

        Raises:
            InputError: if there is no such id.
        """
        if not 0 <= id < self.vocabulary_size():
            raise InputError(f"`id` must be in 0 to {self.vocabulary_size() - 1}, got {id}.")
        return self.tokenizer.token(id)

    def token_to_id(self, token: str) -> int:
        """Return the id of a token.

        Raises:
            InputError: if there is no such token and no unknown token.
        """
        ids = {name: index for index, name in enumerate(self.get_vocabulary())}
        index = ids.get(token, int(self.tokenizer.unk_id))
        if index < 0:
            raise InputError(f"`token`: {token!r} is not in the vocabulary.")
        return index

    def get_config(self) -> JSON:
        return {
            **super().get_config(),
            "dtype": self.compute_dtype,
            "tokenizer": self.tokenizer.get_config(),
            "sequence_length": self.sequence_length,
            "special_tokens_in_strings": self.special_tokens_in_strings,
            "add_bos": self.add_bos,
            "add_eos": self.add_eos,
        }

    @classmethod
    def from_config(cls, config: JSON) -> Self:
        return cls(**{**config, "tokenizer": Tokenizer.from_config(config["tokenizer"])})
