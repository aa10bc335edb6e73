"""List the supported classes of KerasHub backbones with the names of their variables."""

from keras_llm.checkpoints.hugging_face.family import in_blocks
from keras_llm.checkpoints.keras_hub import configs, family
from keras_llm.checkpoints.keras_hub.family import Family

_ATTENTION = {
    "self_attention/query": "self_attention/query",
    "self_attention/key": "self_attention/key",
    "self_attention/value": "self_attention/value",
    "self_attention/output": "self_attention/attention_output",
}
_FEED_FORWARD = {
    "feed_forward/up": "feedforward_intermediate_dense",
    "feed_forward/gate": "feedforward_gate_dense",
    "feed_forward/down": "feedforward_output_dense",
}
_NORMS = {
    "self_attention_norm": "self_attention_layernorm",
    "feed_forward_norm": "feedforward_layernorm",
}
_LAYER_NORMS = {
    "self_attention_norm": "self_attention_layer_norm",
    "feed_forward_norm": "feedforward_layer_norm",
}
_QK_NORM = {
    "self_attention/query_norm": "self_attention/query_dense_layernorm",
    "self_attention/key_norm": "self_attention/key_dense_layernorm",
}
_MIXTRAL_EXPERTS = {
    "feed_forward/router": "mixtral_sparse_moe_block/sparse_feedforward_gate_dense",
    "feed_forward/gate": "mixtral_sparse_moe_block/experts/expert_feedforward_gate_dense",
    "feed_forward/up": "mixtral_sparse_moe_block/experts/expert_feedforward_intermediate_dense",
    "feed_forward/down": "mixtral_sparse_moe_block/experts/expert_feedforward_output_dense",
}
_QWEN3_EXPERTS = {
    "feed_forward/router": "qwen3_sparse_moe_block/sparse_feedforward_gate_dense",
    "feed_forward/gate": "qwen3_sparse_moe_block/experts/expert_feedforward_gate_dense",
    "feed_forward/up": "qwen3_sparse_moe_block/experts/expert_feedforward_gate_dense",
    "feed_forward/down": "qwen3_sparse_moe_block/experts/expert_feedforward_output_dense",
}
_PHI3 = {
    **{key: name.removeprefix("self_") for key, name in _ATTENTION.items()},
    **_FEED_FORWARD,
    "self_attention_norm": "pre_attention_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
}
_SMOLLM3 = {
    "self_attention/query": "self_attn/q_proj",
    "self_attention/key": "self_attn/k_proj",
    "self_attention/value": "self_attn/v_proj",
    "self_attention/output": "o_proj",
    "feed_forward/up": "mlp/up_proj",
    "feed_forward/gate": "mlp/gate_proj",
    "feed_forward/down": "mlp/down_proj",
    "self_attention_norm": "input_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
}
_BLOOM = {
    "self_attention/query": "self_attention/query_dense",
    "self_attention/key": "self_attention/key_dense",
    "self_attention/value": "self_attention/value_dense",
    "self_attention/output": "self_attention/output_dense",
    "feed_forward/up": "mlp_intermediate_dense",
    "feed_forward/down": "mlp_output_dense",
    "self_attention_norm": "pre_attention_layernorm",
    "feed_forward_norm": "post_attention_layernorm",
}
_GPT_NEO_X = {
    **_ATTENTION,
    "self_attention/query": "self_attention/query_key_value",
    "self_attention/key": "self_attention/query_key_value",
    "self_attention/value": "self_attention/query_key_value",
}
_GEMMA = {
    **{key: name.removeprefix("self_") for key, name in _ATTENTION.items()},
    "self_attention/query_norm": "attention/query_norm",
    "self_attention/key_norm": "attention/key_norm",
    "feed_forward/gate": "ffw_gating",
    "feed_forward/up": "ffw_gating_2",
    "feed_forward/down": "ffw_linear",
    "self_attention_norm": "pre_attention_norm",
    "self_attention_post_norm": "post_attention_norm",
    "feed_forward_norm": "pre_ffw_norm",
    "feed_forward_post_norm": "post_ffw_norm",
}
_GEMMA_RULES = {
    **{f"block/self_attention/{name}": family.heads_first for name in ("query", "key", "value")},
    **{f"block/{key}": family.minus_one for key in _GEMMA if key.endswith("_norm")},
    "final_norm": family.minus_one,
}


