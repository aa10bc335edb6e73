"""Generate text: `keras-llm generate`."""

import dataclasses

import tyro

from keras_llm.commands.console import as_json, import_tensorflow, kind_of, load_task, task_kind
from keras_llm.commands.sampling import SamplingOptions
from keras_llm.errors import InputError


@dataclasses.dataclass
class Options(SamplingOptions):
    """Continue a text with a trained model and print the new text."""

    run: tyro.conf.Positional[str]
    """Folder of a trained model, a checkpoint, or a name such as hf:OWNER/NAME."""
    prompt: tyro.conf.Positional[str]
    """The text to continue."""
    suffix: str | None = None
    """Text after the new text, for models that fill in the middle."""
    num_return_sequences: int = 1
    """Number of texts, separated by empty lines."""
    num_candidates: int | None = None
    """Sample this many texts and print the one with the highest mean token log-probability."""
    beam_width: int | None = None
    """Beam search with this many beams."""
    length_penalty: float | None = None
    """Beam search: values above 1 favor longer texts; 0 ranks by total log-probability."""
    diversity_groups: int | None = None
    """Beam search: number of groups of beams that avoid each other's tokens."""
    diversity_penalty: float | None = None
    """Beam search: penalty in nats for tokens of other groups."""
    contrastive_alpha: float | None = None
    """Contrastive search: weight, 0 to 1, of the penalty for tokens similar to the context."""
    draft: str | None = None
    """Folder of a smaller model for speculative decoding; requires --temperature 0."""
    prompt_lookup: int | None = None
    """Speculative decoding: propose the tokens that followed an earlier occurrence of the last
    PROMPT_LOOKUP tokens; requires --temperature 0."""
    num_draft_tokens: int | None = None
    """Speculative decoding: number of tokens to propose at a time."""
    stream: bool = False
    """Print the text while it is generated."""
    json: bool = False
    """Print one JSON object, or a list if there are several texts."""


_SHARED = {field.name for field in dataclasses.fields(SamplingOptions)}
_SEARCHES = [
    field.name
    for field in dataclasses.fields(Options)
    if field.default is None and field.name not in _SHARED | {"suffix"}
]


def run(options):
    _check(options, task_kind(options.run))
    if options.draft is not None:
        task_kind(options.draft)
    settings = options.settings() | {
        name: value for name in _SEARCHES if (value := getattr(options, name)) is not None
    }
    import_tensorflow()
    task = load_task(options.run)
    _check(options, kind_of(task))
    if options.draft is not None:
        settings["draft"] = load_task(options.draft)
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


def _check(options, kind):
    if kind not in ("TextGeneration", "RankedChat", "Translation", None):
        raise InputError(
            f"{options.run} is a {kind}, which does not generate text; see keras-llm predict."
        )
    if options.suffix is None:
        return
    if kind == "Translation":
        raise InputError(f"--suffix requires a TextGeneration, and {options.run} is a {kind}.")
    if options.stream or options.num_return_sequences != 1:
        raise InputError("--suffix is not supported with --stream or --num-return-sequences.")


def _infill(task, options, settings):
    result = task.infill(options.prompt, options.suffix, **settings, return_details=True)
    row = {"prompt": options.prompt, "suffix": options.suffix, **dataclasses.asdict(result)}
    if not as_json(options, row):
        print(result.text)
