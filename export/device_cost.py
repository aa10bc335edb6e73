"""What a file costs a device: memory, time to load, tokens per second."""

import json
import os
import resource
import time

import numpy as np

_SETTINGS = [(1, True), (2, True), (1, False), (2, False)]  # threads, XNNPACK
_STEPS = 16
_SECONDS = 2.0  # of decoding, at most, for each setting


def cost(path):
    """Measure a file in processes of their own, forked from this one.

    Call it before a runtime is loaded here.

    Returns:
        dict: `cache_bytes_per_token`; `tokens_per_second`, of decoding with the default threads
        and XNNPACK; and `speed`, a list of rows with `threads`, `xnnpack`, `load_seconds`,
        `prefill_tokens_per_second`, `decode_tokens_per_second`, `resident_bytes` (what the
        process grew by at its peak, with the file's own pages) and `buffer_bytes` (what of that
        are not pages of the file: packed weights, arena and cache).
    """
    rows = [_forked(_measure, path, threads, xnnpack) for threads, xnnpack in _SETTINGS]
    per_token = {row.pop("cache_bytes_per_token") for row in rows}
    best = max(row["decode_tokens_per_second"] for row in rows if row["xnnpack"])
    return {
        "cache_bytes_per_token": per_token.pop(),
        "tokens_per_second": best,
        "speed": rows,
    }


def _measure(path, threads, xnnpack):
    from keras_llm.export.decoder_steps import DecoderSteps
    from keras_llm.export.runner import LiteRTModel

    before, anonymous = _peak(), _anonymous()
    begin = time.perf_counter()
    runner = LiteRTModel(path, num_threads=threads, xnnpack=xnnpack)
    loaded = time.perf_counter() - begin
    decoder = DecoderSteps(runner.runtime, runner.manifest)
    length = min(max(runner.manifest["prefill_lengths"]), runner.max_length - 1)
    token_ids = [1] * length
    decoder.read(token_ids)  # allocates
    begin = time.perf_counter()
    decoder.read(token_ids)
    prefill = time.perf_counter() - begin
    decoder.step(1, length)
    times, began = [], time.perf_counter()
    room = runner.max_length - length
    for i in range(min(_STEPS, room)):
        begin = time.perf_counter()
        decoder.step(1, length + i)
        times.append(time.perf_counter() - begin)
        if time.perf_counter() - began > _SECONDS:
            break
    cache = 0
    for name, (dtype, shape) in runner.runtime.inputs["decode"].items():
        if name.startswith("kv_cache_"):
            cache += dtype.itemsize * int(np.prod(shape)) // runner.manifest["cache_slots"]
    return {
        "threads": threads,
        "xnnpack": xnnpack,
        "load_seconds": round(loaded, 4),
        "prefill_tokens_per_second": round(length / prefill, 1),
        "decode_tokens_per_second": round(1 / float(np.median(times)), 1),
        "resident_bytes": _peak() - before,
        "buffer_bytes": _anonymous() - anonymous,
        "cache_bytes_per_token": cache,
    }


def _forked(function, *arguments):
    """Call a function in a child of this process; what it returns, which must be JSON."""
    source, target = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            with os.fdopen(target, "w") as pipe:
                json.dump(function(*arguments), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(target)
    with os.fdopen(source) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"{function.__name__}{arguments} failed with status {status}.")
    return json.loads(text)


def _peak():
    """Bytes of memory that the process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _anonymous():
    """Bytes of memory of the process that no file backs."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon.")
