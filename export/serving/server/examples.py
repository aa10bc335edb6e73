"""Answer Classify and Regress requests, for the `tf.Example` signatures of TF estimators."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, regression_pb2

from keras_llm.errors import ServingError
from keras_llm.export.serving.server.servable import CLASSIFY, REGRESS, Servable, Signature

_MAX_CONTEXT_BYTES = 64 * 2**20  # of the context, which is copied to each example


def classify(
    servable: Servable,
    request: classification_pb2.ClassificationRequest,
    run: Callable[[Signature, dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
) -> classification_pb2.ClassificationResult:
    """Answer a ClassificationRequest with a ClassificationResult.

    Args:
        servable: `Servable`.
        request: `ClassificationRequest`.
        run: function that takes a signature and arrays and returns outputs. Defaults to
            `servable.run`.
    """
    signature = servable.signature(request.model_spec.signature_name, CLASSIFY)
    outputs, rows = _run(servable, signature, request.input, run)
    classes, scores = outputs.get("classes"), outputs.get("scores")
    for name, value in outputs.items():
        if name in ("classes", "scores") and (value.ndim != 2 or len(value) != rows):
            raise ServingError("INTERNAL", f"output {name} must have one row for each example.")
    if classes is None and scores is None:
        raise ServingError(
            "FAILED_PRECONDITION", "the signature must have an output `classes` or `scores`."
        )
    result = classification_pb2.ClassificationResult()
    for row in range(rows):
        added = result.classifications.add()
        for column in range((classes if classes is not None else scores).shape[1]):
            entry = added.classes.add()
            if classes is not None:
                entry.label = classes[row, column].decode("utf-8", "replace")
            if scores is not None:
                entry.score = float(scores[row, column])
    return result


def regress(
    servable: Servable,
    request: regression_pb2.RegressionRequest,
    run: Callable[[Signature, dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
) -> regression_pb2.RegressionResult:
    """Answer a RegressionRequest with a RegressionResult; the arguments are those of `classify`."""
    signature = servable.signature(request.model_spec.signature_name, REGRESS)
    outputs, rows = _run(servable, signature, request.input, run)
    if "outputs" not in outputs or outputs["outputs"].size != rows:
        raise ServingError("INTERNAL", "the output must have one number for each example.")
    result = regression_pb2.RegressionResult()
    for value in np.ravel(outputs["outputs"]):
        result.regressions.add().value = float(value)
    return result


def example_of(values: Any, name: str = "example") -> tf.train.Example:
    """Convert a dict of JSON values from the REST API to a `tf.train.Example`."""
    if not isinstance(values, dict):
        raise ServingError("INVALID_ARGUMENT", f"each {name} must be an object of features.")
    example = tf.train.Example()
    for key, value in values.items():
        row = value if isinstance(value, list) else [value]
        feature = example.features.feature[key]
        if all(isinstance(v, bool) or (isinstance(v, int) and abs(v) < 2**63) for v in row):
            feature.int64_list.value.extend(map(int, row))
        elif all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in row):
            feature.float_list.value.extend(map(float, row))
        elif all(isinstance(v, str) for v in row):
            feature.bytes_list.value.extend(v.encode("utf-8", "replace") for v in row)
        else:
            raise ServingError(
                "INVALID_ARGUMENT", f"feature {key!r} must be all integers, numbers or strings."
            )
    return example


def _run(servable, signature, examples, run):
    rows = _serialized(examples)
    if not rows:
        raise ServingError("INVALID_ARGUMENT", "the request has no examples.")
    array = np.empty(len(rows), object)
    array[:] = rows
    arrays = {"inputs": array}
    signature.check(arrays)
    outputs = servable.run(signature, arrays) if run is None else run(signature, arrays)
    return outputs, len(rows)


def _serialized(examples):
    """Return the serialized examples of an Input message, merged with its context."""
    kind = examples.WhichOneof("kind")
    if kind == "example_list":
        return [example.SerializeToString() for example in examples.example_list.examples]
    if kind != "example_list_with_context":
        return []
    rows, context = [], examples.example_list_with_context.context
    size = context.ByteSize() * len(examples.example_list_with_context.examples)
    if size > _MAX_CONTEXT_BYTES:
        raise ServingError(
            "INVALID_ARGUMENT",
            f"the context takes {size} bytes for all examples, more than {_MAX_CONTEXT_BYTES}.",
        )
    for example in examples.example_list_with_context.examples:
        whole = tf.train.Example()
        whole.CopyFrom(context)
        whole.MergeFrom(example)
        rows.append(whole.SerializeToString())
    return rows
