"""Measure the memory, load time and speed of an exported file."""

import os
import resource
import time

import numpy as np

from keras_llm.export.children import in_fork
from keras_llm.types import JSON, PathLike

_SETTINGS = [(1, True), (2, True), (1, False), (2, False)]  # threads, XNNPACK
_SLOW_UP_TO = 64 << 20  # maximum bytes of a file that is also measured without XNNPACK
_STEPS = 16
_SECONDS = 2.0  # maximum duration of a measurement


def cost(path: PathLike) -> JSON:
    """Measure a file with several settings, each in a fork of this process.

    Call it before this process loads a runtime.

    Returns:
        A dict with `speed`, a list of rows with `threads`, `xnnpack`, `load_seconds`,
        `resident_bytes` (increase of the process's peak memory, including mapped pages of the
        file), `buffer_bytes` (the part that is not backed by the file: packed weights, arena and
        cache) and, for a generative model, `prefill_tokens_per_second` and
        `decode_tokens_per_second`, or else `calls_per_second`. Only small files have rows without
        XNNPACK, because these take minutes for a large file. For a generative model, the dict also
        has `cache_bytes_per_token` and `tokens_per_second`, the highest decoding speed.
    """
    is_small = os.path.getsize(path) <= _SLOW_UP_TO
    settings = [setting for setting in _SETTINGS if is_small or setting[1]]
    rows = [in_fork(_measure, path, threads, xnnpack)[0] for threads, xnnpack in settings]
    measured = {"speed": rows}
    if "decode_tokens_per_second" in rows[0]:
        measured["cache_bytes_per_token"] = {row.pop("cache_bytes_per_token") for row in rows}.pop()
        measured["tokens_per_second"] = max(row["decode_tokens_per_second"] for row in rows)
    return measured


def _measure(path, threads, xnnpack):
    from keras_llm.export.litert.runtime.model import LiteRTModel

    before, anonymous = _peak(), _anonymous()
    begin = time.perf_counter()
    runner = LiteRTModel(path, num_threads=threads, xnnpack=xnnpack)
    loaded = time.perf_counter() - begin
    speeds = (_head_speed if "signature" in runner.manifest else _decoder_speed)(runner)
    return {
        "threads": threads,
        "xnnpack": xnnpack,
        "load_seconds": round(loaded, 4),
        **speeds,
        "resident_bytes": _peak() - before,
        "buffer_bytes": _anonymous() - anonymous,
    }, {}


def _head_speed(runner):
    signature = runner.manifest["signature"]
    inputs = {
        name: np.ones(shape, dtype)
        for name, (dtype, shape) in runner.runtime.inputs[signature].items()
    }
    runner.runtime.run(signature, inputs)  # allocates
    seconds = _median(lambda _: runner.runtime.run(signature, inputs), _STEPS)
    return {"calls_per_second": round(1 / seconds, 1)}


def _decoder_speed(runner):
    from keras_llm.export.litert.runtime.decoder import DecoderSteps

    manifest = runner.manifest
    decoder = DecoderSteps(runner.runtime, manifest)
    if "encoder_length" in manifest:
        decoder.encode([1])
    length = min(max(manifest["prefill_lengths"]), runner.max_length - 1)
    token_ids = [1] * length
    decoder.read(token_ids)  # allocates
    prefill = _median(lambda _: decoder.read(token_ids), 2)
    decoder.step(1, length)
    steps = min(_STEPS, runner.max_length - length)
    decode = _median(lambda i: decoder.step(1, length + i), steps)
    cache = 0
    for name, (dtype, shape) in runner.runtime.inputs["decode"].items():
        if name.startswith("kv_cache_"):
            cache += dtype.itemsize * int(np.prod(shape)) // manifest["cache_slots"]
    return {
        "prefill_tokens_per_second": round(length / prefill, 1),
        "decode_tokens_per_second": round(1 / decode, 1),
        "cache_bytes_per_token": cache,
    }


def _median(call, count):
    """Call `call(0)`, `call(1)`, ..., at most `count` times within a time limit.

    Returns:
        The median seconds of a call.
    """
    times, began = [], time.perf_counter()
    for i in range(count):
        begin = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - begin)
        if time.perf_counter() - began > _SECONDS:
            break
    return float(np.median(times))


def _peak():
    """Return the peak resident memory of the process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _anonymous():
    """Return the resident memory of the process that no file backs, in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon.")
