"""Define presets of known architectures.

Sizes come from the papers and the configurations of released models. Comments mark sizes that a
paper does not give.
"""

import dataclasses
from typing import Any

from keras_llm.layers.relative import RelativeBias
from keras_llm.layers.rotary import Llama3Scaling, Rotary
from keras_llm.models.config import CausalLMConfig, EncoderConfig, Seq2SeqConfig
from keras_llm.preset_names import check_preset

_SMALL = {"initializer_range": 0.05}  # narrow models learn faster from wider initial weights
_GPT = {
    "position": "learned",
    "norm": "layer",
    "activation": "gelu",
    "gated": False,
    "use_bias": True,
}
_GPT2 = {**_GPT, "activation": "gelu_tanh", "dropout": 0.1}
# The paper alternates dense and locally banded layers but does not give the band width.
_GPT3 = {**_GPT2, "dropout": 0.0, "window_pattern": "LS", "sliding_window": 256}
_LLAMA: dict[str, Any] = {}  # the defaults of CausalLMConfig
_LLAMA3 = {"position": Rotary(base=500000.0), "tie_embeddings": False}
_LLAMA32 = {"position": Rotary(base=500000.0, scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192))}
_MISTRAL = {"sliding_window": 4096, "tie_embeddings": False}
_MIXTRAL = {
    "position": Rotary(base=1e6),
    "tie_embeddings": False,
    "num_experts": 8,
    "experts_per_token": 2,
}
_GEMMA2 = {
    "norm_epsilon": 1e-6,
    "norm_position": "sandwich",
    "activation": "gelu_tanh",
    "sliding_window": 4096,
    "window_pattern": "SL",
    "logit_soft_cap": 50.0,
    "final_soft_cap": 30.0,
}
_GEMMA3 = {
    "norm_epsilon": 1e-6,
    "norm_position": "sandwich",
    "activation": "gelu_tanh",
    "position": Rotary(base=1e6, scaling=8.0),
    "local_position": Rotary(),
    "sliding_window": 1024,
    "window_pattern": "SSSSSL",
    "qk_norm": True,
}
_QWEN3 = {"position": Rotary(base=1e6), "norm_epsilon": 1e-6, "qk_norm": True}
_QWEN2 = {
    "position": Rotary(base=1e6),
    "norm_epsilon": 1e-6,
    "use_bias": True,
    "output_bias": False,
    "feed_forward_bias": False,
}
# Every fourth layer has no positions. The others have a window that covers all positions, because
# only windowed layers have positions of their own.
_SMOLLM3 = {
    "position": None,
    "local_position": Rotary(base=5e6),
    "sliding_window": 64 * 1024,
    "window_pattern": "SSSL",
    "norm_epsilon": 1e-6,
}
_PHI3 = {"sliding_window": 2047, "tie_embeddings": False}
_SMOLLM2 = {"position": Rotary(base=100000.0)}
# Similar to T5: the paper gives gated GELU and T5's relative attention, but neither the norm nor
# the maximum length.
_LAMDA = {
    "position": RelativeBias(),
    "norm_epsilon": 1e-6,
    "activation": "gelu_tanh",
    "head_dim": 128,
}
_BERT = {"num_segments": 2, "dropout": 0.1}
_DISTILBERT = {"dropout": 0.1}
_ROBERTA = {"norm_epsilon": 1e-5, "dropout": 0.1}
_T5 = {
    "position": RelativeBias(),
    "norm_epsilon": 1e-6,
    "activation": "gelu_tanh",
    "head_dim": 64,
    "attention_scale": 1.0,
    "tie_embeddings": False,
    "dropout": 0.1,
}
# For training from scratch on little text. Rotary positions allow texts longer than in training.
_SCRATCH = {
    "position": Rotary(),
    "norm_position": "pre",
    "norm_epsilon": 1e-6,
    "dropout": 0.1,
    **_SMALL,
}
_TRANSFORMER = {
    "position": "sinusoidal",
    "norm": "layer",
    "norm_epsilon": 1e-6,
    "norm_position": "post",
    "activation": "relu",
    "gated": False,
    "use_bias": True,
}