def _names(
    *blocks,
    block="transformer_layer_{i}/",
    embedding="token_embedding",
    final_norm="sequence_output_layernorm",
    **others,
):
    parts = {key: name for names in blocks for key, name in names.items()}
    return {
        "token_embedding": embedding,
        "head": embedding,
        "final_norm": final_norm,
        **others,
        **in_blocks(block, parts),
    }


_LLAMA = Family(
    configs.read_llama,
    _names(_ATTENTION, _FEED_FORWARD, _NORMS),
    write=configs.write_llama,
)
FAMILIES = {
    # Models are converted to the first class that computes the same.
    "GPT2Backbone": Family(
        configs.read_gpt2,
        _names(
            *(_ATTENTION, _FEED_FORWARD, _LAYER_NORMS),
            final_norm="layer_norm",
            position_embedding="position_embedding",
        ),
        length="max_sequence_length",
        has_fixed_length=True,
        write=configs.write_gpt2,
    ),
    "LlamaBackbone": _LLAMA,
    "Llama3Backbone": _LLAMA,
    "MistralBackbone": Family(configs.read_mistral, _names(_ATTENTION, _FEED_FORWARD, _NORMS)),
    "MixtralBackbone": Family(configs.read_mixtral, _names(_ATTENTION, _MIXTRAL_EXPERTS, _NORMS)),
    "QwenBackbone": Family(configs.read_qwen, _names(_ATTENTION, _FEED_FORWARD, _NORMS)),
    "Qwen3Backbone": Family(
        configs.read_qwen3, _names(_ATTENTION, _FEED_FORWARD, _NORMS, _QK_NORM)
    ),
    "Qwen3MoeBackbone": Family(
        configs.read_qwen3_moe,
        _names(_ATTENTION, _QWEN3_EXPERTS, _NORMS, _QK_NORM),
        rules={"block/feed_forward/gate": family.fused},
    ),
    "GemmaBackbone": Family(
        configs.read_gemma,
        _names(_GEMMA, block="decoder_block_{i}/", final_norm="final_normalization"),
        rules=_GEMMA_RULES,
    ),
    "Gemma3Backbone": Family(
        configs.read_gemma3,
        _names(_GEMMA, block="decoder_block_{i}/", final_norm="final_normalization"),
        rules=_GEMMA_RULES,
    ),
    "Phi3Backbone": Family(configs.read_phi3, _names(_PHI3), length="max_sequence_length"),
    "SmolLM3Backbone": Family(
        configs.read_smollm3,
        _names(_SMOLLM3),
        length="max_position_embeddings",
        ignored=(r".*/rotary_emb/inv_freq",),
    ),
    "OPTBackbone": Family(
        configs.read_opt,
        _names(
            *(_ATTENTION, _FEED_FORWARD, _LAYER_NORMS),
            embedding="embeddings/token_embedding",
            final_norm="layer_norm",
            position_embedding="embeddings/position_embedding",
        ),
        length="max_sequence_length",
        has_fixed_length=True,
    ),
    "GPTNeoXBackbone": Family(
        configs.read_gpt_neo_x,
        _names(_GPT_NEO_X, _FEED_FORWARD, _LAYER_NORMS, final_norm="layer_norm"),
        rules={"block/self_attention/query": family.fused_in_heads},
        length="max_sequence_length",
    ),
    "BloomBackbone": Family(
        configs.read_bloom,
        _names(_BLOOM, final_norm="final_layernorm"),
        rules={"token_embedding": family.with_normalized_embedding("embedding_layernorm")},
    ),
}
