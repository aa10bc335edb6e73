"""Define decoder-only families with LayerNorm and biases: OPT and GPT-NeoX (Pythia)."""

import numpy as np

from keras_llm.checkpoints.hugging_face import rope
from keras_llm.checkpoints.hugging_face.family import (
    ACTIVATIONS,
    WRITTEN_ACTIVATIONS,
    Family,
    in_blocks,
)
from keras_llm.checkpoints.hugging_face.weight_mapping import Link
from keras_llm.layers import Rotary
from keras_llm.models import CausalLMConfig

_OFFSET = 2  # rows of OPT's position embedding before that of position 0
_EPSILON = 1e-5  # of the norms of OPT


def _read_opt(fields):
    size = fields.get("hidden_size")
    fields.refuse_unless(
        word_embed_proj_dim=size,
        enable_bias=True,
        layer_norm_elementwise_affine=True,
        _remove_final_layer_norm=False,
    )
    return CausalLMConfig(
        vocabulary_size=fields.get("vocab_size"),
        num_layers=fields.count("num_hidden_layers"),
        hidden_dim=size,
        num_heads=fields.get("num_attention_heads"),
        intermediate_dim=fields.get("ffn_dim"),
        max_length=fields.get("max_position_embeddings"),
        position="learned",
        norm="layer",
        norm_epsilon=_EPSILON,
        norm_position="pre" if fields.get("do_layer_norm_before", bool, True) else "post",
        activation=fields.one_of("activation_function", ACTIVATIONS, "relu"),
        gated=False,
        use_bias=True,
        tie_embeddings=fields.get("tie_word_embeddings", bool, True),
        dropout=fields.get("dropout", float, 0.1),
        initializer_range=fields.get("init_std", float, 0.02),
    )


def _write_opt(config):
    return {
        "vocab_size": config.vocabulary_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_dim,
        "word_embed_proj_dim": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.intermediate_dim,
        "max_position_embeddings": config.max_length,
        "do_layer_norm_before": config.norm_position == "pre",
        "activation_function": WRITTEN_ACTIVATIONS.get(config.activation),
        "tie_word_embeddings": config.tie_embeddings,
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "init_std": config.initializer_range,
        "pad_token_id": None,  # the default may be beyond the vocabulary
    }


def _opt_positions(part, name, config, row):
    """Link the position embedding, without the rows before that of position 0."""
    ((path, shape),) = part.weights.items()
    unused = np.zeros((_OFFSET, shape[1]), "float32")
    return Link(
        {path: shape},
        {f"{name}.weight": (shape[0] + _OFFSET, shape[1])},
        lambda tensors: [tensors[0][_OFFSET:]],
        lambda weights: [np.concatenate([unused.astype(weights[0].dtype), weights[0]])],
    )


def _read_gpt_neox(fields):
    base = fields.get("rotary_emb_base", float, 10000.0)
    fraction = fields.get("rotary_pct", float, 0.25)
    bias = fields.get("attention_bias", bool, True)
    return CausalLMConfig(
        vocabulary_size=fields.get("vocab_size"),
        num_layers=fields.count("num_hidden_layers"),
        hidden_dim=fields.get("hidden_size"),
        num_heads=fields.get("num_attention_heads"),
        intermediate_dim=fields.get("intermediate_size"),
        max_length=fields.get("max_position_embeddings"),
        position=rope.read(fields, base, default_fraction=fraction),
        norm="layer",
        norm_epsilon=fields.get("layer_norm_eps", float, 1e-5),
        activation=fields.one_of("hidden_act", ACTIVATIONS, "gelu"),
        gated=False,
        use_bias=bias,
        feed_forward_bias=None if bias else True,
        parallel_residual=fields.get("use_parallel_residual", bool, True),
        tie_embeddings=fields.get("tie_word_embeddings", bool, False),
        dropout=fields.get("hidden_dropout", float, 0.0),
        initializer_range=fields.get("initializer_range", float, 0.02),
    )


def _write_gpt_neox(config):
    row = {
        "vocab_size": config.vocabulary_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_dim,
        "max_position_embeddings": config.max_length,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": WRITTEN_ACTIVATIONS.get(config.activation),
        "attention_bias": config.use_bias,
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.dropout,
        "initializer_range": config.initializer_range,
        **rope.write(config.position),
    }
    if isinstance(config.position, Rotary):
        row |= {"rotary_emb_base": row.pop("rope_theta"), "rotary_pct": config.position.fraction}
    return row


OPT = Family(
    "opt",
    {None: "OPTForCausalLM"},
    _read_opt,
    _write_opt,
    {
        "token_embedding": "model.decoder.embed_tokens",
        "head": "lm_head",
        "position_embedding": "model.decoder.embed_positions",
        "final_norm": "model.decoder.final_layer_norm",
        **in_blocks(
            "model.decoder.layers.{i}.",
            {
                "self_attention/query": "self_attn.q_proj",
                "self_attention/key": "self_attn.k_proj",
                "self_attention/value": "self_attn.v_proj",
                "self_attention/output": "self_attn.out_proj",
                "self_attention_norm": "self_attn_layer_norm",
                "feed_forward/up": "fc1",
                "feed_forward/down": "fc2",
                "feed_forward_norm": "final_layer_norm",
            },
        ),
    },
    prefix="model.",
    special={"position_embedding": _opt_positions},
    copies={"lm_head.weight": "model.decoder.embed_tokens.weight"},
)
GPT_NEOX = Family(
    "gpt_neox",
    {None: "GPTNeoXForCausalLM"},
    _read_gpt_neox,
    _write_gpt_neox,
    {
        "token_embedding": "gpt_neox.embed_in",
        "head": "embed_out",
        "final_norm": "gpt_neox.final_layer_norm",
        **in_blocks(
            "gpt_neox.layers.{i}.",
            {
                "self_attention/query": "attention.query_key_value",
                "self_attention/key": "attention.query_key_value",
                "self_attention/value": "attention.query_key_value",
                "self_attention/output": "attention.dense",
                "self_attention_norm": "input_layernorm",
                "feed_forward/up": "mlp.dense_h_to_4h",
                "feed_forward/down": "mlp.dense_4h_to_h",
                "feed_forward_norm": "post_attention_layernorm",
            },
        ),
    },
    prefix="gpt_neox.",
    fused_by_head=True,
    ignored=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",),
    copies={"embed_out.weight": "gpt_neox.embed_in.weight"},
)
