"""Generate text with tasks: sampling, searches, streaming and details."""

import copy
import dataclasses
import functools
from typing import Any, Self

import numpy as np

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.generation.compiled import CompiledGenerator
from keras_llm.generation.sampling import NOT_NUMBERS
from keras_llm.tasks.base import Task
from keras_llm.tasks.search import chosen_search, run_search
from keras_llm.tasks.settings import (
    CONSTRAINTS,
    RESULT_OPTIONS,
    budget_of,
    count_of,
    cut_at,
    pieces_until,
    sampling_of,
    stop_ids_of,
    stops_of,
)


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generated text with details.

    Attributes:
        text: str, the new text without the prompt; it begins with a space if a new word begins.
        token_ids: list of int, the new tokens.
        num_tokens: int, the number of new tokens.
        log_probability: float, the total log-probability of the new tokens, in nats.
        score: float, the sort key of the texts of a prompt, highest first: the log-probability
            unless a search defines another score.
        finish_reason: "stop" (an end token or a stop string ended the text) or "length"
            (`max_new_tokens` or the model's `max_length` was reached).
        stopped_by: str, the stop string or the token that ended the text, or None. Also None if a
            search ended the text and there are several end tokens.
        token_log_probabilities: list of float, one per token.
        alternatives: list with one dict per token, from the ids of the most likely tokens at that
            position to their log-probabilities; empty dicts if `num_alternatives` is 0.
    """

    text: str
    token_ids: list[int]
    num_tokens: int
    log_probability: float
    score: float
    finish_reason: str
    stopped_by: str | None
    token_log_probabilities: list[float]
    alternatives: list[dict[int, float]]


class GenerativeTask(Task):
    """The base class of tasks that generate text.

    `metadata["end_token_ids"]`, a list of ints, adds tokens that end a text to the tokenizer's end
    token, such as an end-of-turn token.
    """

    model: models.CausalLM | models.Seq2Seq
    _jit_compile: bool | None = None

    @functools.cached_property
    def _compiled(self):
        """The compiled decode loops, created lazily so that any backend can save the task."""
        return CompiledGenerator(self.model, self.end_token_ids, self._pad_id, self._jit_compile)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task."""
        task: Any = self  # each subclass is callable
        return task(*args, **kwargs)

    def without_xla(self) -> Self:
        """Return the same task with a decode loop that TensorFlow runs without XLA.

        The first call is faster, because one graph serves all shapes; later calls are slower.
        """
        return self._twin if self._compiled.jit_compile else self

    def enable_lora(self, *args: Any, **kwargs: Any) -> list[str]:
        """See `Task.enable_lora`."""
        paths = super().enable_lora(*args, **kwargs)
        self.release()  # compiled without adapters
        return paths

    def release(self) -> None:
        """Free the compiled decode loops; the next call compiles again."""
        self.__dict__.pop("_twin", None)
        compiled = self.__dict__.pop("_compiled", None)
        if compiled is not None:
            compiled.release()

    @functools.cached_property
    def _twin(self):
        twin = copy.copy(self)
        twin._compiled, twin._jit_compile = self._compiled.without_xla, False
        return twin

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, a tuple of ints; the tokenizer's end token is first."""
        ids = [self.tokenizer.eos_id, *self.metadata.get("end_token_ids", ())]
        return tuple(dict.fromkeys(ids))

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.pad_id

    def _generate(
        self,
        token_ids,
        lengths,
        max_new_tokens,
        stop=(),
        stop_token_ids=(),
        num_return_sequences=1,
        return_details=False,
        num_alternatives=0,
        encoder_token_ids=None,
        prefix_cache=None,
        prompts=None,
        **settings,
    ):
        """Generate texts for a batch.

        Returns:
            A list with one str or `Generation` per row; with several sequences per prompt, a list
            of lists.
        """
        sequences = count_of("num_return_sequences", num_return_sequences, 1)
        alternatives = count_of("num_alternatives", num_alternatives, 0)
        stops = stops_of(stop)
        search, options = chosen_search(settings)
        samples = sequences
        if search == "num_candidates":
            samples = count_of("num_candidates", options["num_candidates"], sequences)
        searches = search not in (None, "num_candidates")
        previous = self._previous(token_ids, lengths, settings)
        continues = self._continues(token_ids, lengths)
        arguments = {
            "token_ids": token_ids,
            "lengths": lengths,
            "max_new_tokens": budget_of(max_new_tokens),
            "sampling": self._sampling(
                len(lengths), settings, 1 if searches else samples, continues
            ),
            "encoder_token_ids": encoder_token_ids,
            "stop_ids": self._stop_ids(stop_token_ids),
        }
        if searches:
            options = self._with_draft(options, encoder_token_ids)
            result = run_search(
                self._compiled, search, options, settings.get("top_k", 0), sequences, arguments
            )
            rows = self._search_results(
                result, stops, arguments, previous, alternatives, return_details
            )
        else:
            rows = self._sample(arguments, stops, previous, samples, alternatives, prefix_cache)
        if search == "num_candidates":
            rows = [
                self._ranked(prompt, row, options.get("scorer"))[:sequences]
                for prompt, row in zip(prompts or [None] * len(rows), rows, strict=True)
            ]
        if not return_details:
            rows = [[result.text for result in row] for row in rows]
        return rows if sequences > 1 else [row[0] for row in rows]

    def _pieces(
        self,
        token_ids,
        lengths,
        max_new_tokens,
        stop=(),
        stop_token_ids=(),
        encoder_token_ids=None,
        prefix_cache=None,
        **settings,
    ):
        """Yield the pieces of one text while it is generated."""
        search, _ = chosen_search(settings)
        if search is not None:
            raise InputError(f"`{search}` returns whole texts and cannot be streamed.")
        for name, default in RESULT_OPTIONS.items():
            if settings.pop(name, default) != default:
                raise InputError(f"`{name}` cannot be streamed.")
        states = self._compiled.stream(
            token_ids,
            lengths,
            budget_of(max_new_tokens),
            self._sampling(1, settings, continues=self._continues(token_ids, lengths)),
            encoder_token_ids,
            self._stop_ids(stop_token_ids),
            prefix_cache,
        )
        previous = self._previous(token_ids, lengths, settings)[0]
        pieces = self.tokenizer.decode_stream(_tokens(states), previous)
        return pieces_until(pieces, stops_of(stop))

    def _sampling(self, rows, settings, samples=1, continues=False):
        size = self.model.config.vocabulary_size
        return sampling_of(rows, settings, self.tokenizer, size, samples, continues)

    def _previous(self, token_ids, lengths, settings):
        """Return the token that the new tokens of each row follow.

        None for constraints, which hold for the new tokens as a text of their own.
        """
        if any(settings.get(name) is not None for name in CONSTRAINTS):
            return [None] * len(lengths)
        return token_ids[np.arange(len(lengths)), np.asarray(lengths) - 1].tolist()

    def _continues(self, token_ids, lengths):
        """Return whether all prompts end with a token that has text, which new text continues."""
        return all(map(self.tokenizer.has_text, self._previous(token_ids, lengths, {})))

    def _decode(self, ids, previous):
        if previous is None:
            return self.tokenizer.decode(ids)
        return self.tokenizer.decode_continuation(ids, previous)

    def _stop_ids(self, stop_token_ids):
        return stop_ids_of(stop_token_ids, self.model.config.vocabulary_size)

    def _sample(self, arguments, stops, previous, samples, alternatives, prefix_cache):
        """Run the decode loop and return a list of `samples` `Generation`s for each prompt."""
        previous = [token for token in previous for _ in range(samples)]

        def is_over(row, ids):
            return cut_at(self._decode(ids, previous[row]), stops)[1]

        state = self._compiled.generate(
            **arguments,
            samples=samples,
            alternatives=alternatives,
            is_over=is_over if stops else None,
            prefix_cache=prefix_cache,
        )
        log_p = np.asarray(state.token_log_probabilities)
        if np.isnan(log_p).any():
            raise InputError(NOT_NUMBERS)
        fields = (
            state.token_ids,
            state.num_tokens,
            state.stopped,
            state.stop_token,
            log_p,
            state.alternative_ids,
            state.alternative_log_probabilities,
        )
        results = [
            self._generation(stops, token, *row)
            for token, *row in zip(previous, *map(np.asarray, fields), strict=True)
        ]
        return [results[i : i + samples] for i in range(0, len(results), samples)]

    def _search_results(self, result, stops, arguments, previous, alternatives, with_details):
        """Convert the result of a search to a list of `Generation`s for each prompt."""
        ends = {*self.end_token_ids, *arguments["stop_ids"]}
        end = ends.pop() if len(ends) == 1 else -1
        rows = []
        for i, row in enumerate(zip(*result, strict=True)):
            results = []
            for ids, count, score, stopped in zip(*row, strict=True):
                if score == -np.inf:
                    continue
                details = [np.zeros(count), *np.zeros((2, count, 0))]
                if with_details:
                    details = self._token_details(arguments, i, ids[:count], alternatives)
                generation = self._generation(
                    stops,
                    previous[i],
                    ids,
                    count,
                    stopped,
                    end if stopped else -1,
                    *details,
                    score=score,
                )
                results.append(generation)
            rows.append(results)
        return rows

    def _token_details(self, arguments, row, new_ids, alternatives):
        """Return log-probabilities and alternatives of the new tokens of one row."""
        begin = int(arguments["lengths"][row])
        ids = np.concatenate([arguments["token_ids"][row, :begin], new_ids])[None]
        source = arguments["encoder_token_ids"]
        source = source if source is None else source[row : row + 1]
        fields = self._compiled.token_log_probabilities(ids.astype("int32"), alternatives, source)
        return [np.asarray(field)[0, begin - 1 :] for field in fields]

    def _generation(
        self,
        stops,
        previous,
        ids,
        count,
        stopped,
        stop_token,
        log_p,
        other_ids,
        other_log_p,
        score=None,
    ):
        def decode(count):
            return self._decode(ids[:count], previous)

        ids = ids[:count].tolist()
        text, is_cut = cut_at(decode(count), stops)
        if is_cut:  # drop the tokens after the one that completed the stop string
            count = next(n for n in range(1, count + 1) if cut_at(decode(n), stops)[1])
            whole = decode(count)
            stopped_by = next(s for s in stops if whole.startswith(s, len(text)))
        else:
            stopped_by = self.tokenizer.token(int(stop_token)) if stop_token >= 0 else None
        others = zip(other_ids[:count].tolist(), other_log_p[:count].tolist(), strict=True)
        log_probability = float(log_p[:count].sum(dtype="float64"))
        return Generation(
            text=text,
            token_ids=ids[:count],
            num_tokens=int(count),
            log_probability=log_probability,
            score=log_probability if score is None else float(score),
            finish_reason="stop" if stopped or is_cut else "length",
            stopped_by=stopped_by,
            token_log_probabilities=log_p[:count].tolist(),
            alternatives=[dict(zip(*pair, strict=True)) for pair in others],
        )

    @staticmethod
    def _ranked(prompt, row, scorer):
        """Return the candidates of a prompt, best first."""
        texts = [result.text for result in row]
        if scorer is None:
            scores = [r.log_probability / r.num_tokens if r.num_tokens else -np.inf for r in row]
        else:
            scores = np.asarray(scorer(prompt, texts), "float64")
            if scores.shape != (len(texts),):
                raise InputError(
                    f"`scorer` must return {len(texts)} numbers, one per text, got shape "
                    f"{scores.shape}."
                )
        order = np.argsort(-np.asarray(scores), kind="stable")
        return [dataclasses.replace(row[i], score=float(scores[i])) for i in order]

    def _with_draft(self, options, encoder_token_ids):
        """Return the options with the draft task replaced by its model."""
        if {"draft", "prompt_lookup"} & set(options) and encoder_token_ids is not None:
            name = next(name for name in ("draft", "prompt_lookup") if name in options)
            raise InputError(f"`{name}` supports only decoder-only models.")
        if "draft" not in options:
            return options
        draft = options["draft"]
        if not isinstance(draft, type(self)):
            raise InputError(f"`draft` must be a {type(self).__name__}, got {type(draft)}.")
        if draft.tokenizer is not self.tokenizer:
            size = self.tokenizer.vocabulary_size
            tokens = [
                [tokenizer.token(i) for i in range(tokenizer.vocabulary_size)]
                for tokenizer in (self.tokenizer, draft.tokenizer)
            ]
            if tokens[0] != tokens[1]:
                raise InputError(f"`draft` must have this task's vocabulary of {size} tokens.")
        return {**options, "draft": draft.model}


def _tokens(states):
    for state in states:
        if np.isnan(state.token_log_probabilities).any():
            raise InputError(NOT_NUMBERS)
        if not bool(state.stopped[0]):
            yield int(state.token[0])
