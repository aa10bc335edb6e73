"""Test language models that are composed from layers of Keras, KerasHub and one's own."""

import importlib
import importlib.util
import os
import pathlib

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers, ops

import keras_llm
from keras_llm import layers as own_layers
from keras_llm import models, tasks, tokenizers, training
from keras_llm.errors import InputError
from keras_llm.models.graph import graph_of

_SPEC = importlib.util.spec_from_file_location(
    "architectures", pathlib.Path(__file__).with_name("architectures.py")
)
architectures = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(architectures)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "8"))
V = architectures.VOCABULARY
TEXTS = ["once upon a time there was a fox", "a fox met a hen", "the hen sang a song"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.SentencePiece.train(TEXTS, 300, "bpe")


def tokens(*layers_of_model, length=None, width=16):
    """Return a model that embeds tokens and applies layers or functions."""
    token_ids = keras.Input((length,), dtype="int32")
    x = layers.Embedding(V, width)(token_ids)
    for layer in layers_of_model:
        x = layer(x)
    return keras.Model(token_ids, layers.Dense(V)(x))


def largest_error(model, low=0):
    """Return the largest difference of logits with a cache and without; tokens are >= `low`."""
    token_ids = np.random.default_rng(0).integers(low, V, (2, 12)).astype("int32")
    whole = np.asarray(model(token_ids))
    logits, cache = models.prefill(model, token_ids[:, :5], [5, 3], models.init_cache(model, 2, 20))
    errors = [np.asarray(logits) - whole[[0, 1], [4, 2]]]
    for step in range(5):
        positions = np.array([[5 + step], [3 + step]])
        new = np.take_along_axis(token_ids, positions, 1)
        logits, cache = models.decode(model, new, positions, cache)
        errors.append(np.asarray(logits) - whole[[0, 1], positions[:, 0]])
    logits, _ = models.prefill(model, token_ids, [12, 7], models.init_cache(model, 2, 20), chunk=5)
    errors.append(np.asarray(logits) - whole[[0, 1], [11, 6]])
    return np.abs(errors).max() / max(1, np.abs(whole).max())


@hypothesis.settings(max_examples=EXAMPLES)
@hypothesis.given(seed=st.integers(0, 10**6))
def test_random_architectures_decode_as_without_cache(seed):
    composed = models.as_causal_lm(architectures.draw_model(np.random.default_rng(seed)))
    dtypes = {layer.compute_dtype for layer in composed.layers}
    assert largest_error(composed) < (0.06 if "bfloat16" in dtypes else 1e-4)


def random_task(seed, tokenizer, monkeypatch):
    monkeypatch.setattr(architectures, "VOCABULARY", 300)
    keras.utils.set_random_seed(seed)
    model = architectures.draw_model(np.random.default_rng(seed))
    task = keras_llm.TextGeneration(model, tokenizer)
    # Wider weights give greedy texts without ties, but also amplify rounding: at a factor of 1.5,
    # logits of 40 differ by up to 1e-3 between runtimes, at 1.25 by 1e-5.
    for weight in task.model.trainable_weights:
        weight.assign(weight * 1.25)
    return task


@pytest.mark.parametrize("seed", range(max(1, EXAMPLES // 10)))
def test_random_architectures_are_exported(seed, tokenizer, tmp_path, monkeypatch):
    """The exports compare greedy texts and logits with Keras, or raise an error."""
    task = random_task(seed, tokenizer, monkeypatch)
    report = task.export("saved_model", tmp_path / "saved_model")
    assert report["parity"]["prompts"] > 4
    report = task.export("litert", tmp_path / "model.tflite")
    assert report["parity"]["steps"] > 20


class LearnedPositions(layers.Layer):
    """An embedding of positions that does not know where new tokens are."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.table = layers.Embedding(64, 16)

    def call(self, x):
        return x + self.table(ops.arange(ops.shape(x)[1]))


@keras.saving.register_keras_serializable("tests")
class TokenPositions(LearnedPositions):
    def call(self, x, positions=None):
        positions = ops.arange(ops.shape(x)[1]) if positions is None else positions
        return x + self.table(positions)


def attend(**options):
    layer = layers.MultiHeadAttention(2, 8)
    return lambda x: layer(x, x, **options)


@pytest.mark.parametrize(
    "layer, incremental, message",
    [
        (LearnedPositions(name="places"), True, "'places'.*new tokens alone.*`positions`"),
        (lambda x: ops.cumsum(x, axis=1), True, "Cumsum.*new tokens alone.*incremental=False"),
        (attend(), True, "multi_head_attention.*later positions.*use_causal_mask=True"),
        (attend(), False, "multi_head_attention.*depends on later tokens"),
        (layers.Bidirectional(layers.GRU(8, return_sequences=True)), True, "later positions"),
        (layers.Conv1D(16, 3, padding="same", name="c"), True, "layer 'c'.*padding=\"causal\""),
        (layers.Conv1D(16, 3, padding="same", name="c"), False, "layer 'c'.*later tokens"),
        (layers.GRU(16, return_sequences=True, go_backwards=True), True, "go_backwards"),
        (own_layers.TransformerEncoder(32, 2), True, "later positions"),
        (lambda x: x + ops.mean(x, axis=1, keepdims=True), True, "depends on later tokens"),
    ],
)
def test_layers_that_cannot_run_token_by_token_are_named(layer, incremental, message):
    with pytest.raises(InputError, match=message):
        models.as_causal_lm(tokens(layer), incremental=incremental)


@pytest.mark.parametrize("layer", [LearnedPositions(), lambda x: ops.cumsum(x, axis=1) / 8])
def test_any_causal_model_runs_without_a_cache(layer):
    composed = models.as_causal_lm(tokens(layer), max_length=24, incremental=False)
    assert list(models.init_cache(composed, 2, 20)) == ["cached_token_ids"]
    assert largest_error(composed) < 1e-5


def test_models_with_other_inputs_or_outputs_raise_error():
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(V, 16)(token_ids)
    pooled = layers.GlobalAveragePooling1D()(x)
    for model in (
        keras.Model(token_ids, [x, x]),
        keras.Model(token_ids, pooled),
        keras.Model([token_ids, keras.Input((None,))], x),
    ):
        with pytest.raises(InputError, match=r"map token ids \(B, T\) to logits"):
            models.as_causal_lm(model)
    with pytest.raises(InputError, match=r"`model` must be a `keras\.Model`, got str"):
        models.as_causal_lm("gpt2")
    with pytest.raises(InputError, match="must be built"):
        models.as_causal_lm(keras.Sequential([layers.Embedding(V, 16)]))


def test_max_length_comes_from_input_embedding_or_argument():
    def length(model, **options):
        return models.as_causal_lm(model, **options).config.max_length

    positions = own_layers.PositionEmbedding(20)
    assert length(tokens(lambda x: x + positions(x))) == 20
    assert length(tokens(TokenPositions(), length=24)) == 24
    assert length(tokens(TokenPositions())) == 1024
    assert length(tokens(TokenPositions()), max_length=50) == 50
    with pytest.raises(InputError, match="`max_length` must be at most 20, the length of the"):
        length(tokens(lambda x: x + positions(x)), max_length=21)


def test_subclass_around_a_functional_core():
    class Wrapped(keras.Model):
        def __init__(self):
            super().__init__()
            self.core = tokens(attend(use_causal_mask=True))

        def call(self, token_ids):
            return self.core(token_ids) / 2

    class WithWeight(Wrapped):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(name="scale", shape=())

        def call(self, token_ids):
            return self.core(token_ids) * self.scale

    model = Wrapped()
    composed = models.as_causal_lm(model)
    ids = np.arange(8)[None]
    np.testing.assert_allclose(composed(ids), model(ids), rtol=1e-5)
    assert largest_error(composed) < 1e-5
    with pytest.raises(InputError, match="scale of WithWeight belongs to none of its layers"):
        models.as_causal_lm(WithWeight())


def test_compose_fit_save_and_load(tokenizer, tmp_path):
    """A tied embedding within another layer stays shared."""
    embed = own_layers.TokenAndPositionEmbedding(300, 24, 16)
    token_ids = keras.Input((24,), dtype="int32")
    x = architectures.PreNorm()(embed(token_ids))
    model = keras.Model(token_ids, embed.token_embedding(x, reverse=True))
    task = keras_llm.TextGeneration(model, tokenizer)
    before = np.array(embed.token_embedding.embeddings)
    history = task.fit(TEXTS, epochs=3, sequence_length=12, batch_size=8, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert np.abs(np.array(embed.token_embedding.embeddings) - before).max() > 1e-3
    task.save(tmp_path / "task")
    loaded = keras_llm.load(tmp_path / "task")
    assert len(loaded.model.weights) == len(task.model.weights)
    arguments = {"max_new_tokens": 6, "temperature": 0.0}
    expected = task(["once", "the hen"], **arguments)
    assert loaded(["once", "the hen"], **arguments) == expected
    assert task(["once", "the hen"], beam_width=1, **arguments) == expected
    assert task("the hen", prompt_lookup=2, **arguments) == expected[1]
    assert "".join(task.stream("the hen", **arguments)) == expected[1]
    assert task.score("a fox") == pytest.approx(loaded.score("a fox"))


def test_states_refuse_speculation(tokenizer):
    gru = layers.GRU(16, return_sequences=True)
    token_ids = keras.Input((None,), dtype="int32")
    x = gru(layers.Embedding(300, 16)(token_ids))
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    with pytest.raises(InputError, match=r"speculative decoding does not support.*state_0_0"):
        task("a fox", prompt_lookup=2, temperature=0.0)


def test_loading_refuses_unknown_and_unsafe_layers(tokenizer, tmp_path):
    @keras.saving.register_keras_serializable("tests", "Forgotten")
    class Forgotten(layers.Layer):
        def call(self, x):
            return x

    token_ids = keras.Input((None,), dtype="int32")
    x = Forgotten()(layers.Embedding(300, 16)(token_ids))
    model = keras.Model(token_ids, layers.Dense(300)(x))
    task = keras_llm.TextGeneration(model, tokenizer)
    task.save(tmp_path / "task")
    keras.saving.get_custom_objects().pop("tests>Forgotten")
    with pytest.raises(InputError, match="Forgotten, which is not registered"):
        keras_llm.load(tmp_path / "task")
    model = keras.Model(token_ids, layers.Dense(300)(layers.Lambda(lambda x: x * 2)(x)))
    keras_llm.TextGeneration(model, tokenizer).save(tmp_path / "unsafe")
    keras.saving.register_keras_serializable("tests", "Forgotten")(Forgotten)
    with pytest.raises(InputError, match="Lambda"):
        keras_llm.load(tmp_path / "unsafe")


def test_loss_of_any_head_matches_logits():
    """Losses are computed in chunks from the states or, for other heads, from the logits."""
    token_ids = np.random.default_rng(0).integers(0, V, (4, 8)).astype("int32")
    for head in (lambda x: x, lambda x: 3 * ops.tanh(x)):
        source = keras.Input((None,), dtype="int32")
        x = layers.Dense(V)(TokenPositions()(layers.Embedding(V, 16)(source)))
        composed = models.as_causal_lm(keras.Model(source, head(x)))
        trainer = training.LanguageModelTrainer(composed)
        trainer.compile(keras.optimizers.SGD(0.1))
        losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        expected = losses(token_ids[:, 1:], composed(token_ids[:, :-1]))
        measured = trainer.evaluate(token_ids[:, :-1], token_ids[:, 1:], verbose=0)
        np.testing.assert_allclose(np.ravel(measured)[0], expected, rtol=1e-4)
        before = np.array(composed.trainable_weights[0])
        trainer.fit(token_ids[:, :-1], token_ids[:, 1:], verbose=0)
        assert np.abs(np.array(composed.trainable_weights[0]) - before).max() > 1e-6


def hub(kind, **options):
    return getattr(importlib.import_module("keras_hub").layers, kind)(**options)


@pytest.mark.parametrize(
    "layer",
    [
        lambda x: attend(use_causal_mask=True)(TokenPositions()(x)),
        lambda x: layers.GroupQueryAttention(4, 4, 2)(x, x, use_causal_mask=True),
        lambda x: own_layers.TransformerDecoder(32, 2, position=own_layers.Rotary())(x),
        lambda x: own_layers.TransformerDecoder(32, 2, sliding_window=3)(x),
        lambda x: hub("TransformerDecoder", intermediate_dim=32, num_heads=2)(
            x + hub("SinePositionEncoding")(x)
        ),
        architectures.PreNorm(),
    ],
)
def test_packed_rows_match_their_documents(layer):
    model = models.as_causal_lm(tokens(layer))
    row = np.random.default_rng(0).integers(0, V, (1, 8)).astype("int32")
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 4]])
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 2]])
    same = segments[:, :, None] == segments[:, None]
    mask = same & (positions[:, :, None] >= positions[:, None])
    packed = np.asarray(models.forward(model, row, positions, mask))
    apart = [np.asarray(model(row[:, part])) for part in (slice(0, 3), slice(3, 8))]
    np.testing.assert_allclose(packed, np.concatenate(apart, axis=1), atol=1e-5)
    assert np.abs(packed - np.asarray(model(row))).max() > 1e-3


def test_training_on_segments(tokenizer):
    token_ids = keras.Input((None,), dtype="int32")
    x = own_layers.TokenAndPositionEmbedding(300, 32, 16)(token_ids)
    x = layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    options = {"sequence_length": 12, "batch_size": 8, "verbose": 0}
    before = task.evaluate(TEXTS, sequence_length=12, segments=True)["perplexity"]
    task.compile(learning_rate=0.01)
    task.fit(TEXTS, epochs=2, segments=True, **options)
    after = task.evaluate(TEXTS, sequence_length=12, segments=True)["perplexity"]
    assert after < 0.8 * before


def test_layers_that_mix_segments_raise_error():
    ids = np.ones((2, 4), "int32")
    rows = {"token_ids": ids, "segment_ids": ids, "positions": ids}
    for layer in (
        layers.GRU(16, return_sequences=True, name="mixer"),
        layers.Conv1D(16, 3, padding="causal", name="mixer"),
        architectures.GatedRecurrence(name="mixer"),
    ):
        trainer = training.LanguageModelTrainer(models.as_causal_lm(tokens(layer)))
        with pytest.raises(InputError, match=r"layer 'mixer' .*mix the documents"):
            trainer(rows)
    model = models.as_causal_lm(tokens(layers.Dense(16)), incremental=False)
    with pytest.raises(InputError, match="might mix the documents"):
        training.LanguageModelTrainer(model)(rows)


def test_attention_maps_are_those_of_the_layers():
    attention = layers.MultiHeadAttention(2, 8)
    block = own_layers.TransformerDecoder(32, 4)

    def composed(x):
        return block(architectures.PreNorm()(attention(x, x, use_causal_mask=True)))

    model = models.as_causal_lm(tokens(composed))
    token_ids = np.arange(6)[None]
    maps = [np.asarray(x) for x in models.attention_maps(model, {"token_ids": token_ids})]
    assert [x.shape for x in maps] == [(1, 2, 6, 6), (1, 2, 6, 6), (1, 4, 6, 6)]
    x = model.layers[1](token_ids)
    _, expected = attention(x, x, use_causal_mask=True, return_attention_scores=True)
    np.testing.assert_allclose(maps[0], expected, atol=1e-6)
    for x in maps:
        np.testing.assert_allclose(x.sum(-1), 1, atol=1e-5)
        assert np.abs(np.triu(x, 1)).max() == 0
    with pytest.raises(InputError, match="no attention"):
        models.attention_maps(models.as_causal_lm(tokens()), {"token_ids": token_ids})


def test_explanation_of_composed_models(tokenizer):
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(300, 16)(token_ids)
    x = layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)
    x = layers.GRU(16, return_sequences=True)(x)
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    explanation = tasks.explain(task, "a fox met")
    count = len(explanation.tokens)
    assert [x.shape for x in explanation.attention] == [(2, count, count)]
    assert len(explanation.heads) == 2 and explanation.lens is None and explanation.neighbors


def test_quantized_composed_model_is_reloaded(tokenizer, tmp_path):
    token_ids = keras.Input((None,), dtype="int32")
    x = own_layers.TransformerDecoder(32, 2)(layers.Embedding(300, 16)(token_ids))
    x = layers.GroupQueryAttention(8, 4, 2)(x, x, use_causal_mask=True)
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    task.model.quantize("int8")
    text = task("a fox", max_new_tokens=4, temperature=0.0)
    task.save(tmp_path / "task")
    assert keras_llm.load(tmp_path / "task")("a fox", max_new_tokens=4, temperature=0.0) == text


def test_lora_and_summary_of_composed_models(tokenizer):
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(300, 16)(token_ids)
    x = own_layers.TransformerDecoder(32, 2)(x)
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    summary = models.summarize(task.model)
    assert summary["cache_bytes_per_token"] == 2 * 16 * 4
    adapted = task.enable_lora(rank=2)
    assert len(adapted) == 4 and all("self_attention" in path for path in adapted)
    task.fit(TEXTS, epochs=1, sequence_length=12, batch_size=8, verbose=0)
    merged = training.merge_lora(task.model)
    ids = np.arange(8)[None]
    np.testing.assert_allclose(merged(ids), task.model(ids), atol=1e-4)


@keras.saving.register_keras_serializable("tests")
class Unnamed(layers.Layer):
    """A layer whose config has no name, and which makes layers without names."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.up = layers.Dense(16)

    def build(self, shape):
        self.up.build(shape)
        self.down = layers.Dense(16)
        self.down.build(shape)
        self.built = True

    def call(self, x):
        return x + self.down(ops.tanh(self.up(x)))


def test_adapters_are_loaded_onto_the_same_layers(tokenizer, tmp_path):
    """Keras numbers layers anew, in another order, when the model is loaded."""
    last, first = Unnamed(), Unnamed()  # numbered in this order
    inner = keras.Sequential([layers.Dense(16, name="up"), layers.Dense(16)])
    token_ids = keras.Input((None,), dtype="int32")
    x = inner(last(first(layers.Embedding(300, 16)(token_ids))))
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    task.save(tmp_path / "base")
    adapted = task.enable_lora(2, "(dense|up)")
    assert len(adapted) == 7
    for weight in task.model.trainable_weights:
        weight.assign(keras.random.normal(weight.shape, seed=3))
    training.save_lora(task.model, tmp_path / "adapters.safetensors")
    base = keras_llm.load(tmp_path / "base")
    assert training.load_lora(base.model, tmp_path / "adapters.safetensors") == adapted
    ids = np.arange(8)[None]
    np.testing.assert_allclose(base.model(ids), task.model(ids), rtol=1e-5, atol=1e-5)


def test_default_adapters_of_attention_of_keras(tokenizer):
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(300, 16)(token_ids)
    for _ in range(2):
        x = layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True)
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    assert len(task.enable_lora(rank=2)) == 8


def test_slices_in_the_graph_are_saved(tokenizer, tmp_path):
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(300, 16)(token_ids)
    x = x + ops.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    model = keras.Model(token_ids, layers.Dense(300)(x[..., ::-1]))
    task = keras_llm.TextGeneration(model, tokenizer, incremental=False)
    task.save(tmp_path / "task")
    loaded = keras_llm.load(tmp_path / "task")
    assert loaded("a fox", max_new_tokens=4, temperature=0.0) == task(
        "a fox", max_new_tokens=4, temperature=0.0
    )


def test_dropout_is_on_in_training_only():
    own = models.causal_lm(models.preset("gpt3-tiny", dropout=0.3))
    composed = models.as_causal_lm(tokens(layers.Dropout(0.3), architectures.PreNorm()))
    token_ids = np.arange(12)[None] % V
    for model in (own, composed):
        trainer = training.LanguageModelTrainer(model)
        first, second, other = (
            np.asarray(trainer(token_ids, training=training_mode))
            for training_mode in (True, True, False)
        )
        assert np.abs(first - second).max() > 1e-3
        np.testing.assert_allclose(other, trainer(token_ids, training=False))


@keras.saving.register_keras_serializable("tests")
class FromWeights(layers.Layer):
    """Attention and a scale that is computed from a weight alone."""

    def build(self, shape):
        self.attention = layers.MultiHeadAttention(2, 8)
        self.attention.build(shape, shape)
        self.gamma = self.add_weight(name="gamma", shape=(shape[-1],), initializer="zeros")
        self.built = True

    def call(self, x):
        return self.attention(x, x, use_causal_mask=True) * (1.0 + self.gamma)


def test_layers_that_compute_from_weights_alone_are_not_traced(tokenizer):
    with pytest.raises(InputError, match=r"'scaled' \(FromWeights\).*new tokens alone"):
        models.as_causal_lm(tokens(FromWeights(name="scaled")))
    model = models.as_causal_lm(tokens(FromWeights(name="scaled")), incremental=False)
    trainer = training.LanguageModelTrainer(model)
    trainer.compile(keras.optimizers.SGD(1.0))
    ids = np.arange(13)[None] % V
    trainer.fit(ids[:, :-1], ids[:, 1:], verbose=0)
    assert np.abs(np.asarray(model.get_layer("scaled").gamma)).max() > 0

    class Tied(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = layers.Embedding(V, 16)

        def call(self, token_ids):
            x = self.embedding(token_ids)
            return ops.matmul(x, ops.transpose(self.embedding.embeddings))

    tied = Tied()
    tied(np.zeros((1, 2), "int32"))
    with pytest.raises(InputError, match="Tied computes something from weights alone"):
        models.as_causal_lm(tied)


def test_functional_models_with_a_call_of_their_own():
    class Halved(keras.Model):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs, training=training) / 2

    plain = tokens(layers.Dense(16))
    halved = Halved(plain.inputs, plain.outputs)
    ids = np.arange(6)[None]
    composed = models.as_causal_lm(halved)
    np.testing.assert_allclose(composed(ids), np.asarray(plain(ids)) / 2, rtol=1e-5)
    assert largest_error(composed) < 1e-4


@pytest.mark.parametrize("order", [["q", "m"], ["m", "q"]])
def test_nested_models_are_called_with_a_dict(order):
    inner = {name: keras.Input((None, 16), name=name) for name in order}
    product = keras.Model(list(inner.values()), inner["q"] - 2 * inner["m"])
    model = tokens(lambda x: product({"q": x, "m": layers.Dense(16)(x)}))
    ids = np.arange(6)[None]
    np.testing.assert_allclose(models.as_causal_lm(model)(ids), model(ids), rtol=1e-5)
    assert largest_error(models.as_causal_lm(model)) < 1e-4


def test_head_of_a_subclass_is_not_replaced_by_its_kernel():
    @keras.saving.register_keras_serializable("tests")
    class Scaled(layers.Dense):
        def call(self, x):
            return super().call(x) * 3.0

    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(V, 16)(token_ids)
    model = models.as_causal_lm(keras.Model(token_ids, Scaled(V)(x)))
    assert models.output_head(model).kernel is None
    rows = np.arange(8)[None] % V
    np.testing.assert_allclose(models.prediction_states(model, rows), model(rows))


def test_without_a_cache_the_head_may_mix_tokens(tokenizer):
    token_ids = keras.Input((None,), dtype="int32")
    x = ops.cumsum(layers.Dense(300)(layers.Embedding(300, 16)(token_ids)), axis=1)
    model = models.as_causal_lm(keras.Model(token_ids, x), 20, incremental=False)
    ids = np.arange(8)[None]
    cache = models.init_cache(model, 1, 20)
    logits, cache = models.prefill(model, ids[:, :5], [5], cache)
    np.testing.assert_allclose(logits, model(ids)[:, 4], rtol=1e-4, atol=1e-5)
    logits, _ = models.decode(model, ids[:, 5:6], [[5]], cache)
    np.testing.assert_allclose(logits, model(ids)[:, 5], rtol=1e-4, atol=1e-5)


def test_attention_scores_of_operations_may_depend_on_later_tokens():
    def attention(x):
        scores = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        causal = ops.tril(ops.ones_like(scores))
        return ops.matmul(ops.softmax(ops.where(causal > 0, scores, -1e9)), x)

    models.as_causal_lm(tokens(attention), incremental=False)
    with pytest.raises(InputError, match="new tokens alone"):
        models.as_causal_lm(tokens(attention))


def test_queries_and_values_of_different_norms():
    attention = layers.MultiHeadAttention(2, 8)

    def block(x):
        norms = layers.LayerNormalization()(x), layers.UnitNormalization()(x)
        return attention(*norms, use_causal_mask=True)

    model = models.as_causal_lm(tokens(block))
    assert largest_error(model) < 1e-4
    assert len(models.attention_maps(model, {"token_ids": np.arange(5)[None]})) == 1
    own = own_layers.MultiHeadAttention(2, 8)
    with pytest.raises(InputError, match="`value` must be left out"):
        models.as_causal_lm(tokens(lambda x: own(x, layers.Dense(16)(x), use_causal_mask=True)))


@keras.saving.register_keras_serializable("tests")
class Window(layers.Conv1D):
    """A class of Keras with the protocol of its own: it sees the current token only."""

    def empty_cache(self, batch_size, length):
        return ops.zeros((batch_size, 1))

    def call(self, x, cache=None):
        y = ops.matmul(x, self.kernel[0])
        return y if cache is None else (y, cache)


@pytest.mark.parametrize(
    "layer",
    [
        Window(16, 1, padding="same"),
        layers.RNN([layers.LSTMCell(8), layers.GRUCell(16)], return_sequences=True),
    ],
)
def test_subclasses_with_a_cache_and_stacked_cells(layer):
    assert largest_error(models.as_causal_lm(tokens(layer))) < 1e-4


def test_layers_of_another_dtype_are_traced_in_it():
    class Block(architectures.PreNorm):
        def call(self, x):
            h = self.norm(x)
            return self.attention(h, h, use_causal_mask=True) * self.scale

    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(V, 16, dtype="bfloat16")(token_ids)
    x = Block(dtype="float32")(x)
    model = keras.Model(token_ids, layers.Dense(V, dtype="float32")(x))
    dtypes = {spec.dtype for spec in graph_of(model).specs.values() if "float" in spec.dtype}
    assert dtypes == {"bfloat16", "float32"}
    assert graph_of(model).specs[graph_of(model).calls[-2].outputs[0]].dtype == "float32"
    assert largest_error(models.as_causal_lm(model)) < 1e-4


def test_masked_tokens(tokenizer):
    def masked():
        token_ids = keras.Input((None,), dtype="int32")
        x = layers.Embedding(V, 16, mask_zero=True, name="words")(token_ids)
        x = layers.GRU(16, return_sequences=True)(x)
        return keras.Model(token_ids, layers.Dense(V)(x))

    assert largest_error(models.as_causal_lm(masked(), pad_id=0), low=1) < 1e-4
    with pytest.raises(InputError, match=r"layer 'words' masks the token 0.*pads with 3"):
        models.as_causal_lm(masked(), pad_id=3)


def test_adapters_are_merged_into_saved_composed_models(tokenizer, tmp_path):
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Dense(16, name="up")(layers.Embedding(300, 16)(token_ids))
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    task.enable_lora(2, "^up$")
    for weight in task.model.trainable_weights:
        weight.assign(keras.random.normal(weight.shape, seed=1))
    expected, count = task.model(np.arange(6)[None]), len(task.model.weights) - 2
    task.save(tmp_path / "task")
    loaded = keras_llm.load(tmp_path / "task")
    for model in (loaded.model, training.merge_lora(task.model)):
        np.testing.assert_allclose(model(np.arange(6)[None]), expected, rtol=1e-5, atol=1e-5)
        assert len(model.trainable_weights) == len(model.weights) == count
    assert loaded.enable_lora(2, "^up$") == ["up"]


def test_layers_of_one_path_are_not_adapted(tokenizer):
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(300, 16)(token_ids)
    for _ in range(2):
        inputs = keras.Input((None, 16))
        x = keras.Model(inputs, layers.Dense(16, name="up")(inputs))(x)
    task = keras_llm.TextGeneration(keras.Model(token_ids, layers.Dense(300)(x)), tokenizer)
    with pytest.raises(InputError, match="two layers of the path 'up'"):
        task.enable_lora(2, "up")


def test_vocabulary_beyond_the_embedding_is_named():
    token_ids = keras.Input((None,), dtype="int32")
    model = keras.Model(token_ids, layers.Dense(V)(layers.Embedding(4, 16)(token_ids)))
    with pytest.raises(InputError, match=f"cannot be run on token ids from 0 to {V - 1}"):
        models.as_causal_lm(model)
    with pytest.raises(InputError, match="`max_length` must be an int > 1, got '32'"):
        models.as_causal_lm(tokens(), max_length="32")


@keras.saving.register_keras_serializable("tests")
class InTraining(layers.Layer):
    """Attention whose `call` does something else in training."""

    def __init__(self, kind="scale", **kwargs):
        super().__init__(**kwargs)
        self.kind = kind

    def build(self, shape):
        self.attention = layers.MultiHeadAttention(2, 8)
        self.attention.build(shape, shape)
        self.norm = layers.BatchNormalization()
        self.norm.build(shape)
        self.built = True

    def call(self, x, training=False):
        x = self.attention(x, x, use_causal_mask=True)
        if self.kind == "scale" and training:
            x = 3 * x
        return self.norm(x, training=False) if self.kind == "frozen" else x

    def get_config(self):
        return {**super().get_config(), "kind": self.kind}


IN_TRAINING = {
    "scale": lambda: InTraining("scale"),
    "frozen": lambda: InTraining("frozen"),
    "regularizer": lambda: InTraining("", activity_regularizer=keras.regularizers.L2(0.01)),
}


def trained_with_keras_and_trainer(model):
    """Return the losses of two epochs in Keras, and in a `LanguageModelTrainer`."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    ids = np.random.default_rng(0).integers(1, V, (4, 9)).astype("int32")
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer = training.LanguageModelTrainer(models.as_causal_lm(other))
    losses = []
    for trained, loss in ((model, plain), (trainer, None)):
        trained.compile(keras.optimizers.SGD(0.1), loss=loss)
        history = trained.fit(ids[:, :-1], ids[:, 1:], epochs=2, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
    return losses


@pytest.mark.parametrize("kind", IN_TRAINING)
def test_training_runs_layers_as_keras_does(kind):
    expected, actual = trained_with_keras_and_trainer(tokens(IN_TRAINING[kind]()))
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", IN_TRAINING)
def test_packed_rows_refuse_what_a_layer_does_in_training(kind):
    model, ids = models.as_causal_lm(tokens(IN_TRAINING[kind]())), np.arange(8)[None]
    with pytest.raises(InputError, match="something else in training"):
        models.prediction_states(model, ids, positions=ids % 4)


def test_regularizer_of_the_head_holds():
    token_ids = keras.Input((None,), dtype="int32")
    head = layers.Dense(V, activity_regularizer=keras.regularizers.L2(0.1))
    model = keras.Model(token_ids, head(layers.Embedding(V, 16)(token_ids)))
    expected, actual = trained_with_keras_and_trainer(model)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_head_of_another_dtype_is_trained():
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Embedding(V, 16, dtype="mixed_bfloat16")(token_ids)
    model = keras.Model(token_ids, layers.Dense(V, dtype="float32")(x))
    expected, actual = trained_with_keras_and_trainer(model)
    np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_subclasses_that_do_something_else_in_training_are_named():
    class Scaled(keras.Model):
        def __init__(self):
            super().__init__()
            self.core = tokens()

        def call(self, token_ids, training=False):
            return self.core(token_ids) * (2.0 if training else 1.0)

    with pytest.raises(InputError, match="`call` of Scaled computes something else"):
        models.as_causal_lm(Scaled())


def test_probabilities_are_refused():
    with pytest.raises(InputError, match="returns probabilities"):
        token_ids = keras.Input((None,), dtype="int32")
        x = layers.Embedding(V, 16)(token_ids)
        models.as_causal_lm(keras.Model(token_ids, layers.Dense(V, activation="softmax")(x)))


class Band(layers.Layer):
    """A causal mask of the last `width` tokens."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def call(self, x):
        places = ops.arange(ops.shape(x)[1])
        distances = ops.expand_dims(places, 1) - places
        return (distances >= 0) & (distances < self.width)


@pytest.mark.parametrize("width", [40, 64])
def test_masks_that_hide_earlier_tokens_are_named(width):
    def attend(x):
        return layers.MultiHeadAttention(2, 8, name="a")(x, x, attention_mask=Band(width)(x))

    if width < 64:
        with pytest.raises(InputError, match=r"'a'.*`attention_mask` that hides earlier tokens"):
            models.as_causal_lm(tokens(attend), 64)
    else:
        assert largest_error(models.as_causal_lm(tokens(attend), 64)) < 1e-4


class ZeroPositions(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(64, shape[-1]), initializer="zeros")

    def call(self, x):
        return x + self.table[: ops.shape(x)[1]]


def test_weights_of_zeros_hide_no_difference():
    model = tokens(ZeroPositions(name="places"))
    with pytest.raises(InputError, match="'places'"):
        models.as_causal_lm(model, 64)
    assert not np.any(model.get_layer("places").table)


def test_adapters_are_loaded_onto_a_model_that_is_built_again(tokenizer, tmp_path):
    def build():
        token_ids = keras.Input((None,), dtype="int32")
        x = layers.Embedding(300, 16)(token_ids)
        for _ in range(2):
            x = x + layers.Dense(16)(layers.MultiHeadAttention(2, 8)(x, x, use_causal_mask=True))
        model = keras.Model(token_ids, layers.Dense(300)(x))
        return keras_llm.TextGeneration(model, tokenizer, max_length=32)

    first, second = build(), build()
    second.model.set_weights(first.model.get_weights())
    first.enable_lora(2, "multi_head_attention_?1?/(query|value)|dense")
    for weight in first.model.trainable_weights:
        weight.assign(keras.random.normal(weight.shape, seed=2))
    training.save_lora(first.model, tmp_path / "adapter.safetensors")
    training.load_lora(second.model, tmp_path / "adapter.safetensors")
    ids = np.arange(8)[None]
    np.testing.assert_allclose(second.model(ids), first.model(ids), rtol=1e-5, atol=1e-5)
    other = keras_llm.TextGeneration(tokens_of(300), tokenizer, max_length=32)
    with pytest.raises(InputError, match="has no layer"):
        training.load_lora(other.model, tmp_path / "adapter.safetensors")


def test_an_adapter_keeps_its_place_if_another_layer_has_its_name_now(tokenizer, tmp_path):
    def build(first):
        token_ids = keras.Input((None,), dtype="int32")
        x = layers.Embedding(300, 16)(token_ids)
        for number in (first, first + 1):
            x = layers.Dense(16, name=f"dense_{number}")(x)
        model = keras.Model(token_ids, layers.Dense(300, name="logits")(x))
        return keras_llm.TextGeneration(model, tokenizer, max_length=32)

    old, new = build(1), build(2)
    assert old.enable_lora(2, "dense_2$") == ["dense_2"]
    training.save_lora(old.model, tmp_path / "adapter.safetensors")
    assert training.load_lora(new.model, tmp_path / "adapter.safetensors") == ["dense_3"]


def tokens_of(size):
    token_ids = keras.Input((None,), dtype="int32")
    x = layers.Dense(16)(layers.Embedding(size, 16)(token_ids))
    return keras.Model(token_ids, layers.Dense(size)(x))


@keras.saving.register_keras_serializable("tests")
class LatePositions(layers.Layer):
    """Scale tokens after the 16th, which short texts do not show."""

    def call(self, x):
        positions = ops.cast(ops.arange(ops.shape(x)[1]), x.dtype)
        return x * ops.expand_dims(ops.maximum(1.0, positions / 16.0), -1)


def test_differences_after_the_first_tokens_are_found():
    with pytest.raises(InputError, match=r"'late' \(LatePositions\) gives other outputs"):
        models.as_causal_lm(tokens(LatePositions(name="late")), 128)
    models.as_causal_lm(tokens(LatePositions(name="late")), 16)


@keras.saving.register_keras_serializable("tests")
class WithLoss(architectures.PreNorm):
    """Attention, and a loss of its own."""

    def call(self, x):
        self.add_loss(ops.mean(ops.square(x)))
        return super().call(x)


def test_losses_of_layers_with_attention_are_trained_on():
    model = models.as_causal_lm(tokens(WithLoss(name="block")))
    assert largest_error(model) < 1e-4
    trainer = training.LanguageModelTrainer(model)
    ids = np.arange(13)[None] % V
    trainer.compile(keras.optimizers.SGD(0.0))
    with_loss = trainer.evaluate(ids[:, :-1], ids[:, 1:], verbose=0)
    x = model.layers[1](ids[:, :-1])
    logits = np.asarray(model(ids[:, :-1]))[0]
    cross = np.log(np.exp(logits).sum(-1)) - logits[np.arange(12), ids[0, 1:]]
    expected = cross.mean() + float(ops.mean(ops.square(x)))
    assert np.ravel(with_loss)[0] == pytest.approx(expected, rel=1e-3)
    rows = {name: ids[:, :-1] * 0 for name in ("token_ids", "segment_ids", "positions")}
    with pytest.raises(InputError, match=r"'block' .*does something else in training"):
        trainer(rows)


def test_fixed_length_inputs_that_need_padding(tokenizer):
    token_ids = keras.Input((12,), dtype="int32")
    x = layers.Embedding(300, 16)(token_ids)
    x = x + layers.Embedding(12, 16)(ops.arange(12))
    model = keras.Model(token_ids, layers.Dense(300)(x))
    task = keras_llm.TextGeneration(model, tokenizer, incremental=False)
    ids = np.arange(12)[None]
    np.testing.assert_allclose(task.model(ids[:, :5]), model(ids)[:, :5], atol=1e-5)
    assert isinstance(task("a fox", max_new_tokens=3), str)
