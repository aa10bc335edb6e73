"""Verify files of models with a head: numbers and decisions."""

import dataclasses
import itertools

import numpy as np

from keras_llm.errors import ExportError, InputError
from keras_llm.export.litert.verify import LiteRTVerification, check_texts
from keras_llm.export.verification import SEED_TEXTS

_TOLERANCE = 1e-4
_TEXTS = (
    *SEED_TEXTS,
    "The quick brown fox jumps over the lazy dog.",
    "In 1984, a value of the class was returned; nobody asked why.",
    "word " * 12,
)
_MOST = 64  # texts of a measurement


class HeadVerification(LiteRTVerification):
    """Verifies a task with one text: classification, tagging, embedding, gaps.

    What the task gives for a text is a dict: numbers under `numbers`, an array; and its decision
    under `decision`, JSON.
    """

    def request(self):
        """What the child process is asked."""
        self._inputs = [list(row) for row in self.inputs()]
        return {"inputs": self._inputs}

    def inputs(self):
        """The arguments of the calls, tuples of str."""
        return [(text,) for text in self.texts_that_fit(self.held_out or _TEXTS)]

    def texts_that_fit(self, texts):
        room = self.plan.manifest["max_length"] - len(self.plan.manifest["begin"])
        room -= len(self.plan.manifest["end"])
        fit = [t for t in texts if 0 < len(self.plan.task.tokenizer.encode(t)) <= room][:_MOST]
        if not fit:
            raise ExportError("no text that was to be tried fits `cache_length`.")
        return fit

    def keras(self):
        """What the task gives for the inputs, a list of dicts."""
        texts = [text for (text,) in self._inputs]
        found = self.plan.task(texts, **self.details())
        return [digest(self.plan.manifest["task"], _plain(row)) for row in found]

    def details(self):
        """How the task is asked for all it can say."""
        return {} if self.plan.manifest["task"] == "TextEmbedding" else {"return_details": True}

    def expect(self):
        """Ask the task."""
        self._expected = self.keras()

    def compare(self, answer):
        """How the file's numbers and decisions differ from Keras's."""
        self._found = [digest(self.plan.manifest["task"], row) for row in answer["results"]]
        pairs = list(zip(self._found, self._expected, strict=True))
        self._same = [ours["decision"] == theirs["decision"] for ours, theirs in pairs]
        errors = [
            np.abs(ours["numbers"] - theirs["numbers"]).max(initial=0.0)
            for ours, theirs in pairs
            if ours["numbers"].shape == theirs["numbers"].shape
        ]
        measured = {
            "inputs": len(pairs),
            "decisions_equal": float(np.mean(self._same)),
            "max_error": float(max(errors, default=0.0)),
        }
        if self.plan.quantization is None:
            if not measured["max_error"] <= _TOLERANCE:
                raise ExportError(
                    f"the file's numbers differ from Keras's by {measured['max_error']:.3g}, more "
                    f"than {_TOLERANCE}; nothing was written."
                )
            self._require_same_decisions(pairs)
        return {"parity": measured}

    def quality(self, answer):
        """The cost of quantisation: the share of decisions that change; for embeddings one less
        the mean cosine; for numbers their mean change over their standard deviation."""
        del answer
        if self.plan.manifest["task"] == "TextRegression":
            ours, theirs = (
                np.array([row["numbers"][0] for row in rows])
                for rows in (self._found, self._expected)
            )
            loss = np.abs(ours - theirs).mean() / max(theirs.std(), 1e-6)
            return {"inputs": len(ours), "loss": float(loss)}
        if self.plan.manifest["task"] != "TextEmbedding":
            return {"inputs": len(self._same), "loss": 1.0 - float(np.mean(self._same))}
        cosines = [
            float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            for a, b in (
                (ours["numbers"], theirs["numbers"])
                for ours, theirs in zip(self._found, self._expected, strict=True)
            )
        ]
        return {"inputs": len(cosines), "loss": 1.0 - float(np.mean(cosines))}

    def _require_same_decisions(self, pairs):
        for arguments, (ours, theirs), same in zip(self._inputs, pairs, self._same, strict=True):
            if not same:
                raise ExportError(
                    f"for {arguments!r} the file gives {ours['decision']!r}, Keras "
                    f"{theirs['decision']!r}; nothing was written."
                )


class MaskVerification(HeadVerification):
    """Verifies a `MaskedLanguageModel`: held-out texts have mask tokens."""

    def inputs(self):
        if self.held_out is not None:
            return super().inputs()
        mask = self.plan.task.mask_token
        texts = [f"{text} {mask} {other}" for text, other in itertools.pairwise(_TEXTS)]
        return [(text,) for text in self.texts_that_fit([*texts, f"{mask} and {mask}"])]


class AnswerVerification(HeadVerification):
    """Verifies a `QuestionAnswering`: held-out texts are pairs of question and context."""

    def check_held_out(self, caller, held_out):
        if not isinstance(held_out, (list, tuple)) or not held_out:
            raise InputError(f"{caller}: `held_out` must be a list of pairs (question, context).")
        for pair in held_out:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise InputError(
                    f"{caller}: `held_out` must be a list of pairs (question, context)."
                )
            check_texts(caller, "held_out", list(pair))

    def inputs(self):
        if self.held_out is not None:
            return list(self.held_out)[:_MOST]
        contexts = [text for text in _TEXTS if len(text) > 20]
        contexts.append(" ".join(_TEXTS) * 8)  # windows
        return [(question, text) for question in ("Why?", "In 1984") for text in contexts]

    def keras(self):
        questions, contexts = zip(*self._inputs, strict=True)
        found = self.plan.task(list(questions), list(contexts), truncate=True, return_details=True)
        return [digest("QuestionAnswering", _plain(row)) for row in found]


def digest(task, result):
    """A result as numbers and a decision."""
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
