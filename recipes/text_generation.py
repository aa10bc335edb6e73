"""Train a causal language model that continues text: stories, poems, reviews or code.

    keras-llm train text_generation --out runs/reviews --corpus movie-reviews
    keras-llm train text_generation --out runs/mine --data my_texts/

Documents are split into training and held-out data, a tokenizer is trained on the training data,
and the model is trained with `fit` on packed batches. The folder `--out` contains the best weights,
the tokenizer, held-out metrics of the model and of unigram and trigram baselines, a model card and
TensorBoard logs.
"""

import dataclasses
import sys
from typing import Literal

from keras_llm import cli
from keras_llm.recipes.common import continuations, corpus, model_card, runs, vocabularies

BASELINE = "trigram"
NEXT = 'generate {out} "{prompt}" --stream'
CORPUS_KINDS = ("texts",)


@dataclasses.dataclass
class Options(corpus.LanguageModelOptions, corpus.StreamOptions):
    """Train a causal language model that continues text."""

    tokenizer: Literal["unigram", "bpe"] = "bpe"
    """Type of SentencePiece model."""
    separate: bool = False
    """Prevent attention between the documents of a window."""

    least_vocabulary = 261  # of SentencePiece: bytes, special tokens and a piece

    def __post_init__(self):
        super().__post_init__()
        self.shrink(preset="llama-tiny", vocabulary_size=512, sequence_length=64)
        self.shrink(max_megabytes=0.3, evaluations=2, held_out=0.1)


def run(options):
    """Train, evaluate and save a model; return its metrics."""
    from keras_llm import data, models, tasks, training

    runs.prepare(options, pictures=False)
    corpus.check_length(options, models.preset(options.preset))
    train, held_out, report = corpus.prepared(options, contamination=True)
    tokenizer = vocabularies.sentence_piece(
        corpus.sample(options, train), options.vocabulary_size, options.tokenizer
    )
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "dropout": options.dropout}
    config = models.preset(options.preset, **sizes)
    task = tasks.TextGeneration(
        models.causal_lm(config), tokenizer, options.metadata("text_generation")
    )
    train_ids = corpus.token_ids(options, train, tokenizer)
    held_out_ids = data.encode_documents(held_out, tokenizer)
    training.check_token_ids(train_ids, config.vocabulary_size)
    windows = {"sequence_length": options.sequence_length, "segments": options.separate}
    train_data = task.dataset(
        train_ids, options.batch_size, options.epochs, options.seed, **windows
    )
    validation_data = task.dataset(held_out_ids, options.batch_size, drop_remainder=True, **windows)
    baselines = continuations.baselines(
        task, corpus.counted(options, train_ids), held_out_ids, held_out
    )
    with runs.start(options) as run:
        fitted = run.fit(
            task,
            train_data,
            validation_data.take(32).cache(),
            "tokens",
            options.batch_size * options.sequence_length,
            sample=lambda: continuations.sample(task, options),
            attention={"token_ids": held_out_ids[None, : min(32, options.sequence_length)]},
        )
        count, length = (8, 24) if options.smoke else (64, 64)
        metrics = {
            "held_out": task.evaluate(held_out, **windows),
            **baselines,
            "continuations": continuations.measure(
                task, train_ids, held_out_ids, count, length, options.seed
            ),
            "training": {
                "documents": len(train),
                "tokens": len(train_ids),
                "held_out_documents": len(held_out),
                **report,
                **fitted,
            },
        }
        run.save(task, metrics, _model_card(task, options, metrics))
    corpus.remove_token_files(options)
    return metrics


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out documents or on the texts of a file or folder."""
    from keras_llm.data import read_texts

    task, options = runs.load(folder, Options)
    documents = read_texts(data, options.text_field) if data else corpus.documents(options)[1]
    return task.evaluate(
        documents, sequence_length=options.sequence_length, segments=options.separate
    )


def texts(task):
    """Return the training and the held-out documents of a trained model, two lists of str."""
    return corpus.texts(runs.model_options(Options, task))


def _model_card(task, options, metrics):
    training = metrics["training"]
    return model_card.card(
        options,
        metrics,
        "A causal language model that continues text.",
        {"unigram": "unigram", BASELINE: "trigram (Kneser-Ney)"},
        f"{metrics['held_out']['tokens']:,} tokens in {training['held_out_documents']:,} documents "
        f"in windows of {options.sequence_length} tokens",
        [
            f"{model_card.shape(task.model.config, options.sequence_length)}; "
            f"{training['tokens']:,} training tokens in {training['documents']:,} documents.",
            continuations.note(metrics["continuations"]),
            *corpus.notes(training),
            "Limits: the model imitates its training data. It was not tuned to be helpful, "
            "truthful or safe.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
