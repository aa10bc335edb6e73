"""Draw the pictures of the documents from real runs, into docs/pictures.

make demo
python docs/tools/figures.py

The model, the SavedModel and the TFLite file are those that the demo left in `--folder`.
"""

import argparse
import os
import pathlib
import time
from functools import partial

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

PICTURES = pathlib.Path(__file__).parent.parent / "pictures"
SENTENCE = "The film is good, but the story of the film is not."


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("."))
    folder = parser.parse_args().folder

    import keras_llm

    task = keras_llm.load(folder / "runs/demo")
    rotary()
    attention(task)
    sampling(task)
    three_places(task, folder)
    cache()


def attention(task):
    """Where the heads of the first layer look."""
    from keras_llm import models

    ids = task.tokenizer.encode_prompt(SENTENCE)[:16]
    _, scores = models.forward(task.model, np.array([ids]), return_attention_scores=True)
    heads = np.asarray(scores[0])[0]
    names = [task.tokenizer.token(i).replace("\u2581", "_") for i in ids]
    figure = new_figure(9, 9)
    for index, weights in enumerate(heads[:4]):
        axes = figure.add_subplot(2, 2, index + 1)
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(ids)), names, rotation=90, fontsize=7)
        axes.set_yticks(range(len(ids)), names, fontsize=7)
        axes.set_title(f"layer 0, head {index}", fontsize=9)
    figure.savefig(PICTURES / "attention.png", dpi=80)


def rotary():
    """The product of a vector of ones with itself, turned, over the distance."""
    from keras_llm import layers

    positions = np.arange(200)
    figure = new_figure()
    axes = figure.add_subplot()
    for base in (10000, 500000):
        layer = layers.RotaryEmbedding(base)
        turned = np.asarray(
            layer(np.ones((1, len(positions), 1, 64), "float32"), positions=positions)
        )
        products = turned[0, :, 0] @ turned[0, 0, 0] / 64
        axes.plot(positions, products, label=f"base {base:,}")
    axes.set(xlabel="distance, tokens", ylabel="product / H, H = 64")
    axes.legend()
    figure.savefig(PICTURES / "rotary.svg")


def cache(lengths=(16, 32, 64, 128, 256, 512), rounds=5):
    """Seconds of one more token after a text, read anew or from the cache."""
    import tensorflow as tf

    from keras_llm import models

    model = models.causal_lm(models.preset("llama-3m", max_length=1024))
    full = tf.function(lambda ids: model(ids)[:, -1])
    step = tf.function(lambda ids, at, entries: models.decode(model, ids, at, entries))
    rows = []
    for length in lengths:
        ids, at = np.ones((1, length), "int32"), np.array([[length - 1]], "int32")
        _, entries = models.prefill(model, ids, [length - 1], models.init_cache(model, 1, length))
        anew = best(partial(full, ids), rounds)
        cached = best(partial(step, ids[:, :1], at, entries), rounds)
        rows.append((anew, cached))
        print(f"{length} tokens: {anew:.1f} ms anew, {cached:.1f} ms cached", flush=True)
    figure = new_figure()
    axes = figure.add_subplot()
    anew, cached = zip(*rows, strict=True)
    axes.plot(lengths, anew, marker="o", label="all read anew")
    axes.plot(lengths, cached, marker="o", label="keys and values cached")
    axes.set(xlabel="tokens so far", ylabel="ms for the next token")
    axes.legend()
    figure.savefig(PICTURES / "cache.svg")


def best(run, rounds):
    """Milliseconds, the least of some rounds after one that compiles."""
    run()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def sampling(task, shown=12):
    """The likeliest next tokens under four settings."""
    from keras_llm import generation, models

    prompt = "The film is"
    ids = np.array([task.tokenizer.encode_prompt(prompt)])
    logits = np.asarray(models.forward(task.model, ids))[:, -1]
    top = np.argsort(-logits[0])[:shown]
    names = [task.tokenizer.token(int(i)).replace("\u2581", "_") for i in top]

    def scaled(temperature):
        return generation.scale_temperature(logits, np.array([temperature], "float32"))

    half = np.array([0.5], "float32")
    settings = {
        "temperature 1": logits,
        "temperature 0.5": scaled(0.5),
        "temperature 2": scaled(2.0),
        "top_p 0.5": generation.keep_top(logits, np.array([0], "int32"), half),
    }
    figure = new_figure(8, 5)
    for index, (name, values) in enumerate(settings.items()):
        values = np.asarray(values, "float64")[0]
        weights = np.exp(values - values.max())
        axes = figure.add_subplot(2, 2, index + 1)
        axes.bar(range(shown), (weights / weights.sum())[top])
        axes.set_xticks(range(shown), names, rotation=60, fontsize=8)
        axes.set_title(f"{prompt} ..., {name}", fontsize=9)
    figure.savefig(PICTURES / "sampling.svg")


def three_places(task, folder):
    """The same greedy text from Keras, a SavedModel and a TFLite file."""
    import tensorflow as tf

    from keras_llm import export
    from keras_llm.export import parity

    task.tokenizer.graph_resources()  # registers the tokenizer's ops
    prompt, count = "The film", 12
    serve = tf.saved_model.load(str(folder / "serving/demo/1")).signatures["serving_default"]
    device = export.LiteRTModel(folder / "mobile/demo.tflite")
    texts = {
        "Keras\ntask(...)": task(prompt, count, temperature=0.0),
        "SavedModel\nTensorFlow Serving": parity.greedy(serve, [prompt], count)["text"]
        .numpy()[0]
        .decode(),
        "TFLite\na phone's runtime": device.generate(prompt, count),
    }
    assert len(set(texts.values())) == 1, texts
    figure = new_figure(9, 2.6)
    axes = figure.add_subplot()
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    box = {"boxstyle": "round,pad=0.6", "facecolor": "#eceff1", "edgecolor": "#546e7a"}
    axes.text(0.1, 0.5, "layers\nmodel.fit", ha="center", va="center", bbox=box)
    for place, (name, text) in zip((0.85, 0.5, 0.15), texts.items(), strict=True):
        axes.annotate(
            "", (0.26, place), (0.17, 0.5), arrowprops={"arrowstyle": "->", "color": "#546e7a"}
        )
        axes.text(0.37, place, name, ha="center", va="center", bbox=box)
        written = f"{prompt}{text}".replace("\n", " ")
        axes.text(0.5, place, f'"{written}"', va="center", fontsize=9)
    figure.savefig(PICTURES / "three_places.svg")


def new_figure(width=5.0, height=3.4):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


if __name__ == "__main__":
    main()
