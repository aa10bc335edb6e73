"""Test the calls of the client with real servers over both protocols."""

import time

import numpy as np
import pytest

from keras_llm import export
from keras_llm.errors import InputError, ServingError

PROTOCOLS = ("grpc", "rest")


def test_generate_matches_the_model(client, task, held_out_prompts):
    prompts = held_out_prompts[:7]
    expected = task(prompts, 12, temperature=0.0, return_details=True)
    details = client.generate(prompts, 12, temperature=0.0, return_details=True, batch_size=3)
    for found, row in zip(details, expected, strict=True):
        assert (found["text"], found["num_tokens"]) == (row.text, row.num_tokens)
        assert found["finish_reason"] == row.finish_reason
        assert found["log_probability"] == pytest.approx(row.log_probability, abs=1e-3)
    settings = {"temperature": 0.9, "top_k": 30, "top_p": 0.9, "seed": 5}
    assert client.generate("The", 12, **settings) == task("The", 12, **settings)
    each = {"max_new_tokens": [3, 6], "temperature": [0.0, 1.0], "seed": [1, 2]}
    alone = [
        task("The", 3, temperature=0.0, seed=1),
        task("a", 6, temperature=1.0, seed=2),
    ]
    assert client.generate(["The", "a"], **each) == alone
    assert client.generate(["The", "a"], **each, batch_size=1) == alone
    assert client.generate("The", 40) != client.generate("The", 40)  # random seeds
    assert client.generate("The", 3, seed=1, min_p=0.0) == task("The", 3, seed=1)  # off


def test_extended_settings_and_defaults(client, task):
    settings = {"temperature": 0.0, "repetition_penalty": 1.6, "min_new_tokens": 9}
    assert client.generate("The", 9, **settings) == task("The", 9, **settings)
    given = {"prompt": ["The"], "max_new_tokens": [5], "temperature": [0.0]}
    for signature in ("generate", "generate_extended"):
        found = client.predict(signature, given)
        assert found["text"].tolist() == [task("The", 5, temperature=0.0)]


def test_score_matches_the_model(client, task, held_out_prompts):
    found = client.score(held_out_prompts[:3])
    np.testing.assert_allclose(found, task.score(held_out_prompts[:3]), atol=1e-3)
    assert client.score("The import") == pytest.approx(task.score("The import"), abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "seed": 1},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "seed": -7},
        {"temperature": 0.7, "top_p": 0.9, "seed": 3},
    ],
)
def test_stream_matches_the_model(client, task, settings):
    pieces = list(client.stream("The import statement", 14, **settings))
    expected = task("The import statement", 14, **settings)
    assert "".join(pieces) == expected and all(pieces)
    assert len(pieces) > 1 or len(expected) < 5


def test_invalid_stream_raises_before_generation(client, tiny):
    for wrong in ({"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"seed": 2**31}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            client.stream("The", **wrong)
    with pytest.raises(InputError, match="prompt"):
        client.stream("")
    missing = "decode, detokenize, is_end, prefill, tokenize"
    with pytest.raises(InputError, match=f"no signature {missing}"):
        tiny.stream("The")
    with pytest.raises(ServingError, match=r"cache_length must be in T \.\. 128"):
        next(client.stream("The", 1000))


def test_predict_any_signature(tiny):
    outputs = tiny.predict("serving_default", {"x": [[1, 2], [3, 4]], "by": np.array([1.0, 2.0])})
    assert outputs["y"].dtype == np.float32 and outputs["y"].tolist() == [[1, 2], [6, 8]]
    upper = tiny.predict("upper", {"text": ["é", b"\xffa"]})["upper"].tolist()
    assert upper == ["é", "\ufffdA"]
    assert tiny.predict("once", {"n": 4})["n"] == 5
    assert tiny.status() == [{"version": 1, "state": "AVAILABLE", "error": ""}]
    known = tiny.metadata()
    assert set(known) == {"serving_default", "upper", "once", "spin"}
    assert known["serving_default"]["inputs"]["x"] == {"dtype": 1, "shape": [None, None]}
    assert known["once"]["outputs"]["n"] == {"dtype": 3, "shape": []}


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda c: c.predict("nope", {}), "no signature 'nope'; available: once"),
        (lambda c: c.predict("once", {"m": 1}), "no input 'm'; available: n"),
        (lambda c: c.predict("once", {"n": 1.5}), "`n` must be DT_INT32"),
        (lambda c: c.predict("once", {"n": 2**40}), "`n` must be DT_INT32"),
        (lambda c: c.predict("upper", {"text": [1]}), "`text` must be text"),
        (lambda c: c.predict("upper", {"text": ["\ud800"]}), "Unicode"),
        (lambda c: c.predict("serving_default", {"x": [[1], [1, 2]]}), "different lengths"),
        (lambda c: c.predict("once", {"n": 1}, timeout=0), "timeout"),
        (lambda c: c.generate("a"), "no signature 'generate'"),
        (lambda c: c.generate([]), "prompts"),
        (lambda c: c.generate([""]), "prompts"),
        (lambda c: c.score(1), "texts"),
    ],
)
def test_invalid_arguments_raise_before_sending(tiny, call, words):
    with pytest.raises(InputError, match=words):
        call(tiny)


