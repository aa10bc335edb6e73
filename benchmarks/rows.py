"""Measure the cost of a 4 KiB row stride in the matrix products of a feed-forward layer.

    python benchmarks/rows.py

Uses 2048 tokens, width 256, intermediate width 1024 and float32, with oneDNN unless the environment
variable TF_ENABLE_ONEDNN_OPTS is 0. The variants take turns; results are medians of the rounds.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import tensorflow as tf

from keras_llm import layers

TOKENS, WIDTH, WIDE = 2048, 256, 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    x = tf.random.normal((TOKENS, WIDTH))
    kernel = tf.random.normal((WIDTH, WIDE))
    dy = tf.random.normal((TOKENS, WIDE))
    variants = {
        "x W": tf.function(lambda: x @ kernel),
        "dy W^T": tf.function(lambda: tf.matmul(dy, kernel, transpose_b=True)),
        **{f"x^T dy, {extra} more columns": gradient(x, dy, extra) for extra in (0, 16, 32)},
        "layer as trained": training(x, padded=True),
        "layer without padding": training(x, padded=False),
    }
    spent = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(options.rounds):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - start)
    for name, seconds in spent.items():
        print(f"{name:25s} {statistics.median(seconds) * 1e3:6.1f} ms")


def gradient(x, dy, extra):
    @tf.function
    def run():
        return tf.matmul(x, tf.pad(dy, ((0, 0), (0, extra))), transpose_a=True)[:, :WIDE]

    return run


def training(x, padded):
    """Return a function that runs forward and backward pass of the layer."""
    layer = layers.FeedForward(WIDE, "gelu_tanh")
    layer(x)
    if not padded:
        layer._is_padded_in_training = lambda width: False

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True))
        return tape.gradient(loss, [x, *(variable.value for variable in layer.trainable_variables)])

    return run


if __name__ == "__main__":
    main()
