"""Define user-facing errors, which the command line prints as one line before exit code 2."""


class InputError(ValueError):
    """An invalid argument, option or file. The message names it and what would be valid."""


class ExportError(RuntimeError):
    """A failed export, or one that does not match the model. No output files are left."""


class ServingError(RuntimeError):
    """An error status returned by a server.

    Attributes:
        code: str, the gRPC status code, e.g. "INVALID_ARGUMENT" or "UNAVAILABLE".
        message: str.
    """

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
