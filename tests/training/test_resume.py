"""Runs that end early and go on, beside one that did not. More kills are in tests/kills."""

import inspect
import io
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import training
from keras_llm.errors import InputError

RUN = pathlib.Path(__file__).with_name("resumed_run.py")
STEPS = 4


def run(epochs, *runs):
    """The exit codes of runs, each a folder and a moment."""
    command = [sys.executable, str(RUN), str(epochs)]
    for folder, moment in runs:
        command += [str(folder / "checkpoints"), str(folder / "outcome.json"), moment]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(tmp_path):
    """Killed in the middle of a save, and after a step that no checkpoint has."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    moments = ["save:2:0.5", "step:3", "never"]
    codes = run(3, (whole, "never"), *((killed, moment) for moment in moments))
    assert codes == [0, -signal.SIGKILL, -signal.SIGKILL, 0]
    found, expected = (json.loads((f / "outcome.json").read_text()) for f in (killed, whole))
    assert found == expected
    assert len(expected["hashes"]) > 20 and len(expected["history"]["val_loss"]) == 3
    names = sorted(path.name for path in (killed / "checkpoints").iterdir())
    # A kill between the last rename and the removal of an old one leaves that one.
    assert names[-2:] == ["step_0000000020.checkpoint.npz", "step_0000000021.checkpoint.npz"]
    assert len(names) < 4 and names[0].startswith("step_")


def test_keras_has_no_public_way_to_begin_with_a_later_epoch():
    """Fails when Keras's own callback no longer needs the private attribute: then neither do we."""
    assert "self.model._initial_epoch = " in inspect.getsource(keras.callbacks.BackupAndRestore)


def batches(seed=0):
    r = np.random.default_rng(seed)
    x, y = r.normal(size=(2, 3 * STEPS * 4, 2)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, y[:, :1])).batch(4, drop_remainder=True)


def fit(
    folder,
    epochs=1,
    seed=0,
    units=3,
    rate=0.1,
    steps=STEPS,
    callbacks=(),
    tracked=(),
    ema=False,
    loss="mse",
    validation=None,
    identity=None,
    eager=True,
):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(units), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, use_ema=ema, ema_momentum=0.8)
    model.compile(optimizer, loss, jit_compile=False, run_eagerly=eager)
    resume = training.Resume(
        folder, every=1, keep=3, callbacks=tracked, identity=identity or {"corpus": "a"}
    )
    model.fit(
        resume.data(batches(seed)),
        steps_per_epoch=steps,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        validation_data=validation,
        callbacks=[*callbacks, *tracked, resume],
    )
    return model, resume


def assert_same_weights(model, other):
    for one, two in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, two)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("half")
    fit(folder)
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run of two epochs, its model and its callback."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, *fit(folder, epochs=2)


def copy_of(folder, tmp_path):
    return pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))


