"""Training runs on several devices, each a process of its own, for test_distribution.py and for
test_workers.py in tests/scale.

Reads a JSON list of cases from stdin, which come one after the other: name of a function below,
folder, and how many workers run it at the same time, 0 for a process without others. They are
forked from a process that has imported everything and computed nothing. Each leaves
`<folder>/<name>.json` or `<folder>/<name>_<worker>.json`. Prints the exit codes of each case.
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
from keras_llm.training import tensorflow  # noqa: F401, before the runs fork

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
    """Eight steps: two passes of three batches of 8 rows and one of 5, of uneven weight. One device
    does them eagerly, which takes less than tracing them."""
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=61, num_layers=1))
        trainer = training.LanguageModelTrainer(model, ignore_id=0, z_loss=1e-3)
        trainer.compile(OPTIMIZERS["AdamW"](), jit_compile=False, run_eagerly=strategy is None)
    r = np.random.default_rng(0)
    ids = r.integers(1, 61, (29, 13))
    targets = ids[:, 1:].copy()
    for row in targets:
        row[r.integers(1, 12) :] = 0
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


def words():
    """Means of words of three classes, for the other optimizers: rows of an embedding that have a
    gradient, matrices and vectors."""
    normal = keras.initializers.RandomNormal(stddev=1.0)
    parts = [
        keras.Input((12,), dtype="int32"),
        keras.layers.Embedding(61, 16, embeddings_initializer=normal),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(16, activation="tanh"),
        keras.layers.Dense(3),
    ]
    r = np.random.default_rng(0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = training.Trainer(keras.Sequential(parts))
    return trainer, r.integers(1, 61, (29, 12)), r.integers(0, 3, 29), None, {"loss": loss}


def classes():
    """Texts of three classes, for `Trainer`."""
    config = models.preset("encoder-tiny", vocabulary_size=61, dropout=0.0, num_layers=1)
    trainer = training.Trainer(models.text_classifier(config, 3, dropout=0.0))
    r = np.random.default_rng(0)
    lengths = r.integers(2, 13, (29, 1))
    inputs = {"token_ids": r.integers(1, 61, (29, 12)), "padding_mask": np.arange(12) < lengths}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return trainer, inputs, r.integers(0, 3, 29), None, {"loss": loss, "metrics": ["accuracy"]}


def pairs():
    """Pairs of answers, for `PreferenceTrainer`."""
    config = models.preset("llama-tiny", vocabulary_size=61, num_layers=1)
    trainer = training.PreferenceTrainer(models.causal_lm(config), training.DPO(0.5))
    r = np.random.default_rng(0)
    ids = r.integers(1, 61, (29, 2, 13))
    inputs = {"token_ids": ids[..., :-1], "reference": r.normal(-50, 1, (29, 2)).astype("float32")}
    weights = (np.arange(12) < r.integers(2, 13, (29, 2, 1))).astype("float32")
    return trainer, inputs, ids[..., 1:], weights, {}


def sentences():
    """Hidden words and following passages, for `SentencePairTrainer`."""
    config = models.preset("bert-tiny", vocabulary_size=61, dropout=0.0, num_layers=1)
    encoder = models.encoder(config)
    trainer = training.SentencePairTrainer(
        models.masked_lm(encoder), models.next_sentence(encoder), ignore_id=0
    )
    r = np.random.default_rng(0)
    inputs = {
        "token_ids": r.integers(1, 61, (29, 12)),
        "padding_mask": np.ones((29, 12), "bool"),
        "segment_ids": (np.arange(12) >= r.integers(3, 9, (29, 1))).astype("int32"),
        "mask_positions": r.integers(0, 12, (29, 3)),
    }
    targets = r.integers(0, 61, (29, 3))
    return trainer, inputs, {"tokens": targets, "next_sentence": r.integers(0, 2, 29)}, None, {}


OTHERS = {"Lion": words, "Muon": words, "classes": classes, "pairs": pairs, "sentences": sentences}


def fit_other(strategy, name):
    """As `fit`, of another kind of training."""
    keras.utils.set_random_seed(0)
    with strategy.scope() if strategy else contextlib.nullcontext():
        trainer, x, y, weights, compiled = OTHERS[name]()
        clipped = training.AdamW(1e-2, global_clipnorm=0.1)
        optimizer = OPTIMIZERS[name]() if name in OPTIMIZERS else clipped
        # The bias of a head for hidden tokens is learned in a graph alone.
        eagerly = strategy is None and name != "sentences"
        trainer.compile(optimizer, **compiled, jit_compile=False, run_eagerly=eagerly)
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
            found = training.log_probabilities(trainer.model, examples, batch_size=8)
        history["log_probabilities"] = found.tolist()
    norm = float(keras.ops.convert_to_numpy(trainer.optimizer.gradient_norm))
    weights = [np.asarray(w).tolist() for w in trainer.trained.get_weights()]
    return {"weights": weights, "history": history, "gradient_norm": norm}


def all_kinds(strategy):
    return {"AdamW": fit(strategy)} | {name: fit_other(strategy, name) for name in OTHERS}


def one():
    return all_kinds(None)


def mirrored():
    return all_kinds(two_devices())


def worker(index, *addresses):
    return {"AdamW": fit(workers(index, addresses))}


def workers(index, addresses):
    tell_workers(index, addresses)
    training.set_distribution("multi_worker")
    return tf.distribute.get_strategy()


def tell_workers(index, addresses):
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    os.environ["TF_CONFIG"] = json.dumps(config)


def plain(strategy, rows):
    """Keras's own model, trainer and clipping: the weights after a step, or how it failed."""
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
    return {"one": plain(None, 4), "even": plain(strategy, 4), "uneven": plain(strategy, 3)}


