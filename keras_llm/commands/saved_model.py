"""Export a SavedModel and print its report: `keras-llm export --to saved_model`."""

import pathlib
import re

from keras_llm.commands.console import as_json, shown, table


def run(options, task):
    """Export a task as a SavedModel and print the report."""
    from keras_llm import export

    version = 1 if options.version is None else options.version
    report = export.saved_model(
        task,
        options.out,
        version,
        options.overwrite,
        options.xla,
        options.weights,
        options.beam_width,
    )
    if options.serving_files:
        files = export.serving_files(pathlib.Path(options.out).absolute().parent)
        report = {**report, "serving_files": [str(path) for path in files.values()]}
    if as_json(options, report):
        return
    table([f"{pathlib.Path(options.out) / str(version)}", "value"], _rows(report))
    table(
        ["signature", "inputs", "outputs"],
        [
            [name, _tensors(row["inputs"]), _tensors(row["outputs"])]
            for name, row in report["signatures"].items()
            if name != "serving_default"
        ],
    )


def _rows(report):
    """Return the report as rows of a table."""
    main = next(
        name
        for name, row in report["signatures"].items()
        if name != "serving_default" and row == report["signatures"]["serving_default"]
    )
    rows = [["task", report["task"]], ["serving_default", main]]
    rows += [
        [f"bytes: {part.replace('_', ' ')}", f"{size:,}"]
        for part, size in report["bytes_by_part"].items()
    ]
    rows += [["bytes: total", f"{report['bytes']['total']:,}"]]
    rows += [["weight storage", report["weights"]]]
    rows += [[f"parity: {k.replace('_', ' ')}", shown(v)] for k, v in report["parity"].items()]
    for name in ("tokens_per_second", "texts_per_second"):
        if name in report:
            rows.append([name.replace("_", " "), f"{report[name]:,.0f}"])
    if not report["libraries"]:
        rows.append(["ops outside core TensorFlow", "none"])
    for library, ops in report["libraries"].items():
        rows.append([f"ops to link from {library}", ", ".join(ops)])
    if report["xla"]:
        rows.append(["XLA", "must be enabled in the server"])
    return rows + [["written", path] for path in report.get("serving_files", ())]


def _tensors(specs):
    """Return one line per tensor with name and type; the cache tensors share one line per type."""
    lines, caches = [], {}
    for name, spec in specs.items():
        if re.fullmatch(r"[kv]_\d+", name):
            caches.setdefault(spec, []).append(name)
        else:
            lines.append(f"{name} {spec}")
    for spec, names in caches.items():
        layers = sorted({int(name[2:]) for name in names})
        lines.append(f"k_<i>, v_<i> {spec}, i in {layers[0]} .. {layers[-1]}")
    return "\n".join(lines)
