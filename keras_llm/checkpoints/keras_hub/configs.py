"""Convert the options of KerasHub backbones to configs, or refuse them by name."""

from typing import Any

from keras_llm.checkpoints.hugging_face.family import window_pattern
from keras_llm.errors import InputError
from keras_llm.layers import Alibi, Llama3Scaling, Rotary
from keras_llm.models import CausalLMConfig
from keras_llm.types import JSON

_IGNORED_ARGUMENT = "KerasHub 0.32 stores this argument and ignores it, so only {} is supported"
_QK_EPSILON = 1e-5  # of the query and key norms of a Qwen3Backbone


def read_gpt2(backbone: Any, max_length: int) -> CausalLMConfig:
    return _with_learned_positions(backbone, max_length, "gelu_tanh")


def read_opt(backbone: Any, max_length: int) -> CausalLMConfig:
    return _with_learned_positions(backbone, max_length, "relu")


def _with_learned_positions(backbone, max_length, activation):
    return CausalLMConfig(
        **_sizes(backbone, max_length, "num_heads"),
        **_LAYER_NORMS,
        position="learned",
        norm_epsilon=1e-5,
        activation=activation,
    )


def write_gpt2(config: CausalLMConfig) -> JSON:
    return {
        "vocabulary_size": config.vocabulary_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "hidden_dim": config.hidden_dim,
        "intermediate_dim": config.intermediate_dim,
        "dropout": config.dropout,
        "max_sequence_length": config.max_length,
    }


def read_bloom(backbone: Any, max_length: int) -> CausalLMConfig:
    return CausalLMConfig(
        **_sizes(backbone, max_length, "num_heads"),
        **_LAYER_NORMS,
        position=Alibi(),
        norm_epsilon=backbone.layer_norm_epsilon,
        activation="gelu_tanh",
        tie_embeddings=False,  # the embedding is normalized, the head is not
    )


def read_gpt_neo_x(backbone: Any, max_length: int) -> CausalLMConfig:
    return CausalLMConfig(
        **_sizes(backbone, max_length, "num_heads"),
        **_LAYER_NORMS,
        position=Rotary(
            float(backbone.rotary_max_wavelength), fraction=float(backbone.rotary_percentage)
        ),
        norm_epsilon=backbone.layer_norm_epsilon,
        activation="gelu_tanh",
        parallel_residual=True,
    )


def read_llama(backbone: Any, max_length: int) -> CausalLMConfig:
    _refuse_unless(backbone, _IGNORED_ARGUMENT, rope_position_scaling_factor=1)
    scaling: Any = 1.0
    if backbone.rope_frequency_adjustment_factor is not None:
        scaling = Llama3Scaling(
            backbone.rope_frequency_adjustment_factor,
            backbone.rope_low_freq_factor,
            backbone.rope_high_freq_factor,
            backbone.rope_pretraining_sequence_length,
        )
    return CausalLMConfig(
        **_grouped(backbone, max_length),
        position=Rotary(float(backbone.rope_max_wavelength), scaling),
    )


def write_llama(config: CausalLMConfig) -> JSON | None:
    position: Any = config.position
    scaling = getattr(position, "scaling", None)
    if scaling != 1 and not isinstance(scaling, Llama3Scaling):
        return None
    arguments = {
        "vocabulary_size": config.vocabulary_size,
        "num_layers": config.num_layers,
        "num_query_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "hidden_dim": config.hidden_dim,
        "intermediate_dim": config.intermediate_dim,
        "rope_max_wavelength": position.base,
        "rope_position_scaling_factor": 1.0,
        "rope_frequency_adjustment_factor": None,
        "layer_norm_epsilon": config.norm_epsilon,
        "dropout": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
    }
    if isinstance(scaling, Llama3Scaling):
        arguments |= {
            "rope_frequency_adjustment_factor": scaling.factor,
            "rope_low_freq_factor": scaling.low_frequency_factor,
            "rope_high_freq_factor": scaling.high_frequency_factor,
            "rope_pretraining_sequence_length": scaling.original_length,
        }
    return arguments


