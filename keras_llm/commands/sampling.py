"""The options of `generate` and `chat` that say how a text is chosen."""

import dataclasses
import json
import pathlib
from typing import Annotated

import tyro

from keras_llm.errors import InputError


@dataclasses.dataclass(kw_only=True)
class SamplingOptions:
    """Read by tyro; `settings` gives those that were given."""

    max_new_tokens: int = 64
    """The most tokens to generate."""
    temperature: float = 1.0
    """0 takes the most likely token each time."""
    top_k: int = 0
    """Choose among this many most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Choose among the fewest tokens that hold this much probability; 1 is off."""
    min_p: float = 0.0
    """Choose among tokens at least so probable as the likeliest times this; 0 is off."""
    typical_p: float = 1.0
    """Choose among the most typical tokens that hold this much probability; 1 is off."""
    seed: int | None = None
    """The same seed gives the same text."""
    stop: list[str] = dataclasses.field(default_factory=list)
    """The text ends before any of these."""
    stop_token_ids: list[int] = dataclasses.field(default_factory=list)
    """Further tokens that end the text."""
    repetition_penalty: float = 1.0
    """Above 1, what has occurred becomes less likely."""
    presence_penalty: float = 0.0
    """Taken from the logit of a token that the new text has."""
    frequency_penalty: float = 0.0
    """Taken from the logit for each time that the new text has the token."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size comes twice; 0 is off."""
    min_new_tokens: int = 0
    """The text does not end before."""
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
