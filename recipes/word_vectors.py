"""Train word vectors: skip-gram, CBOW or GloVe.

    keras-llm train word_vectors --out runs/vectors --corpus movie-reviews
    keras-llm train word_vectors --out runs/vectors --data my_texts/ --objective glove

The words of the training documents and their neighbors train an embedding table with `fit`. It is
evaluated on Google's analogies, WordSim-353 and SimLex-999 next to random vectors and, with
`--gensim`, to gensim's Word2Vec on the same words. TensorBoard's projector shows the most frequent
words.
"""

import dataclasses
import sys
from typing import Literal

from keras_llm import cli
from keras_llm.errors import InputError
from keras_llm.recipes.common import corpus, flags, model_card, runs, word_vectors

BASELINE = "random"
NEXT = "predict {out} {word}"
CORPUS_KINDS = ("texts",)


@dataclasses.dataclass
@flags.defaults(held_out=0.02, epochs=3, evaluations=2, learning_rate=5e-3, weight_decay=0.0)
class Options(corpus.Options):
    """Train word vectors: skip-gram, CBOW or GloVe."""

    objective: Literal["skip_gram", "cbow", "glove"] = "skip_gram"
    """Training objective."""
    vocabulary_size: flags.Positive = 20000
    """Maximum number of words with a vector."""
    min_count: flags.Positive = 5
    """Minimum occurrences of a word with a vector."""
    dimension: flags.Positive = 100
    """Vector dimension."""
    window: flags.Positive = 5
    """Maximum distance of a neighbor, in words."""
    negatives: flags.Positive = 5
    """Negative samples per neighbor (skip_gram, cbow)."""
    threshold: flags.Share = 1e-4
    """Relative frequency above which occurrences of a word are subsampled (skip_gram, cbow)."""
    batch_size: flags.Positive = 512
    """Words per batch, each with all its neighbors; for glove, 16 times as many word pairs."""
    word: str = ""
    """Word whose nearest neighbors are logged; default the hundredth most frequent."""
    gensim: bool = False
    """Also evaluate gensim's Word2Vec on the same words (skip_gram, cbow); needs gensim."""
    benchmarks: bool = True
    """Evaluate on analogies and similarities, downloaded from the package gensim;
    `--no-benchmarks` does not."""

    formats = ()  # other programs read vectors.txt
    least_vocabulary = 2

    def __post_init__(self):
        super().__post_init__()
        varies = self.objective == "skip_gram" and self.distribution in ("jax_data", "jax_model")
        self.check(
            ("optimizer", self.optimizer == "adamw", "adamw: word vectors have no blocks"),
            (
                "distribution",
                not varies,
                "mirrored or multi_worker with skip_gram, whose batches vary in their rows",
            ),
            ("gensim", not (self.gensim and self.objective == "glove"), "off with glove"),
        )
        self.shrink(max_megabytes=0.3, dimension=16, held_out=0.1, threshold=1e-2, batch_size=128)


def run(options):
    """Train, evaluate and save a model; return its metrics."""
    import numpy as np

    from keras_llm import data, models, tasks

    runs.prepare(options, *["gensim"] * options.gensim)
    train, held_out = corpus.documents(options)
    tokenizer = data.word_vocabulary(train, options.vocabulary_size, options.min_count)
    stream = data.word_stream(train, tokenizer, options.window)
    size, words = tokenizer.vocabulary_size, int(np.sum(stream > 0))
    runs.say(f"{words} words in {len(train)} documents, {size - 2} distinct")
    config = models.WordVectorsConfig(size, options.dimension, options.objective)
    task = tasks.WordVectors(
        models.word_vectors(config), tokenizer, options.metadata("word_vectors")
    )
    options.word = options.word or task.words[:100][-1]
    task.nearest(options.word)  # raises an error for an unknown word before training
    rows = options.batch_size * (16 if options.objective == "glove" else 1)
    contexts = {"window": options.window, "negatives": options.negatives}
    train_data = task.dataset(
        stream, rows, options.epochs, options.seed, **contexts, threshold=options.threshold
    )
    validation_data = task.dataset(held_out, rows, **contexts)
    random = np.random.default_rng(options.seed).normal(size=task.table.shape)
    baseline = word_vectors.measures(options, random, task.words)
    with runs.start(options) as run:
        fitted = run.fit(
            task,
            train_data,
            validation_data.take(64).cache(),
            "rows",
            rows,
            sample=lambda: ", ".join(word for word, _ in task.nearest(options.word)),
        )
        metrics = {
            "held_out": word_vectors.measures(options, task.table, task.words),
            BASELINE: baseline,
        }
        if options.gensim:
            vectors = word_vectors.gensim_vectors(stream, task, options)
            metrics["gensim"] = word_vectors.measures(options, *vectors)
        metrics["training"] = {"words": words, **fitted}
        word_vectors.write_vectors(run.folder, task)
        run.save(task, metrics, _model_card(task, options, metrics))
    return metrics


def evaluate(folder, data=None):
    """Evaluate trained vectors on analogies and similarities; `data` must be None."""
    if data:
        raise InputError("word vectors are evaluated on fixed benchmarks; omit --data.")
    task, options = runs.load(folder, Options)
    return word_vectors.measures(options, task.table, task.words)


def _model_card(task, options, metrics):
    held_out = metrics["held_out"]
    neighbors = ", ".join(word for word, _ in task.nearest(options.word))
    return model_card.card(
        options,
        metrics,
        f"Vectors of {len(task.words):,} words, trained with {options.objective}.",
        {BASELINE: "random vectors"} | ({"gensim": "gensim"} if options.gensim else {}),
        f"{held_out.get('analogies', 0):,} of Google's analogies, "
        f"{held_out.get('wordsim_pairs', 0)} pairs of WordSim-353 and "
        f"{held_out.get('simlex_pairs', 0)} of SimLex-999",
        [
            f"Text: {metrics['training']['words']:,} words, window {options.window}, "
            f"{options.epochs} epochs.",
            f"Nearest to {options.word}: {neighbors}.",
            "Limits: the vectors reproduce the bias of the text.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
