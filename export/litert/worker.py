"""Run an exported TFLite file and return its outputs, or measure its memory and speed.

python -m keras_llm.export.litert.worker FOLDER
"""

import sys

import numpy as np

from keras_llm.export import children
from keras_llm.export.litert.cost import cost
from keras_llm.export.litert.runtime.decoder import DecoderSteps
from keras_llm.export.litert.runtime.model import LiteRTModel
from keras_llm.export.verification import NEW_TOKENS


def _run(folder, request):
    del folder
    if request["what"] == "cost":
        return cost(request["path"]), {}
    # Run in a fork, because the runtime's threads would not survive the forks of `cost`.
    return children.in_fork(_outputs, request["path"], request)


def _outputs(path, request):
    runner = LiteRTModel(path)
    run = _run_head if "signature" in runner.manifest else _run_decoder
    values, arrays = run(runner, request)
    return {"signatures": runner.signatures(), **values}, arrays


def _run_head(runner, request):
    method = getattr(runner, runner.manifest["signature"])
    results = [method(*arguments, truncate=True) for arguments in request["inputs"]]
    if runner.task == "TextEmbedding":
        results = [vector.tolist() for vector in results]
    return {"results": results}, {}


def _run_decoder(runner, request):
    rows, texts, logits, steps = [], [], None, 0
    for prompt in request["prompts"]:
        token_ids = []
        for token, step_logits in runner.steps(prompt, NEW_TOKENS, temperature=0.0):
            if logits is None:  # sized for all steps; a page takes no memory until it is written
                max_steps = len(request["prompts"]) * NEW_TOKENS
                logits = np.empty((max_steps, *step_logits.shape), step_logits.dtype)
            logits[steps] = step_logits
            steps += 1
            if token is not None:
                token_ids.append(token)
        rows.append(token_ids)
        texts.append(runner.tokenizer.decode_continuation(token_ids, runner.last_id(prompt)))
    arrays = {"logits": logits[:steps]}
    for index, (source, row) in enumerate(request["rows"]):
        losses, choices = _read(runner, source, row)
        arrays |= {f"losses_{index}": losses, f"choices_{index}": choices}
    return {"token_ids": rows, "texts": texts}, arrays


def _read(runner, source, row):
    """Return the loss, in nats, of each token after the first, and the greedy choice there."""
    decoder = DecoderSteps(runner.runtime, runner.manifest)
    if source:
        decoder.encode(source)
    losses, choices = [], []
    for position, target in enumerate(row[1:]):
        logits = decoder.step(row[position], position).astype("float64")
        top = logits.max()
        losses.append(top + np.log(np.exp(logits - top).sum()) - logits[target])
        choices.append(int(logits.argmax()))
    return np.array(losses), np.array(choices)


if __name__ == "__main__":
    children.serve(sys.argv[1], _run)
