"""Training with `fit` beside KerasHub's layers: tokens per second and peak memory.

    python benchmarks/training.py --page docs/training_benchmark.md

A GPT-style decoder (6 layers, width 256, 4 heads, feed-forward 1024, length 256, batch 8) in
float32 with AdamW, on a CPU with two threads, on random tokens. Every measurement is a process of
its own, so that its peak of resident memory is its own; both sides take turns in every round, with
the same threads and the same setting of oneDNN. Figures are medians of the rounds. The share of the
peak is what the products of matrices in a training step would be done at, of the speed of one large
float32 matrix product that is measured in the same rounds.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

THREADS = 2
PLANS = "What `training.plan_memory` predicts, and what training took above the process before it:"
SHAPE = {
    "num_layers": 6,
    "hidden_dim": 256,
    "num_heads": 4,
    "intermediate_dim": 1024,
    "max_length": 256,
}
TINY = {
    "num_layers": 2,
    "hidden_dim": 32,
    "num_heads": 2,
    "intermediate_dim": 64,
    "max_length": 32,
}


def config_of(shape, vocabulary_size):
    from keras_llm import models

    return models.CausalLMConfig(
        vocabulary_size=vocabulary_size,
        position="learned",
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        use_bias=True,
        **shape,
    )


def ours(shape, vocabulary_size):
    from keras_llm import models, training

    model = models.causal_lm(config_of(shape, vocabulary_size))
    return training.LanguageModelTrainer(model), {}


def rematerialized(shape, vocabulary_size):
    from keras_llm import training

    trainer, arguments = ours(shape, vocabulary_size)
    training.rematerialize(trainer)
    return trainer, arguments


def keras_hub(shape, vocabulary_size):
    import keras
    import keras_hub

    token_ids = keras.Input((shape["max_length"],), dtype="int32")
    embedding = keras_hub.layers.TokenAndPositionEmbedding(
        vocabulary_size, shape["max_length"], shape["hidden_dim"]
    )
    x = embedding(token_ids)
    for _ in range(shape["num_layers"]):
        x = keras_hub.layers.TransformerDecoder(
            shape["intermediate_dim"],
            shape["num_heads"],
            activation=lambda h: keras.activations.gelu(h, approximate=True),
            normalize_first=True,
        )(x)
    x = keras.layers.LayerNormalization()(x)
    model = keras.Model(token_ids, embedding.token_embedding(x, reverse=True))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, {"loss": loss, "metrics": ["accuracy"]}


PEERS = {"keras_llm": ours, "rematerialized": rematerialized, "KerasHub": keras_hub}


def batches(shape, vocabulary_size, batch_size, steps):
    import tensorflow as tf

    def batch(index):
        size = (batch_size, shape["max_length"] + 1)
        seed = tf.stack([tf.cast(index, tf.int32), 0])
        ids = tf.random.stateless_uniform(size, seed, 0, vocabulary_size, tf.int32)
        return ids[:, :-1], ids[:, 1:]

    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.range(steps).map(batch).prefetch(2).with_options(options)


def measure_fit(peer, shape, vocabulary_size, batch_size, steps):
    """Train, in this process."""
    import keras

    from keras_llm import training

    keras.utils.set_random_seed(0)
    before = _mib("VmRSS")
    model, arguments = PEERS[peer](shape, vocabulary_size)
    model.compile(keras.optimizers.AdamW(1e-3), jit_compile=False, **arguments)
    model.fit(batches(shape, vocabulary_size, batch_size, 3), verbose=0)  # traces
    data = batches(shape, vocabulary_size, batch_size, steps)
    wall, cpu = time.perf_counter(), time.process_time()
    loss = model.fit(data, verbose=0).history["loss"][0]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    tokens = steps * batch_size * shape["max_length"]
    planned = None
    if peer != "KerasHub":
        planned = training.plan_memory(
            config_of(shape, vocabulary_size),
            batch_size,
            shape["max_length"],
            keras.optimizers.AdamW(1e-3),
            remat=peer == "rematerialized",
        )
    return {
        "loss": loss,
        "parameters": model.count_params(),
        "tokens_per_second": tokens / wall,
        "tokens_per_cpu_second": tokens / cpu,
        "peak_mib": _mib("VmHWM"),
        "before_mib": before,
        "planned_mib": planned and {name: size / 2**20 for name, size in planned.items()},
    }


def measure_board(shape, vocabulary_size, batch_size, steps):
    """What TensorBoard's callback costs at its defaults: CPU time in it, of all of the training."""
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
    model, _ = ours(shape, vocabulary_size)
    model.compile(training.AdamW(1e-3), jit_compile=False)
    model.fit(batches(shape, vocabulary_size, batch_size, 3), verbose=0)  # traces
    with tempfile.TemporaryDirectory() as folder:
        board = training.TensorBoard(folder, batch_size * shape["max_length"])
        for name in ("on_train_batch_begin", "on_train_batch_end", "on_epoch_end"):
            setattr(board, name, timed(getattr(board, name)))
        data = board.data(batches(shape, vocabulary_size, batch_size, steps))
        begin = time.process_time()
        model.fit(data, verbose=0, callbacks=[board])
        seconds = time.process_time() - begin
    return {"cpu_seconds_per_step": seconds / steps, "of_step": sum(spent) / seconds}


