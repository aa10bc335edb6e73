"""Define user-facing errors, which the command line prints as one line before exit code 2."""

import contextlib
import re
from collections.abc import Iterable, Iterator

# The extra that installs a package, for packages that not everybody needs.
_EXTRAS = {
    "ai_edge_litert": "device",
    "litert_lm_builder": "device",
    "grpc": "serving",
    "grpc_health": "serving",
    "tensorflow_serving": "serving",
    "tensorflow_text": "serving",
    "anyio": "serving",
    "h11": "serving",
    "starlette": "serving",
    "uvicorn": "serving",
    "urllib3": "serving",
    "keras_hub": "keras_hub",
    "kagglehub": "keras_hub",
    "gguf": "gguf",
}


# A message may quote a value from a file.
_LONGEST = 2000  # characters of a message
_LONG_WORD = re.compile(r"(\S{150})\S{50,}(\S{50})")


class InputError(ValueError):
    """An invalid argument, option or file. The message names it and what would be valid.

    Args:
        message: str. Line breaks become spaces, and the middle of a word of at least 250 characters
            and of a very long message is left out.
    """

    def __init__(self, message: str) -> None:
        message = _LONG_WORD.sub(r"\1 ... \2", " ".join(message.splitlines()))
        if len(message) > _LONGEST:
            message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"
        super().__init__(message)


def require_list(name: str, values: object) -> None:
    """Raise `InputError` unless an argument is an iterable other than a single str or bytes.

    Args:
        name: str, the name of the argument.
        values: the argument.
    """
    if isinstance(values, (str, bytes)):
        kind = type(values).__name__
        raise InputError(f"`{name}` must be a list of str, got a single {kind}: {values!r:.80}.")
    if not isinstance(values, Iterable):
        raise InputError(f"`{name}` must be a list of str, got {type(values).__name__}.")


class ExportError(RuntimeError):
    """A failed export, or one that does not match the model. No output files are left."""


class ServingError(RuntimeError):
    """An error status returned by a server.

    Attributes:
        code: str, the gRPC status code, e.g. "INVALID_ARGUMENT" or "UNAVAILABLE".
        message: str.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def unavailable(name: str, error: InputError) -> type:
    """Return a stand-in for a class or function whose package is missing.

    Importing it works; calling it raises the error.
    """

    def fail(*args: object, **kwargs: object) -> None:
        raise InputError(str(error))

    return type(name, (), {"__new__": fail, "__doc__": str(error)})


@contextlib.contextmanager
def optional_packages(what: str) -> Iterator[None]:
    """Turn the absence of an optional package into an `InputError` that names the extra.

    Args:
        what: str, what needs the package, for the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        extra = _EXTRAS[package]
        raise InputError(
            f"{what} needs the package {package}: pip install 'keras-llm[{extra}]'."
        ) from None
