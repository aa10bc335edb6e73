"""Share the copying of weights between blocks of this library and of keras_nlp."""

import keras
import pytest
from keras import ops


@pytest.fixture
def copy_block_weights():
    """Return a function that copies weights of a keras_nlp block into a block of this library."""
    return _copy_block_weights


def _copy_block_weights(ours, theirs):
    """Copy random weights of a keras_nlp block into ours, whose kernels are two-dimensional."""
    ours_by_path = {w.path.split("/", 1)[1]: w for w in ours.weights}
    names = {
        "self_attention_layer_norm": "self_attention_norm",
        "cross_attention_layer_norm": "cross_attention_norm",
        "feedforward_layer_norm": "feed_forward_norm",
        "feedforward_intermediate_dense": "feed_forward/up",
        "feedforward_output_dense": "feed_forward/down",
        "attention_layer/": "attention/",
        "attention_output": "output",
    }
    count = 0
    for weight in theirs.weights:
        if "seed_generator" in weight.path:
            continue
        path = weight.path.split("/", 1)[1]
        for old, new in names.items():
            path = path.replace(old, new)
        weight.assign(keras.random.normal(weight.shape, seed=count) * 0.3)
        target = ours_by_path.pop(path)
        target.assign(ops.reshape(weight.value, target.shape))
        count += 1
    assert not [path for path in ours_by_path if "seed" not in path]
