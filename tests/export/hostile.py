"""Send malicious and malformed requests to a server and check its answers."""

import contextlib
import http.client
import json
import random

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_METHODS = (
    _PREDICT,
    "/tensorflow.serving.PredictionService/Classify",
    "/tensorflow.serving.PredictionService/Regress",
    "/tensorflow.serving.PredictionService/MultiInference",
    "/tensorflow.serving.PredictionService/GetModelMetadata",
    "/tensorflow.serving.ModelService/GetModelStatus",
    "/tensorflow.serving.Nothing/Nothing",
)
_NAMES = ("../../etc/passwd", "stories/../..", "stories\n", "%2e%2e/x", "", "n" * 9000, "stories:1")
_ERRORS = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
}
_VALID = {
    "prompt": ("string", ["The"]),
    "max_new_tokens": ("int32", [4]),
    "temperature": ("float32", [0.0]),
    "top_k": ("int32", [0]),
    "top_p": ("float32", [1.0]),
    "seed": ("int32", [0]),
}
# Settings that a model rejects.
_INVALID_SETTINGS = (
    {"temperature": ("float32", [float("nan")])},
    {"temperature": ("float32", [float("inf")])},
    {"temperature": ("float32", [-1.0])},
    {"top_p": ("float32", [0.0])},
    {"top_p": ("float32", [float("nan")])},
    {"top_k": ("int32", [-5])},
    {"max_new_tokens": ("int32", [-1])},
    {"max_new_tokens": ("int32", [0])},
    {"seed": ("int32", [1, 2, 3])},
    {"prompt": ("string", [""])},
    {"prompt": ("string", [])},
    {"prompt": ("string", ["a", "b"]), "seed": ("int32", [])},
)


