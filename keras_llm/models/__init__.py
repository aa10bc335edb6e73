"""Build functional models from configs and run the cached steps of generation and export."""

from keras_llm.layers.alibi import Alibi
from keras_llm.layers.relative import RelativeBias
from keras_llm.layers.rotary import Rotary
from keras_llm.models.base import ConfiguredModel, config_from_dict, config_to_dict
from keras_llm.models.causal_lm import CausalLM, causal_lm
from keras_llm.models.composed import ComposedLM, as_causal_lm
from keras_llm.models.composed_head import ComposedHead, as_head_model
from keras_llm.models.composed_seq2seq import ComposedSeq2Seq, as_seq2seq
from keras_llm.models.config import (
    CausalLMConfig,
    ComposedConfig,
    ComposedSeq2SeqConfig,
    EncoderConfig,
    Seq2SeqConfig,
    TransformerConfig,
    WordVectorsConfig,
)
from keras_llm.models.encoder import Encoder, encoder
from keras_llm.models.forward import forward
from keras_llm.models.forward_cached import decode, forward_cached, init_cache, logits_of, prefill
from keras_llm.models.heads import (
    HeadModel,
    masked_lm,
    next_sentence,
    reward,
    sentence_embedder,
    span_qa,
    text_classifier,
    text_regressor,
    token_classifier,
)
from keras_llm.models.interpretability import (
    attention_maps,
    cross_attention_maps,
    from_embeddings,
    logit_lens,
    token_table,
)
from keras_llm.models.output_head import OutputHead, has_token_head, output_head, prediction_states
from keras_llm.models.presets import preset, presets
from keras_llm.models.seq2seq import Seq2Seq, encode_source, seq2seq
from keras_llm.models.serialization import build, describe, restore
from keras_llm.models.summary import summarize
from keras_llm.models.word_vectors import WordVectors, word_vector_table, word_vectors
from keras_llm.preset_names import similar_presets

__all__ = [
    "Alibi",
    "CausalLM",
    "CausalLMConfig",
    "ComposedConfig",
    "ComposedHead",
    "ComposedLM",
    "ComposedSeq2Seq",
    "ComposedSeq2SeqConfig",
    "ConfiguredModel",
    "Encoder",
    "EncoderConfig",
    "HeadModel",
    "OutputHead",
    "RelativeBias",
    "Rotary",
    "Seq2Seq",
    "Seq2SeqConfig",
    "TransformerConfig",
    "WordVectors",
    "WordVectorsConfig",
    "as_causal_lm",
    "as_head_model",
    "as_seq2seq",
    "attention_maps",
    "build",
    "causal_lm",
    "config_from_dict",
    "config_to_dict",
    "cross_attention_maps",
    "decode",
    "describe",
    "encode_source",
    "encoder",
    "forward",
    "forward_cached",
    "from_embeddings",
    "has_token_head",
    "init_cache",
    "logit_lens",
    "logits_of",
    "masked_lm",
    "next_sentence",
    "output_head",
    "prediction_states",
    "prefill",
    "preset",
    "presets",
    "restore",
    "reward",
    "sentence_embedder",
    "seq2seq",
    "similar_presets",
    "span_qa",
    "summarize",
    "text_classifier",
    "text_regressor",
    "token_classifier",
    "token_table",
    "word_vector_table",
    "word_vectors",
]
