"""Verify SavedModels: compare the outputs of their signatures with those of the task.

Texts, labels and offsets must be equal, and numbers must agree within a tolerance. If the weights
are stored in fewer bits, the divergence is measured and must be below a bound.
"""

from typing import TYPE_CHECKING, Any

from keras_llm import tasks
from keras_llm.errors import ExportError
from keras_llm.export import verification
from keras_llm.export.saved_model.verify_base import SavedModelVerification
from keras_llm.export.saved_model.verify_generation import (
    TextGenerationVerification,
    TranslationVerification,
)
from keras_llm.export.saved_model.verify_heads import (
    MaskedLanguageModelVerification,
    QuestionAnsweringVerification,
    TextClassificationVerification,
    TextEmbeddingVerification,
    TextRegressionVerification,
    TokenClassificationVerification,
)
from keras_llm.export.saved_model.worker import joined
from keras_llm.tasks.generative import GenerativeTask
from keras_llm.types import JSON

if TYPE_CHECKING:
    from keras_llm.export.children import Child

VERIFICATIONS = {
    tasks.TextGeneration: TextGenerationVerification,
    tasks.Translation: TranslationVerification,
    tasks.TextClassification: TextClassificationVerification,
    tasks.TokenClassification: TokenClassificationVerification,
    tasks.QuestionAnswering: QuestionAnsweringVerification,
    tasks.TextEmbedding: TextEmbeddingVerification,
    tasks.TextRegression: TextRegressionVerification,
    tasks.MaskedLanguageModel: MaskedLanguageModelVerification,
}


def verification_of(
    task: tasks.Task, exact: bool = True, beam_width: int | None = None
) -> SavedModelVerification:
    """Return the verification of a task's SavedModel."""
    verification_class = next(v for kind, v in VERIFICATIONS.items() if isinstance(task, kind))
    if isinstance(task, GenerativeTask):
        task = task.without_xla()  # XLA would take longer to compile than a few texts take
    return verification_class(task, exact, beam_width)


def verify(
    checks: SavedModelVerification, loaded: dict[str, Any], child: "Child", xla: bool
) -> JSON:
    """Run a SavedModel and compare it with its task.

    Args:
        checks: from `verification_of`.
        loaded: dict, the child's answer to "load".
        child: the `children.Child` that runs the SavedModel.
        xla: bool. Whether the graph may have XLA ops.

    Returns:
        A dict for the report.

    Raises:
        ExportError: if the SavedModel does not match the task.
    """
    compiled = [op for op in loaded["ops"] if op.startswith("Xla")]
    if compiled and not xla:
        raise ExportError(
            f"the graph has XLA ops, {', '.join(compiled)}, which servers do not run by default; "
            "nothing was written."
        )
    large = checks.task.model.count_params() > verification.LARGE
    child.send({"what": "call", "calls": checks.calls(), "at_a_time": 1 if large else 2})
    answer = child.result() if large else None
    checks.expect()
    answer = answer or child.result()
    measured = checks.compare(joined(answer))
    timed = child.ask({"what": "time", "timed": checks.timed()})
    return {
        **loaded,
        "parity": measured,
        "seconds_per_request": timed["seconds"],
        **checks.speed(timed["seconds"], timed["outputs"]),
    }