def keras_worker(index, *addresses):
    return plain(workers(index, addresses), 4)


def refused():
    """What is told of each thing that is not right on two replicas."""
    told = {}
    with two_devices().scope():
        model = models.causal_lm(models.preset("llama-tiny", num_layers=1))
        experts = models.causal_lm(models.preset("llama-tiny", num_layers=1, num_experts=2))
        ids = np.ones((4, 9), "int32")

        def refuse(name, function):
            try:
                function()
            except InputError as error:
                told[name] = str(error)
            else:
                told[name] = None

        def compiled(optimizer, model=model, **arguments):
            trainer = training.LanguageModelTrainer(model)
            trainer.compile(optimizer, **arguments)
            return trainer

        def endless():
            batches = tf.data.Dataset.from_tensor_slices((ids, ids)).batch(2)
            compiled("sgd").fit(batches.filter(lambda *_: True), verbose=0)

        sgd = keras.optimizers.SGD
        refuse("clipping", lambda: compiled(sgd(global_clipnorm=1.0)))
        refuse("accumulation", lambda: compiled(sgd(gradient_accumulation_steps=2)))
        scaled = keras.optimizers.LossScaleOptimizer(training.AdamW())
        refuse("float16", lambda: compiled(scaled))
        refuse("jit_compile", lambda: compiled("sgd", jit_compile=True))
        refuse("steps_per_execution", lambda: compiled("sgd", steps_per_execution=2))
        refuse("length", endless)
        refuse("losses", lambda: compiled("sgd", experts).fit(ids, ids, verbose=0))
        refuse("sum", lambda: compiled("sgd", loss=keras.losses.MeanSquaredError("sum")))
        refuse("others", lambda: training.ContrastiveLoss()(np.arange(2), np.ones((2, 2, 3))))
        refuse("none", lambda: compiled(sgd()))
    return told


class Kill(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) == self.step:
            pathlib.Path("killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


def resumed(index, *addresses, kill_at=None):
    """A worker of a run with checkpoints, which kills itself after a step or not at all."""
    keras.utils.set_random_seed(0)
    with workers(index, addresses).scope():
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
    return bits_of(trainer, resume)


class Stop(keras.callbacks.Callback):
    """Ends a training by an error after a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) == self.step:
            raise InterruptedError


def resumed_on_replicas():
    """On two replicas, a run with checkpoints that was not interrupted and one that was."""
    strategy = two_devices()
    rows = np.random.default_rng(0).normal(size=(5 * STEPS * EPOCHS, 3)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((rows[:, :2], rows[:, 2:])).batch(5)

    def train(folder, *callbacks):
        keras.backend.clear_session()  # which counts the names of optimizers
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
            resume._writer.shutdown()  # a process that ends does not write on
        return bits_of(trainer, resume)

    found = {"whole": train("whole")}
    with contextlib.suppress(InterruptedError):
        train("parts", Stop(9))
    found["step"] = training.Resume("parts").step
    return found | {"parts": train("parts")}


def bits_of(trainer, resume):
    values = {v.path: v for v in [*trainer.variables, *trainer.optimizer.variables]}
    hashes = {
        name: hashlib.sha256(np.asarray(keras.ops.convert_to_numpy(value)).tobytes()).hexdigest()
        for name, value in sorted(values.items())
    }
    return {"hashes": hashes, "history": resume.history}


def killed(index, *addresses):
    return resumed(index, *addresses, kill_at=8 if index == 1 else None)


def without_folder(index, *addresses):
    """Worker 1 looks for the checkpoints elsewhere."""
    if index == 1:
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")
    return resumed(index, *addresses)


def recipe(index, *addresses):
    """A worker of `keras-llm train` on the texts of its folder; the exit code."""
    tell_workers(index, addresses)
    return trained_recipe("multi_worker")


def mirrored_recipe():
    two_devices()  # of which `mirrored` finds both
    return trained_recipe("mirrored")


def trained_recipe(distribution):
    from keras_llm import cli

    command = "train text_generation --smoke --out model --data texts --max-megabytes 0.1 --json"
    try:
        return cli.main([*command.split(), "--distribution", distribution])
    except SystemExit as done:
        return f"exit {done.code}"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
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
    os._exit(0)  # without the barriers of a cluster that ends as planned


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
        each = [(i, *addresses) for i in range(count)] or [()]
        children = [in_child(name, folder, *arguments) for arguments in each]
        codes.append([os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children])
    print(json.dumps(codes))
