"""The options of `generate` and `chat` that say how a text is chosen."""

import dataclasses
import json
import pathlib
from typing import Annotated

import tyro

from keras_llm.errors import InputError
from keras_llm.sampling_settings import MAX_NEW_TOKENS, SETTINGS


def sampling_options(*names):
    """A dataclass of `max_new_tokens` and some of the `SETTINGS`, for options to inherit from."""
    fields = [("max_new_tokens", int, MAX_NEW_TOKENS, "The most tokens to generate.")]
    for name in names:
        setting = SETTINGS[name]
        kind, default = type(setting.default), setting.default
        if name == "seed":
            kind, default = int | None, None
        fields.append((name, kind, default, setting.help))
    return dataclasses.make_dataclass(
        "SamplingOptions",
        [
            (name, Annotated[kind, tyro.conf.arg(help=words)], dataclasses.field(default=default))
            for name, kind, default, words in fields
        ],
        kw_only=True,
    )


@dataclasses.dataclass(kw_only=True)
class SamplingOptions(sampling_options(*SETTINGS)):
    """Read by tyro; `settings` gives those that differ from their defaults."""

    stop: list[str] = dataclasses.field(default_factory=list)
    """The text ends before any of these."""
    stop_token_ids: list[int] = dataclasses.field(default_factory=list)
    """Further tokens that end the text."""
    logit_bias: Annotated[dict[str, float], tyro.conf.arg(metavar="TOKEN NUMBER ...")] = (
        dataclasses.field(default_factory=dict)
    )
    """Added to the logits of tokens."""
    banned: list[str] = dataclasses.field(default_factory=list)
    """Tokens that are never chosen."""
    forced: str | None = None
    """What the new text begins with."""
    regex: str | None = None
    """The whole text matches this pattern."""
    json_schema: str | None = None
    """The text is JSON that fulfils the schema in this file."""

    def settings(self):
        """As keyword arguments of a task; what is off is left out."""
        given = {}
        for field in dataclasses.fields(SamplingOptions):
            value = getattr(self, field.name)
            if value not in (None, [], {}) and (
                field.default is dataclasses.MISSING or value != field.default
            ):
                given[field.name] = value
        if self.json_schema is not None:
            given["json_schema"] = _read_schema(self.json_schema)
        return given


def _read_schema(path):
    try:
        return json.loads(pathlib.Path(path).read_text("utf-8"))
    except ValueError as error:
        raise InputError(f"--json-schema: {path} is not JSON: {error}") from None
