"""Requests that TensorFlow Serving runs when it loads a model, before it takes others."""

import pathlib

from keras_llm.errors import ExportError

FILE = "assets.extra/tf_serving_warmup_requests"
_MOST = 1000  # records that the server reads


def write_warmup(folder, model_name, calls):
    """Write `assets.extra/tf_serving_warmup_requests` into the folder of a version.

    Args:
        folder: str or path.
        model_name: str, as it is served.
        calls: list of pairs (signature, inputs), inputs a dict of name to [dtype, values]. All
            inputs have the same number of rows, as a server that merges requests demands.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    if len(calls) > _MOST:
        raise ExportError(f"{len(calls)} warm-up requests; TensorFlow Serving reads {_MOST}.")
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


def read_warmup(folder):
    """The requests that `write_warmup` wrote: a list of `PredictRequest`; none without a file."""
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        return []
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    logs = (prediction_log_pb2.PredictionLog.FromString(record) for record in records)
    return [log.predict_log.request for log in logs]
