"""Write the model card of a run, and export its model."""

import json
import pathlib

from keras_llm.files import atomic_file
from keras_llm.recipes.common import runs


def card(options, metrics, about, baselines, measured_on, notes, command):
    """Return the text of a model card.

    Args:
        options: `Options`.
        metrics: dict with `held_out`, the baselines, and `training` from `fit`.
        about: str, a description of the model.
        baselines: dict from keys of `metrics` to column titles.
        measured_on: str, the evaluation data.
        notes: list of str, additional lines.
        command: str with `{out}`, the command that uses the model.
    """
    held_out, training = metrics["held_out"], metrics["training"]
    shown = [name for name, value in held_out.items() if isinstance(value, float)]
    table = [["", "model", *baselines.values()], ["---"] * (len(baselines) + 2)]
    for name in shown:
        values = [held_out[name], *(metrics[key].get(name) for key in baselines)]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        table.append([f"held-out {name.replace('_', ' ')}", *cells])
    preset = f"Preset `{options.preset}`, " if options.preset else ""
    lines = [
        f"{preset}{training['parameters']:,} parameters.",
        f"Training: {training['steps']:,} steps with batch size {options.batch_size} in "
        f"{training['seconds']:.0f} s, {options.optimizer} with peak learning rate "
        f"{options.learning_rate:g}, seed {options.seed}; dropped from the data: "
        f"{runs.reasons(training.get('dropped', {}))}. The weights are those with the lowest "
        "held-out loss.",
        *notes,
    ]
    return "\n".join(
        [
            f"# {pathlib.Path(options.out).name}",
            "",
            f"{about} Trained with a keras_llm recipe on {options.source}.",
            "",
            *("| " + " | ".join(row) + " |" for row in table),
            "",
            f"Measured on held-out data: {measured_on}."
            + (" `loss.png` shows the loss curves." if runs.has_pictures() else ""),
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
    """Export the formats of `--export`; add sizes and parity to metrics.json and model card.

    Args:
        options: `Options`.
        task: a `tasks.Task`.
        metrics: dict, to which `artifacts` is added.
    """
    if not options.exports:
        return
    from keras_llm import export
    from keras_llm.silence import silent_stderr

    with silent_stderr():
        task.tokenizer.graph_resources()
    out = pathlib.Path(options.out)
    name = out.name
    paths = {
        "saved_model": out / "exports" / "serving" / name,
        "litert": out / "exports" / f"{name}.tflite",
        "litert_lm": out / "exports" / f"{name}.litertlm",
    }
    metrics["artifacts"] = {}
    lines = ["", "| artifact | bytes | parity with Keras |", "|---|---|---|"]
    for kind in options.exports:
        runs.say(f"exporting {paths[kind]}")
        report = getattr(export, kind)(task, paths[kind])
        size = report["bytes"]["total"]
        metrics["artifacts"][kind] = {"bytes": size, "parity": report["parity"]}
        parity = ", ".join(f"{k.replace('_', ' ')} {v:.3g}" for k, v in report["parity"].items())
        lines.append(f"| `{paths[kind].relative_to(out)}` | {size:,} | {parity} |")
    _rewrite(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    _rewrite(out / "README.md", (out / "README.md").read_text("utf-8") + "\n".join(lines) + "\n")


def _rewrite(path, text):
    """Replace a text file atomically."""
    with atomic_file(path, overwrite=True) as partial:
        partial.write_text(text, "utf-8")
