"""Run training on several devices for test_distribution.py and tests/scale/test_workers.py.

Reads a JSON list of cases from stdin and runs them one after the other. A case is the name of a
function below, a folder, and the number of workers that run it at the same time, or 0 for a single
process. Workers are forked from a process that has imported everything and computed nothing. Each
writes `<folder>/<name>.json` or `<folder>/<name>_<worker>.json`. Prints the exit codes.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import socket
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np
import tensorflow as tf

from keras_llm import data, models, training
from keras_llm.errors import InputError
from keras_llm.training import tensorflow  # noqa: F401, imported before forking

OPTIMIZERS = {
    "AdamW": lambda: training.AdamW(
        1e-2,
        weight_decay=0.1,
        global_clipnorm=0.1,
        gradient_accumulation_steps=2,
        use_ema=True,
        ema_overwrite_frequency=3,
    ),
    "Lion": lambda: training.Lion(1e-3, clipvalue=0.01, weight_decay=0.1),
    "Muon": lambda: training.Muon(1e-3, clipnorm=0.1, skip_factor=5.0),
}
STEPS, EPOCHS = 5, 2


def two_devices():
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def fit(strategy):
    """Train for eight steps: two epochs of three batches of 8 rows and one of 5.

    Rows have different numbers of targets. One device runs eagerly, which is faster than tracing.
    """
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=61, num_layers=1))
        trainer = training.LanguageModelTrainer(model, ignore_id=0, z_loss=1e-3)
        trainer.compile(OPTIMIZERS["AdamW"](), jit_compile=False, run_eagerly=strategy is None)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 61, (29, 13))
    targets = ids[:, 1:].copy()
    for row in targets:
        row[rng.integers(1, 12) :] = 0
    history = trainer.fit(
        ids[:, :-1],
        targets,
        batch_size=8,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=(ids[:5, :-1], targets[:5]),
    ).history
    norm = float(keras.ops.convert_to_numpy(trainer.optimizer.gradient_norm))
    return {
        "weights": [np.asarray(w).tolist() for w in model.get_weights()],
        "history": history,
        "gradient_norm": norm,
    }


def word_classifier():
    """Return a classifier of mean word embeddings, for the other optimizers.

    It has embedding rows with and without gradients, matrices and vectors.
    """
    normal = keras.initializers.RandomNormal(stddev=1.0)
    layers = [
        keras.Input((12,), dtype="int32"),
        keras.layers.Embedding(61, 16, embeddings_initializer=normal),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(3),
    ]
    rng = np.random.default_rng(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = training.Trainer(keras.Sequential(layers))
    return trainer, rng.integers(1, 61, (29, 12)), rng.integers(0, 3, 29), None, {"loss": loss}


def text_classifier():
    """Return a text classifier with three classes, for `Trainer`."""
    config = models.preset("encoder-tiny", vocabulary_size=61, dropout=0.0, num_layers=1)
    trainer = training.Trainer(models.text_classifier(config, 3, dropout=0.0))
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 13, (29, 1))
    inputs = {"token_ids": rng.integers(1, 61, (29, 12)), "padding_mask": np.arange(12) < lengths}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return trainer, inputs, rng.integers(0, 3, 29), None, {"loss": loss, "metrics": ["accuracy"]}


def preference_model():
    """Return a model with pairs of answers, for `PreferenceTrainer`."""
    config = models.preset("llama-tiny", vocabulary_size=61, num_layers=1)
    trainer = training.PreferenceTrainer(models.causal_lm(config), training.DPO(0.5))
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 61, (29, 2, 13))
    inputs = {
        "token_ids": ids[..., :-1],
        "reference": rng.normal(-50, 1, (29, 2)).astype("float32"),
    }
    weights = (np.arange(12) < rng.integers(2, 13, (29, 2, 1))).astype("float32")
    return trainer, inputs, ids[..., 1:], weights, {}


def sentence_pair_model():
    """Return masked-LM and next-sentence heads, for `SentencePairTrainer`."""
    config = models.preset("bert-tiny", vocabulary_size=61, dropout=0.0, num_layers=1)
    encoder = models.encoder(config)
    trainer = training.SentencePairTrainer(
        models.masked_lm(encoder), models.next_sentence(encoder), ignore_id=0
    )
    rng = np.random.default_rng(0)
    inputs = {
        "token_ids": rng.integers(1, 61, (29, 12)),
        "padding_mask": np.ones((29, 12), "bool"),
        "segment_ids": (np.arange(12) >= rng.integers(3, 9, (29, 1))).astype("int32"),
        "mask_positions": rng.integers(0, 12, (29, 3)),
    }
    targets = rng.integers(0, 61, (29, 3))
    return trainer, inputs, {"tokens": targets, "next_sentence": rng.integers(0, 2, 29)}, None, {}


WORDS = {"Lion": word_classifier, "Muon": word_classifier}
TASKS = {
    "classes": text_classifier,
    "pairs": preference_model,
    "sentences": sentence_pair_model,
}


def fit_kind(strategy, name):
    """Train like `fit`, with another kind of model."""
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        trainer, x, y, weights, compile_options = (WORDS | TASKS)[name]()
        default_optimizer = training.AdamW(1e-2, global_clipnorm=0.1)
        optimizer = OPTIMIZERS[name]() if name in OPTIMIZERS else default_optimizer
        # The masked-LM head's bias is trained only in a graph.
        run_eagerly = strategy is None and name != "sentences"
        trainer.compile(optimizer, **compile_options, jit_compile=False, run_eagerly=run_eagerly)
    parts = (x, y) if weights is None else (x, y, weights)
    held_out = keras.tree.map_structure(lambda array: array[:5], parts)
    history = trainer.fit(
        x,
        y,
        sample_weight=weights,
        batch_size=8,
        epochs=2,
        shuffle=False,
        verbose=0,
        validation_data=held_out,
    ).history
    if name == "pairs":
        examples = [(row.tolist(), [1] * 12) for row in x["token_ids"][:, 0]]
        with strategy.scope() if strategy else contextlib.nullcontext():
            results = training.log_probabilities(trainer.model, examples, batch_size=8)
        history["log_probabilities"] = results.tolist()
    norm = float(keras.ops.convert_to_numpy(trainer.optimizer.gradient_norm))
    weights = [np.asarray(w).tolist() for w in trainer.trained.get_weights()]
    return {"weights": weights, "history": history, "gradient_norm": norm}


def fit_optimizers(strategy):
    return {"AdamW": fit(strategy)} | {name: fit_kind(strategy, name) for name in WORDS}


def fit_tasks(strategy):
    return {name: fit_kind(strategy, name) for name in TASKS}


def single_device():
    return fit_optimizers(None)


def mirrored():
    return fit_optimizers(two_devices())


def single_device_tasks():
    return fit_tasks(None)


def mirrored_tasks():
    return fit_tasks(two_devices())


def worker(index, *addresses):
    return {"AdamW": fit(worker_strategy(index, addresses))}


def worker_strategy(index, addresses):
    set_tf_config(index, addresses)
    training.set_distribution("multi_worker")
    return tf.distribute.get_strategy()


def set_tf_config(index, addresses):
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    os.environ["TF_CONFIG"] = json.dumps(config)


def fit_keras_model(strategy, rows):
    """Train one step with Keras's own trainer and clipping; return the weights or the error."""
    with strategy.scope() if strategy else contextlib.nullcontext():
        dense = keras.layers.Dense(1, kernel_initializer="ones")
        model = keras.Sequential([keras.Input((2,)), dense])
        model.compile(keras.optimizers.SGD(1.0, global_clipnorm=0.1), "mse", jit_compile=False)
    x = np.arange(2 * rows).reshape(rows, 2).astype("float32") % 5
    try:
        model.fit(x, x[:, :1], batch_size=rows, shuffle=False, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    return model.get_weights()[0].tolist()


def keras_mirrored():
    strategy = two_devices()
    return {
        "one": fit_keras_model(None, 4),
        "even": fit_keras_model(strategy, 4),
        "uneven": fit_keras_model(strategy, 3),
    }


def keras_worker(index, *addresses):
    return fit_keras_model(worker_strategy(index, addresses), 4)


def unsupported():
    """Return the error of each option that is not supported on two replicas."""
    errors = {}
    with two_devices().scope():
        model = models.causal_lm(models.preset("llama-tiny", num_layers=1))
        experts = models.causal_lm(models.preset("llama-tiny", num_layers=1, num_experts=2))
        ids = np.ones((4, 9), "int32")

        def record_error(name, function):
            try:
                function()
            except InputError as error:
                errors[name] = str(error)
            else:
                errors[name] = None

        def compiled(optimizer, model=model, **arguments):
            trainer = training.LanguageModelTrainer(model)
            trainer.compile(optimizer, **arguments)
            return trainer

        def fit_unknown_length():
            batches = tf.data.Dataset.from_tensor_slices((ids, ids)).batch(2)
            compiled("sgd").fit(batches.filter(lambda *_: True), verbose=0)

        sgd = keras.optimizers.SGD
        record_error("clipping", lambda: compiled(sgd(global_clipnorm=1.0)))
        record_error("accumulation", lambda: compiled(sgd(gradient_accumulation_steps=2)))
        scaled = keras.optimizers.LossScaleOptimizer(training.AdamW())
        record_error("float16", lambda: compiled(scaled))
        record_error("jit_compile", lambda: compiled("sgd", jit_compile=True))
        record_error("steps_per_execution", lambda: compiled("sgd", steps_per_execution=2))
        record_error("length", fit_unknown_length)
        record_error("losses", lambda: compiled("sgd", experts).fit(ids, ids, verbose=0))
        total = keras.losses.MeanSquaredError("sum")
        record_error("sum", lambda: training.Trainer(model).compile("sgd", total))
        record_error("others", lambda: training.ContrastiveLoss()(np.arange(2), np.ones((2, 2, 3))))
        record_error("none", lambda: compiled(sgd()))
    return errors


class Kill(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) == self.step:
            pathlib.Path("killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def resumed(index, *addresses, kill_at=None):
    """Run a worker of a training with checkpoints, killed after step `kill_at` if it is given."""
    keras.utils.set_random_seed(0)
    with worker_strategy(index, addresses).scope():
        config = models.preset("llama-tiny", vocabulary_size=61, dropout=0.2, num_layers=1)
        trainer = training.LanguageModelTrainer(models.causal_lm(config), ignore_id=0)
        trainer.compile(training.AdamW(1e-2, global_clipnorm=1.0, use_ema=True), jit_compile=False)
    ids = np.random.default_rng(0).integers(2, 61, 12 * 4 * STEPS + 1).astype("int32")

    def batches(start):
        return data.packed_dataset(
            ids, 12, 4, bos_id=1, pad_id=0, epochs=EPOCHS, seed=5, start=start
        )

    resume = training.Resume("checkpoints", every=2)
    trainer.fit(
        resume.data(batches),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        shuffle=False,
        validation_data=batches(0).take(2),
        verbose=0,
        callbacks=[resume, *([Kill(kill_at)] if kill_at else [])],
    )
    return hash_state(trainer, resume)


class Stop(keras.callbacks.Callback):
    """Raise an error after a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) == self.step:
            raise InterruptedError


def resumed_on_replicas():
    """Run a training with checkpoints on two replicas, uninterrupted and interrupted."""
    strategy = two_devices()
    rows = np.random.default_rng(0).normal(size=(5 * STEPS * EPOCHS, 3)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((rows[:, :2], rows[:, 2:])).batch(5)

    def train(folder, *callbacks):
        keras.backend.clear_session()  # resets the numbering of optimizer names
        keras.utils.set_random_seed(0)
        with strategy.scope():
            layers = [keras.layers.Dense(3), keras.layers.Dropout(0.3), keras.layers.Dense(1)]
            trainer = training.Trainer(keras.Sequential([keras.Input((2,)), *layers]))
            optimizer = training.AdamW(1e-2, global_clipnorm=0.5, use_ema=True)
            trainer.compile(optimizer, "mse", metrics=["mae"], jit_compile=False)
        resume = training.Resume(folder, every=2)
        try:
            trainer.fit(
                resume.data(batches),
                steps_per_epoch=STEPS,
                epochs=EPOCHS,
                validation_data=batches.take(2),
                verbose=0,
                callbacks=[resume, *callbacks],
            )
        finally:
            resume._writer.shutdown()  # a process that ended would not write either
        return hash_state(trainer, resume)

    results = {"uninterrupted": train("uninterrupted")}
    with contextlib.suppress(InterruptedError):
        train("interrupted", Stop(9))
    results["step"] = training.Resume("interrupted").step
    return results | {"interrupted": train("interrupted")}


def hash_state(trainer, resume):
    values = {v.path: v for v in [*trainer.variables, *trainer.optimizer.variables]}
    hashes = {
        name: hashlib.sha256(np.asarray(keras.ops.convert_to_numpy(value)).tobytes()).hexdigest()
        for name, value in sorted(values.items())
    }
    return {"hashes": hashes, "history": resume.history}


def killed(index, *addresses):
    return resumed(index, *addresses, kill_at=8 if index == 1 else None)


def without_folder(index, *addresses):
    """Run with a worker 1 that looks for checkpoints in another folder."""
    if index == 1:
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")
    return resumed(index, *addresses)


def recipe(index, *addresses):
    """Run a worker of `keras-llm train` on the texts of its folder; return the exit code."""
    set_tf_config(index, addresses)
    return train_recipe("multi_worker")


def mirrored_recipe():
    two_devices()  # `mirrored` finds both
    return train_recipe("mirrored")


def train_recipe(distribution):
    from keras_llm import cli

    command = "train text_generation --smoke --out model --data texts --max-megabytes 0.1 --json"
    try:
        return cli.main([*command.split(), "--distribution", distribution])
    except SystemExit as error:
        return f"exit {error.code}"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return [f"127.0.0.1:{port}" for port in ports]


def run(name, folder, *arguments):
    os.makedirs(folder, exist_ok=True)
    path = pathlib.Path(folder).resolve() / f"{'_'.join([name, *map(str, arguments[:1])])}.json"
    os.chdir(folder)
    begin = time.monotonic()
    try:
        outcome = globals()[name](*arguments)
    except InputError as error:
        outcome = {"error": str(error)}
    path.write_text(json.dumps({"outcome": outcome, "seconds": time.monotonic() - begin}))
    os._exit(0)  # skips the barriers of a regular cluster shutdown


def in_child(name, folder, *arguments):
    child = os.fork()
    if not child:
        try:
            run(name, folder, *arguments)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(1)
    return child


if __name__ == "__main__":
    codes = []
    for name, folder, count in json.load(sys.stdin):
        addresses = free_ports(count)
        worker_arguments = [(i, *addresses) for i in range(count)] or [()]
        children = [in_child(name, folder, *arguments) for arguments in worker_arguments]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children])
    print(json.dumps(codes))
