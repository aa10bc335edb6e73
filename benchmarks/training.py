"""Compare training with KerasHub's layers and PyTorch: tokens per second and peak memory.

    python benchmarks/training.py --page page.md

A GPT-style decoder (6 layers) and a BERT-style encoder (4 layers, 15 % of the tokens predicted) of
width 256, with 4 heads, feed-forward 1024, length 256, batch 8, in float32 with AdamW, on a CPU
with two threads, on random tokens. Each measurement runs in a separate process to measure its peak
resident memory; the libraries take turns in every round, with the same number of threads and the
same oneDNN setting (PyTorch always uses oneDNN). Results are medians of the rounds. "Of peak" is
the speed of the matrix products of a training step, relative to one large float32 matrix product in
TensorFlow measured in the same rounds. The environment is that of `make test-parity`.
"""

import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import training_peers as peers

THREADS = 2
CASES = (  # shape, vocabulary, oneDNN, libraries and variants
    ("gpt", 8000, True, ("keras_llm", "KerasHub", "PyTorch", "torch.compile", "tensorboard")),
    (
        *("gpt", 32000, True),
        ("keras_llm", "rematerialized", "8-bit state", "plain loss", "KerasHub", "PyTorch"),
    ),
    ("bert", 8000, True, ("keras_llm", "KerasHub", "PyTorch", "torch.compile")),
    ("gpt", 8000, False, ("keras_llm", "KerasHub")),
)
TRY = ("tiny", 100, True, ("keras_llm", "KerasHub", "tensorboard"))
PLANS = "Memory that `training.plan_memory` predicts, and memory that training added:"


def measure(peer, shape, vocabulary_size, batch_size, steps):
    """Train in this process and return the measurements."""
    before = _mib("VmRSS")
    arguments = peer, shape, vocabulary_size, batch_size, steps
    planned = None
    if peer in peers.TORCH:
        result = peers.loop(*arguments, THREADS)
    else:
        result = peers.fit(*arguments)
        if peer in ("keras_llm", "rematerialized"):
            planned = plan(*arguments[:-1])
    tokens = steps * batch_size * peers.LENGTHS[shape]
    return {
        "loss": result["loss"],
        "parameters": result["parameters"],
        "tokens_per_second": tokens / result["seconds"],
        "tokens_per_cpu_second": tokens / result["cpu_seconds"],
        "peak_mib": _mib("VmHWM"),
        "before_mib": before,
        "planned_mib": planned,
    }


def plan(peer, shape, vocabulary_size, batch_size):
    """Return the prediction of `plan_memory` in MiB, or None for unsupported models."""
    import keras

    from keras_llm import training

    if shape == "bert":
        return None
    planned = training.plan_memory(
        peers.config_of(shape, vocabulary_size),
        batch_size,
        peers.LENGTHS[shape],
        keras.optimizers.AdamW(1e-3),
        remat=peer == "rematerialized",
    )
    return {name: size / 2**20 for name, size in planned.items()}


def measure_board(shape, vocabulary_size, batch_size, steps):
    """Measure the TensorBoard callback with defaults: its share of the training's CPU time."""
    import tempfile

    import keras

    from keras_llm import training

    spent = []

    def timed(function):
        def call(*args, **kwargs):
            begin = time.thread_time()
            function(*args, **kwargs)
            spent.append(time.thread_time() - begin)

        return call

    keras.utils.set_random_seed(0)
    model, _ = peers.ours(shape, vocabulary_size)
    model.compile(training.AdamW(1e-3), jit_compile=False)
    model.fit(peers.batches(shape, vocabulary_size, batch_size, 3), verbose=0)  # traces
    with tempfile.TemporaryDirectory() as folder:
        board = training.TensorBoard(folder, batch_size * peers.LENGTHS[shape])
        for name in ("on_train_batch_begin", "on_train_batch_end", "on_epoch_end"):
            setattr(board, name, timed(getattr(board, name)))
        data = board.data(peers.batches(shape, vocabulary_size, batch_size, steps))
        begin = time.process_time()
        model.fit(data, verbose=0, callbacks=[board])
        seconds = time.process_time() - begin
    return {"cpu_seconds_per_step": seconds / steps, "of_step": sum(spent) / seconds}


def measure_matmul(size=2048, repeats=8):
    """Measure the floating-point operations per second of a float32 matrix product."""
    import tensorflow as tf

    a, b = tf.random.normal((size, size)), tf.random.normal((size, size))
    product = tf.function(lambda a, b: tf.matmul(a, b))
    product(a, b).numpy()
    begin = time.perf_counter()
    for _ in range(repeats):
        c = product(a, b)
    c.numpy()
    return {"flops": 2 * size**3 * repeats / (time.perf_counter() - begin)}


def flops_per_token(shape, vocabulary_size):
    """Return FLOPs per token of forward and backward pass: three times those of the forward."""
    row, length = peers.SHAPES[shape], peers.LENGTHS[shape]
    width = row["hidden_dim"]
    block = 2 * (4 * width * width + 2 * width * row["intermediate_dim"])
    head = 2 * width * vocabulary_size
    if shape == "bert":
        head = (head + 2 * width * width) * peers.HIDDEN / length
    return 3 * (row["num_layers"] * (block + 4 * width * length) + head)


