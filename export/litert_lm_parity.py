"""Run a bundle in LiteRT-LM, and tell what came out.

python -m keras_llm.export.litert_lm_parity FILE.litertlm FOLDER
"""

import sys

import litert_lm

from keras_llm.export.parity import NEW_TOKENS, answer


def _run(path, request):
    return {"texts": greedy(path, request["prompts"], request.get("steps", NEW_TOKENS))}, {}


def greedy(path, prompts, max_new_tokens):
    """The greedy continuations of prompts, a list of str."""
    sampler = litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
    texts = []
    with litert_lm.Engine(path, backend=litert_lm.Backend.CPU(), cache_dir=":nocache") as engine:
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
    answer(_run, *sys.argv[1:])