_SIZES = (
    "vocabulary_size",
    "num_layers",
    "hidden_dim",
    "num_heads",
    "num_key_value_heads",
    "intermediate_dim",
    "max_length",
)
_C, _E, _S = CausalLMConfig, EncoderConfig, Seq2SeqConfig
_K, _M = 1024, None  # _M: as many key-value heads as query heads

# name: class, family, V, L, D, N, K, F, maximum length, and other differences
_ROWS = {
    "gpt2": (_C, _GPT2, 50257, 12, 768, 12, _M, 3072, _K),
    "gpt2-medium": (_C, _GPT2, 50257, 24, 1024, 16, _M, 4096, _K),
    "gpt2-large": (_C, _GPT2, 50257, 36, 1280, 20, _M, 5120, _K),
    "gpt2-xl": (_C, _GPT2, 50257, 48, 1600, 25, _M, 6400, _K),
    "gpt3-small": (_C, _GPT3, 50257, 12, 768, 12, _M, 3072, 2 * _K),
    "gpt3-medium": (_C, _GPT3, 50257, 24, 1024, 16, _M, 4096, 2 * _K),
    "gpt3-large": (_C, _GPT3, 50257, 24, 1536, 16, _M, 6144, 2 * _K),
    "gpt3-xl": (_C, _GPT3, 50257, 24, 2048, 24, _M, 8192, 2 * _K, {"head_dim": 128}),
    "gpt3-2.7b": (_C, _GPT3, 50257, 32, 2560, 32, _M, 10240, 2 * _K),
    "gpt3-6.7b": (_C, _GPT3, 50257, 32, 4096, 32, _M, 16384, 2 * _K),
    "gpt3-13b": (_C, _GPT3, 50257, 40, 5140, 40, _M, 20560, 2 * _K, {"head_dim": 128}),
    "gpt3-175b": (_C, _GPT3, 50257, 96, 12288, 96, _M, 49152, 2 * _K),
    "llama3-8b": (_C, _LLAMA3, 128256, 32, 4096, 32, 8, 14336, 8 * _K),
    "llama3-70b": (_C, _LLAMA3, 128256, 80, 8192, 64, 8, 28672, 8 * _K),
    "llama3.2-1b": (_C, _LLAMA32, 128256, 16, 2048, 32, 8, 8192, 128 * _K),
    "llama3.2-3b": (_C, _LLAMA32, 128256, 28, 3072, 24, 8, 8192, 128 * _K),
    "mistral-7b": (_C, _MISTRAL, 32000, 32, 4096, 32, 8, 14336, 32 * _K),
    "mixtral-8x7b": (_C, _MIXTRAL, 32000, 32, 4096, 32, 8, 14336, 32 * _K),
    "gemma2-2b": (
        *(_C, _GEMMA2, 256000, 26, 2304, 8, 4, 9216, 8 * _K),
        {"head_dim": 256, "attention_scale": 256**-0.5},
    ),
    "gemma2-9b": (
        *(_C, _GEMMA2, 256000, 42, 3584, 16, 8, 14336, 8 * _K),
        {"head_dim": 256, "attention_scale": 256**-0.5},
    ),
    "gemma2-27b": (
        *(_C, _GEMMA2, 256000, 46, 4608, 32, 16, 36864, 8 * _K),
        {"head_dim": 128, "attention_scale": 144**-0.5},
    ),
    "gemma3-1b": (
        *(_C, _GEMMA3, 262144, 26, 1152, 4, 1, 6912, 32 * _K),
        {"head_dim": 256, "sliding_window": 512, "position": Rotary(base=1e6)},
    ),
    "gemma3-4b": (_C, _GEMMA3, 262208, 34, 2560, 8, 4, 10240, 128 * _K, {"head_dim": 256}),
    "gemma3-12b": (_C, _GEMMA3, 262208, 48, 3840, 16, 8, 15360, 128 * _K, {"head_dim": 256}),
    "gemma3-27b": (
        *(_C, _GEMMA3, 262208, 62, 5376, 32, 16, 21504, 128 * _K),
        {"head_dim": 128, "attention_scale": 168**-0.5},
    ),
    "qwen3-0.6b": (_C, _QWEN3, 151936, 28, 1024, 16, 8, 3072, 40 * _K, {"head_dim": 128}),
    "qwen3-1.7b": (_C, _QWEN3, 151936, 28, 2048, 16, 8, 6144, 40 * _K),
    "qwen3-4b": (_C, _QWEN3, 151936, 36, 2560, 32, 8, 9728, 40 * _K, {"head_dim": 128}),
    "qwen3-8b": (
        *(_C, _QWEN3, 151936, 36, 4096, 32, 8, 12288, 40 * _K),
        {"tie_embeddings": False},
    ),
    "qwen2.5-0.5b": (_C, _QWEN2, 151936, 24, 896, 14, 2, 4864, 32 * _K),
    "qwen2.5-1.5b": (_C, _QWEN2, 151936, 28, 1536, 12, 2, 8960, 32 * _K),
    "qwen2.5-7b": (_C, _QWEN2, 152064, 28, 3584, 28, 4, 18944, 32 * _K, {"tie_embeddings": False}),
    "smollm3-3b": (_C, _SMOLLM3, 128256, 36, 2048, 16, 4, 11008, 64 * _K),
    "phi3-mini": (_C, _PHI3, 32064, 32, 3072, 32, _M, 8192, 4 * _K),
    "phi4": (
        *(_C, _PHI3, 100352, 40, 5120, 40, 10, 17920, 16 * _K),
        {"position": Rotary(base=250000.0), "sliding_window": None},
    ),
    "smollm2-135m": (_C, _SMOLLM2, 49152, 30, 576, 9, 3, 1536, 8 * _K),
    "smollm2-360m": (_C, _SMOLLM2, 49152, 32, 960, 15, 5, 2560, 8 * _K),
    "smollm2-1.7b": (
        *(_C, _SMOLLM2, 49152, 24, 2048, 32, _M, 8192, 8 * _K),
        {"position": Rotary(base=130000.0)},
    ),
    "lamda-2b": (_C, _LAMDA, 32000, 10, 2560, 40, _M, 20480, 2 * _K),
    "lamda-8b": (_C, _LAMDA, 32000, 16, 4096, 64, _M, 32768, 2 * _K),
    "lamda-137b": (_C, _LAMDA, 32000, 64, 8192, 128, _M, 65536, 2 * _K),
    "bert-base": (_E, _BERT, 30522, 12, 768, 12, _M, 3072, 512),
    "bert-large": (_E, _BERT, 30522, 24, 1024, 16, _M, 4096, 512),
    "distilbert-base": (_E, _DISTILBERT, 30522, 6, 768, 12, _M, 3072, 512),
    "minilm-l6": (_E, _BERT, 30522, 6, 384, 12, _M, 1536, 512),
    "minilm-l12": (_E, _BERT, 30522, 12, 384, 12, _M, 1536, 512),
    "roberta-base": (_E, _ROBERTA, 50265, 12, 768, 12, _M, 3072, 512),
    "roberta-large": (_E, _ROBERTA, 50265, 24, 1024, 16, _M, 4096, 512),
    "t5-v1.1-small": (_S, _T5, 32128, 8, 512, 6, _M, 1024, 512),
    "t5-v1.1-base": (_S, _T5, 32128, 12, 768, 12, _M, 2048, 512),
    "t5-v1.1-large": (_S, _T5, 32128, 24, 1024, 16, _M, 2816, 512),
    "t5-v1.1-xl": (_S, _T5, 32128, 24, 2048, 32, _M, 5120, 512),
    "t5-v1.1-xxl": (_S, _T5, 32128, 24, 4096, 64, _M, 10240, 512),
    "transformer-base": (_S, _TRANSFORMER, 37000, 6, 512, 8, _M, 2048, _K, {"dropout": 0.1}),
    "transformer-big": (_S, _TRANSFORMER, 37000, 6, 1024, 16, _M, 4096, _K, {"dropout": 0.3}),
    "gpt-tiny": (_C, {**_GPT, **_SMALL}, 512, 2, 64, 4, _M, 256, 128),
    "gpt-3m": (_C, {**_GPT, **_SMALL}, 4096, 5, 192, 6, _M, 768, 256),
    "llama-tiny": (_C, _SMALL, 512, 2, 64, 4, 2, 176, 128),
    "llama-3m": (_C, _SMALL, 4096, 5, 192, 6, 2, 512, 256),
    "encoder-2m": (_E, _SCRATCH, 8000, 2, 128, 4, _M, 512, 512),
    "seq2seq-2m": (
        *(_S, _TRANSFORMER, 8000, 3, 128, 4, _M, 512, 256),
        {"norm_position": "pre", "dropout": 0.1},
    ),
    "llama-12m": (_C, _SMALL, 8000, 6, 384, 6, 2, 1024, 512),
}

