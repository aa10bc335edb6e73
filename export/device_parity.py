"""Run a TFLite file as a device does, and tell what came out.

python -m keras_llm.export.device_parity MODEL.tflite FOLDER
"""

import sys
import time

import numpy as np

from keras_llm.export.parity import NEW_TOKENS, TIMED_TOKENS, answer
from keras_llm.export.runner import LiteRTModel


def _run_litert(path, request):
    runner = LiteRTModel(path)
    rows, logits = [], []
    for prompt in request["prompts"]:
        token_ids = []
        for token, step_logits in runner.steps(prompt, NEW_TOKENS):
            logits.append(step_logits)
            if token is not None:
                token_ids.append(token)
        rows.append(token_ids)
    begin = time.perf_counter()
    timed = sum(1 for _ in runner.steps(request["prompts"][0], TIMED_TOKENS))
    seconds = time.perf_counter() - begin
    values = {
        "signatures": runner.signatures(),
        "token_ids": rows,
        "texts": [runner.tokenizer.decode(ids) for ids in rows],
        "tokens_per_second": round(timed / seconds, 1),
    }
    return values, {"logits": np.stack(logits)}


if __name__ == "__main__":
    answer(_run_litert, *sys.argv[1:])
