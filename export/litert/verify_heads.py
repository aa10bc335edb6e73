"""Verify exported files of models with a head: numbers and decisions."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_llm.errors import ExportError, InputError
from keras_llm.export.litert.verify import LiteRTVerification, check_texts
from keras_llm.export.verification import SEED_TEXTS
from keras_llm.types import JSON

_TOLERANCE = 1e-4
_TEXTS = (
    *SEED_TEXTS,
    "The quick brown fox jumps over the lazy dog.",
    "In 1984, a value of the class was returned; nobody asked why.",
    "word " * 12,
)
_MOST = 64  # maximum number of texts


class HeadVerification(LiteRTVerification):
    """Verification of a task that takes one text: classification, regression, tagging, embedding.

    The result for a text is a dict of `numbers`, an array, and `decision`, a JSON value.
    """

    def request(self) -> JSON:
        """Return the request for the child process."""
        self._inputs = [list(row) for row in self.inputs()]
        return {"inputs": self._inputs}

    def inputs(self) -> list[tuple[str, ...]]:
        """Return the arguments of each call, tuples of str."""
        return [(text,) for text in self.texts_that_fit(self.held_out or _TEXTS)]

    def texts_that_fit(self, texts: Iterable[str]) -> list[str]:
        room = self.plan.manifest["max_length"] - len(self.plan.manifest["begin"])
        room -= len(self.plan.manifest["end"])
        fit = [t for t in texts if 0 < len(self.plan.task.tokenizer.encode(t)) <= room][:_MOST]
        if not fit:
            raise ExportError("`cache_length` is too short for all verification texts.")
        return fit

    def keras(self) -> list[dict[str, Any]]:
        """Return the results of the task for the inputs, a list of dicts."""
        texts = [text for (text,) in self._inputs]
        results = self.plan.task(texts, **self.details())
        return [digest(self.plan.manifest["task"], _plain(row)) for row in results]

    def details(self) -> dict[str, bool]:
        """Return the arguments that request detailed results from the task."""
        return {} if self.plan.manifest["task"] == "TextEmbedding" else {"return_details": True}

    def expect(self) -> None:
        """Compute the results of the task."""
        self._expected = self.keras()

    def compare(self, answer: dict[str, Any]) -> JSON:
        """Compare the numbers and decisions of the file with those of the Keras model."""
        self._results = [digest(self.plan.manifest["task"], row) for row in answer["results"]]
        pairs = list(zip(self._results, self._expected, strict=True))
        self._same = [row["decision"] == expected["decision"] for row, expected in pairs]
        errors = [
            np.abs(row["numbers"] - expected["numbers"]).max(initial=0.0)
            for row, expected in pairs
            if row["numbers"].shape == expected["numbers"].shape
        ]
        measured = {
            "inputs": len(pairs),
            "decisions_equal": float(np.mean(self._same)),
            "max_error": float(max(errors, default=0.0)),
        }
        if self.plan.quantization is None:
            if not measured["max_error"] <= _TOLERANCE:
                raise ExportError(
                    f"the outputs of the file differ from Keras by {measured['max_error']:.3g}, "
                    f"more than {_TOLERANCE}; nothing was written."
                )
            self._require_same_decisions(pairs)
        return {"parity": measured}

    def quality(self, answer: dict[str, Any]) -> JSON:
        """Measure the quality loss of quantization.

        It is the share of decisions that change; for embeddings, 1 minus the mean cosine
        similarity; for regression, the mean change divided by the standard deviation.
        """
        del answer
        if self.plan.manifest["task"] == "TextRegression":
            values, expected = (
                np.array([row["numbers"][0] for row in rows])
                for rows in (self._results, self._expected)
            )
            loss = np.abs(values - expected).mean() / max(expected.std(), 1e-6)
            return {"inputs": len(values), "loss": float(loss)}
        if self.plan.manifest["task"] != "TextEmbedding":
            return {"inputs": len(self._same), "loss": 1.0 - float(np.mean(self._same))}
        cosines = [
            float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            for a, b in (
                (row["numbers"], expected["numbers"])
                for row, expected in zip(self._results, self._expected, strict=True)
            )
        ]
        return {"inputs": len(cosines), "loss": 1.0 - float(np.mean(cosines))}

    def _require_same_decisions(self, pairs):
        for arguments, (row, expected), same in zip(self._inputs, pairs, self._same, strict=True):
            if not same:
                raise ExportError(
                    f"for {arguments!r} the file returns {row['decision']!r}, but Keras returns "
                    f"{expected['decision']!r}; nothing was written."
                )


class MaskVerification(HeadVerification):
    """Verification of a `MaskedLanguageModel`; held-out texts have mask tokens."""

    def inputs(self) -> list[tuple[str, ...]]:
        if self.held_out is not None:
            return super().inputs()
        mask = self.plan.task.mask_token
        texts = [f"{text} {mask} {other}" for text, other in itertools.pairwise(_TEXTS)]
        return [(text,) for text in self.texts_that_fit([*texts, f"{mask} and {mask}"])]


class AnswerVerification(HeadVerification):
    """Verification of a `QuestionAnswering`; held-out texts are pairs (question, context)."""

    def check_held_out(self, caller: str, held_out: object) -> None:
        if not isinstance(held_out, (list, tuple)) or not held_out:
            raise InputError(f"{caller}: `held_out` must be a list of pairs (question, context).")
        for pair in held_out:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise InputError(
                    f"{caller}: `held_out` must be a list of pairs (question, context)."
                )
            check_texts(caller, "held_out", list(pair))

    def inputs(self) -> list[tuple[str, ...]]:
        if self.held_out is not None:
            return list(self.held_out)[:_MOST]
        contexts = [text for text in _TEXTS if len(text) > 20]
        contexts.append(" ".join(_TEXTS) * 8)  # long enough for several windows
        return [(question, text) for question in ("Why?", "In 1984") for text in contexts]

    def keras(self) -> list[dict[str, Any]]:
        questions, contexts = zip(*self._inputs, strict=True)
        results = self.plan.task(
            list(questions), list(contexts), truncate=True, return_details=True
        )
        return [digest("QuestionAnswering", _plain(row)) for row in results]


def digest(task: str, result: Any) -> dict[str, Any]:
    """Convert a result to a dict of `numbers` and `decision`."""
    if task == "TextEmbedding":
        return {"numbers": np.array(result, "float32"), "decision": None}
    if task == "TextRegression":
        numbers, decision = [result["value"]], None
    elif task == "TextClassification":
        numbers, decision = list(result["probabilities"].values()), result["label"]
    elif task == "TokenClassification":
        numbers = [word["probability"] for word in result["words"]]
        decision = [(word["text"], word["label"], word["start"]) for word in result["words"]]
    elif task == "QuestionAnswering":
        numbers = [result["probability"]]
        decision = [result["text"], result["start"], result["end"]]
    else:
        numbers = [p for guesses in result["tokens"] for _, p in guesses]
        decision = result["text"]
    return {"numbers": np.array(numbers, "float32"), "decision": decision}


def _plain(result):
    return dataclasses.asdict(result) if dataclasses.is_dataclass(result) else result
