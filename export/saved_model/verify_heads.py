"""Verify the SavedModels of tasks with a head."""

from typing import TYPE_CHECKING, Any

import numpy as np

from keras_llm.export import verification
from keras_llm.export.saved_model.verify_base import SavedModelVerification
from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.tasks import MaskedLanguageModel, QuestionAnswering
    from keras_llm.tasks.head import HeadTask


class _HeadVerification(SavedModelVerification):
    """Base class for tasks that take one text; one of the texts exceeds the maximum length."""

    def __init__(self, task: "HeadTask", exact: bool = True, beam_width: int | None = None) -> None:
        super().__init__(task, exact, beam_width)
        long = "The long text, with words. " * (1 + task.model.config.max_length // 4)
        self._texts = [
            *verification.SEED_TEXTS,
            "a longer text, with more words than the others",
            long,
        ]

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        return [("serving_default", {"text": ["string", self._texts]})]

    def timed(self) -> tuple[str, dict[str, Any]]:
        return "serving_default", {"text": ["string", self._texts[-2:-1]]}

    def expect(self) -> None:
        self._expected = self.task(self._texts, truncate=True, return_details=True)


class TextEmbeddingVerification(_HeadVerification):
    """Verification of embeddings."""

    def expect(self) -> None:
        self._expected = self.task(self._texts, truncate=True)

    def compare(self, outputs: list[dict[str, Any]]) -> JSON:
        (answer,) = outputs
        vectors, expected = np.asarray(answer["embedding"]), self._expected
        error = self.number("embeddings", vectors, expected)
        norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(expected, axis=-1)
        cosine = np.sum(vectors * expected, axis=-1) / np.maximum(norms, 1e-12)
        return {
            "texts": len(self._texts),
            "max_error": error,
            "max_cosine_distance": self.bounded("embeddings", float(np.max(1 - cosine))),
        }


class TextRegressionVerification(_HeadVerification):
    """Verification of predicted numbers."""

    def compare(self, outputs: list[dict[str, Any]]) -> JSON:
        (answer,) = outputs
        expected = self._expected
        self.agreement("`truncated`", answer["truncated"], [row.truncated for row in expected])
        values = np.array([row.value for row in expected])
        error = self.number("values", answer["value"], values)
        self.bounded("values", error / max(float(values.std()), 1e-6))
        return {"texts": len(self._texts), "max_error": error}


class TextClassificationVerification(_HeadVerification):
    """Verification of labels and probabilities."""

    def compare(self, outputs: list[dict[str, Any]]) -> JSON:
        (answer,) = outputs
        expected = self._expected
        probabilities = np.array([list(row.probabilities.values()) for row in expected])
        divergence = np.mean(
            verification.kl_divergence(probabilities, np.asarray(answer["probabilities"]))
        )
        self.agreement("`truncated`", answer["truncated"], [row.truncated for row in expected])
        return {
            "texts": len(self._texts),
            "labels_equal": self.agreement("label", answer["label"], [r.label for r in expected]),
            "max_probability_error": self.number(
                "probabilities", answer["probabilities"], probabilities
            ),
            "mean_kl_divergence_nats": self.bounded("probabilities", float(divergence)),
        }


class TokenClassificationVerification(_HeadVerification):
    """Verification of words, their offsets, labels and probabilities."""

    exact: bool

    def compare(self, outputs: list[dict[str, Any]]) -> JSON:
        (answer,) = outputs
        expected = self._expected
        words, numbers, labels = [], [], []
        for row in range(len(self._texts)):
            count = answer["num_words"][row]
            words.append([answer[name][row][:count] for name in ("word", "start", "end")])
            labels += answer["label"][row][:count]
            numbers.extend(answer["probability"][row][:count])
        tagged = [word for row in expected for word in row.words]
        places = [
            [[getattr(word, name) for word in row.words] for name in ("text", "start", "end")]
            for row in expected
        ]
        exact, self.exact = self.exact, True
        self.agreement("words", words, places)  # must be equal even if weights are quantized
        self.exact = exact
        error = self.number("probabilities", numbers, [word.probability for word in tagged])
        return {
            "texts": len(self._texts),
            "words": len(tagged),
            "labels_equal": self.agreement("label", labels, [word.label for word in tagged]),
            "max_probability_error": self.bounded("probabilities", error),
        }


class QuestionAnsweringVerification(SavedModelVerification):
    """Verification of answers, their offsets and probabilities; one context has several windows."""

    def __init__(
        self, task: "QuestionAnswering", exact: bool = True, beam_width: int | None = None
    ) -> None:
        super().__init__(task, exact, beam_width)
        filler = "The answer is here, é, or there. "
        count = 1 + task.model.config.max_length // 6
        self._questions = ["Where is it?", "Who", "What is the value of a long question here?"]
        self._contexts = [filler * 2, "Nobody.", filler * count]

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        inputs = {"question": ["string", self._questions], "context": ["string", self._contexts]}
        return [("serving_default", inputs)]

    def timed(self) -> tuple[str, dict[str, Any]]:
        inputs = {
            "question": ["string", self._questions[:1]],
            "context": ["string", self._contexts[:1]],
        }
        return "serving_default", inputs

    def expect(self) -> None:
        self._expected = self.task(
            self._questions, self._contexts, truncate=True, return_details=True
        )

    def compare(self, outputs: list[dict[str, Any]]) -> JSON:
        (answer,) = outputs
        expected = self._expected
        rows = list(zip(*(answer[name] for name in ("answer", "start", "end")), strict=True))
        spans = [(row.text, row.start, row.end) for row in expected]
        equal = self.agreement("answer", rows, spans)
        probabilities = [row.probability for row in expected]
        return {
            "questions": len(rows),
            "answers_equal": equal,
            "max_probability_error": self.bounded(
                "probabilities", self.number("probabilities", answer["probability"], probabilities)
            ),
        }


class MaskedLanguageModelVerification(SavedModelVerification):
    """Verification of the predicted tokens, their probabilities and the filled texts."""

    def __init__(
        self, task: "MaskedLanguageModel", exact: bool = True, beam_width: int | None = None
    ) -> None:
        super().__init__(task, exact, beam_width)
        mask = task.mask_token
        self._texts = [
            f"The {mask} of it.",
            mask,
            f"a {mask} and {mask}, {mask}!",
            f"É{mask} \n {mask}",
        ]

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        return [("serving_default", {"text": ["string", self._texts]})]

    def timed(self) -> tuple[str, dict[str, Any]]:
        return "serving_default", {"text": ["string", self._texts[:1]]}

    def expect(self) -> None:
        self._expected = self.task(self._texts, truncate=True, return_details=True)

    def compare(self, outputs: list[dict[str, Any]]) -> JSON:
        (answer,) = outputs
        expected = self._expected
        counts = [len(row.tokens) for row in expected]
        numbers = [
            p for row, n in zip(answer["probabilities"], counts, strict=True) for p in row[:n]
        ]
        tokens = [t for row, n in zip(answer["tokens"], counts, strict=True) for t in row[:n]]
        best = [guesses for row in expected for guesses in row.tokens]
        self.agreement("number of masks", answer["num_masks"], counts)
        error = self.number("probabilities", numbers, [[p for _, p in row] for row in best])
        return {
            "texts": len(self._texts),
            "texts_equal": self.agreement("text", answer["text"], [row.text for row in expected]),
            "guesses_equal": self.agreement("guess", tokens, [[t for t, _ in row] for row in best]),
            "max_probability_error": self.bounded("probabilities", error),
        }
