"""The client: what a caller gives turned into named arrays, and what comes back into text."""

import itertools
import numbers
import random
import time

import numpy as np

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving import tensors
from keras_llm.export.serving.client.connection import Route, connect
from keras_llm.export.serving.client.stream import stream_tokens
from keras_llm.sampling_settings import DEFAULTS, MAX_NEW_TOKENS

# What a setting is when the caller leaves it out.
_OFF = {"max_new_tokens": MAX_NEW_TOKENS, **DEFAULTS}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0  # seconds between tries


class Client:
    """Asks a server for what a model does.

    It may be used by several threads at a time. Answers that never came because the server could
    not be reached or said UNAVAILABLE are asked for again, after pauses that double from 0.1 s to
    2 s; no other error is retried.

    Args:
        target: str. "host:port" for gRPC, or "http://host:port" (or https) for REST.
        model: str, name of the model.
        version: int, or None for the newest that is loaded.
        label: str, a name of a version; or None. Not together with `version`.
        timeout: float, seconds that a call may take, retries and all. The server drops requests
            whose time is over.
        retries: int, how often to ask again.
        headers: dict of str to str, sent with every request: gRPC metadata, or HTTP headers.
        tls: bool. Encrypt gRPC; certificates imply it.
        root_certificates: path of a PEM file that the server's certificate is checked with, or
            None for those of the system.
        client_certificate, client_key: paths of PEM files, for servers that ask for them.

    Raises:
        InputError: naming the argument that cannot be used.

    Example:
        client = export.Client("localhost:8500", model="stories")
        client.generate(["Once upon a time"], max_new_tokens=50)
    """

    def __init__(
        self,
        target,
        model,
        version=None,
        label=None,
        timeout=60.0,
        retries=5,
        headers=None,
        tls=False,
        root_certificates=None,
        client_certificate=None,
        client_key=None,
    ):
        if not isinstance(model, str) or not model or set(model) & set("/:"):
            raise InputError(f"`model` must be a name without / and :, got {model!r}.")
        if version is not None and label is not None:
            raise InputError("give `version` or `label`, not both.")
        if version is not None and (not _is_int(version) or version < 0):
            raise InputError(f"`version` must be an int >= 0, got {version!r}.")
        _check_positive("timeout", timeout)
        if not _is_int(retries) or retries < 0:
            raise InputError(f"`retries` must be an int >= 0, got {retries!r}.")
        self._timeout = timeout
        self._retries = retries
        self._signatures = None
        self._connection = connect(
            target,
            Route(model, version, label),
            dict(headers or {}),
            tls,
            root_certificates,
            client_certificate,
            client_key,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """End the connections."""
        self._connection.close()

    def generate(
        self,
        prompts,
        max_new_tokens=64,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        seed=None,
        return_details=False,
        batch_size=32,
        timeout=None,
        parse_special=False,
        **settings,
    ):
        """Continue one text or several.

        Args:
            prompts: str, or list of str.
            max_new_tokens, temperature, top_k, top_p, seed: as of `keras_llm.TextGeneration`; each
                a number, or a list with one for each prompt. `seed` None takes fresh ones.
            return_details: bool. Return a dict for each text, with all outputs of the signature:
                `text`, `num_tokens`, `log_probability`, `finish_reason` and more.
            batch_size: int. Longer lists are sent in parts of so many prompts.
            timeout: seconds for each part; None for the client's.
            parse_special: bool. The prompts are rendered conversations, which spell out special
                tokens, for the model's signature `chat`.
            **settings: other inputs of the model's signature `generate`, or else of its
                `generate_extended`: `min_p`, `repetition_penalty` and more.

        Returns:
            The new text, a str for a str and a list for a list.

        Raises:
            InputError: naming the argument that is wrong.
            ServingError: if the server refuses, or gives no answer in time.
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
        known = self.metadata()
        if not parse_special and "generate_extended" in known:
            is_plain = set(settings) <= set(known.get("generate", {}).get("inputs", ()))
            signature = "generate" if is_plain else "generate_extended"
        inputs = {"prompt": rows, **self._complete(signature, settings, ["prompt"])}
        outputs = self._in_parts(signature, inputs, len(rows), batch_size, timeout)
        if return_details:
            results = [{k: _python(v[row]) for k, v in outputs.items()} for row in range(len(rows))]
        else:
            results = outputs["text"].tolist()
        return results[0] if isinstance(prompts, str) else results

    def score(self, texts, batch_size=32, timeout=None):
        """Log-likelihood of texts, in nats: a float for a str and a list for a list.

        Args:
            texts: str, or list of str.
            batch_size: int. Longer lists are sent in parts of so many texts.
            timeout: seconds for each part; None for the client's.

        Raises:
            InputError, ServingError: as of `generate`.
        """
        rows = _texts("texts", texts)
        outputs = self._in_parts("score", {"text": rows}, len(rows), batch_size, timeout)
        scores = outputs["log_probability"].tolist()
        return scores[0] if isinstance(texts, str) else scores

    def stream(self, prompt, max_new_tokens=64, temperature=1.0, top_k=0, top_p=1.0, seed=None):
        """Continue one text, piece by piece, by the signatures `prefill` and `decode`.

        The cache of keys and values travels to the server and back with every token, since a
        server keeps nothing between requests: that costs bytes, where `generate` sends text alone.

        Args:
            prompt: str.
            max_new_tokens, temperature, top_k, top_p, seed: as of `generate`, numbers. Prompt and
                new tokens together must fit the model's `max_length`.

        Returns:
            A generator of str. Joined, the pieces are what `generate` gives for the same seed; a
            piece never ends inside a character.

        Raises:
            InputError, ServingError: as of `generate`; the first before anything is generated if
                the model has no such signatures.
        """
        if not isinstance(prompt, str) or not prompt:
            raise InputError(f"`prompt` must be one str, not empty, got {prompt!r}.")
        missing = {"prefill", "decode", "tokenize", "detokenize", "is_end"} - set(self.metadata())
        if missing:
            raise InputError(f"the model cannot stream: no signature {', '.join(sorted(missing))}.")
        seed = random.getrandbits(31) if seed is None else seed
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        return stream_tokens(self.predict, prompt, max_new_tokens, settings)

    def predict(self, signature, inputs, timeout=None):
        """Ask for any signature.

        Args:
            signature: str, e.g. "serving_default" or "embed".
            inputs: dict of input name to array, list, number or str.
            timeout: seconds, or None for the client's.

        Returns:
            Dict of output name to array; strings are str (what is not UTF-8 is U+FFFD).

        Raises:
            InputError: if there is no such signature or input, or a value does not fit.
            ServingError: if the server refuses, or gives no answer in time.
        """
        known = self.metadata()
        if signature not in known:
            raise InputError(
                f"there is no signature {signature!r}; known: {', '.join(sorted(known))}."
            )
        specs = known[signature]["inputs"]
        for name in inputs:
            if name not in specs:
                raise InputError(
                    f"signature {signature} has no input {name!r}; "
                    f"known: {', '.join(sorted(specs))}."
                )
        arrays = {
            name: tensors.as_array(name, value, specs[name]["dtype"])
            for name, value in inputs.items()
        }
        try:
            outputs = self._call(
                lambda left: self._connection.predict(signature, known[signature], arrays, left),
                timeout,
            )
        except ServingError as error:
            if error.code == "INVALID_ARGUMENT":
                self._signatures = None  # a new version may ask for other inputs
            raise
        return {name: _decoded(array) for name, array in outputs.items()}

    def metadata(self):
        """The signatures of the model.

        Returns:
            Dict of signature name to {"inputs": ..., "outputs": ...}, each a dict of name to
            {"dtype": number of a DataType, "shape": list with None for any size}. It is asked for
            once.

        Raises:
            ServingError: if the server refuses, or gives no answer in time.
        """
        if self._signatures is None:
            self._signatures = self._call(self._connection.metadata)
        return self._signatures

    def status(self):
        """The model's versions on the server.

        Returns:
            List of {"version": int, "state": str, "error": str}, newest first; a version that
            answers is in state "AVAILABLE".

        Raises:
            ServingError: if the server refuses, or gives no answer in time.
        """
        return self._call(self._connection.status)

    def _complete(self, signature, settings, others):
        """Settings for all inputs of a signature; those that it has not must be off."""
        known = self.metadata()
        if signature not in known:
            raise InputError(f"the model has no signature {signature!r}.")
        wanted = [name for name in known[signature]["inputs"] if name not in others]
        for name, value in settings.items():
            is_off = name in _OFF and isinstance(value, numbers.Real) and value == _OFF[name]
            if name not in wanted and not is_off:
                raise InputError(f"unknown setting `{name}`; known: {', '.join(sorted(wanted))}.")
        complete = {}
        for name in wanted:
            if name not in settings and name not in _OFF:
                raise InputError(f"`{name}` must be given for this model.")
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
                    f"`{name}` must be one value or {rows}, one for each row; got {len(column)}."
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
        """Call with the seconds left, again where the server is unavailable."""
        if timeout is not None:
            _check_positive("timeout", timeout)
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        for attempt in itertools.count():
            try:
                return function(max(0.001, end - time.monotonic()))
            except ServingError as error:
                if error.code != "UNAVAILABLE" or attempt == self._retries:
                    raise
                # Half of the pause by chance, so that many clients do not come back together.
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
            raise InputError(f"`{name}` must be strs, none empty, got {text!r}.")
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
        raise InputError(f"`{name}` must be seconds > 0, got {value!r}.")
