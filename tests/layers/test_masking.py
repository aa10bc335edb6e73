"""Compare masks that Keras attaches to tensors, and masks with a cache, with keras_nlp."""

import keras
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_llm
from keras_llm import layers
from keras_llm.keras_internals import implicit_mask

RNG = np.random.default_rng(17)
REAL = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], bool)
ARGUMENTS = {"intermediate_dim": 12, "num_heads": 4}


def random(*shape):
    return RNG.normal(size=shape).astype("float32")


def masked(x, mask):
    """Return a tensor that carries a mask, as `keras.layers.Masking` makes one."""
    x = np.where(mask[..., None], x, 0.0).astype("float32")
    return keras.layers.Masking()(ops.convert_to_tensor(x))


@pytest.fixture
def blocks(copy_block_weights):
    """Return a function that makes a block of ours and one of keras_nlp, with equal weights."""

    def make(name, inputs, **options):
        ours, theirs = (
            getattr(module.layers, name)(**ARGUMENTS, **options)
            for module in (keras_llm, keras_nlp)
        )
        ours(*inputs), theirs(*inputs)
        copy_block_weights(ours, theirs)
        return ours, theirs

    return make


def call(layer, *inputs, **arguments):
    """Call a layer on arrays, and on pairs of an array and the mask that is attached to it.

    Keras's own attention removes the masks of its inputs, so every call needs new ones.
    """
    tensors = [masked(*x) if isinstance(x, tuple) else x for x in inputs]
    return np.asarray(layer(*tensors, **arguments))


def without_masks(inputs):
    return [np.where(x[1][..., None], x[0], 0.0).astype("float32") for x in inputs]


def check_same_on_real_tokens(ours, theirs, inputs, real, **masks):
    """Compare the layers where `real` is True, and check that the attached masks matter."""
    output = call(ours, *inputs, **masks)
    np.testing.assert_allclose(output[real], call(theirs, *inputs, **masks)[real], atol=1e-5)
    return np.abs(output - call(ours, *without_masks(inputs), **masks))[real].max() > 0.01


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("explicit", [False, True])
def test_attached_mask_of_encoder_matches_keras_nlp(normalize_first, explicit, blocks):
    inputs = [(random(3, 5, 8), REAL)]
    ours, theirs = blocks(
        "TransformerEncoder", without_masks(inputs), normalize_first=normalize_first
    )
    masks = {"padding_mask": np.arange(5) < np.array([[2], [4], [5]])} if explicit else {}
    assert check_same_on_real_tokens(ours, theirs, inputs, REAL, **masks)


@pytest.mark.parametrize("normalize_first", [False, True])
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_attached_masks_of_decoder_match_keras_nlp(normalize_first, explicit, cross, blocks):
    inputs = [(random(3, 5, 8), REAL)] + [(random(3, 5, 8), REAL[:, ::-1])] * cross
    ours, theirs = blocks(
        "TransformerDecoder", without_masks(inputs), normalize_first=normalize_first
    )
    masks = {}
    if explicit:
        masks["decoder_padding_mask"] = np.arange(5) < np.array([[2], [4], [5]])
        if cross:
            masks["encoder_padding_mask"] = np.arange(5) < np.array([[5], [3], [4]])
    # An explicit mask replaces the attached one, which then does not matter.
    assert check_same_on_real_tokens(ours, theirs, inputs, REAL, **masks) != explicit


@pytest.mark.parametrize("sequence", ["query", "value"])
def test_attached_mask_of_attention_matches_keras(sequence):
    ours, theirs = layers.MultiHeadAttention(4, 6), keras.layers.MultiHeadAttention(4, 6)
    x = (random(3, 5, 8), REAL)
    query = x if sequence == "query" else (random(3, 2, 8), np.ones((3, 2), bool))
    call(ours, query, x), call(theirs, query, x)
    w = ours.get_weights()
    qkv = [v.reshape(*v.shape[:-1], 4, 6) for v in w[:6]]
    theirs.set_weights([*qkv, w[6].reshape(4, 6, 8), w[7]])
    assert check_same_on_real_tokens(ours, theirs, [query, x], query[1])
    if sequence == "query":
        np.testing.assert_allclose(call(ours, x), call(ours, x, x), atol=1e-6)


MASK_LAYERS = [
    lambda: layers.FeedForward(12),
    lambda: layers.MixtureOfExperts(4, 2, 12),
    lambda: layers.MultiHeadAttention(2, 4),
    lambda: layers.PositionEmbedding(5),
    lambda: layers.SinePositionEncoding(),
    lambda: layers.TransformerDecoder(12, 2),
    lambda: layers.TransformerEncoder(12, 2),
    lambda: layers.TransformerEncoder(12, 2, norm="rms", normalize_first=True),
]


