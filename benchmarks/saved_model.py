"""Compare SavedModels of one model, with and without XLA and quantization: size, parity, speed.

python benchmarks/saved_model.py RUN [--tokens 128] [--rounds 5]
"""

import argparse
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

WAYS = {
    "plain": {},
    "xla": {"xla": True},
    "float16": {"weights": "float16"},
    "int8": {"weights": "int8"},
    "int8, xla": {"weights": "int8", "xla": True},
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("run", help="folder of a trained TextGeneration")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    options = parser.parse_args()

    import keras_llm
    from keras_llm import export

    task = keras_llm.load(options.run)
    rates = "".join(f" tokens/s, batch {rows} | first, s |" for rows in options.batches)
    print(f"| SavedModel | MB | KL, nats | greedy text |{rates}")
    print("|---" * (4 + 2 * len(options.batches)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, how) in enumerate(WAYS.items(), 1):
            report = export.saved_model(task, folder, version=index, **how)
            row = [
                name,
                f"{report['bytes']['total'] / 1e6:.1f}",
                f"{report['parity']['mean_kl_divergence_nats']:.2g}",
                "equal" if report["parity"]["greedy_texts_equal"] else "differs",
            ]
            for rows in options.batches:
                row += measure(pathlib.Path(folder) / str(index), rows, options)
            print("| " + " | ".join(row) + " |", flush=True)


def measure(path, rows, options):
    """Return the best tokens per second of several rounds, and the seconds of the first call."""
    import tensorflow as tf
    import tensorflow_text  # noqa: F401, registers its ops

    serve = tf.saved_model.load(str(path)).signatures["generate"]
    inputs = {
        "prompt": tf.constant(["The story begins with"] * rows),
        "max_new_tokens": tf.constant([options.tokens]),
        "temperature": tf.constant([1.0]),
        "top_k": tf.constant([0]),
        "top_p": tf.constant([1.0]),
        "seed": tf.range(rows),
    }
    begin = time.perf_counter()
    serve(**inputs)
    first = time.perf_counter() - begin
    rates = []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        count = int(tf.reduce_sum(serve(**inputs)["num_tokens"]))
        rates.append(count / (time.perf_counter() - begin))
    return [f"{max(rates):,.0f}", f"{first:.1f}"]


if __name__ == "__main__":
    main()
