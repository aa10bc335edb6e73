"""Verify exported TFLite files: run them in a new process without Keras and compare the outputs."""

import abc
import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_llm.errors import ExportError, InputError
from keras_llm.export.verification import Verification, free_memory
from keras_llm.types import JSON, PathLike

if TYPE_CHECKING:
    from keras_llm.export.children import Child
    from keras_llm.export.litert.conversion import Plan


class LiteRTVerification(Verification):
    """Base class for the comparison of a file with its task.

    Args:
        plan: a `conversion.Plan`.
        caller: str. Name of the exporting function, for error messages.
        held_out, max_quality_loss: as in `litert`.

    Attributes:
        prompts, texts: after `of`, the prompts and the greedy texts of the file.

    Raises:
        InputError: if an argument is invalid.
    """

    def __init__(
        self,
        plan: "Plan",
        caller: str,
        held_out: Sequence[Any] | None,
        max_quality_loss: float | None,
    ) -> None:
        if max_quality_loss is not None:
            if not isinstance(max_quality_loss, numbers.Real) or not max_quality_loss >= 0:
                raise InputError(
                    f"{caller}: `max_quality_loss` must be a number >= 0, got {max_quality_loss!r}."
                )
            if plan.quantization is None:
                raise InputError(f"{caller}: `max_quality_loss` requires a `quantization`.")
        if held_out is not None:
            self.check_held_out(caller, held_out)
        self.plan, self.held_out, self.max_quality_loss = plan, held_out, max_quality_loss
        self.prompts: list[Any] = []
        self.texts: list[Any] = []

    @abc.abstractmethod
    def request(self) -> JSON:
        """Return the request for the child process, a dict of JSON values."""

    @abc.abstractmethod
    def quality(self, answer: dict[str, Any]) -> JSON:
        """Return the quality loss of quantization in the child's answer, a dict with `loss`."""

    def check_held_out(self, caller: str, held_out: object) -> None:
        """Raise InputError if `held_out` is not valid for the task."""
        check_texts(caller, "held_out", held_out)

    def of(self, path: PathLike, request: JSON, child: "Child") -> JSON:
        """Verify and measure a file.

        Args:
            path: path of the file.
            request: from `request`.
            child: a `children.Child` that runs `litert.worker`.

        Returns:
            A dict for the report.

        Raises:
            ExportError: if the file differs from the task or loses more quality than allowed.
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
        # Measure last, when Keras computes nothing.
        del answer
        if self.plan.is_large:
            free_memory()
        return {**report, **child.ask({"what": "cost", "path": str(path)})}

    def _refuse_if_worse(self, quality):
        if self.max_quality_loss is not None and not quality["loss"] <= self.max_quality_loss:
            metrics = ", ".join(f"{name} {value:.4g}" for name, value in quality.items())
            raise ExportError(
                f"quantized as {self.plan.weights}, the model is {quality['loss']:.2%} worse; "
                f"`max_quality_loss` allows {self.max_quality_loss:.2%} ({metrics}); nothing was "
                "written."
            )


def check_texts(caller: str, name: str, texts: object) -> None:
    """Raise InputError unless `texts` is a list of non-empty str."""
    if (
        not isinstance(texts, (list, tuple))
        or not texts
        or not all(isinstance(text, str) and text for text in texts)
    ):
        raise InputError(f"{caller}: `{name}` must be a list of non-empty str.")
