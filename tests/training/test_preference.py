"""Compare DPO and ORPO with their formulas and with plain gradients, and train with both."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_llm import data, models, training
from keras_llm.errors import InputError

OBJECTIVES = [
    training.DPO(0.3),
    training.DPO(1.5, label_smoothing=0.2),
    training.ORPO(0.1),
    training.ORPO(2.0),
]
IDS = [str(objective) for objective in OBJECTIVES]


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def pair_loss(objective, chosen, rejected, lengths, reference):
    """Return the loss of one pair, from the papers' formulas."""
    if isinstance(objective, training.DPO):
        ratio = objective.beta * ((chosen - reference[0]) - (rejected - reference[1]))
        e = objective.label_smoothing
        return -(1 - e) * np.log(sigmoid(ratio)) - e * np.log(sigmoid(-ratio))
    likelihood = np.exp(chosen / lengths[0]), np.exp(rejected / lengths[1])
    odds = [p / (1 - p) for p in likelihood]
    return -np.log(likelihood[0]) - objective.weight * np.log(sigmoid(np.log(odds[0] / odds[1])))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=IDS)
def test_losses_and_slopes_match_formula(objective):
    random = np.random.default_rng(0)
    log_p = -random.uniform(0.5, 9, (6, 2))
    lengths = random.integers(1, 9, (6, 2)).astype("float64")
    reference = log_p + random.normal(size=(6, 2))
    losses, slopes, margin = objective.losses(
        *(tf.constant(x) for x in (log_p, lengths, reference))
    )
    for i in range(6):

        def loss(step, i=i):
            chosen, rejected = log_p[i] + step
            return pair_loss(objective, chosen, rejected, lengths[i], reference[i])

        assert float(losses[i]) == pytest.approx(loss(np.zeros(2)), rel=1e-6)
        for side, step in enumerate(np.eye(2) * 1e-5):
            slope = (loss(step) - loss(-step)) / 2e-5
            assert float(slopes[i, side]) == pytest.approx(slope, rel=1e-4, abs=1e-7)
    assert margin.shape == (6,)
    if not getattr(objective, "label_smoothing", 0):  # raise the chosen answer, lower the other
        assert (np.asarray(slopes) * [[-1, 1]] > 0).all()


@pytest.fixture(scope="module")
def pairs():
    """Return pairs of answers of different lengths: chosen ones even tokens, rejected ones odd."""
    random, examples = np.random.default_rng(3), []
    for _ in range(8):
        prompt = random.integers(2, 40, random.integers(1, 5)).tolist()
        answers = [(random.integers(1, 20, random.integers(2, 6)) * 2 + odd) for odd in (0, 1)]
        examples.append(
            tuple(
                data.ChatExample(prompt + a.tolist(), [0] * len(prompt) + [1] * len(a))
                for a in answers
            )
        )
    return examples


def small_model():
    keras.utils.set_random_seed(4)
    return models.causal_lm(
        models.preset("llama-tiny", vocabulary_size=48, num_layers=1, initializer_range=0.2)
    )


def reference_log_probabilities(model, pairs):
    rows = [example for pair in pairs for example in pair]
    return training.log_probabilities(model, rows).reshape(-1, 2)


