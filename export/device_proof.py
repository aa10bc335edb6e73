"""Whether a device's file does what its task does, and what it costs: measured in fresh processes
before the file counts."""

import numbers

import numpy as np

from keras_llm.errors import ExportError, InputError
from keras_llm.export import parity

_LOGIT_TOLERANCE = 1e-3  # float32: largest difference of a logit, and of two that count as tied
# Quantised: nats, of Keras's next-token distribution from the file's. A broken file is far above.
_MEAN_KL_DIVERGENCE = {"float16": 0.05, "int8": 0.05, "int8_weight_only": 0.05}
_OTHER_KL_DIVERGENCE = 1.0
_HELD_OUT_TOKENS = 2048  # at most
_WINDOW = 256  # tokens of one text
_BATCH = 4  # of them go through Keras together


class Proof:
    """The proof of one export.

    Args:
        plan: a `device_model.Plan`.
        caller: str, for messages.
        held_out, max_quality_loss, calibration: as of `litert`.

    Attributes:
        prompts, texts: after `of`, the prompts that were tried and the file's greedy texts.

    Raises:
        InputError: if an argument is wrong.
    """

    def __init__(self, plan, caller, held_out, max_quality_loss, calibration):
        for name, texts in (("held_out", held_out), ("calibration", calibration)):
            if texts is not None and (
                not isinstance(texts, (list, tuple))
                or not texts
                or not all(isinstance(text, str) and text for text in texts)
            ):
                raise InputError(f"{caller}: `{name}` must be a list of non-empty str.")
        if plan.needs_calibration and calibration is None:
            raise InputError(f"{caller}: this `quantization` needs `calibration` texts.")
        if max_quality_loss is not None:
            if not isinstance(max_quality_loss, numbers.Real) or not max_quality_loss >= 0:
                raise InputError(
                    f"{caller}: `max_quality_loss` must be a number >= 0, got {max_quality_loss!r}."
                )
            if plan.quantization is None:
                raise InputError(f"{caller}: `max_quality_loss` is for a `quantization`.")
        self._plan, self._held_out = plan, held_out
        self._max_quality_loss = max_quality_loss
        self.prompts, self.texts = [], []

    def of(self, path):
        """What the report says of a file: a dict.

        Raises:
            ExportError: if the file differs from the task, or is worse than allowed.
        """
        task, max_length = self._plan.task, self._plan.manifest["max_length"]
        prompts = [
            text
            for text in parity.probe_prompts(task)
            if len(task.tokenizer.encode_prompt(text)) < max_length
        ]
        if not prompts:
            raise ExportError(f"a `cache_length` of {max_length} has no room to be tried.")
        quantised = self._plan.quantization is not None
        rows = self._held_out_rows(prompts) if quantised else []
        answer = parity.run_child("litert", path, {"prompts": prompts, "rows": rows}, 3600)
        self.prompts, self.texts = prompts, answer["texts"]
        logits = answer["logits"]
        expected = self._keras_logits(prompts, answer["token_ids"], len(logits))
        # Ids that the model alone knows are never chosen, and so not compared.
        logits, expected = (x[:, : task.tokenizer.vocabulary_size] for x in (logits, expected))
        agreement = float(np.mean(logits.argmax(-1) == expected.argmax(-1)))
        measured = {"prompts": len(prompts), "steps": len(logits), "top_1_agreement": agreement}
        report = {"signatures": answer["signatures"], "parity": measured}
        if quantised:
            measured["max_logit_error"] = float(np.abs(logits - expected).max())
            measured["mean_kl_divergence_nats"] = self._divergence(expected, logits)
            report["quality"] = self._quality(rows, answer)
        else:
            chosen = np.take_along_axis(expected, logits.argmax(-1)[:, None], -1)[:, 0]
            parity.require_same("choices", chosen, expected.max(-1), _LOGIT_TOLERANCE)
            texts = self._keras_texts(prompts)
            measured["greedy_texts_equal"] = answer["texts"] == texts  # False only through a tie
            measured["max_logit_error"] = parity.require_same(
                "logits", logits, expected, _LOGIT_TOLERANCE
            )
        return {**report, **answer["cost"]}

    def _divergence(self, expected, found):
        divergence = _kl_divergence(expected, found)
        name = self._plan.quantization
        bound = _OTHER_KL_DIVERGENCE
        if isinstance(name, str):
            bound = _MEAN_KL_DIVERGENCE.get(name, bound)
        if not divergence <= bound:
            raise ExportError(
                f"the {self._plan.weights} model's predictions diverge from Keras's by "
                f"{divergence:.3g} nats, more than {bound}; nothing was written."
            )
        return divergence

    def _held_out_rows(self, prompts):
        """Token ids of held-out texts, cut to windows, at most `_HELD_OUT_TOKENS` in all."""
        task = self._plan.task
        texts = prompts if self._held_out is None else self._held_out
        window = min(_WINDOW, self._plan.manifest["max_length"])
        rows, left = [], _HELD_OUT_TOKENS
        for text in texts:
            row = task.tokenizer.encode_prompt(text)[: min(window, left)]
            if len(row) > 1:
                rows.append(row)
                left -= len(row)
            if left < 2:
                break
        if not rows:
            raise ExportError("`held_out` has no text of two tokens.")
        return rows

    def _quality(self, rows, answer):
        """The cost of quantisation on held-out text."""
        losses, agreements = [], []
        for index, (row, logits) in enumerate(zip(rows, self._logits_of(rows), strict=True)):
            log_p = _log_softmax(logits)
            losses.append(-log_p[np.arange(len(row) - 1), row[1:]])
            agreements.append(logits.argmax(-1) == answer[f"choices_{index}"])
        ours = np.concatenate([answer[f"losses_{index}"] for index in range(len(rows))])
        before, after = (float(np.exp(np.mean(x))) for x in (np.concatenate(losses), ours))
        loss = after / before - 1
        if self._max_quality_loss is not None and not loss <= self._max_quality_loss:
            raise ExportError(
                f"the {self._plan.weights} model's perplexity is {after:.4g}, Keras's "
                f"{before:.4g}: {loss:.2%} higher, more than the {self._max_quality_loss:.2%} of "
                "`max_quality_loss`; nothing was written."
            )
        return {
            "text": "given" if self._held_out is not None else "the model's own samples",
            "tokens": len(ours),
            "perplexity_keras": before,
            "perplexity": after,
            "loss": loss,
            "greedy_agreement": float(np.mean(np.concatenate(agreements))),
        }

    def _logits_of(self, rows):
        """Keras's logits (T - 1, V) of each row but its last token."""
        longest = max(map(len, rows)) - 1
        for begin in range(0, len(rows), _BATCH):
            batch = np.zeros((_BATCH, longest), "int32")
            for target, row in zip(batch, rows[begin : begin + _BATCH], strict=False):
                target[: len(row) - 1] = row[:-1]
            logits = self._plan.task.model.predict_on_batch(batch)
            for row, found in zip(rows[begin : begin + _BATCH], logits, strict=False):
                yield found[: len(row) - 1]

    def _keras_texts(self, prompts):
        """Greedy texts, as far as the file's cache reaches."""
        task, max_length = self._plan.task, self._plan.manifest["max_length"]
        rooms = [max_length - len(task.tokenizer.encode_prompt(prompt)) for prompt in prompts]
        budgets = [min(parity.NEW_TOKENS, room) for room in rooms]
        if max_length == task.model.config.max_length:  # which ends the texts by itself
            budgets = [parity.NEW_TOKENS] * len(prompts)
        texts = {}
        for budget in set(budgets):
            group = [p for p, b in zip(prompts, budgets, strict=True) if b == budget]
            found = task(group, max_new_tokens=budget, temperature=0.0)
            texts |= dict(zip(group, found, strict=True))
        return [texts[prompt] for prompt in prompts]

    def _keras_logits(self, prompts, token_ids, steps):
        """Keras's logits (steps, V) where the exported model made each of its choices."""
        task, max_length = self._plan.task, self._plan.manifest["max_length"]
        prompt_ids = [task.tokenizer.encode_prompt(prompt) for prompt in prompts]
        longest = max(len(old) + len(new) for old, new in zip(prompt_ids, token_ids, strict=True))
        batch = np.full((len(prompts), longest), task.tokenizer.pad_id, "int32")
        for row, old, new in zip(batch, prompt_ids, token_ids, strict=True):
            row[: len(old) + len(new)] = old + new
        rows = []
        logits = task.model.predict_on_batch(batch)
        for row, old, new in zip(logits, prompt_ids, token_ids, strict=True):
            budget = min(parity.NEW_TOKENS, max_length - len(old))
            choices = len(new) + (len(new) < budget)  # one more, where the model ended the text
            rows.append(row[len(old) - 1 :][:choices])
        rows = np.concatenate(rows)
        if len(rows) != steps:
            raise ExportError(f"the exported model made {steps} steps, Keras {len(rows)}.")
        return rows


def _log_softmax(logits):
    logits = logits.astype("float64") - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _kl_divergence(expected, found):
    p, q = _log_softmax(expected), _log_softmax(found)
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))
