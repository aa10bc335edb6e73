"""List the weights of a config's model as named parts.

A part is a layer or a table of the model, with its path and the shapes of its weights. All blocks
share one key per path, so that a family's table of names needs one row per kind of part.
"""

import dataclasses

from keras_llm.layers import RelativeBias
from keras_llm.models import CausalLMConfig, Seq2SeqConfig, TransformerConfig
from keras_llm.types import JSON


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model.

    Attributes:
        kind: "table" (rows of embeddings), "head" (D, V), "dense", "experts", "norm" or "bias".
        path: str, its path in the model, e.g. "block_3/self_attention/query".
        key: str, the path without the block number, e.g. "block/self_attention/query". The key
            of a language model's output head, whose path is that of the token embedding, is
            "head". Keys in the head of a head model start with its name,
            "text_classifier/logits".
        block: int or None, the block number.
        weights: dict of weight name to shape, e.g. {"kernel": (64, 32), "bias": (32,)}.
    """

    kind: str
    path: str
    key: str
    block: int | None
    weights: dict[str, tuple[int, ...]]


def parts(
    config: TransformerConfig, head: str | None = None, options: JSON | None = None
) -> list[Part]:
    """List the parts of the model of a config.

    Args:
        config: a `CausalLMConfig`, `EncoderConfig` or `Seq2SeqConfig`.
        head: str or None, the head of a head model.
        options: dict, the options of the head.

    Returns:
        A list of `Part`, in the order of the forward pass.
    """
    return [*_embeddings(config), *_body(config), *_head(config, head, options or {})]


def _embeddings(config):
    vocabulary, size = config.vocabulary_size, config.hidden_dim
    yield _one("table", "token_embedding", embeddings=(vocabulary, size))
    if config.position == "learned":
        yield _one("table", "position_embedding", embeddings=(config.max_length, size))
    if getattr(config, "num_segments", 0):
        yield _one("table", "segment_embedding", embeddings=(config.num_segments, size))
    if getattr(config, "embedding_norm", False):
        yield _norm(config, "embedding_norm", size)


def _body(config):
    if isinstance(config, Seq2SeqConfig):
        stacks = [("encoder_", config.num_layers), ("decoder_", config.num_decoder_layers)]
    else:
        stacks = [("", config.num_layers)]
    for prefix, count in stacks:
        if isinstance(config.position, RelativeBias):
            shape = (config.position.num_buckets, config.num_heads)
            yield _one("table", f"{prefix}relative_bias", embeddings=shape)
        for i in range(count):
            for part in _block(config, cross=prefix == "decoder_"):
                yield dataclasses.replace(
                    part,
                    path=f"{prefix}block_{i}/{part.path}",
                    key=f"{prefix}block/{part.path}",
                    block=i,
                )
        if config.norm_position != "post":
            yield _norm(config, f"{prefix}final_norm", config.hidden_dim)


def _block(config, cross):
    size, width = config.hidden_dim, config.intermediate_dim
    for name in ("self_attention", "cross_attention") if cross else ("self_attention",):
        yield from _attention(config, name)
        yield from _norms(config, name)
    if config.num_experts:
        experts = config.num_experts
        yield _one("dense", "feed_forward/router", kernel=(size, experts))
        if config.gated:
            yield _one("experts", "feed_forward/gate", **{"": (experts, size, width)})
        yield _one("experts", "feed_forward/up", **{"": (experts, size, width)})
        yield _one("experts", "feed_forward/down", **{"": (experts, width, size)})
        if config.num_shared_experts:
            shared = width * config.num_shared_experts
            yield from _feed_forward(config, "feed_forward/shared", shared, False)
    else:
        yield from _feed_forward(config, "feed_forward", width, config.use_bias)
    yield from _norms(config, "feed_forward")


def _attention(config, name):
    size, bias = config.hidden_dim, config.use_bias
    queries = config.num_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    yield _dense(f"{name}/query", size, queries, bias)
    yield _dense(f"{name}/key", size, keys, bias)
    yield _dense(f"{name}/value", size, keys, bias)
    if config.qk_norm:
        yield _one("norm", f"{name}/query_norm", scale=(config.head_dim,))
        yield _one("norm", f"{name}/key_norm", scale=(config.head_dim,))
    if config.learned_sinks:
        yield _one("bias", f"{name}/sinks", **{"": (config.num_heads,)})
    yield _dense(f"{name}/output", queries, size, bias)


def _feed_forward(config, name, width, bias):
    if config.gated:
        yield _dense(f"{name}/gate", config.hidden_dim, width, bias)
    yield _dense(f"{name}/up", config.hidden_dim, width, bias)
    yield _dense(f"{name}/down", width, config.hidden_dim, bias)


def _head(config, head, options):
    size, vocabulary = config.hidden_dim, config.vocabulary_size
    is_language_model = isinstance(config, (CausalLMConfig, Seq2SeqConfig)) and head is None
    if is_language_model and not config.tie_embeddings:
        weights = {"reverse_embeddings": (size, vocabulary)}
        yield Part("head", "token_embedding", "head", None, weights)
    for part in _HEADS.get(head, lambda *_: ())(size, vocabulary, options):
        yield dataclasses.replace(part, key=f"{head}/{part.path.removeprefix('masked_lm_head/')}")


def _masked_lm(size, vocabulary, options):
    yield _dense("masked_lm_head/dense", size, size, True)
    yield _one("norm", "masked_lm_head/norm", gamma=(size,), beta=(size,))
    yield _one("bias", "masked_lm_head", bias=(vocabulary,))


def _text_classifier(size, vocabulary, options):
    yield _dense("pooler", size, size, True)
    yield _dense("logits", size, options.get("num_classes", 2), True)


def _token_classifier(size, vocabulary, options):
    yield _dense("logits", size, options["num_classes"], True)


def _span_qa(size, vocabulary, options):
    yield _dense("span", size, 2, True)


_HEADS = {
    "masked_lm": _masked_lm,
    "next_sentence": _text_classifier,
    "text_classifier": _text_classifier,
    "token_classifier": _token_classifier,
    "span_qa": _span_qa,
}


def _norms(config, name):
    yield _norm(config, f"{name}_norm", config.hidden_dim)
    if config.norm_position == "sandwich":
        yield _norm(config, f"{name}_post_norm", config.hidden_dim)


def _norm(config, path, size):
    names = ("scale",) if config.norm == "rms" else ("gamma", "beta")
    return _one("norm", path, **dict.fromkeys(names, (size,)))


def _dense(path, inputs, outputs, bias):
    weights = {"kernel": (inputs, outputs)}
    if bias:
        weights["bias"] = (outputs,)
    return _one("dense", path, **weights)


def _one(kind, path, **weights):
    return Part(kind, path, path, None, weights)
