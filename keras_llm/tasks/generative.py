"""What tasks share that write text: settings in, texts out, whole or piece by piece."""

import copy
import dataclasses
import functools

import numpy as np

from keras_llm.errors import InputError
from keras_llm.generation.compiled import CompiledGenerator
from keras_llm.generation.sampling import NOT_NUMBERS
from keras_llm.tasks.base import Task
from keras_llm.tasks.search import chosen_search, run_search
from keras_llm.tasks.settings import (
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
    """One new text.

    Attributes:
        text: str, the new text alone.
        token_ids: list of int, the new tokens.
        num_tokens: int, how many they are.
        log_probability: float, their log-probability under the model, in nats.
        score: float, what the texts of one prompt are sorted by, the highest first; the
            log-probability unless a search says otherwise.
        finish_reason: "stop" (an end token or a stop string ended the text) or "length"
            (`max_new_tokens` or the model's `max_length` was reached).
        stopped_by: str, the stop string or the token that ended the text, or None. (None too
            where a search ended it and several tokens may.)
        token_log_probabilities: list of float, each token's.
        alternatives: list with a dict for each token, from the most likely tokens' ids there to
            their log-probabilities; empty dicts unless asked for.
    """

    text: str
    token_ids: list
    num_tokens: int
    log_probability: float
    score: float
    finish_reason: str
    stopped_by: str | None
    token_log_probabilities: list
    alternatives: list


class GenerativeTask(Task):
    """A task whose texts come out of a decode loop.

    `metadata["end_token_ids"]`, a list of ints, names tokens that end a text beside the
    tokenizer's end token, such as the end of a turn.
    """

    _jit_compile = None

    @functools.cached_property
    def _compiled(self):
        """Made when it is first wanted: a task trained on another backend can be saved there."""
        return CompiledGenerator(self.model, self.end_token_ids, self._pad_id, self._jit_compile)

    def without_xla(self):
        """The same task, whose decode loop TensorFlow runs without XLA: the first text comes
        sooner, since one graph serves all sizes, and all others later."""
        return self._twin if self._compiled.jit_compile else self

    def release(self):
        """Free the compiled decode loops; the next call compiles again."""
        compiled = self.__dict__.pop("_compiled", None)
        if compiled is not None:
            compiled.release()

    @functools.cached_property
    def _twin(self):
        twin = copy.copy(self)
        for name in ("_compiled", "_twin"):
            twin.__dict__.pop(name, None)
        twin._jit_compile = False
        return twin

    @property
    def end_token_ids(self):
        """Tuple of ints, the tokens that end a text; the tokenizer's end token is the first."""
        ids = [self.tokenizer.eos_id, *self.metadata.get("end_token_ids", ())]
        return tuple(dict.fromkeys(ids))

    @property
    def _pad_id(self):
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
        """New texts for a batch: a list with a text, or a `Generation`, for each row; with
        several sequences a list in the place of each."""
        sequences = count_of("num_return_sequences", num_return_sequences, 1)
        alternatives = count_of("num_alternatives", num_alternatives, 0)
        stops = stops_of(stop)
        search, options = chosen_search(settings)
        samples = sequences
        if search == "num_candidates":
            samples = count_of("num_candidates", options["num_candidates"], sequences)
        searches = search not in (None, "num_candidates")
        arguments = {
            "token_ids": token_ids,
            "lengths": lengths,
            "max_new_tokens": budget_of(max_new_tokens),
            "sampling": self._sampling(len(lengths), settings, 1 if searches else samples),
            "encoder_token_ids": encoder_token_ids,
            "stop_ids": self._stop_ids(stop_token_ids),
        }
        if searches:
            options = self._with_draft(options, encoder_token_ids)
            found = run_search(
                self._compiled, search, options, settings.get("top_k", 0), sequences, arguments
            )
            rows = self._found(found, stops, arguments, alternatives, return_details)
        else:
            rows = self._drawn(arguments, stops, samples, alternatives, prefix_cache)
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
        """The pieces of one text as they come."""
        search, _ = chosen_search(settings)
        if search is not None:
            raise InputError(f"`{search}` finds whole texts, which cannot be streamed.")
        states = self._compiled.stream(
            token_ids,
            lengths,
            budget_of(max_new_tokens),
            self._sampling(1, settings),
            encoder_token_ids,
            self._stop_ids(stop_token_ids),
            prefix_cache,
        )
        pieces = self.tokenizer.decode_stream(_tokens(states))
        return pieces_until(pieces, stops_of(stop))

    def _sampling(self, rows, settings, samples=1):
        size = self.model.config.vocabulary_size
        return sampling_of(rows, settings, self.tokenizer, size, samples)

    def _stop_ids(self, stop_token_ids):
        return stop_ids_of(stop_token_ids, self.model.config.vocabulary_size)

    def _drawn(self, arguments, stops, samples, alternatives, prefix_cache):
        """The texts of the decode loop: a list with `samples` of them for each prompt."""

        def is_over(row, ids):
            return cut_at(self.tokenizer.decode(ids), stops)[1]

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
            self._generation(stops, *row) for row in zip(*map(np.asarray, fields), strict=True)
        ]
        return [results[i : i + samples] for i in range(0, len(results), samples)]

    def _found(self, found, stops, arguments, alternatives, with_details):
        """The texts of a search."""
        ends = {*self.end_token_ids, *arguments["stop_ids"]}
        end = ends.pop() if len(ends) == 1 else -1
        rows = []
        for i, row in enumerate(zip(*found, strict=True)):
            results = []
            for ids, count, score, stopped in zip(*row, strict=True):
                if score == -np.inf:
                    continue
                details = [np.zeros(count), *np.zeros((2, count, 0))]
                if with_details:
                    details = self._explained(arguments, i, ids[:count], alternatives)
                result = self._generation(
                    stops, ids, count, stopped, end if stopped else -1, *details, score=score
                )
                results.append(result)
            rows.append(results)
        return rows

    def _explained(self, arguments, row, new_ids, alternatives):
        """Log-probabilities and likely others of a text's new tokens."""
        begin = int(arguments["lengths"][row])
        ids = np.concatenate([arguments["token_ids"][row, :begin], new_ids])[None]
        source = arguments["encoder_token_ids"]
        source = source if source is None else source[row : row + 1]
        explained = self._compiled.explain(ids.astype("int32"), alternatives, source)
        return [np.asarray(field)[0, begin - 1 :] for field in explained]

    def _generation(
        self, stops, ids, count, stopped, stop_token, log_p, other_ids, other_log_p, score=None
    ):
        decode = self.tokenizer.decode
        ids = ids[:count].tolist()
        text, is_cut = cut_at(decode(ids), stops)
        if is_cut:  # what was generated beyond the token that completed the stop string goes
            count = next(n for n in range(1, count + 1) if cut_at(decode(ids[:n]), stops)[1])
            whole = decode(ids[:count])
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
        """The candidates of a prompt, the best first."""
        texts = [result.text for result in row]
        if scorer is None:
            scores = [r.log_probability / r.num_tokens if r.num_tokens else -np.inf for r in row]
        else:
            scores = np.asarray(scorer(prompt, texts), "float64")
            if scores.shape != (len(texts),):
                raise InputError(
                    f"`scorer` must return {len(texts)} numbers, one for each text, got shape "
                    f"{scores.shape}."
                )
        order = np.argsort(-np.asarray(scores), kind="stable")
        return [dataclasses.replace(row[i], score=float(scores[i])) for i in order]

    def _with_draft(self, options, encoder_token_ids):
        """The options with the draft's model in the place of the draft."""
        if {"draft", "prompt_lookup"} & set(options) and encoder_token_ids is not None:
            name = next(name for name in ("draft", "prompt_lookup") if name in options)
            raise InputError(f"`{name}` goes with decoders alone.")
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
        if np.isnan(state.token_log_probabilities[0, int(state.step) - 1]):
            raise InputError(NOT_NUMBERS)
        if not bool(state.stopped[0]):
            yield int(state.token[0])
