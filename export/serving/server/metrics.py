"""Collect metrics in Prometheus text format, with the names of TensorFlow Serving.

Reference:
    Prometheus, "Exposition formats", text format 0.0.4.
"""

import bisect
import threading
from collections.abc import Iterator, Sequence
from typing import Any

_MICROSECONDS = tuple(10.0 * 2**i for i in range(24))  # 10 us .. 84 s
_ROWS = tuple(2.0**i for i in range(11))
_HELP = {
    ":tensorflow:serving:request_count": ("counter", "Requests by model and status.", ()),
    ":tensorflow:serving:request_latency": (
        "histogram",
        "Microseconds from request to answer.",
        _MICROSECONDS,
    ),
    ":tensorflow:serving:batching_session:queuing_latency": (
        "histogram",
        "Microseconds in the queue of the batcher.",
        _MICROSECONDS,
    ),
    ":tensorflow:serving:batching_session:processed_batch_size": (
        "histogram",
        "Rows of the batches that were run.",
        _ROWS,
    ),
    ":tensorflow:cc:saved_model:load_attempt_count": ("counter", "Loads by model and status.", ()),
    ":tensorflow:cc:saved_model:load_latency": (
        "histogram",
        "Microseconds of loading and warming up.",
        _MICROSECONDS,
    ),
}
REQUESTS, REQUEST_LATENCY, QUEUING_LATENCY, BATCH_SIZE, LOADS, LOAD_LATENCY = _HELP


class Metrics:
    """The counters and histograms of a server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # name -> labels -> count or _Histogram
        self._values: dict[str, dict[Any, Any]] = {name: {} for name in _HELP}

    def count(self, name: str, **labels: str) -> None:
        """Increment a counter."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[name][key] = self._values[name].get(key, 0) + 1

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            histogram = self._values[name].get(key)
            if histogram is None:
                histogram = self._values[name][key] = _Histogram(_HELP[name][2])
            histogram.add(value)

    def page(self) -> str:
        """Return the metrics in Prometheus text format."""
        lines = []
        with self._lock:
            for name, (kind, text, _) in _HELP.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                for key, value in sorted(self._values[name].items()):
                    if kind == "counter":
                        lines.append(f"{name}{_labels(key)} {value}")
                    else:
                        lines += value.lines(name, key)
        return "\n".join(lines) + "\n"


class _Histogram:
    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, key: tuple[tuple[str, str], ...]) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            shown = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f"{name}_bucket{_labels((*key, ('le', shown)))} {total}"
        yield f"{name}_sum{_labels(key)} {self._sum:g}"
        yield f"{name}_count{_labels(key)} {total}"


def _labels(key):
    def escaped(text):
        return str(text).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    pairs = ",".join(f'{name}="{escaped(value)}"' for name, value in key)
    return f"{{{pairs}}}" if key else ""