def read_mistral(backbone: Any, max_length: int) -> CausalLMConfig:
    return CausalLMConfig(
        **_grouped(backbone, max_length),
        **_window(backbone.sliding_window, max_length),
        head_dim=backbone.head_dim,
        position=_rotary(backbone),
    )


def read_mixtral(backbone: Any, max_length: int) -> CausalLMConfig:
    _refuse_unless(backbone, router_jitter_noise=0)
    return CausalLMConfig(
        **_grouped(backbone, max_length),
        **_window(backbone.sliding_window, max_length),
        position=_rotary(backbone),
        num_experts=backbone.num_experts,
        experts_per_token=backbone.top_k,
        load_balance_loss=backbone.router_aux_loss_coef,
        router_z_loss=0.0,
    )


def read_qwen(backbone: Any, max_length: int) -> CausalLMConfig:
    window = backbone.sliding_window_size if backbone.use_sliding_window_attention else None
    return CausalLMConfig(
        **_grouped(backbone, max_length),
        **_window(window, max_length),
        position=_rotary(backbone),
        use_bias=True,
        output_bias=False,
        feed_forward_bias=False,
    )


def read_qwen3(backbone: Any, max_length: int) -> CausalLMConfig:
    return CausalLMConfig(**_qwen3_options(backbone, max_length))


def read_qwen3_moe(backbone: Any, max_length: int) -> CausalLMConfig:
    _refuse_unless(backbone, norm_top_k_prob=True, decoder_sparse_step=1, mlp_only_layers=[])
    return CausalLMConfig(
        **{
            **_qwen3_options(backbone, max_length),
            "intermediate_dim": backbone.moe_intermediate_dim,
            "num_experts": backbone.num_experts,
            "experts_per_token": backbone.top_k,
            "load_balance_loss": backbone.router_aux_loss_coefficient,
            "router_z_loss": 0.0,
        }
    )


def _qwen3_options(backbone, max_length):
    # The epsilon of the query and key norms is fixed; a small difference has no effect.
    if backbone.layer_norm_epsilon > _QK_EPSILON:
        raise InputError(
            f"`layer_norm_epsilon` is {backbone.layer_norm_epsilon}; KerasHub 0.32 does not use it "
            f"for queries and keys, so at most {_QK_EPSILON} is supported."
        )
    return {
        **_grouped(backbone, max_length),
        **_window(backbone.sliding_window_size, max_length),
        "head_dim": backbone.head_dim or None,
        "position": _rotary(backbone),
        "qk_norm": True,
    }


def read_phi3(backbone: Any, max_length: int) -> CausalLMConfig:
    _refuse_unless(backbone, rope_scaling_type=None)
    return CausalLMConfig(
        **_grouped(backbone, max_length), position=Rotary(float(backbone.rope_max_wavelength))
    )


def read_smollm3(backbone: Any, max_length: int) -> CausalLMConfig:
    count = backbone.num_layers
    _refuse_unless(backbone, partial_rotary_factor=1)
    types = set(backbone.layer_types[:count])
    if types != {"full_attention"}:
        raise InputError(
            f"`layer_types` has {sorted(types)}; "
            f"{_IGNORED_ARGUMENT.format(repr('full_attention'))}."
        )
    rotary = Rotary(float(backbone.rope_theta))
    enabled = list(backbone.rope_layer_enabled_list)[:count]
    rotated = [bool(value) for value in enabled] + [True] * (count - len(enabled))
    positions: JSON = {"position": rotary if all(rotated) else None}
    if any(rotated) and not all(rotated):
        # A layer has positions of its own if it has a window; this one covers all positions.
        positions |= {"local_position": rotary, "sliding_window": max_length}
        positions["window_pattern"] = window_pattern(rotated)
    return CausalLMConfig(
        **{
            **_sizes(backbone, max_length, "num_attention_heads", "attention_dropout"),
            **positions,
            "num_key_value_heads": backbone.num_key_value_heads,
            "norm_epsilon": backbone.layer_norm_epsilon,
            "use_bias": backbone.attention_bias,
            "output_bias": False,
            "feed_forward_bias": backbone.mlp_bias,
        }
    )


