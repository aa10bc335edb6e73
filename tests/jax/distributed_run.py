"""Run trainings on JAX in separate processes for test_distribution.py.

Arguments: the name of a function below, and a folder, in which the result is written to
`<name>.json`.
"""

import contextlib
import json
import pathlib
import sys

import keras
import numpy as np

from keras_llm import models, training
from keras_llm.errors import InputError

IDS = np.arange(2, 22, dtype="int32").reshape(2, 10)


def train(**changes):
    """Train for eight steps with clipping, accumulation and a smaller last batch of 6 rows."""
    keras.utils.set_random_seed(0)
    config = models.preset("llama-tiny", vocabulary_size=300, num_layers=1, **changes)
    model = models.causal_lm(config)
    trainer = training.LanguageModelTrainer(model, ignore_id=0)
    optimizer = training.AdamW(1e-2, global_clipnorm=0.1, gradient_accumulation_steps=2)
    trainer.compile(optimizer)
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 300, (30, 13))
    targets = ids[:, 1:].copy()
    for row in targets:
        row[rng.integers(1, 12) :] = 0
    arguments = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    history = trainer.fit(ids[:, :-1], targets, **arguments).history
    return model, {
        "weights": {v.path: np.asarray(v).tolist() for v in model.variables},
        "history": history,
        "shards": {v.path: list(v.value.addressable_shards[0].data.shape) for v in model.variables},
    }


def single_device(folder):
    return train()[1]


def data(folder):
    training.set_distribution("jax_data")
    return train()[1]


def model(folder):
    """Train with a split model; save it as a task, too."""
    from keras_llm import tasks, tokenizers

    training.set_distribution("jax_model")
    trained_model, outcome = train()
    text = ["the quick brown fox jumps over the lazy dog"] * 9
    task = tasks.TextGeneration(trained_model, tokenizers.SentencePiece.train(text, 300, "bpe"))
    training.set_distribution(None)
    task.save(folder / "task")
    return {**outcome, "logits": np.asarray(trained_model(IDS)).tolist()}


def tensorflow(folder):
    """Load and export with TensorFlow the task that `model` has saved."""
    import tensorflow as tf

    import keras_llm
    from keras_llm import export

    task = keras_llm.load(folder / "task")
    export.saved_model(task, folder / "serving", version=1)
    served = tf.saved_model.load(str(folder / "serving" / "1")).signatures["serving_default"]
    answer = served(
        prompt=tf.constant(["the quick"]),
        max_new_tokens=tf.constant([12]),
        temperature=tf.constant([0.0]),
        top_p=tf.constant([1.0]),
        top_k=tf.constant([0]),
        seed=tf.constant([0]),
    )
    return {
        "weights": {v.path: np.asarray(v).tolist() for v in task.model.variables},
        "logits": np.asarray(task.model(IDS)).tolist(),
        "text": task("the quick", max_new_tokens=12, temperature=0.0),
        "served": answer["text"].numpy()[0].decode(),
    }


class Stop(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def resumed(folder):
    """Return the state of an uninterrupted run, and of one interrupted in its first epoch."""
    from keras_llm.data import packed_dataset

    ids = np.random.default_rng(0).integers(2, 61, 12 * 4 * 5 + 1).astype("int32")
    training.set_distribution("jax_data")

    resumes = []

    def fit(name, *callbacks):
        keras.backend.clear_session()  # variable paths are then those of a new process
        keras.utils.set_random_seed(0)
        config = models.preset("llama-tiny", vocabulary_size=61, num_layers=1, dropout=0.2)
        trainer = training.LanguageModelTrainer(models.causal_lm(config), ignore_id=0)
        trainer.compile(training.AdamW(1e-2, global_clipnorm=1.0))
        resume = training.Resume(folder / name, every=2)
        resumes.append(resume)
        batches = packed_dataset(ids, 12, 4, bos_id=1, pad_id=0, epochs=2, seed=5)
        trainer.fit(
            resume.data(batches),
            steps_per_epoch=5,
            epochs=2,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, resume],
        )
        values = {v.path: v for v in [*trainer.variables, *trainer.optimizer.variables]}
        bits = {path: np.asarray(value).tobytes().hex() for path, value in values.items()}
        return {"bits": bits, "history": resume.history}

    uninterrupted = fit("uninterrupted")
    with contextlib.suppress(KeyboardInterrupt):
        fit("resumed", Stop())
    resumes[-1]._writer.shutdown()  # as when a process ends
    checkpoints = sorted(path.name for path in (folder / "resumed").iterdir())
    return {"uninterrupted": uninterrupted, "resumed": fit("resumed"), "checkpoints": checkpoints}


def unsupported(folder):
    import tensorflow as tf

    training.set_distribution("jax_data")
    trainer = training.LanguageModelTrainer(models.causal_lm(models.preset("llama-tiny")))
    trainer.compile("sgd")
    ids = np.ones((6, 9), "int32")
    batches = tf.data.Dataset.from_tensor_slices((ids, ids))
    errors = []
    for function in (
        lambda: trainer.fit(ids, ids, batch_size=4, validation_data=(ids[:3], ids[:3]), verbose=0),
        lambda: trainer.fit(ids, ids, batch_size=3, verbose=0),
        lambda: trainer.fit(batches.batch(3, drop_remainder=True), verbose=0),
        lambda: trainer.evaluate(batches.batch(4), verbose=0),
        lambda: training.TensorParallel(model_devices=3),
        lambda: training.set_distribution("mirrored"),
    ):
        try:
            function()
        except InputError as error:
            errors.append(str(error))
        else:
            errors.append(None)
    return errors


if __name__ == "__main__":
    name, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    outcome = globals()[name](folder)
    (folder / f"{name}.json").write_text(json.dumps(outcome))
