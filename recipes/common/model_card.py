"""Write the model card of a run."""

import pathlib

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
    is_new = getattr(options, "start", None) in (None, "scratch")
    preset = f"Preset `{options.preset}`, " if is_new and options.preset else ""
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


def shape(config, trained_on):
    """Return the sizes of a causal language model, for a line of its card.

    Args:
        config: a `CausalLMConfig`.
        trained_on: int, the maximum number of tokens of the texts that it was trained on.
    """
    return (
        f"{config.num_layers} layers, width {config.hidden_dim}, vocabulary "
        f"{config.vocabulary_size}; trained on at most {trained_on} tokens at a time, of the "
        f"{config.max_length} that it can read"
    )