def read_gemma(backbone: Any, max_length: int) -> CausalLMConfig:
    window = backbone.sliding_window_size if backbone.use_sliding_window_attention else None
    windowed = [i % 2 == 0 for i in range(backbone.num_layers)]
    return CausalLMConfig(
        **_gemma_options(backbone, max_length, backbone.intermediate_dim // 2),
        **_window(window, max_length, windowed),
        position=Rotary(),
    )


def read_gemma3(backbone: Any, max_length: int) -> CausalLMConfig:
    _refuse_unless(
        backbone,
        vision_encoder=None,
        use_bidirectional_attention=False,
        is_embedding_model=False,
    )
    position: JSON = {"position": Rotary(1e6, float(backbone.global_rope_scaling_factor))}
    if backbone.use_sliding_window_attention:
        windowed = [i % 6 < 5 for i in range(backbone.num_layers)]
        # A window that covers all positions is kept, because its layers have other positions.
        position["local_position"] = Rotary(1e4, float(backbone.local_rope_scaling_factor))
        position["sliding_window"] = backbone.sliding_window_size
        position["window_pattern"] = window_pattern(windowed)
    return CausalLMConfig(
        **_gemma_options(backbone, max_length, backbone.intermediate_dim),
        **position,
        qk_norm=backbone.use_query_key_norm,
    )


def _gemma_options(backbone, max_length, intermediate_dim):
    _refuse_unless(backbone, "KerasHub 0.32 uses 1e-6 in all blocks", layer_norm_epsilon=1e-6)
    if backbone.hidden_dim // backbone.num_query_heads != backbone.head_dim:
        _refuse_unless(backbone, _IGNORED_ARGUMENT, query_head_dim_normalize=True)
    post = backbone.use_post_attention_norm
    _refuse_unless(backbone, "it must equal `use_post_attention_norm`", use_post_ffw_norm=post)
    return {
        **_grouped(backbone, max_length),
        "intermediate_dim": intermediate_dim,
        "head_dim": backbone.head_dim,
        "activation": "gelu_tanh",
        "norm_position": "sandwich" if post else "pre",
        "embedding_scale": backbone.hidden_dim**0.5,
        "logit_soft_cap": backbone.attention_logit_soft_cap,
        "final_soft_cap": backbone.final_logit_soft_cap,
    }


_LAYER_NORMS: JSON = {"norm": "layer", "gated": False, "use_bias": True}


def _sizes(backbone, max_length, heads, dropout="dropout"):
    """Return the sizes that all backbones have, and the dropout rate."""
    return {
        "vocabulary_size": backbone.vocabulary_size,
        "num_layers": backbone.num_layers,
        "hidden_dim": backbone.hidden_dim,
        "num_heads": getattr(backbone, heads),
        "intermediate_dim": backbone.intermediate_dim,
        "max_length": max_length,
        "dropout": getattr(backbone, dropout),
    }


def _grouped(backbone, max_length):
    """Return the options that Llama and the backbones like it have."""
    # The configs of some backbones do not store `tie_word_embeddings`.
    embedding = getattr(backbone, "token_embedding", None)
    tied = backbone.tie_word_embeddings if embedding is None else embedding.tie_weights
    return {
        **_sizes(backbone, max_length, "num_query_heads"),
        "num_key_value_heads": backbone.num_key_value_heads,
        "norm_epsilon": backbone.layer_norm_epsilon,
        "tie_embeddings": tied,
    }


def _rotary(backbone):
    return Rotary(float(backbone.rope_max_wavelength), float(backbone.rope_scaling_factor))


def _window(size, max_length, windowed=None):
    """Return the options of a window, {} if it covers all positions."""
    if not size or size >= max_length:
        return {}
    pattern = None if windowed is None else window_pattern(windowed)
    return {"sliding_window": size, "window_pattern": pattern}


def _refuse_unless(backbone, reason="only {} is supported", **accepted):
    for name, value in accepted.items():
        found = getattr(backbone, name)
        if found != value:
            raise InputError(f"`{name}` is {found!r}; {reason.format(repr(value))}.")
