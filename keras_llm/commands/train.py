"""Train a model with a recipe: `keras-llm train`. The options are those of the recipe."""

from keras_llm.commands.console import PROGRAM, as_json, import_tensorflow, table


def run(recipe, options):
    """Run a recipe, a module; print its metrics and the next command."""
    import_tensorflow()
    metrics = recipe.run(options)
    if as_json(options, metrics):
        return
    held_out, baseline = metrics["held_out"], metrics[recipe.BASELINE]
    rows = [[name, _shown(v), _shown(baseline.get(name))] for name, v in held_out.items()]
    table(["held out", "model", recipe.BASELINE], rows)
    next_command = recipe.NEXT[options.kind] if isinstance(recipe.NEXT, dict) else recipe.NEXT
    print(f"next: {PROGRAM} {next_command.format(**vars(options))}")


def _shown(value):
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
