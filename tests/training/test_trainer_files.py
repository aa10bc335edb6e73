"""Test Keras's own ways to save and restore a training on every trainer."""

import keras
import numpy as np
import pytest

from keras_llm import layers, models, training
from keras_llm.errors import InputError

V, B, T = 64, 4, 6
SHAPE = {"vocabulary_size": V, "num_layers": 1}


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(1, V, shape).astype("int32")


def causal(**changes):
    return models.causal_lm(models.preset("llama-tiny", **{**SHAPE, **changes}))


def encoder(**changes):
    return models.encoder(models.preset("bert-tiny", **SHAPE, dropout=0.0, **changes))


def mask():
    return np.ones((B, T), bool)


def language_model():
    return training.LanguageModelTrainer(causal(final_soft_cap=5.0), 0, 0.1, 1e-3, 8), {}


def seq2seq():
    # Keras does not save the state of dropout's random numbers.
    preset = models.preset("t5-tiny", **SHAPE, num_decoder_layers=1, dropout=0.0)
    return training.LanguageModelTrainer(models.seq2seq(preset)), {}


def distillation():
    return training.DistillationTrainer(causal(), causal(hidden_dim=32), 0.7, 3.0), {}


def dpo():
    return training.PreferenceTrainer(causal(), training.DPO(0.3, 0.1), 8), {}


def orpo():
    return training.PreferenceTrainer(causal(), training.ORPO(0.2)), {}


def sentence_pairs():
    shared = encoder()
    return training.SentencePairTrainer(models.masked_lm(shared), models.next_sentence(shared)), {}


def classifier():
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = models.text_classifier(encoder(), 2, dropout=0.0)
    return training.Trainer(model), {"loss": loss, "metrics": ["accuracy"]}


def siamese():
    model = training.siamese(models.sentence_embedder(encoder()))
    return training.Trainer(model), {"loss": training.ContrastiveLoss()}


def plain():
    """A model of Keras, not of this library."""
    tokens = keras.Input((T,), dtype="int32")
    hidden = keras.layers.Flatten()(keras.layers.Embedding(V, 4)(tokens))
    model = keras.Model(tokens, keras.layers.Dense(1)(hidden))
    return training.Trainer(model), {"loss": "mse"}


def lora():
    model = causal(use_bias=True)
    training.add_lora(model, "query|token_embedding", rank=2, alpha=3.0)
    model.get_layer("final_norm").trainable = True
    return training.LanguageModelTrainer(model, 0), {}


def dora():
    """A model with DoRA adapters and a head that is trained, too."""
    trainer, objective = classifier()
    training.add_lora(trainer.model, "query|down", rank=2, dora=True)
    for layer in trainer.model.layers[-2:]:
        layer.trainable = True
    return trainer, objective


def qlora():
    """Two models that share an encoder with adapters, and heads that are trained."""
    trainer, objective = sentence_pairs()
    training.add_lora(trainer.model.get_layer("backbone"), rank=2, quantization="int8")
    return trainer, objective


def plain_lora():
    """A model of the user with adapters of either kind, a frozen layer and a frozen bias."""
    trainer, objective = plain()
    inputs = trainer.model.inputs
    hidden = keras.layers.Dense(4, name="middle")(trainer.model.layers[-2].output)
    hidden = layers.TransformerEncoder(8, 2, name="block")(keras.layers.Reshape((1, 4))(hidden))
    hidden = keras.layers.EinsumDense("bth,ho->bo", 3, bias_axes="o", name="einsum")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1, name="labels")(hidden))
    training.add_lora(model, "labels|embedding|einsum", rank=2, alpha=3.0)
    return training.Trainer(model), objective


def batch(make):
    make = {lora: language_model, dora: classifier, qlora: sentence_pairs, plain_lora: plain}.get(
        make, make
    )
    if make is seq2seq:
        return [ids(B, T), ids(B, T, seed=1)], ids(B, T, seed=2)
    if make in (dpo, orpo):
        reference = {"reference": np.zeros((B, 2), "float32")} if make is dpo else {}
        weights = np.ones((B, 2, T), "float32")
        return {"token_ids": ids(B, 2, T), **reference}, ids(B, 2, T, seed=1), weights
    if make is sentence_pairs:
        tokens = {"token_ids": ids(B, T), "padding_mask": mask()}
        places = {"segment_ids": np.zeros((B, T), "int32"), "mask_positions": ids(B, 2) % T}
        labels = {"tokens": ids(B, 2), "next_sentence": np.arange(B, dtype="int32") % 2}
        return {**tokens, **places}, labels
    if make is classifier:
        segments = np.zeros((B, T), "int32")
        return [ids(B, T), mask(), segments], np.arange(B, dtype="int32") % 2
    if make is siamese:
        segments = np.zeros((B, T), "int32")
        inputs = [ids(B, T), mask(), segments, ids(B, T, seed=1), mask(), segments]
        return inputs, np.arange(B, dtype="int32")
    if make is plain:
        return ids(B, T), np.ones((B, 1), "float32")
    return ids(B, T), ids(B, T, seed=1)


