"""Compare text generation with KerasHub, transformers and llama.cpp at the same shapes.

    python benchmarks/generation.py --page docs/benchmarks.md

Requires the packages of `make test-parity`. All libraries run in float32 on a CPU with two threads,
one after the other in every round, with greedy decoding and without early stopping. Results are
medians of the rounds. For llama.cpp the published weights of SmolLM2 are converted to float32; its
speed does not depend on the values of the weights.
"""

import argparse
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
THREADS = 2

SHAPES = {
    "6 layers, width 256": {
        "vocabulary_size": 8000,
        "num_layers": 6,
        "hidden_dim": 256,
        "num_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_dim": 1024,
        "max_length": 1024,
    },
    "SmolLM2-135M": {
        "vocabulary_size": 49152,
        "num_layers": 30,
        "hidden_dim": 576,
        "num_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_dim": 1536,
        "max_length": 1024,
    },
}
# shape, batch, prompt tokens, new tokens
CASES = [
    ("6 layers, width 256", 1, 32, 64),
    ("6 layers, width 256", 8, 32, 64),
    ("6 layers, width 256", 1, 128, 1),
    ("6 layers, width 256", 1, 512, 1),
    ("SmolLM2-135M", 1, 32, 64),
    ("SmolLM2-135M", 8, 32, 64),
    ("SmolLM2-135M", 1, 128, 1),
    ("SmolLM2-135M", 1, 512, 1),
]


def ours(shape):
    import numpy as np

    from keras_llm import generation, models
    from keras_llm.generation.compiled import CompiledGenerator

    model = models.causal_lm(models.CausalLMConfig(**shape))
    compiled = CompiledGenerator(model, stop_id=-1, pad_id=0)

    def run(ids, new):
        lengths = np.full(len(ids), ids.shape[1], "int32")
        sampling = generation.Sampling(temperature=0.0)
        state = compiled.generate(ids, lengths, np.array([new], "int32"), sampling)
        assert np.asarray(state.token_ids).shape == (len(ids), new)

    return run


def keras_hub(shape):
    import keras_hub
    import numpy as np

    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=shape["vocabulary_size"],
        num_layers=shape["num_layers"],
        num_query_heads=shape["num_heads"],
        num_key_value_heads=shape["num_key_value_heads"],
        hidden_dim=shape["hidden_dim"],
        intermediate_dim=shape["intermediate_dim"],
        tie_word_embeddings=True,
    )
    model = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy")

    def run(ids, new):
        padded = np.pad(ids, ((0, 0), (0, new)))
        mask = np.arange(padded.shape[1]) < ids.shape[1]
        inputs = {"token_ids": padded, "padding_mask": np.tile(mask, (len(ids), 1))}
        outputs = model.generate(inputs, stop_token_ids=None)
        assert np.asarray(outputs["token_ids"]).shape == padded.shape

    return run


def transformers(shape):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(THREADS)
    config = LlamaConfig(
        vocab_size=shape["vocabulary_size"],
        num_hidden_layers=shape["num_layers"],
        hidden_size=shape["hidden_dim"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_key_value_heads"],
        intermediate_size=shape["intermediate_dim"],
        max_position_embeddings=shape["max_length"],
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()

    def run(ids, new):
        with torch.no_grad():
            tokens = torch.tensor(ids, dtype=torch.long)
            outputs = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                do_sample=False,
            )
        assert tuple(outputs.shape) == (len(ids), ids.shape[1] + new)

    return run


def llama_cpp(shape):
    """Return a function for the shape that has a GGUF file (batch size 1 only), else None."""
    if shape is not SHAPES["SmolLM2-135M"]:
        return None
    import gguf
    from llama_cpp import Llama

    from keras_llm.recipes.corpora import smollm2

    f32 = gguf.GGMLQuantizationType.F32
    model = Llama(
        str(smollm2.in_float32()),
        n_ctx=shape["max_length"],
        n_threads=THREADS,
        n_threads_batch=THREADS,
        type_k=f32,
        type_v=f32,
        verbose=False,
    )

    def run(ids, new):
        model.reset()
        model.eval(ids[0].tolist())
        count = 1
        while count < new:
            model.eval([model.sample(temp=0.0)])
            count += 1

    return run


PEERS = {
    "keras_llm": ours,
    "KerasHub": keras_hub,
    "transformers": transformers,
    "llama.cpp": llama_cpp,
}


def measure(function, ids, new):
    wall, cpu = time.perf_counter(), time.process_time()
    function(ids, new)
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, help="measure only this shape")
    parser.add_argument("--page", type=pathlib.Path, help="Markdown file to write")
    options = parser.parse_args()

    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    rows = []
    for name, shape in SHAPES.items():
        if options.shape in (None, name):
            runners = {peer: make(shape) for peer, make in PEERS.items()}
            for shape_name, batch, length, new in CASES:
                if shape_name != name:
                    continue
                # llama.cpp's Python bindings do not support batches.
                functions = {
                    peer: run
                    for peer, run in runners.items()
                    if run is not None and (batch == 1 or peer != "llama.cpp")
                }
                ids = np.random.default_rng(0).integers(3, 400, (batch, length)).astype("int32")
                first = {p: measure(f, ids, new)[0] for p, f in functions.items()}
                times = {peer: [] for peer in functions}
                for _ in range(options.rounds):
                    for peer, function in functions.items():
                        times[peer].append(measure(function, ids, new))
                tokens = batch * (new if new > 1 else length)
                for peer in functions:
                    wall, cpu = (statistics.median(t) for t in zip(*times[peer], strict=True))
                    rows.append(
                        (name, batch, length, new, peer, tokens / wall, tokens / cpu, first[peer])
                    )
                    print(rows[-1], flush=True)
            del runners, functions
    if options.page:
        options.page.write_text(page(rows, options.rounds), "utf-8")


def page(rows, rounds):
    lines = [
        "# Text generation",
        "",
        "Written by `python benchmarks/generation.py --page docs/benchmarks.md` in the environment "
        "of `make test-parity`:",
        "float32, greedy decoding, a CPU with two threads per library. All libraries generate the "
        "same number of tokens with a",
        "model of the same shape, one after the other in every round; medians of "
        f"{rounds} rounds. llama.cpp is measured only with",
        "SmolLM2-135M and one text. Prompt and new text are numbers of tokens; rows with one new "
        "token measure prefill. The",
        "ratio is keras_llm's tokens per second divided by those of the row.",
        "",
        "| shape | batch | prompt | new | library | tokens/s | ratio | tokens/CPU s | "
        "first call, s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    speed = {row[:5]: row[5] for row in rows}
    for *case, wall, cpu, first in rows:
        ratio = speed[(*case[:4], "keras_llm")] / wall
        numbers = f"{wall:,.0f} | {ratio:.2f} | {cpu:,.0f} | {first:.1f}"
        lines.append(f"| {' | '.join(map(str, case))} | {numbers} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
