"""Compare interrupted and resumed runs with uninterrupted ones; tests/kills has more kills."""

import inspect
import io
import pathlib
import shutil
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import training
from keras_llm.errors import InputError

STEPS = 4


def test_keras_still_sets_private_initial_epoch():
    """If this fails, Keras's own callback no longer needs the private attribute, nor do we."""
    assert "self.model._initial_epoch = " in inspect.getsource(keras.callbacks.BackupAndRestore)


def batches(seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 3 * STEPS * 4, 2)).astype("float32")
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
    for first, second in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(first, second)


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def one_epoch(tmp_path_factory):
    """Return the folder of a run of one epoch."""
    folder = tmp_path_factory.mktemp("one_epoch")
    fit(folder)
    return folder


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """Return the folder, model and callback of a run of two epochs."""
    folder = tmp_path_factory.mktemp("two_epochs")
    return folder, *fit(folder, epochs=2)


def copy_folder(folder, tmp_path):
    return pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))


class Interruption(Exception):
    pass


class Interrupt(keras.callbacks.Callback):
    """Raise after a step of this process, not counting replayed ones, or when evaluation begins."""

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


def make_interrupted_save(count, share):
    """Return a `np.savez` whose call number `count` raises after writing a share of the file."""
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
    """Train three epochs of five steps with all stateful parts; return the final state."""
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
    early_stopping = keras.callbacks.EarlyStopping(patience=99)
    resume = training.Resume(folder, every=2, callbacks=[early_stopping])
    try:
        history = model.fit(
            resume.data(data.skip),
            steps_per_epoch=5,
            epochs=3,
            shuffle=False,
            validation_data=data.take(2),
            verbose=0,
            callbacks=[early_stopping, resume, *callbacks],
        ).history
    finally:
        resume._writer.shutdown()  # a process that ended would not write either
    assert history == resume.history
    variables = [*model.variables, *optimizer.variables]
    return [np.asarray(v).tobytes() for v in variables], history, float(early_stopping.best)


def test_interrupted_runs_resume_bit_exact(tmp_path, monkeypatch):
    expected = fit_all(tmp_path / "uninterrupted")
    assert len(expected[0]) > 15 and len(expected[1]["val_loss"]) == 3
    folder = tmp_path / "interrupted"
    steps = []

    def fit_interrupted(*callbacks):
        with pytest.raises(Interruption):
            fit_all(folder, *callbacks)
        steps.append(max((int(path.name[5:15]) for path in folder.glob("step_*")), default=0))

    fit_interrupted(Interrupt("step", 1))  # before the first checkpoint
    fit_interrupted(Interrupt("step", 3))  # one step after a checkpoint
    fit_interrupted(Interrupt("evaluation"))
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", make_interrupted_save(2, 0.4))  # the save after an epoch's end
        fit_interrupted()
    fit_interrupted(Interrupt("step", 4))
    fit_interrupted(Interrupt("step", 6))  # in the last epoch
    assert steps == [0, 2, 4, 5, 8, 14]
    assert fit_all(folder) == expected
    assert file_names(folder) == [f"step_{step:010d}.checkpoint.npz" for step in (14, 15)]


