"""Test that messages match TensorFlow Serving's, and that arrays survive serialization."""

import importlib

import hypothesis
import hypothesis.extra.numpy as numpy_strategies
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from keras_llm.errors import InputError
from keras_llm.export.serving import tensors, wire

GENERATED = [
    "tensorflow.core.framework.tensor_pb2",
    "tensorflow.core.protobuf.meta_graph_pb2",
    *(
        f"tensorflow_serving.apis.{name}_pb2"
        for name in ("predict", "model", "get_model_metadata", "get_model_status", "status")
    ),
]
NOT_GENERATED = {  # not in any Python package
    f"tensorflow.serving.{name}" for name in ("BatchingParameters", "SSLConfig")
}


def all_messages():
    return sorted(wire._classes())


def describe_fields(descriptor):
    """Return a dict from field name to number, type, label and message type."""
    rows = {}
    for field in descriptor.fields:
        inner = field.message_type.full_name if field.message_type else None
        kind = field.TYPE_INT32 if field.type == field.TYPE_ENUM else field.type
        is_repeated = getattr(field, "is_repeated", None)
        rows[field.name] = (field.number, kind, is_repeated, inner)
    return rows


@pytest.mark.parametrize("name", sorted(set(all_messages()) - NOT_GENERATED))
def test_fields_match_published_messages(name):
    for module in GENERATED:
        importlib.import_module(module)
    from google.protobuf import descriptor_pool

    published = describe_fields(descriptor_pool.Default().FindMessageTypeByName(name))
    ours = describe_fields(wire.message(name).DESCRIPTOR)
    assert ours and ours == {field: published[field] for field in ours}


ARRAYS = st.one_of(
    numpy_strategies.arrays(
        st.sampled_from(["float32", "float64", "float16", "int8", "int16", "int32", "int64"]),
        numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    numpy_strategies.arrays(
        st.sampled_from(["uint8", "uint16", "uint32", "uint64", "bool"]),
        numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
)


@hypothesis.settings(max_examples=60)
@hypothesis.given(ARRAYS)
def test_numbers_round_trip_with_tensorflow(array):
    number = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    message = wire.message("tensorflow.TensorProto")()
    tensors.fill_proto(message, array, number)
    theirs = tensor_pb2.TensorProto.FromString(message.SerializeToString())
    np.testing.assert_array_equal(tf.make_ndarray(theirs), array)
    # Also read both encodings that TensorFlow writes.
    for packed in (True, False):
        tensor = tf.make_tensor_proto(array)
        if not packed:
            tensor = tf.constant(array)
            tensor = tf.make_tensor_proto(tensor.numpy().tolist(), dtype=number, shape=array.shape)
        decoded = tensors.from_proto("x", tensor)
        np.testing.assert_array_equal(decoded, array)
        assert decoded.dtype == array.dtype and decoded.shape == array.shape


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(st.binary(max_size=20), max_size=5))
def test_bytes_round_trip(values):
    array = tensors.as_array("x", values, tensors.STRING)
    message = tensor_pb2.TensorProto()
    tensors.fill_proto(message, array, tensors.STRING)
    assert tf.make_ndarray(message).tolist() == values
    assert tensors.from_proto("x", tf.make_tensor_proto(values, tf.string)).tolist() == values
    as_json = tensors.to_json("x_bytes", array)
    assert tensors.from_json("x", as_json, tensors.STRING).tolist() == values


def make_proto(dtype=tensors.FLOAT, shape=(), **fields):
    tensor = tensor_pb2.TensorProto(dtype=dtype, **fields)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        make_proto(shape=[10**12], float_val=[1]),  # one value for a terabyte
        make_proto(shape=[2**40, 2**40], float_val=[1]),
        make_proto(shape=[-1], float_val=[1]),
        make_proto(shape=[1] * 40, float_val=[1]),
        make_proto(shape=[2], float_val=[1, 2, 3]),
        make_proto(shape=[0], float_val=[1]),
        make_proto(shape=[2], tensor_content=b"1234567"),
        make_proto(tensors.STRING, [1], tensor_content=b"1234"),
        make_proto(tensors.STRING, [2**30], string_val=[b"a"]),
        make_proto(dtype=0, shape=[1]),
        make_proto(dtype=21, shape=[1]),
        make_proto(dtype=20, shape=[]),
        make_proto(dtype=119, shape=[]),
    ],
)
def test_malicious_tensors_raise_error_before_allocation(tensor):
    with pytest.raises(InputError, match="`x`"):
        tensors.from_proto("x", tensor)
    unknown = make_proto()
    unknown.tensor_shape.unknown_rank = True
    with pytest.raises(InputError, match="shape"):
        tensors.from_proto("x", unknown)


def test_missing_values_repeat_last_value_or_zero():
    assert tensors.from_proto("x", make_proto(shape=[3], float_val=[1, 2])).tolist() == [1, 2, 2]
    assert tensors.from_proto("x", make_proto(shape=[2])).tolist() == [0, 0]
    assert tensors.from_proto("x", make_proto(tensors.STRING, [2])).tolist() == [b"", b""]
    bfloat16 = tf.make_tensor_proto(tf.constant([1.5, -2.0], tf.bfloat16))
    assert tensors.from_proto("x", bfloat16).tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    "value, number, expected",
    [
        ([1, 2.5], tensors.FLOAT, [1, 2.5]),
        (3, tensors.INT32, 3),
        ([[True], [False]], tensors.BOOL, [[True], [False]]),
        ([], tensors.INT32, []),
        (["é", {"b64": "/w=="}], tensors.STRING, ["é".encode(), b"\xff"]),
        ([float("nan")], tensors.FLOAT, None),
    ],
)
def test_json_values(value, number, expected):
    array = tensors.from_json("x", value, number)
    assert array.dtype == tensors.numpy_dtype(number)
    assert np.isnan(array).all() if expected is None else array.tolist() == expected


@pytest.mark.parametrize(
    "value, number",
    [
        ([1, [2]], tensors.FLOAT),
        (["1"], tensors.FLOAT),
        ([None], tensors.FLOAT),
        ({"a": 1}, tensors.FLOAT),
        ([1.5], tensors.INT32),
        ([2**31], tensors.INT32),
        ([2**70], tensors.INT64),
        ([-1], 4),
        ([True], tensors.INT32),
        ([1], tensors.BOOL),
        ([1], tensors.STRING),
        (["a", ["b"]], tensors.STRING),
        ([["a"], "b"], tensors.STRING),
        ([{"b64": "?"}], tensors.STRING),
        ([{"b64": 1}], tensors.STRING),
        (["\ud800"], tensors.STRING),
        ([1], 21),
    ],
)
def test_invalid_json_values_raise_error(value, number):
    with pytest.raises(InputError):
        tensors.from_json("x", value, number)


def test_invalid_utf8_is_replaced_in_json():
    array = tensors.as_array("x", [b"a\xff", "é"], tensors.STRING)
    assert tensors.to_json("text", array) == ["a\ufffd", "é"]
    assert tensors.to_json("y", np.array([1.5, np.inf], "float32")) == [1.5, float("inf")]
