"""Test encoders, their heads and word vectors: shapes, padding, training, saving."""

import dataclasses

import keras
import numpy as np
import pytest

from keras_llm import models, training
from keras_llm.errors import InputError

IDS = np.array([[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]], "int32")
MASK = IDS != 0
POSITIONS = np.array([[1, 4], [2, 0]], "int32")

# A head reads only the last block's output, however many blocks there are.
ONE_LAYER = {"num_layers": 1, "initializer_range": 0.3}
ENCODER = models.preset("distilbert-tiny", **ONE_LAYER)
SEGMENTED = models.preset("bert-tiny", **ONE_LAYER)
DECODER = models.preset("llama-tiny", **ONE_LAYER)

HEADS = {
    "masked_lm": (lambda b: models.masked_lm(b), ENCODER, (2, 2, 512)),
    "text_classifier": (lambda b: models.text_classifier(b, 3, dropout=0.0), ENCODER, (2, 3)),
    "mean_classifier": (lambda b: models.text_classifier(b, 3, "mean", 0.0), ENCODER, (2, 3)),
    "decoder_classifier": (lambda b: models.text_classifier(b, 3, dropout=0.0), DECODER, (2, 3)),
    "text_regressor": (lambda b: models.text_regressor(b, dropout=0.0), ENCODER, (2,)),
    "reward": (lambda b: models.reward(b), DECODER, (2,)),
    "token_classifier": (lambda b: models.token_classifier(b, 4), ENCODER, (2, 5, 4)),
    "sentence_embedder": (lambda b: models.sentence_embedder(b), ENCODER, (2, 64)),
    "projected": (
        lambda b: models.sentence_embedder(b, "first", False, projection_dim=8),
        ENCODER,
        (2, 8),
    ),
    "decoder_embedder": (lambda b: models.sentence_embedder(b), DECODER, (2, 64)),
}


def make_inputs(model, ids=IDS, mask=MASK):
    inputs = {"token_ids": ids, "padding_mask": mask, "mask_positions": POSITIONS}
    return [inputs[tensor.name] for tensor in model.inputs]


@pytest.mark.parametrize("name", HEADS)
def test_heads_ignore_padding_and_save(name, tmp_path):
    make, config, shape = HEADS[name]
    model = make(config)
    outputs = np.asarray(model(make_inputs(model)))
    assert outputs.shape == shape and outputs.dtype == "float32"
    others = np.where(MASK, IDS, 99)  # masked tokens must not matter
    changed = np.asarray(model(make_inputs(model, others)))
    real = MASK if shape[:2] == (2, 5) else slice(None)
    np.testing.assert_allclose(changed[real], outputs[real], atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(make_inputs(model))), outputs)
    assert loaded.get_config() == model.get_config()


@pytest.mark.parametrize("make", [models.encoder, models.causal_lm])
def test_backbone_is_shared(make):
    backbone = make(DECODER if make is models.causal_lm else ENCODER)
    head = models.text_classifier(backbone, 2)
    block = head.get_layer("backbone").get_layer("block_0")
    assert block is backbone.get_layer("block_0")
    assert head.count_params() < 2 * backbone.count_params()


def test_masked_lm_predicts_at_mask_positions():
    model = models.masked_lm(ENCODER)
    both = np.asarray(model([IDS, MASK, POSITIONS]))
    for column in range(2):
        alone = model([IDS, MASK, POSITIONS[:, column : column + 1]])
        np.testing.assert_allclose(both[:, column : column + 1], alone, atol=1e-5)


def test_span_qa_masks_padding(tmp_path):
    model = models.span_qa(ENCODER)
    outputs = {k: np.asarray(v) for k, v in model([IDS, MASK]).items()}
    assert {k: v.shape for k, v in outputs.items()} == {"start": (2, 5), "end": (2, 5)}
    for logits in outputs.values():
        assert np.all(logits[~MASK] < -1e8) and np.all(np.abs(logits[MASK]) < 1e3)
    assert not np.allclose(outputs["start"], outputs["end"])


def test_next_sentence_uses_segment_ids():
    model = models.next_sentence(SEGMENTED)
    first = np.zeros_like(IDS)
    second = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]], "int32")
    assert model([IDS, MASK, first]).shape == (2, 2)
    assert not np.allclose(model([IDS, MASK, first]), model([IDS, MASK, second]))
    with pytest.raises(InputError, match="num_segments"):
        models.next_sentence(ENCODER)


