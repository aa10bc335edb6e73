"""List the weights of a model as named parts."""

import dataclasses
import re

from keras_llm.models import ConfiguredModel, HeadModel

# A weight of another name is a part of its own, such as the stacked kernels of experts.
_WEIGHTS = ("kernel", "bias", "gamma", "beta", "scale", "embeddings", "reverse_embeddings")


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a model: a layer, or a table or other weight with its own name in a checkpoint.

    All blocks share one key per part, so that a family's table of names needs one row per kind of
    part.

    Attributes:
        path: str, its path in the model, e.g. "block_3/self_attention/query".
        key: str, the path without the block number, e.g. "block/self_attention/query". The key of
            an untied output head, whose path is that of the token embedding, is "head". Keys in
            the head of a head model start with its name, "text_classifier/logits".
        block: int or None, the block number.
        weights: dict of weight path to shape, e.g. {"block_3/self_attention/query/kernel":
            (64, 32), "block_3/self_attention/query/bias": (32,)}.
    """

    path: str
    key: str
    block: int | None
    weights: dict[str, tuple[int, ...]]


def parts(model: ConfiguredModel, with_head: bool = True) -> list[Part]:
    """List the parts of a model.

    Args:
        model: a model of this library; its weights need not be allocated (see `shapes_only`).
        with_head: bool. Whether to list the head of a `HeadModel`, or only its backbone.

    Returns:
        A list of `Part`, in the order of the model's weights.
    """
    body = model.get_layer("backbone") if isinstance(model, HeadModel) else model
    body_paths = {variable.path for variable in body.variables}
    parts_by_key: dict[tuple[str, str], Part] = {}
    for variable in model.variables:
        in_body = variable.path in body_paths
        if "seed_generator" in variable.path or not (in_body or with_head):
            continue
        path, _, name = variable.path.rpartition("/")
        if name not in _WEIGHTS:
            path = variable.path
        block = re.search(r"block_(\d+)/", path)
        key = "head" if name == "reverse_embeddings" else re.sub(r"block_\d+/", "block/", path)
        if not in_body:
            key = f"{model.head}/{path.removeprefix('masked_lm_head/')}"
        part = Part(path, key, int(block[1]) if block else None, {})
        parts_by_key.setdefault((path, key), part).weights[variable.path] = tuple(variable.shape)
    return list(parts_by_key.values())
