"""Verify a device's file: in a fresh process without Keras it gives what its task gives."""

import abc
import numbers

from keras_llm.errors import ExportError, InputError
from keras_llm.export.verification import Verification, free_memory


class LiteRTVerification(Verification):
    """Compares a file with its task; the part that all tasks share.

    Args:
        plan: a `conversion.Plan`.
        caller: str, for messages.
        held_out, max_quality_loss: as of `litert`.

    Attributes:
        prompts, texts: after `of`, the prompts that were tried and the file's greedy texts.

    Raises:
        InputError: if an argument is wrong.
    """

    def __init__(self, plan, caller, held_out, max_quality_loss):
        if max_quality_loss is not None:
            if not isinstance(max_quality_loss, numbers.Real) or not max_quality_loss >= 0:
                raise InputError(
                    f"{caller}: `max_quality_loss` must be a number >= 0, got {max_quality_loss!r}."
                )
            if plan.quantization is None:
                raise InputError(f"{caller}: `max_quality_loss` is for a `quantization`.")
        if held_out is not None:
            self.check_held_out(caller, held_out)
        self.plan, self.held_out, self.max_quality_loss = plan, held_out, max_quality_loss
        self.prompts, self.texts = [], []

    @abc.abstractmethod
    def request(self):
        """What the child process is asked, a dict of JSON values."""

    @abc.abstractmethod
    def quality(self, answer):
        """The child's answer -> what quantisation costs, a dict with `loss`."""

    def check_held_out(self, caller, held_out):
        """InputError if `held_out` is not what the task needs."""
        check_texts(caller, "held_out", held_out)

    def of(self, path, request, child):
        """What the report says of a file: a dict.

        Args:
            path: the file.
            request: from `request`.
            child: a `children.Child` that runs `litert.worker`.

        Raises:
            ExportError: if the file differs from the task, or is worse than allowed.
        """
        child.send({"what": "outputs", "path": str(path), **request})
        self.expect()
        answer = child.result()
        report = {"signatures": answer["signatures"], **self.compare(answer)}
        if self.plan.quantization is not None:
            quality = self.quality(answer)
            source = "our own samples" if self.held_out is None else "given"
            report["quality"] = {"text": source, **quality}
            self._refuse_if_worse(quality)
        # Measured last: Keras is at work no more.
        del answer
        free_memory()
        return {**report, **child.ask({"what": "cost", "path": str(path)})}

    def _refuse_if_worse(self, quality):
        if self.max_quality_loss is not None and not quality["loss"] <= self.max_quality_loss:
            numbers_told = ", ".join(f"{name} {value:.4g}" for name, value in quality.items())
            raise ExportError(
                f"quantised as {self.plan.weights}, the model is {quality['loss']:.2%} worse, more "
                f"than the {self.max_quality_loss:.2%} of `max_quality_loss` ({numbers_told}); "
                "nothing was written."
            )


def check_texts(caller, name, texts):
    """InputError unless `texts` is a list of non-empty strs."""
    if (
        not isinstance(texts, (list, tuple))
        or not texts
        or not all(isinstance(text, str) and text for text in texts)
    ):
        raise InputError(f"{caller}: `{name}` must be a list of non-empty str.")
