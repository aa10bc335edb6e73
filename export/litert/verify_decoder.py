"""Verify exported files of generative tasks: logits, greedy texts and perplexity."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_llm.errors import ExportError, InputError
from keras_llm.export import verification
from keras_llm.export.litert.verify import LiteRTVerification
from keras_llm.types import JSON

_LOGIT_TOLERANCE = 1e-3  # float32: maximum error of a logit, and difference of two tied logits
# Quantized: KL divergence in nats of the next-token distributions. A broken file is far above.
_MEAN_KL_DIVERGENCE = {"float16": 0.05, "int8": 0.05, "int8_weight_only": 0.05}
_OTHER_KL_DIVERGENCE = 1.0
_HELD_OUT_TOKENS = 2048  # maximum
_WINDOW = 256  # maximum number of tokens of one text
_LENGTHS = 64  # rows are padded to multiples of this length, to trace few graphs


class DecoderVerification(LiteRTVerification):
    """Verification of a `TextGeneration`.

    A row is a pair of lists of token ids: those of the encoder, here empty, and those of the
    decoder.
    """

    def request(self) -> JSON:
        """Return the request for the child process."""
        self.max_length = self.plan.manifest["max_length"]
        self.prompts = [p for p in self.probes() if self.length_of(p) < self.max_length]
        if not self.prompts:
            raise ExportError(
                f"a `cache_length` of {self.max_length} is too short to verify the model on any "
                "prompt."
            )
        self._rows = [] if self.plan.quantization is None else self._held_out_rows()
        return {"prompts": self.prompts, "rows": self._rows}

    def probes(self) -> list[str]:
        """Return candidate prompts."""
        return self.plan.samples

    def length_of(self, prompt: str) -> int:
        """Return the number of cache slots that a prompt takes."""
        return len(self.row_of(prompt)[1])

    def row_of(self, prompt: str) -> tuple[list[int], list[int]]:
        """Return the row of a prompt."""
        return [], self.plan.task.tokenizer.encode_prompt(prompt)

    def held_out_row(self, text: Any) -> tuple[list[int], list[int]]:
        """Return the row of a held-out text."""
        return self.row_of(text)

    def samples(self) -> list[Any]:
        """Return the default held-out texts."""
        return self.prompts

    def keras_texts(self, prompts: list[str], budget: int) -> list[str]:
        """Return the greedy texts of the Keras model."""
        return self.plan.task(prompts, max_new_tokens=budget, temperature=0.0)

    def keras_logits(self, rows: Sequence[tuple[list[int], list[int]]], longest: int) -> np.ndarray:
        """Return the Keras logits (B, T, V) of a batch of rows, padded to `longest`."""
        return self.plan.task.model.predict_on_batch(_padded([ids for _, ids in rows], longest))

    def expect(self) -> None:
        """Compute the greedy texts of the Keras model.

        For a quantized file, compute its losses and greedy choices on held-out texts instead.
        """
        if self.plan.quantization is None:
            self._expected_texts = self._greedy_texts()
            return
        self._losses, self._choices = [], []
        read = [(source, ids[:-1]) for source, ids in self._rows]
        for (_, ids), logits in zip(self._rows, self._logits_of(read), strict=True):
            rows = zip(logits, ids[1:], strict=True)  # one at a time, as float64 rows are large
            self._losses.append(
                np.array([-verification.log_softmax(row)[target] for row, target in rows])
            )
            self._choices.append(logits.argmax(-1))

    def compare(self, answer: dict[str, Any]) -> JSON:
        """Compare the logits and greedy texts of the file with those of the Keras model."""
        self.texts, logits = answer["texts"], answer["logits"]
        expected = self._logits_at_choices(answer["token_ids"], len(logits))
        # Ids outside the tokenizer's vocabulary are never chosen, so they are not compared.
        size = self.plan.task.tokenizer.vocabulary_size
        logits, expected = logits[:, :size], expected[:, :size]
        agreement = float(np.mean(logits.argmax(-1) == expected.argmax(-1)))
        measured: JSON = {"prompts": len(self.prompts), "steps": len(logits)}
        measured["top_1_agreement"] = agreement
        if self.plan.quantization is None:
            chosen = np.take_along_axis(expected, logits.argmax(-1)[:, None], -1)[:, 0]
            verification.require_same("choices", chosen, expected.max(-1), _LOGIT_TOLERANCE)
            same = answer["texts"] == self._expected_texts
            second, first = np.sort(expected, axis=-1)[:, -2:].T
            if not same and (first - second).min() > _LOGIT_TOLERANCE:
                raise ExportError(
                    "the greedy texts of the exported model differ from Keras; nothing was written."
                )
            measured["greedy_texts_equal"] = same  # False only if logits are tied
            measured["max_logit_error"] = verification.require_same(
                "logits", logits, expected, _LOGIT_TOLERANCE
            )
        else:
            measured["max_logit_error"] = float(np.abs(logits - expected).max())
            measured["mean_kl_divergence_nats"] = self._divergence(expected, logits)
        return {"parity": measured}

    def quality(self, answer: dict[str, Any]) -> JSON:
        """Measure the quality loss of quantization on held-out texts."""
        choices = [answer[f"choices_{index}"] for index in range(len(self._rows))]
        losses = np.concatenate([answer[f"losses_{index}"] for index in range(len(self._rows))])
        keras_losses = np.concatenate(self._losses)
        before, after = (float(np.exp(np.mean(row))) for row in (keras_losses, losses))
        agreement = np.concatenate(choices) == np.concatenate(self._choices)
        return {
            "tokens": len(losses),
            "perplexity_keras": before,
            "perplexity": after,
            "loss": after / before - 1,
            "greedy_agreement": float(np.mean(agreement)),
        }

    def _divergence(self, expected, logits):
        divergence, name = verification.mean_kl_divergence(expected, logits), self.plan.quantization
        bound = _OTHER_KL_DIVERGENCE
        if isinstance(name, str):
            bound = _MEAN_KL_DIVERGENCE.get(name, bound)
        if not divergence <= bound:
            raise ExportError(
                f"the {self.plan.weights} model's predictions diverge from Keras's by "
                f"{divergence:.3g} nats, more than {bound}; nothing was written."
            )
        return divergence

    def _held_out_rows(self):
        """Return rows of held-out texts, truncated, with at most `_HELD_OUT_TOKENS` tokens."""
        rows, left = [], _HELD_OUT_TOKENS
        for text in self.samples() if self.held_out is None else self.held_out:
            source, ids = self.held_out_row(text)
            ids = ids[: min(_WINDOW, self.max_length, left)]
            if len(ids) > 1 and len(source) <= self.max_length:
                rows.append((source, ids))
                left -= len(ids)
            if left < 2:
                break
        if not rows:
            raise ExportError(
                "`held_out` must have a text with at least two tokens that fits the cache."
            )
        return rows

    def _logits_of(self, rows):
        """Iterate over the Keras logits (T, V) of each row, computed in batches."""
        config = self.plan.task.model.config
        longest = max(len(ids) for _, ids in rows)
        longest = min(-(-longest // _LENGTHS) * _LENGTHS, config.max_length)
        batches = verification.batches(rows, longest, config.vocabulary_size)
        logits = (row for batch in batches for row in self.keras_logits(batch, longest))
        for (_, ids), row in zip(rows, logits, strict=False):
            yield row[: len(ids)]

    def _greedy_texts(self):
        """Return the greedy texts of the Keras model, up to the length of the file's cache."""
        rooms = [self.max_length - self.length_of(prompt) for prompt in self.prompts]
        budgets = [min(verification.NEW_TOKENS, room) for room in rooms]
        if self.max_length == self.plan.task.model.config.max_length:
            budgets = [verification.NEW_TOKENS] * len(rooms)  # the task stops at its maximum length
        texts = {}
        for budget in set(budgets):
            group = [p for p, b in zip(self.prompts, budgets, strict=True) if b == budget]
            texts |= dict(zip(group, self.keras_texts(group, budget), strict=True))
        return [texts[prompt] for prompt in self.prompts]

    def _logits_at_choices(self, token_ids, steps):
        """Return the Keras logits (steps, V) at each decoding step of the file."""
        prompts = [self.row_of(prompt) for prompt in self.prompts]
        rows = [(s, old + new) for (s, old), new in zip(prompts, token_ids, strict=True)]
        logits = []
        for row, (_, old), new in zip(self._logits_of(rows), prompts, token_ids, strict=True):
            budget = min(verification.NEW_TOKENS, self.max_length - len(old))
            choices = len(new) + (len(new) < budget)  # one more if the text ended early
            logits.append(np.array(row[len(old) - 1 :][:choices]))
        logits = np.concatenate(logits)
        if len(logits) != steps:
            raise ExportError(
                f"the exported model made {steps} decoding steps, Keras {len(logits)}; nothing was "
                "written."
            )
        return logits


