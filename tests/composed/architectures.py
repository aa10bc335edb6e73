"""Draw random language models, composed of layers of Keras, KerasHub and this library."""

import keras
import keras_hub
from keras import layers, ops

from keras_llm import layers as own_layers
from keras_llm.layers import Alibi, Rotary

VOCABULARY, WIDTH, LENGTH = 40, 16, 24


@keras.saving.register_keras_serializable("tests")
class PreNorm(layers.Layer):
    """A layer of other layers, with a weight of its own, that knows nothing of caches."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.LayerNormalization(dtype=self.dtype_policy)
        self.attention = layers.MultiHeadAttention(2, 8, dtype=self.dtype_policy)

    def build(self, shape):
        self.norm.build(shape)
        self.attention.build(shape, shape)
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")
        self.built = True

    def call(self, x):
        h = self.norm(x)
        new = self.attention(h, h, use_causal_mask=True) * self.scale
        return x + ops.cast(new, x.dtype)


@keras.saving.register_keras_serializable("tests")
class GatedRecurrence(layers.Layer):
    """A linear recurrence `h_t = g_t h_{t-1} + (1 - g_t) x_t` with a state of its own."""

    def build(self, shape):
        self.gate = layers.Dense(shape[-1], activation="sigmoid", dtype=self.dtype_policy)
        self.gate.build(shape)
        self.built = True

    def empty_cache(self, batch_size, length):
        return ops.zeros((batch_size, WIDTH), self.compute_dtype)

    def call(self, x, cache=None, padding_mask=None):
        gates = self.gate(x)
        if padding_mask is not None:
            gates = ops.where(ops.expand_dims(padding_mask, -1), gates, 1)

        # All sums at once, without a loop: weights[t, s] = g_(s+1) ... g_t.
        logs = ops.cumsum(ops.log(ops.cast(gates, "float32")), axis=1)
        length = ops.shape(x)[1]
        past = ops.expand_dims(ops.arange(length), 1) >= ops.arange(length)
        sums = ops.expand_dims(logs, 2) - ops.expand_dims(logs, 1)
        weights = ops.exp(ops.where(ops.expand_dims(past, -1), sums, -1e9))
        new = ops.cast((1 - gates) * x, "float32")
        states = ops.sum(weights * ops.expand_dims(new, 1), axis=2)
        if cache is not None:
            states += ops.exp(logs) * ops.expand_dims(ops.cast(cache, "float32"), 1)
        states = ops.cast(states, x.dtype)
        return x + states if cache is None else (x + states, states[:, -1])

    def compute_output_spec(self, x, **kwargs):
        return keras.KerasTensor(x.shape, self.compute_dtype)


@keras.saving.register_keras_serializable("tests")
class Shift(layers.Layer):
    """Add to each token the position that it is told, scaled."""

    def call(self, x, positions=None):
        if positions is None:
            positions = ops.arange(ops.shape(x)[1])
        return x + ops.expand_dims(ops.cast(positions, x.dtype), -1) / 64


def draw_model(rng):
    """Return a model from token ids (B, T) to logits (B, T, V), drawn with a NumPy generator."""
    dtype = rng.choice(["float32", "float32", "float32", "mixed_bfloat16"])
    token_ids = keras.Input((rng.choice([None, LENGTH]),), dtype="int32")
    x, embedding = _embedded(rng, token_ids, dtype)
    for _ in range(rng.integers(1, 4)):
        x = _block(rng, dtype, depth=0)(x)
    if rng.random() < 0.5:
        x = layers.LayerNormalization(dtype=dtype)(x)
    return keras.Model(token_ids, _head(rng, x, embedding, dtype))


def _embedded(rng, token_ids, dtype):
    kind = rng.integers(5)
    if kind == 0:
        layer = own_layers.TokenAndPositionEmbedding(VOCABULARY, LENGTH, WIDTH, dtype=dtype)
        return layer(token_ids), layer.token_embedding
    if kind == 1:
        layer = keras_hub.layers.TokenAndPositionEmbedding(VOCABULARY, LENGTH, WIDTH, dtype=dtype)
        return layer(token_ids), layer.token_embedding
    embedding = layers.ReversibleEmbedding(VOCABULARY, WIDTH, dtype=dtype)
    x = embedding(token_ids)
    if kind == 2:
        x = x + own_layers.SinePositionEncoding(dtype=dtype)(x)
    if kind == 3:
        x = Shift(dtype=dtype)(x)
    return x, embedding


def _head(rng, x, embedding, dtype):
    kind = rng.integers(4)
    if kind == 0:
        logits = embedding(x, reverse=True)
    elif kind == 1:
        logits = layers.Dense(VOCABULARY, dtype=dtype)(x)
    elif kind == 2:
        logits = 5.0 * ops.tanh(layers.Dense(VOCABULARY, dtype=dtype)(x) / 5.0)
    else:  # two projections
        logits = layers.Dense(VOCABULARY, dtype=dtype)(x) + embedding(x, reverse=True)
    return layers.Activation("linear", dtype="float32")(logits)


def _block(rng, dtype, depth):
    """Return a function from (B, T, D) to (B, T, D)."""
    kinds = [_decoder, _attention, _grouped, _recurrent, _convolution, _hub, _feed_forward, _own]
    if depth < 2:
        kinds += [_branches, _nested, _shared]
    return kinds[rng.integers(len(kinds))](rng, dtype, depth)


def _decoder(rng, dtype, depth):
    window = rng.choice([None, 3])
    return own_layers.TransformerDecoder(
        2 * WIDTH,
        4,
        num_key_value_heads=int(rng.choice([1, 2, 4])),
        position=[None, Rotary(), Alibi()][rng.integers(3)],
        norm=str(rng.choice(["layer", "rms"])),
        gated=bool(rng.integers(2)),
        normalize_first=bool(rng.integers(2)),
        sliding_window=window,
        num_sink_tokens=0 if window is None else int(rng.integers(2)),
        dtype=dtype,
    )


def _attention(rng, dtype, depth):
    norm = layers.LayerNormalization(dtype=dtype)
    window = rng.choice([None, 4])
    attention = layers.MultiHeadAttention(
        2, 4, value_dim=int(rng.choice([4, 6])), sliding_window=window, dtype=dtype
    )

    def block(x):
        h = norm(x)
        return x + attention(h, h, use_causal_mask=True)

    return block


def _grouped(rng, dtype, depth):
    attention = layers.GroupQueryAttention(4, 4, int(rng.choice([1, 2])), dtype=dtype)
    return lambda x: x + attention(x, x, use_causal_mask=True)


def _recurrent(rng, dtype, depth):
    kind = [layers.GRU, layers.LSTM, layers.SimpleRNN][rng.integers(3)]
    return kind(WIDTH, return_sequences=True, dtype=dtype)


def _convolution(rng, dtype, depth):
    size, dilation = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    convolution = layers.Conv1D(
        WIDTH,
        size,
        padding="causal",
        dilation_rate=dilation,
        groups=int(rng.choice([1, 1, 2])),
        dtype=dtype,
    )
    return lambda x: x + convolution(x)


def _hub(rng, dtype, depth):
    return keras_hub.layers.TransformerDecoder(
        2 * WIDTH, 2, normalize_first=bool(rng.integers(2)), dtype=dtype
    )


def _feed_forward(rng, dtype, depth):
    up = layers.Dense(24, activation="gelu", dtype=dtype)
    down = layers.Dense(WIDTH, dtype=dtype)
    return lambda x: x + down(up(x)) * ops.sigmoid(x)


def _own(rng, dtype, depth):
    return [PreNorm, GatedRecurrence, Shift][rng.integers(3)](dtype=dtype)


def _branches(rng, dtype, depth):
    first, second = _block(rng, dtype, depth + 1), _block(rng, dtype, depth + 1)
    if rng.integers(2):
        return lambda x: first(x) + second(x)
    mixed = layers.Dense(WIDTH, dtype=dtype)
    return lambda x: mixed(layers.Concatenate(dtype=dtype)([first(x), second(x)]))


def _nested(rng, dtype, depth):
    inputs = keras.Input((None, WIDTH), dtype=keras.DTypePolicy(dtype).compute_dtype)
    return keras.Model(inputs, _block(rng, dtype, depth + 1)(inputs))


def _shared(rng, dtype, depth):
    block = _block(rng, dtype, depth + 1)
    return lambda x: block(block(x))
