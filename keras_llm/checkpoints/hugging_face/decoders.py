"""Define decoder-only families: GPT-2, Llama, Mistral, Mixtral, Qwen, SmolLM3, Phi-3 and Gemma."""

from keras_llm.checkpoints.hugging_face import rope, weight_mapping
from keras_llm.checkpoints.hugging_face.family import (
    ACTIVATIONS,
    WRITTEN_ACTIVATIONS,
    Family,
    in_blocks,
    window_pattern,
)
from keras_llm.layers import Rotary
from keras_llm.models import CausalLMConfig

_NO_PADDING = {"pad_token_id": None}  # the default may be beyond the vocabulary
_FULL, _WINDOWED = "full_attention", "sliding_attention"


def _read_gpt2(fields):
    fields.refuse_unless(
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
        is_causal=True,
    )
    size = fields.get("n_embd")
    return CausalLMConfig(
        vocabulary_size=fields.get("vocab_size"),
        num_layers=fields.count("n_layer"),
        hidden_dim=size,
        num_heads=fields.get("n_head"),
        intermediate_dim=fields.get("n_inner", int, 4 * size),
        max_length=fields.get("n_positions"),
        position="learned",
        norm="layer",
        norm_epsilon=fields.get("layer_norm_epsilon", float, 1e-5),
        activation=fields.one_of("activation_function", ACTIVATIONS, "gelu_new"),
        gated=False,
        use_bias=True,
        tie_embeddings=fields.get("tie_word_embeddings", bool, True),
        dropout=fields.get("resid_pdrop", float, 0.1),
        initializer_range=fields.get("initializer_range", float, 0.02),
    )


def _write_gpt2(config):
    return {
        "vocab_size": config.vocabulary_size,
        "n_layer": config.num_layers,
        "n_embd": config.hidden_dim,
        "n_head": config.num_heads,
        "n_inner": config.intermediate_dim,
        "n_positions": config.max_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": WRITTEN_ACTIVATIONS.get(config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
        "initializer_range": config.initializer_range,
    }


def _common(fields, activation=("hidden_act", "silu"), tied=False, epsilon=1e-6):
    """Return the options that Llama and later families share."""
    fields.refuse_unless(is_causal=True)
    heads = fields.get("num_attention_heads")
    return {
        "vocabulary_size": fields.get("vocab_size"),
        "num_layers": fields.count("num_hidden_layers"),
        "hidden_dim": fields.get("hidden_size"),
        "num_heads": heads,
        "num_key_value_heads": fields.get("num_key_value_heads", int, heads),
        "head_dim": fields.get("head_dim", int, None),
        "intermediate_dim": fields.get("intermediate_size"),
        "max_length": fields.get("max_position_embeddings"),
        "norm_epsilon": fields.get("rms_norm_eps", float, epsilon),
        "activation": fields.one_of(activation[0], ACTIVATIONS, activation[1]),
        "tie_embeddings": fields.get("tie_word_embeddings", bool, tied),
        "dropout": fields.get("attention_dropout", float, 0.0),
        "initializer_range": fields.get("initializer_range", float, 0.02),
    }


def _biases(fields, feed_forward=False):
    """Read which layers have biases: attention by `attention_bias`, feed-forward as given."""
    attention = fields.get("attention_bias", bool, False)
    return {
        "use_bias": attention,
        "feed_forward_bias": None if attention == feed_forward else feed_forward,
    }


