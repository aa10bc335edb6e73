"""Build encoder-decoder models."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_llm.layers import TransformerDecoder, TransformerEncoder
from keras_llm.models import forward_pass
from keras_llm.models.base import ConfiguredModel, check_model
from keras_llm.models.config import ComposedSeq2SeqConfig, Seq2SeqConfig
from keras_llm.models.decoder import decoder_of
from keras_llm.types import JSON, Tensor


@keras.saving.register_keras_serializable("keras_llm")
class Seq2Seq(ConfiguredModel):
    """A functional model from encoder and decoder token ids to next-token logits.

    Its inputs are `[encoder_token_ids, decoder_token_ids]`, (B, S) and (B, T), its output logits
    (B, T, V).

    Depending on the config, its layers are `token_embedding`, `position_embedding`,
    `encoder_relative_bias`, `encoder_block_<i>`, `encoder_final_norm`, the same with `decoder_`,
    and `logits`. Use `seq2seq` to build one.

    Attributes:
        config: the `Seq2SeqConfig` it was built from.
    """

    config_class = Seq2SeqConfig
    config: Seq2SeqConfig

    def __init__(
        self,
        config: Seq2SeqConfig | JSON,
        name: str = "seq2seq",
        dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        config = self.read_config(config)
        encoders, decoders = config.num_layers, config.num_decoder_layers
        assert decoders is not None  # filled by the config
        layers = [
            *forward_pass.embedding_layers(config, dtype),
            *forward_pass.block_layers(config, dtype, TransformerEncoder, encoders, "encoder_"),
            *forward_pass.block_layers(config, dtype, TransformerDecoder, decoders, "decoder_"),
            forward_pass.logits_layer(),
        ]
        layer = {layer.name: layer for layer in layers}.get
        encoder_ids = keras.Input((None,), dtype="int32", name="encoder_token_ids")
        decoder_ids = keras.Input((None,), dtype="int32", name="decoder_token_ids")
        hidden = hidden_states(layer, config, encoder_ids, decoder_ids)
        logits = forward_pass.logits(layer, config, hidden)
        super().__init__(config, [encoder_ids, decoder_ids], logits, name, dtype, **kwargs)


def seq2seq(config: Seq2SeqConfig, dtype: str | None = None) -> Seq2Seq:
    """Build an encoder-decoder with fresh weights.

    Args:
        config: a `Seq2SeqConfig`.
        dtype: Keras dtype policy of all layers. Defaults to the global policy.

    Returns:
        A `keras.Model` from int encoder token ids (B, S), padded with `config.pad_id`, and
        decoder token ids (B, T), to float32 logits (B, T, V). Pass inputs as a list in this order,
        or as a dict with the names `encoder_token_ids` and `decoder_token_ids`.

    Raises:
        InputError: if `config` is not a `Seq2SeqConfig`.

    Example:
    >>> import numpy as np
    >>> from keras_llm import models
    >>> model = models.seq2seq(models.preset("t5-tiny"))
    >>> tuple(model([np.ones((2, 7), "int32"), np.ones((2, 3), "int32")]).shape)
    (2, 3, 512)
    """
    return Seq2Seq(config, dtype=dtype)


def encode_source(model: Seq2Seq, encoder_token_ids: Tensor) -> dict[str, Tensor]:
    """Encode the source once for all decoder steps.

    Args:
        model: a model from `seq2seq`.
        encoder_token_ids: int tensor (B, S), padded with the config's `pad_id`.

    Returns:
        A dict to merge with that of `init_cache`: `cross_k_<i>` and `cross_v_<i>` for each
        decoder layer i, float tensors (B, K, S, H), and `encoder_padding_mask`, bool (B, S).

    Raises:
        InputError: if `model` does not come from `seq2seq`.
    """
    if not isinstance(getattr(model, "config", None), ComposedSeq2SeqConfig):
        check_model("encode_source", model, Seq2Seq, "seq2seq")
    return decoder_of(model).encode_source(ops.convert_to_tensor(encoder_token_ids, "int32"))


def hidden_states(
    layer: Callable[[str], keras.layers.Layer],
    config: Seq2SeqConfig,
    encoder_ids: Tensor,
    decoder_ids: Tensor,
) -> Tensor:
    """Compute hidden states (B, T, D) from token ids (B, S) and (B, T)."""
    assert config.num_decoder_layers is not None  # filled by the config
    encoder_outputs, mask = _encode(layer, config, encoder_ids)
    return forward_pass.run_decoder(
        layer,
        config,
        forward_pass.embed(layer, config, decoder_ids),
        decoder_ids,
        config.num_decoder_layers,
        "decoder_",
        encoder_sequence=encoder_outputs,
        encoder_padding_mask=mask,
    )


def _encode(layer, config, token_ids):
    """Encode token ids (B, S); return the encoder outputs (B, S, D) and their mask (B, S)."""
    mask = ops.not_equal(token_ids, config.pad_id)
    x = forward_pass.embed(layer, config, token_ids)
    return forward_pass.run_encoder(
        layer, config, x, mask, token_ids, config.num_layers, "encoder_"
    ), mask
