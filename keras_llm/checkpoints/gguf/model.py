"""Load models from GGUF files."""

from typing import Any

import numpy as np

from keras_llm import hub, models, tasks, tokenizers
from keras_llm.checkpoints.gguf.end_tokens import end_token_ids
from keras_llm.checkpoints.gguf.file import open_gguf
from keras_llm.checkpoints.hugging_face import weight_mapping
from keras_llm.checkpoints.hugging_face.family import Family, in_blocks
from keras_llm.checkpoints.hugging_face.fields import Fields
from keras_llm.errors import InputError
from keras_llm.layers import Llama3Scaling, Rotary
from keras_llm.models.deferred import described
from keras_llm.types import JSON, PathLike

_NAMES = {
    "token_embedding": "token_embd",
    "head": "output",
    "final_norm": "output_norm",
    **in_blocks(
        "blk.{i}.",
        {
            "self_attention/query": "attn_q",
            "self_attention/key": "attn_k",
            "self_attention/value": "attn_v",
            "self_attention/output": "attn_output",
            "self_attention/query_norm": "attn_q_norm",
            "self_attention/key_norm": "attn_k_norm",
            "self_attention_norm": "attn_norm",
            "feed_forward_norm": "ffn_norm",
            "feed_forward/gate": "ffn_gate",
            "feed_forward/up": "ffn_up",
            "feed_forward/down": "ffn_down",
        },
    ),
}
_FREQUENCIES = "rope_freqs.weight"


def from_gguf(path: PathLike, dtype: str | None = None) -> tasks.TextGeneration:
    """Load the task of a GGUF file.

    Quantized weights are dequantized one tensor at a time, so that the peak memory stays close to
    the size of the model.

    Args:
        path: str or path of a file of the architecture "llama" (Llama, SmolLM2, Mistral), "qwen2"
            (Qwen 2 and 2.5) or "qwen3", in F32, F16, BF16, Q8_0, Q4_0, Q4_1, K-quants or another
            type that the gguf package dequantizes; or the name of such a file on the hub of
            Hugging Face, `hf:OWNER/NAME/FILE.gguf`.
        dtype: Keras dtype policy of the model. Defaults to the global policy.

    Returns:
        A `TextGeneration`, with any chat template of the file as `metadata["chat_template"]` and
        the tokens at which llama.cpp ends a text, such as end-of-turn tokens, as
        `metadata["end_token_ids"]`.

    Raises:
        InputError: if the gguf package is missing, or if a field or tensor is missing, corrupt or
            not supported; the message names the file and the field or tensor.
    """
    path = hub.file_of(path)
    metadata, tensors = open_gguf(path)
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise InputError(
            f"{path}: `general.architecture` is {architecture!r}; it must be one of "
            f"{', '.join(ARCHITECTURES)}."
        )
    try:
        tokenizer = tokenizers.from_gguf_metadata(metadata)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    family = ARCHITECTURES[architecture]
    config: Any = family.read_config({"metadata": metadata, "tensors": tensors}, path)
    weight_mapping.check_sizes(config, tensors)
    model = described(lambda: models.causal_lm(config, dtype=dtype), path)
    links = family.links(model, metadata)
    weight_mapping.check(links, tensors, family.ignored, what=f"{architecture} model")
    weight_mapping.assign(model, links, tensors)
    task_metadata: JSON = {"source": f"GGUF, {metadata.get('general.name', architecture)}"}
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        task_metadata["chat_template"] = template
    ends = end_token_ids(metadata, tokenizer.special_tokens, config.vocabulary_size)
    if set(ends) - {tokenizer.eos_id}:
        task_metadata["end_token_ids"] = ends
    return tasks.TextGeneration(model, tokenizer, task_metadata)


def _read_llama(source):
    return models.CausalLMConfig(**_common(source, "llama"))


def _read_qwen2(source):
    biases = {"use_bias": True, "output_bias": False, "feed_forward_bias": False}
    return models.CausalLMConfig(**_common(source, "qwen2"), **biases)


