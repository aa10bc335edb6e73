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

from keras_llm.recipes.common import corpus, model_card, runs, word_vectors

BASELINE = "random"
NEXT = "predict {out} {word}"


@dataclasses.dataclass
class Options(corpus.Options):
    """Train word vectors."""

    held_out: float = 0.02
    """Fraction of the documents to hold out."""
    objective: Literal["skip_gram", "cbow", "glove"] = "skip_gram"
    """Training objective."""
    vocabulary_size: int = 20000
    """Maximum number of words with a vector."""
    min_count: int = 5
    """Minimum occurrences of a word with a vector."""
    dimension: int = 100
    """Vector dimension."""
    window: int = 5
    """Maximum distance of a neighbor, in words."""
    negatives: int = 5
    """Negative samples per neighbor (skip_gram, cbow)."""
    threshold: float = 1e-4
    """Relative frequency above which occurrences of a word are subsampled (skip_gram, cbow)."""
    batch_size: int = 512
    """Words per batch, each with all its neighbors; for glove, 16 times as many word pairs."""
    epochs: int = 3
    """Training epochs."""
    evaluations: int = 2
    """Held-out evaluations, loss curve points and checkpoints per epoch."""
    learning_rate: float = 5e-3
    """Peak learning rate, after linear warmup."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    word: str = ""
    """Word whose nearest neighbors are logged; default the hundredth most frequent."""
    gensim: bool = False
    """Also evaluate gensim's Word2Vec on the same words (skip_gram, cbow); needs gensim."""
    benchmarks: bool = True
    """Evaluate on analogies and similarities, downloaded from the package gensim."""

    def __post_init__(self):
        super().__post_init__()
        jax = self.distribution in ("jax_data", "jax_model")
        self.check(
            ("min_count", self.min_count > 0, "a positive int"),
            ("dimension", self.dimension > 0, "a positive int"),
            ("window", self.window > 0, "a positive int"),
            ("negatives", self.negatives > 0, "a positive int"),
            ("threshold", 0 < self.threshold < 1, "in (0, 1)"),
            ("export", not self.exports, "empty: other programs read vectors.txt"),
            ("optimizer", self.optimizer == "adamw", "adamw: word vectors have no blocks"),
            (
                "distribution",
                not (jax and self.objective == "skip_gram"),
                "mirrored or multi_worker with skip_gram, whose batches vary in their rows",
            ),
            ("gensim", not (self.gensim and self.objective == "glove"), "off with glove"),
        )
        if self.smoke:
            self.max_megabytes, self.dimension = min(self.max_megabytes, 0.3), 16
            self.held_out, self.threshold, self.batch_size = max(self.held_out, 0.1), 1e-2, 128


def run(options):
    """Train, evaluate and save a model.

    Args:
        options: `Options`.

    Returns:
        The dict saved as `metrics.json`.

    Raises:
        InputError: if an option or the data is invalid; `out` is not created then.
    """
    import keras
    import numpy as np

    from keras_llm import data, models, tasks, training

    runs.prepare(options, *["gensim"] * options.gensim)
    train, held_out = corpus.documents(options)
    tokenizer = data.word_vocabulary(train, options.vocabulary_size, options.min_count)
    stream = data.word_stream(train, tokenizer, options.window)
    size = tokenizer.vocabulary_size
    runs.say(f"{np.sum(stream > 0)} words in {len(train)} documents, {size - 2} distinct")
    config = models.WordVectorsConfig(size, options.dimension, options.objective)
    model = models.word_vectors(config)
    task = tasks.WordVectors(
        model, tokenizer, {"recipe": "word_vectors", "options": dataclasses.asdict(options)}
    )
    options.word = options.word or task.words[:100][-1]
    task.nearest(options.word)  # raises an error for an unknown word before training
    train_data = neighbors(stream, options, options.epochs, options.threshold)
    validation_data = neighbors(data.word_stream(held_out, tokenizer, options.window), options)
    is_glove = options.objective == "glove"
    loss = training.GloVeLoss() if is_glove else keras.losses.BinaryCrossentropy(from_logits=True)
    trainer = training.Trainer(model)
    runs.compile_trainer(options, trainer, len(train_data), loss)
    with runs.model_folder(options) as folder:
        trained = runs.fit(
            folder,
            options,
            trainer,
            train_data,
            validation_data.take(64).cache(),
            "rows",
            options.batch_size * (16 if is_glove else 1),
            sample=lambda: ", ".join(word for word, _ in task.nearest(options.word)),
        )
        random = np.random.default_rng(options.seed).normal(size=task.table.shape)
        metrics = {"held_out": word_vectors.measures(options, task.table, task.words)}
        metrics[BASELINE] = word_vectors.measures(options, random, task.words)
        if options.gensim:
            metrics["gensim"] = word_vectors.measures(
                options, *word_vectors.gensim_vectors(stream, task, options)
            )
        metrics["training"] = {"words": int(np.sum(stream > 0)), **trained}
        word_vectors.write_vectors(folder, task)
        runs.write(folder, task, metrics, _model_card(task, options, metrics))
    return metrics


def neighbors(stream, options, epochs=1, threshold=None):
    """Return a `tf.data.Dataset` of the model's inputs and targets from a stream of words."""
    from keras_llm import data

    if options.objective == "glove":
        pairs = data.cooccurrences(stream, options.window)
        size = min(16 * options.batch_size, len(pairs[0]))
        return data.cooccurrence_dataset(pairs, size, epochs, options.seed)
    size = min(options.batch_size, int((stream > 1).sum()))
    shape = (options.window, options.negatives, size, epochs, options.seed, threshold)
    return data.neighbor_dataset(stream, options.objective, *shape)


def evaluate(folder, data=None):
    """Evaluate trained vectors on analogies and similarities.

    Args:
        folder: str or path, the `out` of a run.
        data: must be None; the benchmarks are fixed.

    Returns:
        A dict, see `recipes.common.word_vectors.measures`.
    """
    import keras_llm
    from keras_llm.errors import InputError

    if data:
        raise InputError("word vectors are evaluated on fixed benchmarks; omit --data.")
    task = keras_llm.load(folder)
    return word_vectors.measures(runs.model_options(Options, task), task.table, task.words)


def _model_card(task, options, metrics):
    baselines = {BASELINE: "random vectors"} | ({"gensim": "gensim"} if options.gensim else {})
    training, held_out = metrics["training"], metrics["held_out"]
    return model_card.card(
        options,
        metrics,
        f"Vectors of {len(task.words):,} words, trained with {options.objective}.",
        baselines,
        f"{held_out.get('analogies', 0):,} of Google's analogies, "
        f"{held_out.get('wordsim_pairs', 0)} pairs of WordSim-353 and "
        f"{held_out.get('simlex_pairs', 0)} of SimLex-999",
        [
            f"Text: {training['words']:,} words, window {options.window}, {options.epochs} epochs.",
            f"Nearest to {options.word}: "
            + ", ".join(word for word, _ in task.nearest(options.word))
            + ".",
            "Limits: the vectors reproduce the bias of the text.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
