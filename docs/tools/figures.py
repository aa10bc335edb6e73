"""Draw the pictures of the documentation from real runs, into docs/pictures.

make demo
python docs/tools/figures.py

Uses the model, the SavedModel and the TFLite file that the demo wrote to `--folder`.
"""

import argparse
import os
import pathlib
import textwrap
import time
from functools import partial

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

PICTURES = pathlib.Path(__file__).parent.parent / "pictures"
SENTENCE = "The film is good, but the story is not."


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


def attention(task, layer=2):
    """Draw the attention weights of the heads of a layer."""
    from keras_llm import models

    ids = task.tokenizer.encode_prompt(SENTENCE)
    _, scores = models.forward(task.model, np.array([ids]), return_attention_scores=True)
    heads = np.asarray(scores[layer])[0]
    names = [task.tokenizer.token(i).replace("\u2581", "_") for i in ids]
    figure = new_figure(6, 6)
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for index, (axes, weights) in enumerate(zip(panels.flat, heads, strict=False)):
        axes.imshow(weights, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(len(ids)), names, rotation=90)
        axes.set_yticks(range(len(ids)), names)
        axes.set_title(f"layer {layer}, head {index}")
    figure.savefig(PICTURES / "attention.png", dpi=110)


def rotary():
    """Plot the product of a vector of ones with its rotated copy as a function of distance."""
    from keras_llm import layers

    positions = np.arange(200)
    figure = new_figure()
    axes = figure.add_subplot()
    for base, where in ((10000, "default"), (500000, "Llama 3")):
        layer = layers.RotaryEmbedding(base)
        rotated = np.asarray(
            layer(np.ones((1, len(positions), 1, 64), "float32"), positions=positions)
        )
        products = rotated[0, :, 0] @ rotated[0, 0, 0] / 64
        axes.plot(positions, products, label=f"base {base:,} ({where})")
    axes.set(xlabel="distance, tokens", ylabel="product / H, H = 64")
    axes.legend()
    figure.savefig(PICTURES / "rotary.svg")


def cache(lengths=(16, 32, 64, 128, 256, 512), rounds=5):
    """Plot the time of the next token, with and without a key-value cache."""
    import tensorflow as tf

    from keras_llm import models

    model = models.causal_lm(models.preset("llama-3m", max_length=1024))
    full = tf.function(lambda ids: model(ids)[:, -1])
    step = tf.function(lambda ids, at, entries: models.decode(model, ids, at, entries))
    rows = []
    for length in lengths:
        ids, at = np.ones((1, length), "int32"), np.array([[length - 1]], "int32")
        _, entries = models.prefill(model, ids, [length - 1], models.init_cache(model, 1, length))
        uncached = best(partial(full, ids), rounds)
        cached = best(partial(step, ids[:, :1], at, entries), rounds)
        rows.append((uncached, cached))
        print(f"{length} tokens: {uncached:.1f} ms uncached, {cached:.1f} ms cached", flush=True)
    figure = new_figure()
    axes = figure.add_subplot()
    uncached, cached = zip(*rows, strict=True)
    axes.plot(lengths, uncached, marker="o", label="without cache")
    axes.plot(lengths, cached, marker="o", label="with key-value cache")
    axes.set(xlabel="tokens so far", ylabel="ms for the next token")
    axes.legend()
    figure.savefig(PICTURES / "cache.svg")


def best(run, rounds):
    """Return the least milliseconds of several rounds, after a warm-up that compiles."""
    run()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return 1000 * min(times)


def sampling(task, shown=12):
    """Draw the probabilities of the most likely next tokens under four settings."""
    from keras_llm import generation, models

    prompt = "The film is"
    ids = np.array([task.tokenizer.encode_prompt(prompt)])
    logits = np.asarray(models.forward(task.model, ids))[:, -1]
    top = np.argsort(-logits[0])[:shown]
    names = [task.tokenizer.token(int(i)).replace("\u2581", "_") for i in top]

    def scaled(temperature):
        return generation.scale_temperature(logits, np.array([temperature], "float32"))

    fifth = np.array([0.2], "float32")
    settings = {
        "temperature 1": logits,
        "temperature 0.5": scaled(0.5),
        "temperature 2": scaled(2.0),
        "top_p 0.2": generation.keep_top(logits, np.array([0], "int32"), fifth),
    }
    figure = new_figure(6, 5)
    panels = figure.subplots(2, 2, sharex=True, sharey=True).flat
    for axes, (name, values) in zip(panels, settings.items(), strict=True):
        values = np.asarray(values, "float64")[0]
        weights = np.exp(values - values.max())
        axes.bar(range(shown), (weights / weights.sum())[top])
        axes.set_xticks(range(shown), names, rotation=90)
        axes.set_title(name)
    figure.suptitle(f"{prompt} ...")
    figure.supylabel("probability")
    figure.savefig(PICTURES / "sampling.svg")


def three_places(task, folder):
    """Draw the same greedy text from Keras, a SavedModel and a TFLite file."""
    import tensorflow as tf

    from keras_llm import export
    from keras_llm.export import verification

    task.tokenizer.graph_resources()  # registers the tokenizer's ops
    prompt, count = "The film", 12
    serve = tf.saved_model.load(str(folder / "serving/demo/1")).signatures["serving_default"]
    device = export.LiteRTModel(folder / "mobile/demo.tflite")
    texts = {
        "Keras: task(...)": task(prompt, count, temperature=0.0),
        "SavedModel: TensorFlow Serving": verification.greedy(serve, [prompt], count)["text"]
        .numpy()[0]
        .decode(),
        "TFLite: a phone's runtime": device.generate(prompt, count, temperature=0.0),
    }
    assert len(set(texts.values())) == 1, texts
    figure = new_figure(4.4, 3)
    axes = figure.add_subplot()
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    box = {"boxstyle": "round,pad=0.5", "facecolor": "#eceff1", "edgecolor": "#546e7a"}
    source = axes.text(0.13, 0.5, "layers\nmodel.fit", ha="center", va="center", bbox=box)
    for place, (name, text) in zip((0.87, 0.5, 0.13), texts.items(), strict=True):
        written = textwrap.fill(f'"{prompt}{text}"'.replace("\n", " "), 36)
        target = axes.text(0.36, place, f"{name}\n{written}", va="center", bbox=box)
        ends = {"patchA": source.get_bbox_patch(), "patchB": target.get_bbox_patch()}
        arrow = {"arrowstyle": "->", "color": "#546e7a", "shrinkA": 0, "shrinkB": 0, **ends}
        axes.annotate("", (0.36, place), (0.13, 0.5), arrowprops=arrow)
    figure.savefig(PICTURES / "three_places.svg")


def new_figure(width=5.0, height=3.4):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


if __name__ == "__main__":
    main()
