"""Process requests from gRPC and REST: check, batch, run and count them."""

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving.server import metrics
from keras_llm.export.serving.server.batching import Batcher, BatchingParameters, rows_of
from keras_llm.export.serving.server.cancellation import Cancellation
from keras_llm.export.serving.server.models import Models
from keras_llm.export.serving.server.servable import Servable, Signature, out_of_memory
from keras_llm.export.serving.server.warmup import warm_up

_MAX_REPEATED_BYTES = 64 * 2**20  # of inputs of length 1 that apply to all rows of a request


class Core:
    """The models, batcher and metrics of a server.

    Args:
        batching: `BatchingParameters`, or None to run each request separately.
        session_config: `tf.compat.v1.ConfigProto`, or None.
        warmup: bool. Whether to run the warm-up requests of a model before it is served.
        max_text_bytes: int. Maximum total bytes of the strings of a request.
        max_texts: int. Maximum number of strings of a request.
    """

    def __init__(
        self,
        batching: BatchingParameters | None = None,
        session_config: Any = None,
        warmup: bool = True,
        max_text_bytes: int = 2**20,
        max_texts: int = 1000,
    ) -> None:
        self.metrics = metrics.Metrics()
        self.models = Models(self._load)
        self._batcher = Batcher(batching, self._observe_batch) if batching else None
        self._session_config = session_config
        self._warmup = warmup
        self._max_text_bytes = max_text_bytes
        self._max_texts = max_texts
        self._grace_end = math.inf
        self._is_aborted = False  # whether a request was canceled after the grace period

    def predict(
        self,
        servable: Servable,
        signature_name: str,
        arrays: dict[str, Any],
        wanted: Sequence[str] = (),
        deadline: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> tuple[str, dict[str, np.ndarray]]:
        """Run a signature for a request.

        Args:
            servable: `Servable` in use.
            signature_name: str; "" is the default signature.
            arrays: dict of input name to array.
            wanted: list of output names; empty for all.
            deadline: `time.monotonic()`, or None.
            cancellation: `Cancellation`, or None.

        Returns:
            The name of the signature, and a dict of output name to array.

        Raises:
            ServingError: if the request is invalid or fails.
        """
        signature = servable.signature(signature_name)
        arrays = signature.complete(arrays)
        signature.check(arrays)
        unknown = sorted(set(wanted) - set(signature.outputs))
        if unknown:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"signature {signature.name} has no output {unknown[0]!r}; "
                f"available: {', '.join(sorted(signature.outputs))}.",
            )
        outputs = self.run(servable, signature, arrays, deadline, cancellation)
        if wanted:
            outputs = {name: outputs[name] for name in wanted}
        return signature.name, outputs

    def run(
        self,
        servable: Servable,
        signature: Signature,
        arrays: dict[str, np.ndarray],
        deadline: float | None = None,
        cancellation: Cancellation | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a signature on checked arrays, in a batch if batching is enabled."""
        texts = [array for array in arrays.values() if array.dtype == object]
        size = sum(len(text) for array in texts for text in array.ravel())
        if size > self._max_text_bytes:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"the text has {size} bytes, more than `max_text_bytes` ({self._max_text_bytes}).",
            )
        count = sum(array.size for array in texts)
        if count > self._max_texts:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"{count} strings exceed `max_texts` ({self._max_texts}).",
            )
        rows = rows_of(arrays) if signature.has_batch else None
        single = [array for array in arrays.values() if rows and len(array) == 1]
        repeated = (rows or 1) * sum(array.nbytes for array in single)
        if rows != 1 and repeated > _MAX_REPEATED_BYTES:
            raise ServingError(
                "INVALID_ARGUMENT",
                f"the inputs of length 1 take {repeated} bytes for {rows} rows, more than "
                f"{_MAX_REPEATED_BYTES}.",
            )
        if self._batcher is None:
            return servable.run(signature, arrays, deadline, cancellation)
        return self._batcher.run(servable, signature, arrays, deadline, cancellation)

    @contextlib.contextmanager
    def request(self, name: str, api: str, entry: str) -> Iterator[None]:
        """Count a request and measure its latency; convert exceptions to ServingError.

        Args:
            name: str. Name of the model.
            api: "predict", "classify" or "regress".
            entry: "GRPC" or "REST".
        """
        begin, status = time.perf_counter(), "OK"
        # Count all nonexistent names as "", to bound the number of metric labels.
        model_name = name if name in self.models.names() else ""
        try:
            yield
        except ServingError as error:
            status = error.code
            raise
        except InputError as error:
            status = "INVALID_ARGUMENT"
            raise ServingError(status, str(error)) from None
        except MemoryError:
            status = "RESOURCE_EXHAUSTED"
            raise out_of_memory() from None
        except Exception as error:
            status = "INTERNAL"
            raise ServingError("INTERNAL", f"{type(error).__name__}: {error}") from error
        finally:
            if status == "CANCELLED" and time.monotonic() >= self._grace_end:
                self._is_aborted = True
            micros = (time.perf_counter() - begin) * 1e6
            self.metrics.count(metrics.REQUESTS, model_name=model_name, status=status)
            if status == "OK":
                self.metrics.observe(
                    metrics.REQUEST_LATENCY,
                    micros,
                    model_name=model_name,
                    API=api,
                    entrypoint=entry,
                )

    def start_grace_period(self, end: float) -> None:
        """Regard requests that are canceled after the time `end` as aborted by the shutdown."""
        self._grace_end = end

    def close(self, seconds: float) -> bool:
        """Wait at most `seconds` for running requests and free everything.

        Returns:
            Whether all requests have ended, and none was aborted.
        """
        if not self.models.close(seconds):
            return False
        if self._batcher is not None:
            self._batcher.close()  # its queue is empty
        return not self._is_aborted

    def _load(self, name, version, folder):
        begin, status = time.perf_counter(), "fail"
        path = str(folder)
        try:
            servable = Servable(folder, self._session_config)
            try:
                if self._warmup:
                    warm_up(servable)
            except ServingError:
                servable.close()
                raise
            status = "success"
            micros = (time.perf_counter() - begin) * 1e6
            self.metrics.observe(metrics.LOAD_LATENCY, micros, model_path=path)
            return servable
        finally:
            self.metrics.count(metrics.LOADS, model_path=path, status=status)

    def _observe_batch(self, waits, rows):
        for seconds in waits:
            self.metrics.observe(metrics.QUEUING_LATENCY, seconds * 1e6)
        self.metrics.observe(metrics.BATCH_SIZE, rows)
