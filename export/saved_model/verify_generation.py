"""Verify the SavedModels of generative tasks."""

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_llm import models
from keras_llm.export import verification
from keras_llm.export.saved_model.verify_base import (
    TOLERANCE,
    SavedModelVerification,
)
from keras_llm.sampling_settings import DEFAULTS, SETTINGS
from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.tasks import TextGeneration

_GENERATING = ("serving_default", "generate")
_PENALTIES = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 2}


class TextGenerationVerification(SavedModelVerification):
    """Verification of greedy texts, log-likelihoods, ids, and logits of cached decoding steps."""

    def __init__(
        self, task: "TextGeneration", exact: bool = True, beam_width: int | None = None
    ) -> None:
        super().__init__(task, exact, beam_width)
        self._prompts = verification.probe_prompts(task)
        self._chats = []
        if task.metadata.get("chat_template"):
            self._chats = [task.render([{"role": "user", "content": "Why?"}])]
        self._ids = [task.tokenizer.encode_prompt(text) for text in self._prompts]
        self._cache_length = min(max(map(len, self._ids)) + 1, task.model.config.max_length)

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        text = {"text": ["string", self._prompts]}
        token_ids, lengths = self._batch(self._ids)
        prefill = {
            "token_ids": ["int32", token_ids.tolist()],
            "lengths": ["int32", lengths.tolist()],
            "cache_length": ["int32", self._cache_length],
        }
        entries = models.init_cache(self.task.model, 1, 1)
        decode = {
            "token_ids": ["int32", token_ids[:, :1].tolist()],
            "positions": ["int32", lengths[:, None].tolist()],
            **{name: ["output", 3, name] for name in entries},
        }
        return [
            ("serving_default", self._greedy(self._prompts, verification.NEW_TOKENS)),
            ("score", text),
            ("tokenize", text),
            ("prefill", prefill),
            ("decode", decode),
            ("detokenize", {"token_ids": prefill["token_ids"], "lengths": prefill["lengths"]}),
            ("is_end", {"token_ids": ["int32", [[*self.task.end_token_ids, *self._ids[0]]]]}),
            *self._further(self._prompts[:2]),
        ]

    def _further(self, prompts):
        """Return calls of the signatures with all settings, `chat` and `beam_search`."""
        extended = _greedy_settings(verification.NEW_TOKENS, _PENALTIES)
        calls = [("generate_extended", {"prompt": ["string", prompts], **extended})]
        if self._chats:
            chat = _greedy_settings(verification.NEW_TOKENS, {})
            calls.append(("chat", {"prompt": ["string", self._chats], **chat}))
        if self.beam_width is not None:
            settings = {
                "max_new_tokens": ["int32", [verification.NEW_TOKENS]],
                "length_penalty": ["float32", [1.0]],
            }
            calls.append(("beam_search", {"prompt": ["string", prompts], **settings}))
        return calls

    def timed(self) -> tuple[str, dict[str, Any]]:
        return "serving_default", self._greedy(self._prompts[:1], verification.TIMED_TOKENS)

    def warm_up(self) -> list[tuple[str, dict[str, Any]]]:
        prompt, ids = self._prompts[:1], self._ids[0]
        prompts = {"token_ids": ["int32", [ids]], "lengths": ["int32", [len(ids)]]}
        entries = models.init_cache(self.task.model, 1, len(ids) + 1)
        cache = {
            name: [entry.dtype.name, np.zeros(entry.shape, _number(entry.dtype)).tolist()]
            for name, entry in entries.items()
        }
        step = {"token_ids": ["int32", [ids[-1:]]], "positions": ["int32", [[len(ids)]]]}
        return [
            *((name, self._greedy(prompt, verification.NEW_TOKENS)) for name in _GENERATING),
            *((name, {"text": ["string", prompt]}) for name in ("score", "tokenize")),
            ("detokenize", prompts),
            ("prefill", {**prompts, "cache_length": ["int32", [len(ids) + 1]]}),
            ("decode", {**step, **cache}),
            ("is_end", {"token_ids": step["token_ids"]}),
            *self._further(prompt),
        ]

    def speed(self, seconds: float, outputs: dict[str, Any]) -> dict[str, float]:
        return {"tokens_per_second": round(outputs["num_tokens"][0] / seconds, 1)}

    def expect(self) -> None:
        task, greedy = self.task, {"max_new_tokens": verification.NEW_TOKENS, "temperature": 0.0}
        self._greedy_rows = task(self._prompts, **greedy, seed=0, return_details=True)
        self._scores = task.score(self._prompts)
        self._penalized = task(self._prompts[:2], **greedy, **_PENALTIES)
        self._answers = task(self._chats, parse_special=True, **greedy) if self._chats else []
        self._beams = self.expected_beams(self._prompts[:2])
        next_ids = [row + row[:1] for row in self._ids]
        self._logits = self._last_logits(self._ids + next_ids)

    def compare(self, outputs: list[dict[str, Any]]) -> JSON:
        generated, scored, tokenized, prefilled, decoded, detokenized, ends, *further = outputs
        task, expected = self.task, self._greedy_rows
        texts = [row.text for row in expected]
        if self.exact:
            verification.require_same_texts(generated["text"], texts)
        ids = [
            row[:n] for row, n in zip(*map(tokenized.get, ("token_ids", "lengths")), strict=True)
        ]
        self.agreement("token ids", ids, self._ids)
        decode = task.tokenizer.decode
        self.agreement("text", detokenized["text"], [decode(row) for row in self._ids])
        end_ids = task.end_token_ids
        is_end = [[i in end_ids for i in [*end_ids, *self._ids[0]]]]
        self.agreement("ends", ends["is_end"], is_end)
        measured = {
            "prompts": len(self._prompts),
            "greedy_texts_equal": generated["text"] == texts,
            "max_score_error": self.number("scores", scored["log_probability"], self._scores),
        }
        if self.exact:
            measured["max_log_probability_error"] = self.number(
                "log-probabilities",
                generated["log_probability"],
                [row.log_probability for row in expected],
            )
        measured |= self._compare_further(*further)
        return {**measured, **self._steps(prefilled["logits"], decoded["logits"])}

    def _compare_further(self, extended, *others):
        others = list(others)
        self.agreement("text", extended["text"], self._penalized)
        if self._chats:
            self.agreement("answer", others.pop(0)["text"], self._answers)
        if self.beam_width is None:
            return {}
        return {"max_beam_score_error": self.beams("text", others.pop(0), self._beams)}

    def _steps(self, prefilled, decoded):
        """Compare the logits of cached steps with those of a forward pass over the whole text."""
        logits = np.concatenate([np.asarray(prefilled), np.asarray(decoded)])
        expected = self._logits
        size = self.task.tokenizer.vocabulary_size  # other ids are never chosen
        logits, expected = logits[:, :size], expected[:, :size]
        divergence = verification.mean_kl_divergence(expected, logits)
        if self.exact and self.in_float32:
            verification.require_same("logits of the steps", logits, expected, TOLERANCE)
        return {
            "max_logit_error": float(np.abs(logits - expected).max()),
            "mean_kl_divergence_nats": self.bounded("predictions", divergence),
        }

    def _last_logits(self, rows):
        token_ids, lengths = self._batch(rows)
        size, last = self.task.model.config.vocabulary_size, []
        for batch in verification.batches(list(token_ids), token_ids.shape[1], size):
            logits = self.task.model.predict_on_batch(np.stack(batch))
            places = lengths[len(last) :][: len(batch)] - 1
            last += [np.array(row[i], "float32") for row, i in zip(logits, places, strict=False)]
        return np.stack(last)

    def _batch(self, rows):
        lengths = np.array([len(row) for row in rows], "int32")
        token_ids = np.full((len(rows), lengths.max()), self.task.tokenizer.pad_id, "int32")
        for row, ids in zip(token_ids, rows, strict=True):
            row[: len(ids)] = ids
        return token_ids, lengths

    @staticmethod
    def _greedy(prompts, max_new_tokens):
        return {"prompt": ["string", prompts], **_greedy_settings(max_new_tokens)}


