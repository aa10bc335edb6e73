"""Define the base class of functional models, which are built and restored from a config."""

from typing import Any, ClassVar, Self, TypeVar

import keras

from keras_llm.errors import InputError
from keras_llm.json_files import short_repr
from keras_llm.layers.quantization import quantize_layers, quantized_layers
from keras_llm.models.config import (
    CONFIGS,
    ComposedConfig,
    TransformerConfig,
    WordVectorsConfig,
)
from keras_llm.types import JSON, Tensor

AnyConfig = TransformerConfig | WordVectorsConfig | ComposedConfig
Config = TypeVar("Config", bound=AnyConfig)


class ConfiguredModel(keras.Model):
    """A functional model that keeps the config it was built from.

    Attributes:
        config: a `CausalLMConfig`, `EncoderConfig`, `Seq2SeqConfig`, `WordVectorsConfig` or
            `ComposedConfig`.
        checkpoint_family: str or None, the `model_type` of the Hugging Face folder that the model
            was loaded from.
    """

    checkpoint_family: str | None = None
    config_class: ClassVar[Any] = None
    config: Any  # of the subclass's `config_class`

    def __init__(
        self,
        config: AnyConfig,
        inputs: Tensor | list[Tensor],
        outputs: Tensor | dict[str, Tensor],
        name: str,
        dtype: str | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(inputs=inputs, outputs=outputs, name=name, **kwargs)
        self.config = config
        self._dtype: Any = dtype
        if dtype is not None and not isinstance(dtype, str):
            policy = keras.dtype_policies.get(dtype)
            self._dtype = policy.name if type(policy) is keras.DTypePolicy else policy

    @classmethod
    def read_config(cls, config: Config | JSON) -> Config:
        """Return `config` or the config its dict describes; InputError if the class is wrong."""
        read = cls.config_class.from_dict(config) if isinstance(config, dict) else config
        if not isinstance(read, cls.config_class):
            raise InputError(
                f"`config` must be of class {cls.config_class.__name__}, got {type(read)}."
            )
        return read

    def get_config(self) -> JSON:
        return {
            "config": self.config.to_dict(),
            "name": self.name,
            "dtype": self.dtype_config,
            **self.state(),
        }

    def state(self) -> JSON:
        """Return the part of the config that changes later: what is quantized or frozen."""
        quantized = quantized_layers(self)
        return {
            **({"quantized": quantized} if quantized else {}),
            **({} if self.trainable else {"trainable": False}),
        }

    @classmethod
    def from_config(cls, config: JSON, custom_objects: JSON | None = None) -> Self:
        config = dict(config)
        quantized = config.pop("quantized", None)
        model = cls(**config)
        if quantized:
            quantize_layers(model, quantized)
        return model

    @property
    def dtype_config(self) -> str | JSON | None:
        """The `dtype` that the model was built with, as plain JSON types."""
        if self._dtype is None or isinstance(self._dtype, str):
            return self._dtype
        return keras.dtype_policies.serialize(self._dtype)


def check_model(caller: str, model: object, classes: Any, builders: str) -> None:
    """Raise InputError if a model is of none of the classes, naming their builder functions."""
    if not isinstance(model, classes):
        raise InputError(f"{caller}: `model` must come from {builders}, got {type(model)}.")


def config_to_dict(config: AnyConfig) -> JSON:
    """Convert a config of any class to plain JSON types, including its class."""
    return {"class": type(config).__name__, **config.to_dict()}


def config_from_dict(row: JSON) -> Any:
    """Rebuild a config from the output of `config_to_dict`, by default a `CausalLMConfig`.

    Raises:
        InputError: if the class or a field is unknown, or a field is missing.
    """
    row = dict(row)
    name = row.pop("class", "CausalLMConfig")
    if not isinstance(name, str) or name not in CONFIGS:
        raise InputError(
            f"unknown config class {short_repr(name)}; available classes: {', '.join(CONFIGS)}."
        )
    return CONFIGS[name].from_dict(row)
