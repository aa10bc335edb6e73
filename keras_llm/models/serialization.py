"""Any model, as plain JSON types and back."""

from keras_llm.errors import InputError
from keras_llm.models.base import config_from_dict, config_to_dict
from keras_llm.models.causal_lm import CausalLM
from keras_llm.models.encoder import Encoder
from keras_llm.models.heads import HEADS, HeadModel
from keras_llm.models.seq2seq import Seq2Seq
from keras_llm.models.word_vectors import WordVectors

_CLASSES = {model.config_class: model for model in (CausalLM, Encoder, Seq2Seq, WordVectors)}


def build(config, head=None, options=None, dtype=None):
    """The model of a config of any class, with fresh weights.

    Args:
        config: a `CausalLMConfig`, `EncoderConfig`, `Seq2SeqConfig` or `WordVectorsConfig`.
        head: str, the name of the function that makes a head model, e.g. "text_classifier"; or
            None for the bare model.
        options: dict, the options of the head.
        dtype: Keras dtype policy of all layers.

    Raises:
        InputError: if `config` is of no such class or the head unknown.
    """
    if type(config) not in _CLASSES:
        known = ", ".join(known.__name__ for known in _CLASSES)
        raise InputError(f"build: `config` must be one of {known}, got {type(config)}.")
    if head is None:
        return _CLASSES[type(config)](config, dtype=dtype)
    if head not in HEADS:
        raise InputError(f"build: unknown head {head!r}; known: {', '.join(HEADS)}.")
    return HeadModel(config, head, options, dtype=dtype)


def describe(model):
    """What `restore` needs to build a model again, as plain JSON types."""
    row = {"model": config_to_dict(model.config), "dtype": model.get_config()["dtype"]}
    if isinstance(model, HeadModel):
        row["head"] = {"name": model.head, "options": model.options}
    return row


def restore(row):
    """The model that `describe` described, with fresh weights; other keys are left aside.

    Raises:
        InputError: if a class, a field or the head is unknown, or a field missing.
    """
    head = row.get("head") or {}
    config = config_from_dict(row["model"])
    return build(config, head.get("name"), head.get("options"), dtype=row.get("dtype"))
