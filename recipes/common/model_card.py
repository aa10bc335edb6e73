"""The model card of a run, and what is exported and told in it."""

import json
import pathlib

from keras_llm.files import atomic_file
from keras_llm.recipes.common import runs


def card(options, metrics, about, baselines, measured_on, notes, command):
    """The text of a model card.

    Args:
        options: `Options`.
        metrics: dict with `held_out`, the baselines, and `training` from `fit`.
        about: str, what the model does.
        baselines: dict from a key of `metrics` to what the column is called.
        measured_on: str, what the measures were taken on.
        notes: list of str, further things to know.
        command: str with `{out}`, how it is used.
    """
    held_out, training = metrics["held_out"], metrics["training"]
    shown = [name for name, value in held_out.items() if isinstance(value, float)]
    table = [["", "model", *baselines.values()], ["---"] * (len(baselines) + 2)]
    for name in shown:
        values = [held_out[name], *(metrics[key].get(name) for key in baselines)]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        table.append([f"held-out {name.replace('_', ' ')}", *cells])
    shape = f"Shape: preset `{options.preset}`, " if options.preset else ""
    lines = [
        f"{shape}{training['parameters']:,} parameters.",
        f"Training: {training['steps']:,} steps of {options.batch_size} in "
        f"{training['seconds']:.0f} s, {options.optimizer} at {options.learning_rate:g}, seed "
        f"{options.seed}; dropped from the data: "
        f"{runs.reasons(training.get('dropped', {}))}. The weights kept are those with the lowest "
        "held-out loss.",
        *notes,
    ]
    return "\n".join(
        [
            f"# {pathlib.Path(options.out).name}",
            "",
            f"{about} Trained with a recipe of keras_llm on {options.source}.",
            "",
            *("| " + " | ".join(row) + " |" for row in table),
            "",
            f"Measured on {measured_on}; none of it was trained on."
            + (" `loss.png` shows the training." if runs.has_pictures() else ""),
            "",
            *(f"- {line}" for line in lines),
            "",
            "```",
            f"keras-llm {command.format(**vars(options))}",
            "```",
            "",
        ]
    )


def ship(options, task, metrics):
    """Export what `--export` names, and add sizes and parity to metrics.json and model card.

    Args:
        options: `Options`.
        task: a `tasks.Task`.
        metrics: dict, to which `artefacts` is added.
    """
    if not options.exports:
        return
    from keras_llm import export
    from keras_llm.silence import silent_stderr

    with silent_stderr():
        task.tokenizer.graph_resources()
    out = pathlib.Path(options.out)
    name = out.name
    places = {
        "saved_model": out / "exports" / "serving" / name,
        "litert": out / "exports" / f"{name}.tflite",
        "litert_lm": out / "exports" / f"{name}.litertlm",
    }
    metrics["artefacts"] = {}
    lines = ["", "| artefact | bytes | parity with Keras |", "|---|---|---|"]
    for kind in options.exports:
        runs.say(f"exporting {places[kind]}")
        report = getattr(export, kind)(task, places[kind])
        size = report["bytes"]["total"]
        metrics["artefacts"][kind] = {"bytes": size, "parity": report["parity"]}
        parity = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in report["parity"].items())
        lines.append(f"| `{places[kind].relative_to(out)}` | {size:,} | {parity} |")
    _rewrite(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    _rewrite(out / "README.md", (out / "README.md").read_text("utf-8") + "\n".join(lines) + "\n")


def _rewrite(path, text):
    """Replace a text file, whole or not at all."""
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(text, "utf-8")