def test_named_and_ordered_inputs_match():
    model = models.encoder(SEGMENTED)
    named = {"segment_ids": np.zeros_like(IDS), "padding_mask": MASK, "token_ids": IDS}
    np.testing.assert_array_equal(model(named), model([IDS, MASK, np.zeros_like(IDS)]))


def test_sentence_vectors_are_normalized_means_without_padding():
    backbone = models.encoder(ENCODER)
    vectors = np.asarray(models.sentence_embedder(backbone)([IDS, MASK]))
    hidden = np.asarray(backbone([IDS, MASK]))
    means = np.stack([row[real].mean(0) for row, real in zip(hidden, MASK, strict=True)])
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    np.testing.assert_allclose(vectors, means, atol=1e-5)


def test_decoder_is_pooled_at_last_unpadded_token():
    backbone = models.causal_lm(DECODER)
    vectors = np.asarray(models.sentence_embedder(backbone, normalize=False)([IDS, MASK]))
    alone = models.sentence_embedder(backbone, normalize=False)([IDS[1:, :3], MASK[1:, :3]])
    np.testing.assert_allclose(vectors[1:], alone, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: models.text_classifier(ENCODER, 1),
        lambda: models.text_classifier(ENCODER, 2, pooling="max"),
        lambda: models.masked_lm(DECODER),
        lambda: models.span_qa("bert"),
        lambda: models.token_classifier(ENCODER, "two"),
        lambda: models.encoder(DECODER),
        lambda: models.seq2seq(ENCODER),
        lambda: models.WordVectorsConfig(0, 4),
        lambda: models.WordVectorsConfig(9, 4, "elmo"),
        lambda: models.word_vectors(ENCODER),
    ],
)
def test_invalid_arguments_raise_error(make):
    with pytest.raises(InputError):
        make()


def pretraining_model(config):
    """Return the model that pretrains a config's weights, with inputs and targets."""
    model = models.build(config)
    ids = np.random.default_rng(0).integers(1, 512, (4, 20)).astype("int32")
    if isinstance(config, models.Seq2SeqConfig):
        x = [ids, ids[:, :-1]]
    elif isinstance(config, models.EncoderConfig):
        model = models.masked_lm(model)
        x = [ids[:, :-1], ids[:, :-1] > 0]
        x += [np.zeros_like(x[0])] if config.num_segments else []
        x += [np.tile(np.arange(19, dtype="int32"), (4, 1))]
    else:
        x = ids[:, :-1]
    return model, x, ids[:, 1:]


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


TINY = [name for name in models.presets() if name.endswith("-tiny")]


def shallow(name):
    """Return a preset with one layer, unless its layers differ."""
    config = models.preset(name)
    if config.window_pattern:
        return config
    depth_fields = [
        field for field in ("num_layers", "num_decoder_layers") if hasattr(config, field)
    ]
    return models.preset(name, **dict.fromkeys(depth_fields, 1))


@pytest.mark.parametrize("name", TINY)
def test_tiny_presets_fit_and_save(name, tmp_path):
    """At least one model of each kind has two layers: gemma2, gemma3 and gpt3, bert, t5."""
    keras.utils.set_random_seed(0)
    is_deep = name in ("bert-tiny", "t5-tiny")
    model, x, y = pretraining_model(models.preset(name) if is_deep else shallow(name))
    model.compile(keras.optimizers.Adam(1e-2), LOSS, run_eagerly=True)
    before = model.evaluate(x, y, verbose=0)
    model.fit(x, y, verbose=0)
    assert model.evaluate(x, y, verbose=0) < before
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))


# XLA takes seconds per model. One decoder has the features of Gemma 2 and 3, Mistral, Mixtral, Qwen
# 2.5 and LaMDA, and those of GPT-3 that test_causal_lm.py, which compiles GPT and Llama, does not
# have. SmolLM3 has layers without positions. The encoder has the remaining features of BERT and the
# first Transformer.
COMPILED = {
    "decoder": models.preset(
        "gemma2-tiny",
        position=models.RelativeBias(),
        local_position=models.Rotary(base=1e6, scaling=8.0),
        qk_norm=True,
        num_experts=4,
        tie_embeddings=False,
        use_bias=True,
        output_bias=False,
        feed_forward_bias=False,
    ),
    "encoder": dataclasses.replace(shallow("bert-tiny"), position="sinusoidal", activation="relu"),
    "smollm3": models.preset("smollm3-tiny"),
    "t5": shallow("t5-tiny"),
}