def test_corrupt_checkpoints_are_skipped_with_warning(one_epoch, two_epochs, tmp_path):
    corrupt = copy_folder(one_epoch, tmp_path)
    newest, older = sorted(corrupt.iterdir(), reverse=True)[:2]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    flipped = bytearray(older.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    older.write_bytes(flipped)
    with pytest.warns(RuntimeWarning) as warned:
        model, resume = fit(corrupt, epochs=2)
    messages = " ".join(str(w.message) for w in warned)
    assert newest.name in messages and older.name in messages
    assert_same_weights(model, two_epochs[1])
    assert len(resume.history["loss"]) == 2


def test_only_last_checkpoints_are_kept(two_epochs):
    assert file_names(two_epochs[0]) == [f"step_{step:010d}.checkpoint.npz" for step in (6, 7, 8)]


def test_finished_run_is_not_repeated(two_epochs, tmp_path):
    folder, model, first = two_epochs
    resumed, second = fit(copy_folder(folder, tmp_path), epochs=2)
    assert second.history == first.history
    assert_same_weights(model, resumed)
    assert int(resumed.optimizer.iterations) == 2 * STEPS


def test_epoch_loss_after_evaluation(tmp_path):
    held_out = batches(seed=7)
    _, uninterrupted = fit(tmp_path / "uninterrupted", epochs=2, validation=held_out)
    fit(tmp_path / "resumed", epochs=1, validation=held_out)
    _, resumed = fit(tmp_path / "resumed", epochs=2, validation=held_out)
    assert resumed.history == uninterrupted.history


def test_lowered_learning_rate_is_restored(tmp_path):
    def make_callback():
        return keras.callbacks.ReduceLROnPlateau("loss", 0.5, patience=1, min_delta=100)

    uninterrupted, _ = fit(tmp_path / "uninterrupted", epochs=3, tracked=[make_callback()])
    fit(tmp_path / "resumed", epochs=2, tracked=[make_callback()])
    resumed, _ = fit(tmp_path / "resumed", epochs=3, tracked=[make_callback()])
    assert float(resumed.optimizer.learning_rate) == pytest.approx(0.025)
    assert_same_weights(resumed, uninterrupted)


def test_early_stopped_run_stays_stopped(tmp_path):
    def make_callback():
        return keras.callbacks.EarlyStopping("loss", patience=0, min_delta=100)

    first, uninterrupted = fit(tmp_path, epochs=3, tracked=[make_callback()])
    assert len(uninterrupted.history["loss"]) == 2
    resumed, resume = fit(tmp_path, epochs=3, tracked=[make_callback()])
    assert resume.history == uninterrupted.history
    assert_same_weights(resumed, first)


def test_corrupt_checkpoints_do_not_displace_new_ones(two_epochs, tmp_path):
    folder = copy_folder(two_epochs[0], tmp_path)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(RuntimeWarning, match="step_0000000006"):
        fit(folder, epochs=1)
    kept = file_names(folder)
    assert kept[:3] == [f"step_{step:010d}.checkpoint.npz" for step in (2, 3, 4)]
    with pytest.warns(RuntimeWarning, match="step_0000000007"):
        _, resume = fit(folder, epochs=2)
    assert resume.step == 0 and len(resume.history["loss"]) == 2
    assert file_names(folder) == [f"step_{step:010d}.checkpoint.npz" for step in (6, 7, 8)]


class RecordWeights(keras.callbacks.Callback):
    """Record the weights after each step."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        self.values.append(self.model.get_weights())


def test_resumed_run_ends_with_averaged_weights(tmp_path):
    weights = RecordWeights()
    uninterrupted, _ = fit(
        tmp_path / "uninterrupted", epochs=2, ema=True, eager=False, callbacks=[weights]
    )
    averages = weights.values[0]
    for step in weights.values[1:]:
        pairs = zip(averages, step, strict=True)
        averages = [0.8 * average + 0.2 * weight for average, weight in pairs]
    fit(tmp_path / "resumed", epochs=1, ema=True, eager=False)
    resumed, _ = fit(tmp_path / "resumed", epochs=2, ema=True, eager=False)
    finished, _ = fit(tmp_path / "resumed", epochs=2, ema=True, eager=False)  # nothing left to do
    assert any(
        np.abs(a - w).max() > 1e-3 for a, w in zip(averages, weights.values[-1], strict=True)
    )
    for model in (uninterrupted, resumed, finished):
        for actual, expected in zip(model.get_weights(), averages, strict=True):
            np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
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
def test_different_run_raises_error_with_difference(one_epoch, tmp_path, changes, message):
    folder = copy_folder(one_epoch, tmp_path)
    before = file_names(folder)
    with pytest.raises(InputError, match=message):
        fit(folder, **{"epochs": 2, **changes})
    assert file_names(folder) == before


class SetWeightsToNaN(keras.callbacks.Callback):
    """Set weights to NaN after a step."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            self.model.layers[0].bias.assign(np.full(3, np.nan, "float32"))


def test_non_finite_loss_stops_and_keeps_last_good_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"not finite after step \d.*step_0000000002"):
        fit(tmp_path, epochs=2, callbacks=[SetWeightsToNaN(3)])
    assert file_names(tmp_path)[-1] == "step_0000000002.checkpoint.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        model, _ = fit(tmp_path, epochs=2)
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_invalid_arguments_raise_error(tmp_path):
    for changes, message in (
        ({"every": 0}, "every"),
        ({"keep": 0}, "keep"),
        ({"callbacks": [keras.callbacks.History()]}, "History.*get_state"),
    ):
        with pytest.raises(InputError, match=message):
            training.Resume(tmp_path, **changes)
    with pytest.raises(InputError, match=r"identity.*JSON"):
        training.Resume(tmp_path, identity={"data": tmp_path})
    with pytest.raises(InputError, match=r"12 batches.*are 16.*repeat"):
        fit(tmp_path, epochs=4)
    assert file_names(tmp_path) == []
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(InputError, match=r"resume\.data"):  # already in the first run
        model.fit(batches(), verbose=0, callbacks=[training.Resume(tmp_path)])
    model, resume = fit(tmp_path)
    with pytest.raises(InputError, match=r"Resume.*each `fit`"):
        model.fit(resume.data(batches()), steps_per_epoch=4, verbose=0, callbacks=[resume])