def measure_matmul(size=2048, repeats=8):
    """Floating point operations per second of a float32 matrix product."""
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
    """Of a forward and a backward pass: three times the forward's."""
    width, length = shape["hidden_dim"], shape["max_length"]
    block = 2 * (4 * width * width + 2 * width * shape["intermediate_dim"])
    attention = 4 * width * length
    return 3 * (shape["num_layers"] * (block + attention) + 2 * width * vocabulary_size)


def _mib(name):
    """Resident memory of this process: "VmRSS" now, "VmHWM" at its peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    row = next(line for line in status.splitlines() if line.startswith(name))
    return int(row.split()[1]) / 1024


def in_process(arguments, one_dnn):
    """Run this file with other arguments and read what it prints."""
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


def table(rows, rounds, tiny):
    names = ["vocabulary", "oneDNN", "", "tokens / s", "tokens / CPU s", "of peak"]
    names += ["peak memory, MiB", "memory / KerasHub's", "speed / KerasHub's"]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for row in rows:
        lines.append(
            f"| {row['vocabulary']:,} | {'on' if row['one_dnn'] else 'off'} | {row['peer']} "
            f"| {row['tokens_per_second']:,.0f} | {row['tokens_per_cpu_second']:,.0f} "
            f"| {row['of_peak']:.0%} | {row['peak_mib']:,.0f} | {row['memory_ratio']:.2f} "
            f"| {row['speed_ratio']:.2f} |"
        )
    lines += ["", PLANS, "", "| vocabulary | | taken, MiB | planned, MiB | planned / taken |"]
    lines += ["|---" * 5 + "|"]
    for row in rows:
        if row["planned_mib"]:
            ratio = row["planned_mib"] / row["taken_mib"]
            lines.append(
                f"| {row['vocabulary']:,} | {row['peer']} | {row['taken_mib']:,.0f} "
                f"| {row['planned_mib']:,.0f} | {ratio:.2f} |"
            )
    most = max(row["board"] for row in rows)
    lines += [
        "",
        f"TensorBoard's callback at its defaults: at most {most:.2%} of a step's CPU time.",
    ]
    text = " ".join(__doc__.split("\n\n")[2].split())
    note = " A tiny shape, to try the script." if tiny else ""
    return (
        f"# Training beside KerasHub\n\nWritten by `python benchmarks/training.py`, {rounds} "
        f"rounds.{note} {text}\n\n" + "\n".join(lines) + "\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[8000, 32000])
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, to try the script")
    parser.add_argument("--page", type=pathlib.Path, help="markdown file to write")
    parser.add_argument(
        "--one", choices=[*PEERS, "matmul", "tensorboard"], help="measure in this process alone"
    )
    options = parser.parse_args()
    shape = TINY if options.tiny else SHAPE
    if options.one:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(THREADS)
        if options.one == "matmul":
            found = measure_matmul()
        else:
            arguments = shape, options.vocabulary[0], options.batch_size, options.steps
            is_board = options.one == "tensorboard"
            found = measure_board(*arguments) if is_board else measure_fit(options.one, *arguments)
        print(json.dumps(found))
        return
    rows = []
    for vocabulary in options.vocabulary:
        for one_dnn in (True, False):
            arguments = ["--vocabulary", vocabulary, "--steps", options.steps]
            arguments += ["--batch-size", options.batch_size, *["--tiny"] * options.tiny]
            found = {name: [] for name in [*PEERS, "matmul", "tensorboard"]}
            for round_ in range(options.rounds):
                for name, results in found.items():
                    results.append(in_process([*arguments, "--one", name], one_dnn))
                    print(vocabulary, one_dnn, round_, name, results[-1], file=sys.stderr)
            rows += summarize(found, vocabulary, one_dnn, flops_per_token(shape, vocabulary))
    page = table(rows, options.rounds, options.tiny)
    print(page)
    if options.page:
        options.page.write_text(page, "utf-8")


def summarize(found, vocabulary, one_dnn, flops):
    def median(name, key):
        return statistics.median(result[key] for result in found[name])

    for name in PEERS:
        speed = median(name, "tokens_per_second")
        planned = found[name][0]["planned_mib"]
        yield {
            "vocabulary": vocabulary,
            "one_dnn": one_dnn,
            "peer": name,
            "tokens_per_second": speed,
            "tokens_per_cpu_second": median(name, "tokens_per_cpu_second"),
            "of_peak": speed * flops / median("matmul", "flops"),
            "peak_mib": median(name, "peak_mib"),
            "taken_mib": median(name, "peak_mib") - median(name, "before_mib"),
            "planned_mib": planned and planned["total"],
            "board": median("tensorboard", "of_step"),
            "memory_ratio": median(name, "peak_mib") / median("KerasHub", "peak_mib"),
            "speed_ratio": speed / median("KerasHub", "tokens_per_second"),
        }


if __name__ == "__main__":
    main()