class Interruption(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    """Raises after a step that this process does, or when an evaluation begins."""

    def __init__(self, kind, step=None):
        super().__init__()
        self.kind, self.left = kind, step

    def on_train_batch_end(self, batch, logs=None):
        if self.kind == "step" and not getattr(self.model, "is_replaying", False):
            self.left -= 1
            if not self.left:
                raise Interruption

    def on_test_begin(self, logs=None):
        if self.kind == "evaluation":
            raise Interruption


def interrupted_save(count, share):
    """A `np.savez` whose call number `count` raises when that share of the file is written."""
    write, calls = np.savez, []

    def savez(file, **arrays):
        calls.append(file)
        if len(calls) < count:
            return write(file, **arrays)
        content = io.BytesIO()
        write(content, **arrays)
        file.write(content.getvalue()[: int(share * len(content.getvalue()))])
        raise Interruption

    return savez


def fit_all(folder, *callbacks):
    """Three epochs of five steps with all that has a state; the bits that they end with."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(3),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 15)
    optimizer = keras.optimizers.AdamW(schedule, global_clipnorm=1.0, use_ema=True)
    model.compile(optimizer, "mse", jit_compile=False, run_eagerly=True)
    rows = np.random.default_rng(0).normal(size=(60, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((rows[:, :2], rows[:, 2:]))
    data = data.shuffle(60, seed=3, reshuffle_each_iteration=False).batch(4)
    stop = keras.callbacks.EarlyStopping(patience=99)
    resume = training.Resume(folder, every=2, callbacks=[stop])
    try:
        history = model.fit(
            resume.data(data.skip),
            steps_per_epoch=5,
            epochs=3,
            shuffle=False,
            validation_data=data.take(2),
            verbose=0,
            callbacks=[stop, resume, *callbacks],
        ).history
    finally:
        resume._writer.shutdown()  # a process that ends does not write on
    assert history == resume.history
    variables = [*model.variables, *optimizer.variables]
    return [np.asarray(v).tobytes() for v in variables], history, float(stop.best)


def test_a_run_interrupted_at_moments_of_each_kind_ends_with_the_same_bits(tmp_path, monkeypatch):
    expected = fit_all(tmp_path / "whole")
    assert len(expected[0]) > 15 and len(expected[1]["val_loss"]) == 3
    folder = tmp_path / "parts"
    steps = []

    def interrupted(*callbacks):
        with pytest.raises(Interruption):
            fit_all(folder, *callbacks)
        steps.append(max((int(path.name[5:15]) for path in folder.glob("step_*")), default=0))

    interrupted(Interrupt("step", 1))  # before there is a checkpoint
    interrupted(Interrupt("step", 3))  # one step after a checkpoint
    interrupted(Interrupt("evaluation"))
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupted_save(2, 0.4))  # the save after that of an epoch
        interrupted()
    interrupted(Interrupt("step", 4))
    interrupted(Interrupt("step", 6))  # in the last epoch
    assert steps == [0, 2, 4, 5, 8, 14]
    assert fit_all(folder) == expected
    assert names(folder) == [f"step_{step:010d}.checkpoint.npz" for step in (14, 15)]


def test_a_torn_checkpoint_is_left_aside_and_named(half, whole, tmp_path):
    torn = copy_of(half, tmp_path)
    newest, older = sorted(torn.iterdir(), reverse=True)[:2]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    flipped = bytearray(older.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    older.write_bytes(flipped)
    with pytest.warns(RuntimeWarning) as told:
        model, resume = fit(torn, epochs=2)
    messages = " ".join(str(w.message) for w in told)
    assert newest.name in messages and older.name in messages
    assert_same_weights(model, whole[1])
    assert len(resume.history["loss"]) == 2


def test_only_the_last_checkpoints_are_kept(whole):
    assert names(whole[0]) == [f"step_{step:010d}.checkpoint.npz" for step in (6, 7, 8)]


def test_a_finished_run_is_not_run_again(whole, tmp_path):
    folder, model, first = whole
    again, second = fit(copy_of(folder, tmp_path), epochs=2)
    assert second.history == first.history
    assert_same_weights(model, again)
    assert int(again.optimizer.iterations) == 2 * STEPS


def test_an_epoch_after_an_evaluation_counts_its_own_batches_alone(tmp_path):
    held_out = batches(seed=7)
    _, whole = fit(tmp_path / "whole", epochs=2, validation=held_out)
    fit(tmp_path / "parts", epochs=1, validation=held_out)
    _, parts = fit(tmp_path / "parts", epochs=2, validation=held_out)
    assert parts.history == whole.history


def test_a_rate_that_a_callback_has_lowered_stays_so(tmp_path):
    def lowering():
        return keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=100)

    whole, _ = fit(tmp_path / "whole", epochs=3, tracked=[lowering()])
    fit(tmp_path / "parts", epochs=2, tracked=[lowering()])
    parts, _ = fit(tmp_path / "parts", epochs=3, tracked=[lowering()])
    assert float(parts.optimizer.learning_rate) == pytest.approx(0.025)
    assert_same_weights(parts, whole)


def test_a_run_that_was_stopped_early_stays_so(tmp_path):
    def stopping():
        return keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100)

    first, whole = fit(tmp_path, epochs=3, tracked=[stopping()])
    assert len(whole.history["loss"]) == 2
    again, resume = fit(tmp_path, epochs=3, tracked=[stopping()])
    assert resume.history == whole.history
    assert_same_weights(again, first)


def test_torn_checkpoints_do_not_cost_the_new_ones(whole, tmp_path):
    folder = copy_of(whole[0], tmp_path)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(RuntimeWarning, match="step_0000000006"):
        fit(folder, epochs=1)
    found = names(folder)
    assert found[:3] == [f"step_{step:010d}.checkpoint.npz" for step in (2, 3, 4)]
    with pytest.warns(RuntimeWarning, match="step_0000000007"):
        _, resume = fit(folder, epochs=2)
    assert resume.step == 0 and len(resume.history["loss"]) == 2
    assert names(folder) == [f"step_{step:010d}.checkpoint.npz" for step in (6, 7, 8)]


class Weights(keras.callbacks.Callback):
    """The weights after each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.model.get_weights())


