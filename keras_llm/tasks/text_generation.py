"""Generate text with a causal language model."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_llm import data, models, training
from keras_llm.errors import InputError
from keras_llm.tasks.base import checked_texts, encoded_rows, padded_rows
from keras_llm.tasks.conversation import Conversation
from keras_llm.tasks.generative import Generation, GenerativeTask
from keras_llm.tasks.keras_hub import FromKerasHub
from keras_llm.tasks.settings import KNOWN
from keras_llm.tokenizers import ChatTemplate, Tokenizer, infilling_tokens
from keras_llm.types import JSON, Dataset

_IGNORED = -1  # the target of what is not learned
_WINDOW = 512  # tokens of a training window, if nothing else is given


class TextGeneration(FromKerasHub, GenerativeTask):
    """A task that continues texts with a causal language model.

    Args:
        model: a model from `models.causal_lm`, or a functional `keras.Model` from token ids (B, T)
            to logits (B, T, V), see `models.as_causal_lm`; the task's `model` then has the layers
            and weights of that model.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        metadata: dict of JSON values saved with the task.
        max_length, incremental: for a functional model, see `models.as_causal_lm`.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.SentencePiece.train(["once upon a time"] * 9, 275, "bpe")
    >>> model = models.causal_lm(models.preset("gpt-tiny", vocabulary_size=275))
    >>> task = TextGeneration(model, tok)
    >>> task("once", max_new_tokens=5, seed=1) == task(["once"], max_new_tokens=5, seed=1)[0]
    True
    """

    model: models.CausalLM | models.ComposedLM

    def __init__(
        self,
        model: keras.Model,
        tokenizer: Tokenizer,
        metadata: JSON | None = None,
        max_length: int | None = None,
        incremental: bool = True,
    ) -> None:
        if not isinstance(model, models.ConfiguredModel):
            model = models.as_causal_lm(model, max_length, incremental, tokenizer.pad_id)
        elif max_length is not None or not incremental:
            raise InputError(
                "`max_length` and `incremental` are for a composed `keras.Model`; the model has a "
                "config."
            )
        super().__init__(model, tokenizer, metadata)

    @staticmethod
    def fits(model: object) -> bool:
        return isinstance(model, (models.CausalLM, models.ComposedLM))

    def __call__(
        self,
        prompt: str | list[str],
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | list[int] | None = None,
        parse_special: bool = False,
        **settings: Any,
    ) -> str | Generation | list[Any]:
        """Continue one or several prompts.

        Args:
            prompt: non-empty str, or list of them.
            max_new_tokens: int > 0. Generation stops earlier at an end token or at the model's
                `max_length`.
            temperature: float >= 0; 0 is greedy decoding.
            top_k: int >= 0. Sample from this many most likely tokens; 0 is off.
            top_p: float in (0, 1]. Sample from the smallest set of tokens with this total
                probability; 1 is off.
            seed: int32; or a list with one per prompt; or None for random seeds. A text depends
                only on its prompt, the settings and its seed, not on the other prompts, so equal
                prompts with the same seed give equal texts.
            parse_special: bool. Whether special tokens written in the prompt are parsed as such.
                If so, no begin token is added. Use it for prompts rendered by a chat template.
            stop: str or list of str. The text ends before the first occurrence of any of them.
            stop_token_ids: list of ints, further tokens that end the text.
            num_return_sequences: int > 0, the number of texts per prompt. The prompt is processed
                once; text i uses `seed + i`.
            return_details: bool. Whether to return `Generation` objects instead of texts.
            num_alternatives: int >= 0, the number of most likely tokens per position in the
                details.
            min_p, typical_p, repetition_penalty, presence_penalty, frequency_penalty,
                no_repeat_ngram_size, min_new_tokens: numbers, see `generation.Sampling`.
            logit_bias: dict of token to number. A token is an id, or a str that is one token.
            banned: list of tokens that are never generated.
            forced: str that the new text begins with.
            regex, json_schema, grammar: str; dict or str; str. The whole new text matches the
                regular expression, is JSON that conforms to the schema, or matches the Lark
                grammar, unless `max_new_tokens` ends it earlier; see `generation.Constraint`.
            beam_width: int > 0. Beam search with this many beams; returns the
                `num_return_sequences` best. Options: `length_penalty` (1.0), `diversity_groups` (1)
                and `diversity_penalty` (0.0); see `generation.beam_search`.
            contrastive_alpha: float in [0, 1]. Contrastive search among the `top_k` (4) most
                likely tokens; see `generation.contrastive_search`.
            draft: a `TextGeneration` with the same vocabulary. Speculative decoding: the draft
                proposes `num_draft_tokens` (4) at a time. Requires `temperature=0`; the text is
                the same as without a draft.
            prompt_lookup: int > 0. Like `draft`, but proposes the tokens that followed an earlier
                occurrence of the last `prompt_lookup` tokens.
            num_candidates: int > 0. Sample-and-rank: sample this many texts and return the best
                by mean token log-probability, or by `scorer`, a function of the prompt and a list
                of texts that returns a list of scores.

        Returns:
            The new text (without the prompt): a str for a str, a list for a list; with several
            sequences per prompt, a list in place of each text.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        token_ids, lengths = self._encode_prompts(prompts, parse_special)
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        results = self._generate(token_ids, lengths, max_new_tokens, prompts=prompts, **settings)
        return results[0] if isinstance(prompt, str) else results

    def infill(
        self,
        prefix: str,
        suffix: str,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        **settings: Any,
    ) -> str | Generation | list[Any]:
        """Generate the text between a prefix and a suffix (fill in the middle).

        Args:
            prefix, suffix: str, the text before and after the gap; one of them may be empty. They
                may begin and end anywhere in a document.
            max_new_tokens, temperature, **settings: see `__call__`. Decoding is greedy by default.

        Returns:
            The text between them, a str.

        Raises:
            InputError: if the tokenizer has no infilling tokens (`tokenizers.infilling_tokens`),
                both texts are empty, or an argument is invalid, naming it.
        """
        before, after, middle = infilling_tokens(self.tokenizer)
        if not isinstance(prefix, str) or not isinstance(suffix, str) or not prefix + suffix:
            raise InputError("infill: `prefix` and `suffix` must be str, and not both empty.")
        encode = self.tokenizer.encode
        row = [before, *encode(prefix), after, *encode(suffix), middle]
        self.check_ids("prefix and suffix", [row])
        longest = self.model.config.max_length
        ids, lengths = padded_rows(
            "prefix and suffix", [row], longest - 1, longest, self.tokenizer.pad_id
        )
        return self._generate(ids, lengths, max_new_tokens, temperature=temperature, **settings)[0]

    def chat(self, messages: str | list[JSON], **settings: Any) -> str | Generation | list[Any]:
        """Generate the assistant's answer to a conversation.

        Args:
            messages: list of dicts with `role` ("system", "user" or "assistant") and `content`,
                the last one from the user, see `ChatTemplate.render`; or one str, the user's
                message.
            **settings: see `__call__`; and the variables of the chat template, such as `tools` or
                `enable_thinking`. A name that is both is a setting.

        Returns:
            The assistant's answer, in the form that `__call__` returns.

        Raises:
            InputError: if the task has no chat template (`metadata["chat_template"]`), or an
                argument is invalid, naming it.
        """
        prompt, settings = self._chat_prompt(messages, settings)
        return self(prompt, parse_special=True, **settings)

    def stream_chat(self, messages: str | list[JSON], **settings: Any) -> Iterator[str]:
        """Stream the answer of `chat`.

        Args:
            messages, **settings: see `chat` and `stream`.

        Returns:
            A generator of str.

        Raises:
            InputError: see `chat`; raised before anything is generated.
        """
        prompt, settings = self._chat_prompt(messages, settings)
        return self.stream(prompt, parse_special=True, **settings)

    def _chat_prompt(self, messages, settings):
        """Return the rendered messages, and the settings without variables of the template."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        template = self.chat_template
        names = set(settings) - {*KNOWN, "prefix_cache"}
        if unknown := sorted(names - set(template.variables)):
            raise InputError(
                f"unknown setting `{unknown[0]}`; known: {', '.join(KNOWN)}; and the variables of "
                f"the chat template: {', '.join(template.variables)}."
            )
        variables = {name: settings[name] for name in names}
        settings = {name: value for name, value in settings.items() if name not in names}
        return template.render(messages, **variables), settings

    def conversation(self, system: str | None = None) -> Conversation:
        """Start a `Conversation`, which processes each turn only once.

        Args:
            system: str, a system message, or None.

        Raises:
            InputError: if the task has no chat template.
        """
        _ = self.chat_template
        return Conversation(self, system)

    def render(self, messages: list[JSON], **variables: Any) -> str:
        """Render a conversation to a prompt, a str, for `parse_special=True`.

        Args:
            messages, **variables: see `ChatTemplate.render`.
        """
        return self.chat_template.render(messages, **variables)

    @property
    def chat_template(self) -> ChatTemplate:
        """The `tokenizers.ChatTemplate` of the task.

        Raises:
            InputError: if the task has no chat template.
        """
        template = self.metadata.get("chat_template")
        if not template:
            raise InputError("this model has no chat template; call the task with a prompt.")
        tokenizer = self.tokenizer
        bos, eos = (tokenizer.token(index) for index in (tokenizer.bos_id, tokenizer.eos_id))
        return ChatTemplate(template, bos, eos)

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        parse_special: bool = False,
        **settings: Any,
    ) -> Iterator[str]:
        """Continue one prompt and stream the text.

        Args:
            prompt: str, not empty.
            max_new_tokens, temperature, top_k, top_p, seed, parse_special, **settings: see
                `__call__`; searches, several sequences and details cannot be streamed.

        Returns:
            A generator of str. Joined, the pieces equal the text that `__call__` returns for the
            same seed; a piece never ends inside a character.

        Raises:
            InputError: if an argument is invalid, naming it; raised before anything is generated.
        """
        if not isinstance(prompt, str):
            raise InputError(
                f"`prompt` must be a single str for streaming, got {type(prompt).__name__}."
            )
        token_ids, lengths = self._encode_prompts([prompt], parse_special)
        settings |= {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        return self._pieces(token_ids, lengths, max_new_tokens, **settings)

    def score(self, texts: str | list[str]) -> float | list[float]:
        """Compute the log-likelihood of texts.

        Args:
            texts: non-empty str, or list of them.

        Returns:
            The sum of each text's token log-probabilities, in nats: a float for a str, a list for a
            list.

        Raises:
            InputError: if a text is empty or longer than the model's `max_length`.
        """
        rows = [texts] if isinstance(texts, str) else texts
        token_ids, lengths = self._encode("texts", rows, self.model.config.max_length + 1)
        scores = np.asarray(self._compiled.score(token_ids, lengths)).tolist()
        return scores[0] if isinstance(texts, str) else scores

    def dataset(
        self,
        rows: Sequence[str] | np.ndarray | Sequence[list[dict[str, str]]],
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
        sequence_length: int | None = None,
        segments: bool = False,
        drop_remainder: bool = False,
    ) -> Dataset:
        """Convert documents or conversations to batches.

        Args:
            rows: list of str, which are packed into windows, or an int array of their tokens from
                `data.encode_documents`; or list of conversations, each a list of dicts with "role"
                and "content", of which only what the assistant says is learned, for tasks with a
                chat template.
            batch_size, epochs, seed: see `Fitting.dataset`.
            sequence_length: int, the tokens of a window, or the most tokens of a conversation.
                Defaults to the model's `max_length`, at most 512.
            segments: bool. Whether attention is limited to the documents of a window, see
                `data.packed_dataset`.
            drop_remainder: bool. Whether held-out windows that do not fill a last batch are left
                out. If not, the last batch is smaller.

        Returns:
            A `tf.data.Dataset` for `training.LanguageModelTrainer`.

        Raises:
            InputError: if the rows are something else, or too few for one batch.
        """
        length, pad_id = self._window(sequence_length), self.tokenizer.pad_id
        if self._are_conversations(rows):
            examples = self._examples(rows, length)
            return data.chat_dataset(examples, batch_size, pad_id, epochs, seed)
        token_ids, bos_id = encoded_rows(rows, self.tokenizer), self.tokenizer.bos_id
        if seed is None:
            batch_size = max(1, min(data.windows(token_ids, length), batch_size))
        return data.packed_dataset(
            token_ids,
            length,
            batch_size,
            bos_id,
            _IGNORED,
            epochs,
            seed,
            segments=segments,
            drop_remainder=drop_remainder or seed is not None,
        )

    def _objective(self) -> tuple[training.Trainer, dict[str, Any]]:
        # Not the padding token, which is the end token of some tokenizers: it must be learned.
        return training.LanguageModelTrainer(self.model, ignore_id=_IGNORED), {}

    def _measure(
        self, rows, batch_size=16, sequence_length=None, segments=False, drop_remainder=False
    ):
        """`training.evaluate_language_model` of documents, `training.evaluate_examples` of
        conversations; the options are those of `dataset`. Without `bits_per_byte` if the bytes are
        unknown: for token ids, and with `drop_remainder`."""
        length = self._window(sequence_length)
        if self._are_conversations(rows):
            return training.evaluate_examples(self.model, self._examples(rows, length), batch_size)
        token_ids, num_bytes = encoded_rows(rows, self.tokenizer), None
        if drop_remainder:
            count = data.windows(token_ids, length)
            size = max(1, min(count, batch_size))
            token_ids = token_ids[: count // size * size * length + 1]
        elif not isinstance(rows, np.ndarray):
            num_bytes = sum(len(text.encode()) for text in rows)
        return training.evaluate_language_model(
            self.model, token_ids, num_bytes, self.tokenizer.bos_id, length, batch_size, segments
        )

    def _window(self, sequence_length):
        longest = self.model.config.max_length
        length = min(longest, _WINDOW) if sequence_length is None else sequence_length
        if not isinstance(length, int) or not 1 < length <= longest:
            raise InputError(
                f"`sequence_length` must be an int in 2 .. {longest}, the model's `max_length`, "
                f"got {sequence_length!r}."
            )
        return length

    @staticmethod
    def _are_conversations(rows):
        return isinstance(rows, (list, tuple)) and bool(rows) and not isinstance(rows[0], str)

    def _examples(self, conversations, length):
        examples, dropped = data.chat_examples(
            conversations, self.chat_template, self.tokenizer, length, self.end_token_ids
        )
        if not examples:
            raise InputError(f"none of {len(conversations)} conversations can be used: {dropped}.")
        self.check_ids("rows", [example.token_ids for example in examples])
        return examples

    def _encode_prompts(self, prompts, parse_special=False):
        return self._encode("prompt", prompts, self.model.config.max_length - 1, parse_special)

    def _encode(self, name, texts, longest, parse_special=False):
        """Encode texts to int32 (B, T), padded on the right, and lengths (B,)."""
        rows = [
            self.tokenizer.encode_prompt(text, parse_special) for text in checked_texts(name, texts)
        ]
        self.check_ids(name, rows)
        return padded_rows(name, rows, longest, self.model.config.max_length, self.tokenizer.pad_id)