# Test-sized version of each family: the options of a preset with small sizes and windows.
_TINY = {
    "gpt2": "gpt2",
    "gpt3": "gpt3-small",
    "llama3": "llama3.2-1b",
    "mistral": "mistral-7b",
    "mixtral": "mixtral-8x7b",
    "gemma2": "gemma2-2b",
    "gemma3": "gemma3-4b",
    "qwen3": "qwen3-0.6b",
    "qwen2.5": "qwen2.5-0.5b",
    "smollm3": "smollm3-3b",
    "phi3": "phi3-mini",
    "smollm2": "smollm2-135m",
    "lamda": "lamda-2b",
    "bert": "bert-base",
    "distilbert": "distilbert-base",
    "minilm": "minilm-l6",
    "roberta": "roberta-base",
    "t5": "t5-v1.1-small",
    "transformer": "transformer-base",
    "encoder": "encoder-2m",
    "seq2seq": "seq2seq-2m",
}


def _config(row):
    config_class, family, *sizes = row
    others = sizes.pop() if isinstance(sizes[-1], dict) else {}
    config = config_class(**dict(zip(_SIZES, sizes, strict=True)), **{**family, **others})
    if row[1] in (_GEMMA2, _GEMMA3, _TRANSFORMER):
        config = dataclasses.replace(config, embedding_scale=config.hidden_dim**0.5)
    return config


