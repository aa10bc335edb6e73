"""Train a model with a recipe: `keras-llm train`. The options are those of the recipe."""

from keras_llm.commands.console import PROGRAM, as_json, import_tensorflow, shown, table
from keras_llm.files import check_free, check_writable


def run(recipe, options):
    """Run a recipe, a module; print its metrics and the next command."""
    check_out(options)
    import_tensorflow()
    metrics = recipe.run(options)
    if as_json(options, metrics):
        return
    held_out, baseline = metrics["held_out"], metrics[recipe.BASELINE]
    rows = [[name, shown(v), shown(baseline.get(name))] for name, v in held_out.items()]
    table(["held out", "model", recipe.BASELINE], rows)
    next_command = recipe.NEXT[options.kind] if isinstance(recipe.NEXT, dict) else recipe.NEXT
    print(f"next: {PROGRAM} {next_command.format(**vars(options))}")


def check_out(options):
    """Raise InputError if the folder `out` of a recipe's options exists or cannot be written."""
    if hasattr(options, "out"):
        check_free(options.out, getattr(options, "overwrite", False))
        check_writable(options.out)
