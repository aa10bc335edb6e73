"""Continue a text."""

import numpy as np

from keras_llm.errors import InputError
from keras_llm.tasks.base import checked_texts, padded_rows
from keras_llm.tasks.conversation import Conversation
from keras_llm.tasks.generative import GenerativeTask
from keras_llm.tokenizers import ChatTemplate, infilling_tokens


class TextGeneration(GenerativeTask):
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

    def __call__(
        self,
        prompt,
        max_new_tokens=64,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=None,
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
            parse_special: bool. Special tokens that the prompt spells out count as such, and
                no begin token is added: for prompts that a chat template has rendered.
            stop: str or list of str. The text ends before the first of them that comes up.
            stop_token_ids: list of ints, further tokens that end the text.
            num_return_sequences: int > 0. How many texts to continue each prompt with; the
                prompt is read once, and the i-th text takes `seed + i`.
            return_details: bool. Return `Generation`s instead of texts.
            num_alternatives: int >= 0. How many likely tokens the details name at each place.
            min_p, typical_p, repetition_penalty, presence_penalty, frequency_penalty,
                no_repeat_ngram_size, min_new_tokens: numbers, see `generation.Sampling`.
            logit_bias: dict of token to number; a token is an id, or a str that is one token.
            banned: list of tokens that are never chosen.
            forced: str that the new text begins with.
            regex, json_schema: str, dict. The whole new text matches the pattern, or is JSON
                that fulfils the schema (as far as the budget lets it come to an end).
            beam_width: int > 0. Beam search: the `num_return_sequences` best of so many texts,
                with `length_penalty` (1.0), `diversity_groups` (1) and `diversity_penalty`
                (0.0); see `generation.beam_search`.
            contrastive_alpha: float in [0, 1]. Contrastive search among the `top_k` (4) most
                likely tokens; see `generation.contrastive_search`.
            draft: a `TextGeneration` with the same vocabulary that proposes
                `num_draft_tokens` (4) at a time, with `temperature=0`; the text is the same.
            prompt_lookup: int > 0. As `draft`, with proposals from the text itself, after so
                many tokens that stood there before.
            num_candidates: int > 0. Draw so many texts and return the best of them: those of
                the highest mean log-probability of a token, or with `scorer`, a function of a
                prompt and a list of texts, those of the highest score.

        Returns:
            The new text (without the prompt), a str for a str and a list for a list; with
            several sequences a list in the place of each text.

        Raises:
            InputError: naming the argument that is wrong.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        token_ids, lengths = self._encode_prompts(prompts, parse_special)
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        results = self._generate(token_ids, lengths, max_new_tokens, prompts=prompts, **settings)
        return results[0] if isinstance(prompt, str) else results

    def infill(self, prefix, suffix, max_new_tokens=64, temperature=0.0, **settings):
        """Fill the gap between two texts.

        Args:
            prefix, suffix: str, what stands before and after it; one may be empty. They may begin
                and end anywhere in a document.
            max_new_tokens, temperature, **settings: as in calling the task; the likeliest tokens
                by default.

        Returns:
            What stands between them, a str.

        Raises:
            InputError: if the tokenizer has no tokens for it (`tokenizers.infilling_tokens`), both
                texts are empty, or naming the argument that is wrong.
        """
        before, after, middle = infilling_tokens(self.tokenizer)
        if not isinstance(prefix, str) or not isinstance(suffix, str) or not prefix + suffix:
            raise InputError("infill: `prefix` and `suffix` must be str, and one not empty.")
        encode = self.tokenizer.encode
        row = [before, *encode(prefix), after, *encode(suffix), middle]
        longest = self.model.config.max_length
        ids, lengths = padded_rows(
            "prefix and suffix", [row], longest - 1, longest, self.tokenizer.pad_id
        )
        return self._generate(ids, lengths, max_new_tokens, temperature=temperature, **settings)[0]

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
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self(self.render(messages), parse_special=True, **settings)

    def stream_chat(self, messages, **settings):
        """The answer of `chat`, piece by piece.

        Args:
            messages, **settings: as of `chat` and `stream`.

        Returns:
            A generator of str.

        Raises:
            InputError: as of `chat`, before anything is generated.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.stream(self.render(messages), parse_special=True, **settings)

    def conversation(self, system=None):
        """Begin a `Conversation`, in which each turn is read once.

        Args:
            system: str, a system message, or None.

        Raises:
            InputError: if the task has no chat template.
        """
        _ = self.chat_template
        return Conversation(self, system)

    def render(self, messages):
        """The prompt that a conversation becomes, for `parse_special=True`: a str."""
        return self.chat_template.render(messages)

    @property
    def chat_template(self):
        """The `tokenizers.ChatTemplate` of the task.

        Raises:
            InputError: if it has none.
        """
        template = self.metadata.get("chat_template")
        if not template:
            raise InputError("this model has no chat template; call the task with a prompt.")
        tokenizer = self.tokenizer
        bos, eos = (tokenizer.token(index) for index in (tokenizer.bos_id, tokenizer.eos_id))
        return ChatTemplate(template, bos, eos)

    def stream(
        self,
        prompt,
        max_new_tokens=64,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=None,
        parse_special=False,
        **settings,
    ):
        """Continue one text, piece by piece.

        Args:
            prompt: str, not empty.
            max_new_tokens, temperature, top_k, top_p, seed, parse_special, **settings: as in
                calling the task; searches, several sequences and details cannot be streamed.

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
        return self._pieces(token_ids, lengths, max_new_tokens, **settings)

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
