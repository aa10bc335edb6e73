"""What travels: the messages are those of TensorFlow Serving, and arrays come through unchanged."""

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
NOT_GENERATED = {  # no Python package has them
    f"tensorflow.serving.{name}" for name in ("BatchingParameters", "SSLConfig")
}


def all_messages():
    return sorted(wire._classes())


def described(descriptor):
    """Field name -> number, type, label, and the message it holds."""
    rows = {}
    for field in descriptor.fields:
        inner = field.message_type.full_name if field.message_type else None
        kind = field.TYPE_INT32 if field.type == field.TYPE_ENUM else field.type
        is_repeated = getattr(field, "is_repeated", None)
        rows[field.name] = (field.number, kind, is_repeated, inner)
    return rows


@pytest.mark.parametrize("name", sorted(set(all_messages()) - NOT_GENERATED))
def test_fields_are_those_of_the_published_messages(name):
    for module in GENERATED:
        importlib.import_module(module)
    from google.protobuf import descriptor_pool

    published = described(descriptor_pool.Default().FindMessageTypeByName(name))
    ours = described(wire.message(name).DESCRIPTOR)
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
def test_numbers_there_and_back_as_tensorflow_reads_them(array):
    number = tf.dtypes.as_dtype(array.dtype).as_datatype_enum
    proto = wire.message("tensorflow.TensorProto")()
    tensors.fill_proto(proto, array, number)
    theirs = tensor_pb2.TensorProto.FromString(proto.SerializeToString())
    np.testing.assert_array_equal(tf.make_ndarray(theirs), array)
    # And what TensorFlow writes, in either of its ways.
    for packed in (True, False):
        made = tf.make_tensor_proto(array)
        if not packed:
            made = tf.constant(array)
            made = tf.make_tensor_proto(made.numpy().tolist(), dtype=number, shape=array.shape)
        found = tensors.from_proto("x", made)
        np.testing.assert_array_equal(found, array)
        assert found.dtype == array.dtype and found.shape == array.shape


@hypothesis.settings(max_examples=30)
@hypothesis.given(st.lists(st.binary(max_size=20), max_size=5))
def test_bytes_there_and_back(values):
    array = tensors.as_array("x", values, tensors.STRING)
    proto = tensor_pb2.TensorProto()
    tensors.fill_proto(proto, array, tensors.STRING)
    assert tf.make_ndarray(proto).tolist() == values
    assert tensors.from_proto("x", tf.make_tensor_proto(values, tf.string)).tolist() == values
    shown = tensors.to_json("x_bytes", array)
    assert tensors.from_json("x", shown, tensors.STRING).tolist() == values


def proto(dtype=tensors.FLOAT, shape=(), **fields):
    made = tensor_pb2.TensorProto(dtype=dtype, **fields)
    for size in shape:
        made.tensor_shape.dim.add(size=size)
    return made


@pytest.mark.parametrize(
    "made",
    [
        proto(shape=[10**12], float_val=[1]),  # one value for a terabyte
        proto(shape=[2**40, 2**40], float_val=[1]),
        proto(shape=[-1], float_val=[1]),
        proto(shape=[1] * 40, float_val=[1]),
        proto(shape=[2], float_val=[1, 2, 3]),
        proto(shape=[0], float_val=[1]),
        proto(shape=[2], tensor_content=b"1234567"),
        proto(tensors.STRING, [1], tensor_content=b"1234"),
        proto(tensors.STRING, [2**30], string_val=[b"a"]),
        proto(dtype=0, shape=[1]),
        proto(dtype=21, shape=[1]),
        proto(dtype=20, shape=[]),
        proto(dtype=119, shape=[]),
    ],
)
def test_a_hostile_tensor_is_refused_before_memory_is_taken(made):
    with pytest.raises(InputError, match="`x`"):
        tensors.from_proto("x", made)
    unknown = proto()
    unknown.tensor_shape.unknown_rank = True
    with pytest.raises(InputError, match="shape"):
        tensors.from_proto("x", unknown)


def test_what_is_left_out_is_the_last_value_or_zero():
    assert tensors.from_proto("x", proto(shape=[3], float_val=[1, 2])).tolist() == [1, 2, 2]
    assert tensors.from_proto("x", proto(shape=[2])).tolist() == [0, 0]
    assert tensors.from_proto("x", proto(tensors.STRING, [2])).tolist() == [b"", b""]
    half = tf.make_tensor_proto(tf.constant([1.5, -2.0], tf.bfloat16))
    assert tensors.from_proto("x", half).tolist() == [1.5, -2.0]


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
def test_json_that_is_no_such_tensor(value, number):
    with pytest.raises(InputError):
        tensors.from_json("x", value, number)


def test_text_that_is_not_utf_8_is_shown_as_such():
    array = tensors.as_array("x", [b"a\xff", "é"], tensors.STRING)
    assert tensors.to_json("text", array) == ["a\ufffd", "é"]
    assert tensors.to_json("y", np.array([1.5, np.inf], "float32")) == [1.5, float("inf")]
