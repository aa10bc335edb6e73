"""Test the REST API of the local server."""

import pathlib
import runpy
import types
import urllib.request

import pytest

calls = types.SimpleNamespace(**runpy.run_path(str(pathlib.Path(__file__).with_name("calls.py"))))


def test_rest_predict_row_and_column_formats(server):
    rows = {"instances": [{"x": [1, 2], "by": 1}, {"x": [3, 4], "by": 2}]}
    assert calls.post(server, rows) == (
        200,
        {"predictions": [{"y": [1, 2], "rows": 2}, {"y": [6, 8], "rows": 2}]},
    )
    columns = {"inputs": {"x": [[1, 2]], "by": [3]}}
    assert calls.post(server, columns) == (200, {"outputs": {"y": [[3, 6]], "rows": [1]}})
    text = {"signature_name": "upper", "instances": ["a", {"b64": "4pyT"}]}
    assert calls.post(server, text) == (200, {"predictions": ["A", "\u2713"]})
    named = {"signature_name": "upper", "instances": [{"text": "a"}, {"text": {"b64": "Yg=="}}]}
    assert calls.post(server, named) == (200, {"predictions": ["A", "B"]})
    bare = {"signature_name": "upper", "inputs": ["a", "b"]}
    assert calls.post(server, bare) == (200, {"outputs": ["A", "B"]})
    assert calls.post(server, {**bare, "inputs": {"text": ["a"]}}) == (200, {"outputs": ["A"]})
    assert calls.post(server, {"signature_name": "once", "inputs": {"n": 4}}) == (
        200,
        {"outputs": 5},
    )
    infinite = calls.post(server, '{"inputs": {"x": [[Infinity]], "by": [1]}}')
    assert infinite[1]["outputs"]["y"] == [[float("inf")]]
    path = "/v1/models/tiny/versions/1:predict"
    assert calls.http_call(server, "POST", path, columns)[0] == 200


@pytest.mark.parametrize(
    "body, words",
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        ([], "JSON object"),
        ({}, '"instances" or "inputs"'),
        ({"instances": [1], "inputs": 1}, '"instances" or "inputs"'),
        ({"instances": []}, '"instances" must be a non-empty list'),
        ({"instances": {"x": 1}}, '"instances" must be a non-empty list'),
        ({"instances": [1]}, "several inputs"),
        ({"instances": [{"x": [1], "by": 1}, {"x": [1]}]}, "the same inputs"),
        ({"instances": [{"x": [1], "by": 1}, {"x": [1, 2], "by": 1}]}, "different lengths"),
        ({"instances": [{"x": [1]}]}, "missing by"),
        ({"inputs": {"x": [[1]], "by": [1], "c": 1}}, "unknown c"),
        ({"inputs": {"messages": ["a"]}}, "missing by, x and unknown messages"),
        ({"inputs": {"messages": ["a"]}, "signature_name": "upper"}, "unknown messages"),
        ({"instances": [{"messages": "a"}], "signature_name": "upper"}, "unknown messages"),
        ({"messages": ["a"]}, "unknown field 'messages'"),
        ({"inputs": {}}, "missing by, x"),
        ({"inputs": {"y" * 10_000: 1}, "signature_name": "upper"}, f"unknown {'y' * 100};"),
        ({"inputs": {"n": {"a": 1}}, "signature_name": "once"}, "`n` must be DT_INT32"),
        ({"inputs": {"x": [[True, 1]], "by": [1]}}, "`x` must be DT_FLOAT"),
        ({"inputs": {"x": [["a"]], "by": [1]}}, "`x` must be DT_FLOAT"),
        ({"inputs": {"x": [[1]], "by": [-1]}}, "by must not be negative"),
        ({"inputs": 1, "signature_name": 1}, "signature_name"),
        ({"inputs": 1, "signature_name": "\ud800"}, "signature"),
        ({"inputs": 1, "more": 1}, "unknown field 'more'"),
        ({"inputs": {"n": 2**31}, "signature_name": "once"}, "`n` must be DT_INT32"),
        ({"inputs": ["\ud800"], "signature_name": "upper"}, "Unicode"),
        ({"instances": [1], "signature_name": "once"}, "shape"),
        (
            b'{"signature_name": "upper", "inputs": %s"a"%s}' % (b"[" * 65, b"]" * 65),
            "64 dimensions",
        ),
    ],
)
def test_invalid_body_returns_error_message(server, body, words):
    status, answer = calls.post(server, body)
    assert status == 400 and words in answer["error"], answer


def test_rest_paths_and_methods(server):
    for path in ("/v1/models/no", "/v1/models/no/metadata", "/nothing", "/v1/models/..%2F..%2Fetc"):
        status, answer = calls.http_call(server, "GET", path)
        assert status == 404 and answer["error"], path
    for path in ("/v1/models/tiny:nothing", "/v1/models/no:predict"):
        status, answer = calls.http_call(server, "POST", path, {"inputs": 1})
        assert status == 404 and answer["error"], path
    for path in ("/v1/models/..%2f:predict", "/", "/v1/models/tiny", "/nothing"):
        status, answer = calls.http_call(server, "POST", path, {})
        assert status == 405 and answer["error"], path
    assert calls.http_call(server, "GET", "/v1/models/tiny:predict")[0] == 405
    assert calls.http_call(server, "GET", "/v1/models/%ff")[0] == 404
    assert calls.http_call(server, "GET", "/../options.py")[0] == 404
    assert calls.http_call(server, "GET", "/%2e%2e/options.py")[0] == 404
    assert calls.http_call(server, "GET", f"/v1/models/tiny/versions/{'9' * 5000}")[0] == 400
    assert calls.http_call(server, "GET", "/v1/models/tiny/versions/99999999999999999999")[0] == 400
    assert (
        calls.http_call(server, "POST", "/v1/models/tiny/labels/x:predict", {"inputs": 1})[0] == 404
    )
    assert calls.http_call(server, "PUT", "/v1/models/tiny", b"")[0] == 405
    assert calls.http_call(server, "OPTIONS", "/v1/models/tiny")[0] == 405
    page_url = f"http://localhost:{server.rest_api_port}/"
    with urllib.request.urlopen(page_url, timeout=30) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    status, page = calls.http_call(server, "GET", "/")
    assert status == 200 and page.startswith("<!doctype html>") and "http" not in page
    assert calls.http_call(server, "GET", "/page.js")[0] == 200
    models = calls.http_call(server, "GET", "/v1/models")[1]["models"]
    assert [model["name"] for model in models] == ["tiny"]
