"""What the number of heads is worth at one width, and sizes of model and data: docs/faq.md.

python benchmarks/questions.py heads --picture docs/pictures/heads.svg
python benchmarks/questions.py sizes --picture docs/pictures/sizes.svg

Each run is one pass of `fit` over film reviews with the settings of the recipe text_generation; the
loss is that of held-out reviews, in nats a token.
"""

import argparse
import os
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

VOCABULARY, LENGTH, BATCH = 2048, 128, 8
HEADS = (1, 2, 4, 8, 16)
SHAPES = ((32, 2), (64, 2), (128, 3), (192, 4))  # width, layers


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("question", choices=("heads", "sizes"))
    parser.add_argument("--picture", help="where the SVG goes")
    parser.add_argument("--tokens", type=int, default=400_000, help="the most a run trains on")
    parser.add_argument("--seeds", type=int, default=2, help="runs for each number of heads")
    options = parser.parse_args()
    corpus = read(options.tokens)
    {"heads": heads, "sizes": sizes}[options.question](corpus, options)


def read(tokens):
    """The tokenizer, `tokens` token ids of training and those of held-out reviews."""
    from keras_llm import data, tokenizers
    from keras_llm.recipes import corpora

    documents = data.shuffle_documents(corpora.load("movie-reviews"), 0)
    train, held_out = documents[: tokens // 150], documents[-200:]
    tokenizer = tokenizers.SentencePiece.train(train, VOCABULARY, "bpe")
    ids = data.encode_documents(train, tokenizer)
    assert len(ids) >= tokens, len(ids)
    return tokenizer, ids[:tokens], data.encode_documents(held_out, tokenizer)


def train(corpus, tokens, width, layers, num_heads, seed=0):
    """One training; the held-out loss, the weights outside the embedding, and the seconds."""
    import keras

    from keras_llm import data, models, training

    tokenizer, ids, held_out = corpus
    keras.utils.set_random_seed(seed)
    model = models.causal_lm(
        models.CausalLMConfig(
            VOCABULARY, layers, width, num_heads, 8 * width // 3, LENGTH, initializer_range=0.05
        )
    )
    batches = data.packed_dataset(
        ids[:tokens], LENGTH, BATCH, bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id, seed=seed
    )
    trainer = training.LanguageModelTrainer(model, ignore_id=tokenizer.pad_id)
    schedule = training.WarmupDecay(3e-3, len(batches), warmup_steps=len(batches) // 20)
    trainer.compile(training.AdamW(schedule, weight_decay=0.1), jit_compile=False)
    begin = time.perf_counter()
    trainer.fit(batches, verbose=0)
    seconds = time.perf_counter() - begin
    found = training.evaluate_language_model(model, held_out, 1, tokenizer.bos_id, LENGTH)
    weights = model.count_params() - VOCABULARY * width
    return found["nats_per_token"], weights, seconds


def heads(corpus, options):
    """Width 128 and 3 layers, cut into more or fewer heads; the weights are the same."""
    print("| heads | size of a head | held-out loss of each seed | s |\n|---|---|---|---|")
    losses = []
    for count in HEADS:
        runs = [train(corpus, options.tokens, 128, 3, count, s) for s in range(options.seeds)]
        losses.append([loss for loss, _, _ in runs])
        seconds = sum(seconds for _, _, seconds in runs)
        row = ", ".join(f"{loss:.3f}" for loss in losses[-1])
        print(f"| {count} | {128 // count} | {row} | {seconds:.0f} |", flush=True)
    if options.picture:
        figure, axes = new_figure()
        for run in zip(*losses, strict=True):
            axes.plot(HEADS, run, "o", color="tab:blue")
        axes.plot(HEADS, [sum(row) / len(row) for row in losses], color="tab:blue")
        axes.set_xscale("log", base=2)
        axes.set_xticks(HEADS, HEADS)
        axes.set(xlabel="heads, at width 128", ylabel="held-out loss, nats a token")
        figure.savefig(options.picture)


def sizes(corpus, options):
    """Four sizes on three amounts of text, and `E + A / N^a + B / D^b` fitted to them."""
    import numpy as np

    amounts = [options.tokens // 4, options.tokens // 2, options.tokens]
    print("| width, layers | weights | tokens | held-out loss | s |\n|---|---|---|---|---|")
    rows = []
    for width, layers in SHAPES:
        for tokens in amounts:
            loss, weights, seconds = train(corpus, tokens, width, layers, width // 32)
            rows.append((weights, tokens, loss))
            print(
                f"| {width}, {layers} | {weights:,} | {tokens:,} | {loss:.3f} | {seconds:.0f} |",
                flush=True,
            )
    n, d, loss = np.array(rows, float).T
    a, alpha, b, beta, floor = fit(n, d, loss)
    predicted = floor + a / n**alpha + b / d**beta
    print(
        f"loss = {floor:.2f} + {a:.1f} / N^{alpha:.2f} + {b:.1f} / D^{beta:.2f}; "
        f"mean error {np.mean(np.abs(predicted - loss)):.3f} nats"
    )
    if options.picture:
        figure, axes = new_figure()
        for index, tokens in enumerate(amounts):
            chosen = d == tokens
            axes.plot(n[chosen], loss[chosen], "o", color=f"C{index}", label=f"{tokens:,} tokens")
            line = np.geomspace(n.min(), n.max(), 50)
            axes.plot(line, floor + a / line**alpha + b / tokens**beta, color=f"C{index}")
        axes.set_xscale("log")
        axes.set(xlabel="weights outside the embedding", ylabel="held-out loss, nats a token")
        axes.legend()
        figure.savefig(options.picture)


def fit(n, d, loss):
    """Least squares, with every part positive."""
    import numpy as np
    from scipy.optimize import least_squares

    def error(x):
        a, alpha, b, beta, floor = np.exp(x)
        return floor + a / n**alpha + b / d**beta - loss

    starts = [
        np.log([5.0, alpha, 50.0, beta, 1.0]) for alpha in (0.1, 0.3) for beta in (0.1, 0.3, 0.5)
    ]
    found = min((least_squares(error, x) for x in starts), key=lambda result: result.cost)
    return np.exp(found.x)


def new_figure():
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    return figure, figure.add_subplot()


if __name__ == "__main__":
    main()
