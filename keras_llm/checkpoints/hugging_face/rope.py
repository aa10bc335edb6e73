"""Read and write rotary positions in Hugging Face's config.json."""

import math

from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.layers import Alibi, Llama3Scaling, RelativeBias, Rotary, YarnScaling
from keras_llm.types import JSON

_LAYER_TYPES = ("full_attention", "sliding_attention")


def read(
    fields: Fields,
    default_base: float = 10000.0,
    layer_type: str | None = None,
    default_fraction: float | None = None,
) -> Rotary:
    """Read the `Rotary` of a config in the format of any version.

    As in transformers, `rope_scaling` takes precedence over `rope_parameters`.

    Args:
        fields: `Fields` of the config.
        default_base: float, the base if none is given.
        layer_type: "full_attention" or "sliding_attention" for a model with separate angles for
            each; or None.
        default_fraction: float, the part of each head that is rotated if none is given; None if the
            family rotates all of it.

    Raises:
        InputError: if the scaling is not supported; the message names the field.
    """
    parameters, scaling = fields.part("rope_parameters"), fields.part("rope_scaling")
    base_field = "rope_theta"
    if layer_type is None:
        options = scaling if scaling.row else parameters
        for name, value in options.row.items():
            if isinstance(value, dict):
                raise options.error(name, "not be an object")
    else:
        for name in parameters.row:
            if name not in _LAYER_TYPES:
                raise parameters.error(name, f"be in {' or '.join(_LAYER_TYPES)}")
        options = parameters.part(layer_type)
        if layer_type == "sliding_attention":
            base_field = "rope_local_base_freq"
        elif scaling.row:
            scaling.get("rope_type", str)
            merged = {**options.row, **scaling.row}
            options = Fields(merged, fields.where, "rope_scaling.")
    base = options.get("rope_theta", float, fields.get(base_field, float, default_base))
    fraction = 1.0
    if default_fraction is not None:
        fraction = fields.get("partial_rotary_factor", float, default_fraction)
        fraction = options.get("partial_rotary_factor", float, fraction)
    else:
        options.refuse_unless(partial_rotary_factor=1.0)
        fields.refuse_unless(partial_rotary_factor=1.0)
    kind = "rope_type" if "rope_type" in options.row else "type"
    scaling = options.one_of(kind, _SCALINGS, "default")(options, fields)
    return Rotary(base, scaling, fraction=fraction)


def write(position: Rotary | Alibi | RelativeBias | str | None) -> JSON:
    """Return the config fields for a `Rotary`: `rope_theta`, and `rope_scaling` if it is scaled.

    Other position options have no fields.
    """
    if not isinstance(position, Rotary):
        return {}
    row: JSON = {"rope_theta": position.base}
    scaling = position.scaling
    if isinstance(scaling, Llama3Scaling):
        row["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    elif isinstance(scaling, YarnScaling):
        row["rope_scaling"] = {
            "rope_type": "yarn",
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_length,
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "attention_factor": scaling.attention_factor,
            "truncate": scaling.truncate,
        }
        if scaling.attention_factor is None:
            del row["rope_scaling"]["attention_factor"]
    elif isinstance(scaling, (int, float)) and scaling != 1:
        row["rope_scaling"] = {"rope_type": "linear", "factor": float(scaling)}
    return row


def _default(options, fields):
    return 1.0


def _linear(options, fields):
    return options.get("factor", float)


def _llama3(options, fields):
    return Llama3Scaling(
        options.get("factor", float),
        options.get("low_freq_factor", float),
        options.get("high_freq_factor", float),
        _original_length(options, fields),
    )


def _yarn(options, fields):
    original = _original_length(options, fields)
    ratio = fields.positive("max_position_embeddings") / original
    factor = options.get("factor", float, ratio)
    attention_factor = options.get("attention_factor", float, None)
    over, under = (options.get(name, float, 0.0) for name in ("mscale", "mscale_all_dim"))
    if attention_factor is None and over and under:
        sharpness = math.log(max(factor, 1.0)) / 10
        attention_factor = (over * sharpness + 1) / (under * sharpness + 1)
    return YarnScaling(
        factor,
        original,
        # Zero also means the default.
        options.get("beta_fast", float, None) or 32.0,
        options.get("beta_slow", float, None) or 1.0,
        attention_factor,
        options.get("truncate", bool, True),
    )


def _original_length(options, fields):
    name = "original_max_position_embeddings"
    return options.positive(name, fields.positive("max_position_embeddings"))


_SCALINGS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