def _tiny(config):
    sizes = {
        "vocabulary_size": 512,
        "num_layers": 2,
        "hidden_dim": 64,
        "num_heads": 4,
        "num_key_value_heads": 4 if config.num_key_value_heads == config.num_heads else 2,
        "head_dim": 16,
        "intermediate_dim": 128,
        "max_length": 128,
        **_SMALL,
    }
    if config.sliding_window:
        covers_all = config.sliding_window == config.max_length
        sizes["sliding_window"] = sizes["max_length"] if covers_all else 16
    if len(config.window_pattern or "") > 2:
        sizes["window_pattern"] = "SL"  # so that two layers cover both kinds
    if config.num_experts:
        sizes["num_experts"] = 4
    if config.embedding_scale:
        sizes["embedding_scale"] = 8.0
    if isinstance(config, Seq2SeqConfig):
        sizes["num_decoder_layers"] = 2
    return dataclasses.replace(config, **sizes)


_PRESETS = {name: _config(row) for name, row in _ROWS.items()}
_PRESETS |= {f"{family}-tiny": _tiny(_PRESETS[name]) for family, name in _TINY.items()}


def presets() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(_PRESETS)


def preset(name: str, **overrides: Any) -> CausalLMConfig | EncoderConfig | Seq2SeqConfig:
    """Return the config of a preset.

    Args:
        name: one of `presets()`.
        **overrides: fields to change, e.g. `vocabulary_size=tok.vocabulary_size`.

    Returns:
        A `CausalLMConfig`, `EncoderConfig` or `Seq2SeqConfig`.

    Raises:
        InputError: if the name or a field is unknown.

    Example:
    >>> preset("llama-tiny", num_layers=3).num_layers
    3
    """
    check_preset(name)
    config = _PRESETS[name]
    if config.sliding_window == config.max_length and "max_length" in overrides:
        overrides = {"sliding_window": overrides["max_length"], **overrides}  # covers all positions
    return config.from_dict({**config.to_dict(), **overrides})
