"""Continue a text."""

import dataclasses
import numbers
import random

import numpy as np

from keras_llm.errors import InputError
from keras_llm.generation import Sampling
from keras_llm.generation.tensorflow import Compiled
from keras_llm.tasks.base import Task, checked_texts, padded_rows
from keras_llm.tokenizers import ChatTemplate


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
        text: str, the new text alone.
        token_ids: list of int, the new tokens.
        num_tokens: int, how many they are.
        log_probability: float, their log-probability under the model, in nats.
        finish_reason: "stop" (the model ended the text) or "length" (`max_new_tokens` or the
            model's `max_length` was reached).
    """

    text: str
    token_ids: list
    num_tokens: int
    log_probability: float
    finish_reason: str


class TextGeneration(Task):
    """A causal language model that continues text.

    Args:
        model: a model from `models.causal_lm`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        metadata: dict of JSON values saved with the task.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.SentencePiece.train(["once upon a time"] * 9, 275, "bpe")
    >>> model = models.causal_lm(models.preset("gpt-tiny", vocabulary_size=275))
    >>> task = TextGeneration(model, tok)
    >>> task("once", max_new_tokens=5, seed=1) == task(["once"], max_new_tokens=5, seed=1)[0]
    True
    """

    def __init__(self, model, tokenizer, metadata=None):
        super().__init__(model, tokenizer, metadata)
        self._compiled = Compiled(model, stop_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)

    def __call__(
        self,
        prompt,
        max_new_tokens=64,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=None,
        return_details=False,
        parse_special=False,
    ):
        """Continue one text or several.

        Args:
            prompt: str, or list of str. None may be empty.
            max_new_tokens: int > 0. Fewer come out where the model ends the text or its
                `max_length` is reached.
            temperature: float >= 0; 0 takes the most likely token each time.
            top_k: int >= 0. Choose among this many most likely tokens; 0 is off.
            top_p: float in (0, 1]. Choose among the fewest tokens that hold this much
                probability; 1 is off.
            seed: int32; or a list with one for each row; or None for fresh ones. A row's text
                depends on its prompt, the settings and its seed, not on the other rows, so
                equal prompts with one seed give equal texts.
            return_details: bool. Return `Generation`s instead of texts.
            parse_special: bool. Special tokens that the prompt spells out count as such, and
                no begin token is added: for prompts that a chat template has rendered.

        Returns:
            The new text (without the prompt), a str for a str and a list for a list.

        Raises:
            InputError: naming the argument that is wrong.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        token_ids, lengths = self._encode_prompts(prompts, parse_special)
        sampling = sampling_of(temperature, top_k, top_p, seed, len(lengths))
        state = self._compiled.generate(token_ids, lengths, budget_of(max_new_tokens), sampling)
        results = generations(state, self.tokenizer)
        if not return_details:
            results = [result.text for result in results]
        return results[0] if isinstance(prompt, str) else results

    def chat(self, messages, **settings):
        """Answer a conversation.

        Args:
            messages: list of dicts with `role` ("system", "user" or "assistant") and
                `content`, str, the last from the user; or one str, the user's.
            **settings: as in calling the task.

        Returns:
            The assistant's answer, as calling the task returns it.

        Raises:
            InputError: if the task has no chat template (`metadata["chat_template"]`), or
                naming the argument that is wrong.
        """
        template = self.metadata.get("chat_template")
        if not template:
            raise InputError("this model has no chat template; call the task with a prompt.")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        tokenizer = self.tokenizer
        bos, eos = (tokenizer.token(index) for index in (tokenizer.bos_id, tokenizer.eos_id))
        prompt = ChatTemplate(template, bos, eos).render(messages)
        return self(prompt, parse_special=True, **settings)

    def stream(
        self,
        prompt,
        max_new_tokens=64,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=None,
        parse_special=False,
    ):
        """Continue one text, piece by piece.

        Args:
            prompt: str, not empty.
            max_new_tokens, temperature, top_k, top_p, seed, parse_special: as in calling the
                task.

        Returns:
            A generator of str. Joined, the pieces are the text that calling the task gives
            for the same seed; a piece never ends inside a character.

        Raises:
            InputError: naming the argument that is wrong, before anything is generated.
        """
        if not isinstance(prompt, str):
            raise InputError(f"`prompt` must be one str to stream, got {type(prompt).__name__}.")
        token_ids, lengths = self._encode_prompts([prompt], parse_special)
        sampling = sampling_of(temperature, top_k, top_p, seed, 1)
        budget = budget_of(max_new_tokens)
        states = self._compiled.stream(token_ids, lengths, budget, sampling)
        return self.tokenizer.decode_stream(
            int(state.token[0]) for state in states if not bool(state.stopped[0])
        )

    def score(self, texts):
        """Log-likelihood of texts.

        Args:
            texts: str, or list of str. None may be empty.

        Returns:
            The sum of each text's token log-probabilities from its beginning, in nats: a
            float for a str and a list for a list.

        Raises:
            InputError: if a text is empty or longer than the model's `max_length`.
        """
        rows = [texts] if isinstance(texts, str) else texts
        token_ids, lengths = self._encode("texts", rows, self.model.config.max_length + 1)
        scores = np.asarray(self._compiled.score(token_ids, lengths)).tolist()
        return scores[0] if isinstance(texts, str) else scores

    def _encode_prompts(self, prompts, parse_special=False):
        return self._encode("prompt", prompts, self.model.config.max_length - 1, parse_special)

    def _encode(self, name, texts, longest, parse_special=False):
        """Texts -> int32 (B, T), padded on the right, and lengths (B,)."""
        rows = [
            self.tokenizer.encode_prompt(text, parse_special) for text in checked_texts(name, texts)
        ]
        return padded_rows(name, rows, longest, self.model.config.max_length, self.tokenizer.pad_id)


def generations(state, tokenizer):
    """The rows of a finished `generation.State` as `Generation`s."""
    fields = (state.token_ids, state.num_tokens, state.log_probability, state.stopped)
    results = []
    for ids, num_tokens, log_probability, stopped in zip(*map(np.asarray, fields), strict=True):
        ids = ids[:num_tokens].tolist()
        results.append(
            Generation(
                text=tokenizer.decode(ids),
                token_ids=ids,
                num_tokens=int(num_tokens),
                log_probability=float(log_probability),
                finish_reason="stop" if stopped else "length",
            )
        )
    return results


def sampling_of(temperature, top_k, top_p, seed, rows):
    """The checked `Sampling` of a batch; fresh seeds for None."""
    if seed is None:
        seed = [random.getrandbits(31) for _ in range(rows)]
    seeds = list(seed) if isinstance(seed, (list, tuple)) else [seed]
    if len(seeds) not in (1, rows):
        raise InputError(f"`seed` must be one int or {rows}, one for each row; got {len(seeds)}.")
    for value in seeds:
        Sampling(temperature, top_k, top_p, value).validate()
    return Sampling(temperature, top_k, top_p, np.array(seeds, "int32"))


def budget_of(max_new_tokens):
    """The checked budget of a batch, int32 (1,)."""
    if not isinstance(max_new_tokens, numbers.Integral) or not 0 < max_new_tokens < 2**31:
        raise InputError(f"`max_new_tokens` must be a positive int, got {max_new_tokens!r}.")
    return np.array([max_new_tokens], "int32")
