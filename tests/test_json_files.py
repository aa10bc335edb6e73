"""Test the reader of JSON of unknown origin."""

import json

import pytest

from keras_llm.errors import InputError
from keras_llm.json_files import check_arguments, parse_json, read_json, read_json_value


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "file is not JSON: Expecting property name"),
        ("[" * 100_000 + "]" * 100_000, "nested more than 100 levels"),
        ("[" * 101 + "]" * 101, "nested more than 100 levels"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested more than 100 levels"),
        ("9" * 100, "an integer of 100 digits"),
        ("-" + "9" * 5000, "an integer of 5001 digits"),
        (b"\xff", "is not JSON"),
        (r'["\ud800"]', "surrogates not allowed"),
        (rb'{"\uDC00": 1}', "surrogates not allowed"),
    ],
)
def test_limits(text, message):
    with pytest.raises(InputError, match=message):
        parse_json(text, "file")


def test_what_is_within_the_limits_is_read():
    assert parse_json('{"length": 1000000000000000019884624838656}', "") == {"length": int(1e30)}
    assert parse_json("[" * 100 + "]" * 100, "") is not None
    assert parse_json(b'"\xc3\xa9"', "") == "\u00e9"
    assert parse_json(r'"\ud83d\ude42"', "") == "\U0001f642"


def test_files(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(InputError, match=r"a.json is missing"):
        read_json_value(path)
    path.write_text("[1]")
    assert read_json_value(path) == [1]
    with pytest.raises(InputError, match=r"a.json must hold a JSON object, got list"):
        read_json(path)
    with open(path, "wb") as file:
        file.truncate((1 << 28) + 1)  # sparse
    with pytest.raises(InputError, match=r"a.json has more than 256 MB"):
        read_json(path)


def function(name: str, size: int, rate: float = 0.1, ids: list[int] | None = None) -> None:
    pass


def test_arguments():
    check_arguments(function, {"name": "a", "size": 1, "rate": 1, "ids": None}, "file")
    check_arguments(function, {"ids": [1, 2]}, "file")
    for arguments in (
        {"name": ["a"]},
        {"size": True},
        {"size": 1.0},
        {"size": None},
        {"rate": float("nan")},
        {"rate": float("inf")},
        {"ids": [1, "2"]},
        {"ids": "12"},
    ):
        (name,) = arguments
        with pytest.raises(InputError, match=f"file: `{name}` must be "):
            check_arguments(function, arguments, "file")
    with pytest.raises(InputError, match="file: unknown field `other`; known: name, size"):
        check_arguments(function, {"other": 1}, "file")


def test_messages_are_short_lines():
    message = str(InputError("a\nb" + "x y" * 10_000 + "end"))
    assert message.startswith("a bx y") and message.endswith("yend") and len(message) < 2100


def test_messages_leave_out_the_middle_of_long_values(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a" * 10**6: 1, "size": "x" * 10**6, "ids": ["1", 2] * 10**5}))
    row = read_json(path)
    for arguments in (row, {"size": row["size"]}, {"ids": row["ids"]}):
        with pytest.raises(InputError) as raised:
            check_arguments(function, arguments, path)
        assert str(path) in str(raised.value) and " ... " in str(raised.value)
        assert len(str(raised.value)) < 500
    assert str(InputError(f"got {'x' * 240}.")) == f"got {'x' * 240}."
