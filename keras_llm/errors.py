"""Errors that a user can mend. The command line prints them as one line and exits with 2."""


class InputError(ValueError):
    """Something given to the library cannot be used; the message names it and the remedy."""


class ExportError(RuntimeError):
    """An export could not be made or did not match the model; nothing was left behind."""


class ServingError(RuntimeError):
    """A server refused or could not answer a request.

    Attributes:
        code: str, the status of gRPC, e.g. "INVALID_ARGUMENT" or "UNAVAILABLE".
        message: str.
    """

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