@pytest.mark.filterwarnings("error:.*does not support masking")
@pytest.mark.parametrize("make", MASK_LAYERS)
def test_layers_pass_the_mask_on(make):
    layer = make()
    assert layer.supports_masking
    x = masked(random(3, 5, 8), REAL)
    np.testing.assert_array_equal(implicit_mask(layer(x)), REAL)
    # A mask passed on through a functional model decides which tokens count in the loss.
    inputs = keras.Input((None, 8))
    model = keras.Model(inputs, layer(keras.layers.Masking()(inputs)))
    model.compile(loss="mse")
    rows = np.asarray(x)
    error = np.square(np.asarray(layer(x))).mean(-1)
    loss = model.evaluate(rows, np.zeros_like(rows), batch_size=3, verbose=0)
    np.testing.assert_allclose(loss, (error * REAL).sum() / REAL.sum(), rtol=1e-4)


def test_masked_lm_head_does_not_pass_the_mask_on():
    head = layers.MaskedLMHead(11)
    output = head(masked(random(3, 5, 8), REAL), np.zeros((3, 2), int))
    assert implicit_mask(output) is None


@pytest.mark.parametrize("mask_zero", [False, True])
def test_mask_zero_of_token_and_position_embedding_matches_keras_nlp(mask_zero):
    ids = np.array([[3, 4, 0, 0], [5, 0, 6, 7]])
    ours, theirs = (
        module.layers.TokenAndPositionEmbedding(9, 4, 8, mask_zero=mask_zero)
        for module in (keras_llm, keras_nlp)
    )
    assert ours.supports_masking == theirs.supports_masking == mask_zero
    output, expected = ours(ids), theirs(ids)
    masks = [implicit_mask(x) for x in (output, expected)]
    if mask_zero:
        np.testing.assert_array_equal(*masks)
        np.testing.assert_array_equal(masks[0], ids != 0)
    else:
        assert masks == [None, None]
    assert ours.get_config()["mask_zero"] == mask_zero


@pytest.mark.parametrize("name", ["TransformerEncoder", "TransformerDecoder"])
def test_functional_model_with_mask_zero_matches_keras_nlp(name, tmp_path, copy_block_weights):
    ids = np.array([[3, 4, 0, 0, 0], [5, 1, 6, 7, 2], [0, 2, 2, 0, 8]])
    models = []
    for module in (keras_llm, keras_nlp):
        inputs = keras.Input((None,), dtype="int32")
        x = module.layers.TokenAndPositionEmbedding(9, 5, 8, mask_zero=True, name="embed")(inputs)
        for i in range(2):
            x = getattr(module.layers, name)(**ARGUMENTS, name=f"block_{i}")(x)
        models.append(keras.Model(inputs, x))
    ours, theirs = models
    ours.get_layer("embed").set_weights(theirs.get_layer("embed").get_weights())
    for i in range(2):
        copy_block_weights(*(model.get_layer(f"block_{i}") for model in models))
    outputs = [np.asarray(model(ids)) for model in models]
    np.testing.assert_allclose(*(output[ids != 0] for output in outputs), atol=1e-5)
    ours.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(ids), outputs[0])


# Masks with a cache


@pytest.mark.parametrize("attached", [False, True])
def test_padding_mask_of_whole_cache_matches_keras_nlp(attached, blocks):
    """Read left-padded rows at once, then tokens one by one, hiding the padding in the cache."""
    x, tail = random(3, 5, 8), random(3, 2, 8)
    real = np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]], bool)
    ours, theirs = blocks("TransformerDecoder", [x], normalize_first=True)
    results = []
    for block in (ours, theirs):
        cache = ops.zeros((3, 2, 7, 4, 2))
        slots = np.pad(real, ((0, 0), (0, 2)), constant_values=True)
        if attached and block is ours:
            output, cache = block(
                masked(x, real), self_attention_cache=cache, self_attention_cache_update_index=0
            )
        else:
            chunk = np.asarray(masked(x, real)) if attached else x
            output, cache = block(
                chunk,
                decoder_padding_mask=slots,
                self_attention_cache=cache,
                self_attention_cache_update_index=0,
            )
        outputs = [np.asarray(output)[real]]
        for t in range(2):
            output, cache = block(
                tail[:, t : t + 1],
                decoder_padding_mask=slots,
                self_attention_cache=cache,
                self_attention_cache_update_index=5 + t,
            )
            outputs.append(np.asarray(output))
        results.append(outputs)
    for output, expected in zip(*results, strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-5)


