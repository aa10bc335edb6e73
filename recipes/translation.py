"""Train an encoder-decoder that translates, as in "Attention Is All You Need".

    keras-llm train translation --out runs/french --corpus libreoffice-help-fr
    keras-llm train translation --out runs/mine --data pairs.tsv

Pairs are cleaned and split by source, one vocabulary is learned for both languages, and the model
is trained with `fit` on batches of like length. Held-out sources are translated by beam search,
beside copying the source and beside the translation of the nearest source of the training.
"""

import dataclasses
import sys

from keras_llm.recipes.common import model_card, runs, tables, translations

BASELINE = "memory"
NEXT = 'generate {out} "Click the button." --beam-width 4'


@dataclasses.dataclass
class Options(runs.Options):
    """Train an encoder-decoder that translates."""

    corpus: str = "libreoffice-help-fr"
    """A corpus of the kind "pairs"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .csv, .tsv or .jsonl file, a folder of them, hf:NAME:SPLIT or tfds:NAME:SPLIT,
    instead of a corpus."""
    source_column: str = "source"
    """The column, or JSON field, that holds what is translated."""
    target_column: str = "target"
    """The column, or JSON field, that holds the translation."""
    held_out: float = 0.05
    """Share of the sources that is held out."""
    preset: str = "seq2seq-2m"
    """Shape of the model."""
    max_length: int = 64
    """Pairs with more tokens on a side are left out of the training."""
    max_rows: int = 0
    """Use no more than this many pairs for training; 0 uses all."""
    test_rows: int = 500
    """How many held-out sources are translated for BLEU and chrF."""
    beam_width: int = 4
    """Beams of the search."""
    bleu_tokenizer: str = "13a"
    """How sacrebleu cuts words: "13a", "zh" for Chinese, "char"."""
    dropout: float = 0.1
    """Dropout in the model."""
    epochs: int = 6
    """Passes over the training pairs."""
    evaluations: int = 2
    """Held-out evaluations, points of the loss curve and checkpoints in each pass."""
    learning_rate: float = 3e-3
    """Peak learning rate; it warms up linearly."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("max_length", self.max_length > 1, "at least 2"),
            ("max_rows", self.max_rows >= 0, ">= 0"),
            ("test_rows", self.test_rows > 0, "a positive int"),
            ("beam_width", self.beam_width > 0, "a positive int"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("export", set(self.exports) <= {"saved_model", "litert"}, "of saved_model, litert"),
        )
        if self.smoke:
            self.preset, self.vocabulary_size, self.max_length = "seq2seq-tiny", 400, 48
            self.max_rows, self.test_rows, self.batch_size = 1000, 20, 16
            self.epochs, self.evaluations, self.dropout = 16, 1, 0.0


def run(options):
    """Train, evaluate and save.

    Args:
        options: `Options`.

    Returns:
        The dict that is saved as `metrics.json`.

    Raises:
        InputError: if an option or the data cannot be used; nothing is at `out` then.
    """
    import numpy as np

    from keras_llm import models, tasks, tokenizers, training

    runs.prepare(options, "sklearn", "sacrebleu")
    train, held_out, dropped = rows(options)
    sides = [text for row in train for text in row]
    tokenizer = tokenizers.SentencePiece.train(sides, options.vocabulary_size, model_type="bpe")
    config = models.preset(
        options.preset,
        vocabulary_size=tokenizer.vocabulary_size,
        dropout=options.dropout,
        pad_id=tokenizer.pad_id,
        start_id=tokenizer.bos_id,
    )
    model = models.seq2seq(config)
    metadata = {"recipe": "translation", "options": dataclasses.asdict(options)}
    task = tasks.Translation(model, tokenizer, metadata)
    train_data, too_long = translations.batches(task, train, options, options.seed)
    validation_data, _ = translations.batches(task, held_out, options)
    if too_long:
        dropped |= {f"longer than {options.max_length} tokens": too_long}
        runs.say(f"{too_long} training pairs are longer than {options.max_length} tokens: dropped")
    trainer = runs.token_trainer(options, model, len(train_data), tokenizer.pad_id)
    test = held_out[: options.test_rows]
    with runs.model_folder(options) as folder:
        trained = runs.fit(
            folder,
            options,
            trainer,
            train_data,
            validation_data,
            "pairs",
            sample=lambda: f"{test[0][0]}\n\n> {task(test[0][0], options.max_length)}",
            attention={"encoder_token_ids": np.array([tokenizer.encode(test[0][0])[:32]])},
        )
        found = translate(task, test, options)
        metrics = {
            "held_out": training.evaluate_targets(model, validation_data, tokenizer.pad_id)
            | translations.measured(found, test, options),
            BASELINE: translations.measured(translations.nearest(train, test), test, options),
            "copy": translations.measured([source for source, _ in test], test, options),
            "by_length": translations.by_length(found, test, options),
            "training": {"pairs": len(train) - too_long, "dropped": dropped, **trained},
        }
        runs.write(folder, task, metrics, _model_card(task, options, metrics, found, test))
    model_card.ship(options, task, metrics)
    return metrics


def rows(options):
    """The pairs that the options name: training, held out, and what was dropped."""
    columns = [options.source_column, options.target_column]
    train, held_out, dropped = tables.rows(options, columns, "pairs")
    return train[: options.max_rows or None], held_out, dropped


def evaluate(folder, data=None):
    """Measure a trained model on its held-out pairs, or on others.

    Args:
        folder: str or path, the `out` of a run.
        data: path of a file of pairs, or None for those held out in training.

    Returns:
        A dict: likelihood of the targets, see `training.evaluate_targets`, BLEU and chrF.
    """
    import keras_llm
    from keras_llm import training
    from keras_llm.data import read_records

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    columns = [options.source_column, options.target_column]
    found = read_records(data, columns) if data else rows(options)[1]
    found_data, _ = translations.batches(task, found, options)
    likely = training.evaluate_targets(task.model, found_data, task.tokenizer.pad_id)
    test = found[: options.test_rows]
    return likely | translations.measured(translate(task, test, options), test, options)


def translate(task, pairs, options):
    """What the beam search of the options makes of the sources of pairs, a list of str."""
    sources, longest = [source for source, _ in pairs], 2 * options.max_length
    return translations.translated(task, sources, longest, beam_width=options.beam_width)


def _model_card(task, options, metrics, found, test):
    lengths = "; ".join(
        f"from {row['words_from']} words {row['bleu']:.1f} ({row['sources']} sources)"
        for row in metrics["by_length"]
    )
    return model_card.card(
        options,
        metrics,
        "Translates.",
        {BASELINE: "nearest source", "copy": "copy of the source"},
        f"{len(test):,} held-out sources by beam search with {options.beam_width} beams (BLEU, "
        f"chrF), and {metrics['held_out']['tokens']:,} tokens of all held-out targets",
        [
            f"sacrebleu: `{metrics['held_out']['bleu_signature']}`, "
            f"`{metrics['held_out']['chrf_signature']}`.",
            f"BLEU by length: {lengths}.",
            f"Vocabulary of {task.tokenizer.vocabulary_size}, shared by both languages.",
            f'Example: "{test[0][0]}" becomes "{found[0]}", expected "{test[0][1]}".',
            "Limits: it knows only texts like those it was trained on.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
