"""Write SavedModels that take and return strings, in TensorFlow Serving's layout."""

import pathlib

from keras_llm.errors import InputError, optional_packages
from keras_llm.export import children, verification
from keras_llm.export.planning import check_room
from keras_llm.export.progress import Progress
from keras_llm.export.report import (
    bytes_by_part,
    disk_errors,
    folder_sizes,
    read_reports,
    row_bytes,
    write_report,
)
from keras_llm.export.saved_model.signatures import module_of, save
from keras_llm.export.saved_model.verify import verification_of, verify
from keras_llm.export.saved_model.warmup import write_warmup
from keras_llm.export.serving.versions import MAX_VERSION
from keras_llm.files import atomic_folder
from keras_llm.tasks import Task
from keras_llm.types import JSON, PathLike

_SERVER = "keras_llm.export.saved_model.worker"
_TIMEOUT = 3600  # seconds to wait for an answer of the process that runs the SavedModel


def write_saved_model(
    task: Task,
    path: PathLike,
    version: int = 1,
    overwrite: bool = False,
    xla: bool = False,
    weights: str | None = None,
    beam_width: int | None = None,
) -> JSON:
    """Export a task; the arguments are those of `saved_model`."""
    with optional_packages("export.saved_model"):
        import tensorflow_serving  # noqa: F401, needed at the end, for the warm-up requests
    module = module_of(task, weights, xla, beam_width)
    if not isinstance(version, int) or not 1 <= version <= MAX_VERSION:
        raise InputError(
            f"saved_model: `version` must be an int in 1 .. 2^63 - 1, got {version!r}."
        )
    check_room("saved_model", task, "saved_model", None, task.model.config.max_length)
    path = pathlib.Path(path)
    read_reports(path)  # fail now if it is damaged
    with (
        disk_errors(path),
        atomic_folder(path / str(version), overwrite) as folder,
        children.child(_SERVER, "that runs the SavedModel", _TIMEOUT) as child,
        Progress(f"{path.name}/{version}", task.model.count_params()) as progress,
    ):
        with progress.phase("trace"):
            signatures = module.signatures()
            progress.part("trace", 1.0)
        with progress.phase("write"):
            save(module, folder, signatures)
            progress.part("write", 1.0)
        del module, signatures
        if task.model.count_params() > verification.LARGE:
            verification.free_memory()
        with progress.phase("verify"):
            child.send({"what": "load", "path": str(folder)})
            # Keras generates prompts while the child loads the SavedModel.
            checks = verification_of(task, weights is None, beam_width)
            loaded = child.result()
            verified = verify(checks, loaded, child, xla)
            write_warmup(folder, path.name, checks.warm_up())
        sizes = folder_sizes(folder)
        report = {
            "format": "saved_model",
            "task": type(task).__name__,
            "version": version,
            "xla": xla,
            "weights": weights or "as in the model",
            "bytes": sizes,
            "bytes_by_part": bytes_by_part(sizes),
            "row_bytes": row_bytes(task.model),
            **verified,
            "seconds": progress.seconds,
        }
        write_report(path, str(version), report)
    return report
