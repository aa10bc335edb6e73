"""Train a model with a recipe: `keras-llm train`. The options are those of the recipe."""

from keras_llm.commands import entry_points
from keras_llm.commands.console import PROGRAM, as_json, import_tensorflow, shown, table
from keras_llm.files import check_free, check_writable


def run(recipe, options):
    """Run a recipe, a module; print its metrics and the next command."""
    check_input(options, getattr(recipe, "CORPUS_KINDS", ()))
    import_tensorflow()
    metrics = recipe.run(options)
    if as_json(options, metrics):
        return
    held_out, baseline = metrics["held_out"], metrics[recipe.BASELINE]
    rows = [[name, shown(v), shown(baseline.get(name))] for name, v in held_out.items()]
    table(["held out", "model", recipe.BASELINE], rows)
    next_command = recipe.NEXT[options.kind] if isinstance(recipe.NEXT, dict) else recipe.NEXT
    print(f"next: {PROGRAM} {next_command.format(**vars(options))}")


def check_input(options, kinds=()):
    """Raise InputError if a recipe cannot use its options, before TensorFlow is imported.

    Args:
        options: dataclass of options of a recipe.
        kinds: tuple of str, the kinds of corpora that the recipe takes.
    """
    if hasattr(options, "out"):
        check_free(options.out, getattr(options, "overwrite", False))
        check_writable(options.out)
    if hasattr(options, "check_input"):
        options.check_input()
    if kinds and options.corpus and options.data is None:
        entry_points.corpus(options.corpus, kinds)
