"""Train an encoder-decoder that translates, as in "Attention Is All You Need".

    keras-llm train translation --out runs/french --corpus libreoffice-help-fr
    keras-llm train translation --out runs/mine --data pairs.tsv

Pairs are cleaned and split by source, one vocabulary is trained for both languages, and the model
is trained with `fit` on length-bucketed batches. Held-out sources are translated with beam search.
The baselines are a copy of the source and the translation of the nearest training source.
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
    """Name of a corpus of the kind "pairs"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .csv, .tsv or .jsonl file, a folder of them, hf:NAME:SPLIT or tfds:NAME:SPLIT,
    instead of a corpus."""
    source_column: str = "source"
    """Column or JSON field of the source."""
    target_column: str = "target"
    """Column or JSON field of the translation."""
    held_out: float = 0.05
    """Fraction of the sources to hold out."""
    preset: str = "seq2seq-2m"
    """Model preset."""
    max_length: int = 64
    """Maximum tokens of source and target; longer pairs are dropped from the training data."""
    max_rows: int = 0
    """Maximum number of training pairs; 0 uses all."""
    test_rows: int = 500
    """Number of held-out sources to translate for BLEU and chrF."""
    beam_width: int = 4
    """Beam width of the search."""
    bleu_tokenizer: str = "13a"
    """Tokenizer of sacrebleu: "13a", "zh" for Chinese, or "char"."""
    dropout: float = 0.1
    """Dropout rate."""
    epochs: int = 6
    """Training epochs."""
    evaluations: int = 2
    """Held-out evaluations, loss curve points and checkpoints per epoch."""
    learning_rate: float = 3e-3
    """Peak learning rate, after linear warmup."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("max_length", self.max_length > 1, "at least 2"),
            ("max_rows", self.max_rows >= 0, ">= 0"),
            ("test_rows", self.test_rows > 0, "a positive int"),
            ("beam_width", self.beam_width > 0, "a positive int"),
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("export", set(self.exports) <= {"saved_model", "litert"}, "saved_model or litert"),
        )
        if self.smoke:
            self.preset, self.vocabulary_size, self.max_length = "seq2seq-tiny", 400, 48
            self.max_rows, self.test_rows, self.batch_size = 1000, 20, 16
            self.epochs, self.evaluations, self.dropout = 16, 1, 0.0


def run(options):
    """Train, evaluate and save a model.

    Args:
        options: `Options`.

    Returns:
        The dict saved as `metrics.json`.

    Raises:
        InputError: if an option or the data is invalid; `out` is not created then.
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
        runs.say(f"dropped {too_long} training pairs longer than {options.max_length} tokens")
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
        texts = translate(task, test, options)
        metrics = {
            "held_out": training.evaluate_targets(model, validation_data, tokenizer.pad_id)
            | translations.measured(texts, test, options),
            BASELINE: translations.measured(translations.nearest(train, test), test, options),
            "copy": translations.measured([source for source, _ in test], test, options),
            "by_length": translations.by_length(texts, test, options),
            "training": {"pairs": len(train) - too_long, "dropped": dropped, **trained},
        }
        runs.write(folder, task, metrics, _model_card(task, options, metrics, texts, test))
    model_card.ship(options, task, metrics)
    return metrics


def rows(options):
    """Return training pairs, held-out pairs, and a dict of dropped pairs by reason."""
    columns = [options.source_column, options.target_column]
    train, held_out, dropped = tables.rows(options, columns, "pairs")
    return train[: options.max_rows or None], held_out, dropped


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out pairs or on other pairs.

    Args:
        folder: str or path, the `out` of a run.
        data: path of a file of pairs, or None for the pairs held out in training.

    Returns:
        A dict with the likelihood of the targets, see `training.evaluate_targets`, BLEU and chrF.
    """
    import keras_llm
    from keras_llm import training
    from keras_llm.data import read_records

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    columns = [options.source_column, options.target_column]
    pairs = read_records(data, columns) if data else rows(options)[1]
    batches, _ = translations.batches(task, pairs, options)
    likelihood = training.evaluate_targets(task.model, batches, task.tokenizer.pad_id)
    test = pairs[: options.test_rows]
    return likelihood | translations.measured(translate(task, test, options), test, options)


def translate(task, pairs, options):
    """Translate the sources of pairs with the beam search of the options; returns a list of str."""
    sources, longest = [source for source, _ in pairs], 2 * options.max_length
    return translations.translated(task, sources, longest, beam_width=options.beam_width)


def _model_card(task, options, metrics, texts, test):
    lengths = "; ".join(
        f"from {row['words_from']} words {row['bleu']:.1f} ({row['sources']} sources)"
        for row in metrics["by_length"]
    )
    return model_card.card(
        options,
        metrics,
        "An encoder-decoder that translates.",
        {BASELINE: "nearest source", "copy": "copy of the source"},
        f"{len(test):,} sources translated with beam width {options.beam_width} (BLEU, chrF), and "
        f"{metrics['held_out']['tokens']:,} tokens of all targets",
        [
            f"sacrebleu: `{metrics['held_out']['bleu_signature']}`, "
            f"`{metrics['held_out']['chrf_signature']}`.",
            f"BLEU by length: {lengths}.",
            f"Vocabulary size {task.tokenizer.vocabulary_size}, shared by both languages.",
            f'Example: "{test[0][0]}" is translated as "{texts[0]}", expected "{test[0][1]}".',
            "Limits: the model is reliable only on texts like its training data.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
