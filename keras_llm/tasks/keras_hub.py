"""Create tasks from the causal language models of KerasHub."""

from typing import Any, Self

import keras

from keras_llm.tokenizers import Tokenizer


class FromKerasHub:
    """A task that can be created from a KerasHub model."""

    @classmethod
    def from_keras_hub(
        cls,
        causal_lm: keras.Model,
        max_length: int | None = None,
        dtype: str | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Self:
        """Convert a causal language model of KerasHub and its tokenizer.

        Greedy texts are those of `causal_lm.generate` with the sampler "greedy".

        Args:
            causal_lm: a `keras_hub.models.CausalLM`, such as a `LlamaCausalLM`, with a
                preprocessor; or a backbone, with a `tokenizer`. `checkpoints.from_keras_hub` lists
                the supported backbones.
            max_length, dtype: see `checkpoints.from_keras_hub`.
            tokenizer: a `tokenizers.Tokenizer` with the vocabulary of the model. Defaults to the
                tokenizer of the preprocessor, converted.

        Returns:
            A task with a model from `models.causal_lm`. The tokens at which KerasHub ends a text
            are the tokenizer's end token and `metadata["end_token_ids"]`.

        Raises:
            InputError: if the backbone, the tokenizer or an argument of theirs is not supported,
                naming it.
        """
        from keras_llm.checkpoints.keras_hub.task import read_task

        create: Any = cls
        return create(*read_task(causal_lm, max_length, dtype, tokenizer))
