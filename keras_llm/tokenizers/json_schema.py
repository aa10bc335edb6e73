"""Convert JSON schemas to regular expressions."""

import json
import math
import re

from keras_llm.errors import InputError
from keras_llm.types import JSON

_ANNOTATIONS = {
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "definitions",
    "deprecated",
    "description",
    "examples",
    "readOnly",
    "title",
    "writeOnly",
}
_BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
_KEYWORDS = {  # by type
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength", "format"},
    "integer": set(_BOUNDS),
    "number": set(),
    "boolean": set(),
    "null": set(),
}
_PYTHON_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
# An escape never encodes half a surrogate pair, so every unit of a string is one code point.
_CHARACTER = (
    r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|'
    r"\\u(?:[0-9a-cefA-CEF][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}))"
)
_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?"  # fits a double
_LEAP_YEAR = r"(?:[12][0-9](?:0[48]|[2468][048]|[13579][26])|(?:1[26]|2[048])00)"
_DATE = (
    r"(?:[12][0-9]{3}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    r"|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    rf"|{_LEAP_YEAR}-02-29)"
)
_HOUR_MINUTE = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR_MINUTE}:[0-5][0-9](?:\.[0-9]{{1,6}})?(?:Z|[+-]{_HOUR_MINUTE})"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
_COMMA, _COLON = ", ?", ": ?"


