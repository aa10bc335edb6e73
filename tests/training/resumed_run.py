"""Small training runs, each a process of its own, for test_resume.py.

Arguments: how many epochs a run has; then three for each run: folder of the checkpoints, file for
the outcome, and when the process kills itself with SIGKILL: "never", "step:N" after the N-th step
that it does, "after:N:SECONDS" so long after it, "save:N:SHARE" inside its N-th save, when that
share of the file is written, or "evaluation". The runs come one after the other, forked from a
process that has imported everything and computed nothing. Prints their exit codes.
"""

import hashlib
import io
import json
import os
import signal
import sys
import threading

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import keras
import numpy as np

from keras_llm import data, models, training
from keras_llm.training import tensorflow  # noqa: F401, before the runs fork

STEPS = 7


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class Killer(keras.callbacks.Callback):
    def __init__(self, moment):
        super().__init__()
        self.kind, *numbers = moment.split(":")
        self.numbers = [float(number) for number in numbers]
        if self.kind == "save":
            self.die_in_save(*self.numbers)
        self.steps = 0

    def die_in_save(self, count, share):
        write, saves = np.savez, []

        def savez(file, **arrays):
            saves.append(file)
            if len(saves) < count:
                return write(file, **arrays)
            whole = io.BytesIO()
            write(whole, **arrays)
            file.write(whole.getvalue()[: int(share * len(whole.getvalue()))])
            file.flush()
            die()

        np.savez = savez

    def on_train_batch_end(self, batch, logs=None):
        if getattr(self.model, "is_replaying", False):
            return
        self.steps += 1
        if self.kind in ("step", "after") and self.steps == self.numbers[0]:
            if self.kind == "step":
                die()
            threading.Timer(self.numbers[1], die).start()

    def on_test_begin(self, logs=None):
        if self.kind == "evaluation":
            die()


def main(epochs, folder, outcome, moment):
    keras.utils.set_random_seed(0)
    config = models.preset("llama-tiny", vocabulary_size=61, dropout=0.2, num_layers=1)
    trainer = training.LanguageModelTrainer(models.causal_lm(config), ignore_id=0)
    schedule = keras.optimizers.schedules.CosineDecay(1e-2, STEPS * epochs)
    trainer.compile(
        keras.optimizers.AdamW(schedule, global_clipnorm=1.0, use_ema=True), jit_compile=False
    )
    ids = np.random.default_rng(0).integers(2, 61, 12 * 4 * STEPS + 1).astype("int32")

    def batches(start):
        return data.packed_dataset(
            ids, 12, 4, bos_id=1, pad_id=0, epochs=epochs, seed=5, start=start
        )

    stop = keras.callbacks.EarlyStopping(patience=99)
    resume = training.Resume(folder, every=2, callbacks=[stop])
    history = trainer.fit(
        resume.data(batches),
        steps_per_epoch=STEPS,
        epochs=epochs,
        shuffle=False,
        validation_data=batches(0).take(2),
        verbose=0,
        callbacks=[stop, resume, *([] if moment == "never" else [Killer(moment)])],
    ).history
    assert history == resume.history
    values = {v.path: v for v in [*trainer.variables, *trainer.optimizer.variables]}
    hashes = {
        name: hashlib.sha256(np.asarray(value).tobytes()).hexdigest()
        for name, value in sorted(values.items())
    }
    with open(outcome, "w") as file:
        json.dump({"hashes": hashes, "history": history, "best": float(stop.best)}, file)


def in_child(*arguments):
    child = os.fork()
    if not child:
        main(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    epochs = int(sys.argv[1])
    runs = [sys.argv[i : i + 3] for i in range(2, len(sys.argv), 3)]
    print(json.dumps([in_child(epochs, *arguments) for arguments in runs]))
