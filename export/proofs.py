"""What is asked of the SavedModel of each kind of task, and how its answers must be.

A proof asks the signatures for what the task gives in Python: the same texts, labels and places,
and the same numbers to a tolerance. Where the weights are stored in fewer bits, what differs is
measured, and may not be more than a stated bound.
"""

import numpy as np

from keras_llm import models, tasks
from keras_llm.errors import ExportError
from keras_llm.export import parity
from keras_llm.generation import SETTINGS, Sampling, dtype_of

_TOLERANCE = 1e-3  # of probabilities, and of sums of log-probabilities in nats
_GENERATING = ("serving_default", "generate")
_PENALTIES = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 2}
_MOST_DIVERGENCE = 0.05  # of quantised weights: nats of KL divergence, or differences of numbers


class Proof:
    """The base. `exact` tells whether the weights are stored as they are.

    Args:
        task: a task.
        exact: bool.
        beam_width: int or None, the width of `beam_search`.
    """

    def __init__(self, task, exact=True, beam_width=None):
        self.task, self.exact, self.beam_width = task, exact, beam_width

    def calls(self):
        """Calls of signatures, a list of pairs (signature, inputs)."""
        raise NotImplementedError

    def timed(self):
        """The call whose time is taken."""
        raise NotImplementedError

    def warm_up(self):
        """Requests of one row for a server that loads the model: as `calls`."""
        return [self.timed()]

    def compare(self, outputs):
        """The outputs of the calls -> what goes into the report; ExportError if they differ."""
        raise NotImplementedError

    def speed(self, seconds, outputs):
        """The time of the timed call -> what goes into the report."""
        del outputs
        return {"texts_per_second": round(1 / seconds, 1)}

    def beams(self, field, texts, found, **settings):
        """Check `beam_search`: the texts and scores of the task."""
        rows = self.task(
            texts,
            max_new_tokens=parity.NEW_TOKENS,
            beam_width=self.beam_width,
            num_return_sequences=self.beam_width,
            return_details=True,
            **settings,
        )
        rows = rows if self.beam_width > 1 else [[row] for row in rows]
        self.agreement("texts of beams", found[field], [[r.text for r in row] for row in rows])
        scores = [[result.score for result in row] for row in rows]
        return self.number("scores of beams", found["score"], scores)

    def number(self, name, found, expected):
        """The largest difference of numbers, checked."""
        tolerance = _TOLERANCE if self.exact else np.inf
        return parity.require_same(name, found, expected, tolerance)

    def agreement(self, name, found, expected):
        """The part of rows that are equal; all must be if the weights are exact."""
        equal = [ours == theirs for ours, theirs in zip(found, expected, strict=True)]
        if self.exact and not all(equal):
            index = equal.index(False)
            raise ExportError(
                f"{name} {index} of the exported model is {found[index]!r}, Keras gives "
                f"{expected[index]!r}; nothing was written."
            )
        return float(np.mean(equal))

    def bounded(self, name, divergence):
        """A divergence of quantised weights, checked."""
        if not self.exact and not divergence <= _MOST_DIVERGENCE:
            raise ExportError(
                f"{name} of the model with fewer bits diverge from Keras's by {divergence:.3g}, "
                f"more than {_MOST_DIVERGENCE}; nothing was written."
            )
        return divergence