def json_schema_regex(schema: JSON | str) -> str:
    """Return a regular expression of JSON texts that satisfy a schema.

    Each matching text is JSON on one line, with at most one space after a comma or colon, and
    satisfies the schema. Not every text that satisfies the schema matches: objects have only the
    listed properties, in the schema's order; `enum` and `const` are formatted by Python's `json`;
    and dates are between the years 1000 and 2999.

    Keywords:
        any schema: `type` (one or a list), `enum`, `const`, `anyOf`, `allOf` and `oneOf` with one
            schema, `$ref` within the schema without recursion. Annotations such as `title` and
            `default` are ignored.
        object: `properties` (required), `required`, `additionalProperties` (true or false).
        array: `items` (required), `minItems`, `maxItems`.
        string: `minLength`, `maxLength`, or `format` ("date", "time", "date-time" or "uuid").
        integer: `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`.

    Args:
        schema: dict, or str of JSON.

    Returns:
        A str, in the syntax that Python's `re` and Rust's `regex` share.

    Raises:
        InputError: if the schema is invalid or uses a keyword not listed above; the message names
            the location in the schema and the problem.

    Example:
    >>> json_schema_regex({"type": "array", "items": {"type": "integer", "minimum": 7}})
    '\\\\[(?:(?:[7-9]|[1-9][0-9]{1,})(?:, ?(?:[7-9]|[1-9][0-9]{1,})){0,})?\\\\]'

    Reference:
        JSON Schema, draft 2020-12; RFC 8259; RFC 3339 for dates and times.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except json.JSONDecodeError as error:
            raise InputError(f"`schema` is not JSON: {error}.") from None
    return _Schema(schema).regex(schema, "#", ())


class _Schema:
    def __init__(self, root):
        self._root = root

    def regex(self, schema, place, references):
        """Return the expression of a schema; `references` are the references leading to it."""
        if not isinstance(schema, dict):
            raise _wrong(place, f"a schema must be an object, got {schema!r}")
        if "$ref" in schema:
            _only(schema, {"$ref"}, place)
            return self._referenced(schema["$ref"], place, references)
        for keyword in ("anyOf", "allOf", "oneOf"):
            if keyword in schema:
                _only(schema, {keyword}, place)
                return self._alternatives(schema[keyword], keyword, place, references)
        if "enum" in schema or "const" in schema:
            return _values(schema, place)
        types = schema.get("type")
        types = types if isinstance(types, list) else [types]
        if not types or any(not isinstance(t, str) or t not in _KEYWORDS for t in types):
            names = ", ".join(map(repr, _KEYWORDS))
            raise _wrong(
                place,
                f"`type` must be one or more of {names} unless there is `enum`, `const`, "
                f"`anyOf` or `$ref`; got {schema.get('type')!r}",
            )
        _only(schema, set().union({"type"}, *(_KEYWORDS[t] for t in types)), place)
        return _any_of([self._typed(t, schema, place, references) for t in types])

    def _typed(self, kind, schema, place, references):
        if kind == "object":
            return self._object(schema, place, references)
        if kind == "array":
            return self._array(schema, place, references)
        if kind == "string":
            return _string(schema, place)
        if kind == "integer":
            return _integer(schema, place)
        return {"number": _NUMBER, "boolean": "(?:true|false)", "null": "null"}[kind]

    def _object(self, schema, place, references):
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            raise _wrong(place, f"an object needs `properties`, got {properties!r}")
        if not isinstance(schema.get("additionalProperties", True), bool):
            raise _wrong(place, "`additionalProperties` must be true or false")
        required = schema.get("required", [])
        unknown = [r for r in required if r not in properties] if _is_names(required) else required
        if unknown or not _is_names(required):
            raise _wrong(place, f"`required` must list names in `properties`, got {unknown!r}")
        members = [
            _literal(name) + _COLON + self.regex(value, f"{place}/properties/{name}", references)
            for name, value in properties.items()
        ]
        return r"\{" + _members(members, [name in required for name in properties]) + r"\}"

    def _array(self, schema, place, references):
        if "items" not in schema:
            raise _wrong(place, "an array needs `items`")
        least, most = _counts(schema, "minItems", "maxItems", place)
        item = self.regex(schema["items"], f"{place}/items", references)
        if most == 0:
            return r"\[\]"
        more = "" if most is None else most - 1
        items = f"{item}(?:{_COMMA}{item}){{{max(least - 1, 0)},{more}}}"
        return rf"\[{items}\]" if least else rf"\[(?:{items})?\]"

    def _alternatives(self, schemas, keyword, place, references):
        if not isinstance(schemas, list) or not schemas:
            raise _wrong(place, f"`{keyword}` must list schemas, got {schemas!r}")
        if keyword != "anyOf" and len(schemas) > 1:
            raise _wrong(place, f"`{keyword}` with more than one schema is not supported")
        return _any_of(
            [
                self.regex(schema, f"{place}/{keyword}/{index}", references)
                for index, schema in enumerate(schemas)
            ]
        )

    def _referenced(self, reference, place, references):
        if not isinstance(reference, str) or not re.match("#(/|$)", reference):
            raise _wrong(place, f"`$ref` must begin with '#/', got {reference!r}")
        if reference in references or reference == "#":
            raise _wrong(
                place, f"{reference!r} contains itself, which a regular expression cannot represent"
            )
        schema = self._root
        for part in reference.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(schema, dict) or part not in schema:
                raise _wrong(place, f"`$ref` {reference!r} does not exist")
            schema = schema[part]
        return self.regex(schema, reference, (*references, reference))


def _values(schema, place):
    """Return the expression of the values in `enum` or `const` that have the `type`."""
    _only(schema, {"enum", "const", "type"}, place)
    values = schema.get("enum", [schema.get("const")])
    if not isinstance(values, list):
        raise _wrong(place, f"`enum` must be a list, got {values!r}")
    if "const" in schema:
        values = [v for v in values if json.dumps(v) == json.dumps(schema["const"])]
    types = schema.get("type", list(_PYTHON_TYPES))
    types = types if isinstance(types, list) else [types]
    fitting = [value for value in values if any(_has_type(value, t) for t in types)]
    if not fitting:
        raise _wrong(place, "no value of `enum` or `const` has the `type`")
    try:
        return _any_of([_literal(value) for value in fitting])
    except (TypeError, ValueError):
        raise _wrong(
            place, f"`enum` or `const` has a value that is not JSON: {fitting!r}"
        ) from None


def _has_type(value, kind):
    is_bool = isinstance(value, bool)
    return isinstance(value, _PYTHON_TYPES.get(kind, ())) and is_bool == (kind == "boolean")


def _string(schema, place):
    least, most = _counts(schema, "minLength", "maxLength", place)
    if "format" not in schema:
        return f'"{_CHARACTER}{{{least},{"" if most is None else most}}}"'
    if schema["format"] not in _FORMATS:
        names = ", ".join(map(repr, _FORMATS))
        raise _wrong(place, f"`format` must be one of {names}, got {schema['format']!r}")
    if "minLength" in schema or "maxLength" in schema:
        raise _wrong(place, "`format` together with a length is not supported")
    return f'"{_FORMATS[schema["format"]]}"'


def _integer(schema, place):
    for keyword in _BOUNDS:
        value = schema.get(keyword, 0)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not abs(value) <= 2**53
        ):
            raise _wrong(place, f"`{keyword}` must be a number of at most 2**53, got {value!r}")
    low = [math.ceil(schema["minimum"])] if "minimum" in schema else []
    low += [math.floor(schema["exclusiveMinimum"]) + 1] if "exclusiveMinimum" in schema else []
    high = [math.floor(schema["maximum"])] if "maximum" in schema else []
    high += [math.ceil(schema["exclusiveMaximum"]) - 1] if "exclusiveMaximum" in schema else []
    low, high = max(low, default=None), min(high, default=None)
    if low is not None and high is not None and low > high:
        raise _wrong(place, f"no integer is at least {low} and at most {high}")
    parts = []
    if high is None or high >= 0:
        parts += _naturals(max(low or 0, 0), high)
    if low is None or low < 0:
        most = None if low is None else -low
        least = 1 if high is None else max(-high, 1)
        parts.append("-" + _any_of(_naturals(least, most)))
    return _any_of(parts)


def _naturals(low, high):
    """Return alternatives for the integers low..high; `high` None means no upper bound."""
    if high is None:
        digits = len(str(low))
        return [_same_length(str(low), "9" * digits), f"[1-9][0-9]{{{digits},}}"]
    ends = [10**n - 1 for n in range(len(str(low)), len(str(high)))]
    begins = [low, *(end + 1 for end in ends)]
    return [_same_length(str(a), str(b)) for a, b in zip(begins, [*ends, high], strict=True)]


def _same_length(low, high):
    """Return an expression of the numbers from `low` to `high`, decimal strs of equal length."""
    if not low:
        return ""
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    if first == last:
        return low[0] + _same_length(low[1:], high[1:])
    parts = []
    if low[1:].strip("0"):
        parts.append(low[0] + _same_length(low[1:], "9" * rest))
        first += 1
    if high[1:].strip("9"):
        parts.append(high[0] + _same_length("0" * rest, high[1:]))
        last -= 1
    if first <= last:
        digit = f"[{first}-{last}]" if first < last else str(first)
        parts.append(digit + ("[0-9]" if rest == 1 else f"[0-9]{{{rest}}}" if rest else ""))
    return _any_of(parts)


def _members(members, required):
    """Join members in order, where those not required are optional, with commas between."""
    if True in required:
        anchor = required.index(True)
        before = "".join(f"(?:{m}{_COMMA})?" for m in members[:anchor])
        return before + members[anchor] + _following(members, required, anchor)
    # One alternative for each member that can come first.
    first = [m + _following(members, required, i) for i, m in enumerate(members)]
    return f"(?:{'|'.join(first)})?" if first else ""


def _following(members, required, index):
    return "".join(
        _COMMA + member if needed else f"(?:{_COMMA}{member})?"
        for member, needed in zip(members[index + 1 :], required[index + 1 :], strict=True)
    )


def _counts(schema, least, most, place):
    values = schema.get(least, 0), schema.get(most)
    for name, value in zip((least, most), values, strict=True):
        if value is not None and (type(value) is not int or value < 0):
            raise _wrong(place, f"`{name}` must be an int >= 0, got {value!r}")
    if values[1] is not None and values[0] > values[1]:
        raise _wrong(place, f"`{least}` {values[0]} is greater than `{most}` {values[1]}")
    return values


def _literal(value):
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return re.sub(r"[\\^$.|?*+()\[\]{}]", r"\\\g<0>", text)


def _any_of(parts):
    return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"


def _is_names(value):
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _only(schema, keywords, place):
    unknown = sorted(set(schema) - keywords - _ANNOTATIONS)
    if unknown:
        allowed = ", ".join(f"`{keyword}`" for keyword in sorted(keywords))
        raise _wrong(place, f"`{unknown[0]}` is not supported; supported here: {allowed}")


def _wrong(place, what):
    return InputError(f"`schema` at {place}: {what}.")
