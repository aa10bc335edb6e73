"""Define the messages of TensorFlow Serving's protocol without importing TensorFlow.

The generated modules of `tensorflow-serving-api` import TensorFlow, which takes seconds and which a
client does not need. This module defines the fields that are used, with the numbers and types of
the published .proto files; a test compares them with the generated ones. The messages are in a
separate descriptor pool, so both versions can be loaded in one process.

Reference:
    github.com/tensorflow/serving: tensorflow_serving/apis/*.proto and
    tensorflow_serving/servables/tensorflow/session_bundle_config.proto.
"""

import functools
import re
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_PROTOCOL = {
    "tensorflow": {
        "TensorShapeProto.Dim": "int64 size = 1; string name = 2",
        "TensorShapeProto": "repeated TensorShapeProto.Dim dim = 2; bool unknown_rank = 3",
        "TensorProto": """
            int32 dtype = 1; TensorShapeProto tensor_shape = 2; bytes tensor_content = 4;
            repeated int32 half_val = 13; repeated float float_val = 5;
            repeated double double_val = 6; repeated int32 int_val = 7;
            repeated bytes string_val = 8; repeated int64 int64_val = 10;
            repeated bool bool_val = 11; repeated uint32 uint32_val = 16;
            repeated uint64 uint64_val = 17""",
        "TensorInfo": "string name = 1; int32 dtype = 2; TensorShapeProto tensor_shape = 3",
        "SignatureDef": """
            map<string, TensorInfo> inputs = 1; map<string, TensorInfo> outputs = 2;
            string method_name = 3""",
    },
    "tensorflow.serving": {
        "ModelSpec": """
            string name = 1; google.protobuf.Int64Value version = 2; string version_label = 4;
            string signature_name = 3""",
        "PredictRequest": """
            ModelSpec model_spec = 1; map<string, tensorflow.TensorProto> inputs = 2;
            repeated string output_filter = 3""",
        "PredictResponse": """
            ModelSpec model_spec = 2; map<string, tensorflow.TensorProto> outputs = 1""",
        "GetModelMetadataRequest": "ModelSpec model_spec = 1; repeated string metadata_field = 2",
        "GetModelMetadataResponse": """
            ModelSpec model_spec = 1; map<string, google.protobuf.Any> metadata = 2""",
        "SignatureDefMap": "map<string, tensorflow.SignatureDef> signature_def = 1",
        "StatusProto": "int32 error_code = 1; string error_message = 2",
        "ModelVersionStatus": "int64 version = 1; int32 state = 2; StatusProto status = 3",
        "GetModelStatusRequest": "ModelSpec model_spec = 1",
        "GetModelStatusResponse": "repeated ModelVersionStatus model_version_status = 1",
        "BatchingParameters": """
            google.protobuf.Int64Value max_batch_size = 1;
            google.protobuf.Int64Value batch_timeout_micros = 2;
            google.protobuf.Int64Value max_enqueued_batches = 3;
            google.protobuf.Int64Value num_batch_threads = 4;
            google.protobuf.StringValue thread_pool_name = 5;
            repeated int64 allowed_batch_sizes = 6; bool pad_variable_length_inputs = 7""",
        "SSLConfig": """
            string server_key = 1; string server_cert = 2; string custom_ca = 3;
            bool client_verify = 4""",
    },
}
_FIELD = re.compile(r"(repeated )?(?:map<string, ([\w.]+)>|([\w.]+)) (\w+) = (\d+)$")
_Field = descriptor_pb2.FieldDescriptorProto


def message(name: str) -> Any:
    """Return the class of a message, e.g. "tensorflow.serving.PredictRequest"."""
    return _classes()[name]


@functools.cache
def _classes():
    pool = descriptor_pool.DescriptorPool()
    for module in (any_pb2, wrappers_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    names = []
    files = [any_pb2.DESCRIPTOR.name, wrappers_pb2.DESCRIPTOR.name]
    for package, messages in _PROTOCOL.items():
        file = descriptor_pb2.FileDescriptorProto(
            name=f"keras_llm/{package}.proto", package=package, syntax="proto3", dependency=files
        )
        for name, fields in messages.items():
            _add_fields(_declared(file, name), f"{package}.{name}", package, fields)
            names.append(f"{package}.{name}")
        pool.Add(file)
        files = [*files, file.name]
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names
    }


def _declared(file, name):
    """Return the descriptor of a message, adding it if missing; "A.B" is nested in "A"."""
    outer, _, inner = name.rpartition(".")
    if not outer:
        existing = next((m for m in file.message_type if m.name == inner), None)
        return existing or file.message_type.add(name=inner)
    return _declared(file, outer).nested_type.add(name=inner)


def _add_fields(descriptor, full_name, package, fields):
    for field in fields.split(";"):
        repeated, mapped, kind, name, number = _FIELD.match(" ".join(field.split())).groups()
        added = descriptor.field.add(name=name, number=int(number))
        added.label = _Field.LABEL_REPEATED if repeated or mapped else _Field.LABEL_OPTIONAL
        if mapped:
            entry = descriptor.nested_type.add(
                name="".join(part.title() for part in name.split("_")) + "Entry"
            )
            entry.options.map_entry = True
            for index, (part, part_kind) in enumerate((("key", "string"), ("value", mapped)), 1):
                part = entry.field.add(name=part, number=index, label=_Field.LABEL_OPTIONAL)
                _set_type(part, part_kind, package)
            added.type, added.type_name = _Field.TYPE_MESSAGE, f".{full_name}.{entry.name}"
        else:
            _set_type(added, kind, package)


def _set_type(field, kind, package):
    scalar = getattr(_Field, f"TYPE_{kind.upper()}", None)
    if scalar is not None:
        field.type = scalar
    else:
        field.type = _Field.TYPE_MESSAGE
        is_full = kind.startswith(("tensorflow.", "google."))
        field.type_name = f".{kind}" if is_full else f".{package}.{kind}"
