"""Define encoder and encoder-decoder families: BERT, DistilBERT, RoBERTa and T5."""

import numpy as np

from keras_llm.checkpoints.hugging_face import weight_mapping
from keras_llm.checkpoints.hugging_face.family import (
    ACTIVATIONS,
    WRITTEN_ACTIVATIONS,
    Family,
    in_blocks,
)
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.layers import RelativeBias
from keras_llm.models import EncoderConfig, Seq2SeqConfig


def _read_bert(fields):
    _check_segments(fields)
    return EncoderConfig(
        **_like_bert(fields, fields.get("max_position_embeddings")),
        num_segments=fields.get("type_vocab_size", int, 2),
    )


def _read_roberta(fields):
    padding = fields.get("pad_token_id", int, 1)
    if padding < 0:
        raise fields.error("pad_token_id", "be an id")
    _check_segments(fields)
    return EncoderConfig(**_like_bert(fields, fields.get("max_position_embeddings") - padding - 1))


def _check_segments(fields):
    if fields.get("type_vocab_size", int, 2) < 1:
        raise fields.error("type_vocab_size", "be at least 1")


def _like_bert(fields, max_length):
    fields.refuse_unless(
        position_embedding_type="absolute", is_decoder=False, add_cross_attention=False
    )
    return {
        "vocabulary_size": fields.get("vocab_size"),
        "num_layers": fields.count("num_hidden_layers"),
        "hidden_dim": fields.get("hidden_size"),
        "num_heads": fields.get("num_attention_heads"),
        "intermediate_dim": fields.get("intermediate_size"),
        "max_length": max_length,
        "norm_epsilon": fields.get("layer_norm_eps", float, 1e-12),
        "activation": fields.one_of("hidden_act", ACTIVATIONS, "gelu"),
        "dropout": fields.get("hidden_dropout_prob", float, 0.1),
        "initializer_range": fields.get("initializer_range", float, 0.02),
    }


def _write_bert(config):
    return {
        "vocab_size": config.vocabulary_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_dim,
        "max_position_embeddings": config.max_length,
        "type_vocab_size": config.num_segments,
        "layer_norm_eps": config.norm_epsilon,
        "hidden_act": WRITTEN_ACTIVATIONS.get(config.activation),
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), config.dropout),
        "initializer_range": config.initializer_range,
    }


def _write_roberta(config):
    return {
        **_write_bert(config),
        "max_position_embeddings": config.max_length + 2,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    }


def _read_distilbert(fields):
    return EncoderConfig(
        vocabulary_size=fields.get("vocab_size"),
        num_layers=fields.count("n_layers"),
        hidden_dim=fields.get("dim"),
        num_heads=fields.get("n_heads"),
        intermediate_dim=fields.get("hidden_dim"),
        max_length=fields.get("max_position_embeddings"),
        activation=fields.one_of("activation", ACTIVATIONS, "gelu"),
        dropout=fields.get("dropout", float, 0.1),
        initializer_range=fields.get("initializer_range", float, 0.02),
    )


def _write_distilbert(config):
    return {
        "vocab_size": config.vocabulary_size,
        "n_layers": config.num_layers,
        "dim": config.hidden_dim,
        "n_heads": config.num_heads,
        "hidden_dim": config.intermediate_dim,
        "max_position_embeddings": config.max_length,
        "activation": WRITTEN_ACTIVATIONS.get(config.activation),
        "dropout": config.dropout,
        "attention_dropout": config.dropout,
        "initializer_range": config.initializer_range,
    }


def _roberta_positions(part, name, config, row):
    """Link the position embedding of RoBERTa.

    RoBERTa counts positions from the padding id plus 1 and adds its only segment embedding to
    every token. The linked table counts from 0 and includes the segment embedding.
    """
    ((path, shape),) = part.weights.items()
    fields = Fields(row, "config.json")  # already validated, so no error is raised
    first = fields.get("pad_token_id", int, 1) + 1
    segments = (fields.get("type_vocab_size", int, 2), shape[1])
    segment_name = name.replace("position_embeddings", "token_type_embeddings")

    def write(weights):
        unused = np.zeros((first, shape[1]), weights[0].dtype)
        return [np.concatenate([unused, weights[0]]), np.zeros(segments, weights[0].dtype)]

    return weight_mapping.Link(
        {path: shape},
        {f"{name}.weight": (first + shape[0], shape[1]), f"{segment_name}.weight": segments},
        lambda tensors: [
            np.asarray(tensors[0][first:], "float32") + np.asarray(tensors[1][0], "float32")
        ],
        write,
    )


_T5_ACTIVATIONS = {
    "relu": (False, "relu"),
    "gelu": (False, "gelu"),
    "gelu_new": (False, "gelu_tanh"),
    "silu": (False, "silu"),
    "gated-relu": (True, "relu"),
    "gated-gelu": (True, "gelu_tanh"),
    "gated-silu": (True, "silu"),
}


