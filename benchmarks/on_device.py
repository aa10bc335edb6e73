"""Compare SmolLM2-135M in LiteRT and llama.cpp, with the same weights on the same two cores.

    python benchmarks/on_device.py --page docs/on_device_benchmarks.md

Requires the packages of `make test-parity`. The weights of the published Q4_1 file are converted to
float32 and quantized again: by `export.litert` as int8 and int4, by llama.cpp as Q8_0, Q4_0 and
Q4_1. In each round every file runs in a separate process, one after the other; results are medians
of the rounds. Prefill and decoding are timed inside the runtime, without copying the logits out.
"""

import argparse
import ctypes
import json
import math
import os
import pathlib
import pydoc_data.topics
import statistics
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
CACHE_LENGTH, PROMPT, NEW, WINDOW = 512, 128, 64, 256
LLAMA = {"q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0", "q4_1": "MOSTLY_Q4_1"}
# files of keras_llm and llama.cpp with equal bits
PAIRS = [("int8.tflite", "q8_0.gguf"), ("int4.tflite", "q4_0.gguf"), ("int4.tflite", "q4_1.gguf")]
FILES = ["int8.tflite", "q8_0.gguf", "int4.tflite", "q4_0.gguf", "q4_1.gguf"]


def prepare_theirs(folder):
    import llama_cpp

    from keras_llm.recipes.corpora import smollm2

    float32_path = smollm2.in_float32(folder)
    for name, kind in LLAMA.items():
        if not (folder / f"{name}.gguf").is_file():
            parameters = llama_cpp.llama_model_quantize_default_params()
            parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}")
            paths = [str(path).encode() for path in (float32_path, folder / f"{name}.gguf")]
            llama_cpp.llama_model_quantize(*paths, ctypes.byref(parameters))


def prepare_ours(folder):
    from keras_llm import export
    from keras_llm.checkpoints import from_gguf
    from keras_llm.recipes.corpora import smollm2

    names = [n for n in ("int8", "int4") if not (folder / f"{n}.tflite").is_file()]
    if names or not (folder / "text.json").is_file():
        task = from_gguf(smollm2.published(folder))
        text = "\n\n".join(pydoc_data.topics.topics.values())
        (folder / "text.json").write_text(json.dumps(task.tokenizer.encode(text)))
        for name in names:
            export.litert(
                task,
                folder / f"{name}.tflite",
                quantization=name,
                cache_length=CACHE_LENGTH,
                prefill_lengths=[PROMPT],
                calibration=calibration_of(text),
            )


def calibration_of(text):
    """Return eight excerpts of the text's second half; perplexity is measured on the first."""
    half = len(text) // 2
    return [text[half + i * 20_000 :][:400] for i in range(8)]


def rows_of(folder, tokens):
    """Return windows of the text with `tokens` tokens in total."""
    ids = json.loads((folder / "text.json").read_text())
    return [ids[i : i + WINDOW] for i in range(0, tokens, WINDOW)]


def run_ours(path, threads, rows):
    import numpy as np

    from keras_llm.export import LiteRTModel
    from keras_llm.export.litert.runtime.decoder import DecoderSteps

    begin = time.perf_counter()
    runner = LiteRTModel(path, num_threads=threads)
    loaded = time.perf_counter() - begin
    decoder = DecoderSteps(runner.runtime, runner.manifest)
    nll = []
    for row in rows:
        for position, target in enumerate(row[1:]):
            logits = decoder.step(row[position], position).astype("float64")
            top = logits.max()
            nll.append(top + np.log(np.exp(logits - top).sum()) - logits[target])
    prompt = list(range(1000, 1000 + PROMPT))
    return (
        loaded,
        nll,
        timed(lambda: decoder.read(prompt), lambda i: decoder.step(1000 + i, PROMPT + i)),
    )


