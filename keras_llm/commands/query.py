"""`keras-llm query`."""

import dataclasses

import tyro

from keras_llm.commands.console import as_json
from keras_llm.commands.sampling import sampling_options
from keras_llm.errors import InputError

_SETTINGS = ("temperature", "top_k", "top_p", "seed")


@dataclasses.dataclass
class Options(sampling_options(*_SETTINGS)):
    """Ask a server, TensorFlow Serving or the local one, to continue a text."""

    target: tyro.conf.Positional[str]
    """host:port for gRPC, http://host:port for REST."""
    model: tyro.conf.Positional[str]
    """Name of the model."""
    prompt: tyro.conf.Positional[str]
    """The text to continue; for other models the text that they take."""
    signature: str = "generate"
    """Signature to ask; one other than generate must take one text, e.g. score."""
    version: int | None = None
    """Version of the model; the newest if not given."""
    label: str | None = None
    """Label of a version."""
    stream: bool = False
    """Print the text as it comes, by prefill and decode."""
    timeout: float = 60.0
    """Seconds to wait for the answer, retries and all."""
    retries: int = 3
    """How often to ask again while the server is unavailable."""
    root_certificates: str | None = None
    """PEM file to check the server's certificate with; turns TLS on."""
    json: bool = False
    """Print one JSON object with all outputs."""


def run(options):
    from keras_llm import export

    client = export.Client(
        options.target,
        options.model,
        options.version,
        options.label,
        options.timeout,
        options.retries,
        root_certificates=options.root_certificates,
    )
    with client:
        if options.signature != "generate":
            _show(options, _ask_any(client, options))
            return
        settings = {name: getattr(options, name) for name in ("max_new_tokens", *_SETTINGS)}
        if options.stream:
            for piece in client.stream(options.prompt, **settings):
                print(piece, end="", flush=True)
            print()
            return
        details = client.generate(options.prompt, return_details=True, **settings)
        if not as_json(options, {"prompt": options.prompt, **details}):
            print(details["text"])


def _ask_any(client, options):
    import numpy as np

    known = client.metadata()
    if options.signature not in known:
        raise InputError(
            f"--signature: the model has {', '.join(sorted(known))}, not {options.signature}."
        )
    inputs = list(known[options.signature]["inputs"])
    if len(inputs) != 1:
        raise InputError(f"--signature {options.signature} takes {', '.join(sorted(inputs))}.")
    outputs = client.predict(options.signature, {inputs[0]: [options.prompt]})
    return {name: np.asarray(value[0]).tolist() for name, value in outputs.items()}


def _show(options, outputs):
    if not as_json(options, outputs):
        for name, value in outputs.items():
            print(f"{name}: {value}")
