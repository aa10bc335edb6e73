"""The record of an export, kept beside it."""

import json
import pathlib

from keras_llm.files import atomic_file

REPORT_FILE = "export_report.json"


def write_report(folder, name, report):
    """Add a report to `<folder>/export_report.json`, which maps artefact names to reports."""
    path = pathlib.Path(folder) / REPORT_FILE
    reports = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    reports[name] = report
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(json.dumps(reports, indent=2) + "\n", "utf-8")


def folder_sizes(folder):
    """Relative name -> bytes of each file below a folder, and their `total`."""
    folder = pathlib.Path(folder)
    sizes = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return {**sizes, "total": sum(sizes.values())}