def test_a_run_that_goes_on_ends_with_the_average_of_its_weights(tmp_path):
    weights = Weights()
    whole, _ = fit(tmp_path / "whole", epochs=2, ema=True, eager=False, callbacks=[weights])
    averages = weights.seen[0]
    for step in weights.seen[1:]:
        pairs = zip(averages, step, strict=True)
        averages = [0.8 * average + 0.2 * weight for average, weight in pairs]
    fit(tmp_path / "parts", epochs=1, ema=True, eager=False)
    rest, _ = fit(tmp_path / "parts", epochs=2, ema=True, eager=False)
    again, _ = fit(tmp_path / "parts", epochs=2, ema=True, eager=False)  # it was done
    assert any(np.abs(a - w).max() > 1e-3 for a, w in zip(averages, weights.seen[-1], strict=True))
    for model in (whole, rest, again):
        for one, other in zip(model.get_weights(), averages, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"seed": 1}, "first_batch"),
        ({"units": 4}, "made with model.*units"),
        ({"rate": 0.2}, "optimizer.*learning_rate"),
        ({"steps": 3}, "steps_per_epoch=4.*3"),
        ({"identity": {"corpus": "b"}}, "corpus='a'.*'b'"),
        ({"loss": "mae"}, "loss='mse'.*'mae'"),
        ({"tracked": [keras.callbacks.EarlyStopping("loss")]}, "callbacks=.*EarlyStopping"),
    ],
)
def test_another_run_is_refused_and_the_difference_named(half, tmp_path, changes, words):
    folder = copy_of(half, tmp_path)
    before = names(folder)
    with pytest.raises(InputError, match=words):
        fit(folder, **{"epochs": 2, **changes})
    assert names(folder) == before


class Spoil(keras.callbacks.Callback):
    """Weights, or what is learned from, become NaN after a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            self.model.layers[0].bias.assign(np.full(3, np.nan, "float32"))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"not finite after step \d.*step_0000000002"):
        fit(tmp_path, epochs=2, callbacks=[Spoil(3)])
    assert names(tmp_path)[-1] == "step_0000000002.checkpoint.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model, _ = fit(tmp_path, epochs=2)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_what_it_cannot_do_is_refused(tmp_path):
    for changes, words in (
        ({"every": 0}, "every"),
        ({"keep": 0}, "keep"),
        ({"callbacks": [keras.callbacks.History()]}, "History.*get_state"),
    ):
        with pytest.raises(InputError, match=words):
            training.Resume(tmp_path, **changes)
    with pytest.raises(InputError, match=r"identity.*JSON"):
        training.Resume(tmp_path, identity={"data": tmp_path})
    with pytest.raises(InputError, match=r"12 batches.*are 16.*repeat"):
        fit(tmp_path, epochs=4)
    assert names(tmp_path) == []
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(InputError, match=r"resume\.data"):  # and not only when it goes on
        model.fit(batches(), verbose=0, callbacks=[training.Resume(tmp_path)])
    model, resume = fit(tmp_path)
    with pytest.raises(InputError, match=r"Resume.*each `fit`"):
        model.fit(resume.data(batches()), steps_per_epoch=4, verbose=0, callbacks=[resume])
