"""Query a server: `keras-llm query`."""

import dataclasses
from typing import Any

import tyro

from keras_llm.commands.console import as_json
from keras_llm.commands.sampling import sampling_options
from keras_llm.errors import InputError

_SETTINGS = ("temperature", "top_k", "top_p", "seed")
_Options: Any = sampling_options(*_SETTINGS)


@dataclasses.dataclass
class Options(_Options):
    """Send a text to TensorFlow Serving or the local server and print the answer."""

    target: tyro.conf.Positional[str]
    """host:port for gRPC, http://host:port for REST."""
    model: tyro.conf.Positional[str]
    """Name of the model."""
    prompt: tyro.conf.Positional[str]
    """The text to continue, or the input text of another signature."""
    signature: str = "generate"
    """Signature to call; any other than generate must have a single text input, e.g. score."""
    version: int | None = None
    """Version of the model. Defaults to the newest."""
    label: str | None = None
    """Version label of the model."""
    stream: bool = False
    """Print the text while it is generated, with the prefill and decode signatures."""
    timeout: float = 60.0
    """Seconds to wait for the answer, including retries."""
    retries: int = 3
    """Number of retries while the server is unavailable."""
    root_certificates: str | None = None
    """PEM file with root certificates to verify the server; enables TLS."""
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
            _show(options, _call_signature(client, options))
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


def _call_signature(client, options):
    import numpy as np

    signatures = client.metadata()
    if options.signature not in signatures:
        raise InputError(
            f"--signature must be one of {', '.join(sorted(signatures))}, got {options.signature}."
        )
    inputs = list(signatures[options.signature]["inputs"])
    if len(inputs) != 1:
        raise InputError(
            f"--signature must have a single input; {options.signature} has "
            f"{', '.join(sorted(inputs))}."
        )
    outputs = client.predict(options.signature, {inputs[0]: [options.prompt]})
    return {name: np.asarray(value[0]).tolist() for name, value in outputs.items()}


def _show(options, outputs):
    if not as_json(options, outputs):
        for name, value in outputs.items():
            print(f"{name}: {value}")
