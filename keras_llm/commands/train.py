"""`keras-llm train`; its options are those of the recipe."""

import importlib

from keras_llm.commands.console import PROGRAM, as_json, import_tensorflow, table


def run(options):
    recipe = importlib.import_module(type(options).__module__)
    import_tensorflow()
    metrics = recipe.run(options)
    if as_json(options, metrics):
        return
    held_out, unigram = metrics["held_out"], metrics["unigram"]
    table(
        ["held out", "model", "unigram"],
        [
            [name, f"{held_out[name]:.3f}", f"{unigram[name]:.3f}"]
            for name in ("perplexity", "bits_per_byte", "nats_per_token")
        ]
        + [["accuracy", f"{held_out['accuracy']:.3f}", ""]],
    )
    print(f'next: {PROGRAM} generate {options.out} "{options.prompt}" --stream')