def features_of(config):
    """Return the features that a config uses, as a set of pairs."""
    features = {("class", type(config).__name__)}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("position", "norm", "norm_position", "activation"):
            features.add((field.name, value if isinstance(value, str) else type(value).__name__))
        elif value or value is False:  # None and 0 mean that a feature is off
            features.add((field.name, bool(value)))
    return features


def test_compiled_models_cover_all_preset_features():
    compiled = [*COMPILED.values(), shallow("gpt-tiny"), shallow("llama-tiny")]
    covered = set().union(*map(features_of, compiled))
    for name in TINY:
        assert features_of(models.preset(name)) <= covered, name


@pytest.mark.parametrize("name", COMPILED)
def test_training_and_evaluation_with_xla(name):
    keras.utils.set_random_seed(0)
    model, x, y = pretraining_model(COMPILED[name])
    expected = float(LOSS(y, model(x)))
    model.compile(keras.optimizers.SGD(0.1), LOSS, jit_compile=True)
    assert model.evaluate(x, y, verbose=0) == pytest.approx(expected, rel=1e-4)
    model.fit(x, y, epochs=2, verbose=0)
    assert model.evaluate(x, y, verbose=0) < expected


def test_summarize_config_matches_built_model():
    for name in ("mixtral-tiny", "t5-tiny", "bert-tiny", "gemma3-tiny"):
        config = models.preset(name)
        assert models.summarize(config) == models.summarize(models.build(config))
    large = models.summarize(models.preset("gpt3-175b"))
    assert 1.74e11 < large["parameters"] < 1.76e11
    assert 2 * 1.74e11 < large["flops_per_token"] < 2 * 1.76e11
    mixture = models.summarize(models.preset("mixtral-8x7b"))
    assert 46e9 < mixture["parameters"] < 47e9 and 25e9 < mixture["flops_per_token"] < 26e9


@pytest.mark.parametrize("objective", ["skip_gram", "cbow"])
def test_words_of_same_context_get_similar_vectors(objective):
    """Two topics of five words; neighbors are always of the same topic."""
    keras.utils.set_random_seed(0)
    draw = np.random.default_rng(0)
    topic = draw.integers(0, 2, 4000)
    words = 1 + 5 * topic[:, None] + draw.integers(0, 5, (4000, 3))
    negatives = draw.integers(1, 11, (4000, 4))
    model = models.word_vectors(models.WordVectorsConfig(11, 6, objective))
    candidates = np.concatenate([words[:, :1], negatives], axis=1)
    inputs = words[:, 1] if objective == "skip_gram" else words[:, 1:]
    labels = np.tile([1.0, 0, 0, 0, 0], (4000, 1))
    model.compile(keras.optimizers.Adam(0.02), keras.losses.BinaryCrossentropy(from_logits=True))
    model.fit([inputs, candidates], labels, epochs=4, verbose=0, batch_size=64)
    table = models.word_vector_table(model)[1:]
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    similar = table @ table.T
    same = np.kron(np.eye(2), np.ones((5, 5))) > 0
    assert similar[same].min() > similar[~same].max()


def test_cbow_ignores_padding():
    model = models.word_vectors(models.WordVectorsConfig(11, 6, "cbow"))
    model.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in model.weights])
    candidates = np.array([[1, 2, 3]])
    np.testing.assert_allclose(
        model([np.array([[4, 5, 0, 0]]), candidates]),
        model([np.array([[4, 5]]), candidates]),
        atol=1e-6,
    )


def test_glove_matches_weighted_least_squares():
    draw = np.random.default_rng(0)
    model = models.word_vectors(models.WordVectorsConfig(7, 3, "glove"))
    model.set_weights([draw.normal(size=w.shape) for w in model.weights])
    weights = {w.path.split("/")[-2]: np.asarray(w) for w in model.weights}
    i, j = np.array([1, 2, 5]), np.array([3, 6, 5])
    expected = (weights["word_embedding"][i] * weights["context_embedding"][j]).sum(-1)
    expected += weights["word_bias"][i, 0] + weights["context_bias"][j, 0]
    np.testing.assert_allclose(model([i, j]), expected, atol=1e-5)
    counts = np.array([400.0, 9.0, 0.0])
    f = np.minimum(1, (counts / 100) ** 0.75)
    squares = f[:2] * (expected[:2] - np.log(counts[:2])) ** 2
    loss = training.GloVeLoss()(counts, np.asarray(model([i, j])))
    np.testing.assert_allclose(loss, squares.sum() / 3, rtol=1e-5)
    np.testing.assert_allclose(
        models.word_vector_table(model),
        weights["word_embedding"] + weights["context_embedding"],
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="x_max"):
        training.GloVeLoss(x_max=0)
