"""Measure throughput and latency of the local server: gRPC and REST, with and without batching.

    python benchmarks/serving.py --page docs/serving_benchmark.md

The server `keras-llm serve` and each client run in separate processes on the same machine. Without
--base_path the benchmark uses the preset `llama-3m` with random weights, which costs as much
compute as a trained model.
"""

import argparse
import multiprocessing
import os
import pathlib
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
PROMPTS = ["The import statement", "A class definition", "Names refer to objects", "Python"]


def make_model(folder):
    """Write a SavedModel with random weights in TensorFlow Serving's folder layout."""
    import pydoc_data.topics

    import keras_llm
    from keras_llm import models, tokenizers
    from keras_llm.export.saved_model.signatures import TextGenerationModule, save

    tokenizer = tokenizers.SentencePiece.train(
        list(pydoc_data.topics.topics.values()), vocabulary_size=2000, model_type="bpe"
    )
    model = models.causal_lm(models.preset("llama-3m", vocabulary_size=2000))
    folder.mkdir(parents=True)
    save(TextGenerationModule(keras_llm.TextGeneration(model, tokenizer)), folder / "1")


def ask(target, model, tokens, seconds, index, ready, go, answers):
    """Run a client that sends requests without a pause and returns its latencies and errors."""
    from keras_llm import export

    latencies, errors = [], 0
    with export.Client(target, model, retries=0, timeout=120) as client:
        prompt = PROMPTS[index % len(PROMPTS)]
        client.generate(prompt, tokens, temperature=0.0)
        ready.release()
        go.wait()
        end = time.monotonic() + seconds
        while (begin := time.monotonic()) < end:
            try:
                details = client.generate(prompt, tokens, temperature=1.0, return_details=True)
                latencies.append((time.monotonic() - begin, details["num_tokens"]))
            except Exception:
                errors += 1
    answers.put((latencies, errors))


def measure(base_path, protocol, batching, clients, tokens, seconds):
    """Measure one row of the table and return it as a dict."""
    ports = [free_port(), free_port()]
    command = [sys.executable, "-m", "keras_llm", "serve", str(base_path)]
    command += ["--port", str(ports[0]), "--rest_api_port", str(ports[1])]
    server = subprocess.Popen(
        command + (["--enable_batching"] if batching else []), stderr=subprocess.DEVNULL
    )
    model = pathlib.Path(base_path).resolve().name
    target = f"localhost:{ports[0]}" if protocol == "gRPC" else f"http://localhost:{ports[1]}"
    context = multiprocessing.get_context("spawn")
    ready, go, answers = context.Semaphore(0), context.Event(), context.Queue()
    try:
        from keras_llm import export

        with export.Client(target, model, retries=100, timeout=120) as client:
            client.status()
        processes = [
            context.Process(
                target=ask, args=(target, model, tokens, seconds, i, ready, go, answers)
            )
            for i in range(clients)
        ]
        for process in processes:
            process.start()
        for _ in processes:
            ready.acquire(timeout=300)
        go.set()
        results = [answers.get(timeout=seconds + 300) for _ in processes]
        for process in processes:
            process.join()
    finally:
        server.terminate()
        server.wait()
    latencies = sorted(latency for rows, _ in results for latency, _ in rows)
    num_tokens = sum(count for rows, _ in results for _, count in rows)
    percentiles = statistics.quantiles(latencies, n=100)
    return {
        "requests/s": len(latencies) / seconds,
        "tokens/s": num_tokens / seconds,
        "p50 ms": percentiles[49] * 1000,
        "p99 ms": percentiles[98] * 1000,
        "failed": sum(errors for _, errors in results),
    }


def free_port():
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def main():
    """Measure, print the table and optionally write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base_path", help="folder of a served text generation model")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--page", help="write the table as Markdown to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base_path = options.base_path
        if base_path is None:
            base_path = pathlib.Path(folder) / "llama_3m"
            make_model(base_path)
        lines = [
            "| clients | protocol | batches | requests/s | tokens/s | p50 ms | p99 ms | failed |"
        ]
        lines.append("|---|---|---|---|---|---|---|---|")
        for clients in options.clients:
            for protocol in ("gRPC", "REST"):
                for batching in (False, True):
                    row = measure(
                        base_path, protocol, batching, clients, options.tokens, options.seconds
                    )
                    cells = [clients, protocol, "on" if batching else "off"]
                    cells += [f"{row[name]:,.1f}" for name in list(row)[:4]] + [row["failed"]]
                    lines.append(f"| {' | '.join(map(str, cells))} |")
                    print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(table)
    if options.page:
        what = options.base_path or "preset `llama-3m`, random weights"
        pathlib.Path(options.page).write_text(
            "# Local server benchmark\n\n"
            "Written by `python benchmarks/serving.py --page docs/serving_benchmark.md`: "
            f"{what}, {options.tokens} new\ntokens per request, {options.seconds:.0f} s per row. "
            f"Server and clients share {os.cpu_count()} cores ({platform.machine()}); the clients "
            "are processes that send\nrequests without a pause. This is the development server. "
            "TensorFlow Serving, which runs the same graph without Python,\nwas not available.\n\n"
            f"{table}\n",
            "utf-8",
        )


if __name__ == "__main__":
    main()
