"""Define the graphs of exported encoders with a head: token ids to the outputs of the head."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from keras_llm.export.litert.unrolling import unrolled

if TYPE_CHECKING:
    from keras_llm.tasks.head import HeadTask

# Task class -> name of its signature and of its method in `LiteRTModel`.
SIGNATURES = {
    "TextClassification": "classify",
    "TokenClassification": "tag",
    "QuestionAnswering": "answer",
    "TextEmbedding": "embed",
    "TextRegression": "regress",
    "MaskedLanguageModel": "fill_mask",
}
_OUTPUTS = {"embed": "embedding", "regress": "value", "fill_mask": "logits"}
MASKS = 8  # mask tokens in one call


def signatures(
    task: "HeadTask", length: int
) -> dict[str, tuple[Callable[..., Any], dict[str, tf.TensorSpec]]]:
    """Return the only signature of a model with a head, named after the task.

    It takes `token_ids` int32 (1, T), with the tokenizer's begin and end tokens and right padding,
    and `lengths` int32 (1,). `answer` also takes `segment_ids` int32 (1, T), 1 from the first
    context token; `fill_mask` also takes `mask_positions` int32 (1, M). It returns float32
    `probabilities` (1, C) (`classify`) or (1, T, C) (`tag`), logits `start` and `end` (1, T)
    (`answer`), `embedding` (1, D) (`embed`), `value` (1,) (`score`) or `logits` (1, M, V)
    (`fill_mask`).

    Args:
        task: a task of a model with a head, in float32.
        length: int. T.

    Returns:
        A dict that maps the name to a pair: a function that takes tensors by name, and a dict of
        their specs.
    """
    name = SIGNATURES[type(task).__name__]
    inputs = {"token_ids": (1, length), "lengths": (1,)}
    if name == "answer":
        inputs["segment_ids"] = (1, length)
    if name == "fill_mask":
        inputs["mask_positions"] = (1, MASKS)

    def run(token_ids, lengths, **more):
        with unrolled(task.model):
            return outputs_of(token_ids, lengths, **more)

    def outputs_of(token_ids, lengths, **more):
        if name in ("classify", "tag"):
            return {"probabilities": task.probabilities(token_ids, lengths)}
        outputs = task.outputs(token_ids, lengths, **more)
        if name == "answer":
            return {side: outputs[side] for side in ("start", "end")}
        return {_OUTPUTS[name]: outputs}

    specs = {n: tf.TensorSpec(shape, tf.int32, name=n) for n, shape in inputs.items()}
    return {name: (run, specs)}
