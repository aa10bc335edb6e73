"""Call a model on a server: convert arguments to named arrays and outputs to text."""

import itertools
import numbers
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving import tensors
from keras_llm.export.serving.client.connection import Route, connect
from keras_llm.export.serving.client.stream import stream_tokens
from keras_llm.export.serving.versions import MAX_VERSION
from keras_llm.sampling_settings import DEFAULTS, MAX_NEW_TOKENS
from keras_llm.types import JSON, PathLike

# Default values of settings.
_OFF = {"max_new_tokens": MAX_NEW_TOKENS, **DEFAULTS}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between attempts


class Client:
    """A client for a model on TensorFlow Serving or the local server.

    It is thread-safe. Requests that fail because the server cannot be reached or returns
    UNAVAILABLE are retried with exponential backoff from 0.1 s to 2 s; other errors are not
    retried.

    Args:
        target: str. "host:port" for gRPC, or "http://host:port" (or https) for REST.
        model: str. Name of the model.
        version: int, or None for the newest loaded version.
        label: str, the label of a version, or None. Mutually exclusive with `version`.
        timeout: float. Maximum seconds for a call, including retries. The server drops requests
            after their deadline.
        retries: int. Maximum number of retries.
        headers: dict of str to str, sent with each request as gRPC metadata or HTTP headers.
        tls: bool. Whether to use TLS for gRPC; certificates imply it.
        root_certificates: path of a PEM file to verify the server's certificate, or None for the
            certificates of the system.
        client_certificate, client_key: paths of PEM files, for servers that require them.

    Raises:
        InputError: if an argument is invalid.

    Example:
        client = export.Client("localhost:8500", model="stories")
        client.generate(["Once upon a time"], max_new_tokens=50)
    """

    def __init__(
        self,
        target: str,
        model: str,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
        headers: Mapping[str, str] | None = None,
        tls: bool = False,
        root_certificates: PathLike | None = None,
        client_certificate: PathLike | None = None,
        client_key: PathLike | None = None,
    ) -> None:
        if not isinstance(model, str) or not model or set(model) & set("/:"):
            raise InputError(f"`model` must be a name without / or :, got {model!r}.")
        if version is not None and label is not None:
            raise InputError("use either `version` or `label`, not both.")
        if version is not None and (not _is_int(version) or not 0 <= version <= MAX_VERSION):
            raise InputError(f"`version` must be an int in 0 .. 2^63 - 1, got {version!r}.")
        _check_positive("timeout", timeout)
        if not _is_int(retries) or retries < 0:
            raise InputError(f"`retries` must be an int >= 0, got {retries!r}.")
        self._timeout = timeout
        self._retries = retries
        self._signatures: Any = None
        self._is_closed = False
        self._connection = connect(
            target,
            Route(model, version, label),
            dict(headers or {}),
            tls,
            root_certificates,
            client_certificate,
            client_key,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; calls then raise InputError."""
        self._is_closed = True
        self._connection.close()

    def generate(
        self,
        prompts: str | list[str],
        max_new_tokens: int | list[int] = 64,
        temperature: float | list[float] = 1.0,
        top_k: int | list[int] = 0,
        top_p: float | list[float] = 1.0,
        seed: int | list[int] | None = None,
        return_details: bool = False,
        batch_size: int = 32,
        timeout: float | None = None,
        parse_special: bool = False,
        **settings: Any,
    ) -> str | JSON | list[str] | list[JSON]:
        """Generate continuations of one or more prompts.

        Args:
            prompts: str, or list of str.
            max_new_tokens, temperature, top_k, top_p, seed: as in `keras_llm.TextGeneration`; each
                a number, or a list with one for each prompt. If `seed` is None, seeds are random.
            return_details: bool. Whether to return a dict for each text with all outputs of the
                signature: `text`, `num_tokens`, `log_probability`, `finish_reason` and more.
            batch_size: int. Maximum number of prompts in a request; longer lists are split.
            timeout: seconds for each request; None for the client's `timeout`.
            parse_special: bool. Whether the prompts are rendered conversations with special
                tokens, which are sent to the model's signature `chat`. The server does not render:
                use `TextGeneration.render` or `tokenizers.ChatTemplate`.
            **settings: other inputs of the model's signature `generate`, or else of its
                `generate_extended`: `min_p`, `repetition_penalty` and more.

        Returns:
            The new text, a str for a str and a list for a list.

        Raises:
            InputError: if an argument is invalid.
            ServingError: if the server rejects the request or does not answer in time.
        """
        rows = _texts("prompts", prompts)
        settings |= {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "seed": [random.getrandbits(31) for _ in rows] if seed is None else seed,
        }
        signature = "chat" if parse_special else "generate"
        signatures = self.metadata()
        if not parse_special and "generate_extended" in signatures:
            is_plain = set(settings) <= set(signatures.get("generate", {}).get("inputs", ()))
            signature = "generate" if is_plain else "generate_extended"
        inputs = {"prompt": rows, **self._complete(signature, settings, ["prompt"])}
        outputs = self._in_parts(signature, inputs, len(rows), batch_size, timeout)
        if return_details:
            results = [{k: _python(v[row]) for k, v in outputs.items()} for row in range(len(rows))]
        else:
            results = outputs["text"].tolist()
        return results[0] if isinstance(prompts, str) else results

    def score(
        self, texts: str | list[str], batch_size: int = 32, timeout: float | None = None
    ) -> float | list[float]:
        """Return the log-likelihood of texts, in nats: a float for a str and a list for a list.

        Args:
            texts: str, or list of str.
            batch_size: int. Maximum number of texts in a request; longer lists are split.
            timeout: seconds for each request; None for the client's `timeout`.

        Raises:
            InputError, ServingError: as in `generate`.
        """
        rows = _texts("texts", texts)
        outputs = self._in_parts("score", {"text": rows}, len(rows), batch_size, timeout)
        scores = outputs["log_probability"].tolist()
        return scores[0] if isinstance(texts, str) else scores

    def stream(
        self,
        prompt: str,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Stream the continuation of a prompt, with the signatures `prefill` and `decode`.

        The server is stateless, so the key-value cache is sent to the server and back with each
        token. This takes more bandwidth than `generate`, which sends only text.

        Args:
            prompt: str.
            max_new_tokens, temperature, top_k, top_p, seed: numbers, as in `generate`. Prompt and
                new tokens together must fit the model's `max_length`.

        Returns:
            A generator of str. The concatenated pieces are the text of `generate` for the same
            seed; a piece never ends inside a character.

        Raises:
            InputError, ServingError: as in `generate`. InputError is raised before generation
                starts, also if the model lacks the required signatures.
        """
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"`prompt` must be a non-empty str, got {prompt!r}.")
        missing = {"prefill", "decode", "tokenize", "detokenize", "is_end"} - set(self.metadata())
        if missing:
            raise InputError(f"the model cannot stream: no signature {', '.join(sorted(missing))}.")
        seed = random.getrandbits(31) if seed is None else seed
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        return stream_tokens(self.predict, prompt, max_new_tokens, settings)

    def predict(
        self, signature: str, inputs: Mapping[str, Any], timeout: float | None = None
    ) -> dict[str, np.ndarray]:
        """Call a signature.

        Args:
            signature: str, e.g. "serving_default" or "embed".
            inputs: dict of input name to array, list, number or str.
            timeout: seconds, or None for the client's `timeout`.

        Returns:
            A dict of output name to array; strings are str, with U+FFFD for invalid UTF-8.

        Raises:
            InputError: if the signature or an input does not exist, or a value is invalid.
            ServingError: if the server rejects the request or does not answer in time.
        """
        signatures = self.metadata()
        if signature not in signatures:
            raise InputError(
                f"there is no signature {signature!r}; available: {', '.join(sorted(signatures))}."
            )
        specs = signatures[signature]["inputs"]
        for name in inputs:
            if name not in specs:
                raise InputError(
                    f"signature {signature} has no input {name!r}; "
                    f"available: {', '.join(sorted(specs))}."
                )
        arrays = {
            name: tensors.as_array(name, value, specs[name]["dtype"])
            for name, value in inputs.items()
        }
        try:
            outputs = self._call(
                lambda left: self._connection.predict(
                    signature, signatures[signature], arrays, left
                ),
                timeout,
            )
        except ServingError as error:
            if error.code == "INVALID_ARGUMENT":
                self._signatures = None  # a new version may have other inputs
            raise
        return {name: _decoded(array) for name, array in outputs.items()}

    def metadata(self) -> JSON:
        """Return the signatures of the model, which are requested once and cached.

        Returns:
            A dict of signature name to {"inputs": ..., "outputs": ...}, each a dict of name to
            {"dtype": number of a DataType, "shape": list with None for any size}.

        Raises:
            ServingError: if the server rejects the request or does not answer in time.
        """
        if self._signatures is None:
            self._signatures = self._call(self._connection.metadata)
        return self._signatures

    def status(self) -> list[JSON]:
        """Return the versions of the model on the server.

        Returns:
            A list of {"version": int, "state": str, "error": str}, newest first; a version that
            is ready has the state "AVAILABLE".

        Raises:
            ServingError: if the server rejects the request or does not answer in time.
        """
        return self._call(self._connection.status)

    def _complete(self, signature, settings, others):
        """Return settings for all inputs of a signature except `others`.

        Settings that the signature does not have must have their default value.
        """
        signatures = self.metadata()
        if signature not in signatures:
            raise InputError(f"the model has no signature {signature!r}.")
        names = [name for name in signatures[signature]["inputs"] if name not in others]
        for name, value in settings.items():
            is_off = name in _OFF and isinstance(value, numbers.Real) and value == _OFF[name]
            if name not in names and not is_off:
                raise InputError(
                    f"unknown setting `{name}`; available: {', '.join(sorted(names))}."
                )
        complete = {}
        for name in names:
            if name not in settings and name not in _OFF:
                raise InputError(f"`{name}` is required for this model.")
            complete[name] = settings.get(name, _OFF.get(name))
        return complete

    def _in_parts(self, signature, inputs, rows, batch_size, timeout):
        if not _is_int(batch_size) or batch_size < 1:
            raise InputError(f"`batch_size` must be an int > 0, got {batch_size!r}.")
        columns = {}
        for name, value in inputs.items():
            is_list = isinstance(value, (list, tuple, np.ndarray))
            column = list(value) if is_list else [value]
            if len(column) not in (1, rows):
                raise InputError(
                    f"`{name}` must be one value or {rows} values, one for each row; got "
                    f"{len(column)}."
                )
            columns[name] = column
        parts = []
        for begin in range(0, rows, batch_size):
            part = {
                name: column[begin : begin + batch_size] if len(column) == rows else column
                for name, column in columns.items()
            }
            parts.append(self.predict(signature, part, timeout))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _call(self, function, timeout=None):
        """Call a function with the remaining seconds; retry if the server is unavailable."""
        if timeout is not None:
            _check_positive("timeout", timeout)
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        for attempt in itertools.count():
            if self._is_closed:
                raise InputError("the client is closed.")
            try:
                return function(max(0.001, end - time.monotonic()))
            except ServingError as error:
                if error.code != "UNAVAILABLE" or attempt == self._retries:
                    raise
                # Add jitter, so that many clients do not retry at the same time.
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1)
                if time.monotonic() + pause >= end:
                    raise
                time.sleep(pause)


def _texts(name, texts):
    rows = [texts] if isinstance(texts, str) else texts
    if not isinstance(rows, (list, tuple)) or not rows:
        raise InputError(f"`{name}` must be a str or a non-empty list of str, got {texts!r}.")
    for text in rows:
        if not isinstance(text, str) or not text:
            raise InputError(f"`{name}` must be a list of non-empty str, got {text!r}.")
    return list(rows)


def _decoded(array):
    if array.dtype != object:
        return array
    texts = np.empty(array.shape, object)
    for index, value in np.ndenumerate(array):
        texts[index] = value.decode("utf-8", "replace")
    return texts


def _python(value):
    return value.item() if isinstance(value, np.generic) else value


def _is_int(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_positive(name, value):
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 < value < 1e6:
        raise InputError(f"`{name}` must be a number of seconds > 0, got {value!r}.")
