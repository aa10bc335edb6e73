"""Train, export and compare a small language model in minutes: `make demo`.

Trains a model with the text generation recipe, exports it to a SavedModel and a TFLite file, and
checks that all three generate the same text. Then does the same with a model that is composed from
Keras layers, and also exports it to a LiteRT-LM bundle.
"""

import dataclasses
import pathlib
import shutil
import sys
import time

from keras_llm import cli
from keras_llm.recipes import text_generation
from keras_llm.recipes.common import composed_model, corpus, greedy_texts
from keras_llm.silence import silent_stderr

PROMPT_CHARACTERS = 80
EXPORTS = {
    "saved_model": {"target": "saved_model"},
    "litert": {"target": "litert"},
    "litert int8": {"target": "litert", "quantization": "int8"},
}


@dataclasses.dataclass
class Options:
    """Train, export and compare a small language model."""

    folder: str = "."
    """Folder for what the demo writes to runs, serving and mobile, where it replaces files."""
    corpus: str = "movie-reviews"
    """Name of a corpus."""
    data: str | None = None
    """Path of your own text, instead of a corpus."""
    max_megabytes: float = 3.5
    """Maximum size of the text, in MB."""
    smoke: bool = False
    """Run the whole demo with a tiny model in one to two minutes."""


def run(options):
    """Run the demo and print its results.

    Returns:
        A dict with the training `metrics`, `texts` (a row for each prompt with the texts of
        keras, saved_model and litert), the `reports` of the exports, and `own`, such a dict with
        the losses, texts and reports of a composed model.
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
        documents, held_out_documents = corpus.documents(recipe)
        prompts = [
            " ".join(text[:PROMPT_CHARACTERS].split(" ")[:-1]) for text in held_out_documents
        ]
        prompts = [prompt for prompt in prompts if prompt.strip()][:3]
        rows = greedy_texts.of(task, paths, prompts)
    greedy_texts.show(rows)

    _head("4. Tokens per second, batch size 1")
    for _ in range(2):  # the first call compiles
        begin = time.perf_counter()
        result = task(rows[0]["prompt"], 64, temperature=0.0, return_details=True)
        seconds = time.perf_counter() - begin
    speeds = {"keras": result.num_tokens / seconds}
    speeds |= {name: report["tokens_per_second"] for name, report in reports.items()}
    for name, speed in speeds.items():
        print(f"{name:12} {speed:,.0f}")

    _head("5. Compose a model from Keras layers, train it briefly and export it")
    own = composed_model.demonstrate(task.tokenizer, documents, prompts[:1], folder)
    print(f"mean loss of each epoch: {', '.join(f'{loss:.2f}' for loss in own['losses'])}")
    for name, report in own["reports"].items():
        print(
            f"{name}: {folder / composed_model.EXPORTS[name]}, {report['bytes']['total']:,} bytes"
        )
    greedy_texts.show(own["texts"])

    _head("Next")
    if shutil.which("keras-llm") is None:
        print(f"source {pathlib.Path(sys.executable).parent / 'activate'}")
    print(
        f"tensorboard --logdir {folder / 'runs'}\n"
        f'keras-llm generate {paths["keras"]} "The film" --stream\n'
        f"keras-llm evaluate {paths['keras']}\n"
        "keras-llm train text_generation --out runs/mine --data YOUR_TEXT_FOLDER"
    )
    return {"metrics": metrics, "texts": rows, "reports": reports, "own": own}


def _head(text):
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
