"""Write and read warm-up requests, which TensorFlow Serving runs when it loads a model."""

import pathlib
from collections.abc import Sequence
from typing import Any

from keras_llm.errors import ExportError, optional_packages
from keras_llm.types import PathLike

FILE = "assets.extra/tf_serving_warmup_requests"
_MOST = 1000  # maximum number of records that the server reads


def write_warmup(
    folder: PathLike, model_name: str, calls: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    """Write `assets.extra/tf_serving_warmup_requests` into the folder of a version.

    Args:
        folder: str or path.
        model_name: str. Name of the served model.
        calls: list of pairs (signature, inputs), where inputs is a dict of name to [dtype,
            values]. All inputs must have the same number of rows, for servers that batch requests.
    """
    import tensorflow as tf

    with optional_packages("export.saved_model"):
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    if len(calls) > _MOST:
        raise ExportError(
            f"got {len(calls)} warm-up requests, but TensorFlow Serving reads at most {_MOST}."
        )
    path = pathlib.Path(folder) / FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in calls:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for name, (dtype, values) in inputs.items():
                tensor = tf.make_tensor_proto(values, dtype=getattr(tf, dtype))
                request.inputs[name].CopyFrom(tensor)
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())


def read_warmup(folder: PathLike) -> list[Any]:
    """Return the requests of `write_warmup`, a list of `PredictRequest`; [] if there is no file."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return []
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    logs = (prediction_log_pb2.PredictionLog.FromString(record) for record in records)
    return [log.predict_log.request for log in logs]