def _read_qwen3(source):
    return models.CausalLMConfig(**_common(source, "qwen3"), qk_norm=True)


def _common(source, name):
    metadata, tensors = source.row["metadata"], source.row["tensors"]
    prefix = f"{name}."
    prefixed = {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}
    fields = Fields(prefixed, source.where, prefix)
    if fields.get("expert_count", int, 0):
        raise fields.error("expert_count", "be 0")
    fields.refuse_unless(
        **{"attention.sliding_window": 0, "rope.scale_linear": 1.0, "attention.causal": True},
        pooling_type=0,  # other types are of embedding models
    )
    heads, size = fields.positive("attention.head_count"), fields.get("embedding_length")
    head_dim = fields.get("attention.key_length", int, size // heads)
    for field in ("attention.value_length", "rope.dimension_count"):
        if fields.get(field, int, head_dim) != head_dim:
            raise fields.error(field, f"be {head_dim}, the size of a head")
    vocabulary = tensors.shape("token_embd.weight")[0] if "token_embd.weight" in tensors else 1
    return {
        "vocabulary_size": fields.get("vocab_size", int, vocabulary),
        "num_layers": fields.count("block_count"),
        "hidden_dim": size,
        "num_heads": heads,
        "num_key_value_heads": fields.get("attention.head_count_kv", int, heads),
        "head_dim": head_dim,
        "intermediate_dim": fields.get("feed_forward_length"),
        "max_length": fields.get("context_length"),
        "norm_epsilon": fields.get("attention.layer_norm_rms_epsilon", float),
        "tie_embeddings": "output.weight" not in tensors,
        "position": _rotary(fields, tensors, head_dim),
    }


def _rotary(fields, tensors, head_dim):
    base = fields.get("rope.freq_base", float, 10000.0)
    kind = fields.row.get("rope.scaling.type")
    if kind not in (None, "none", "linear"):
        raise fields.error("rope.scaling.type", 'be "none" or "linear"')
    scaling = 1.0
    if kind == "linear":
        scaling = fields.get("rope.scaling.factor", float)
    if _FREQUENCIES not in tensors:
        return Rotary(base, scaling)
    if kind == "linear":
        raise InputError(
            f"{fields.where}: linear scaling is not supported together with tensor "
            f"{_FREQUENCIES!r}."
        )
    # Llama 3 scaling is stored as the divisor of each frequency. Among the released models, only
    # its factor differs.
    divisors = np.asarray(tensors[_FREQUENCIES], "float64").ravel()
    rule = Llama3Scaling(max(float(divisors.max()), 1.0), 1.0, 4.0, 8192)
    expected = base ** (-np.arange(0, head_dim, 2) / head_dim) / rule.frequencies(base, head_dim)[0]
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise InputError(
            f"{fields.where}: tensor {_FREQUENCIES!r} does not match Llama 3 scaling with an "
            "original length of 8192, the only supported one."
        )
    return Rotary(base, rule)


def _permuted(part, name, config, metadata):
    """Link query and key kernels, whose rows llama.cpp permutes.

    llama.cpp rotates adjacent features of a Llama together and orders the rows accordingly.
    """
    heads = config.num_key_value_heads if part.key.endswith("key") else config.num_heads
    ((path, shape),) = part.weights.items()
    return weight_mapping.interleaved(path, f"{name}.weight", shape, heads)


_QUERY_AND_KEY = ("block/self_attention/query", "block/self_attention/key")
ARCHITECTURES = {
    "llama": Family(
        "llama",
        {},
        _read_llama,
        None,
        _NAMES,
        special=dict.fromkeys(_QUERY_AND_KEY, _permuted),
        ignored=(r"rope_freqs\.weight",),
    ),
    "qwen2": Family("qwen2", {}, _read_qwen2, None, _NAMES),
    "qwen3": Family("qwen3", {}, _read_qwen3, None, _NAMES),
}
