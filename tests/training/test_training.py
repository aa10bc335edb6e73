"""Compare metrics and evaluation with slow references, and test what callbacks write."""

import math
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector import ProjectorConfig

from keras_llm import models, training
from keras_llm.errors import InputError

BOS = 1


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(2)
    shape = {"vocabulary_size": 37, "num_layers": 1, "initializer_range": 0.3}
    return models.causal_lm(models.preset("llama-tiny", **shape))


def stream(size=101, seed=0):
    ids = np.random.default_rng(seed).integers(2, 37, size).astype("int32")
    ids[::17] = BOS
    return ids


@pytest.mark.parametrize("size", [2, 9, 10, 101])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_covers_every_token_once(model, size, batch_size):
    ids = stream(size)
    measures = training.evaluate_language_model(model, ids, 50, BOS, 9, batch_size)
    total_nats, tokens, right = 0.0, 0, 0
    for begin in range(0, size - 1, 9):
        window = ids[begin : begin + 10]
        logits = np.asarray(model(window[None, :-1]), "float64")[0]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for t, target in enumerate(window[1:]):
            if target != BOS:
                total_nats -= log_p[t, target]
                right += log_p[t].argmax() == target
                tokens += 1
    assert measures["tokens"] == tokens
    assert measures["nats_per_token"] == pytest.approx(total_nats / tokens, abs=1e-4)
    assert measures["perplexity"] == pytest.approx(math.exp(total_nats / tokens), rel=1e-3)
    assert measures["bits_per_byte"] == pytest.approx(total_nats / math.log(2) / 50, rel=1e-3)
    assert measures["accuracy"] == pytest.approx(right / tokens)


def test_evaluation_without_tokens_raises_error(model):
    with pytest.raises(InputError, match="no token"):
        training.evaluate_language_model(model, stream(1), 1, BOS, 9)


def test_unigram_matches_counts():
    train, held_out = np.array([BOS, 2, 2, 3]), np.array([BOS, 2, 3, 4])
    measures = training.evaluate_unigram(train, held_out, 10, BOS, 5)
    p = {2: 3 / 8, 3: 2 / 8, 4: 1 / 8}  # (count + 1) / (3 + 5): counts 2, 1, 0 of 3 tokens, 5 ids
    total_nats = -sum(math.log(v) for v in p.values())
    assert measures["tokens"] == 3
    assert measures["nats_per_token"] == pytest.approx(total_nats / 3)
    assert measures["bits_per_byte"] == pytest.approx(total_nats / math.log(2) / 10)


def test_accuracy_ignores_padding():
    metric = training.TokenAccuracy(ignore_id=0)
    logits = np.eye(4, dtype="float32")[[[1, 2, 3], [1, 1, 0]]]
    metric.update_state(np.array([[1, 2, 0], [2, 0, 0]]), logits)
    assert float(metric.result()) == pytest.approx(2 / 3)
    metric.update_state(np.array([[1, 2, 3], [1, 1, 0]]), logits)
    assert float(metric.result()) == pytest.approx(7 / 8)
    assert training.TokenAccuracy.from_config(metric.get_config()).ignore_id == 0


def test_loss_of_fit_ignores_padding(model):
    x, y = stream(40).reshape(4, 10), stream(40, 1).reshape(4, 10)
    y[:, 6:] = 0
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    model.compile(loss=loss, metrics=[training.TokenAccuracy(0), training.Perplexity(0)])
    loss_value, accuracy, perplexity = model.evaluate(x, y, batch_size=3, verbose=0)
    logits = np.asarray(model(x), "float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(log_p, y[..., None], -1)[:, :6].mean()
    assert loss_value == pytest.approx(expected, rel=1e-4)
    assert perplexity == pytest.approx(np.exp(expected), rel=1e-4)
    assert float(training.Perplexity().result()) == 0.0  # as in keras_nlp
    config = training.Perplexity(3, from_logits=False).get_config()
    assert training.Perplexity.from_config(config).get_config() == config
    assert accuracy == pytest.approx((log_p.argmax(-1) == y)[:, :6].mean())


def fit(callbacks, epochs=3, learning_rate=1e-2, make=keras.optimizers.Adam, eager=True, depth=1):
    keras.utils.set_random_seed(0)
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=37, num_layers=depth))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(make(learning_rate), loss, jit_compile=False, run_eagerly=eager)
    x = np.tile(np.arange(2, 14, dtype="int32"), (16, 1))
    history = model.fit(
        x[:, :-1],
        x[:, 1:],
        batch_size=4,
        validation_data=(x[:4, :-1], x[:4, 1:]),
        epochs=epochs,
        verbose=0,
        callbacks=callbacks,
    )
    return model, history.history


