"""Known shapes, as rows of data."""

from keras_llm.errors import InputError
from keras_llm.layers.rotary import Rotary
from keras_llm.models.config import CausalLMConfig

_SMALL = {"initializer_range": 0.05}  # narrow models learn faster from wider initial weights
_GPT = {
    **_SMALL,
    "position": "learned",
    "norm": "layer",
    "activation": "gelu",
    "gated": False,
    "use_bias": True,
}
_LLAMA = {
    **_SMALL,
    "position": Rotary(),
    "norm": "rms",
    "activation": "silu",
    "gated": True,
    "use_bias": False,
}


def _row(vocabulary, layers, hidden, heads, intermediate, length, family, **options):
    return CausalLMConfig(
        vocabulary_size=vocabulary,
        num_layers=layers,
        hidden_dim=hidden,
        num_heads=heads,
        intermediate_dim=intermediate,
        max_length=length,
        **family,
        **options,
    )


_PRESETS = {
    "gpt-tiny": _row(512, 2, 64, 4, 256, 128, _GPT),
    "gpt-3m": _row(4096, 5, 192, 6, 768, 256, _GPT),
    "llama-tiny": _row(512, 2, 64, 4, 176, 128, _LLAMA, num_key_value_heads=2),
    "llama-3m": _row(4096, 5, 192, 6, 512, 256, _LLAMA, num_key_value_heads=2),
    "llama-12m": _row(8000, 6, 384, 6, 1024, 512, _LLAMA, num_key_value_heads=2),
}


def presets():
    """The names that `preset` knows, sorted."""
    return sorted(_PRESETS)


def preset(name, **overrides):
    """The config of a known shape.

    Args:
        name: one of `presets()`.
        **overrides: fields to change, e.g. `vocabulary_size=tok.vocabulary_size`.

    Returns:
        A `CausalLMConfig`.

    Raises:
        InputError: if the name or a field is unknown.

    Example:
    >>> preset("llama-tiny", num_layers=3).num_layers
    3
    """
    if name not in _PRESETS:
        raise InputError(f"preset: unknown name {name!r}; known: {', '.join(presets())}.")
    config = _PRESETS[name]
    return config.from_dict({**config.to_dict(), **overrides})
