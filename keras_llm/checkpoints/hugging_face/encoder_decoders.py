"""Define encoder-decoder families: T5."""

from keras_llm.checkpoints.hugging_face import weight_mapping
from keras_llm.checkpoints.hugging_face.family import Family, in_blocks
from keras_llm.layers import RelativeBias
from keras_llm.models import Seq2SeqConfig

_T5_ACTIVATIONS = {
    "relu": (False, "relu"),
    "gelu": (False, "gelu"),
    "gelu_new": (False, "gelu_tanh"),
    "silu": (False, "silu"),
    "gated-relu": (True, "relu"),
    "gated-gelu": (True, "gelu_tanh"),
    "gated-silu": (True, "silu"),
}

_DENSE_ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}


def _read_t5(fields):
    gated, activation = fields.one_of("feed_forward_proj", _T5_ACTIVATIONS, "relu")
    # These fields follow from it, and take precedence in transformers.
    fields.refuse_unless(is_gated_act=gated, dense_act_fn=_DENSE_ACTIVATIONS[activation])
    size = fields.get("d_model")
    layers = fields.count("num_layers")
    # The first models tie the head to the embedding and scale its input; later ones do neither.
    tied = fields.get("tie_word_embeddings", bool, True)
    scaled = fields.get("scale_decoder_outputs", bool, tied)
    pad = fields.get("pad_token_id", int, 0)
    buckets = fields.get("relative_attention_num_buckets", int, 32)
    distance = fields.get("relative_attention_max_distance", int, 128)
    if distance <= buckets // 2:  # transformers then looks up rows that the table does not have
        reason = f"be above {buckets // 2}, half of the buckets"
        raise fields.error("relative_attention_max_distance", reason)
    return Seq2SeqConfig(
        vocabulary_size=fields.get("vocab_size"),
        num_layers=layers,
        num_decoder_layers=fields.count("num_decoder_layers", layers),
        hidden_dim=size,
        num_heads=fields.get("num_heads"),
        head_dim=fields.get("d_kv"),
        intermediate_dim=fields.get("d_ff"),
        max_length=fields.get("n_positions", int, 512),
        position=RelativeBias(buckets, distance),
        norm_epsilon=fields.get("layer_norm_epsilon", float, 1e-6),
        activation=activation,
        gated=gated,
        attention_scale=1.0,
        logit_scale=size**-0.5 if scaled else None,
        tie_embeddings=tied,
        dropout=fields.get("dropout_rate", float, 0.1),
        pad_id=pad,
        start_id=fields.get("decoder_start_token_id", int, pad),
    )


def _write_t5(config):
    forms = {value: name for name, value in _T5_ACTIVATIONS.items()}
    position = config.position
    relative = {}
    if isinstance(position, RelativeBias):
        relative = {
            "relative_attention_num_buckets": position.num_buckets,
            "relative_attention_max_distance": position.max_distance,
        }
    return {
        "vocab_size": config.vocabulary_size,
        "num_layers": config.num_layers,
        "num_decoder_layers": config.num_decoder_layers,
        "d_model": config.hidden_dim,
        "num_heads": config.num_heads,
        "d_kv": config.head_dim,
        "d_ff": config.intermediate_dim,
        "n_positions": config.max_length,
        **relative,
        "layer_norm_epsilon": config.norm_epsilon,
        "feed_forward_proj": forms.get((config.gated, config.activation)),
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.logit_scale is not None,
        "dropout_rate": config.dropout,
        "pad_token_id": config.pad_id,
        "decoder_start_token_id": config.start_id,
        "is_encoder_decoder": True,
    }


def _t5_names():
    names = {
        "token_embedding": "shared",
        "head": "lm_head",
        "encoder_final_norm": "encoder.final_layer_norm",
        "decoder_final_norm": "decoder.final_layer_norm",
    }
    for side, feed_forward in (("encoder", 1), ("decoder", 2)):
        block = {}
        for name, layer, tensor_name in (
            ("self_attention", 0, "SelfAttention"),
            ("cross_attention", 1, "EncDecAttention"),
        ):
            for part, letter in zip(("query", "key", "value", "output"), "qkvo", strict=True):
                block[f"{name}/{part}"] = f"layer.{layer}.{tensor_name}.{letter}"
            block[f"{name}_norm"] = f"layer.{layer}.layer_norm"
        dense = f"layer.{feed_forward}.DenseReluDense"
        block["feed_forward_norm"] = f"layer.{feed_forward}.layer_norm"
        block["feed_forward/gate"] = f"{dense}.wi_0"
        block["feed_forward/up"] = f"{dense}.wi_1"
        block["feed_forward/down"] = f"{dense}.wo"
        names |= in_blocks(f"{side}.block.{{i}}.", block, f"{side}_")
        bias = "layer.0.SelfAttention.relative_attention_bias"
        names[f"{side}_relative_bias"] = f"{side}.block.0.{bias}"
    return names


def _t5_up(part, name, config, row):
    """Link the first feed-forward kernel, which is named `wi` without a gate."""
    if not config.gated:
        name = name.removesuffix("_1")
    ((path, shape),) = part.weights.items()
    return weight_mapping.transposed(path, f"{name}.weight", shape)


T5 = Family(
    "t5",
    {None: "T5ForConditionalGeneration"},
    _read_t5,
    _write_t5,
    _t5_names(),
    special={
        "encoder_block/feed_forward/up": _t5_up,
        "decoder_block/feed_forward/up": _t5_up,
    },
    ignored=(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",),
    copies={
        "lm_head.weight": "shared.weight",
        "encoder.embed_tokens.weight": "shared.weight",
        "decoder.embed_tokens.weight": "shared.weight",
    },
    head_decides=True,
)
