"""Define the sampling options of `generate`, `chat` and `query`."""

import dataclasses
import pathlib
from typing import Annotated, Any

import tyro

from keras_llm.errors import InputError
from keras_llm.files import read_utf8
from keras_llm.json_files import parse_json
from keras_llm.sampling_settings import MAX_NEW_TOKENS, SETTINGS, check


def sampling_options(*names):
    """Return a base dataclass with `max_new_tokens` and the named `SETTINGS`."""
    fields = [("max_new_tokens", int, MAX_NEW_TOKENS, "Maximum number of tokens to generate.")]
    for name in names:
        setting = SETTINGS[name]
        kind, default = type(setting.default), setting.default
        if name == "seed":
            kind, default = int | None, None
        fields.append((name, kind, default, setting.help))
    return dataclasses.make_dataclass(
        "SamplingOptions",
        [
            (name, Annotated[kind, tyro.conf.arg(help=text)], dataclasses.field(default=default))
            for name, kind, default, text in fields
        ],
        kw_only=True,
    )


_Options: Any = sampling_options(*SETTINGS)


@dataclasses.dataclass(kw_only=True)
class SamplingOptions(_Options):
    """All sampling options, parsed by tyro."""

    stop: list[str] = dataclasses.field(default_factory=list)
    """Stop strings: the text ends before the first occurrence of any of them."""
    stop_token_ids: list[int] = dataclasses.field(default_factory=list)
    """Further tokens that end the text."""
    logit_bias: Annotated[dict[str, float], tyro.conf.arg(metavar="TOKEN NUMBER ...")] = (
        dataclasses.field(default_factory=dict)
    )
    """Numbers to add to the logits of tokens."""
    banned: list[str] = dataclasses.field(default_factory=list)
    """Tokens that are never generated."""
    forced: str | None = None
    """Text that the new text begins with."""
    regex: str | None = None
    """Regular expression that the whole new text matches."""
    json_schema: str | None = None
    """File with a JSON schema; the new text is JSON that conforms to it."""
    grammar: str | None = None
    """File with a Lark grammar that the new text conforms to."""

    def settings(self):
        """Return the options that differ from their defaults, as keyword arguments of a task.

        Raises:
            InputError: if a number is out of range, or a file cannot be read.
        """
        settings = {}
        for field in dataclasses.fields(SamplingOptions):
            value = getattr(self, field.name)
            if value not in (None, [], {}) and (
                field.default is dataclasses.MISSING or value != field.default
            ):
                settings[field.name] = value
        check({name: value for name, value in settings.items() if name in SETTINGS})
        if self.max_new_tokens < 1:
            raise InputError(f"`max_new_tokens` must be a positive int, got {self.max_new_tokens}.")
        if self.json_schema is not None:
            settings["json_schema"] = _read_schema(self.json_schema)
        if self.grammar is not None:
            settings["grammar"] = read_utf8(self.grammar)
        return settings


def _read_schema(path):
    return parse_json(pathlib.Path(path).read_bytes(), f"--json-schema: {path}")
