"""Write the report of an export and compute the sizes in it."""

import contextlib
import errno
import json
import math
import pathlib
from collections.abc import Iterator

from keras_llm import models
from keras_llm.errors import ExportError
from keras_llm.files import atomic_file
from keras_llm.json_files import read_json
from keras_llm.models.decoder import decoder_of
from keras_llm.models.graph import graph_of
from keras_llm.types import JSON, PathLike

REPORT_FILE = "export_report.json"
_HEADS = 16  # attention heads that are assumed for a composed encoder
_CHUNK = 256  # prompt tokens in one prefill call


def write_report(folder: PathLike, name: str, report: JSON) -> None:
    """Add a report to `<folder>/export_report.json`, which maps artifact names to reports."""
    reports = {**read_reports(folder), name: report}
    with atomic_file(pathlib.Path(folder) / REPORT_FILE, overwrite=True) as partial:
        partial.write_text(json.dumps(reports, indent=2) + "\n", "utf-8")


def read_reports(folder: PathLike) -> JSON:
    """Return the reports in a folder by artifact name; InputError if the file is no JSON object."""
    path = pathlib.Path(folder) / REPORT_FILE
    return read_json(path) if path.is_file() else {}


@contextlib.contextmanager
def disk_errors(path: PathLike) -> Iterator[None]:
    """Convert disk errors, such as a full disk, to an ExportError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            raise
        raise ExportError(
            f"{path} cannot be written: {error.strerror}; no partial file was left behind."
        ) from error


def folder_sizes(folder: PathLike) -> dict[str, int]:
    """Return a dict from the relative name of each file in a folder to its bytes, and `total`."""
    folder = pathlib.Path(folder)
    sizes = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return {**sizes, "total": sum(sizes.values())}


def bytes_by_part(sizes: dict[str, int]) -> dict[str, int]:
    """Group the file sizes of a SavedModel by the purpose of the files.

    Args:
        sizes: dict from `folder_sizes`.

    Returns:
        A dict with the bytes of `weights`, `graph` (including the tokenizer, whose tables are
        constants in the graph), `warm_up` and `other`.
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


def row_bytes(model: models.ConfiguredModel) -> int:
    """Estimate the bytes of memory that one row of `max_length` tokens needs in a forward pass.

    The sum of the cache, twice, because a step reads one copy and writes another; the activations
    of one block; the attention scores of one layer; and the logits.
    """
    config = model.config
    if isinstance(config, models.ComposedConfig):
        specs = [spec for spec in graph_of(model).specs.values() if len(spec.shape) > 2]
        widest = max((math.prod(filter(None, spec.shape[2:])) for spec in specs), default=1)
        heads, cache = _HEADS, 0
        if isinstance(model, (models.ComposedLM, models.ComposedSeq2Seq)):
            decoder = decoder_of(model)
            heads = max((spec.shape[1] for spec in decoder.specs.values()), default=1)
            cache = decoder.cache_bytes(config.max_length)
        numbers = config.max_length * (6 * widest + heads * min(config.max_length, _CHUNK))
        return 2 * cache + 4 * numbers
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