TRAINERS = [
    language_model,
    seq2seq,
    distillation,
    dpo,
    orpo,
    sentence_pairs,
    classifier,
    siamese,
    plain,
    lora,
    dora,
    qlora,
    plain_lora,
]


def compiled(make, seed=0):
    keras.utils.set_random_seed(seed)
    trainer, objective = make()
    trainer.compile(training.AdamW(1e-2), run_eagerly=True, **objective)
    return trainer


def fitted(trainer, make, **options):
    x, y, *weights = batch(make)
    sample_weight = weights[0] if weights else None
    return trainer.fit(
        x, y, batch_size=B, sample_weight=sample_weight, shuffle=False, verbose=0, **options
    ).history


def measured(trainer, make):
    x, y, *weights = batch(make)
    sample_weight = weights[0] if weights else None
    return np.atleast_1d(
        trainer.evaluate(x, y, batch_size=B, sample_weight=sample_weight, verbose=0)
    )


def options_of(trainer):
    return {k: v for k, v in trainer.get_config().items() if "class_name" not in str(v)}


def trained(trainer):
    return [(weight.name, weight.shape) for weight in trainer.trainable_weights]


@pytest.mark.parametrize("make", TRAINERS, ids=lambda make: make.__name__)
def test_reloaded_trainers_continue_with_the_same_losses(make, tmp_path):
    trainer = compiled(make)
    files = {name: str(tmp_path / f"trainer.{name}") for name in ("keras", "weights.h5")}
    callbacks = [
        keras.callbacks.ModelCheckpoint(files["keras"]),
        keras.callbacks.ModelCheckpoint(files["weights.h5"], save_weights_only=True),
        keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False),
    ]
    fitted(trainer, make, callbacks=callbacks)
    loaded = keras.saving.load_model(files["keras"])
    assert type(loaded) is type(trainer)
    assert options_of(loaded) == options_of(trainer)
    assert trained(loaded) == trained(trainer)
    expected = measured(trainer, make)
    np.testing.assert_allclose(measured(loaded, make), expected, rtol=1e-6)
    other = compiled(make, seed=1)
    assert abs(measured(other, make)[0] - expected[0]) > 1e-4
    other.load_weights(files["weights.h5"])
    np.testing.assert_allclose(measured(other, make), expected, rtol=1e-6)
    restored = compiled(make, seed=0 if make is distillation else 1)  # the teacher is not restored
    restore = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    restored_history = fitted(restored, make, epochs=2, callbacks=[restore])
    history = fitted(trainer, make)
    np.testing.assert_allclose(fitted(loaded, make)["loss"], history["loss"], rtol=1e-5)
    np.testing.assert_allclose(restored_history["loss"], history["loss"], rtol=1e-5)


def test_compile_with_a_loss_or_metrics_raises_error():
    """The trainer would ignore the loss, and metrics would get hidden states for predictions."""
    for make in (language_model, distillation, dpo, orpo, sentence_pairs):
        trainer, _ = make()
        for options in (
            {"loss": "mse"},
            {"loss_weights": [1.0]},
            {"metrics": ["accuracy"]},
            {"weighted_metrics": ["accuracy"]},
        ):
            (name,) = options
            with pytest.raises(InputError, match=f"`{name}`.*{type(trainer).__name__}"):
                trainer.compile("adamw", **options)
        with pytest.raises(InputError, match="`loss`"):
            trainer.compile("adamw", "mse")
        trainer.compile("adamw", loss=None)


@pytest.mark.parametrize("adapted", [False, True])
def test_quantized_encoder_of_two_models_is_reloaded(adapted, tmp_path):
    trainer, _ = sentence_pairs()
    shared = trainer.model.get_layer("backbone")
    if adapted:
        training.add_lora(shared, rank=2, quantization="int8")
        for weight in shared.trainable_weights:
            weight.assign(weight + 0.1)
    else:
        shared.quantize("int8")
    trainer.save(tmp_path / "trainer.keras")
    loaded = keras.saving.load_model(tmp_path / "trainer.keras")
    inputs = [ids(B, T), mask(), np.zeros((B, T), "int32")]
    bodies = [model.get_layer("backbone") for model in (loaded.model, loaded.next_sentence)]
    first, second = (body.get_layer("block_0") for body in bodies)
    assert first is second
    for body in bodies:
        np.testing.assert_array_equal(body(inputs), shared(inputs))
        assert any("lora" in weight.path for weight in body.trainable_weights) == adapted
