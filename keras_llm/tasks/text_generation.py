"""Continue a text."""

import dataclasses

import numpy as np

from keras_llm.errors import InputError
from keras_llm.generation.tensorflow import Compiled
from keras_llm.tasks.base import Task, checked_texts, padded_rows
from keras_llm.tasks.settings import (
    budget_of,
    count_of,
    cut_at,
    pieces_until,
    sampling_of,
    stops_of,
)
from keras_llm.tokenizers import ChatTemplate


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
        text: str, the new text alone.
        token_ids: list of int, the new tokens.
        num_tokens: int, how many they are.
        log_probability: float, their log-probability under the model, in nats.
        finish_reason: "stop" (the model ended the text, or a stop string did) or "length"
            (`max_new_tokens` or the model's `max_length` was reached).
        token_log_probabilities: list of float, each token's.
        alternatives: list with a dict for each token, from the most likely tokens' ids there to
            their log-probabilities; empty dicts unless asked for.
    """

    text: str
    token_ids: list
    num_tokens: int
    log_probability: float
    finish_reason: str
    token_log_probabilities: list
    alternatives: list


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
        stop=(),
        num_return_sequences=1,
        return_details=False,
        num_alternatives=0,
        parse_special=False,
        **settings,
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
            stop: str or list of str. The text ends before the first of them that comes up.
            num_return_sequences: int > 0. How many texts to continue each prompt with; the
                prompt is read once, and the i-th text takes `seed + i`.
            return_details: bool. Return `Generation`s instead of texts.
            num_alternatives: int >= 0. How many likely tokens the details name at each place.
            parse_special: bool. Special tokens that the prompt spells out count as such, and
                no begin token is added: for prompts that a chat template has rendered.
            **settings: the other fields of `generation.Sampling` that are numbers: `min_p`,
                `typical_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`,
                `no_repeat_ngram_size`, `min_new_tokens`; and `logit_bias`, a dict of token to
                number, `banned`, a list of tokens (a token is an id, or a str that is one
                token), and `forced`, a str that the new text begins with. With `regex`, a str,
                the whole new text matches the pattern; with `json_schema`, a dict, it is JSON
                that fulfils it (as far as the budget lets it come to an end).

        Returns:
            The new text (without the prompt), a str for a str and a list for a list; with
            several sequences a list in the place of each text.

        Raises:
            InputError: naming the argument that is wrong.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        token_ids, lengths = self._encode_prompts(prompts, parse_special)
        samples = count_of("num_return_sequences", num_return_sequences, 1)
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        sampling = self._sampling(len(lengths), settings, samples)
        stops = stops_of(stop)

        def is_over(row, ids):
            return cut_at(self.tokenizer.decode(ids), stops)[1]

        state = self._compiled.generate(
            token_ids,
            lengths,
            budget_of(max_new_tokens),
            sampling,
            samples=samples,
            alternatives=count_of("num_alternatives", num_alternatives, 0),
            is_over=is_over if stops else None,
        )
        results = generations(state, self.tokenizer, stops)
        if not return_details:
            results = [result.text for result in results]
        if num_return_sequences > 1:
            results = [results[i : i + samples] for i in range(0, len(results), samples)]
        return results[0] if isinstance(prompt, str) else results

    def _sampling(self, rows, settings, samples=1):
        size = self.model.config.vocabulary_size
        return sampling_of(rows, settings, self.tokenizer, size, samples)

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
        stop=(),
        parse_special=False,
        **settings,
    ):
        """Continue one text, piece by piece.

        Args:
            prompt: str, not empty.
            max_new_tokens, temperature, top_k, top_p, seed, stop, parse_special, **settings:
                as in calling the task.

        Returns:
            A generator of str. Joined, the pieces are the text that calling the task gives
            for the same seed; a piece never ends inside a character.

        Raises:
            InputError: naming the argument that is wrong, before anything is generated.
        """
        if not isinstance(prompt, str):
            raise InputError(f"`prompt` must be one str to stream, got {type(prompt).__name__}.")
        token_ids, lengths = self._encode_prompts([prompt], parse_special)
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        states = self._compiled.stream(
            token_ids, lengths, budget_of(max_new_tokens), self._sampling(1, settings)
        )
        pieces = self.tokenizer.decode_stream(
            int(state.token[0]) for state in states if not bool(state.stopped[0])
        )
        return pieces_until(pieces, stops_of(stop))

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


def generations(state, tokenizer, stops=()):
    """The rows of a finished `generation.State` as `Generation`s."""
    fields = (
        state.token_ids,
        state.num_tokens,
        state.stopped,
        state.token_log_probabilities,
        state.alternative_ids,
        state.alternative_log_probabilities,
    )
    return [
        _generation(tokenizer, stops, *row) for row in zip(*map(np.asarray, fields), strict=True)
    ]


def _generation(tokenizer, stops, ids, count, stopped, log_p, other_ids, other_log_p):
    ids = ids[:count].tolist()
    text, is_cut = cut_at(tokenizer.decode(ids), stops)
    if is_cut:  # what was generated beyond the token that completed the stop string goes
        count = next(n for n in range(1, count + 1) if cut_at(tokenizer.decode(ids[:n]), stops)[1])
    alternatives = zip(other_ids[:count].tolist(), other_log_p[:count].tolist(), strict=True)
    return Generation(
        text=text,
        token_ids=ids[:count],
        num_tokens=int(count),
        log_probability=float(log_p[:count].sum()),
        finish_reason="stop" if stopped or is_cut else "length",
        token_log_probabilities=log_p[:count].tolist(),
        alternatives=[dict(zip(*pair, strict=True)) for pair in alternatives],
    )