@pytest.mark.parametrize("objective", [OBJECTIVES[1], OBJECTIVES[3]], ids=["DPO", "ORPO"])
def test_gradients_match_plain_loss(objective, pairs):
    model = small_model()
    reference = reference_log_probabilities(model, pairs) + np.random.default_rng(1).normal(
        size=(8, 2)
    )
    (batch,) = data.preference_dataset(pairs, 8, 0, reference)
    x, y, weights = batch
    trainer = training.PreferenceTrainer(model, objective, chunk_size=7)
    trainer.compile("sgd", jit_compile=False)
    with tf.GradientTape() as tape:
        loss = trainer.compute_loss(x, y, trainer(x), weights)
    gradients = tape.gradient(loss, [w.value for w in model.trainable_weights])
    with tf.GradientTape() as tape:
        logits = [model(x["token_ids"][:, side]) for side in (0, 1)]
        log_p = tf.nn.log_softmax(tf.stack(logits, 1))
        log_p = tf.gather(log_p, y, batch_dims=3) * weights
        chosen, rejected = tf.unstack(tf.reduce_sum(log_p, -1), axis=1)
        if objective.needs_reference:
            base = x["reference"]
            m = objective.beta * (chosen - base[:, 0] - rejected + base[:, 1])
            e = objective.label_smoothing
            plain_loss = -(1 - e) * tf.math.log_sigmoid(m) - e * tf.math.log_sigmoid(-m)
        else:
            lengths = tf.reduce_sum(weights, -1)
            q = [chosen / lengths[:, 0], rejected / lengths[:, 1]]
            odds = [p - tf.math.log(1 - tf.exp(p)) for p in q]
            plain_loss = -q[0] - objective.weight * tf.math.log_sigmoid(odds[0] - odds[1])
        plain_loss = tf.reduce_mean(plain_loss)
    expected = tape.gradient(plain_loss, [w.value for w in model.trainable_weights])
    assert float(loss) == pytest.approx(float(plain_loss), rel=1e-5)
    for actual, desired in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(
            tf.convert_to_tensor(actual), tf.convert_to_tensor(desired), atol=2e-5, rtol=1e-3
        )


def test_dpo_starts_at_log_2_and_separates_answers(pairs):
    model = small_model()
    reference = reference_log_probabilities(model, pairs)
    frozen = [np.array(weight) for weight in model.weights]
    training.add_lora(model, rank=4)
    trainer = training.PreferenceTrainer(model, training.DPO(0.5))
    trainer.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
    dataset = data.preference_dataset(pairs, 4, 0, reference, epochs=10, seed=0)
    first = trainer.evaluate(dataset.take(2), return_dict=True, verbose=0)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    trainer.fit(dataset, verbose=0)
    last = trainer.evaluate(dataset.take(2), return_dict=True, verbose=0)
    assert last["accuracy"] == 1 and last["margin"] > 1 and last["loss"] < 0.3
    change = reference_log_probabilities(model, pairs) - reference
    assert (change[:, 0] > change[:, 1]).all()
    margins = 0.5 * (change[:, 0] - change[:, 1])
    assert last["margin"] == pytest.approx(margins.mean(), rel=1e-3)
    kernels = [weight for weight in model.weights if "lora" not in weight.path]
    for before, after in zip(frozen, kernels, strict=True):  # the reference model is unchanged
        np.testing.assert_array_equal(before, after)


def test_orpo_raises_chosen_answers_and_odds(pairs):
    model = small_model()
    before = reference_log_probabilities(model, pairs)
    trainer = training.PreferenceTrainer(model, training.ORPO(0.5))
    trainer.compile(keras.optimizers.Adam(3e-3), jit_compile=False)
    history = trainer.fit(data.preference_dataset(pairs, 8, 0, epochs=20, seed=0), verbose=0)
    assert history.history["loss"][0] > 0
    change = reference_log_probabilities(model, pairs) - before
    assert change[:, 0].mean() > 0 and change[:, 0].mean() > change[:, 1].mean()


def test_invalid_arguments_raise_error(pairs):
    model = small_model()
    trainer = training.PreferenceTrainer(model, training.DPO())
    trainer.compile("sgd", jit_compile=False)
    with pytest.raises(InputError, match="`reference`"):
        trainer.fit(data.preference_dataset(pairs, 8, 0), verbose=0)
    with pytest.raises(InputError, match="weights"):
        ids = np.ones((1, 2, 3), "int32")
        trainer.evaluate({"token_ids": ids}, ids, verbose=0)
    with pytest.raises(InputError, match=r"`token_ids` must .*\(B, 2, T\), got \(2, 3\)"):
        trainer.call({"token_ids": np.ones((2, 3), "int32")})
    with pytest.raises(InputError, match="`objective`"):
        training.PreferenceTrainer(model, "dpo")
    encoder = models.seq2seq(models.preset("t5-tiny"))
    with pytest.raises(InputError, match="causal_lm"):
        training.PreferenceTrainer(encoder, training.DPO())
    for objective, values, word in (
        (training.DPO, {"beta": 0}, "beta"),
        (training.DPO, {"label_smoothing": 0.5}, "label_smoothing"),
        (training.ORPO, {"weight": -1}, "weight"),
    ):
        with pytest.raises(InputError, match=f"`{word}`"):
            objective(**values)