def _read_t5(fields):
    gated, activation = fields.one_of("feed_forward_proj", _T5_ACTIVATIONS, "relu")
    size = fields.get("d_model")
    layers = fields.count("num_layers")
    # The first models tie the head to the embedding and scale its input; later ones do neither.
    tied = fields.get("tie_word_embeddings", bool, True)
    scaled = fields.get("scale_decoder_outputs", bool, tied)
    pad = fields.get("pad_token_id", int, 0)
    return Seq2SeqConfig(
        vocabulary_size=fields.get("vocab_size"),
        num_layers=layers,
        num_decoder_layers=fields.count("num_decoder_layers", layers),
        hidden_dim=size,
        num_heads=fields.get("num_heads"),
        head_dim=fields.get("d_kv"),
        intermediate_dim=fields.get("d_ff"),
        max_length=fields.get("n_positions", int, 512),
        position=RelativeBias(
            fields.get("relative_attention_num_buckets", int, 32),
            fields.get("relative_attention_max_distance", int, 128),
        ),
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


def _bert_names(prefix, heads):
    return {
        "token_embedding": f"{prefix}embeddings.word_embeddings",
        "position_embedding": f"{prefix}embeddings.position_embeddings",
        "segment_embedding": f"{prefix}embeddings.token_type_embeddings",
        "embedding_norm": f"{prefix}embeddings.LayerNorm",
        **in_blocks(
            f"{prefix}encoder.layer.{{i}}.",
            {
                "self_attention/query": "attention.self.query",
                "self_attention/key": "attention.self.key",
                "self_attention/value": "attention.self.value",
                "self_attention/output": "attention.output.dense",
                "self_attention_norm": "attention.output.LayerNorm",
                "feed_forward/up": "intermediate.dense",
                "feed_forward/down": "output.dense",
                "feed_forward_norm": "output.LayerNorm",
            },
        ),
        "token_classifier/logits": "classifier",
        "span_qa/span": "qa_outputs",
        **heads,
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


_HEADS = (r"(bert\.|roberta\.)?pooler\..*", r"(cls|classifier|qa_outputs|lm_head)\..*")
_OLD_NORMS = ((r"LayerNorm\.gamma", "LayerNorm.weight"), (r"LayerNorm\.beta", "LayerNorm.bias"))
_BUFFERS = (r".*embeddings\.(position_ids|token_type_ids)",)

BERT = Family(
    "bert",
    {
        None: "BertModel",
        "masked_lm": "BertForMaskedLM",
        "next_sentence": "BertForNextSentencePrediction",
        "text_classifier": "BertForSequenceClassification",
        "token_classifier": "BertForTokenClassification",
        "span_qa": "BertForQuestionAnswering",
    },
    _read_bert,
    _write_bert,
    _bert_names(
        "bert.",
        {
            "next_sentence/pooler": "bert.pooler.dense",
            "next_sentence/logits": "cls.seq_relationship",
            "text_classifier/pooler": "bert.pooler.dense",
            "text_classifier/logits": "classifier",
            "masked_lm/dense": "cls.predictions.transform.dense",
            "masked_lm/norm": "cls.predictions.transform.LayerNorm",
            "masked_lm/masked_lm_head": "cls.predictions",
        },
    ),
    prefix="bert.",
    ignored=_HEADS + _BUFFERS,
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    renamed=_OLD_NORMS,
)
ROBERTA = Family(
    "roberta",
    {
        None: "RobertaModel",
        "masked_lm": "RobertaForMaskedLM",
        "text_classifier": "RobertaForSequenceClassification",
        "token_classifier": "RobertaForTokenClassification",
        "span_qa": "RobertaForQuestionAnswering",
    },
    _read_roberta,
    _write_roberta,
    _bert_names(
        "roberta.",
        {
            "text_classifier/pooler": "classifier.dense",
            "text_classifier/logits": "classifier.out_proj",
            "masked_lm/dense": "lm_head.dense",
            "masked_lm/norm": "lm_head.layer_norm",
            "masked_lm/masked_lm_head": "lm_head",
        },
    ),
    prefix="roberta.",
    special={"position_embedding": _roberta_positions},
    ignored=_HEADS + _BUFFERS,
    copies={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    },
    renamed=_OLD_NORMS,
)
DISTILBERT = Family(
    "distilbert",
    {
        None: "DistilBertModel",
        "masked_lm": "DistilBertForMaskedLM",
        "text_classifier": "DistilBertForSequenceClassification",
        "token_classifier": "DistilBertForTokenClassification",
        "span_qa": "DistilBertForQuestionAnswering",
    },
    _read_distilbert,
    _write_distilbert,
    {
        "token_embedding": "distilbert.embeddings.word_embeddings",
        "position_embedding": "distilbert.embeddings.position_embeddings",
        "embedding_norm": "distilbert.embeddings.LayerNorm",
        **in_blocks(
            "distilbert.transformer.layer.{i}.",
            {
                "self_attention/query": "attention.q_lin",
                "self_attention/key": "attention.k_lin",
                "self_attention/value": "attention.v_lin",
                "self_attention/output": "attention.out_lin",
                "self_attention_norm": "sa_layer_norm",
                "feed_forward/up": "ffn.lin1",
                "feed_forward/down": "ffn.lin2",
                "feed_forward_norm": "output_layer_norm",
            },
        ),
        "text_classifier/pooler": "pre_classifier",
        "text_classifier/logits": "classifier",
        "token_classifier/logits": "classifier",
        "span_qa/span": "qa_outputs",
        "masked_lm/dense": "vocab_transform",
        "masked_lm/norm": "vocab_layer_norm",
        "masked_lm/masked_lm_head": "vocab_projector",
    },
    prefix="distilbert.",
    ignored=(
        r"(vocab_transform|vocab_layer_norm|vocab_projector|pre_classifier|classifier"
        r"|qa_outputs)\..*",
        *_BUFFERS,
    ),
    copies={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    pooler="relu",
)
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
