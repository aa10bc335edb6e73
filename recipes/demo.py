"""Train, export and compare a small language model in minutes: `make demo`.

Trains a model with the text generation recipe, exports it to a SavedModel and a TFLite file, and
checks that all three generate the same text.
"""

import dataclasses
import pathlib
import shutil
import sys
import time

from keras_llm import cli
from keras_llm.recipes import text_generation
from keras_llm.recipes.common import corpus
from keras_llm.silence import silent_stderr

PROMPT_CHARACTERS = 80
NEW_TOKENS = 24
EXPORTS = {
    "saved_model": {"target": "saved_model"},
    "litert": {"target": "litert"},
    "litert int8": {"target": "litert", "quantization": "int8"},
}


@dataclasses.dataclass
class Options:
    """Train, export and compare a small language model."""

    folder: str = "."
    """Folder for runs/demo, serving/demo and mobile/demo.tflite, which are replaced."""
    corpus: str = "movie-reviews"
    """Name of a corpus."""
    data: str | None = None
    """Path of your own text, instead of a corpus."""
    max_megabytes: float = 3.5
    """Maximum size of the text, in MB."""
    smoke: bool = False
    """Run the whole demo with a tiny model in under a minute."""


def run(options):
    """Run the demo and print its results.

    Returns:
        A dict with the training `metrics`, `texts` (a row for each prompt with the texts of
        keras, saved_model and litert) and the `reports` of the exports.
    """
    import keras_llm

    folder = pathlib.Path(options.folder)
    paths = {
        "keras": folder / "runs/demo",
        "saved_model": folder / "serving/demo",
        "litert": folder / "mobile/demo.tflite",
        "litert int8": folder / "mobile/demo_int8.tflite",
    }
    # The recipe would take the demo's default as given, and `--smoke` would use as much text.
    is_given = not options.smoke or options.max_megabytes != Options.max_megabytes
    recipe = text_generation.Options(
        out=str(paths["keras"]),
        corpus=options.corpus,
        data=options.data,
        **({"max_megabytes": options.max_megabytes} if is_given else {}),
        overwrite=True,
        smoke=options.smoke,
    )
    _head("1. Train")
    metrics = text_generation.run(recipe)
    held_out, unigram = metrics["held_out"], metrics["unigram"]
    for name in ("perplexity", "bits_per_byte"):
        print(f"held-out {name}: {held_out[name]:.3f}, unigram baseline {unigram[name]:.3f}")
    print(f"{metrics['training']['seconds']:.0f} s")

    _head("2. Export; each file is compared with Keras in a fresh process")
    task = keras_llm.load(paths["keras"])
    reports = {}
    for name, settings in EXPORTS.items():
        reports[name] = task.export(path=paths[name], overwrite=True, **settings)
        print(f"{name}: {paths[name]}, {reports[name]['bytes']['total']:,} bytes")

    _head("3. Compare greedy texts of Keras, SavedModel and TFLite")
    with silent_stderr():  # the training has already reported the documents
        _, held_out_documents = corpus.documents(recipe)
        prompts = [
            " ".join(text[:PROMPT_CHARACTERS].split(" ")[:-1]) for text in held_out_documents
        ]
        rows = greedy_texts(task, paths, [prompt for prompt in prompts if prompt.strip()][:3])
    for row in rows:
        print(f"prompt       {row['prompt']!r}")
        for name in ("keras", "saved_model", "litert"):
            print(f"{name:12} {row[name]!r}")
        same = row["keras"] == row["saved_model"] == row["litert"]
        print("the same" if same else "NOT the same")

    _head("4. Tokens per second, batch size 1")
    for _ in range(2):  # the first call compiles
        begin = time.perf_counter()
        result = task(rows[0]["prompt"], 64, temperature=0.0, return_details=True)
        seconds = time.perf_counter() - begin
    speeds = {"keras": result.num_tokens / seconds}
    speeds |= {name: report["tokens_per_second"] for name, report in reports.items()}
    for name, speed in speeds.items():
        print(f"{name:12} {speed:,.0f}")

    _head("Next")
    if shutil.which("keras-llm") is None:
        print(f"source {pathlib.Path(sys.executable).parent / 'activate'}")
    print(
        f"tensorboard --logdir {folder / 'runs'}\n"
        f'keras-llm generate {paths["keras"]} "The film" --stream\n'
        f"keras-llm evaluate {paths['keras']}\n"
        "keras-llm train text_generation --out runs/mine --data YOUR_TEXT_FOLDER"
    )
    return {"metrics": metrics, "texts": rows, "reports": reports}


def greedy_texts(task, paths, prompts):
    """Return the greedy continuation of each prompt by Keras, SavedModel and TFLite file."""
    import tensorflow as tf

    from keras_llm import export

    task(prompts, NEW_TOKENS, temperature=0.0)  # compile before timing
    serve = tf.saved_model.load(str(paths["saved_model"] / "1")).signatures["serving_default"]
    device = export.LiteRTModel(paths["litert"])
    settings = {"max_new_tokens": [NEW_TOKENS], "temperature": [0.0], "top_k": [0]}
    settings |= {"top_p": [1.0], "seed": [0]}
    served = serve(prompt=tf.constant(prompts), **{k: tf.constant(v) for k, v in settings.items()})
    return [
        {
            "prompt": prompt,
            "keras": task(prompt, NEW_TOKENS, temperature=0.0),
            "saved_model": text.decode(),
            "litert": device.generate(prompt, NEW_TOKENS, temperature=0.0),
        }
        for prompt, text in zip(prompts, served["text"].numpy(), strict=True)
    ]


def _head(text):
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
