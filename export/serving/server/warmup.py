"""Run the warm-up requests of a model before it is served, so that first requests are fast."""

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_llm.errors import InputError, ServingError
from keras_llm.export.saved_model.warmup import FILE
from keras_llm.export.serving import tensors
from keras_llm.export.serving.server import examples
from keras_llm.export.serving.server.servable import Servable

_MAX_REQUESTS = 1000  # the maximum of TensorFlow Serving


def warm_up(servable: Servable) -> int:
    """Run the requests in `assets.extra/tf_serving_warmup_requests`, if the file exists.

    Args:
        servable: `Servable`.

    Returns:
        The number of requests.

    Raises:
        ServingError: if a request fails; the model must then not be served.
    """
    path = servable.path / FILE
    if not path.is_file():
        return 0
    count = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)):
            count += 1
            if count > _MAX_REQUESTS:
                raise ServingError(
                    "INVALID_ARGUMENT", f"there are more than {_MAX_REQUESTS} warm-up requests."
                )
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            _run(servable, log)
    except ServingError as error:
        raise ServingError(error.code, f"warm-up request {count}: {error.message}") from error
    except Exception as error:
        raise ServingError("INVALID_ARGUMENT", f"{path} cannot be read: {error}") from error
    return count


def _run(servable, log):
    kind = log.WhichOneof("log_type")
    if kind == "predict_log":
        request = log.predict_log.request
        signature = servable.signature(request.model_spec.signature_name)
        signature.check_names(request.inputs)
        try:
            arrays = {
                name: tensors.from_proto(name, proto) for name, proto in request.inputs.items()
            }
        except InputError as error:
            raise ServingError("INVALID_ARGUMENT", str(error)) from None
        signature.check(arrays)
        servable.run(signature, arrays)
    elif kind == "classify_log":
        examples.classify(servable, log.classify_log.request)
    elif kind == "regress_log":
        examples.regress(servable, log.regress_log.request)
    else:
        raise ServingError("UNIMPLEMENTED", f"a {kind or 'log without request'} is not supported.")
