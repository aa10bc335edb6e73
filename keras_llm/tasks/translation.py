"""One text in, another out."""

import numpy as np

from keras_llm import models
from keras_llm.generation.tensorflow import Compiled
from keras_llm.tasks.base import Task, checked_texts, padded_rows
from keras_llm.tasks.settings import budget_of, sampling_of
from keras_llm.tasks.text_generation import generations


class Translation(Task):
    """An encoder-decoder that turns a text into another: a translation, a summary, an answer.

    Args:
        model: a model from `models.seq2seq`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary. A text goes in followed
            by its end token; what comes out begins with the config's `start_id` and stops at the
            end token.
        metadata: dict of JSON values saved with the task.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.SentencePiece.train(["guten tag", "good day"] * 9, 275, "bpe")
    >>> config = models.preset("transformer-tiny", vocabulary_size=275, start_id=tok.bos_id)
    >>> task = Translation(models.seq2seq(config), tok)
    >>> task("guten tag", max_new_tokens=5) == task(["guten tag"], max_new_tokens=5)[0]
    True
    """

    model_wanted = "models.seq2seq"

    @staticmethod
    def fits(model):
        return isinstance(model, models.Seq2Seq)

    def __init__(self, model, tokenizer, metadata=None):
        super().__init__(model, tokenizer, metadata)
        self._compiled = Compiled(model, stop_id=tokenizer.eos_id, pad_id=model.config.pad_id)

    def __call__(
        self,
        text,
        max_new_tokens=128,
        temperature=0.0,
        top_k=0,
        top_p=1.0,
        seed=None,
        return_details=False,
    ):
        """Turn one text or several into others.

        Args:
            text: str, or list of str. None may be empty.
            max_new_tokens, temperature, top_k, top_p, seed, return_details: as in calling
                `TextGeneration`.

        Returns:
            The new text, a str for a str and a list for a list.

        Raises:
            InputError: naming the argument that is wrong.
        """
        texts = checked_texts("text", [text] if isinstance(text, str) else text)
        config = self.model.config
        rows = [[*self.tokenizer.encode(text), self.tokenizer.eos_id] for text in texts]
        token_ids, lengths = padded_rows(
            "text", rows, config.max_length, config.max_length, config.pad_id
        )
        rows = len(lengths)
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        sampling = sampling_of(rows, settings, self.tokenizer, config.vocabulary_size)
        state = self._compiled.generate(
            np.full((rows, 1), config.start_id, "int32"),
            np.ones(rows, "int32"),
            budget_of(max_new_tokens),
            sampling,
            encoder_token_ids=token_ids,
        )
        results = generations(state, self.tokenizer)
        if not return_details:
            results = [result.text for result in results]
        return results[0] if isinstance(text, str) else results