def _write_common(config, activation="hidden_act"):
    return {
        "vocab_size": config.vocabulary_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_dim,
        "max_position_embeddings": config.max_length,
        "rms_norm_eps": config.norm_epsilon,
        activation: WRITTEN_ACTIVATIONS.get(config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.dropout,
        "initializer_range": config.initializer_range,
        **rope.write(config.position),
    }


def _read_llama(fields):
    biases = _biases(fields, fields.get("mlp_bias", bool, False))
    return CausalLMConfig(**_common(fields), **biases, position=rope.read(fields))


def _write_llama(config):
    mlp_bias = config.use_bias if config.feed_forward_bias is None else config.feed_forward_bias
    return {**_write_common(config), "attention_bias": config.use_bias, "mlp_bias": mlp_bias}


def _read_mistral(fields):
    return CausalLMConfig(
        **_common(fields),
        position=rope.read(fields),
        sliding_window=_window(fields, 4096),
    )


def _write_mistral(config):
    return {**_write_common(config), "sliding_window": config.sliding_window}


def _read_mixtral(fields):
    return CausalLMConfig(
        **_common(fields, epsilon=1e-5),
        position=rope.read(fields, 1e6),
        sliding_window=_window(fields, None),
        num_experts=fields.count("num_local_experts", 8),
        experts_per_token=fields.get("num_experts_per_tok", int, 2),
        load_balance_loss=fields.get("router_aux_loss_coef", float, 0.001),
    )


def _write_mixtral(config):
    return {
        **_write_mistral(config),
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "router_aux_loss_coef": config.load_balance_loss,
    }


def _read_qwen2(fields):
    common = _common(fields)
    return CausalLMConfig(
        **common,
        **_qwen_windows(fields, common["num_layers"]),
        position=rope.read(fields),
        use_bias=True,
        output_bias=False,
        feed_forward_bias=False,
    )


def _write_qwen2(config):
    return {
        **_write_common(config),
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
        **_write_layer_types(config),
    }


def _read_qwen3(fields):
    common = {**_common(fields), **_biases(fields)}
    if common["head_dim"] is None:
        common["head_dim"] = 128
    options = _qwen_windows(fields, common["num_layers"])
    return CausalLMConfig(**common, position=rope.read(fields), qk_norm=True, **options)


def _write_qwen3(config):
    return {**_write_qwen2(config), "attention_bias": config.use_bias}


def _qwen_windows(fields, num_layers):
    window = None
    if fields.get("use_sliding_window", bool, False):
        window = _window(fields, 4096)
    first = fields.get("max_window_layers", int, 28)
    default = [window is not None and i >= first for i in range(num_layers)]
    return _layer_types(fields, default, window)


def _read_smollm3(fields):
    fields.refuse_unless(use_sliding_window=False)
    common = {**_common(fields, tied=True), **_biases(fields, fields.get("mlp_bias", bool, False))}
    layers, rotary = common["num_layers"], rope.read(fields, 2e6)
    _layer_types(fields, [False] * layers, None)  # refuses windows
    interval = fields.positive("no_rope_layer_interval", 4)
    default = [int((i + 1) % interval != 0) for i in range(layers)]
    rotated = fields.get("no_rope_layers", list, default) or default
    if len(rotated) < layers or any(flag not in (0, 1) for flag in rotated):
        raise fields.error("no_rope_layers", f"be a list of at least {layers} times 0 or 1")
    rotated = rotated[:layers]
    positions = {"position": rotary if all(rotated) else None}
    if any(rotated) and not all(rotated):
        # A layer has positions of its own if it has a window; this one covers all positions.
        positions |= {"local_position": rotary, "sliding_window": common["max_length"]}
        positions["window_pattern"] = window_pattern(map(bool, rotated))
    return CausalLMConfig(**common, **positions)


def _write_smollm3(config):
    position = config.position if config.local_position is None else config.local_position
    rotated = [
        int(config.attention_position(layer) is not None) for layer in range(config.num_layers)
    ]
    row = {**_write_llama(config), **rope.write(position), "no_rope_layers": rotated}
    return {**row, "use_sliding_window": False, "sliding_window": None, **_NO_PADDING}


def _read_phi3(fields):
    position = rope.read(fields, default_fraction=1.0)
    if position.scaling != 1.0:  # transformers has only LongRoPE, and calls it "yarn", too
        raise fields.error("rope_scaling", "be null: LongRoPE is not supported")
    return CausalLMConfig(
        **_common(fields, epsilon=1e-5),
        position=position,
        sliding_window=_window(fields, None),
    )


def _write_phi3(config):
    row = {**_write_common(config), "sliding_window": config.sliding_window}
    if isinstance(config.position, Rotary):
        row["partial_rotary_factor"] = config.position.fraction
        row["original_max_position_embeddings"] = config.max_length
    return {**row, **_NO_PADDING}


def _read_gemma2(fields):
    layers = fields.count("num_hidden_layers")
    options = _layer_types(fields, [i % 2 == 0 for i in range(layers)], _window(fields, 4096))
    return CausalLMConfig(
        **_gemma(fields),
        **options,
        position=rope.read(fields),
        logit_soft_cap=_optional(fields, "attn_logit_softcapping", 50.0),
        final_soft_cap=_optional(fields, "final_logit_softcapping", 30.0),
    )


def _read_gemma3(fields):
    fields.refuse_unless(attn_logit_softcapping=None)  # transformers ignores it
    layers, period = fields.count("num_hidden_layers"), fields.positive("sliding_window_pattern", 6)
    default = [(i + 1) % period != 0 for i in range(layers)]
    options = _layer_types(fields, default, _window(fields, 4096))
    if options:
        options["local_position"] = rope.read(fields, 10000.0, _WINDOWED)
    return CausalLMConfig(
        **_gemma(fields),
        **options,
        position=rope.read(fields, 1e6, _FULL),
        final_soft_cap=_optional(fields, "final_logit_softcapping", None),
        qk_norm=True,
    )


def _gemma(fields):
    fields.refuse_unless(use_bidirectional_attention=False)
    common = _common(fields, ("hidden_activation", "gelu_pytorch_tanh"), tied=True)
    scalar = fields.get("query_pre_attn_scalar", int, 256)
    if scalar < 1:
        raise fields.error("query_pre_attn_scalar", "be positive")
    return {
        **common,
        **_biases(fields),
        "head_dim": common["head_dim"] or 256,
        "norm_position": "sandwich",
        "embedding_scale": common["hidden_dim"] ** 0.5,
        "attention_scale": scalar**-0.5,
    }


def _write_gemma2(config):
    scale = config.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
    scalar = scale**-2
    # Some versions do not accept null.
    window = {} if config.sliding_window is None else {"sliding_window": config.sliding_window}
    return {
        **_write_common(config, "hidden_activation"),
        **window,
        "attention_bias": config.use_bias,
        "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar,
        "attn_logit_softcapping": config.logit_soft_cap,
        "final_logit_softcapping": config.final_soft_cap,
        **_write_layer_types(config),
    }


def _write_gemma3(config):
    local = config.local_position or config.position
    base = local.base if isinstance(local, Rotary) else None
    row = {**_write_gemma2(config), "rope_local_base_freq": base}
    del row["attn_logit_softcapping"]
    return row


def _window(fields, default):
    """Read `sliding_window`, where null means none."""
    return fields.get("sliding_window", int, None if "sliding_window" in fields.row else default)


def _optional(fields, name, default):
    """Read a number, where null means none."""
    return fields.get(name, float, None if name in fields.row else default)


def _layer_types(fields, default, window):
    """Return `sliding_window` and `window_pattern`; {} if all layers have full attention."""
    names = fields.get("layer_types", list, [_WINDOWED if w else _FULL for w in default])
    if len(names) != len(default) or any(name not in (_FULL, _WINDOWED) for name in names):
        raise fields.error(
            "layer_types", f"be a list of {len(default)} times {_FULL!r} or {_WINDOWED!r}"
        )
    windowed = [name == _WINDOWED for name in names]
    if not any(windowed):
        return {}
    if window is None:
        raise fields.error("layer_types", f"not have {_WINDOWED!r} without a window")
    return {"sliding_window": window, "window_pattern": window_pattern(windowed)}


def _write_layer_types(config):
    windows = [config.window(i) for i in range(config.num_layers)]
    return {"layer_types": [_FULL if window is None else _WINDOWED for window in windows]}


_OUTSIDE = {
    "token_embedding": "model.embed_tokens",
    "head": "lm_head",
    "final_norm": "model.norm",
}
_ATTENTION = {
    "self_attention/query": "self_attn.q_proj",
    "self_attention/key": "self_attn.k_proj",
    "self_attention/value": "self_attn.v_proj",
    "self_attention/output": "self_attn.o_proj",
    "self_attention_norm": "input_layernorm",
}
_FEED_FORWARD = {
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward/gate": "mlp.gate_proj",
    "feed_forward/up": "mlp.up_proj",
    "feed_forward/down": "mlp.down_proj",
}
_EXPERTS = {
    "feed_forward_norm": "post_attention_layernorm",
    "feed_forward/router": "block_sparse_moe.gate",
    "feed_forward/gate": "block_sparse_moe.experts.{e}.w1",
    "feed_forward/up": "block_sparse_moe.experts.{e}.w3",
    "feed_forward/down": "block_sparse_moe.experts.{e}.w2",
}
_QK_NORM = {
    "self_attention/query_norm": "self_attn.q_norm",
    "self_attention/key_norm": "self_attn.k_norm",
}
_FUSED_ATTENTION = {
    **_ATTENTION,
    "self_attention/query": "self_attn.qkv_proj",
    "self_attention/key": "self_attn.qkv_proj",
    "self_attention/value": "self_attn.qkv_proj",
}
_FUSED_FEED_FORWARD = {
    **_FEED_FORWARD,
    "feed_forward/gate": "mlp.gate_up_proj",
    "feed_forward/up": "mlp.gate_up_proj",
}
_SANDWICH = {
    "self_attention_post_norm": "post_attention_layernorm",
    "feed_forward_norm": "pre_feedforward_layernorm",
    "feed_forward_post_norm": "post_feedforward_layernorm",
}


def _like_llama(model_type, architecture, read, write, *blocks, **others):
    names = {key: name for block in blocks for key, name in block.items()}
    return Family(
        model_type,
        {None: architecture},
        read,
        write,
        {**_OUTSIDE, **in_blocks("model.layers.{i}.", names)},
        prefix="model.",
        ignored=(r".*rotary_emb\.inv_freq",),
        copies={"lm_head.weight": "model.embed_tokens.weight"},
        **others,
    )


GPT2 = Family(
    "gpt2",
    {None: "GPT2LMHeadModel"},
    _read_gpt2,
    _write_gpt2,
    {
        "token_embedding": "transformer.wte",
        "head": "lm_head",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        **in_blocks(
            "transformer.h.{i}.",
            {
                "self_attention_norm": "ln_1",
                "self_attention/query": "attn.c_attn",
                "self_attention/key": "attn.c_attn",
                "self_attention/value": "attn.c_attn",
                "self_attention/output": "attn.c_proj",
                "feed_forward_norm": "ln_2",
                "feed_forward/up": "mlp.c_fc",
                "feed_forward/down": "mlp.c_proj",
            },
        ),
    },
    prefix="transformer.",
    linear=weight_mapping.same,
    ignored=(r".*\.attn\.(masked_)?bias",),
    copies={"lm_head.weight": "transformer.wte.weight"},
)
LLAMA = _like_llama(
    *("llama", "LlamaForCausalLM", _read_llama, _write_llama), _ATTENTION, _FEED_FORWARD
)
MISTRAL = _like_llama(
    *("mistral", "MistralForCausalLM", _read_mistral, _write_mistral), _ATTENTION, _FEED_FORWARD
)
MIXTRAL = _like_llama(
    *("mixtral", "MixtralForCausalLM", _read_mixtral, _write_mixtral), _ATTENTION, _EXPERTS
)
QWEN3 = _like_llama(
    *("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen3),
    *(_ATTENTION, _FEED_FORWARD, _QK_NORM),
)
QWEN2 = _like_llama(
    *("qwen2", "Qwen2ForCausalLM", _read_qwen2, _write_qwen2), _ATTENTION, _FEED_FORWARD
)
SMOLLM3 = _like_llama(
    *("smollm3", "SmolLM3ForCausalLM", _read_smollm3, _write_smollm3), _ATTENTION, _FEED_FORWARD
)
PHI3 = _like_llama(
    *("phi3", "Phi3ForCausalLM", _read_phi3, _write_phi3),
    *(_FUSED_ATTENTION, _FUSED_FEED_FORWARD),
)
GEMMA2 = _like_llama(
    *("gemma2", "Gemma2ForCausalLM", _read_gemma2, _write_gemma2),
    *(_ATTENTION, _FEED_FORWARD, _SANDWICH),
    norm_offset=1.0,
)
GEMMA3 = _like_llama(
    *("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma3),
    *(_ATTENTION, _FEED_FORWARD, _QK_NORM, _SANDWICH),
    norm_offset=1.0,
)