def _mib(name):
    """Return resident memory of this process in MiB: "VmRSS" (current) or "VmHWM" (peak)."""
    status = pathlib.Path("/proc/self/status").read_text()
    row = next(line for line in status.splitlines() if line.startswith(name))
    return int(row.split()[1]) / 1024


def in_process(arguments, one_dnn):
    """Run this file in a process with other arguments and parse its output."""
    environment = {
        **os.environ,
        "TF_ENABLE_ONEDNN_OPTS": str(int(one_dnn)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--only", type=int, nargs="*", default=range(len(CASES)), help="indices of cases to run"
    )
    parser.add_argument("--tiny", action="store_true", help="use a tiny shape to test the script")
    parser.add_argument("--page", type=pathlib.Path, help="Markdown file to write")
    names = [*peers.KERAS, *peers.TORCH, "matmul", "tensorboard"]
    parser.add_argument("--one", choices=names, help="run one measurement in this process")
    parser.add_argument("--shape", choices=peers.SHAPES, default="gpt", help="shape for --one")
    parser.add_argument("--vocabulary", type=int, default=8000, help="vocabulary for --one")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure_one(options)))
        return
    rows, boards = [], []
    for shape, vocabulary, one_dnn, sides in (
        [TRY] if options.tiny else [CASES[i] for i in options.only]
    ):
        arguments = ["--shape", shape, "--vocabulary", vocabulary, "--steps", options.steps]
        arguments += ["--batch-size", options.batch_size]
        results = {name: [] for name in (*sides, "matmul")}
        for round_ in range(options.rounds):
            for name, rounds in results.items():
                rounds.append(in_process([*arguments, "--one", name], one_dnn))
                print(shape, vocabulary, one_dnn, round_, name, rounds[-1], file=sys.stderr)
        if "tensorboard" in results:
            boards += results.pop("tensorboard")
        rows += summarize(results, shape, vocabulary, one_dnn)
        page = table(rows, boards, options)
        if options.page:  # write after each case, to keep results if a later case fails
            options.page.write_text(page, "utf-8")
    print(page)


def measure_one(options):
    if options.one not in peers.TORCH:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    arguments = options.shape, options.vocabulary, options.batch_size, options.steps
    if options.one == "matmul":
        return measure_matmul()
    if options.one == "tensorboard":
        return measure_board(*arguments)
    return measure(options.one, *arguments)


def summarize(results, shape, vocabulary, one_dnn):
    """Yield a row per library: medians, and their ratios to KerasHub's."""

    def median(name, key):
        return statistics.median(result[key] for result in results[name])

    flops = flops_per_token(shape, vocabulary) / median("matmul", "flops")
    for name in results:
        if name == "matmul":
            continue
        speed, peak = median(name, "tokens_per_second"), median(name, "peak_mib")
        planned = results[name][0]["planned_mib"]
        yield {
            "case": [shape, f"{vocabulary:,}", "on" if one_dnn else "off", name],
            "speed": speed,
            "cpu_speed": median(name, "tokens_per_cpu_second"),
            "of_peak": speed * flops,
            "peak_mib": peak,
            "taken_mib": peak - median(name, "before_mib"),
            "planned_mib": planned and planned["total"],
            "speed_ratio": speed / median("KerasHub", "tokens_per_second"),
            "memory_ratio": peak / median("KerasHub", "peak_mib"),
        }


def table(rows, boards, options):
    names = ["shape", "vocabulary", "oneDNN", "", "tokens / s", "tokens / CPU s", "of peak"]
    names += ["speed / KerasHub's", "peak memory, MiB", "memory / KerasHub's"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        cells = [*row["case"], f"{row['speed']:,.0f}", f"{row['cpu_speed']:,.0f}"]
        cells += [f"{row['of_peak']:.0%}", f"{row['speed_ratio']:.2f}", f"{row['peak_mib']:,.0f}"]
        lines.append(f"| {' | '.join([*cells, format(row['memory_ratio'], '.2f')])} |")
    lines += ["", PLANS, "", "| vocabulary | | taken, MiB | planned, MiB | planned / taken |"]
    lines += ["|---" * 5 + "|"]
    for row in rows:
        if row["planned_mib"]:
            ratio = row["planned_mib"] / row["taken_mib"]
            _, vocabulary, _, name = row["case"]
            lines.append(
                f"| {vocabulary} | {name} | {row['taken_mib']:,.0f} "
                f"| {row['planned_mib']:,.0f} | {ratio:.2f} |"
            )
    text = " ".join(__doc__.split("\n\n")[2].split())
    note = " A tiny shape, to test the script." if options.tiny else ""
    board = ""
    if boards:
        share = statistics.median(row["of_step"] for row in boards)
        board = (
            f"\nThe TensorBoard callback with defaults takes {share:.2%} of a step's CPU time.\n"
        )
    only = " ".join(map(str, options.only))
    return (
        f"# Training\n\nWritten by `python benchmarks/training.py --rounds {options.rounds} "
        f"--steps {options.steps} --only {only} --page {options.page}` on "
        f"{datetime.date.today()}.{note} {text}\n\n" + "\n".join(lines) + f"\n{board}"
    )


if __name__ == "__main__":
    main()