def test_server_errors(client, tiny):
    with pytest.raises(ServingError, match="by must not be negative") as error:
        tiny.predict("serving_default", {"x": [[1]], "by": [-1]})
    assert error.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ServingError, match="missing by"):
        tiny.predict("serving_default", {"x": [[1]]})
    with pytest.raises(ServingError, match="temperature must be a number >= 0"):
        client.generate("The", temperature=float("nan"))
    with pytest.raises(InputError, match=r"unknown setting `mood`; available: .*max_new_tokens"):
        client.generate("The", mood=3)
    with pytest.raises(InputError, match="`seed` must be one value or 2"):
        client.generate(["a", "b"], seed=[1, 2, 3])
    with pytest.raises(InputError, match="batch_size"):
        client.generate("a", batch_size=0)
    begin = time.monotonic()
    with pytest.raises(ServingError) as error:
        tiny.predict("spin", {"times": [2**31 - 1]}, timeout=0.3)
    assert error.value.code == "DEADLINE_EXCEEDED" and time.monotonic() - begin < 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_version_and_label_select_a_version(protocol, tmp_path, save_tiny, serve, client_of):
    base, config = tmp_path / "tiny", tmp_path / "models.config"
    for version in (1, 2):
        save_tiny(base / str(version), float(version))
    config.write_text(
        f'model_config_list {{ config {{ name: "a b" base_path: "{base}" '
        'model_platform: "tensorflow" model_version_policy { all {} } '
        'version_labels { key: "old" value: 1 } } }'
    )
    server = serve(model_config_file=str(config))

    def factor(**which):
        client = client_of(server, protocol, "a b", **which)
        return client.predict("serving_default", {"x": [[1]], "by": [1]})["y"].item()

    assert [factor(), factor(version=1), factor(version=2), factor(label="old")] == [2, 1, 2, 1]
    for which in ({"version": 3}, {"label": "new"}):
        with pytest.raises(ServingError) as error:
            factor(**which)
        assert error.value.code == "NOT_FOUND"
    assert [row["version"] for row in client_of(server, protocol, "a b").status()] == [2, 1]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"target": "localhost"}, "target"),
        ({"target": "ftp://localhost:1"}, "target"),
        ({"target": "http://localhost:x"}, "target"),
        ({"target": 8500}, "target"),
        ({"model": ""}, "model"),
        ({"model": "../etc"}, "model"),
        ({"version": 1, "label": "a"}, "not both"),
        ({"version": -1}, "version"),
        ({"version": 2**63}, "version"),
        ({"version": "1"}, "version"),
        ({"timeout": 0}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"headers": {"a": 1}}, "headers"),
        ({"headers": {"a": "b\r"}}, "headers"),
        ({"headers": {"a": "\u2713"}}, "Latin-1"),
        ({"client_key": "a"}, "client_certificate"),
        ({"root_certificates": "nowhere.pem"}, "root_certificates"),
        ({"target": "http://localhost:1", "root_certificates": "a.pem"}, "https"),
        ({"target": "https://localhost:1", "root_certificates": "a.pem"}, "certificate"),
    ],
)
def test_invalid_client_settings_raise(arguments, words):
    with pytest.raises(InputError, match=words):
        export.Client(**{"target": "localhost:1", "model": "m", **arguments})
