"""Run a bundle in LiteRT-LM and return its greedy texts.

python -m keras_llm.export.litert.litert_lm_worker FOLDER
"""

import sys
from collections.abc import Iterable

import litert_lm

from keras_llm.export import children
from keras_llm.export.verification import NEW_TOKENS


def _run(folder, request):
    del folder
    return {"texts": greedy(request["path"], request["prompts"], NEW_TOKENS, request["cache"])}, {}


def greedy(
    path: str, prompts: Iterable[str], max_new_tokens: int, cache: str = ":nocache"
) -> list[str]:
    """Return the greedy continuations of prompts, a list of str.

    If `cache` is a folder, XNNPACK stores one packed copy of the weights in it for all signatures;
    otherwise each signature has a copy in memory.
    """
    sampler = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    texts = []
    with litert_lm.Engine(path, backend=litert_lm.Backend.CPU(), cache_dir=cache) as engine:
        for prompt in prompts:
            session = engine.create_session(
                apply_prompt_template=False,
                sampler_config=sampler,
                max_output_tokens=max_new_tokens,
            )
            with session:
                session.run_prefill([prompt])
                texts.append(session.run_decode().texts[0])
    return texts


if __name__ == "__main__":
    children.serve(sys.argv[1], _run)