class Hostile:
    """Send hostile requests, reproducible for a seed.

    Args:
        port, rest_api_port: ports of a server of a text generation model called "stories".
        seed: int.
        long_prompts: float, the probability of a prompt of 10 MB.
    """

    def __init__(self, port, rest_api_port, seed=0, long_prompts=0.01):
        self._channel = grpc.insecure_channel(
            f"localhost:{port}", [("grpc.max_send_message_length", -1)]
        )
        self._rest_api_port = rest_api_port
        self._random = random.Random(seed)
        self._long_prompts = long_prompts

    def close(self):
        self._channel.close()

    def attack(self, count):
        """Send `count` requests.

        Returns:
            List of str, the unexpected answers; empty if all answers were as allowed.
        """
        kinds = [
            self._settings,
            self._dtype,
            self._shape,
            self._spec,
            self._bytes,
            self._malformed,
            self._bomb,
            self._json,
            self._path,
            self._steps,
        ]
        unexpected = []
        for number in range(count):
            is_long = self._random.random() < self._long_prompts
            kind = self._long if is_long else kinds[number % len(kinds)]
            answer, allowed = kind()
            if answer not in allowed:
                unexpected.append(f"request {number}, {kind.__name__}: {answer}")
        return unexpected

    def good(self):
        """Send a valid request over both protocols; return the two texts."""
        method = self._channel.unary_unary(_PREDICT, None, predict_pb2.PredictResponse.FromString)
        response = method(_request(_VALID).SerializeToString(), timeout=60)
        columns = {name: value for name, (_, value) in _VALID.items()}
        status, body = self._http("POST", "/v1/models/stories:predict", {"inputs": columns})
        assert status == 200, body
        return response.outputs["text"].string_val[0].decode(), body["outputs"]["text"][0]

    def _settings(self):
        return self._either({**_VALID, **self._random.choice(_INVALID_SETTINGS)}), _ERRORS

    def _dtype(self):
        name = self._random.choice(list(_VALID))
        wrong = self._random.choice([("int64", [1]), ("bool", [True]), ("float64", [1.0])])
        return self._grpc(_request({**_VALID, name: wrong})), _ERRORS

    def _shape(self):
        name = self._random.choice(list(_VALID))
        dtype, value = _VALID[name]
        value = self._random.choice([value[0], [value], [[[]]], np.zeros((0, 3)).tolist()])
        inputs = {**_VALID, name: (dtype, value)}
        if self._random.random() < 0.3:
            inputs = {**_VALID, self._random.choice(["", "x" * 5000, "prompt2"]): (dtype, value)}
        elif self._random.random() < 0.3:
            del inputs[name]
            if name != "prompt":  # the server has a default for it
                return self._grpc(_request(inputs)), {"OK"}
        return self._grpc(_request(inputs)), _ERRORS

    def _spec(self):
        request = _request(_VALID)
        spec = request.model_spec
        match self._random.randrange(5):
            case 0:
                spec.name = self._random.choice(_NAMES)
            case 1:
                spec.signature_name = self._random.choice(_NAMES[:4])
            case 2:
                spec.version.value = self._random.choice([-1, 0, 2**62, -(2**63)])
            case 3:
                spec.version_label = self._random.choice(_NAMES[:4])
            case _:
                request.output_filter.append(self._random.choice(_NAMES))
        return self._grpc(request), _ERRORS

    def _bytes(self):
        """Send prompts that are not UTF-8: the model replaces bytes or the server rejects them."""
        prompt = self._random.randbytes(self._random.randrange(1, 60))
        return self._grpc(_request({**_VALID, "prompt": ("string", [prompt])})), _ERRORS | {"OK"}

    def _malformed(self):
        data = bytearray(_request(_VALID).SerializeToString())
        for _ in range(self._random.randrange(1, 6)):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        if self._random.random() < 0.5:
            data = data[: self._random.randrange(len(data))]
        method = self._random.choice(_METHODS)
        # gRPC answers INTERNAL to requests that it cannot parse; some changes are harmless.
        return self._raw(method, bytes(data)), _ERRORS | {"INTERNAL", "OK"}

    def _bomb(self):
        request = _request(_VALID)
        tensor = request.inputs["top_k"]
        tensor.Clear()
        tensor.dtype = self._random.choice([3, 3, 0, 99, 20, 21])
        for _ in range(self._random.randrange(1, 40)):
            tensor.tensor_shape.dim.add(size=self._random.choice([-1, 2**62, 2**20, 0, 2**31]))
        tensor.int_val.append(1)
        return self._grpc(request), _ERRORS

    def _long(self):
        prompt = self._random.choice(["a", "ab ", "\u00e9", "\U0001f642"]) * 10_000_000
        inputs = {**_VALID, "prompt": ("string", [prompt[:10_000_000]])}
        return self._either(inputs), _ERRORS

    def _json(self):
        columns = {name: value for name, (_, value) in _VALID.items()}
        body = self._random.choice(
            [
                b"{",
                b"\xff\xfe\x00",
                b"[" * 50_000,
                b'{"inputs": ' + b'{"a":' * 20_000,
                b"null",
                b"1e999",
                {"inputs": {**columns, "seed": [2**80]}},
                {"inputs": {**columns, "seed": ["1"]}},
                {"inputs": {**columns, "prompt": [None]}},
                {"inputs": {**columns, "prompt": [{"b64": "*"}]}},
                {"inputs": {**columns, "prompt": ["\ud800"]}},
                {"inputs": {**columns, "temperature": [[0.0], 1.0]}},
                {"instances": [columns, 1]},
                {"instances": {}, "inputs": {}},
                {"inputs": columns, "signature_name": ["generate"]},
                '{"inputs": 1, "inputs": ' + "9" * 5000 + "}",
            ]
        )
        return self._rest("POST", "/v1/models/stories:predict", body), _ERRORS

    def _path(self):
        name = self._random.choice(
            ["..%2f..%2fetc%2fpasswd", "%00", "%ff", "stories%2f..", "a" * 9000, "stories;x"]
        )
        end = self._random.choice(["", ":predict", "/metadata", "/versions/1:predict", ":nothing"])
        method = self._random.choice(["GET", "POST", "PUT", "DELETE", "BREW"])
        return self._rest(method, f"/v1/models/{name}{end}", b"{}"), _ERRORS | {"405"}

    def _steps(self):
        """Call the signatures with caches, if the model has them."""
        ids, lengths = np.full((1, 3), 5, "int32"), np.array([3], "int32")
        wrong = self._random.choice(
            [
                {"lengths": ("int32", [-3])},
                {"lengths": ("int32", [2**31 - 1])},
                {"cache_length": ("int32", -8)},
                {"cache_length": ("int32", 2**31 - 1)},
                {"token_ids": ("int32", [[-1, 2**30, 5]])},
                {"token_ids": ("int32", np.zeros((1, 0), "int32"))},
            ]
        )
        inputs = {
            "token_ids": ("int32", ids),
            "lengths": ("int32", lengths),
            "cache_length": ("int32", 8),
        }
        return self._grpc(_request({**inputs, **wrong}, "prefill")), _ERRORS

    def _either(self, inputs):
        if self._random.random() < 0.5:
            return self._grpc(_request(inputs))
        columns = {name: value for name, (_, value) in inputs.items()}
        return self._rest("POST", "/v1/models/stories:predict", {"inputs": columns})

    def _grpc(self, request):
        return self._raw(_PREDICT, request.SerializeToString())

    def _raw(self, method, data):
        try:
            self._channel.unary_unary(method)(data, timeout=60)
        except grpc.RpcError as error:
            return error.code().name
        return "OK"

    def _rest(self, method, path, body):
        status, answer = self._http(method, path, body)
        if status != 200 and not (isinstance(answer, dict) and answer.get("error")):
            return f"status {status} without an error"
        names = {200: "OK", 400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 501: "UNIMPLEMENTED"}
        names[413] = "RESOURCE_EXHAUSTED"
        return names.get(status, str(status))

    def _http(self, method, path, body):
        connection = http.client.HTTPConnection("localhost", self._rest_api_port, timeout=60)
        with contextlib.closing(connection):
            if not isinstance(body, (str, bytes)):
                body = json.dumps(body)
            connection.request(method, path, body)
            response = connection.getresponse()
            data = response.read()
        return response.status, json.loads(data) if data[:1] == b"{" else data


def _request(inputs, signature=""):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "stories"
    request.model_spec.signature_name = signature
    for name, (dtype, value) in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value, dtype))
    return request