class TranslationVerification(DecoderVerification):
    """Verification of a `Translation`; held-out texts are pairs (text, translation)."""

    def check_held_out(self, caller: str, held_out: object) -> None:
        if (
            not isinstance(held_out, (list, tuple))
            or not held_out
            or not all(
                isinstance(pair, (list, tuple))
                and len(pair) == 2
                and all(isinstance(text, str) and text for text in pair)
                for pair in held_out
            )
        ):
            raise InputError(f"{caller}: `held_out` must be a list of pairs (text, translation).")

    def probes(self) -> list[str]:
        texts = [pair[0] for pair in (self.held_out or ())[:16]]
        texts += [text for text in verification.SEED_TEXTS if text not in texts]
        return [t for t in texts if len(self.row_of(t)[0]) <= self.plan.manifest["encoder_length"]]

    def row_of(self, prompt: str) -> tuple[list[int], list[int]]:
        task = self.plan.task
        source = [*task.tokenizer.encode(prompt), task.tokenizer.eos_id]
        return source, [task.model.config.start_id]

    def held_out_row(self, text: tuple[str, str]) -> tuple[list[int], list[int]]:
        original, translation = text
        source, begin = self.row_of(original)
        tokenizer = self.plan.task.tokenizer
        return source, [*begin, *tokenizer.encode(translation), tokenizer.eos_id]

    def samples(self) -> list[tuple[str, str]]:
        """Return the prompts with the task's translations."""
        return list(zip(self.prompts, self._greedy_texts(), strict=True))

    def keras_logits(self, rows: Sequence[tuple[list[int], list[int]]], longest: int) -> np.ndarray:
        pad_id = self.plan.task.model.config.pad_id
        sources = [source for source, _ in rows]
        encoder = _padded(sources, max(map(len, sources)), pad_id)
        decoder = _padded([ids for _, ids in rows], longest, pad_id)
        return self.plan.task.model.predict_on_batch([encoder, decoder])


def _padded(rows: Sequence[Sequence[int]], longest: int, pad_id: int = 0) -> np.ndarray:
    batch = np.full((len(rows), longest), pad_id, "int32")
    for target, ids in zip(batch, rows, strict=True):
        target[: len(ids)] = ids
    return batch
