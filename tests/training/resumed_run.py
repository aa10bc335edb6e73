"""Run small trainings in separate processes for test_resume.py.

Arguments: the number of epochs of a run, then three arguments per run: folder of the checkpoints,
file for the outcome, and when the process kills itself with SIGKILL. That is "never", "step:N"
(after the N-th step of this process), "after:N:SECONDS" (so long after that step), "save:N:SHARE"
(within the N-th save, when that share of the file is written), or "evaluation". The runs are
executed one after the other, forked from a process that has imported everything and computed
nothing. Prints their exit codes.
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
from keras_llm.training import tensorflow  # noqa: F401, imported before forking

STEPS = 7


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


class Kill(keras.callbacks.Callback):
    def __init__(self, moment):
        super().__init__()
        self.kind, *numbers = moment.split(":")
        self.numbers = [float(number) for number in numbers]
        if self.kind == "save":
            self.kill_in_save(*self.numbers)
        self.steps = 0

    def kill_in_save(self, count, share):
        write, saves = np.savez, []

        def savez(file, **arrays):
            saves.append(file)
            if len(saves) < count:
                return write(file, **arrays)
            content = io.BytesIO()
            write(content, **arrays)
            file.write(content.getvalue()[: int(share * len(content.getvalue()))])
            file.flush()
            kill_self()

        np.savez = savez

    def on_train_batch_end(self, batch, logs=None):
        if getattr(self.model, "is_replaying", False):
            return
        self.steps += 1
        if self.kind in ("step", "after") and self.steps == self.numbers[0]:
            if self.kind == "step":
                kill_self()
            threading.Timer(self.numbers[1], kill_self).start()

    def on_test_begin(self, logs=None):
        if self.kind == "evaluation":
            kill_self()


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
        callbacks=[stop, resume, *([] if moment == "never" else [Kill(moment)])],
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