class TextGenerationProof(Proof):
    """Greedy texts, log-likelihoods, ids, and logits of the steps with a cache."""

    def __init__(self, task, exact=True, beam_width=None):
        super().__init__(task, exact, beam_width)
        self._prompts = parity.probe_prompts(task)
        self._chats = []
        if task.metadata.get("chat_template"):
            self._chats = [task.render([{"role": "user", "content": "Why?"}])]
        self._ids = [task.tokenizer.encode_prompt(text) for text in self._prompts]
        self._cache_length = min(max(map(len, self._ids)) + 1, task.model.config.max_length)

    def calls(self):
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
            ("serving_default", self._greedy(self._prompts, parity.NEW_TOKENS)),
            ("score", text),
            ("tokenize", text),
            ("prefill", prefill),
            ("decode", decode),
            ("detokenize", {"token_ids": prefill["token_ids"], "lengths": prefill["lengths"]}),
            *self._further(self._prompts[:2]),
        ]

    def _further(self, prompts):
        """Calls of the signatures with more settings."""
        extended = _greedy_settings(parity.NEW_TOKENS, _PENALTIES)
        calls = [("generate_extended", {"prompt": ["string", prompts], **extended})]
        if self._chats:
            chat = _greedy_settings(parity.NEW_TOKENS, {})
            calls.append(("chat", {"prompt": ["string", self._chats], **chat}))
        if self.beam_width is not None:
            settings = {
                "max_new_tokens": ["int32", [parity.NEW_TOKENS]],
                "length_penalty": ["float32", [1.0]],
            }
            calls.append(("beam_search", {"prompt": ["string", prompts], **settings}))
        return calls

    def timed(self):
        return "serving_default", self._greedy(self._prompts[:1], parity.TIMED_TOKENS)

    def warm_up(self):
        prompt, ids = self._prompts[:1], self._ids[0]
        prompts = {"token_ids": ["int32", [ids]], "lengths": ["int32", [len(ids)]]}
        entries = models.init_cache(self.task.model, 1, len(ids) + 1)
        cache = {
            name: [entry.dtype.name, np.zeros(entry.shape).tolist()]
            for name, entry in entries.items()
        }
        step = {"token_ids": ["int32", [ids[-1:]]], "positions": ["int32", [[len(ids)]]]}
        return [
            *((name, self._greedy(prompt, parity.NEW_TOKENS)) for name in _GENERATING),
            *((name, {"text": ["string", prompt]}) for name in ("score", "tokenize")),
            ("detokenize", prompts),
            ("prefill", {**prompts, "cache_length": ["int32", [len(ids) + 1]]}),
            ("decode", {**step, **cache}),
            *self._further(prompt),
        ]

    def speed(self, seconds, outputs):
        return {"tokens_per_second": round(outputs["num_tokens"][0] / seconds, 1)}

    def compare(self, outputs):
        generated, scored, tokenized, prefilled, decoded, spelled, *further = outputs
        task = self.task
        expected = task(
            self._prompts,
            max_new_tokens=parity.NEW_TOKENS,
            temperature=0.0,
            seed=0,
            return_details=True,
        )
        texts = [row.text for row in expected]
        if self.exact:
            parity.require_same_texts(generated["text"], texts)
        ids = [
            row[:n] for row, n in zip(*map(tokenized.get, ("token_ids", "lengths")), strict=True)
        ]
        self.agreement("token ids", ids, self._ids)
        decode = task.tokenizer.decode
        self.agreement("text", spelled["text"], [decode(row) for row in self._ids])
        measured = {
            "prompts": len(self._prompts),
            "greedy_texts_equal": generated["text"] == texts,
            "max_score_error": self.number(
                "scores", scored["log_probability"], task.score(self._prompts)
            ),
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
        task, greedy = self.task, {"max_new_tokens": parity.NEW_TOKENS, "temperature": 0.0}
        prompts, others = self._prompts[:2], list(others)
        self.agreement("text", extended["text"], task(prompts, **greedy, **_PENALTIES))
        if self._chats:
            texts = task(self._chats, parse_special=True, **greedy)
            self.agreement("answer", others.pop(0)["text"], texts)
        if self.beam_width is None:
            return {}
        return {"max_beam_score_error": self.beams("text", prompts, others.pop(0))}

    def _steps(self, prefilled, decoded):
        """Of the steps with a cache against the whole text read at once."""
        next_ids = [row + row[:1] for row in self._ids]
        found = np.concatenate([np.asarray(prefilled), np.asarray(decoded)])
        expected = np.concatenate([self._last_logits(self._ids), self._last_logits(next_ids)])
        size = self.task.tokenizer.vocabulary_size  # ids of the model alone are never chosen
        found, expected = found[:, :size], expected[:, :size]
        divergence = float(np.mean(_divergence(_softmax(expected), _softmax(found))))
        if self.exact and self.task.model.get_layer("token_embedding").compute_dtype == "float32":
            parity.require_same("logits of the steps", found, expected, _TOLERANCE)
        return {
            "max_logit_error": float(np.abs(found - expected).max()),
            "mean_kl_divergence_nats": self.bounded("predictions", divergence),
        }

    def _last_logits(self, rows):
        token_ids, lengths = self._batch(rows)
        logits = self.task.model.predict_on_batch(token_ids)
        return np.asarray(logits, "float32")[np.arange(len(rows)), lengths - 1]

    def _batch(self, rows):
        lengths = np.array([len(row) for row in rows], "int32")
        token_ids = np.full((len(rows), lengths.max()), self.task.tokenizer.pad_id, "int32")
        for row, ids in zip(token_ids, rows, strict=True):
            row[: len(ids)] = ids
        return token_ids, lengths

    @staticmethod
    def _greedy(prompts, max_new_tokens):
        return {"prompt": ["string", prompts], **_greedy_settings(max_new_tokens)}


class TranslationProof(Proof):
    """Greedy texts and their log-probabilities."""

    def calls(self):
        texts = ["string", parity.SEED_TEXTS]
        settings = _greedy_settings(parity.NEW_TOKENS)
        calls = [("serving_default", {"text": texts, **settings})]
        if self.beam_width is not None:
            settings = {
                "max_new_tokens": ["int32", [parity.NEW_TOKENS]],
                "length_penalty": ["float32", [1.0]],
            }
            calls.append(("beam_search", {"text": texts, **settings}))
        return calls

    def timed(self):
        settings = _greedy_settings(parity.TIMED_TOKENS)
        return "serving_default", {"text": ["string", parity.SEED_TEXTS[2:3]], **settings}

    def speed(self, seconds, outputs):
        return {"tokens_per_second": round(max(outputs["num_tokens"][0], 1) / seconds, 1)}

    def compare(self, outputs):
        found, *beams = outputs
        expected = self.task(
            parity.SEED_TEXTS, max_new_tokens=parity.NEW_TOKENS, return_details=True
        )
        texts = [row.text for row in expected]
        if self.exact:
            parity.require_same_texts(found["translation"], texts)
        equal = [a == b for a, b in zip(found["translation"], texts, strict=True)]
        error = self.number(
            "scores",
            np.where(equal, found["score"], 0.0),
            np.where(equal, [row.log_probability for row in expected], 0.0),
        )
        measured = {}
        if beams:
            error = self.beams("translation", parity.SEED_TEXTS, *beams)
            measured["max_beam_score_error"] = error
        return {
            **measured,
            "texts": len(texts),
            "greedy_texts_equal": all(equal),
            "max_score_error": error,
            "differing_texts": self.bounded("texts", 1.0 - float(np.mean(equal)))
            if self.exact
            else 1.0 - float(np.mean(equal)),
        }


class _HeadProof(Proof):
    """Of texts of many lengths, one longer than the model takes."""

    def __init__(self, task, exact=True, beam_width=None):
        super().__init__(task, exact, beam_width)
        long = "The long text, with words. " * (1 + task.model.config.max_length // 4)
        self._texts = [*parity.SEED_TEXTS, "a longer text, with more words than the others", long]

    def calls(self):
        return [("serving_default", {"text": ["string", self._texts]})]

    def timed(self):
        return "serving_default", {"text": ["string", self._texts[-2:-1]]}


class TextEmbeddingProof(_HeadProof):
    """Vectors."""

    def compare(self, outputs):
        (found,) = outputs
        vectors, expected = np.asarray(found["embedding"]), self.task(self._texts, truncate=True)
        error = self.number("embeddings", vectors, expected)
        norms = np.linalg.norm(vectors, axis=-1) * np.linalg.norm(expected, axis=-1)
        cosine = np.sum(vectors * expected, axis=-1) / np.maximum(norms, 1e-12)
        return {
            "texts": len(self._texts),
            "max_error": error,
            "max_cosine_distance": self.bounded("embeddings", float(np.max(1 - cosine))),
        }


class TextClassificationProof(_HeadProof):
    """Labels and probabilities."""

    def compare(self, outputs):
        (found,) = outputs
        expected = self.task(self._texts, truncate=True, return_details=True)
        probabilities = np.array([list(row.probabilities.values()) for row in expected])
        divergence = np.mean(_divergence(probabilities, np.asarray(found["probabilities"])))
        self.agreement("`truncated`", found["truncated"], [row.truncated for row in expected])
        return {
            "texts": len(self._texts),
            "labels_equal": self.agreement("label", found["label"], [r.label for r in expected]),
            "max_probability_error": self.number(
                "probabilities", found["probabilities"], probabilities
            ),
            "mean_kl_divergence_nats": self.bounded("probabilities", float(divergence)),
        }


class TokenClassificationProof(_HeadProof):
    """Words, their places, labels and probabilities."""

    def compare(self, outputs):
        (found,) = outputs
        expected = self.task(self._texts, truncate=True, return_details=True)
        words, numbers, labels = [], [], []
        for row in range(len(self._texts)):
            count = found["num_words"][row]
            words.append([found[name][row][:count] for name in ("word", "start", "end")])
            labels += found["label"][row][:count]
            numbers += found["probability"][row][:count]
        tagged = [word for row in expected for word in row.words]
        places = [
            [[getattr(word, name) for word in row.words] for name in ("text", "start", "end")]
            for row in expected
        ]
        exact, self.exact = self.exact, True
        self.agreement("words", words, places)  # whatever the weights are
        self.exact = exact
        error = self.number("probabilities", numbers, [word.probability for word in tagged])
        return {
            "texts": len(self._texts),
            "words": len(tagged),
            "labels_equal": self.agreement("label", labels, [word.label for word in tagged]),
            "max_probability_error": self.bounded("probabilities", error),
        }


class QuestionAnsweringProof(Proof):
    """Answers, their places and probabilities; one context needs several windows."""

    def __init__(self, task, exact=True, beam_width=None):
        super().__init__(task, exact, beam_width)
        filler = "The answer is here, é, or there. "
        count = 1 + task.model.config.max_length // 6
        self._questions = ["Where is it?", "Who", "What is the value of a long question here?"]
        self._contexts = [filler * 2, "Nobody.", filler * count]

    def calls(self):
        inputs = {"question": ["string", self._questions], "context": ["string", self._contexts]}
        return [("serving_default", inputs)]

    def timed(self):
        inputs = {
            "question": ["string", self._questions[:1]],
            "context": ["string", self._contexts[:1]],
        }
        return "serving_default", inputs

    def compare(self, outputs):
        (found,) = outputs
        expected = self.task(self._questions, self._contexts, truncate=True, return_details=True)
        rows = list(zip(*(found[name] for name in ("answer", "start", "end")), strict=True))
        spans = [(row.text, row.start, row.end) for row in expected]
        equal = self.agreement("answer", rows, spans)
        probabilities = [row.probability for row in expected]
        return {
            "questions": len(rows),
            "answers_equal": equal,
            "max_probability_error": self.bounded(
                "probabilities", self.number("probabilities", found["probability"], probabilities)
            ),
        }


class MaskedLanguageModelProof(Proof):
    """Guesses, their probabilities, and the filled texts."""

    def __init__(self, task, exact=True, beam_width=None):
        super().__init__(task, exact, beam_width)
        gap = task.mask_token
        self._texts = [f"The {gap} of it.", gap, f"a {gap} and {gap}, {gap}!", f"É{gap} \n {gap}"]

    def calls(self):
        return [("serving_default", {"text": ["string", self._texts]})]

    def timed(self):
        return "serving_default", {"text": ["string", self._texts[:1]]}

    def compare(self, outputs):
        (found,) = outputs
        expected = self.task(self._texts, truncate=True, return_details=True)
        counts = [len(row.tokens) for row in expected]
        numbers = [
            p for row, n in zip(found["probabilities"], counts, strict=True) for p in row[:n]
        ]
        tokens = [t for row, n in zip(found["tokens"], counts, strict=True) for t in row[:n]]
        best = [gap for row in expected for gap in row.tokens]
        self.agreement("number of gaps", found["num_masks"], counts)
        error = self.number("probabilities", numbers, [[p for _, p in gap] for gap in best])
        return {
            "texts": len(self._texts),
            "texts_equal": self.agreement("text", found["text"], [row.text for row in expected]),
            "guesses_equal": self.agreement("guess", tokens, [[t for t, _ in gap] for gap in best]),
            "max_probability_error": self.bounded("probabilities", error),
        }


PROOFS = {
    tasks.TextGeneration: TextGenerationProof,
    tasks.Translation: TranslationProof,
    tasks.TextClassification: TextClassificationProof,
    tasks.TokenClassification: TokenClassificationProof,
    tasks.QuestionAnswering: QuestionAnsweringProof,
    tasks.TextEmbedding: TextEmbeddingProof,
    tasks.MaskedLanguageModel: MaskedLanguageModelProof,
}


def proof_of(task, exact=True, beam_width=None):
    """The proof of a task's SavedModel."""
    proof = next(proof for kind, proof in PROOFS.items() if isinstance(task, kind))
    return proof(task, exact, beam_width)


def _greedy_settings(max_new_tokens, further=None):
    """Inputs of greedy decoding; with a dict, those of a signature that takes all settings."""
    if further is not None:
        given = {"temperature": 0.0, "seed": 0, **further}
        values = {name: given.get(name, Sampling._field_defaults[name]) for name in SETTINGS}
        return {
            "max_new_tokens": ["int32", [max_new_tokens]],
            **{name: [dtype_of(name), [value]] for name, value in values.items()},
        }
    return {
        "max_new_tokens": ["int32", [max_new_tokens]],
        "temperature": ["float32", [0.0]],
        "top_k": ["int32", [0]],
        "top_p": ["float32", [1.0]],
        "seed": ["int32", [0]],
    }


def _softmax(logits):
    logits = logits.astype("float64") - logits.max(-1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def _divergence(expected, found):
    """KL(expected | found) along the last axis, in nats."""
    p, q = np.asarray(expected, "float64"), np.asarray(found, "float64")
    return np.sum(p * (np.log(np.maximum(p, 1e-30)) - np.log(np.maximum(q, 1e-30))), axis=-1)
