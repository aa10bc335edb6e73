"""`keras-llm generate`."""

import dataclasses

import tyro

import keras_llm
from keras_llm.commands.console import as_json, import_tensorflow
from keras_llm.commands.sampling import SamplingOptions
from keras_llm.errors import InputError


@dataclasses.dataclass
class Options(SamplingOptions):
    """Continue a text with a trained model; prints the new text alone."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model."""
    prompt: tyro.conf.Positional[str]
    """The text to continue."""
    suffix: str | None = None
    """What stands behind the new text, of a model that fills gaps."""
    num_return_sequences: int = 1
    """How many texts; an empty line stands between them."""
    num_candidates: int | None = None
    """Draw so many texts and print the likeliest by the token."""
    beam_width: int | None = None
    """Beam search with so many texts at a time."""
    length_penalty: float | None = None
    """Of beam search: above 1 favours longer texts, 0 ranks by probability alone."""
    diversity_groups: int | None = None
    """Of beam search: groups of beams that avoid each other's tokens."""
    diversity_penalty: float | None = None
    """Of beam search: how much they avoid them, in nats."""
    contrastive_alpha: float | None = None
    """Contrastive search: 0 to 1, how much a token may not be like the text before it."""
    draft: str | None = None
    """Folder of a smaller model that proposes tokens; with --temperature 0."""
    prompt_lookup: int | None = None
    """Propose what followed the last so many tokens before; with --temperature 0."""
    num_draft_tokens: int | None = None
    """How many tokens are proposed at a time."""
    stream: bool = False
    """Print the text as it comes."""
    json: bool = False
    """Print one JSON object, or a list of several texts."""


_SHARED = {field.name for field in dataclasses.fields(SamplingOptions)}
_SEARCHES = [
    field.name
    for field in dataclasses.fields(Options)
    if field.default is None and field.name not in _SHARED | {"suffix"}
]


def run(options):
    import_tensorflow()
    task = keras_llm.load(options.run)
    if not isinstance(task, (keras_llm.TextGeneration, keras_llm.Translation)):
        raise InputError(f"{options.run} is a {type(task).__name__}, which generates no text.")
    settings = options.settings() | {
        name: value for name in _SEARCHES if (value := getattr(options, name)) is not None
    }
    if options.draft is not None:
        settings["draft"] = keras_llm.load(options.draft)
    if options.num_return_sequences != 1:
        settings["num_return_sequences"] = options.num_return_sequences
    if options.suffix is not None:
        _infill(task, options, settings)
        return
    if options.stream and not options.json:
        for piece in task.stream(options.prompt, **settings):
            print(piece, end="", flush=True)
        print()
        return
    results = task(options.prompt, **settings, return_details=True)
    results = results if isinstance(results, list) else [results]
    rows = [{"prompt": options.prompt, **dataclasses.asdict(result)} for result in results]
    if not as_json(options, rows if options.num_return_sequences > 1 else rows[0]):
        print("\n\n".join(result.text for result in results))


def _infill(task, options, settings):
    if not isinstance(task, keras_llm.TextGeneration):
        raise InputError(f"--suffix: {options.run} is a {type(task).__name__}.")
    if options.stream or options.num_return_sequences != 1:
        raise InputError("--suffix gives one whole text.")
    result = task.infill(options.prompt, options.suffix, **settings, return_details=True)
    row = {"prompt": options.prompt, "suffix": options.suffix, **dataclasses.asdict(result)}
    if not as_json(options, row):
        print(result.text)
