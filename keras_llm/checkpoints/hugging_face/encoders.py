"""Define encoder families: BERT, DistilBERT and RoBERTa."""

import numpy as np

from keras_llm.checkpoints.hugging_face import weight_mapping
from keras_llm.checkpoints.hugging_face.family import (
    ACTIVATIONS,
    WRITTEN_ACTIVATIONS,
    Family,
    in_blocks,
)
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.models import EncoderConfig


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
    segments = fields.get("type_vocab_size", int, 2)
    return EncoderConfig(
        **_like_bert(fields, fields.get("max_position_embeddings") - padding - 1),
        num_segments=segments if segments > 1 else 0,
    )


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
        "type_vocab_size": config.num_segments or 1,
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

    RoBERTa counts positions from the padding id plus 1. If it has only one segment embedding, it
    adds that to every token. The linked table counts from 0 and includes the only segment
    embedding.
    """
    ((path, shape),) = part.weights.items()
    fields = Fields(row, "config.json")  # already validated, so no error is raised
    first = fields.get("pad_token_id", int, 1) + 1
    tensors = {f"{name}.weight": (first + shape[0], shape[1])}
    if not config.num_segments:
        segment_name = name.replace("position_embeddings", "token_type_embeddings")
        tensors[f"{segment_name}.weight"] = (1, shape[1])

    def read(arrays):
        table, *segment = (np.asarray(array, "float32") for array in arrays)
        return [sum(segment, table[first:])]

    def write(weights):
        unused = np.zeros((first, shape[1]), weights[0].dtype)
        segment = [] if config.num_segments else [np.zeros((1, shape[1]), weights[0].dtype)]
        return [np.concatenate([unused, weights[0]]), *segment]

    return weight_mapping.Link({path: shape}, tensors, read, write)


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
    masked_lm_activation="gelu",
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