@pytest.mark.parametrize("index", [2, [2, 2, 2]])
def test_padding_mask_of_new_tokens_leaves_earlier_slots_visible(index):
    block = layers.TransformerDecoder(12, 4)
    x = random(3, 5, 8)
    real = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1]], bool)
    full = np.asarray(block(x, decoder_padding_mask=real))
    _, cache = block(
        x[:, :2],
        self_attention_cache=layers.empty_cache(3, 6, 4, 2),
        self_attention_cache_update_index=0,
    )
    output, _ = block(
        x[:, 2:],
        decoder_padding_mask=real[:, 2:],
        self_attention_cache=cache,
        self_attention_cache_update_index=ops.convert_to_tensor(index),
    )
    np.testing.assert_allclose(np.asarray(output), full[:, 2:], atol=1e-5)


@pytest.mark.parametrize("unknown", [{"S"}, {"T"}, {"S", "T"}])
@pytest.mark.parametrize("covers", ["T", "S"])
def test_padding_mask_with_unknown_lengths(covers, unknown):
    """In a TensorFlow graph, the length of a cache, or of new tokens, may be unknown."""
    layer = layers.MultiHeadAttention(4, 2)
    x = random(3, 2, 8)
    cache = (random(3, 4, 6, 2), random(3, 4, 6, 2))
    real = np.array([[1, 0], [0, 1], [1, 1]], bool)
    if covers == "S":
        real = np.concatenate([np.ones((3, 3), bool), real, np.zeros((3, 1), bool)], axis=1)
    visible = np.arange(5)[None, None] <= 3 + np.arange(2)[None, :, None]  # narrower than S

    def attend(x, keys, values, real):
        output, updated = layer(
            x,
            attention_mask=visible,
            cache=(keys, values),
            cache_update_index=ops.convert_to_tensor(3),
            padding_mask=real,
        )
        return output, *updated

    inputs = [x, *cache, real]
    lengths = {"S": 6, "T": 2}
    axes = ["T", "S", "S", covers]
    shapes = [list(value.shape) for value in map(np.asarray, inputs)]
    for shape, name in zip(shapes, axes, strict=True):
        assert shape.count(lengths[name]) >= 1
        axis = 2 if len(shape) == 4 else 1
        shape[axis] = None if name in unknown else shape[axis]
    specs = [
        tf.TensorSpec(shape, np.asarray(value).dtype)
        for shape, value in zip(shapes, inputs, strict=True)
    ]
    expected = attend(*inputs)
    found = tf.function(attend, input_signature=specs, autograph=False)(*inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_attached_mask_of_cached_source():
    block = layers.TransformerDecoder(12, 4)
    x, source = random(3, 4, 8), masked(random(3, 5, 8), REAL)
    full = np.asarray(block(x, source))
    cross_cache = block.cross_attention.project_keys_and_values(source)
    caches = {"self_attention_cache": layers.empty_cache(3, 4, 4, 2)}
    caches["self_attention_cache_update_index"] = 0
    output, *_ = block(x, source, cross_attention_cache=cross_cache, **caches)
    np.testing.assert_allclose(output, full, atol=1e-5)
    # Without the source, the mask of the decoder's tokens does not hide the source.
    tokens = masked(x, np.arange(4) < np.array([[2], [3], [4]]))
    plain, *_ = block(
        tokens, cross_attention_cache=cross_cache, encoder_padding_mask=REAL, **caches
    )
    expected = block(tokens, source)
    np.testing.assert_allclose(plain, expected, atol=1e-5)


@pytest.mark.parametrize("window, covered", [(None, "2 or 6"), (3, "2")])
def test_padding_mask_of_wrong_length_raises_error(window, covered):
    block = layers.TransformerDecoder(**ARGUMENTS, sliding_window=window)
    for width in (4, 6) if window else (1, 4):
        with pytest.raises(ValueError, match=f"`padding_mask` must cover {covered} tokens"):
            block(
                random(3, 2, 8),
                decoder_padding_mask=np.ones((3, width), bool),
                self_attention_cache=layers.empty_cache(3, 6, 4, 2),
                self_attention_cache_update_index=0,
            )


@pytest.mark.parametrize("name", ["TransformerEncoder", "TransformerDecoder"])
def test_padding_mask_of_wrong_rank_raises_error(name):
    layer, x = getattr(layers, name)(**ARGUMENTS), random(2, 3, 8)
    mask = "padding_mask" if name == "TransformerEncoder" else "decoder_padding_mask"
    with pytest.raises(ValueError, match="`padding_mask` must have shape"):
        layer(x, **{mask: np.ones((2, 3, 3), bool)})
