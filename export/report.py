"""The record of an export, kept beside it."""

import contextlib
import errno
import json
import pathlib

from keras_llm import models
from keras_llm.errors import ExportError
from keras_llm.files import atomic_file

REPORT_FILE = "export_report.json"
_CHUNK = 256  # tokens of a prompt that a decoder reads at a time


def write_report(folder, name, report):
    """Add a report to `<folder>/export_report.json`, which maps artefact names to reports."""
    path = pathlib.Path(folder) / REPORT_FILE
    reports = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    reports[name] = report
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(json.dumps(reports, indent=2) + "\n", "utf-8")


@contextlib.contextmanager
def disk_errors(path):
    """ExportError naming what cannot be written, where the disk is full or does not take it."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise
        raise ExportError(
            f"{path} cannot be written: {error.strerror}; nothing was left behind."
        ) from error


def folder_sizes(folder):
    """Relative name -> bytes of each file below a folder, and their `total`."""
    folder = pathlib.Path(folder)
    sizes = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return {**sizes, "total": sum(sizes.values())}


def bytes_by_part(sizes):
    """What `folder_sizes` found in a SavedModel, by what it is for.

    Returns:
        A dict of `weights`, `graph` (with the tokenizer, whose tables are constants in it),
        `warm_up` and `other`.
    """
    parts = {"weights": 0, "graph": 0, "warm_up": 0, "other": 0}
    for name, size in sizes.items():
        if name.startswith("variables/"):
            parts["weights"] += size
        elif name == "saved_model.pb":
            parts["graph"] += size
        elif name.startswith("assets.extra/"):
            parts["warm_up"] += size
        elif name != "total":
            parts["other"] += size
    return parts


def row_bytes(model):
    """About how much memory a row of `max_length` tokens takes while it is computed, in bytes: its
    cache, twice, as a step reads one and writes the other; the activations of one block; the
    scores of one attention; its logits."""
    config = model.config
    summary = models.summarize(models.describe(model))
    queries = config.max_length
    if "cache_bytes_at_max_length" in summary:
        queries = min(queries, _CHUNK)
    numbers = (
        config.max_length * (config.intermediate_dim + 4 * config.hidden_dim)
        + config.num_heads * queries * config.max_length
        + config.vocabulary_size
    )
    return 2 * summary.get("cache_bytes_at_max_length", 0) + 4 * numbers
