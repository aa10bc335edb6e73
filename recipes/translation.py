"""Train an encoder-decoder that translates, as in "Attention Is All You Need".

    keras-llm train translation --out runs/french --corpus libreoffice-help-fr
    keras-llm train translation --out runs/mine --data pairs.tsv

Pairs are cleaned and split by source, one vocabulary is trained for both languages, and the model
is trained with `fit` on length-bucketed batches. Held-out sources are translated with beam search.
The baselines are a copy of the source and the translation of the nearest training source.
"""

import dataclasses
import sys

from keras_llm import cli
from keras_llm.recipes.common import flags, model_card, runs, tables, translations

BASELINE = "memory"
NEXT = 'generate {out} "Click the button." --beam-width 4'
CORPUS_KINDS = ("pairs",)


@dataclasses.dataclass
@flags.defaults(held_out=0.05, preset="seq2seq-2m", epochs=6, evaluations=2, learning_rate=3e-3)
class Options(flags.RowOptions):
    """Train an encoder-decoder that translates."""

    corpus: str = "libreoffice-help-fr"
    """Name of a corpus of the kind "pairs"; `keras-llm recipes` lists them."""
    source_column: str = "source"
    """Column or JSON field of the source."""
    target_column: str = "target"
    """Column or JSON field of the translation."""
    max_length: flags.at_least(2) = 64
    """Maximum tokens of source and target; longer pairs are dropped from the training data."""
    test_rows: flags.Positive = 500
    """Number of held-out sources to translate for BLEU and chrF."""
    beam_width: flags.Positive = 4
    """Beam width of the search."""
    bleu_tokenizer: str = "13a"
    """Tokenizer of sacrebleu: "13a", "zh" for Chinese, or "char"."""

    least_vocabulary = 261  # of SentencePiece: bytes, special tokens and a piece

    def __post_init__(self):
        super().__post_init__()
        self.shrink(preset="seq2seq-tiny", vocabulary_size=400, max_length=48, max_rows=1000)
        self.shrink(test_rows=20, batch_size=16, epochs=16, evaluations=1, dropout=0.0)


def run(options):
    """Train, evaluate and save a model; return its metrics."""
    import numpy as np

    runs.prepare(options, "sklearn", "sacrebleu")
    train, held_out, dropped = rows(options)
    task = translations.untrained(options, train, options.metadata("translation"))
    short, too_long = translations.short_pairs(task, train, options, warn=True)
    runs.say(f"{len(short):,} pairs for training; dropped: {runs.reasons(too_long)}")
    train_data = task.dataset(short, options.batch_size, options.epochs, options.seed)
    held_out_data, held_out_dropped = translations.held_out_batches(task, held_out, options)
    test = task.fitting_rows(held_out)[0][: options.test_rows]
    baselines = {
        BASELINE: translations.measured(translations.nearest(train, test), test, options),
        "copy": translations.measured([source for source, _ in test], test, options),
    }
    with runs.start(options) as run:
        fitted = run.fit(
            task,
            train_data,
            held_out_data,
            "pairs",
            sample=lambda: f"{test[0][0]}\n\n> {task(test[0][0], options.max_length)}",
            attention={"encoder_token_ids": np.array([task.tokenizer.encode(test[0][0])[:32]])},
        )
        held_out_metrics, texts = measured(task, held_out, options)
        metrics = {
            "held_out": held_out_metrics,
            **baselines,
            "by_length": translations.by_length(texts, test, options),
            "training": {
                "pairs": len(short),
                "dropped": dropped | too_long,
                "held_out_dropped": held_out_dropped,
                **fitted,
            },
        }
        run.save(task, metrics, _model_card(task, options, metrics, texts, test))
    return metrics


def rows(options):
    """Return training pairs, held-out pairs, and a dict of dropped pairs by reason."""
    columns = [options.source_column, options.target_column]
    train, held_out, dropped = tables.rows(options, columns, "pairs")
    return train[: options.max_rows or None], held_out, dropped


def measured(task, pairs, options):
    """Return the likelihood of the targets, BLEU and chrF, and the translations by beam search."""
    from keras_llm import training

    batches, _ = translations.held_out_batches(task, pairs, options)
    test, too_long = task.fitting_rows(pairs)
    test = test[: options.test_rows]
    likelihood = training.evaluate_targets(task.model, batches, task.tokenizer.pad_id)
    texts = translations.translated(
        task,
        [source for source, _ in test],
        2 * options.max_length,
        beam_width=options.beam_width,
    )
    metrics = likelihood | translations.measured(texts, test, options)
    return metrics | ({"sources_too_long": too_long} if too_long else {}), texts


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out pairs or on the pairs of a file."""
    from keras_llm.data import read_records

    task, options = runs.load(folder, Options)
    columns = [options.source_column, options.target_column]
    return measured(task, read_records(data, columns) if data else rows(options)[1], options)[0]


def _model_card(task, options, metrics, texts, test):
    lengths = "; ".join(
        f"from {row['words_from']} words {row['bleu']:.1f} ({row['sources']} sources)"
        for row in metrics["by_length"]
    )
    held_out = metrics["held_out"]
    return model_card.card(
        options,
        metrics,
        "An encoder-decoder that translates.",
        {BASELINE: "nearest source", "copy": "copy of the source"},
        f"{len(test):,} sources translated with beam width {options.beam_width} (BLEU, chrF), and "
        f"{held_out['tokens']:,} tokens of all targets",
        [
            f"sacrebleu: `{held_out['bleu_signature']}`, `{held_out['chrf_signature']}`.",
            f"BLEU by length: {lengths}.",
            f"Vocabulary size {task.tokenizer.vocabulary_size}, shared by both languages.",
            f'Example: "{test[0][0]}" is translated as "{texts[0]}", expected "{test[0][1]}".',
            "Limits: the model is reliable only on texts like its training data.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