def test_best_weights_have_lowest_loss(tmp_path):
    class OverwriteWeights(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.set_weights([w * 0 + 0.5 for w in self.model.get_weights()])

    path = tmp_path / "best.weights.h5"
    best = training.BestWeights(path)
    model, history = fit([OverwriteWeights(), best])
    assert best.best == min(history["val_loss"]) == history["val_loss"][1]
    model.load_weights(path)
    x = np.arange(2, 14, dtype="int32")[None]
    assert model.evaluate(x[:, :-1], x[:, 1:], verbose=0) == pytest.approx(best.best, rel=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["best.weights.h5"]


def test_tensorboard_language_model_metrics(tmp_path):
    board = training.TensorBoard(tmp_path, 44, sample=lambda: "> a sample", update_freq=2)
    _, history = fit([board], eager=False)
    train = EventAccumulator(str(tmp_path / "train")).Reload()
    validation = EventAccumulator(str(tmp_path / "validation")).Reload()
    tags = train.Tags()["tensors"]
    for name in ("loss", "perplexity", "learning_rate", "tokens_per_second"):
        assert f"epoch_{name}" in tags and f"batch_{name}" in tags

    def values(board, tag):
        return [np.frombuffer(e.tensor_proto.tensor_content, "float32") for e in board.Tensors(tag)]

    perplexity = np.ravel(values(train, "epoch_perplexity"))
    np.testing.assert_allclose(perplexity, np.exp(history["loss"]), rtol=1e-4)
    perplexity = np.ravel(values(validation, "epoch_perplexity"))
    np.testing.assert_allclose(perplexity, np.exp(history["val_loss"]), rtol=1e-4)
    samples = train.Tensors("sample")
    assert [e.tensor_proto.string_val[0] for e in samples] == [b"> a sample"] * 3
    assert [e.step for e in train.Tensors("batch_tokens_per_second")] == [2, 4, 6, 8, 10, 12]
    points = np.ravel(values(train, "batch_loss")).reshape(3, 2)
    np.testing.assert_allclose(points.mean(axis=1), history["loss"], rtol=1e-4)


def test_tensorboard_gradient_norm_and_flops_utilization(tmp_path):
    norms = []

    class RecordNorms(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            norms.append(float(self.model.optimizer.gradient_norm))

    board = training.TensorBoard(tmp_path, 44, update_freq=2, flops_per_token=3e6, peak_flops=1.5e9)
    fit([RecordNorms(), board], epochs=1, make=training.AdamW)
    train = EventAccumulator(str(tmp_path / "train")).Reload()

    def values(tag):
        return [
            np.frombuffer(e.tensor_proto.tensor_content, "float32")[0] for e in train.Tensors(tag)
        ]

    np.testing.assert_allclose(values("batch_gradient_norm"), norms[1::2], rtol=1e-6)
    assert min(norms) > 0 and values("batch_skipped_updates") == [0.0, 0.0]
    speeds = np.array(values("batch_tokens_per_second"))
    np.testing.assert_allclose(values("batch_flops_utilization"), speeds * 2e-3, rtol=1e-5)


def test_tensorboard_data_and_compute_seconds(tmp_path):
    started = []

    class RecordStarts(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            started.append(batch)

    def batches():
        for i in range(4):
            deadline = time.monotonic() + 20  # on one core, a step waits for this thread
            while i and len(started) <= i and time.monotonic() < deadline:
                time.sleep(0.001)  # wait until the step of this batch has started
            time.sleep(0.02)
            yield np.ones((2, 3), "float32"), np.ones((2, 1), "float32")

    shapes = tf.TensorSpec((2, 3)), tf.TensorSpec((2, 1))
    source = tf.data.Dataset.from_generator(batches, output_signature=shapes)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    board = training.TensorBoard(tmp_path, 2, unit="rows", update_freq=2)
    model.fit(board.data(source), steps_per_epoch=4, verbose=0, callbacks=[board, RecordStarts()])
    train = EventAccumulator(str(tmp_path / "train")).Reload()
    data, compute = (
        [float(tf.make_ndarray(e.tensor_proto)) for e in train.Tensors(f"batch_{name}_seconds")]
        for name in ("data", "compute")
    )
    assert len(data) == len(compute) == 2
    assert data[1] >= 0.0199 and min(compute) > 0


def test_tensorboard_attention_embeddings_and_trace(tmp_path):
    row = {"token_ids": np.arange(2, 8, dtype="int32")[None]}
    labels = ["<pad>", "a\tb", "c\nd"]
    board = training.TensorBoard(
        tmp_path, 44, attention=row, projector=labels, profile_batch=(2, 3)
    )
    model, _ = fit([board], epochs=1, eager=False, depth=2)
    folder = tmp_path / "train"
    images = EventAccumulator(str(folder)).Reload().Tensors("attention/block_1")
    assert [event.step for event in images] == [0, 4]
    width, height, png = images[-1].tensor_proto.string_val
    heads = models.attention_maps(model, row)[1][0]
    assert int(height) == 4 * 6 and int(width) == 4 * 7 * len(heads)
    pixels = tf.io.decode_png(png)[::4, ::4, 0].numpy().reshape(6, len(heads), 7)[..., :6]
    shares = np.sqrt(np.moveaxis(heads, 0, 1) / np.max(heads))
    np.testing.assert_allclose(pixels / 255, shares, atol=0.01)
    assert (folder / "token_labels.tsv").read_text().split("\n") == ["<pad>", r"a\tb", r"c\nd", ""]
    table = np.loadtxt(folder / "token_embedding.tsv", delimiter="\t")
    np.testing.assert_allclose(table, models.token_table(model)[:3], rtol=1e-5)
    config = ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    assert all((folder / path).is_file() for path in (config.embeddings[0].tensor_path,))
    assert list(folder.rglob("*.xplane.pb"))


def test_invalid_projector_labels_raise_error(tmp_path):
    with pytest.raises(InputError, match=r"projector.*38 labels.*37"):
        fit([training.TensorBoard(tmp_path, 44, projector=["x"] * 38)])


def test_progress_is_printed_to_stderr(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")  # lines are not wrapped in a narrow terminal
    fit([training.ProgressBar(12, 44)])
    captured = capfd.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if "step" in line]
    assert len(lines) == 3 and "step 12/12" in lines[-1] and "held-out loss" in lines[-1]
    assert all(line.endswith("tokens/s") for line in lines)


def test_evaluate_targets_covers_every_target_once():
    random = np.random.default_rng(0)
    table = random.normal(size=(9, 9)).astype("float32")
    model = keras.Sequential(
        [keras.Input((None,), dtype="int32"), keras.layers.Embedding(9, 9, weights=[table])]
    )
    batches = [
        (random.integers(0, 9, shape), random.integers(0, 9, shape)) for shape in ((4, 7), (1, 2))
    ]
    total_nats, right, tokens = 0.0, 0, 0
    for x, y in batches:
        for token, target in zip(x.reshape(-1), y.reshape(-1), strict=True):
            if target != 0:
                row = table[token].astype("float64")
                total_nats += np.log(np.exp(row).sum()) - row[target]
                right, tokens = right + (row.argmax() == target), tokens + 1
    measures = training.evaluate_targets(model, batches, ignore_id=0)
    assert measures["tokens"] == tokens and measures["accuracy"] == pytest.approx(right / tokens)
    assert measures["nats_per_token"] == pytest.approx(total_nats / tokens, rel=1e-5)
    assert measures["perplexity"] == pytest.approx(np.exp(total_nats / tokens), rel=1e-4)
    with pytest.raises(InputError, match="no target"):
        training.evaluate_targets(model, [(np.ones((1, 1)), np.zeros((1, 1)))], ignore_id=0)


def test_most_frequent_token_baseline():
    measures = training.evaluate_most_frequent(np.array([3, 3, 1]), np.array([3, 0]), 4)
    assert measures["accuracy"] == 0.5 and measures["tokens"] == 2
    assert measures["perplexity"] == pytest.approx(1 / np.sqrt(3 / 7 * 1 / 7))


def small_trainer(eager=True, **arguments):
    keras.utils.set_random_seed(0)
    model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=37, num_layers=1))
    trainer = training.LanguageModelTrainer(model, **arguments)
    optimizer = training.AdamW(1e-2, weight_decay=0.5)
    trainer.compile(optimizer, jit_compile=False, run_eagerly=eager)
    return trainer


def test_ignored_targets_may_be_outside_vocabulary():
    ids = np.random.default_rng(0).integers(2, 37, (4, 9)).astype("int32")
    losses = []
    for ignore_id in (-100, 0):
        targets = ids[:, 1:].copy()
        targets[:, :3] = ignore_id
        history = small_trainer(ignore_id=ignore_id).fit(ids[:, :-1], targets, 2, verbose=0)
        losses.append(history.history["loss"])
    assert losses[0] == losses[1]
    held_out = (ids[:, :-1], ids[:, 1:] + 30)
    with pytest.raises(InputError, match=r"0 \.\. 36"):
        small_trainer().fit(ids[:, :-1], ids[:, 1:], validation_data=held_out, verbose=0)


@pytest.mark.filterwarnings("error:.*shuffle=True")
def test_data_of_unknown_length_takes_same_steps():
    ids = np.random.default_rng(0).integers(2, 37, (8, 9)).astype("int32")
    known_length = tf.data.Dataset.from_tensor_slices((ids[:, :-1], ids[:, 1:])).batch(2)
    weights = []
    for batches in (known_length, known_length.filter(lambda *_: True)):
        trainer = small_trainer(eager=False)
        trainer.fit(batches, epochs=3, verbose=0)
        assert int(trainer.optimizer.iterations) == 12
        weights.append(trainer.get_weights())
    for actual, expected in zip(*weights, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_best_weights_without_monitored_value_raises_error(tmp_path):
    ids = np.ones((2, 9), "int32")
    with pytest.raises(InputError, match=r"'val_loss'.*validation_data"):
        best = training.BestWeights(tmp_path / "best.weights.h5")
        small_trainer().fit(ids[:, :-1], ids[:, 1:], verbose=0, callbacks=[best])
