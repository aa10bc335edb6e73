"""Write TFLite files for the LiteRT runtime, with builtin ops only."""

import pathlib
from collections.abc import Sequence
from typing import Any

from keras_llm.errors import InputError
from keras_llm.export.litert import conversion, file_format
from keras_llm.export.planning import check_room
from keras_llm.export.progress import Progress
from keras_llm.export.report import disk_errors, read_reports, write_report
from keras_llm.files import atomic_file
from keras_llm.tasks import Task
from keras_llm.types import JSON, PathLike


def write_litert(
    task: Task,
    path: PathLike,
    overwrite: bool,
    held_out: Sequence[Any] | None,
    max_quality_loss: float | None,
    **options: Any,
) -> JSON:
    """Export a task; see `litert` for the arguments, and `conversion.plan` for `options`."""
    path = pathlib.Path(path)
    if path.suffix != ".tflite":
        raise InputError(f"litert: `path` must end in .tflite, got {path}.")
    plan = conversion.plan("litert", task, **options)
    read_reports(path.parent)  # fail now if it is damaged
    checks = plan.checks("litert", held_out, max_quality_loss)
    check_room("litert", task, "litert", plan.quantization, plan.manifest["max_length"])
    with (
        disk_errors(path),
        atomic_file(path, overwrite) as partial,
        conversion.processes() as (lowering, running),
        Progress(path.name, task.model.count_params()) as progress,
    ):
        request = conversion.build(plan, partial, lowering, progress, checks.request)
        ops = file_format.op_census(partial)
        parts = file_format.parts(partial)
        parts["tokenizer"] = file_format.append(partial, plan.task.tokenizer, plan.manifest)
        with progress.phase("verify"):
            verified = checks.of(partial, request, running)
        report = {
            "format": "litert",
            "quantization": plan.weights,
            **plan.manifest,
            "bytes": {**parts, "total": partial.stat().st_size},
            "ops": ops,
            **verified,
            "seconds": progress.seconds,
        }
        write_report(path.parent, path.name, report)
    return report