class TranslationVerification(SavedModelVerification):
    """Verification of greedy texts and their log-probabilities."""

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        texts = ["string", verification.SEED_TEXTS]
        settings = _greedy_settings(verification.NEW_TOKENS)
        calls = [("serving_default", {"text": texts, **settings})]
        if self.beam_width is not None:
            settings = {
                "max_new_tokens": ["int32", [verification.NEW_TOKENS]],
                "length_penalty": ["float32", [1.0]],
            }
            calls.append(("beam_search", {"text": texts, **settings}))
        return calls

    def timed(self) -> tuple[str, dict[str, Any]]:
        settings = _greedy_settings(verification.TIMED_TOKENS)
        return "serving_default", {"text": ["string", verification.SEED_TEXTS[2:3]], **settings}

    def speed(self, seconds: float, outputs: dict[str, Any]) -> dict[str, float]:
        return {"tokens_per_second": round(max(outputs["num_tokens"][0], 1) / seconds, 1)}

    def expect(self) -> None:
        self._expected = self.task(
            verification.SEED_TEXTS, max_new_tokens=verification.NEW_TOKENS, return_details=True
        )
        self._beams = self.expected_beams(verification.SEED_TEXTS)

    def compare(self, outputs: list[dict[str, Any]]) -> JSON:
        answer, *beams = outputs
        expected = self._expected
        texts = [row.text for row in expected]
        if self.exact:
            verification.require_same_texts(answer["translation"], texts)
        equal = [a == b for a, b in zip(answer["translation"], texts, strict=True)]
        error = self.number(
            "scores",
            np.where(equal, answer["score"], 0.0),
            np.where(equal, [row.log_probability for row in expected], 0.0),
        )
        measured = {}
        if beams:
            beam_error = self.beams("translation", *beams, self._beams)
            measured["max_beam_score_error"] = beam_error
        return {
            **measured,
            "texts": len(texts),
            "greedy_texts_equal": all(equal),
            "max_score_error": error,
            "differing_texts": 1.0 - float(np.mean(equal)),
        }


def _number(dtype):
    return "int32" if dtype.is_integer else "float32"


def _greedy_settings(max_new_tokens, further=None):
    """Return the inputs for greedy decoding; if `further` is a dict, with all sampling settings."""
    if further is not None:
        overrides = {"temperature": 0.0, "seed": 0, **further}
        values = {name: overrides.get(name, DEFAULTS[name]) for name in SETTINGS}
        return {
            "max_new_tokens": ["int32", [max_new_tokens]],
            **{name: [SETTINGS[name].dtype, [value]] for name, value in values.items()},
        }
    return {
        "max_new_tokens": ["int32", [max_new_tokens]],
        "temperature": ["float32", [0.0]],
        "top_k": ["int32", [0]],
        "top_p": ["float32", [1.0]],
        "seed": ["int32", [0]],
    }