def run_theirs(path, threads, rows):
    import llama_cpp
    import numpy as np

    def context(logits_all):
        return llama_cpp.Llama(
            str(path),
            n_ctx=CACHE_LENGTH,
            n_batch=CACHE_LENGTH,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=logits_all,
            verbose=False,
        )

    nll = []
    if rows:
        model = context(True)
        for row in rows:
            model.reset()
            model.eval(row)
            logits = model.scores[: len(row) - 1].astype("float64")
            top = logits.max(-1, keepdims=True)
            log_z = (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[:, 0]
            nll += (log_z - logits[np.arange(len(row) - 1), row[1:]]).tolist()
        model.close()
    begin = time.perf_counter()
    model = context(False)
    loaded = time.perf_counter() - begin
    prompt = list(range(1000, 1000 + PROMPT))

    def read():
        model.reset()
        model.eval(prompt)

    return loaded, nll, timed(read, lambda i: model.eval([1000 + i]))


def timed(read, step):
    """Return the median tokens per second of prefill and of decoding."""
    read()
    reads, steps = [], []
    for _ in range(5):
        begin = time.perf_counter()
        read()
        reads.append(time.perf_counter() - begin)
    for i in range(NEW):
        begin = time.perf_counter()
        step(i)
        steps.append(time.perf_counter() - begin)
    return PROMPT / statistics.median(reads), 1 / statistics.median(steps)


def peak():
    """Return the peak resident memory of this process in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def child(path, threads, tokens):
    path = pathlib.Path(path)
    rows = rows_of(path.parent, tokens) if tokens else []
    run = run_theirs if path.suffix == ".gguf" else run_ours
    loaded, nll, (prefill, decode) = run(path, threads, rows)
    perplexity = statistics.fmean(nll) if nll else None
    print(json.dumps([loaded, prefill, decode, peak(), perplexity]))


def call(path, threads, tokens):
    command = [sys.executable, __file__, "--child", path, str(threads), str(tokens)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", default="smollm2-on-device", help="folder for model files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens to measure perplexity on")
    parser.add_argument("--page", help="Markdown file to write")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        path, threads, tokens = options.child
        return child(path, int(threads), int(tokens))
    folder = pathlib.Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    prepare_theirs(folder)
    # Run in a separate process to free the float32 model afterwards.
    program = f"import on_device, pathlib; on_device.prepare_ours(pathlib.Path({str(folder)!r}))"
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
    losses = {
        name: math.exp(call(folder / name, 2, options.tokens)[4])
        for name in [*FILES, "smollm2-f32.gguf"]
    }
    results = {}
    for _ in range(options.rounds):
        for threads in (1, 2):
            for name in FILES:
                row = call(folder / name, threads, 0)[:4]
                results.setdefault((name, threads), []).append(row)
    medians = {
        key: list(map(statistics.median, zip(*rows, strict=True))) for key, rows in results.items()
    }
    page = tables(folder, medians, losses, options)
    print(page)
    if options.page:
        pathlib.Path(options.page).write_text(page, "utf-8")


def tables(folder, medians, losses, options):
    lines = [
        "# On-device benchmarks",
        "",
        "Written by `python benchmarks/on_device.py --page docs/on_device_benchmarks.md`: "
        f"SmolLM2-135M, {options.rounds} rounds, each file in",
        f"its own process, one after the other; medians. A prompt of {PROMPT} tokens is prefilled, "
        f"then {NEW} tokens are decoded, in a",
        f"cache of {CACHE_LENGTH}. Perplexity is measured on {options.tokens} tokens of Python's "
        f"language reference in windows of {WINDOW}, with the keras_llm",
        "files balanced (SmoothQuant) on other parts of it; in float32 it is "
        f"{losses['smollm2-f32.gguf']:.3f}. LiteRT runs the `.tflite` files, llama.cpp",
        "the `.gguf` files.",
        "",
        "| file | MB | perplexity | threads | load, s | prefill, tokens/s | decode, tokens/s | "
        "peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, threads), (loaded, prefill, decode, memory) in sorted(medians.items()):
        size = (folder / name).stat().st_size / 1e6
        lines.append(
            f"| {name} | {size:.1f} | {losses[name]:.3f} | {threads} | {loaded:.2f} | "
            f"{prefill:,.0f} | {decode:.1f} | {memory / 1e6:,.0f} |"
        )
    lines += [
        "",
        "keras_llm's result divided by llama.cpp's (for perplexity, keras_llm's divided by "
        "float32's):",
        "",
        "| keras_llm | llama.cpp | threads | decode | prefill | size | peak | perplexity |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tflite, gguf in PAIRS:
        for threads in (1, 2):
            a, b = medians[tflite, threads], medians[gguf, threads]
            size = (folder / tflite).stat().st_size / (folder / gguf).stat().st_size
            loss = losses[tflite] / losses["smollm2-f32.gguf"]
            lines.append(
                f"| {tflite} | {gguf} | {threads} | {a[2] / b[2]:.2f} | {a[1] / b[1]:.2f} | "
                f"{size:.3f} | {a[3] / b[3]:.2f} | {loss:.4f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
