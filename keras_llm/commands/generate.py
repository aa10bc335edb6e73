"""`keras-llm generate`."""

import dataclasses

import tyro

import keras_llm
from keras_llm.commands.console import as_json, import_tensorflow


@dataclasses.dataclass
class Options:
    """Continue a text with a trained model; prints the new text alone."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model."""
    prompt: tyro.conf.Positional[str]
    """The text to continue."""
    max_new_tokens: int = 64
    """The most tokens to generate."""
    temperature: float = 1.0
    """0 takes the most likely token each time."""
    top_k: int = 0
    """Choose among this many most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Choose among the fewest tokens that hold this much probability; 1 is off."""
    seed: int | None = None
    """The same seed gives the same text."""
    stream: bool = False
    """Print the text as it comes."""
    json: bool = False
    """Print one JSON object."""


def run(options):
    import_tensorflow()
    task = keras_llm.load(options.run)
    settings = {
        name: getattr(options, name)
        for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    }
    if options.json:
        result = task(options.prompt, **settings, return_details=True)
        as_json(options, {"prompt": options.prompt, **dataclasses.asdict(result)})
    elif options.stream:
        for piece in task.stream(options.prompt, **settings):
            print(piece, end="", flush=True)
        print()
    else:
        print(task(options.prompt, **settings))
